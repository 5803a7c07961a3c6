"""Logins that Dovecot decides: the real one, and fakes that fail."""

from __future__ import annotations

import base64
import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from fakes import (
    Talk,
    Wire,
    drip,
    listen,
    nobody_there,
    running_daemon,
    serving,
)
from minismtp_plugins.dovecot_auth import DovecotAuth
from ports import free_port

from minismtp import Credentials, RemoteError, Session, SocketAddress
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.mail.session import TlsInfo
from minismtp.testing import Dialogue

if TYPE_CHECKING:
    from conftest import Launch

CONFIGURATION: Final = """
protocols =
listen = 127.0.0.1
base_dir = {directory}/run
state_dir = {directory}/state
log_path = /dev/stderr
auth_verbose = yes
auth_failure_delay = 0
auth_username_format = %Lu
default_internal_user = nobody
default_internal_group = nogroup
default_login_user = nobody
ssl = no
auth_mechanisms = plain login
passdb {{
  driver = passwd-file
  args = {directory}/masters
  master = yes
}}
passdb {{
  driver = passwd-file
  args = {directory}/users
}}
passdb {{
  driver = checkpassword
  args = /nowhere
  username_filter = broken
}}
service auth {{
  unix_listener auth-client {{
    mode = 0600
  }}
  inet_listener {{
    port = {port}
  }}
}}
service anvil {{
  chroot =
}}
service stats {{
  chroot =
}}
"""
USERS: Final = """\
alice:{PLAIN}s\u00e4cret
fixed:{PLAIN}secret::::::allow_nets=192.0.2.1/32
renamed:{PLAIN}secret::::::user=other
bob:{PLAIN}secret
"""
SECURE: Final = TlsInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")


@dataclass(frozen=True)
class Dovecot:
    """A running Dovecot: its unix socket, its port, its log."""

    path: Path
    port: int
    log: Path

    def plugin(self) -> DovecotAuth:
        return DovecotAuth(address=SocketAddress(path=self.path))


@pytest.fixture(scope="module")
def dovecot(
    tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], str]
) -> Iterator[Dovecot]:
    program, unshare = require_program("dovecot"), require_program("unshare")
    directory = tmp_path_factory.mktemp("dovecot")
    found = Dovecot(directory / "run" / "auth-client", free_port(), directory / "log")
    (directory / "users").write_text(USERS)
    (directory / "masters").write_text("master:{PLAIN}skeleton\n")
    config = directory / "dovecot.conf"
    config.write_text(CONFIGURATION.format(directory=directory, port=found.port))
    # Dovecot needs a user to run as, which is nobody in a user namespace.
    nobody = ("--user", "--map-user=65534", "--map-group=65534")
    command = (unshare, *nobody, program, "-F", "-c", config)
    with running_daemon(*command, port=found.port, log=found.log):
        yield found


def session(peer: str = "192.0.2.1", *, tls: bool = True) -> Session:
    return Session(
        id="1",
        listener="submission",
        kind="submission",
        hostname="mx.example.org",
        peer=peer,
        local="192.0.2.25",
        tls=SECURE if tls else None,
    )


def log_in(
    plugin: DovecotAuth,
    user: str,
    password: str = "secret",  # noqa: S107
    act_as: str = "",
) -> str | None:
    return plugin.authenticate(session(), Credentials("PLAIN", user, password, act_as))


# The real one


@pytest.mark.parametrize(
    ("user", "password", "known_as"),
    [
        ("alice", "s\u00e4cret", "alice"),
        ("ALICE", "s\u00e4cret", "alice"),
        ("\uff21lice", "s\u00e4cret", "alice"),
        ("alice", "sa\u0308cret", "alice"),
        ("\uff21lice ", "sa\u0308cret", "alice"),
        ("\uff21lice", "s\u00c4cret", None),
        ("renamed", "secret", "other"),
        ("alice", "secret", None),
        ("alice", "s\u00e4cret ", None),
        ("ali\tce", "secret", None),
    ],
    ids=ascii,
)
def test_dovecot_decides(dovecot: Dovecot, user: str, password: str, known_as: str | None) -> None:
    assert log_in(dovecot.plugin(), user, password) == known_as


