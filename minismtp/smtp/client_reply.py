"""Replies as a client reads them from a host that it does not trust (RFC 5321 section 4.2).

A reply that is malformed or too long is an error, and what it says becomes printable ASCII before
it reaches a log, a notification or another client.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from msgspec import Struct

from minismtp.values.reply import Defer, Reject

# Reply-code = %x32-35 %x30-35 %x30-39 ; a line of a reply goes on with "-", SP or its end
_LINE: Final = re.compile(rb"([2-5][0-5][0-9])(?:([ -])(.*))?", re.DOTALL)
# RFC 2034 section 4: no leading zeros
_ENHANCED: Final = re.compile(r"([245](?:\.(?:0|[1-9][0-9]{0,2})){2})(?: |$)")
_UNPRINTABLE: Final = re.compile(r"[^ -~]+")
_LINE_LIMIT: Final = 8192  # octets; RFC 5321 section 4.5.3.1.5 has 512
_REPLY_LIMIT: Final = 65536
_USUAL: Final = 128  # octets of a line; replies of one short line are often the same,
_REMEMBERED: Final = 1024  # so that many of them are remembered
_TEXT_LIMIT: Final = 500  # characters of a reply that are kept
SERVICE_ENDS: Final = 421  #: the host closes the connection, whatever it was asked


class ReplyError(ValueError):
    """A host sent something that is not a reply; the text continues "the host ..."."""


class HostReply(Struct, frozen=True):
    """A reply of a host: its code, and the text of each line in printable ASCII.

    `str` returns it as one line that is safe in logs and notifications.
    """

    code: int
    lines: tuple[str, ...]

    @classmethod
    def of(cls, code: int, lines: Iterable[bytes]) -> HostReply:
        """Clean the lines of a reply, which come without their codes."""
        texts = (
            line.decode("utf-8", "replace").encode("ascii", "backslashreplace") for line in lines
        )
        return cls(code, tuple(_UNPRINTABLE.sub(" ", text.decode()).strip() for text in texts))

    def __str__(self) -> str:
        enhanced = self.enhanced
        return " ".join(filter(None, (str(self.code), enhanced, self._text(enhanced))))

    @property
    def enhanced(self) -> str:
        """The enhanced status code (RFC 3463), empty where the host gives none."""
        found = _ENHANCED.match(self.lines[0])
        return found[1] if found else ""

    @property
    def text(self) -> str:
        """The text without the enhanced code, which may stand in each line (RFC 2034 section 4)."""
        return self._text(self.enhanced)

    def _text(self, enhanced: str) -> str:
        lines = [line.removeprefix(enhanced).strip() for line in self.lines]
        return " ".join(lines)[:_TEXT_LIMIT].strip()

    @property
    def accepts(self) -> bool:
        """Whether the host did what it was asked to do (2yz)."""
        return self.code // 100 == 2  # noqa: PLR2004 - RFC 5321 section 4.2.1

    @property
    def refuses(self) -> bool:
        """Whether the host refuses, for now (4yz) or permanently (5yz)."""
        return self.code // 100 in (4, 5)

    @property
    def is_final(self) -> bool:
        """Whether the same request will never be accepted (5yz)."""
        return self.code // 100 == 5  # noqa: PLR2004 - RFC 5321 section 4.2.1

    def check(self) -> None:
        """Raise Reject for 5yz, and Defer for any other reply that is not 2yz.

        The verdict has the code and the text of the reply. 421 becomes 451, because it is the
        connection to the host that ends, not the client's.
        """
        if self.accepts:
            return
        code = self.code if self.refuses and self.code != SERVICE_ENDS else 451
        fits = self.enhanced[:1] == str(code)[0]
        enhanced = self.enhanced if fits else f"{code // 100}.0.0"
        verdict = Reject if self.is_final else Defer
        raise verdict(self.text or "no reason given", code=code, enhanced=enhanced)


class ReplyReader:
    """Turns the octets of a host into replies, however they are split into packets.

    The reader's owner adds to `pending`, which are the octets that belong to no reply yet.
    """

    def __init__(self) -> None:
        self.pending = b""
        self._code = b""
        self._lines: list[bytes] = []
        self._size = 0

    def next(self) -> HostReply | None:
        """Return the next reply, None while it is incomplete. Raise ReplyError."""
        while (end := self.pending.find(b"\n", 0, _LINE_LIMIT)) >= 0:
            line, self.pending = self.pending[:end], self.pending[end + 1 :]
            if not self._lines and end < _USUAL and (reply := _single(line)):
                return reply
            match = _LINE.fullmatch(line.removesuffix(b"\r"))
            # RFC 5321 section 4.2.1: all lines of a reply have the same code.
            if match is None or (self._lines and match[1] != self._code):
                raise ReplyError(
                    f"gives no SMTP reply: {HostReply.of(0, [line]).lines[0][:_TEXT_LIMIT]}"
                )
            self._size += len(line)
            if self._size > _REPLY_LIMIT:
                raise ReplyError("does not end its reply")
            self._code = match[1]
            self._lines.append(match[3] or b"")
            if match[2] != b"-":
                reply = HostReply.of(int(self._code), self._lines)
                self._lines, self._size = [], 0
                return reply
        if len(self.pending) >= _LINE_LIMIT:
            raise ReplyError("does not end a line of its reply")
        return None


@lru_cache(_REMEMBERED)
def _single(line: bytes) -> HostReply | None:
    """Return the reply that a line is, None if more lines follow or it is malformed."""
    match = _LINE.fullmatch(line.removesuffix(b"\r"))
    if match is None or match[2] == b"-":
        return None
    return HostReply.of(int(match[1]), [match[3] or b""])


def keywords_of(reply: HostReply) -> dict[str, str]:
    """Return the keywords of a reply to EHLO in upper case, each with its parameters.

    "AUTH=LOGIN", as hosts announced it before RFC 4954, counts as "AUTH LOGIN".
    """
    keywords: dict[str, str] = {}
    for line in reply.lines[1:]:
        keyword, _, parameters = line.partition(" ")
        keyword, equals, first = keyword.upper().partition("=")
        if equals:
            parameters = f"{keywords.get(keyword, '')} {first} {parameters}".strip()
        keywords[keyword] = parameters
    return keywords
