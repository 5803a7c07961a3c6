"""An IPv4-mapped IPv6 address counts as the IPv4 address everywhere (RFC 4291 2.5.5.2)."""

from __future__ import annotations

import io
import socket
import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from fakes import Names, envelope
from hypothesis import given
from hypothesis import strategies as st
from minismtp_plugins._checks import ClientCheck
from minismtp_plugins._spf import Sender, check_host
from minismtp_plugins.dovecot_auth import _request
from minismtp_plugins.helo import HeloChecks
from minismtp_plugins.mailboxes import Mailboxes
from minismtp_plugins.relay import Relaying

from minismtp import Address, Credentials, Recipient, Session, SocketAddress
from minismtp.cli.main import parser
from minismtp.cli.stored_mail import envelope_of
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.config.types import parse_network
from minismtp.delivery.mx import HostFinder
from minismtp.server.listener import _peer
from minismtp.session.xclient import apply_xclient
from minismtp.smtp.preamble import read_header
from minismtp.testing import Dialogue
from minismtp.values.peer import peer_key, plain_address

if TYPE_CHECKING:
    from conftest import Configure, Start

PLAIN: Final = "192.0.2.1"
SPELLINGS: Final = (
    *("192.0.2.1", "::ffff:192.0.2.1", "::FFFF:192.0.2.1", "::ffff:c000:201"),
    *("0:0:0:0:0:ffff:192.0.2.1", "0000:0000:0000:0000:0000:FFFF:C000:0201"),
)
MAPPED: Final = SPELLINGS[1:]
NETWORKS: Final = ("192.0.2.0/24", "::ffff:192.0.2.0/120", "::FFFF:C000:0200/120")


def session(peer: str = "203.0.113.9") -> Session:
    return Session(id="s", listener="smtp", kind="mx", hostname="mx.example.org", peer=peer)


# Each takes a spelling and returns the address that the server uses.


def proxy_1(said: str) -> str:
    return read_header(io.BytesIO(f"PROXY TCP6 {said} {said} 1 25\r\n".encode()).read).peer


def proxy_1_called(said: str) -> str:
    return read_header(io.BytesIO(f"PROXY TCP6 {said} {said} 1 25\r\n".encode()).read).called


def _version_2(said: str) -> bytes:
    octets = IPv6Address(said).packed
    return b"\r\n\r\n\0\r\nQUIT\n!!" + struct.pack("!H16s16sHH", 36, octets, octets, 1, 25)


def proxy_2(said: str) -> str:
    return read_header(io.BytesIO(_version_2(said)).read).peer


def proxy_2_called(said: str) -> str:
    return read_header(io.BytesIO(_version_2(said)).read).called


def xclient(said: str) -> str:
    told = session()
    apply_xclient(told, f"ADDR=IPV6:{said}")
    return told.peer


def xclient_without_a_tag(said: str) -> str:
    told = session()
    apply_xclient(told, f"ADDR={said}")
    return told.peer


def xclient_called(said: str) -> str:
    told = session()
    apply_xclient(told, f"DESTADDR=IPV6:{said}")
    return told.local


def accepted_socket(said: str) -> str:
    text = socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, said))
    return _peer((text, 25, 0, 0))[0]


def listener(said: str) -> str:
    return SocketAddress.parse(f"[{said}]:25").host


def command_try(said: str) -> str:
    return str(parser().parse_args(["try", "spf", "mail.eml", "--peer", said]).peer)


def command_trace(said: str) -> str:
    [network] = parser().parse_args(["trace", "--peer", f"{said}/128"]).peer
    return str(network).removesuffix("/32")


def replay(said: str) -> str:
    ours = "by mx.example.org with ESMTP id 0123456789ab.1; today"
    field = f"Received: from x (x [IPv6:{said}]) {ours}\r\n\r\n"
    return envelope_of(io.BytesIO(field.encode()), "mx.example.org").peer


def mail_exchanger(said: str) -> str:
    names = Names({"x.example MX": ["1 mx.example."], "mx.example AAAA": [said]})
    [host] = HostFinder(names, hostname="us.example", own=[], port=25).by_mx("x.example")
    return host.address