def test_tcp_will_do(dovecot: Dovecot) -> None:
    plugin = DovecotAuth(address=SocketAddress("127.0.0.1", dovecot.port))
    assert log_in(plugin, "bob") == "bob"


def test_only_master_users_act_as_somebody_else(dovecot: Dovecot) -> None:
    plugin = dovecot.plugin()
    assert log_in(plugin, "master", "skeleton", "alice") == "alice"
    assert log_in(plugin, "bob", "secret", "alice") is None
    assert log_in(plugin, "bob", "secret", "bob") == "bob"


def test_dovecot_is_told_where_the_client_is(dovecot: Dovecot) -> None:
    plugin, credentials = dovecot.plugin(), Credentials("PLAIN", "fixed", "secret")
    assert plugin.authenticate(session(), credentials) == "fixed"
    assert plugin.authenticate(session("198.51.100.1"), credentials) is None


def test_database_of_dovecot_that_is_away_is_a_temporary_failure(dovecot: Dovecot) -> None:
    dialogue = Dialogue(dovecot.plugin(), tls=True)
    assert auth(dialogue, "broken", "secret") == "454 4.7.0 "


def test_many_at_once_are_told_apart(dovecot: Dovecot) -> None:
    """Dovecot closes the connection of a client that uses the process number of another."""
    plugin = dovecot.plugin()
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda user: log_in(plugin, user), ["renamed", "bob"] * 40))
    assert found == ["other", "bob"] * 40
    assert "BUG" not in dovecot.log.read_text()


def test_server_takes_users_of_dovecot(dovecot: Dovecot, launch: Launch) -> None:
    table = f'[[plugins]]\nuse = "dovecot_auth"\naddress = "unix:{dovecot.path}"\n'
    with launch(table, '[limits]\nlogin_backoff = "0s"\n') as server, server.connect() as client:
        client.greet()
        right, wrong = (response("bob", word) for word in ("secret", "hunter2-wrong"))
        assert client.command(f"AUTH PLAIN {wrong}").startswith("535 5.7.8")
        assert client.command(f"AUTH PLAIN {right}").startswith("235 2.7.0")
        assert "hunter2-wrong" not in server.log
        assert wrong not in server.log


def response(user: str, password: str) -> str:
    return base64.b64encode(f"\0{user}\0{password}".encode()).decode()


def auth(dialogue: Dialogue, user: str, password: str) -> str:
    dialogue.send("EHLO client.example")
    reply = dialogue.send(f"AUTH PLAIN {response(user, password)}")
    return re.split(r"(?<=\d )(?=[a-z])", reply)[0]


# Others

GREETING: Final = b"VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nSPID\t1\nCUID\t1\nCOOKIE\t0\nDONE\n"


def fake(*answers: str, greeting: bytes = GREETING, seen: list[bytes] | None = None) -> Talk:
    """Answer with these lines, where {id} is the number of the request."""

    def talk(sock: socket.socket) -> None:
        client = Wire(sock)
        hello = client.read_until(b"\n") + client.read_until(b"\n")
        sock.sendall(greeting)
        if not greeting.endswith(b"DONE\n"):
            return
        request = client.read_until(b"\n")
        if seen is not None:
            seen.extend([hello, request])
        number = request.partition(b"\t")[2].partition(b"\t")[0].decode()
        sock.sendall("".join(f"{answer}\n" for answer in answers).format(id=number).encode())

    return talk


@pytest.mark.parametrize(
    ("answer", "known_as"),
    [
        ("OK\t{id}\tuser=bob\tanything=else", "bob"),
        ("OK\t{id}\tuser=b\1tob\1\1", "b\tob\1"),
        ("FAIL\t{id}\tuser=bob", None),
        ("FAIL\t{id}\tuser=temp\tcode=user_disabled", None),
    ],
)
def test_answer_says_who_it_is(answer: str, known_as: str | None) -> None:
    with serving(fake(answer)) as address:
        assert log_in(DovecotAuth(address=address), "bob") == known_as


