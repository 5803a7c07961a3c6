"""The addresses of a From, Sender or To field (RFC 5322 section 3.4).

These readings are for decisions about the author: text that some mail program could show as another
address counts as an address too, or is an error. Time is linear in the length of the field.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple

from minismtp.values.address import Address

_LONGEST: Final = 1000  # characters; a path has fewer
# obs-route = obs-domain-list ":" (RFC 5322 section 4.4), which no reader shows
_ROUTE: Final = re.compile(r"@[^:\"]*+:(?=[^@]*+@)")

_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*+"', re.DOTALL)

# For fields that are changed: quoted strings, comments and paths are tokens. A token that is still
# open at the end of the field matches a group and contains the rest of the field.
_TOKEN: Final = re.compile(
    rb'(?s)"(?:[^"\\]|\\.)*+(?:"|(\\?\Z))|\((?:[^()\\]|\\.)*+(?:\)|(\\?\Z))|'
    rb'<[^\s"(),;:<>]++>|[^\s"(),;:<>]++|\s++|.'
)
# Addresses that all have their domains: most fields are these.
_WHOLE: Final = re.compile(
    rb'(?:\s*+(?:"[^"\\]*+"\s*+)?+(?:[^"(),;:<>@]*+<[^\s"(),;:<>@]++@[^\s"(),;:<>@]++>|'
    rb'[^"(),;:<>@]++@[^\s"(),;:<>@]++)\s*+(?:,|\Z))++'
)
_UNUSUAL: Final = frozenset({b'"', b"(", b")", b"<", b">"})
_BARE: Final = re.compile(rb"<?(?!=\?)[\w!#$%&'*+/=?^`{|}~.-]++>?")
_MOST_GROWTH: Final = 65536  # octets


def mailboxes_of(value: str) -> list[Address]:
    """Return the addresses in the value of a field, also those of groups. Raise ValueError."""
    found: list[Address] = []
    outside: list[str] = []
    inside: list[str] | None = None
    is_open = False
    for piece in _pieces(value):
        if is_open and piece != ">":
            assert inside is not None  # noqa: S101 - it is open
            inside.append(piece)
        elif piece in ",;":
            found += _mailbox(outside, inside)
            outside, inside = [], None
        elif piece == ":" and "@" not in outside:  # the name of a group
            outside = []
        elif piece == "<" and inside is None:
            inside, is_open = [], True
        elif piece == ">" and is_open:
            is_open = False
        elif piece in "<>":
            raise ValueError(f"unexpected {piece}")
        else:
            outside.append(piece)
    return found + _mailbox(outside, inside)


def _mailbox(outside: list[str], inside: list[str] | None) -> list[Address]:
    """Return the address in angle brackets, and its display name if that is an address too."""
    named = inside is None or "@" in outside
    text = _without_blanks(outside) if named else ""
    beside = [_address(text)] if text else []
    if inside is None:
        return beside
    path = _without_blanks(inside)
    route = _ROUTE.match(path)
    return [*beside, _address(path[route.end() :] if route else path)]


def _without_blanks(pieces: list[str]) -> str:
    """Join an address, in which blanks are allowed only beside punctuation. Raise ValueError."""
    kept: list[str] = []
    blank = False
    for piece in pieces:
        if not piece.isspace():
            if blank and kept and not {piece, kept[-1]} & {*".@,:"}:
                raise ValueError("a blank inside an address")
            kept.append(piece)
        blank = piece.isspace()
    return "".join(kept)


def _address(text: str) -> Address:
    if len(text) > _LONGEST:
        raise ValueError("a long address")
    return Address.parse(text.removesuffix("."))  # the root of the DNS


def _pieces(value: str) -> Iterator[str]:
    """Yield each quoted string in one piece, each comment as a blank, and all else by character."""
    place = 0
    while place < len(value):
        match value[place]:
            case '"':
                quoted = _QUOTED.match(value, place)
                if quoted is None:
                    raise ValueError("a quoted string has no end")
                yield quoted[0]
                end = quoted.end()
            case "(":
                end = _end_of_comment(value, place)
                yield " "
            case char:
                end = place + 1
                yield char
        place = end


def _end_of_comment(value: str, start: int) -> int:
    place, depth = start, 0
    while place < len(value):
        char = value[place]
        depth += (char == "(") - (char == ")")
        place += 2 if char == "\\" else 1
        if not depth:
            return place
    raise ValueError("a comment has no end")


def completed(field: bytes, domain: str) -> bytes:
    """Return a field of addresses with the domain added to each bare local part, as Postfix does.

    A field with unusual syntax (nested comments, routes, open quotes, bare CR) does not change, nor
    does a field that would grow by more than 64 KiB.
    """
    name, _, value = field.partition(b":")
    if _WHOLE.fullmatch(value) or b"\r" in value.replace(b"\r\n", b""):
        return field
    begin, addition = len(name) + 1, b"@" + domain.encode()
    ends: list[int] = []  # of the bare local parts
    words, last = 0, _Word(b"", 0)  # of the current address
    for found in _TOKEN.finditer(field + b",", begin):
        token = found[0]
        match token[:1]:
            case b"," | b";":
                in_brackets = last.octets.startswith(b"<")
                if (in_brackets or words == 1) and _BARE.fullmatch(last.octets):
                    ends.append(last.end - in_brackets)
                words, last = 0, _Word(b"", 0)
            case b":":  # the name of a group was before it
                words, last = 0, _Word(b"", 0)
            case _ if found.lastindex or token in _UNUSUAL:
                return field
            case first if first != b"(" and not first.isspace():
                words, last = words + 1, _Word(token, found.end())
    if len(ends) * len(addition) > _MOST_GROWTH:
        return field
    cuts = [0, *ends, len(field)]
    return addition.join([field[start:end] for start, end in pairwise(cuts)])


class _Word(NamedTuple):
    """A word of a field, and the offset of its end."""

    octets: bytes
    end: int
