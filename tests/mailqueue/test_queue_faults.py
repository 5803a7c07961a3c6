"""Messages on which the process dies, and files in the spool that are not messages."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING
from unittest.mock import MagicMock, Mock

import pytest
from ports import free_port

from minismtp.mail.content import Content
from minismtp.mail.message import Message
from minismtp.mail.queue_entry import QueuedRecipient, QueueEntry
from minismtp.mailqueue.in_progress import InProgress
from minismtp.mailqueue.loader import Loader
from minismtp.runtime.suspects import Suspects
from minismtp.storage.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Configure, Running, Start

RELAY = """
[[plugins]]
use = "relay"
networks = ["127.0.0.0/8"]

[outbound]
retry = ["1s"]

[[outbound.routes]]
domain = "example.net"
host = "{address}"

[[plugins]]
use = "fatal"
"""
FATAL = """
import os
from minismtp import hookimpl, plugin

@plugin
class Fatal:
    @hookimpl
    def on_send(self, message):
        {death}

    @hookimpl
    def deliver(self, message, envelope):
        if envelope.queued:
            {death}
"""
THERE = """
[[plugins]]
use = "mailboxes"
domains = ["example.net"]

[[plugins]]
use = "maildir"
path = "mail/{local}"
"""


@pytest.fixture
def there(configure_at: Callable[[str], Configure], start: Start) -> Running:
    """Run a server for example.net."""
    return start(configure_at("there")(plugins=THERE))


def begin(configure: Configure, there: Running, death: str) -> Path:
    path = configure(RELAY.format(address=there.address()))
    death = f"if message.headers.get('Subject') == 'poison': {death}"
    (path.parent / "local_plugins" / "fatal.py").write_text(FATAL.format(death=death))
    return path


def send(server: Running, recipient: str, subject: str) -> None:
    with server.connect() as client:
        client.begin_data(recipient)
        client.send(f"Subject: {subject}\r\n\r\ntext\r\n.\r\n")
        assert client.reply().startswith("250 ")


def listed(server: Running) -> list[dict[str, str]]:
    command = [sys.executable, "-m", "minismtp", "queue", "list", "--json", "--config"]
    done = subprocess.run(
        [*command, str(server.config)], capture_output=True, text=True, check=True
    )
    return [recipient for each in json.loads(done.stdout) for recipient in each["recipients"]]


@pytest.mark.parametrize(
    "death", ["os._exit(1)", "os.kill(os.getpid(), 9)", "os.kill(os.getpid(), 11)"]
)
def test_message_on_which_the_runner_dies_is_held_and_the_rest_goes_on(
    configure: Configure, start: Start, there: Running, death: str
) -> None:
    server = start(begin(configure, there, death))
    server.wait_for_log(" queue opened ")
    send(server, "bob@example.net", "poison")
    server.wait_for_log(' error message held, two runners died on it .*destination="example.net ')
    send(server, "bob@example.net", "good")
    [stored] = there.wait_until(lambda: there.mail("bob"))
    assert b"Subject: good" in stored
    [held] = server.wait_until(lambda: listed(server))
    assert held["state"] == "held"
    assert "died twice at this message" in held["reply"]
    assert len(server.log.split(" outbound runner died ")) == 3
    assert server.metric("messages_set_aside_total", reason="fatal") == 1


def test_messages_under_way_beside_it_are_delivered(
    configure: Configure, start: Start, there: Running
) -> None:
    server = start(begin(configure, there, "os._exit(1)"))
    server.wait_for_log(" queue opened ")
    for number in range(10):
        send(server, f"u{number}@example.net", "good")
        send(server, f"p{number}@example.net", "poison" if number == 5 else "good")
    server.wait_for_log(" error message held, ")
    names = [
        f"{kind}{number}" for number in range(10) for kind in "up" if (kind, number) != ("p", 5)
    ]
    there.wait_until(lambda: all(map(there.mail, names)))
    [held] = server.wait_until(lambda: [x for x in listed(server) if x["state"] == "held"])
    assert held["address"] == "p5@example.net"


def strange(queue: Path) -> None:
    """Put files into a directory that do not belong there."""
    (queue / "a-directory").mkdir()
    (queue / "a-directory" / "file").write_bytes(b"x")
    os.mkfifo(queue / "a-pipe")
    (queue / "a-loop").symlink_to(queue / "a-loop")
    (queue / "a-link").symlink_to("/etc/hostname")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(queue / "a-socket"))
    (queue / "rubbish").write_bytes(os.urandom(1000))
    (queue / "nothing").touch()
    (queue / "footer").write_bytes(b"minismtp-spool-1 %15d %10d\n" % (0, 0))
    huge = b"minismtp-spool-1 %15d %10d\n" % (0, 1 << 33)
    with (queue / "huge").open("wb") as file:
        file.truncate(1 << 33)
        file.seek(0, os.SEEK_END)
        file.write(huge)
    (queue / "a name with blanks").write_bytes(b"x")
    (queue / "\udcff\udcfe").write_bytes(b"x")
    (queue / "line\nend").write_bytes(b"x")


def test_nothing_in_the_spool_that_is_no_message_stops_the_queue(
    configure: Configure, start: Start, there: Running
) -> None:
    path = begin(configure, there, "pass")
    server = start(path)
    server.wait_for_log(" queue opened ")
    server.kill()
    spool = path.parent / "state/spool"
    for place in ("queue", "tmp"):
        strange(spool / place)
    (spool / "wake").unlink()
    (spool / "wake").write_bytes(b"rubbish\n")
    (spool / "missed").mkdir()
    (path.parent / "log").unlink()
    server = start(path)
    server.wait_for_log(" queue opened ")
    send(server, "bob@example.net", "good")
    there.wait_until(lambda: there.mail("bob"))
    server.wait_until(lambda: not list((spool / "queue").iterdir()))
    assert len(list((spool / "damaged").iterdir())) >= 12
    errors = [line for line in server.log.splitlines() if " error " in line]
    for name in ("a-pipe", "a-socket", "rubbish", "a name with blanks"):
        assert len([line for line in errors if name in line]) == 1
    server.wait_for_log(" info removed after a crash, incomplete and not acknowledged id=rubbish")
    assert "Traceback" not in server.log
    assert " died " not in server.log


def test_what_comes_into_the_spool_later_is_no_hindrance_either(
    configure: Configure, start: Start, there: Running
) -> None:
    path = begin(configure, there, "pass")
    server = start(path)
    server.wait_for_log(" queue opened ")
    spool = path.parent / "state/spool"
    strange(spool / "queue")
    (spool / "missed").touch()
    server.wait_for_log(" error damaged message set aside .*id=rubbish")
    send(server, "bob@example.net", "good")
    there.wait_until(lambda: there.mail("bob"))
    assert " died " not in server.log


def test_file_that_may_not_be_read_is_named_once() -> None:
    said: list[str] = []
    spool = Mock(open=Mock(side_effect=PermissionError(13, "Permission denied")))
    log = Mock(error=lambda event, **_: said.append(event))
    spool.trigger.overflowed.return_value = False
    work = InProgress(Suspects().of(0))
    loader = Loader(Mock(), spool, Mock(), Mock(), MagicMock(), Mock(), work, str, log)
    loader.load(["m.1"])
    loader.load_missed()
    loader.load_missed()
    assert spool.open.call_count == 3
    assert said == ["message not read, tried again"]


def put(directory: Path, name: str, arrived: float) -> None:
    """Put a message into a spool that no server uses yet."""
    directory.mkdir(0o700, parents=True, exist_ok=True)
    spool = Spool(directory)
    spool.prepare()
    target = QueuedRecipient(kind="relay", address="bob@example.net", recipient="bob@example.net")
    entry = QueueEntry(
        id=name, sender="me@example.org", listener="", peer="", helo="", login=None,
        arrived=arrived, targets=(target,),
    )  # fmt: skip
    spool.add(entry, Message(name, Content.of(b"Subject: x\r\n\r\n")))


def test_waiting_mail_does_not_all_go_back_after_a_jump_of_the_clock(
    configure: Configure, start: Start, there: Running
) -> None:
    """As after a restart in a wrong year: each message is tried, and none returned yet."""
    path = begin(configure, there, "pass")
    text = path.read_text()
    path.write_text(text.replace(there.address(), f"127.0.0.1:{free_port()}"))
    for number, years in enumerate((1, 10, 50, -10)):
        put(path.parent / "state/spool", f"m.{number}", time.time() - years * 31_557_600)
    server = start(path)
    server.wait_for_log(" delivery deferred ", 4)
    assert len(listed(server)) == 4
    assert " delivery failed " not in server.log
    assert " notification " not in server.log


def test_reply_that_the_sender_reads_names_no_path(
    configure: Configure, start: Start, there: Running
) -> None:
    path = begin(configure, there, "pass")
    login = 'username = "me"\npassword_file = "nothing-here"\ntls = "verified"\n'
    host = f'host = "{there.address()}"\n'
    path.write_text(path.read_text().replace(host, host + login))
    password = path.parent / "nothing-here"
    password.write_text("secret\n")
    server = start(path)
    password.unlink()
    send(server, "bob@example.net", "good")
    line = server.wait_for_log(" delivery deferred .*reply=(.*)")
    assert "nothing-here" not in line[1]
    server.wait_for_log('error "a route cannot be used: .*nothing-here')
