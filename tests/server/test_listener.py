"""Listeners: limits, threads, memory, and the end of sessions when the server stops."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from snippets import MX, SUBMISSIONS

from minismtp.server.listener import Sessions

if TYPE_CHECKING:
    from conftest import Client, Configure, Running, Start, TlsFiles

    from minismtp.session.connection import Connection

MEBIBYTE = 1024 * 1024
LIMITED = "421 4.7.0 mx.example.org too many connections, try again later"
DRAINING = "421 4.3.2 mx.example.org service shutting down"
MX_AND_SUBMISSION = MX + SUBMISSIONS
# EHLO names the process and the thread that serve the session, and whether Nagle is off.
SERVED_BY = """
import contextlib, os, socket, stat, threading
from minismtp import Session, hookimpl, plugin

@plugin
class ServedBy:
    @hookimpl
    def ehlo_keywords(self, session: Session) -> list[str]:
        served_by = f"SERVED-BY {os.getpid()} {threading.get_native_id()}"
        return [served_by, f"NODELAY {no_delay(session.peer_port)}"]

def no_delay(peer_port: int) -> int:
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        try:
            is_socket = stat.S_ISSOCK(os.fstat(descriptor).st_mode)
        except OSError:
            continue
        if not is_socket:
            continue
        with socket.socket(fileno=os.dup(descriptor)) as sock, contextlib.suppress(OSError):
            if sock.getpeername()[1] == peer_port:
                return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    return -1
