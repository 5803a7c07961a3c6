"""XCLIENT: data about the client from a trusted front end."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, ip_network

import pytest
from client_script import (
    MAIL_FROM,
    Kind,
    at_data,
    code,
    greeted,
    plain,
    rules,
)
from minismtp_plugins.relay import Relaying
from stub_plugins import Judge, Passwords

from minismtp import (
    Defer,
    Disconnect,
    Reject,
    Session,
    StashKey,
)
from minismtp.mail.session import TlsInfo
from minismtp.runtime.thread_activity import Activity
from minismtp.session.receiver import Receiver
from minismtp.testing import Dialogue, Mailroom

TLS = TlsInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")
NOTE = StashKey[str]()
TRUSTED = (IPv4Network("192.0.2.0/24"),)


def xclient(*plugins: object, peer: str = "192.0.2.1", kind: Kind = "mx") -> Dialogue:
    return Dialogue(service=replace(rules(*plugins, kind=kind), xclient=TRUSTED), peer=peer)


@pytest.mark.parametrize("peer", ["198.51.100.1", "2001:db8::1", "unix"])
def test_xclient_is_not_for_others(peer: str) -> None:
    dialogue = xclient(peer=peer)
    assert "XCLIENT" not in dialogue.send("EHLO client.example")
    assert dialogue.send("XCLIENT ADDR=198.51.100.9") == "550 5.7.1 XCLIENT is not for you"
    assert dialogue.session.peer == peer


def test_xclient_replaces_what_is_known_and_starts_again() -> None:
    dialogue = xclient(Passwords(), Mailroom())
    assert "XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR" in dialogue.send("EHLO proxy.example")
    line = (
        "XCLIENT ADDR=IPV6:2001:db8::7 PORT=4242 HELO=real.example LOGIN=alice DESTADDR=192.0.2.9"
    )
    assert dialogue.send(line) == "220 mx.example.org ESMTP minismtp"
    session = dialogue.session
    assert (session.peer, session.peer_port, session.helo, session.login, session.local) == (
        *("2001:db8::7", 4242, "real.example", "alice"),
        "192.0.2.9",
    )
    assert not session.esmtp
    assert code(dialogue.send(MAIL_FROM)) == "503 5.5.1"
    assert "AUTH" not in dialogue.send("EHLO client.example")


@pytest.mark.parametrize("unknown", ["[UNAVAILABLE]", "[tempunavail]"])
def test_client_of_unknown_address_belongs_to_no_network(unknown: str) -> None:
    everybody = Relaying(networks=[ip_network("192.0.2.0/24"), ip_network("10.0.0.0/8")])
    dialogue = xclient(everybody)
    assert dialogue.send(f"XCLIENT ADDR={unknown} PORT={unknown}").startswith("220")
    assert (dialogue.session.peer, dialogue.session.peer_port) == ("0.0.0.0", 0)  # noqa: S104
    dialogue.send("EHLO client.example")
    dialogue.send(MAIL_FROM)
    assert dialogue.send("RCPT TO:<user@elsewhere.example>").startswith("550 5.7.1")


@pytest.mark.parametrize("following", ["ADDR=198.51.100.10", "HELO=client.example", "LOGIN="])
def test_each_xclient_begins_without_a_login(following: str) -> None:
    dialogue = xclient(Passwords(), kind="submission")
    assert dialogue.send("XCLIENT ADDR=198.51.100.9 LOGIN=alice").startswith("220")
    dialogue.session.stash[NOTE] = "of the client before"
    dialogue.session.tls = replace(TLS, client_identity="front.example")
    assert dialogue.send(f"XCLIENT {following}").startswith("220")
    assert dialogue.session.login is None
    assert dialogue.session.tls == TLS  # not the certificate of the front end
    assert not len(dialogue.session.stash)
    dialogue.send("EHLO client.example")
    assert code(dialogue.send(MAIL_FROM)) == "530 5.7.0"


def test_failed_logins_of_one_client_are_not_those_of_the_next() -> None:
    dialogue = greeted(xclient(Passwords()))
    for _ in range(dialogue.service.limits.failed_logins):
        dialogue.send("XCLIENT ADDR=198.51.100.9")
        dialogue.send("EHLO client.example")
        assert code(dialogue.send(plain("wrong"))) == "535 5.7.8"
    dialogue.send("XCLIENT ADDR=198.51.100.10")
    dialogue.send("EHLO client.example")
    assert code(dialogue.send(plain("secret"))) == "235 2.7.0"


def test_front_end_stays_trusted_after_xclient() -> None:
    dialogue = xclient()
    assert dialogue.send("XCLIENT ADDR=198.51.100.9").startswith("220")
    assert dialogue.send("XCLIENT ADDR=198.51.100.10").startswith("220")
    assert dialogue.session.peer == "198.51.100.10"


def test_client_behind_a_trusted_proxy_is_not_trusted_with_xclient() -> None:
    # With PROXY the session learns its peer before the banner, after the receiver was made.
    service = replace(rules(), xclient=TRUSTED)
    session = Session(
        id="s", listener="test", kind="mx", hostname="mx.example.org", peer="192.0.2.1"
    )
    receiver = Receiver(service, session, Activity())
    session.peer = "198.51.100.9"
    receiver.greet()
    assert receiver.receive(b"XCLIENT LOGIN=alice\r\n").startswith(b"550 5.7.1")
    assert session.login is None


@pytest.mark.parametrize(
    "argument",
    [
        *(
            "",
            "ADDR",
            "FUN=1",
            "ADDR=nowhere",
            "ADDR=",
            "ADDR=IPV6:fe80::1%x",
            "PORT=65536",
            "PORT=x",
            "HELO=+",
        ),
        *("PORT=+C2+B2", "LOGIN=a+0D+0A", "ADDR=198.51.100.9 PORT=x"),
    ],
)
def test_malformed_xclient_changes_nothing(argument: str) -> None:
    dialogue = xclient()
    dialogue.send("EHLO proxy.example")
    before = replace(dialogue.session)
    assert code(dialogue.send(f"XCLIENT {argument}")) == "501 5.5.4"
    assert dialogue.session == before


@pytest.mark.parametrize(
    ("verdict", "reply"),
    [
        (Reject("unwelcome"), "554 mx.example.org unwelcome"),
        (Defer("later"), "421 mx.example.org later"),
        (Disconnect("bye"), "421 mx.example.org bye"),
    ],
    ids=str,
)
def test_client_of_a_front_end_is_judged_like_any_other(verdict: Exception, reply: str) -> None:
    # The reply is a banner: RFC 5321 section 3.1, RFC 2034 section 4.
    dialogue = xclient(Judge(hook="on_connect", verdict=verdict, known=("192.0.2.1",)), Mailroom())
    assert dialogue.banner.startswith("220")
    assert dialogue.send("XCLIENT ADDR=198.51.100.9") == reply
    assert not dialogue.mail("x").startswith("2")
    assert not dialogue.send("XCLIENT ADDR=192.0.2.1").startswith("2")


def test_xclient_over_lmtp_greets_as_lmtp() -> None:
    dialogue = xclient(kind="lmtp")
    assert dialogue.send("XCLIENT ADDR=198.51.100.9") == "220 mx.example.org LMTP minismtp"


def test_xclient_in_a_transaction_is_out_of_sequence() -> None:
    dialogue = xclient(Mailroom())
    assert code(at_data(dialogue).send("XCLIENT ADDR=198.51.100.9")) == "503 5.5.1"
    assert dialogue.session.peer == "192.0.2.1"
