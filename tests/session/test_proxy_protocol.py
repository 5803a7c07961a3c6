"""The PROXY protocol in front of a listener: who the client is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import pytest
from client_script import (
    HI,
    OK,
)
from snippets import CLEAR, listener

if TYPE_CHECKING:
    from conftest import Launch, Running


V2: Final = b"\r\n\r\n\x00\r\nQUIT\n"


PROXIED: Final = listener("proxied", CLEAR, 'proxy_protocol = ["127.0.0.1/32"]')
UNTRUSTING: Final = listener("untrusting", CLEAR, 'proxy_protocol = ["192.0.2.0/24"]')


@pytest.fixture(scope="module")
def proxied(launch: Launch) -> Iterator[Running]:
    """Run a server behind a proxy, with one listener that trusts it and one that does not."""
    with launch(listeners=PROXIED + UNTRUSTING) as server:
        yield server


@pytest.mark.parametrize(
    ("header", "origin"),
    [
        (b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 25\r\n", "[192.0.2.7]"),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 5000 25\r\n", "[IPv6:2001:db8::7]"),
        (b"PROXY UNKNOWN\r\n", "[127.0.0.1]"),
        (V2 + b"\x21\x11\0\x0c\xc0\0\2\x07\xc0\0\2\1\x13\x88\0\x19", "[192.0.2.7]"),
        (V2 + b"\x20\0\0\0", "[127.0.0.1]"),
    ],
    ids=["v1-tcp4", "v1-tcp6", "v1-unknown", "v2-tcp4", "v2-local"],
)
def test_trusted_proxy_says_who_the_client_is(proxied: Running, header: bytes, origin: str) -> None:
    # PROXY protocol sections 2.1 and 2.2
    mailbox = f"proxied{len(header)}"
    with proxied.connect("proxied") as client:
        client.send(header)
        client.begin_data(f"{mailbox}@example.org")
        client.send(HI + b".\r\n")
        assert client.reply().startswith(OK)
    [message] = proxied.mail(mailbox)
    assert f"from client.example ({origin})" in message.decode()


@pytest.mark.parametrize(
    "header",
    [
        b"EHLO client.example\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 5000\r\n",
        b"PROXY TCP4 2001:db8::7 192.0.2.1 5000 25\r\n",
        b"PROXY TCP4 " + b"1" * 200 + b"\r\n",
        V2 + b"\x31\x11\0\x0c" + bytes(12),
        V2 + b"\x21\x11\0\x04" + bytes(4),
        V2 + b"\x21\x11\xff\xff" + bytes(100),
    ],
    ids=["none", "short", "family", "long", "v2-version", "v2-short", "v2-long"],
)
def test_connection_with_a_wrong_proxy_header_is_closed_unanswered(
    proxied: Running, header: bytes
) -> None:
    # PROXY protocol section 2: the receiver must not guess
    with proxied.connect("proxied") as client:
        client.send(header)
        assert client.rest(reset=True) == ""


def test_proxy_header_of_others_is_a_wrong_command(proxied: Running) -> None:
    # PROXY protocol section 2: only from whom the configuration names
    with proxied.connect("untrusting") as client:
        assert client.reply().startswith("220 ")
        assert client.command("PROXY TCP4 192.0.2.7 192.0.2.1 5000 25").startswith("500 5.5.2 ")
