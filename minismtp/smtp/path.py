"""Paths as real clients write them in MAIL and RCPT (RFC 5321 section 4.1.2).

`grammar` reads paths that follow the RFC. This module reads the others, as Postfix does, if they
can mean only one address, and says what is wrong with the rest. It reads each octet once. Its
result is an `Address`, so nothing of an odd spelling goes further.
"""

from __future__ import annotations

import re
from typing import Final

from minismtp.values.address import (
    BARE_WORD,
    DOMAIN,
    DOMAIN_LIMIT,
    LABEL_LIMIT,
    LITERAL,
    QUOTED_STRING,
    SUB_DOMAIN,
    Address,
    checked,
    unquoted,
)

_PIECE: Final = re.compile(
    rf"({QUOTED_STRING})|(\\[ -~])|(\([^()]*\)|[ \t]+)|([<>@,;:\[\]()\"\\])"
    r"|[^ \t<>@,;:\[\]()\"\\]+"
)
_QUOTED, _PAIR, _NOTHING, _SPECIAL = 1, 2, 3, 4  # groups; a word is in none of them
_WORD: Final = re.compile(BARE_WORD)
_DOMAIN: Final = re.compile(rf"{DOMAIN}|{LITERAL}")
_SUB_DOMAIN: Final = re.compile(SUB_DOMAIN)
_UNFINISHED: Final = {
    '"': "a quoted string has no end",
    "(": "a comment has no end",
    ")": "a comment has no beginning",
    "\\": "a backslash stands before nothing",
}
_BLANK: Final = " "  # stands for blanks and comments


def read_path(text: str) -> tuple[Address | None, str]:
    """Read the path that `text` begins with. Return its address and what follows it.

    The address is None for the null path, and its domain empty where only a local part was
    written. Raise ValueError for a path that means no address, or could mean more than one.
    """
    pieces, rest = _split_off(text)
    pieces = _without_blanks(_innermost(pieces))
    while len(pieces) > 1 and pieces[-1] in {",", ";"}:  # what ends an address in a list
        pieces.pop()
    return _mailbox(_without_route(pieces)), rest


def _split_off(text: str) -> tuple[list[str], str]:
    """Return the pieces of a path and the text after it. A path is `<...>`, or ends at a blank."""
    pieces: list[str] = []
    in_brackets, depth = text.startswith("<"), 0
    for match in _PIECE.finditer(text):
        piece = match[0]
        if piece in _UNFINISHED:
            raise ValueError(_UNFINISHED[piece])
        if match[_NOTHING]:
            if not in_brackets and piece[0] != "(":
                return pieces, text[match.start() :]
            piece = _BLANK
        pieces.append(piece)
        depth += (piece == "<") - (piece == ">")
        if in_brackets and not depth:
            return pieces, text[match.end() :].lstrip(">")
    if in_brackets:
        raise ValueError("no > behind the address")
    return pieces, ""


def _innermost(pieces: list[str]) -> list[str]:
    """Return the pieces in the innermost brackets, because of `<Name <user@host>>`."""
    begin = max((place for place, piece in enumerate(pieces) if piece == "<"), default=-1) + 1
    before, inside = pieces[:begin], pieces[begin:]
    end = inside.index(">") if ">" in inside else len(inside)
    if ">" in before or {*inside[end:]} - {">", _BLANK}:
        raise ValueError("more than one address")
    return inside[:end]


def _without_blanks(pieces: list[str]) -> list[str]:
    """Return the pieces without blanks. Raise ValueError if one separates two words."""
    kept: list[str] = []
    parted = False
    for piece in pieces:
        if piece == _BLANK:
            parted = bool(kept)
        else:
            if parted and not (kept[-1][-1] in "@.:," or piece[0] in "@.:,"):
                raise ValueError("a blank in the address")
            kept.append(piece)
            parted = False
    return kept


def _without_route(pieces: list[str]) -> list[str]:
    """Return the pieces behind source routes, which are ignored (RFC 5321 appendix C)."""
    start, colons = 0, pieces.count(":")
    while colons and pieces[start : start + 1] == ["@"]:
        start = pieces.index(":", start) + 1
        colons -= 1
    if start and start == len(pieces):
        raise ValueError("no address behind the source route")
    return pieces[start:]


def _mailbox(pieces: list[str]) -> Address | None:
    """Return the address that the pieces spell, without blanks and route. Raise ValueError."""
    at = len(pieces) - 1 - pieces[::-1].index("@") if "@" in pieces else len(pieces)
    local, domain = "".join(map(_plain, pieces[:at])), "".join(pieces[at + 1 :])
    if at == len(pieces):
        if not local:
            return None
        if "@" not in local:
            return Address(checked(local, "local.part").local, "")
        local, _, domain = local.rpartition("@")  # the whole address was quoted
    domain = domain.removesuffix(".")
    if not _DOMAIN.fullmatch(domain):
        raise ValueError(_problem(domain))
    return checked(local, domain)


def _plain(piece: str) -> str:
    """Return a piece of a local part without its quoting. Raise ValueError."""
    if piece[0] == '"':
        return unquoted(piece)
    if piece[0] == "\\":
        return piece[1:]
    if piece not in "@:" and not _WORD.fullmatch(piece):
        wrong = next(char for char in piece if not _WORD.fullmatch(char))
        raise ValueError(f"unexpected {wrong} in the local part")
    return piece


def _problem(domain: str) -> str:
    """Say what is wrong with a domain."""
    if not domain:
        return "no domain behind the @"
    if domain[0] == "[":
        return "address literal is not an IP address"
    if len(domain) > DOMAIN_LIMIT:
        return f"domain longer than {DOMAIN_LIMIT} octets"
    for label in domain.split("."):
        if not label:
            return "a domain with two dots in a row, or one before it"
        if len(label) > LABEL_LIMIT:
            return f"domain label longer than {LABEL_LIMIT} octets"
        if label.strip("-") != label:
            return "a hyphen at an end of a domain label"
        if not _SUB_DOMAIN.fullmatch(label):
            wrong = next(char for char in label if not _SUB_DOMAIN.fullmatch(char) and char != "-")
            return f"unexpected {wrong} in the domain"
    return "no domain"