def address_literal(said: str) -> str:
    directory = HostFinder(Names(), hostname="us.example", own=[], port=25)
    [host] = directory.by_mx(Address.parse(f"a@[IPv6:{said}]").ascii_domain)
    return host.address


def smarthost(said: str) -> str:
    [host] = HostFinder(Names(), hostname="us.example", own=[], port=25).at(said, 25)
    return host.address


def mailbox(said: str) -> str:
    return Address.parse(f"a@[IPv6:{said}]").domain.strip("[]")


def plugins(said: str) -> str:
    return str(ClientCheck(networks=[]).address_of(session(said)))


PLACES: Final = (
    *(plain_address, proxy_1, proxy_1_called, proxy_2, proxy_2_called, xclient, xclient_called),
    *(xclient_without_a_tag, accepted_socket, listener, command_try, command_trace, replay),
    *(mail_exchanger, address_literal, smarthost, mailbox, plugins),
)


@pytest.mark.parametrize("said", MAPPED)
@pytest.mark.parametrize("place", PLACES)
def test_mapped_address_comes_in_as_ipv4(place: Callable[[str], str], said: str) -> None:
    assert place(said) == PLAIN


@pytest.mark.parametrize("said", ["2001:db8::1", "::1", "64:ff9b::192.0.2.1", "::192.0.2.1"])
@pytest.mark.parametrize(
    "place", [each for each in PLACES if each not in (mailbox, listener, accepted_socket)]
)
def test_other_addresses_stay(place: Callable[[str], str], said: str) -> None:
    assert place(said).removesuffix("/128") == str(IPv6Address(said))


@given(st.ip_addresses())
def test_address_has_one_spelling(address: IPv4Address | IPv6Address) -> None:
    plain = plain_address(str(address))
    assert plain_address(plain) == plain
    assert peer_key(plain) == peer_key(str(address))


@pytest.mark.parametrize("text", NETWORKS)
def test_mapped_network_is_one_of_ipv4(text: str) -> None:
    assert parse_network(text) == IPv4Network("192.0.2.0/24")
    relay = build(Relaying, {"networks": [text]}, file="", key="", base=Path())
    assert relay.route(session(PLAIN), envelope(), Recipient(Address("a", "b.example")))
    assert not relay.route(session("192.0.3.1"), envelope(), Recipient(Address("a", "b.example")))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("::ffff:192.0.2.1", "192.0.2.1/32"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::ffff:0:0/97", "0.0.0.0/1"),
        ("::/0", "::/0"),
        ("::ffff:0:0/95", ""),  # bits behind the prefix
        ("::fffe:0:0/95", "::fffe:0:0/95"),
        ("2001:db8::/32", "2001:db8::/32"),
    ],
)
def test_network_is_as_wide_as_it_was(text: str, found: str) -> None:
    if found:
        assert parse_network(text) == ip_network(found)
    else:
        with pytest.raises(ValueError, match="bits set after"):
            parse_network(text)


@pytest.mark.parametrize("text", ["::ffff:0:0/96", "::ffff:0.0.0.0/100"])
def test_open_relay_is_refused_in_this_spelling_too(text: str) -> None:
    with pytest.raises(ConfigError, match="open relay"):
        build(Relaying, {"networks": [text]}, file="", key="", base=Path())


@pytest.mark.parametrize(
    "record",
    [
        "v=spf1 ip4:192.0.2.0/24 -all",
        "v=spf1 ip6:::ffff:192.0.2.0/120 -all",
        "v=spf1 ip6:::ffff:c000:201 -all",
        "v=spf1 a -all",
        "v=spf1 mx -all",
        "v=spf1 exists:%{i}.list.example -all",
    ],
)
@pytest.mark.parametrize("said", SPELLINGS)
def test_spf_knows_a_mapped_address(record: str, said: str) -> None:
    names = {
        "c.example TXT": [record],
        "c.example A": [PLAIN],
        "c.example MX": ["c.example"],
        "192.0.2.1.list.example A": ["127.0.0.2"],
    }
    address = ClientCheck(networks=[]).address_of(session(said))
    assert address is not None
    sender = Sender(address, "a", "c.example", "c.example")
    found = check_host(sender, lambda name, kind: names.get(f"{name} {kind}", []))
    assert found.result == "pass"


