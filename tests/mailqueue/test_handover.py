from __future__ import annotations

import contextlib
import re
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from minismtp.mail.content import Content
from minismtp.mail.message import Message
from minismtp.mail.queue_entry import QueuedRecipient, QueueEntry
from minismtp.mailqueue.database import DatabaseWriter, QueueDatabase
from minismtp.mailqueue.handover import Handover
from minismtp.runtime.log import Log
from minismtp.storage.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Configure, Running, Start


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = Spool(tmp_path)
    spool.prepare()
    target = QueuedRecipient(kind="relay", address="b@example.net", recipient="b@example.net")
    for name in ("m1", "m2"):
        entry = QueueEntry(
            id=name, sender="", listener="", peer="", helo="", login=None, arrived=1.0,
            targets=(target,),
        )  # fmt: skip
        spool.add(entry, Message(name, Content.of(b"Subject: x\r\n\r\n")))
    return spool


@pytest.fixture
def schedule(tmp_path: Path) -> Iterator[QueueDatabase]:
    with contextlib.closing(QueueDatabase(tmp_path / "queue.db")) as schedule:
        yield schedule


def test_a_message_is_left_alone_until_its_last_job_ends(
    spool: Spool, schedule: QueueDatabase, tmp_path: Path
) -> None:
    old = Handover(spool, DatabaseWriter(schedule, Log()))
    old.keep([("m1", "a"), ("m1", "b"), ("gone", "a")])
    with contextlib.closing(QueueDatabase(tmp_path / "queue.db")) as new_schedule:
        new = Handover(spool, DatabaseWriter(new_schedule, Log()))
        new.expect(new_schedule.changed())
        assert new.is_foreign("m1")
        assert not new.is_foreign("m2")
        old.finish(("m1", "a"))
        assert not new.take_over("m1")
        fifo = spool.trigger.open()
        old.finish(("m1", "b"))
        assert new.take_over("m1")
        assert not new.is_foreign("m1")
        assert spool.trigger.read(fifo) == ([], True)
        assert new_schedule.changed() == ["m1"]


def test_a_message_that_is_done_is_taken_over_at_once(
    spool: Spool, schedule: QueueDatabase
) -> None:
    new = Handover(spool, DatabaseWriter(schedule, Log()))
    new.expect(["m1", "m2"])
    spool.remove("m1")
    assert new.take_over("m1")
    assert new.take_over("m2")


def test_a_job_may_end_twice_or_before_it_is_kept(spool: Spool, schedule: QueueDatabase) -> None:
    handover = Handover(spool, DatabaseWriter(schedule, Log()))
    handover.finish(("m1", "a"))
    handover.keep([("m1", "a"), ("m1", "b")])
    handover.finish(("m1", "a"))
    handover.finish(("m1", "a"))
    assert spool.is_locked("m1")
    handover.finish(("m1", "b"))
    assert not spool.is_locked("m1")


def test_new_mail_is_sent_while_the_runner_before_still_delivers(
    configure: Configure, configure_at: Callable[[str], Configure], start: Start
) -> None:
    there = start(
        configure_at("there")(
            plugins='[[plugins]]\nuse = "mailboxes"\ndomains = ["well.test"]\n'
            '[[plugins]]\nuse = "maildir"\npath = "mail/{local}"\n'
        )
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections, sends nothing
        routes = {"well.test": there.address(), "tar.test": f"127.0.0.1:{silent.getsockname()[1]}"}
        tables = [
            f'[[outbound.routes]]\ndomain = "{domain}"\nhost = "{host}"\ntls = "none"\n'
            for domain, host in routes.items()
        ]
        relay = '[[plugins]]\nuse = "relay"\nnetworks = ["127.0.0.0/8"]\n'
        here = start(configure(relay, *tables))
        send(here, "user@tar.test")
        with silent.accept()[0]:
            here.signal(signal.SIGHUP)
            here.wait_for_log(" queue opened ", 2)
            send(here, "user@well.test")
            there.wait_until(lambda: there.mail("user"))
            assert not re.search(" delivery .* to=user@tar.test", here.log)
            # The new process does not touch the message that the old one is sending.
            silent.settimeout(0.5)
            with pytest.raises(TimeoutError):
                silent.accept()


def send(server: Running, recipient: str) -> None:
    with server.connect() as client:
        client.begin_data(recipient)
        assert client.command("Subject: x\r\n\r\nx\r\n.").startswith("250 ")
        client.command("QUIT")
