"""How an attempt to log in changes the waits of its address."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from client_script import plain
from fakes import Clock

from minismtp import Credentials, Defer, hookimpl, plugin
from minismtp.runtime.log import Log
from minismtp.runtime.login_backoff import Backoff
from minismtp.smtp.sasl import make_key
from minismtp.testing import Dialogue
from minismtp.values.passwords import hash_password

if TYPE_CHECKING:
    from conftest import Configure, Launch, Running, Start

PEER = "192.0.2.1"


@plugin
class Accounts:
    """Knows the password `secret`, and records the users."""

    mechanisms = ("PLAIN", "LOGIN", "OAUTHBEARER", "SCRAM-SHA-256")
    asked: list[Credentials]

    @hookimpl
    def authenticate(self, credentials: Credentials) -> str | None:
        self.asked.append(credentials)
        if credentials.password == "away":  # noqa: S105 - a word of the test
            raise Defer("the directory is away")
        return credentials.username if credentials.password == "secret" else None  # noqa: S105


class Door:
    """A server whose clients share the waits of their address."""

    def __init__(self, base: float = 1.0) -> None:
        self.accounts = Accounts(asked=[])
        self.backoff = Backoff(base, Clock())
        service = Dialogue(self.accounts).service
        self.service = replace(service, backoff=self.backoff)

    def dialogue(self, peer: str = PEER) -> Dialogue:
        dialogue = Dialogue(service=self.service, peer=peer)
        dialogue.send("EHLO client.example")
        return dialogue

    @property
    def claimed(self) -> bool:
        """Whether another attempt would have to wait."""
        wait = self.backoff.reserve(PEER)
        self.backoff.release(PEER)
        return wait > 0


def cancel(dialogue: Dialogue) -> None:
    assert dialogue.send("AUTH LOGIN").startswith("334")
    assert dialogue.send("*").startswith("501 5.7.0")


def lose(dialogue: Dialogue) -> None:
    assert dialogue.send("AUTH LOGIN").startswith("334")
    dialogue.close()


def speak_nonsense(dialogue: Dialogue) -> None:
    assert dialogue.send("AUTH PLAIN !").startswith("501 5.5.2")


def find_nobody_at_home(dialogue: Dialogue) -> None:
    assert dialogue.send(plain("away")).startswith("454 4.7.0")


@pytest.mark.parametrize("act", [cancel, lose, speak_nonsense, find_nobody_at_home])
def test_attempt_without_a_guess_claims_nothing_when_it_ends(act: object) -> None:
    door = Door()
    assert callable(act)
    act(door.dialogue())
    assert not door.claimed


def guess(dialogue: Dialogue) -> None:
    assert dialogue.send(plain("wrong")).startswith("535")


def token(dialogue: Dialogue) -> None:
    offer = base64.b64encode(b"n,a=alice,\1auth=Bearer wrong\1\1").decode()
    assert dialogue.send(f"AUTH OAUTHBEARER {offer}").startswith("334")


def token_and_cancel(dialogue: Dialogue) -> None:
    token(dialogue)
    assert dialogue.send("*").startswith("501")


def token_and_leave(dialogue: Dialogue) -> None:
    token(dialogue)
    dialogue.close()


@pytest.mark.parametrize("act", [guess, token_and_cancel, token_and_leave])
def test_guess_counts_however_the_exchange_ends(act: object) -> None:
    door = Door()
    assert callable(act)
    act(door.dialogue())
    assert door.claimed


def test_attempt_counts_from_its_beginning() -> None:
    door = Door()
    assert door.dialogue().send("AUTH LOGIN").startswith("334")
    assert door.claimed


def test_attempts_whose_turn_is_too_far_off_are_put_off_and_end_the_session(
    capfd: pytest.CaptureFixture[str],
) -> None:
    door = Door(base=60.0)
    guess(door.dialogue())
    door.service = replace(door.service, log=Log())
    other = door.dialogue()
    replies = [other.send(plain("secret"))[:9] for _ in range(4)]
    assert replies == ["454 4.7.0"] * 3 + ["421 4.7.0"]
    assert len(door.accounts.asked) == 1
    door.service.log.flush()
    told = f'login put off session={other.session.id} peer={PEER} mechanism=PLAIN reply="454 4.7.0'
    assert capfd.readouterr().err.count(told) == 3


def test_back_ends_learn_who_has_logged_in_from_there_before() -> None:
    door = Door()
    for peer in (PEER, PEER, "192.0.2.7", "198.51.100.1"):
        assert door.dialogue(peer).send(plain("secret")).startswith("235")
    assert [each.known for each in door.accounts.asked] == [False, True, True, False]


def test_office_that_comes_all_at_once_is_let_in() -> None:
    """None of the logins failed, so the first client lets in the others."""
    door = Door()
    door.backoff = Backoff(1.0, time.monotonic)
    door.service = replace(door.service, backoff=door.backoff)
    together = threading.Barrier(40)

    def log_in(_number: int) -> str:
        dialogue = door.dialogue()
        together.wait(30)
        return dialogue.send(plain("secret"))[:3]

    with ThreadPoolExecutor(40) as pool:
        assert set(pool.map(log_in, range(40))) == {"235"}


PROXIED = """
[[listeners]]
name = "proxied"
address = "127.0.0.1:0"
kind = "submission"
tls = "none"
proxy_protocol = ["127.0.0.0/8"]

