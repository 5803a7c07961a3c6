"""The grammar of what follows a verb: RFC 5321 section 4.1.2 and RFC 6531.

Each rule's ABNF is above its regular expression. All functions take text that was decoded from
UTF-8. The caller decides whether a transaction may have characters outside ASCII.

Real clients write paths outside the grammar too. `read_path` takes them, as Postfix does, if they
can mean only one address, and says what is wrong with the rest. It reads each octet once. Its
result is an `Address`, so nothing of an odd spelling goes further.
"""

from __future__ import annotations

import base64
import re
from typing import Final

from minismtp.values.address import (
    BARE_WORD,
    DOMAIN,
    DOMAIN_LIMIT,
    LABEL_LIMIT,
    LITERAL,
    MAILBOX,
    NO_TEXT,
    QUOTED_STRING,
    SUB_DOMAIN,
    Address,
    checked,
    read_mailbox,
    unquoted,
)

# A-d-l = At-domain *( "," At-domain ) ; accepted and ignored, RFC 5321 appendix C
_SOURCE_ROUTE = rf"(?:@{DOMAIN}(?:,@{DOMAIN})*:)?"
# Path = "<" [ A-d-l ":" ] Mailbox ">" ; Reverse-path = Path / "<>"
_PATH = re.compile(rf"<(?:{_SOURCE_ROUTE}{MAILBOX})?>(?![^ ])")
# Roughly the names of hosts. EHLO takes others too.
_HOST_NAME = re.compile(r"[A-Za-z0-9._:\-\[\]]+")
_SHOWN: Final = 80  # characters of a malformed parameter that a reply repeats
_NAME_LIMIT: Final = 255  # characters that are kept of a name; no domain is longer
# esmtp-param = esmtp-keyword ["=" esmtp-value] ; esmtp-value = 1*(%d33-60 / %d62-126)
# with "=" in the value too: clients leave it as it is in ENVID and ORCPT
_PARAMETER = re.compile(rf"([A-Za-z0-9][A-Za-z0-9\-]*)(?:=([^\x00- {NO_TEXT}]+))?")
# xtext = *( xchar / hexchar ) ; xchar = any ASCII from "!" to "~" except "+" and "=" (RFC 3461)
_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")
# as clients write it, with "=", small hex letters and UTF-8 as it is
_LOOSE_XTEXT = re.compile(rf"(?:[^\x00- +{NO_TEXT}]|\+[0-9A-Fa-f]{{2}})*")
# original-recipient-address = addr-type ";" xtext ; addr-type = atom (RFC 3461 section 4.2)
_ORCPT = re.compile(r"([A-Za-z0-9!#$%&'*+\-/?^_`{|}~]+);(.*)")
_ORCPT_LIMIT: Final = 2400  # octets: the longest mailbox, each octet in three; RFC 3461 has 500
_NO_XCHAR = re.compile(r"[^!-*,-<>-~]")
# QCHAR: what stays as it is in the ASCII form of a utf-8 address (RFC 6533 section 3)
_NO_QCHAR = re.compile(r"[^!-*,-<>-\[\]-~]")
_HEXCHAR = re.compile(rb"\+([0-9A-Fa-f]{2})")
# base64 = *(4base64-char) [(3base64-char "=") / (2base64-char "==")], RFC 5802 section 7; the
# library would take more padding than there is room for.
_BASE64 = re.compile(rb"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)?")

# Pieces of paths that clients write outside the grammar.
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


class SyntaxProblem(ValueError):  # noqa: N818 - the peer's, and it carries the answer
    """Text that does not follow the grammar. The message says what was expected."""


def parse_path(text: str, start: int = 0) -> tuple[Address | None, str]:
    """Read the path at `start`. Return it, None for the null path, and what follows.

    The domain is empty if only a local part was written, as in `<Postmaster>`. Raise SyntaxProblem
    (RFC 5321 sections 4.1.1.2 and 4.1.1.3).
    """
    match = _PATH.match(text, start)
    try:
        if match is None:
            return read_path(text[start:])
        path = read_mailbox(match[1], match[2]) if match[1] else None
    except ValueError as error:
        raise SyntaxProblem(str(error)) from None
    return path, text[match.end() :]


