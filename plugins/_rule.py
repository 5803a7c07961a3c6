"""The conditions of rules, and their evaluation for a message."""

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_address
from itertools import chain
from typing import Final, Literal

import regex

from minismtp import Address, ByteSize, Envelope, Headers, Message, Session

_FIELD_NAME: Final = re.compile(r"[!-9;-~]+")


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One test: `header`, `sender`, `recipient`, `helo`, `peer`, `larger`, `smaller` or `login`."""

    header: str = ""
    matches: str = ""
    sender: str = ""
    recipient: str = ""
    helo: str = ""
    peer: list[IPv4Network | IPv6Network] = field(default_factory=list)
    larger: ByteSize | None = None
    smaller: ByteSize | None = None
    login: bool | None = None

    def __post_init__(self) -> None:
        texts = ("header", "sender", "recipient", "helo", "peer")
        given = [name for name in texts if getattr(self, name)]
        values = ("larger", "smaller", "login")
        given += [name for name in values if getattr(self, name) is not None]
        if len(given) != 1:
            known = ", ".join((*texts, *values))
            raise ValueError(f"expected one of {known} in a condition, not {len(given)}")
        if self.matches and not self.header:
            raise ValueError("matches: expected header with it")
        if self.header and not _FIELD_NAME.fullmatch(self.header):
            raise ValueError(f"header: {self.header!r} is not the name of a field")
        for option in ("matches", "sender", "recipient", "helo"):
            _compiled(option, getattr(self, option))


@dataclass(frozen=True, kw_only=True)
class Rule:
    """An `action` for messages, with conditions of which all, any or none must be true."""

    name: str
    action: Literal["reject", "defer", "quarantine", "discard", "tag", "finding"]
    all: list[Condition] = field(default_factory=list)
    any: list[Condition] = field(default_factory=list)
    none: list[Condition] = field(default_factory=list)
    text: str = ""
    field: str = "X-Rule"
    points: float = 0.0

    def __post_init__(self) -> None:
        for option in ("name", "text"):
            if not getattr(self, option).isprintable():
                raise ValueError(f"{option}: expected one line of text")
        if not self.name:
            raise ValueError("name: expected a name for the rule")
        if not (self.all or self.any or self.none):
            raise ValueError("all: expected conditions here, in any, or in none")
        if not _FIELD_NAME.fullmatch(self.field):
            raise ValueError(f"field: {self.field!r} is not the name of a field")
        if (self.action == "finding") != bool(self.points):
            raise ValueError("points: expected with the action finding, and only there")


class Evaluation:
    """A message to which rules are applied."""

    def __init__(
        self, session: Session, envelope: Envelope, message: Message, seconds: float
    ) -> None:
        self._session = session
        self._envelope = envelope
        self._headers = message.headers  # without the fields that rules add
        self._size = message.content.size
        self._due = time.monotonic() + seconds
        self._values: dict[str, list[str]] = {}
        self._rule = ""

    def holds(self, rule: Rule) -> bool:
        self._rule = rule.name
        return (
            all(map(self._is_true, rule.all))
            and (not rule.any or any(map(self._is_true, rule.any)))
            and not any(map(self._is_true, rule.none))
        )

    def _is_true(self, condition: Condition) -> bool:
        if condition.header and not condition.matches:
            return condition.header in self._headers
        if condition.header:
            return self._finds(condition.matches, self._decoded(condition.header))
        if condition.sender:
            return self._finds(condition.sender, _spellings(self._envelope.reverse_path))
        if condition.recipient:
            addresses = (each.address for each in self._envelope.recipients)
            return self._finds(condition.recipient, chain.from_iterable(map(_spellings, addresses)))
        if condition.helo:
            return self._finds(condition.helo, [self._session.helo])
        if condition.peer:
            return _is_in(self._session.peer, condition.peer)
        if condition.login is not None:
            return condition.login == (self._session.login is not None)
        if condition.larger is not None:
            return self._size > condition.larger
        return condition.smaller is not None and self._size < condition.smaller

    def _decoded(self, name: str) -> Iterable[str]:
        """Return the decoded values of all fields of a name."""
        if name not in self._values:
            raw = self._headers.raw_all(name)
            self._values[name] = [Headers([each]).decoded(name) for each in raw]
        return self._values[name]

    def _finds(self, pattern: str, texts: Iterable[str]) -> bool:
        compiled = _compiled("", pattern)
        for text in texts:
            left = self._due - time.monotonic()
            try:
                if left <= 0:
                    raise TimeoutError  # noqa: TRY301 - as `search` does
                if compiled.search(text, timeout=left):
                    return True
            except TimeoutError:
                problem = f"the patterns take too long, at last in rule {self._rule!r}"
                raise TimeoutError(problem) from None
        return False


def _spellings(address: Address | None) -> list[str]:
    """Return an address with its domain unchanged, with A-labels, and with U-labels."""
    if address is None:
        return [""]
    forms = (address.domain, address.ascii_domain, address.unicode_domain)
    return [str(Address(address.local, form)) for form in dict.fromkeys(forms)]


@cache  # those of the configuration
def _compiled(option: str, pattern: str) -> regex.Pattern[str]:
    """Compile a pattern. Raise ValueError for the option."""
    try:
        return regex.compile(pattern, regex.IGNORECASE)
    except regex.error as error:
        raise ValueError(f"{option}: expected a regular expression: {error}") from error


def _is_in(peer: str, networks: list[IPv4Network | IPv6Network]) -> bool:
    if peer == "unix":
        return False
    address = ip_address(peer)
    return any(address in network for network in networks)
