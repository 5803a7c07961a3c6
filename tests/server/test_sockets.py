"""Listening sockets: opened by the server, or passed by systemd."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from network import Namespace
from ports import free_port
from snippets import CLEAR, listener

from minismtp import __version__
from minismtp.config import Config
from minismtp.config.types import SocketAddress
from minismtp.server.sockets import ListenError, adopt, open_listeners, open_socket

if TYPE_CHECKING:
    from conftest import Configure, Start

TWO = """
[[listeners]]
name = "first"
address = "127.0.0.1:0"
tls = "none"

[[listeners]]
name = "second"
address = "127.0.0.1:0"
tls = "none"
"""
# What systemd does before it starts a service: descriptors from 3 on, names, our process id.
HAND_OVER = """
import fcntl, os, sys
descriptors, names, command = sys.argv[1].split(","), sys.argv[2], sys.argv[3:]
copies = [fcntl.fcntl(int(descriptor), fcntl.F_DUPFD, 100) for descriptor in descriptors]
for number, copy in enumerate(copies, 3):
    os.dup2(copy, number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(copies)), LISTEN_FDNAMES=names)
os.execv(command[0], command)
"""


def open_one(address: str, config: Config | None = None) -> socket.socket:
    where = config or Config.embedded()
    return open_socket(SocketAddress.parse(address), where, "listeners[0].address")


@pytest.fixture
def bound() -> Iterator[list[socket.socket]]:
    """Yield two listening sockets on ports that the kernel chose."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    yield sockets
    for sock in sockets:
        sock.close()


def hand_over(sockets: list[socket.socket], names: str, *command: str) -> tuple[str, ...]:
    """Return the command that runs another one with sockets as systemd hands them over."""
    numbers = ",".join(str(sock.fileno()) for sock in sockets)
    return (sys.executable, "-c", HAND_OVER, numbers, names, *command)


def test_socket_takes_connections() -> None:
    with (
        open_one("127.0.0.1:0") as sock,
        socket.create_connection(sock.getsockname()) as client,
    ):
        assert client.getpeername() == sock.getsockname()


def test_accept_does_not_wait_for_a_client() -> None:
    with open_one("127.0.0.1:0") as sock, pytest.raises(BlockingIOError):
        sock.accept()


def test_port_in_use_is_named_with_file_key_and_reason(bound: list[socket.socket]) -> None:
    port = bound[0].getsockname()[1]
    with pytest.raises(ListenError) as caught:
        open_one(f"127.0.0.1:{port}", Config.parse(TWO, Path("m.toml")))
    place = f"m.toml: listeners[0] first, line 4: address: cannot listen on 127.0.0.1:{port}"
    assert str(caught.value).startswith(f"{place}: Address already in use by ")
    assert f"(process {os.getpid()})" in str(caught.value)


def test_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ListenError, match=r"192\.0\.2\.1:25: Cannot assign requested address"):
        open_one("192.0.2.1:25")


def test_port_of_an_ended_session_can_be_taken_again() -> None:
    with open_one("127.0.0.1:0") as sock:
        address = sock.getsockname()
        with socket.create_connection(address) as client:
            # The end that closes first keeps the port in TIME_WAIT.
            sock.setblocking(True)
            sock.accept()[0].close()
            assert client.recv(1) == b""
    open_one(f"127.0.0.1:{address[1]}").close()


def test_ipv6_socket_leaves_the_port_of_ipv4_free() -> None:
    port = free_port()
    with open_one(f"[::]:{port}"), open_one(f"127.0.0.1:{port}") as other:
        assert other.getsockname()[1] == port


@pytest.mark.parametrize("client", ["127.0.0.1", "::1"])
def test_every_host_is_of_both_families(client: str) -> None:
    with (
        open_one("*:0") as sock,
        socket.create_connection((client, sock.getsockname()[1])) as made,
    ):
        assert made.getpeername()[0] == client