def test_spf_network_of_ipv4_is_not_wider() -> None:
    sender = Sender(IPv4Address("192.0.3.1"), "a", "c.example", "c.example")
    record = ["v=spf1 ip6:::ffff:192.0.2.0/120 ip6:::/0 -all"]
    assert check_host(sender, lambda *_: record).result == "fail"


def test_mail_exchanger_with_both_records_is_tried_once() -> None:
    names = Names(
        {
            "x.example MX": ["1 mx.example."],
            "mx.example AAAA": ["::ffff:192.0.2.1", "2001:db8::1"],
            "mx.example A": ["192.0.2.1"],
        }
    )
    hosts = HostFinder(names, hostname="us.example", own=[], port=25).by_mx("x.example")
    assert sorted(host.address for host in hosts) == ["192.0.2.1", "2001:db8::1"]


@pytest.mark.parametrize("said", MAPPED)
def test_literal_in_helo_is_the_address_of_the_client(said: str) -> None:
    checks = HeloChecks(literal="reject")
    told = Dialogue(checks, peer=PLAIN).session
    told.helo = f"[IPv6:{said}]"
    checks.on_mail(told, envelope())  # raises no Reject


@pytest.mark.parametrize("said", MAPPED)
@pytest.mark.parametrize(
    "ours", ["[192.0.2.1]", "[IPv6:::ffff:192.0.2.1]", "[ipv6:::FFFF:C000:201]"]
)
def test_mailbox_at_an_address_literal_has_one_domain(ours: str, said: str) -> None:
    recipient = Recipient(Address.parse(f"a@[IPv6:{said}]"))
    route = Mailboxes(domains=[ours]).route(session(), envelope(), recipient)
    assert route is not None
    recipient.route = route
    assert [str(each) for each in recipient.mailboxes] == ["a@[192.0.2.1]"]


@pytest.mark.parametrize("said", MAPPED)
def test_dovecot_hears_of_ipv4(said: str) -> None:
    told = session()
    apply_xclient(told, f"ADDR=IPV6:{said} DESTADDR=IPV6:{said}")
    request = _request(told, Credentials("PLAIN", "alice", "secret", ""))
    assert "\trip=192.0.2.1\tlip=192.0.2.1\t" in request


def test_dual_stack_socket_shows_clients_of_ipv4_as_such() -> None:
    """As systemd opens one by default."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listening:
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, address = listening.accept()
            with accepted:
                assert address[0] == "::ffff:127.0.0.1"
                assert _peer(address) == ("127.0.0.1", client.getsockname()[1])
                assert _peer(accepted.getsockname()) == ("127.0.0.1", port)


LISTENER: Final = """
[[listeners]]
name = "smtp"
address = "127.0.0.1:0"
tls = "none"
proxy_protocol = ["::ffff:127.0.0.1/128"]
xclient = ["::ffff:192.0.2.0/120"]
"""
RELAY: Final = """
[[plugins]]
use = "relay"
networks = ["::ffff:198.51.100.0/120"]
"""


def test_networks_match_a_client_behind_a_balancer_and_a_front_end(
    configure: Configure, start: Start
) -> None:
    server = start(configure(RELAY, listeners=LISTENER))
    with server.connect() as client:
        client.send(_version_2("::ffff:192.0.2.1"))
        assert client.reply().startswith("220")
        client.command("EHLO front.example")
        assert client.command("XCLIENT ADDR=IPV6:::ffff:198.51.100.7").startswith("220")
        client.command("EHLO client.example")
        client.command("MAIL FROM:<a@client.example>")
        assert client.command("RCPT TO:<b@elsewhere.example>").startswith("250")
