"""XCLIENT: a trusted front end says which client it speaks for.

The command is Postfix's. Its attributes replace what the server knows of the session.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from minismtp.mail.encoded_words import octets_as_text
from minismtp.mail.session import Session
from minismtp.smtp.grammar import (
    SyntaxProblem,
    decode_xtext,
    parse_helo,
    xtext_octets,
)
from minismtp.values.peer import plain_address
from minismtp.values.stash import Stash

ATTRIBUTES: Final = ("NAME", "ADDR", "PORT", "PROTO", "HELO", "LOGIN", "DESTADDR")
_UNKNOWN: Final = frozenset({"[UNAVAILABLE]", "[TEMPUNAVAIL]"})
_UNKNOWN_ADDRESS: Final = "0.0.0.0"  # noqa: S104 - no host has it (RFC 6890)
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}")
_PORT_LIMIT: Final = 65536
_PORT_DIGITS: Final = 5


def apply_xclient(session: Session, argument: str) -> None:
    """Put the attributes of one command into the session. Raise SyntaxProblem without any change.

    The login of an earlier client is dropped, and so is what plugins noted about it. A client whose
    address the front end does not know has the address 0.0.0.0.
    """
    values = dict(_attribute(word) for word in argument.split())
    if not values:
        raise SyntaxProblem("XCLIENT needs attributes")
    address, port, helo = values.get("ADDR"), values.get("PORT"), values.get("HELO") or ""
    peer = _UNKNOWN_ADDRESS if address is None else _address(address)
    port_number = _port(port) if port else 0
    name = values.get("NAME") or ""
    session.name = name.lower() if _NAME.fullmatch(name) else ""
    session.helo = parse_helo(helo) if helo.strip(" ") else ""
    if "ADDR" in values:
        session.peer, session.peer_port = peer, port_number
    elif "PORT" in values:
        session.peer_port = port_number
    session.login = values.get("LOGIN") or None
    if "DESTADDR" in values:
        session.local = _called(values["DESTADDR"] or "")
    session.esmtp = False
    session.stash = Stash()
    if session.tls is not None:  # the certificate is that of the front end
        session.tls = replace(session.tls, client_identity="")


def _attribute(word: str) -> tuple[str, str | None]:
    """Return an attribute and its value, None if the front end does not know it."""
    name, equals, value = word.partition("=")
    if not equals or name.upper() not in ATTRIBUTES:
        raise SyntaxProblem(f"XCLIENT takes {', '.join(ATTRIBUTES)}")
    if value.upper() in _UNKNOWN:
        return name.upper(), None
    if name.upper() == "HELO":  # any, see `parse_helo`
        return "HELO", octets_as_text(xtext_octets(value))[0]
    return name.upper(), decode_xtext(value)


def _address(text: str) -> str:
    literal = text[5:] if text.upper().startswith("IPV6:") else text
    try:
        if "%" not in literal:  # a zone could be any text
            return plain_address(literal)
    except ValueError:
        pass
    raise SyntaxProblem("XCLIENT ADDR is no IP address")


def _called(text: str) -> str:
    """Return the address that the client connected to, or any other text as it is."""
    try:
        return _address(text)
    except SyntaxProblem:
        return text


def _port(text: str) -> int:
    digits = text.isascii() and text.isdigit() and len(text) <= _PORT_DIGITS
    if not digits or int(text) >= _PORT_LIMIT:
        raise SyntaxProblem("XCLIENT PORT is no port")
    return int(text)