def test_every_host_is_that_of_ipv4_where_the_kernel_has_no_ipv6(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with open_one("*:0") as sock:
        assert sock.family == socket.AF_INET
        assert sock.getsockname()[0] == "0.0.0.0"  # noqa: S104 - compared


@pytest.mark.parametrize(
    ("setting", "answers"),
    [
        ("net/ipv6/bindv6only", {"127.0.0.1": "::ffff:127.0.0.1", "::1": "::1"}),
        ("net/ipv6/conf/all/disable_ipv6", {"127.0.0.1": "::ffff:127.0.0.1"}),
    ],
)
def test_every_host_is_served_whatever_the_settings_of_the_kernel_are(
    setting: str, answers: dict[str, str], require_program: Callable[[str], str]
) -> None:
    require_program("nsenter")
    if os.geteuid() != 0:
        pytest.skip("a network of its own needs root")
    namespace = Namespace()
    try:
        namespace.run("sh", "-c", f"echo 1 >/proc/sys/{setting}")
        found = namespace.inside(lambda: peers_of_every_host(["127.0.0.1", "::1"]))
    finally:
        namespace.close()
    assert found == answers


def peers_of_every_host(clients: list[str]) -> dict[str, str]:
    """Return the address that the server sees of each client that can connect."""
    found = {}
    with open_one("*:0") as sock:
        sock.setblocking(True)
        for client in clients:
            with contextlib.suppress(OSError):
                socket.create_connection((client, sock.getsockname()[1])).close()
                accepted, address = sock.accept()
                accepted.close()
                found[client] = address[0]
    return found


def test_client_of_either_family_has_its_own_address(configure: Configure, start: Start) -> None:
    server = start(configure(listeners=TWO.replace("127.0.0.1:0", "*:0", 1)))
    for host in ("127.0.0.1", "::1"):
        with socket.create_connection((host, server.port("first"))) as client:
            assert client.recv(4) == b"220 "
        server.wait_for_log(rf"session closed .*peer={host} ")


def test_unix_socket_left_by_a_crash_is_replaced(tmp_path: Path) -> None:
    open_one(f"unix:{tmp_path}/smtp.sock").close()
    with open_one(f"unix:{tmp_path}/smtp.sock"), socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{tmp_path}/smtp.sock")


def test_unix_socket_that_somebody_answers_stays_his(tmp_path: Path) -> None:
    with open_one(f"unix:{tmp_path}/smtp.sock"), socket.socket(socket.AF_UNIX) as client:
        with pytest.raises(ListenError, match="Address already in use"):
            open_one(f"unix:{tmp_path}/smtp.sock")
        client.connect(f"{tmp_path}/smtp.sock")


def test_file_in_the_place_of_a_unix_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "smtp.sock").write_text("precious")
    with pytest.raises(ListenError, match="Address already in use"):
        open_one(f"unix:{tmp_path}/smtp.sock")
    assert (tmp_path / "smtp.sock").read_text() == "precious"


def test_listeners_are_opened_under_their_names() -> None:
    sockets = open_listeners(Config.parse(TWO, Path("m.toml")), {})
    try:
        assert list(sockets) == ["first", "second"]
        assert sockets["first"].getsockname() != sockets["second"].getsockname()
    finally:
        for sock in sockets.values():
            sock.close()


