"""SMTP replies as values, and the verdicts by which hooks send one to the client.

Every `Reply` is well formed. Its enhanced status code (RFC 3463) has the class of its reply code
(RFC 2034 section 3), so "550 4.7.1" is impossible.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from textwrap import wrap
from typing import ClassVar, Final

LINE_LIMIT: Final = 512  # octets of a reply line with its CRLF, RFC 5321 section 4.5.3.1.5

# Reply-code = %x32-35 %x30-35 %x30-39, RFC 5321 section 4.2
_CODE = re.compile(r"[2-5][0-5][0-9]")
# status-code = ("2"/"4"/"5") "." 1*3DIGIT "." 1*3DIGIT, no leading zeros, RFC 3463 section 2
_ENHANCED = re.compile(r"[245](?:\.(?:0|[1-9][0-9]{0,2})){2}")
_UNPRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of a refusal, for the operator: the true reason, and the plugin and its hook.

    The reason is empty if the reply names it. The others are empty if the server itself decided.
    """

    reason: str = ""
    plugin: str = ""
    hook: str = ""


_NOTHING: Final = Origin()


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply: a three-digit code, text with lines separated by LF, and an enhanced status code.

    `origin` is for the log. Replies that differ only in it are equal. `category` is the first
    digit: 2 done, 3 continue, 4 try again later, 5 refused (RFC 5321 section 4.2.1). `octets` is
    what `encode` returned, once it was called.

    Raise ValueError for a code outside 200-559, an enhanced code of another class, or text with
    control characters.
    """

    code: int
    text: str
    enhanced: str = ""
    origin: Origin = field(default=_NOTHING, compare=False, repr=False)
    category: int = field(init=False, compare=False, repr=False)
    octets: bytes = field(default=b"", init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "category", self.code // 100)
        _check_codes(self.code, self.enhanced)
        if not self.text.isprintable() and _UNPRINTABLE.search(self.text):
            raise ValueError(f"reply text {self.text!r} has control characters")

    def __str__(self) -> str:
        text = self.text.replace("\n", " ")
        head = f"{self.code} {self.enhanced}" if self.enhanced else str(self.code)
        return f"{head} {text}" if text else head

    def about(self, identifier: str) -> Reply:
        """Return this reply with the identifier by which the log and `minismtp explain` find it."""
        return replace(self, text=f"{self.text} (id {identifier})")

    def because(self, reason: str, *, plugin: str = "", hook: str = "") -> Reply:
        """Return this reply with its true reason, and the plugin and hook, for the log."""
        return replace(self, origin=Origin(reason, plugin, hook))

    def encode(self) -> bytes:
        r"""Return the octets to send. Every line of a longer reply repeats both codes.

        Characters outside ASCII are escaped, such as `\xe9`, because a client that did not ask for
        UTF-8 must not receive it (RFC 6531 section 3.7.4).
        """
        if not self.octets:
            text = f"{self.enhanced} {self.text}" if self.enhanced else self.text
            simple = len(text) < LINE_LIMIT - 6 and text.isascii() and "\n" not in text
            octets = f"{self.code} {text}\r\n".encode() if simple else self._encoded()
            object.__setattr__(self, "octets", octets)
        return self.octets

    def _encoded(self) -> bytes:
        code, prefix = self.code, f"{self.enhanced} " if self.enhanced else ""
        room = LINE_LIMIT - len(f"{code}-{prefix}\r\n")
        lines: list[str] = []
        for line in self.text.encode("ascii", "backslashreplace").decode().split("\n"):
            # A challenge is a single line of any length (RFC 4954 section 4).
            fits = len(line) <= room or self.category == 3  # noqa: PLR2004
            lines += [line] if fits else wrap(line, room) or [""]
        middle = "".join([f"{code}-{prefix}{line}\r\n" for line in lines[:-1]])
        return f"{middle}{code} {prefix}{lines[-1]}\r\n".encode()


@lru_cache(256)
def _check_codes(code: int, enhanced: str) -> None:
    """Raise ValueError if the codes of a reply are malformed or do not fit each other."""
    if not _CODE.fullmatch(str(code)):
        raise ValueError(f"{code} is not an SMTP reply code")
    if enhanced and not _ENHANCED.fullmatch(enhanced):
        raise ValueError(f"{enhanced!r} is not an enhanced status code")
    if enhanced and int(enhanced[0]) != code // 100:
        raise ValueError(f"enhanced code {enhanced} does not fit reply code {code}")


class Verdict(Exception):  # noqa: N818 - a verdict is an answer, not an error
    """A refusal that a hook raises. The client receives `reply`; `kind` is for metrics."""

    kind: ClassVar = "defer"

    def __init__(self, text: str, *, code: int, enhanced: str, category: int) -> None:
        self.reply = Reply(code, printable(text), enhanced)
        if self.reply.category != category:
            raise ValueError(f"{type(self).__name__} takes a {category}yz code, not {code}")
        super().__init__(str(self.reply))


class Reject(Verdict):
    """Refuse permanently, by default with 550 5.7.1."""

    kind: ClassVar = "reject"

    def __init__(self, text: str = "refused", *, code: int = 550, enhanced: str = "5.7.1") -> None:
        super().__init__(text, code=code, enhanced=enhanced, category=5)


class Defer(Verdict):
    """Refuse for now, by default with 451 4.7.1. The client tries again later."""

    def __init__(
        self, text: str = "try again later", *, code: int = 451, enhanced: str = "4.7.1"
    ) -> None:
        super().__init__(text, code=code, enhanced=enhanced, category=4)


class Disconnect(Verdict):
    """Refuse and close the connection, by default with 421 4.7.0 (RFC 5321 section 3.8)."""

    kind: ClassVar = "disconnect"

    def __init__(
        self, text: str = "closing connection", *, code: int = 421, enhanced: str = "4.7.0"
    ) -> None:
        category = 5 if code // 100 == 5 else 4  # noqa: PLR2004 - but nothing that accepts
        super().__init__(text, code=code, enhanced=enhanced, category=category)


def printable(text: str) -> str:
    """Return text for a reply, with line ends as LF and other control characters as spaces."""
    return _UNPRINTABLE.sub(" ", text.replace("\r\n", "\n"))
