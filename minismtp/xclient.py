"""XCLIENT: a front end that is trusted says who it speaks for (layer 2).

The command is Postfix's; its attributes replace what the server knows of the session.
"""

from __future__ import annotations

import ipaddress
from typing import Final

from minismtp.session import Session
from minismtp.smtp.grammar import SyntaxProblem, decode_xtext, parse_helo

ATTRIBUTES: Final = ("NAME", "ADDR", "PORT", "PROTO", "HELO", "LOGIN", "DESTADDR")
_UNKNOWN: Final = frozenset({"[UNAVAILABLE]", "[TEMPUNAVAIL]"})
_PORT_LIMIT: Final = 65536


def apply_xclient(session: Session, argument: str) -> None:
    """Put the attributes of one command into the session; raises SyntaxProblem, then none is."""
    values = dict(_attribute(word) for word in argument.split())
    if not values:
        raise SyntaxProblem("XCLIENT needs attributes")
    address = values.get("ADDR")
    port = values.get("PORT")
    helo = values.get("HELO")
    peer = _address(address) if address else None
    port_number = _port(port) if port else None
    name = parse_helo(helo) if helo else ""
    session.helo = name
    if peer is not None:
        session.peer = peer
    if port_number is not None:
        session.peer_port = port_number
    if "LOGIN" in values:
        session.login = values["LOGIN"] or None
    if "DESTADDR" in values:
        session.local = values["DESTADDR"]


def _attribute(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals or name.upper() not in ATTRIBUTES:
        raise SyntaxProblem(f"XCLIENT takes {', '.join(ATTRIBUTES)}")
    return name.upper(), "" if value.upper() in _UNKNOWN else decode_xtext(value)


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text[5:] if text.upper().startswith("IPV6:") else text))
    except ValueError:
        raise SyntaxProblem("XCLIENT ADDR is no IP address") from None


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) >= _PORT_LIMIT:
        raise SyntaxProblem("XCLIENT PORT is no port")
    return int(text)