@pytest.mark.parametrize("listen_pid", ["", "1"], ids=["nobody", "another process"])
def test_sockets_handed_to_another_process_are_not_touched(listen_pid: str) -> None:
    environment = {"LISTEN_PID": listen_pid, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"}
    assert adopt(environment, os.getpid()) == {}


def test_two_sockets_of_one_name_are_refused(bound: list[socket.socket]) -> None:
    script = (
        "import os; from minismtp.server.sockets import adopt; adopt(dict(os.environ), os.getpid())"
    )
    done = subprocess.run(
        hand_over(bound, "smtp:smtp", sys.executable, "-c", script),
        pass_fds=[sock.fileno() for sock in bound],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ListenError: systemd passes two sockets 'smtp'" in done.stderr


def test_sockets_are_adopted_by_name_and_not_by_order(bound: list[socket.socket]) -> None:
    script = (
        "import os; from minismtp.server.sockets import adopt; "
        "print({n: s.getsockname()[1] for n, s in adopt(dict(os.environ), os.getpid()).items()})"
    )
    done = subprocess.run(
        hand_over(bound, "second:first", sys.executable, "-c", script),
        pass_fds=[sock.fileno() for sock in bound],
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = (sock.getsockname()[1] for sock in bound)
    assert done.stdout == f"{ {'second': first, 'first': second} }\n"


def test_server_listens_on_the_sockets_of_systemd(
    configure: Configure, start: Start, bound: list[socket.socket]
) -> None:
    command = hand_over(bound, "second:first")
    server = start(configure(listeners=TWO), command=command, keep=bound)
    second, first = (sock.getsockname()[1] for sock in bound)
    assert (server.port("first"), server.port("second")) == (first, second)
    for sock in bound:
        sock.close()
    with server.connect("first") as client:
        assert client.reply().startswith("220 ")


def test_socket_of_systemd_stays_over_a_reload_whatever_address_the_configuration_has(
    configure: Configure, start: Start, bound: list[socket.socket]
) -> None:
    server = start(configure(listeners=TWO), command=hand_over(bound, "first:second"), keep=bound)
    port = server.port("first")
    configure(listeners=TWO.replace("127.0.0.1:0", f"127.0.0.1:{port}", 1))
    server.signal(signal.SIGHUP)
    server.wait_for_log(" info reloaded$")
    with server.connect("first") as client:
        assert client.reply().startswith("220 ")


def test_listener_that_systemd_has_no_socket_for_is_opened(
    configure: Configure, start: Start, bound: list[socket.socket]
) -> None:
    command = hand_over(bound[:1], "second")
    server = start(configure(listeners=TWO), command=command, keep=bound)
    assert server.port("second") == bound[0].getsockname()[1]
    with server.connect("first") as client:
        assert client.reply().startswith("220 ")


def test_socket_that_no_listener_is_named_after_stops_the_start(
    configure: Configure, bound: list[socket.socket]
) -> None:
    config = configure()
    done = subprocess.run(
        hand_over(
            bound[:1], "smpt", sys.executable, "-m", "minismtp", "serve", "--config", str(config)
        ),
        pass_fds=[bound[0].fileno()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"minismtp: {config}: systemd passes a socket 'smpt', but no listener has that name\n"
    )


def test_socket_that_is_open_to_all_is_refused_where_the_address_allows_no_tls() -> None:
    config = Config.parse(listener("local", CLEAR), Path("m.toml"))
    with (
        socket.create_server(("", 0)) as sock,
        pytest.raises(ListenError, match=r"listeners\[0\] local, .*: address: .* is not local$"),
    ):
        open_listeners(config, {"local": sock})


def test_all_ports_in_use_are_named(bound: list[socket.socket]) -> None:
    first, second = (sock.getsockname()[1] for sock in bound)
    text = TWO.replace(":0", f":{first}", 1).replace(":0", f":{second}", 1)
    with pytest.raises(ListenError) as caught:
        open_listeners(Config.parse(text, Path("m.toml")), {})
    lines = str(caught.value).splitlines()
    assert [line.partition(" address ")[0].split(": cannot")[0] for line in lines] == [
        "m.toml: listeners[0] first, line 4: address",
        "m.toml: listeners[1] second, line 9: address",
    ]


def test_server_that_systemd_starts_on_demand_answers_the_first_connection(
    configure: Configure, require_program: Callable[[str], str]
) -> None:
    program = require_program("systemd-socket-activate")
    port = free_port()
    serve = (sys.executable, "-m", "minismtp", "serve", "--config", configure())
    systemd = subprocess.Popen(
        [program, f"--listen=127.0.0.1:{port}", "--fdname=smtp", *serve],
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert systemd.stderr is not None
        assert b"Listening on" in systemd.stderr.readline()
        with socket.create_connection(("127.0.0.1", port), 60) as client:
            assert client.recv(100).startswith(b"220 mx.example.org ")
    finally:
        os.killpg(systemd.pid, signal.SIGKILL)
        systemd.communicate()


def test_log_begins_with_the_version_and_has_the_address_as_it_was_written(
    configure: Configure, start: Start
) -> None:
    server = start(configure(listeners=TWO.replace("127.0.0.1:0", "*:0", 1)))
    first = server.wait_for_log(r"\A.* info starting version=(\S+) python=3\.\d+\.\d+")
    assert first[1] == __version__
    assert server.address("first").startswith("*:")
