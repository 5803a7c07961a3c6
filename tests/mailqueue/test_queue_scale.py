"""A long queue beside dead destinations, small enough for every run; see bench/queue_scale.py."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from minismtp.mail.content import Content
from minismtp.mail.message import Message
from minismtp.mail.queue_entry import QueuedRecipient, QueueEntry
from minismtp.storage.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Configure, Running, Start

MESSAGES: Final = 300  # for the healthy domain, and for each dead one
OUTBOUND: Final = """
[outbound]
threads = 4
concurrency = 2
retry = ["1h"]
"""
ROUTE: Final = '[[outbound.routes]]\ndomain = "{}"\nhost = "{}"\n'


@pytest.fixture
def blackhole() -> Iterator[str]:
    """Yield an address that accepts no connection, because its backlog is full."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            knocking = stack.enter_context(socket.socket())
            knocking.setblocking(False)
            knocking.connect_ex(listening.getsockname())
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def tarpit() -> Iterator[str]:
    """Yield an address that accepts connections and sends nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def fill(directory: Path, *domains: str) -> None:
    (directory / "state").mkdir(mode=0o700)
    spool = Spool(directory / "state" / "spool")
    spool.prepare()
    for number in range(MESSAGES):
        for domain in domains:
            address = f"user@{domain}"
            entry = QueueEntry(
                id=f"{number}.{domain}",
                sender="me@example.org",
                listener="smtp",
                peer="127.0.0.1",
                helo="client",
                login=None,
                arrived=time.time() - MESSAGES + number,
                targets=(QueuedRecipient(kind="relay", address=address, recipient=address),),
            )
            spool.add(entry, Message(entry.id, Content.of(b"Subject: x\r\n\r\nx\r\n")))


def states(server: Running) -> dict[str, int]:
    """Count the waiting recipients by their domain."""
    command = [sys.executable, "-m", "minismtp", "queue", "list", "--json"]
    done = subprocess.run(
        [*command, "--config", str(server.config)], capture_output=True, check=True
    )
    found: dict[str, int] = {}
    for message in json.loads(done.stdout):
        domain = message["recipients"][0]["address"].partition("@")[2]
        found[domain] = found.get(domain, 0) + 1
    return found


def test_dead_domains_keep_no_mail_of_others_waiting(
    configure: Configure,
    configure_at: Callable[[str], Configure],
    start: Start,
    blackhole: str,
    tarpit: str,
) -> None:
    there = start(
        configure_at("there")(
            plugins='[[plugins]]\nuse = "mailboxes"\ndomains = ["well.test"]\n'
            '[[plugins]]\nuse = "maildir"\npath = "mail/{local}"\n'
        )
    )
    routes = {"well.test": there.address(), "hole.test": blackhole, "tar.test": tarpit}
    routes["refused.test"] = "127.0.0.1:9"
    tables = [ROUTE.format(domain, host) for domain, host in routes.items()]
    config = configure('[[plugins]]\nuse = "relay"\n', OUTBOUND, *tables)
    fill(config.parent, *routes)
    here = start(config)
    there.wait_until(lambda: len(there.mail("user")) == MESSAGES)
    # Each dead host costs only the one thread that found out, and still does.
    assert here.log.count("hole.test") <= 1
    assert here.log.count("tar.test") == 0
    here.wait_until(lambda: "well.test" not in states(here))
    assert states(here) == dict.fromkeys(["hole.test", "tar.test", "refused.test"], MESSAGES)
    here.wait_until(lambda: here.metric("queue_messages", state="active") == 2)
    here.wait_for_log(" delivery deferred ")
    assert here.log.count(" delivery deferred ") == 1


def test_a_destination_that_is_closed_is_the_reason_for_all_its_messages(
    configure: Configure, start: Start
) -> None:
    route = ROUTE.format("refused.test", "127.0.0.1:9")
    config = configure('[[plugins]]\nuse = "relay"\n', OUTBOUND, route)
    fill(config.parent, "refused.test")
    here = start(config)

    def deferred() -> int:
        command = [sys.executable, "-m", "minismtp", "queue", "list", "--state", "deferred"]
        command += ["--reason", "cannot connect", "--config", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.count("Connection refused")

    here.wait_until(lambda: deferred() == MESSAGES)
    here.wait_for_log(" delivery deferred ")
    assert here.log.count(" delivery deferred ") == 1
