"""Stored mail as the client sent it, with client and envelope read from the fields above it.

The server put fields above a delivered message: Return-Path, Delivered-To, those of filters, and
Received. They hold the envelope (RFC 5321 section 4.4). The message that the client sent begins
below them.
"""

from __future__ import annotations

import contextlib
import os
import re
from codecs import BOM_UTF8
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO, Final

from minismtp.cli.dry_run import ExampleClient
from minismtp.mail.headers import Headers
from minismtp.values.address import Address, unquoted
from minismtp.values.peer import plain_address

_HEAD: Final = 256 * 1024  # octets that hold all trace fields
# The Received field of `mail.trace_fields`: client, address, host, protocol, identifier.
_OURS: Final = re.compile(r"by (\S+) with (\w+) id [0-9a-f]{12}\.[0-9]+[\s;]")
_ORIGIN: Final = re.compile(
    r'from ("(?:[^"\\]|\\.)*"|[^\s"]\S*)'
    r" \((?:[^()\[\]]*\[(?:IPv6:)?([0-9A-Fa-f:.]+)\]|(unix))"
)
_ON_DELIVERY: Final = re.compile(rb"(?i)(?:Return-Path|Delivered-To|X-Original-To)[ \t]*:")
_SOMEBODY: Final = ExampleClient(sender="", recipients=())  # used where a field is missing


def maildir(directory: Path) -> list[Path]:
    """Return the messages of a Maildir, the oldest first. Raise OSError."""
    found = []
    for folder in ("cur", "new"):
        with os.scandir(directory / folder) as entries:
            found += [(entry.name, folder) for entry in entries if entry.name[:1] != "."]
    return [directory / folder / name for name, folder in sorted(found)]


def envelope_of(content: BinaryIO, hostname: str) -> ExampleClient:
    """Return the client and envelope of a stored message, and move `content` to where it began.

    That is below the Received field of `hostname`, or below the fields of delivery if there is no
    such field. The name of a user who had logged in is taken to be the sender's address.
    """
    mark = len(BOM_UTF8) if content.read(len(BOM_UTF8)) == BOM_UTF8 else 0
    content.seek(mark)
    headers = Headers.parse(content.read(_HEAD))
    fields = headers.raw_all()
    ours = next((n for n, raw in enumerate(fields) if _is_ours(raw, hostname)), None)
    added = len([*takewhile(_ON_DELIVERY.match, fields)]) if ours is None else ours + 1
    content.seek(mark + sum(map(len, fields[:added])))
    sender = _address(headers.get("Return-Path"))
    recipient = _address(headers.get("Delivered-To")) or f"postmaster@{hostname}"
    trace = headers.get("Received") if ours is None else Headers([fields[ours]]).get("Received")
    origin, own = _ORIGIN.match(trace), _OURS.search(trace)
    logged_in = own is not None and own[2].endswith("A")  # RFC 3848
    return ExampleClient(
        sender=sender,
        recipients=(recipient,),
        peer=_peer(origin),
        helo=_helo(origin),
        login=(sender or "somebody") if logged_in else None,
    )


def _is_ours(raw: bytes, hostname: str) -> bool:
    found = _OURS.search(Headers([raw]).get("Received"))
    return found is not None and found[1].lower() == hostname.lower()


def _address(value: str) -> str:
    with contextlib.suppress(ValueError):
        return str(Address.parse(value.strip("<> ")))
    return ""


def _peer(origin: re.Match[str] | None) -> str:
    if origin is None:
        return _SOMEBODY.peer
    with contextlib.suppress(ValueError):
        return plain_address(origin[2]) if origin[2] else origin[3]
    return _SOMEBODY.peer


def _helo(origin: re.Match[str] | None) -> str:
    if origin is None or origin[1] == "unknown" or not origin[1].isascii():
        return _SOMEBODY.helo
    return unquoted(origin[1]) if origin[1][0] == '"' else origin[1]