@pytest.mark.parametrize("word", ["temp", "code=temp_fail"])
def test_temporary_failure_keeps_the_client_s_password(word: str) -> None:
    with serving(fake(f"FAIL\t{{id}}\tuser=bob\t{word}")) as address:
        dialogue = Dialogue(DovecotAuth(address=address), tls=True)
        assert auth(dialogue, "bob", "secret") == "454 4.7.0 "


def test_conversation_is_what_the_protocol_asks_for() -> None:
    seen: list[bytes] = []
    with serving(fake("OK\t{id}\tuser=bob", seen=seen)) as address:
        log_in(DovecotAuth(address=address), "bob", "secret", "alice")
    [hello, request] = seen
    number = request.split(b"\t")[1]
    assert hello == b"VERSION\t1\t1\nCPID\t" + number + b"\n"
    expected = (
        b"AUTH\t" + number + b"\tPLAIN\tservice=smtp\tnologin\tno-penalty\tsecured"
        b"\trip=192.0.2.1\tlip=192.0.2.25\tresp=" + base64.b64encode(b"alice\0bob\0secret") + b"\n"
    )
    assert request == expected


NONSENSE: Final = {
    "another protocol": fake(greeting=b"* OK IMAP4rev1 ready\r\n"),
    "another version": fake(greeting=b"VERSION\t2\t0\nDONE\n"),
    "no PLAIN": fake(greeting=b"VERSION\t1\t2\nMECH\tCRAM-MD5\nDONE\n"),
    "endless greeting": fake(greeting=b"MECH\tX\n" * 5000),
    "endless line": fake(greeting=b"x" * 1_000_000),
    "challenge": fake("CONT\t{id}\tAAAA"),
    "nobody": fake("OK\t{id}"),
    "another request": fake("OK\t0\tuser=bob"),
    "refusal of another request": fake("FAIL\t0\tuser=bob"),
    "cut off in the greeting": fake(greeting=GREETING[:20]),
    "cut off in the answer": fake(),
    "not UTF-8": fake(greeting=b"\xff\xfe\n" * 3),
}


@pytest.mark.parametrize("talk", NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_is_no_login_and_no_refusal(talk: Talk) -> None:
    with serving(talk) as address:
        plugin = DovecotAuth(address=address)
        with pytest.raises(RemoteError):
            log_in(plugin, "bob")
        assert auth(Dialogue(DovecotAuth(address=address), tls=True), "bob", "x") == "454 4.7.0 "


@pytest.mark.parametrize("talk", [listen, drip], ids=["silence", "drip"])
def test_slow_service_is_waited_for_no_longer_than_patience(talk: Talk) -> None:
    with serving(talk) as address:
        plugin = DovecotAuth(address=address, patience=timedelta(milliseconds=100))
        with pytest.raises(RemoteError, match="too slow"):
            log_in(plugin, "bob")


def test_service_that_is_away_defers_and_is_soon_left_alone() -> None:
    plugin = DovecotAuth(address=nobody_there())
    for _ in range(5):
        with pytest.raises(RemoteError, match="Connection refused"):
            log_in(plugin, "bob")
    with pytest.raises(RemoteError, match="is not asked"):
        log_in(plugin, "bob")


@pytest.mark.parametrize(
    ("user", "password"),
    [
        ("bob", ""),
        ("", "secret"),
        ("b" * 1001, "x"),
        ("bob", "x" * 1001),
        ("b\0b", "x"),
        ("\udc80", "x"),
    ],
    ids=["no password", "no user", "long user", "long password", "NUL", "surrogate"],
)
def test_what_could_only_harm_is_not_asked(user: str, password: str) -> None:
    """An attacker could make the service look dead for everybody."""
    assert log_in(DovecotAuth(address=nobody_there()), user, password) is None


def test_token_is_left_to_others() -> None:
    credentials = Credentials("OAUTHBEARER", "bob", token="secret")  # noqa: S106
    assert DovecotAuth(address=nobody_there()).authenticate(session(), credentials) is None


def test_patience_of_no_time_is_refused(tmp_path: Path) -> None:
    table = {"address": "127.0.0.1:1", "patience": "0s"}
    with pytest.raises(ConfigError, match=r"plugins\[0\]\.patience: expected more"):
        build(DovecotAuth, table, file="c", key="plugins[0]", base=tmp_path)