[[listeners]]
name = "trusting"
address = "127.0.0.1:0"
kind = "submission"
tls = "none"
proxy_protocol = ["127.0.0.0/8"]
proxy_auth = true

[[plugins]]
use = "password_file"
path = "passwords"
"""
V1 = b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 587\r\n"
ADDRESSES = b"\xc0\0\2\x07\xc0\0\2\1\x13\x88\2\x4b"
SPOKE_TLS = b"\x20\0\x0f\1\0\0\0\0\x21\0\x07TLSv1.3"


def version_2(fields: bytes, command: bytes = b"\x21") -> bytes:
    size = len(ADDRESSES + fields).to_bytes(2, "big")
    return b"\r\n\r\n\0\r\nQUIT\n" + command + b"\x11" + size + ADDRESSES + fields


@pytest.fixture(scope="module")
def proxied(launch: Launch) -> Iterator[Running]:
    hashed = {"passwords": f"alice:{hash_password('secret')}\n"}
    with launch(listeners=PROXIED, files=hashed) as server:
        yield server


@pytest.mark.parametrize(
    ("listener", "header", "offered"),
    [
        ("proxied", V1, False),
        ("proxied", version_2(b""), False),
        ("proxied", version_2(SPOKE_TLS.replace(b"\x0f\1", b"\x0f\0")), False),
        ("proxied", version_2(SPOKE_TLS), True),
        ("proxied", version_2(b"", b"\x20"), True),  # LOCAL: the load balancer itself
        ("trusting", V1, True),
        ("trusting", version_2(b""), True),
    ],
    ids=["v1", "v2", "v2-clear", "v2-tls", "v2-local", "v1-by-option", "v2-by-option"],
)
def test_clients_of_a_balancer_log_in_where_it_says_tls(
    proxied: Running, listener: str, header: bytes, *, offered: bool
) -> None:
    with proxied.connect(listener) as client:
        client.send(header)
        assert client.reply().startswith("220 ")
        assert ("AUTH PLAIN LOGIN" in client.command("EHLO client.example")) is offered
        reply = client.command(plain("secret"))
        assert reply.startswith("235 " if offered else "538 5.7.11 ")


def test_salts_of_users_that_do_not_exist_survive_a_restart(
    configure: Configure, start: Start
) -> None:
    """Otherwise two answers before and after show which users exist: RFC 5802 section 9."""
    config = configure('[[plugins]]\nuse = "password_file"\npath = "passwords"\n', workers=2)
    line = f"alice:{hash_password('secret')}:{make_key('secret').text}\n"
    (config.parent / "passwords").write_text(line)
    salts = []
    for _ in range(2):
        server = start(config)
        for _ in range(4):  # by both workers
            with server.connect() as client:
                client.greet()
                first = base64.b64encode(b"n,,n=nobody,r=abc").decode()
                challenge = base64.b64decode(client.command(f"AUTH SCRAM-SHA-256 {first}")[4:])
                salts.append(challenge.partition(b",")[2])
        server.kill()
    assert len(set(salts)) == 1
    assert b"i=65536" in salts[0]
