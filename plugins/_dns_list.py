"""Lists in the DNS, and the meaning of their answers (RFC 5782)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Literal

from minismtp import Address, RemoteError

from ._dns import can_be_asked

_CODE = re.compile(r"127(?:\.[0-9]{1,3}(?:-[0-9]{1,3})?){3}")
_CODES = IPv4Network("127.0.0.0/8")
_ERRORS = IPv4Network("127.255.255.0/24")
_TEST_POINTS = {"address": ("2.0.0.127", "1.0.0.127"), "domain": ("test", "invalid")}


@dataclass
class DnsList:
    """A list: its `zone`, and the `points` of its entries, below 0 if they speak for the client.

    `codes` are the answers that count, such as 127.0.0.2-11; by default all do. `about` is what to
    look up: the client's address, or the domain of the sender or of HELO.
    """

    zone: str
    points: float = 1.0
    codes: list[str] = field(default_factory=list)
    about: list[Literal["address", "sender", "helo"]] = field(default_factory=lambda: ["address"])

    def __post_init__(self) -> None:
        self.zone = Address("", self.zone.strip(".")).ascii_domain
        if "." not in self.zone or not can_be_asked(self.zone):
            raise ValueError("zone: expected the domain of a list, such as dnsbl.example.org")
        if not self.points:
            raise ValueError("points: expected more or less than 0, else the list has no effect")
        if not self.about:
            raise ValueError('about: expected some of "address", "sender", "helo"')
        self._ranges = [_ranges(code) for code in self.codes]

    @property
    def test_points(self) -> tuple[str, str]:
        """The test entries: one in every list, and one in no list (RFC 5782 section 5)."""
        return _TEST_POINTS["address" if "address" in self.about else "domain"]

    def check(self, answers: Iterable[str]) -> None:
        """Raise RemoteError for an answer that is not a code, or that is an error."""
        for answer in map(IPv4Address, answers):
            if answer not in _CODES or answer in _ERRORS:
                raise RemoteError(f"{self.zone} answers {answer}, which is an error")

    def counts(self, answer: str) -> bool:
        """Return whether an answer is one of the codes."""
        octets = [int(part) for part in answer.split(".")]
        return not self._ranges or any(
            all(low <= octet <= high for octet, (low, high) in zip(octets, ranges, strict=True))
            for ranges in self._ranges
        )


def _ranges(code: str) -> list[tuple[int, int]]:
    """Read 127.0.0.2-11. Raise ValueError."""
    parts = [part.partition("-") for part in code.split(".")] if _CODE.fullmatch(code) else []
    ranges = [(int(low), int(high or low)) for low, _, high in parts]
    if not parts or any(not low <= high < 256 for low, high in ranges):  # noqa: PLR2004 - an octet
        raise ValueError(f"codes: expected answers such as 127.0.0.2-11, not {code!r}")
    return ranges