"""


@pytest.fixture
def served_by(tmp_path: Path) -> str:
    """Return the table of a plugin whose EHLO keyword shows which thread serves a session."""
    (tmp_path / "local_plugins").mkdir()
    (tmp_path / "local_plugins" / "served_by.py").write_text(SERVED_BY)
    return '[[plugins]]\nuse = "served_by"\n'


@pytest.fixture
def clients() -> Iterator[contextlib.ExitStack]:
    """Hold the connections of a test until its end."""
    with contextlib.ExitStack() as stack:
        yield stack


def limits(**values: int | str) -> str:
    lines = [f"{key} = {value!r}" for key, value in values.items()]
    return "\n".join(["[limits]", *lines, ""])


def sources(count: int) -> list[str]:
    """Return `count` different loopback addresses."""
    return [f"127.0.{1 + number // 250}.{1 + number % 250}" for number in range(count)]


def keyword(greeting: str, name: str) -> list[str]:
    """Return the parameters of a keyword in the reply to EHLO."""
    found = re.search(rf"^250[- ]{name} (.*)$", greeting, re.MULTILINE)
    assert found, greeting
    return found[1].split()


def resident(pid: int, field: str) -> int:
    """Return a figure of /proc/PID/status in octets."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", status(pid), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def status(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


def enters(server: Running, clients: contextlib.ExitStack, **connect: str) -> bool:
    """Connect, and return whether the session was accepted; it then stays open."""
    client = clients.enter_context(server.connect(**connect))
    banner = client.reply()
    assert banner.startswith("220 ") or banner == LIMITED
    return banner.startswith("220 ")


# Places


def test_sessions_are_limited_exactly_over_all_workers(
    configure: Configure, start: Start, served_by: str
) -> None:
    config = configure(limits(sessions=50), served_by, workers=4)
    server = start(config)

    def fill() -> bool:
        """Connect all at once. Return whether they filled the server, on several workers."""
        with contextlib.ExitStack() as clients:
            crowd = [
                clients.enter_context(server.connect(source=source)) for source in sources(120)
            ]
            banners = [client.reply() for client in crowd]
            inside = [
                client
                for client, banner in zip(crowd, banners, strict=True)
                if banner.startswith("220 ")
            ]
            assert banners.count(LIMITED) == 120 - len(inside)
            assert len(inside) <= 50
            greetings = [client.command("EHLO client.example") for client in inside]
            workers = {keyword(greeting, "SERVED-BY")[0] for greeting in greetings}
            return len(inside) == 50 and len(workers) > 1

    # Clients that come before the last ones left find less room, and never more.
    server.wait_until(fill)


def test_sessions_are_spread_over_the_workers(
    configure: Configure, start: Start, clients: contextlib.ExitStack, served_by: str
) -> None:
    server = start(configure(served_by, workers=4))

    def serving() -> Counter[str]:
        greetings = [clients.enter_context(server.connect()).greet() for _ in range(16)]
        return Counter(keyword(greeting, "SERVED-BY")[0] for greeting in greetings)

    server.wait_until(lambda: len(serving()) == 4)  # the last one has started
    assert max(serving().values()) < 8  # 4, or a few more than who is slow to wait again


def test_place_is_free_again_when_a_session_ends(
    configure: Configure, start: Start, clients: contextlib.ExitStack
) -> None:
    server = start(configure(limits(sessions=2), workers=2))
    first = clients.enter_context(server.connect())
    assert first.reply().startswith("220 ")
    assert enters(server, clients)
    assert not enters(server, clients)
    first.command("QUIT")
    server.wait_until(lambda: enters(server, clients))
    assert not enters(server, clients)


def test_sessions_of_an_address_are_limited_over_all_workers(
    configure: Configure, start: Start, clients: contextlib.ExitStack
) -> None:
    server = start(configure(limits(sessions_per_ip=3), workers=4))
    for source in ("127.0.0.2", "127.0.0.3"):
        crowd = [clients.enter_context(server.connect(source=source)) for _ in range(20)]
        banners = [client.reply() for client in crowd]
        assert banners.count(LIMITED) == 17
    server.wait_for_log(r"connection limited peer=127\.0\.0\.3 limit=address", 17)
    server.wait_until(lambda: server.metric("connections_total", result="limited") == 34)
    server.wait_until(lambda: server.metric("connections_total", result="accepted") == 6)


def test_reserved_places_are_kept_for_submission(
    configure: Configure, start: Start, clients: contextlib.ExitStack, tls_files: TlsFiles
) -> None:
    table = limits(sessions=5, reserved_sessions=2)
    server = start(configure(tls_files.table, table, listeners=MX_AND_SUBMISSION, workers=2))
    assert [enters(server, clients) for _ in range(4)] == [True, True, True, False]
    for _ in range(2):
        client = clients.enter_context(server.connect("submissions"))
        client.secure(tls_files.client())
        assert client.reply().startswith("220 ")
    # RFC 8314: a peer that waits for TLS cannot read a reply in clear.
    assert clients.enter_context(server.connect("submissions")).rest() == ""
    limited = {"result": "limited", "listener": "submissions"}
    server.wait_until(lambda: server.metric("connections_total", **limited) == 1)


def test_unix_socket_has_no_address_to_limit(
    configure: Configure, start: Start, clients: contextlib.ExitStack
) -> None:
    listener = '[[listeners]]\nname = "local"\naddress = "unix:smtp.sock"\ntls = "none"\n'
    server = start(configure(limits(sessions=5, sessions_per_ip=1), listeners=listener))
    assert [enters(server, clients, listener="local") for _ in range(6)] == [True] * 5 + [False]


def test_peers_that_go_away_at_once_leave_nothing(configure: Configure, start: Start) -> None:
    server = start(configure(limits(sessions=5), workers=2))
    for number in range(100):
        client = server.connect()
        if number % 2:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.socket.close()

    def all_places_are_free() -> bool:
        with contextlib.ExitStack() as clients:
            return all(enters(server, clients) for _ in range(5))

    server.wait_until(all_places_are_free)
    server.wait_until(lambda: server.metric("connections_active") == 0)


def test_each_of_300_sessions_at_once_is_served_or_told_so(
    configure: Configure, start: Start, clients: contextlib.ExitStack
) -> None:
    server = start(configure(limits(sessions=200, sessions_per_ip=300), workers=2))
    crowd = [clients.enter_context(server.connect()) for _ in range(300)]
    banners = [client.reply() for client in crowd]
    inside = [
        client for client, banner in zip(crowd, banners, strict=True) if banner.startswith("220 ")
    ]
    assert (len(inside), banners.count(LIMITED)) == (200, 100)
    server.wait_until(lambda: server.metric("connections_active") == 200)
    for client in inside:
        client.send("NOOP\r\n")
    assert {client.reply() for client in inside} == {"250 2.0.0 ok"}


def test_connection_for_which_no_thread_can_start_is_told_so(
    configure: Configure, start: Start, clients: contextlib.ExitStack
) -> None:
    # The stacks of that many threads do not fit into the address space.
    server = start(configure(limits(sessions_per_ip=1000)), command=("prlimit", "--as=1500000000"))
    banners: list[str] = []
    inside: list[Client] = []
    while len(banners) < 400:
        client = clients.enter_context(server.connect())
        banners.append(client.reply())
        if banners[-1].startswith("220 "):
            inside.append(client)
    assert 0 < banners.count(LIMITED) < 400
    assert len(inside) + banners.count(LIMITED) == 400
    # The listener continues: a client that comes after others left is served.
    for client in inside:
        client.command("QUIT")
    server.wait_until(lambda: enters(server, clients))


# Threads, sockets, memory


def test_threads_are_used_again(configure: Configure, start: Start, served_by: str) -> None:
    server = start(configure(served_by))
    threads, counts, worker = set(), [], 0
    for _ in range(50):
        with server.connect() as client:
            process, thread = keyword(client.greet(), "SERVED-BY")
            worker = int(process)
            threads.add(thread)
            client.command("QUIT")
            client.rest()
        counts.append(int(status(worker).partition("\nThreads:")[2].split()[0]))
    # A session may begin before the thread of the last one waits again.
    assert len(threads) < 10
    assert counts[-1] - counts[0] < 10


def test_replies_do_not_wait_for_more_to_send(
    configure: Configure, start: Start, served_by: str
) -> None:
    server = start(configure(served_by))
    with server.connect() as client:
        assert keyword(client.greet(), "NODELAY") == ["1"]


@pytest.mark.parametrize(("listener", "peer"), [("ipv6", "IPv6:::1"), ("local", "unix")])
def test_listener_of_every_family_takes_mail(server: Running, listener: str, peer: str) -> None:
    with server.connect(listener) as client:
        client.begin_data(f"family-{listener}@example.org")
        client.send("Subject: family\r\n\r\ntext\r\n.\r\n")
        assert client.reply().startswith("250 2.")
    assert server.stored(f"family-{listener}") == b"Subject: family\r\n\r\ntext\r\n"
    [message] = server.mail(f"family-{listener}")
    assert peer.encode() in message


def test_large_messages_take_no_memory_and_hold_nobody_up(
    configure: Configure, start: Start, clients: contextlib.ExitStack
) -> None:
    server = start(configure())
    pids = server.tree()[1:]
    # All code ran once, so the rest is the memory of the messages.
    with server.connect() as client:
        client.begin_data("warm@example.org")
        client.send(b"x" * 900 + b"\r\n.\r\n")
        assert client.reply().startswith("250 ")
    before = {pid: resident(pid, "VmRSS") for pid in pids}
    crowd = [clients.enter_context(server.connect()) for _ in range(10)]
    for client in crowd:
        client.begin_data("large@example.org")
        client.send("Subject: large\r\n\r\n")
    piece = (b"x" * 62 + b"\r\n") * (MEBIBYTE // 64)
    for _ in range(20):
        for client in crowd:
            client.send(piece)
    with server.connect() as client:
        client.greet()
        assert client.command("NOOP") == "250 2.0.0 ok"
    for client in crowd:
        client.send(b".\r\n")
    assert {client.reply()[:10] for client in crowd} == {"250 2.0.0 "}
    # The peak, not the present value.
    grown = {pid: resident(pid, "VmHWM") - before[pid] for pid in pids}
    assert max(grown.values()) < 40 * MEBIBYTE
    large = list((server.directory / "mail" / "large" / "new").iterdir())
    assert [path.stat().st_size // MEBIBYTE for path in large] == [20] * 10
    for path in large:
        path.unlink()


# The end


def test_session_between_commands_is_told_that_the_server_stops(
    configure: Configure, start: Start
) -> None:
    server = start(configure(workers=2))
    with server.connect() as fresh, server.connect() as client:
        fresh.reply()
        client.greet()
        client.command("MAIL FROM:<sender@client.example>")
        server.signal(signal.SIGTERM)
        assert client.rest().startswith(f"{DRAINING} (id ")
        assert fresh.rest().startswith(f"{DRAINING} (id ")
    assert server.wait() == 0
    assert len(re.findall(r"session closed .* reason=draining ", server.log)) == 2


def test_session_inside_tls_is_told_inside_tls(
    configure: Configure, start: Start, tls_files: TlsFiles
) -> None:
    server = start(configure(tls_files.table, listeners=MX_AND_SUBMISSION))
    with server.connect("submissions") as client:
        client.secure(tls_files.client(), ragged=False)
        client.greet()
        server.signal(signal.SIGTERM)
        assert client.rest().startswith(f"{DRAINING} (id ")
    assert server.wait() == 0


def test_peer_that_waits_for_a_late_banner_is_not_refused_for_good(
    configure: Configure, start: Start
) -> None:
    listener = '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\ntls = "none"\n'
    server = start(configure(listeners=f'{listener}greet_delay = "1h"\n'))
    with server.connect() as client:
        port = client.socket.getsockname()[1]
        server.wait_until(lambda: accepted(port))
        server.signal(signal.SIGTERM)
        assert client.rest().startswith(f"{DRAINING} (id ")
    assert server.wait() == 0


def accepted(port: int) -> bool:
    """Return whether a server accepted the connection from this port."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    rows = [line.split() for line in lines]
    return any(row[2].endswith(f":{port:04X}") and row[9] != "0" for row in rows)


@pytest.fixture
def stopping(configure: Configure, start: Start) -> Iterator[tuple[Running, Client]]:
    """Yield a server that is stopping, and a client in the middle of its content."""
    server = start(configure(limits(drain="1h"), workers=2))
    with server.connect() as client, server.connect() as idle:
        client.begin_data("late@example.org")
        client.send("Subject: late\r\n\r\n")
        idle.greet()
        server.signal(signal.SIGTERM)
        assert idle.rest().startswith(f"{DRAINING} (id ")
        yield server, client


def test_message_in_transfer_is_taken_before_the_server_stops(
    stopping: tuple[Running, Client],
) -> None:
    server, client = stopping
    client.send("text\r\n.\r\n")
    assert client.reply().startswith("250 2.0.0 ")
    assert client.rest().startswith(f"{DRAINING} (id ")
    assert server.wait() == 0
    assert server.stored("late") == b"Subject: late\r\n\r\ntext\r\n"


def test_half_a_command_is_finished_before_the_server_stops(
    configure: Configure, start: Start
) -> None:
    server = start(configure(limits(drain="1h")))
    with server.connect() as client, server.connect() as idle:
        client.greet()
        client.send("NOOP\r\nNO")
        client.reply()
        idle.greet()
        server.signal(signal.SIGTERM)
        assert idle.rest().startswith(f"{DRAINING} (id ")
        client.send("OP\r\n")
        assert client.rest().startswith(f"{DRAINING} (id ")
    assert server.wait() == 0


def test_server_that_stops_takes_no_new_connection(stopping: tuple[Running, Client]) -> None:
    server, client = stopping
    server.wait_until(lambda: not connects(server))
    client.send("text\r\n.\r\n")
    assert client.reply().startswith("250 2.0.0 ")


def connects(server: Running) -> bool:
    try:
        with server.connect() as client:
            client.reply()
    except (ConnectionError, AssertionError):
        return False
    return True


def test_second_term_ends_the_server_at_once(stopping: tuple[Running, Client]) -> None:
    server, client = stopping
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    server.wait_for_log("stopping at once")
    with contextlib.suppress(ConnectionResetError):
        assert client.rest() == ""
    assert server.mail("late") == []


def test_session_that_does_not_end_is_cut_after_the_drain_time(
    configure: Configure, start: Start
) -> None:
    server = start(configure(limits(drain="500ms")))
    with server.connect() as client:
        client.begin_data("never@example.org")
        server.signal(signal.SIGTERM)
        with contextlib.suppress(ConnectionResetError):
            assert client.rest() == ""
    assert server.wait() == 0
    server.wait_for_log("sessions cut after the drain time sessions=1")
    assert server.mail("never") == []


class BriefConnection:
    """Stands for a connection whose session ends at once."""

    def __init__(self) -> None:
        self.session = SimpleNamespace(id="brief")

    def run(self) -> None:
        pass

    def close(self) -> None:
        pass

    def report(self, *, stack: bool) -> dict[str, object]:
        return {"stack": stack}


def test_sessions_are_listed_while_others_begin_and_end() -> None:
    """Without the interpreter lock, a set can change while a tuple is made from it."""
    sessions = Sessions(time.monotonic)
    ended = threading.Semaphore(0)

    def come_and_go() -> None:
        for _ in range(500):
            sessions.run(cast("Connection", BriefConnection()), ended.release)

    threads = [threading.Thread(target=come_and_go) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert {"stack": True} not in sessions.reports(stack=False)
    assert all(ended.acquire(timeout=10) for _ in range(1500))
    assert len(sessions) == 0
