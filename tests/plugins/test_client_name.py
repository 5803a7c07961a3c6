"""The name of a client is looked up once for all plugins, and is in the Received field."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_network

import pytest
from fakes import Names
from minismtp_plugins.reverse_dns import ReverseDns, confirmed_name

from minismtp import Found, Session, UnansweredError, hookimpl, plugin
from minismtp.testing import Dialogue, Mailroom

PEER = "192.0.2.1"
NAMES = {"1.2.0.192.in-addr.arpa PTR": ["Mail.Client.Example."], "Mail.Client.Example A": [PEER]}


class Counting(Names):
    """Counts the questions."""

    def __init__(
        self, records: dict[str, list[str]] | None = None, *, silent: bool = False
    ) -> None:
        super().__init__(records, silent=silent)
        self.asked: list[str] = []

    def lookup(self, name: str, kind: str, *, seconds: float = 30.0) -> Found:
        self.asked.append(f"{name} {kind}")
        return super().lookup(name, kind, seconds=seconds)


@plugin
class Asking:
    """Asks for the name, after DATA."""

    @hookimpl
    def on_data(self, session: Session) -> None:
        self.found = confirmed_name(session, self.resolver, timedelta(seconds=5))

    resolver: Names


def stored(*plugins: object, resolver: Names, peer: str = PEER) -> tuple[str, bytes]:
    asking, mailroom = Asking(resolver=resolver), Mailroom()
    dialogue = Dialogue(
        *plugins, asking, Asking(resolver=resolver), mailroom, peer=peer, resolver=resolver
    )
    assert dialogue.mail("Subject: x\n\nx").startswith("250")
    return asking.found, mailroom.stored["user@example.org"][0]


def test_name_that_leads_back_is_in_the_trace_field() -> None:
    resolver = Counting(NAMES)
    found, message = stored(ReverseDns(), resolver=resolver)
    assert found == "mail.client.example"
    assert message.startswith(
        b"Received: from client.example (mail.client.example [192.0.2.1])\r\n\tby mx.example.org "
    )
    assert resolver.asked == ["1.2.0.192.in-addr.arpa PTR", "Mail.Client.Example A"]


def test_name_that_nobody_wants_is_not_looked_up() -> None:
    resolver, mailroom = Counting(NAMES), Mailroom()
    dialogue = Dialogue(mailroom, peer=PEER, resolver=resolver)
    assert dialogue.mail("Subject: x\n\nx").startswith("250")
    assert b"from client.example ([192.0.2.1])\r\n" in mailroom.stored["user@example.org"][0]
    assert resolver.asked == []


@pytest.mark.parametrize(
    ("records", "silent"),
    [
        ({}, False),
        ({}, True),
        ({"1.2.0.192.in-addr.arpa PTR": ["a.example."], "a.example A": ["192.0.2.9"]}, False),
        ({"1.2.0.192.in-addr.arpa PTR": ["192.0.2.1."], "192.0.2.1 A": [PEER]}, False),
        ({"1.2.0.192.in-addr.arpa PTR": ["a=b.example."], "a=b.example A": [PEER]}, False),
        ({"1.2.0.192.in-addr.arpa PTR": ["-a.example."], "-a.example A": [PEER]}, False),
    ],
)
def test_name_that_is_none_is_unknown(records: dict[str, list[str]], *, silent: bool) -> None:
    resolver = Counting(records, silent=silent)
    found, message = stored(resolver=resolver)
    assert found == ""
    assert b"from client.example ([192.0.2.1])\r\n" in message
    assert resolver.asked.count("1.2.0.192.in-addr.arpa PTR") == 1  # though two wanted it


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "unix"])
def test_this_machine_is_localhost(peer: str) -> None:
    resolver = Counting({})
    assert stored(resolver=resolver, peer=peer)[0] == "localhost"
    assert resolver.asked == []


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ("NAME=mail.real.example ADDR=198.51.100.9", "mail.real.example"),
        ("ADDR=198.51.100.9 NAME=[UNAVAILABLE]", ""),
        ("ADDR=198.51.100.9 NAME=[TEMPUNAVAIL]", ""),
        ("ADDR=198.51.100.9", ""),
        ("ADDR=198.51.100.9 NAME=a+28b+29", ""),
    ],
)
def test_front_end_says_the_name(attributes: str, name: str) -> None:
    asking, mailroom = Asking(resolver=Counting({})), Mailroom()
    made = Dialogue(asking, mailroom, resolver=Counting({}))
    service = replace(made.service, xclient=(ip_network(PEER),))
    dialogue = Dialogue(service=service)
    assert dialogue.send("EHLO front.example").startswith("250")
    assert dialogue.send(f"XCLIENT {attributes}").startswith("220")
    assert dialogue.mail("Subject: x\n\nx").startswith("250")
    assert asking.found == name
    client = f"{name} [198.51.100.9]".strip()
    assert f"from client.example ({client})".encode() in mailroom.stored["user@example.org"][0]


def test_silent_dns_is_told_to_who_must_know() -> None:
    dialogue = Dialogue(
        ReverseDns(missing="reject"), Mailroom(), peer=PEER, resolver=Counting(silent=True)
    )
    assert dialogue.mail("Subject: x\n\nx").startswith("451 4.3.0")
    with pytest.raises(UnansweredError):
        Counting(silent=True).lookup("a.example", "A")
