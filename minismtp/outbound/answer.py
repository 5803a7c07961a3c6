"""What a host said, and what it means for a message (layer 6; RFC 5321 section 4.2)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from minismtp.outbound.destination import UnreachableError
from minismtp.outbound.security import Security

_ENHANCED: Final = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: |$)")
_UNPRINTABLE: Final = re.compile(r"[^ -~]+")
_TEXT_LIMIT: Final = 500  # characters of a reply that are kept

State: TypeAlias = Literal["delivered", "queued", "failed"]


class HostError(UnreachableError):
    """A host cannot be used now; another one may. The reply says why."""


class TlsError(HostError):
    """A handshake does not come about, or not with whom it should; `otherwise` may be tried."""

    def __init__(self, reply: str, otherwise: Security | None) -> None:
        super().__init__(reply)
        self.otherwise = otherwise


@dataclass(frozen=True, slots=True)
class HostReply:
    """A reply of a host; `str` gives it as one line that is safe in logs and notifications."""

    code: int
    text: str

    @classmethod
    def of(cls, code: int, lines: list[bytes]) -> HostReply:
        """Join the texts of a reply's lines, each without its code."""
        texts = [
            # It comes from a stranger: no controls, and no UTF-8 where ASCII is expected.
            _UNPRINTABLE.sub(
                " ", line.decode("utf-8", "replace").encode("ascii", "backslashreplace").decode()
            ).strip()
            for line in lines
        ]
        first = _ENHANCED.match(texts[0])
        if first:  # stands in each line (RFC 2034 section 4)
            texts[1:] = [text.removeprefix(first[1]).strip() for text in texts[1:]]
        return cls(code, " ".join(texts)[:_TEXT_LIMIT].strip())

    def __str__(self) -> str:
        return f"{self.code} {self.text}".rstrip()

    @property
    def accepts(self) -> bool:
        """Whether the host has done what it was asked for."""
        return self.code // 100 == 2  # noqa: PLR2004 - 2yz, RFC 5321 section 4.2.1

    @property
    def is_final(self) -> bool:
        """Whether the same request will never be accepted."""
        return self.code // 100 == 5  # noqa: PLR2004 - 5yz

    @property
    def answer(self) -> Answer:
        """What it means for a recipient that was not accepted before."""
        if self.accepts:
            return Answer("delivered", str(self))
        return Answer("failed" if self.is_final else "queued", str(self))


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one recipient, and the reply that says so.

    `reports` tells that the host has taken over the duty to report success (RFC 3461 section 5),
    `content_refused` that it would have taken mail for this recipient, but not this one.
    """

    state: State
    reply: str
    reports: bool = False
    content_refused: bool = False