def parse_helo(text: str) -> str:
    """Return the name in EHLO, HELO or LHLO as it is recorded. Raise SyntaxProblem if it is empty.

    RFC 5321 section 4.1.4 forbids to refuse mail because of this name, so any name is taken.
    Invisible characters become question marks, and a longer name than a domain can have is cut.
    """
    name = text.strip(" ")
    if not name:
        raise SyntaxProblem("expected the name of the client")
    if not name.isprintable():
        name = "".join(char if char.isprintable() else "?" for char in name)
    return name[:_NAME_LIMIT]


def is_host_name(name: str) -> bool:
    """Return whether replies and trace fields can repeat a name in EHLO without quoting it."""
    return _HOST_NAME.fullmatch(name) is not None


def parse_parameters(text: str) -> dict[str, str | None]:
    """Read ESMTP parameters as KEYWORD -> value, None without `=`.

    Raise SyntaxProblem for a malformed or repeated one (RFC 5321 section 4.1.2).
    """
    found: dict[str, str | None] = {}
    for word in text.split(" "):
        if not word:
            continue
        match = _PARAMETER.fullmatch(word)
        if match is None:
            raise SyntaxProblem(f"malformed parameter {word[:_SHOWN]}")
        keyword = match[1].upper()
        if keyword in found:
            raise SyntaxProblem(f"parameter {keyword} given twice")
        found[keyword] = match[2]
    return found


def split_words(text: str) -> list[str]:
    """Split text at one or more SP, unlike `str.split`, which takes other white space too."""
    return [word for word in text.split(" ") if word]


def parse_original_recipient(value: str) -> str:
    """Return an ORCPT value in a form that every next host can read. Raise SyntaxProblem."""
    match = _ORCPT.fullmatch(value)
    if match is None or len(value.encode()) > _ORCPT_LIMIT:
        raise SyntaxProblem("ORCPT is an address type, a semicolon and an address in xtext")
    kind = match[1].lower()
    if kind == "utf-8":
        return value  # RFC 6533 section 3: this type has its own encoding, which is kept
    original = decode_xtext(match[2])
    if kind == "rfc822" and not original.isascii():
        # Postfix sends international addresses like this. RFC 6533 has another form for them.
        return f"utf-8;{encode_utf8_address(original)}"
    if not original.isascii():
        raise SyntaxProblem("xtext of what is not ASCII")
    return value if _XTEXT.fullmatch(match[2]) else f"{match[1]};{encode_xtext(original)}"


def decode_xtext(text: str) -> str:
    """Decode xtext (RFC 3461 section 4) into printable text. Raise SyntaxProblem.

    The text must be printable, because an encoded line end could forge a log line or a field.
    Octets outside ASCII are read as UTF-8.
    """
    decoded = xtext_octets(text).decode("utf-8", "replace")
    if not decoded.isprintable() or "\ufffd" in decoded:
        raise SyntaxProblem("xtext of what is not printable")
    return decoded


def xtext_octets(text: str) -> bytes:
    """Return the octets that xtext stands for. Raise SyntaxProblem."""
    if not _LOOSE_XTEXT.fullmatch(text):
        raise SyntaxProblem("malformed xtext")
    return _HEXCHAR.sub(lambda match: bytes([int(match[1], 16)]), text.encode())


def encode_xtext(text: str) -> str:
    """Encode text as xtext (RFC 3461 section 4), characters outside ASCII by their UTF-8."""
    return _NO_XCHAR.sub(lambda match: "".join(f"+{each:02X}" for each in match[0].encode()), text)


def encode_utf8_address(text: str) -> str:
    """Encode an address as utf-8-addr-xtext, which is ASCII (RFC 6533 section 3)."""
    return _NO_QCHAR.sub(lambda match: f"\\x{{{ord(match[0]):02X}}}", text)


def decode_base64(text: bytes) -> bytes:
    """Decode a SASL message in strict base64 (RFC 4954 section 4). Raise SyntaxProblem."""
    if not _BASE64.fullmatch(text):
        raise SyntaxProblem("malformed base64")
    return base64.b64decode(text)


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
