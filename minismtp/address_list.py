"""The addresses of a From, Sender or To field (layer 2; RFC 5322 section 3.4).

For decisions about who is named: what some reader could take for another address than we do is an
error. Linear in the length of the field.
"""

from __future__ import annotations

from collections.abc import Iterator

from minismtp.address import Address


def mailboxes_of(value: str) -> list[Address]:
    """Return the addresses in the value of a field, those of groups too. Raise ValueError."""
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
        elif piece == ":":  # the name of a group
            outside = []
        elif piece == "<" and inside is None:
            inside, is_open = [], True
        elif piece == ">" and is_open:
            is_open = False
        elif piece in "<>":
            raise ValueError(f"unexpected {piece}")
        else:
            outside.append(piece)
    if is_open:
        raise ValueError("expected >")
    return found + _mailbox(outside, inside)


def _mailbox(outside: list[str], inside: list[str] | None) -> list[Address]:
    """Read one address: what stands in angle brackets, else all."""
    if inside is None:
        text = "".join(piece for piece in outside if not piece.isspace())
        return [Address.parse(text)] if text else []
    if "@" in outside:
        raise ValueError("an address beside an address")
    return [Address.parse("".join(piece for piece in inside if not piece.isspace()))]


def _pieces(value: str) -> Iterator[str]:
    """Yield quoted strings whole, comments as a blank, and else each character."""
    place = 0
    while place < len(value):
        match value[place]:
            case '"':
                end = _end_of_quote(value, place)
                yield value[place:end]
            case "(":
                end = _end_of_comment(value, place)
                yield " "
            case char:
                end = place + 1
                yield char
        place = end


def _end_of_quote(value: str, start: int) -> int:
    place = start + 1
    while place < len(value):
        if value[place] == '"':
            return place + 1
        place += 2 if value[place] == "\\" else 1
    raise ValueError("a quoted string has no end")


def _end_of_comment(value: str, start: int) -> int:
    place, depth = start, 0
    while place < len(value):
        char = value[place]
        depth += (char == "(") - (char == ")")
        place += 2 if char == "\\" else 1
        if not depth:
            return place
    raise ValueError("a comment has no end")
