"""Decide about messages by conditions in the configuration.

Patterns are those of the module `regex`, because Python's own `re` cannot be interrupted. With a
pattern such as (a+)+$ a sender could block a session, and all threads of its worker. `regex`
evaluates most such patterns fast, lets other threads run meanwhile, and has a time limit.
"""

import logging
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from datetime import timedelta
from functools import cache
from ipaddress import IPv4Network, IPv6Network
from itertools import chain
from typing import Final, Literal

import regex

from minismtp import (
    Address,
    ByteSize,
    Defer,
    Envelope,
    Finding,
    Headers,
    Message,
    PluginCheck,
    Reject,
    Session,
    findings_of,
    hookimpl,
    in_networks,
    plugin,
)

from ._options import check_time

_FIELD_NAME: Final = re.compile(r"[!-9;-~]+")
#: A domain, or an address, that was typed as a pattern.
_PLAIN_NAME: Final = re.compile(r"(?:[\w.+-]*+@)?[\w-]++(?:\.[\w-]++)++")
_log: Final = logging.getLogger(__name__)


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
        known = [each.name for each in fields(self) if each.name != "matches"]
        given = [name for name in known if getattr(self, name) not in ("", [], None)]
        if len(given) != 1:
            raise ValueError(f"expected one of {', '.join(known)} in a condition, not {len(given)}")
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


@plugin
class Rules:
    """Reject, defer, quarantine, discard or tag messages, or make findings, by your own rules.

    Each of the `rules` has a `name`, an `action` and conditions. It applies if all conditions in
    `all`, at least one in `any` and no condition in `none` are true. A condition tests one thing:
    that there is a field of the name `header`, or one whose value `matches`, with encoded words
    decoded; `sender` (empty for bounces), a `recipient` or `helo` by a pattern; the `peer` by
    networks; the size of the message, `larger` or `smaller` than a number of octets; or `login`,
    true or false, because rules also apply to users. International domains are compared with
    A-labels and with U-labels, in any spelling of the client. Patterns match anywhere in a value,
    without case, and are regular expressions of the module `regex`.

    The first rule that rejects (550 5.7.1), defers (451 4.7.1), quarantines or discards is the last
    one applied; `text` is the text of the reply, by default the name. tag adds a `field` (X-Rule)
    with the text, and removes such fields of the sender; finding makes a finding with `points`. All
    patterns together may take the time `budget` for a message. Then this plugin fails, and the
    message is deferred unless `on_error` says otherwise.
    """

    rules: list[Rule]
    budget: timedelta = timedelta(seconds=1)

    def __post_init__(self) -> None:
        if not self.rules:
            raise ValueError("rules: expected at least one [[plugins.rules]]")
        names = [rule.name for rule in self.rules]
        if len({*names}) < len(names):
            raise ValueError("rules: expected a different name for each")
        check_time("budget", self.budget)
        self._fields = {rule.field for rule in self.rules if rule.action == "tag"}

    @hookimpl
    def on_check(self, check: PluginCheck) -> None:
        """Warn of patterns that look like a whole name, but match parts of others."""
        for number, rule in enumerate(self.rules):
            for group in ("all", "any", "none"):
                for index, condition in enumerate(getattr(rule, group)):
                    for option in ("sender", "recipient", "helo"):
                        text = getattr(condition, option)
                        if _PLAIN_NAME.fullmatch(text):
                            right = re.escape(text.lstrip("@"))
                            check.warn(
                                f"rules[{number}].{group}[{index}].{option}: {text!r} matches"
                                f" anywhere, also in {text.lstrip('@')}.example; write"
                                f" '(^|[@.]){right}$'"
                            )

    @hookimpl
    def on_message(self, session: Session, envelope: Envelope, message: Message) -> None:
        """Apply the rules in their order."""
        for name in self._fields:
            message.remove(name)
        evaluation = Evaluation(session, envelope, message, self.budget.total_seconds())
        for rule in self.rules:
            if evaluation.holds(rule) and not _goes_on(rule, envelope, message):
                return


def _goes_on(rule: Rule, envelope: Envelope, message: Message) -> bool:
    """Take the action of a rule; return whether to try the next rule."""
    text = rule.text or rule.name
    _log.info("rule %r: %s", rule.name, rule.action)
    match rule.action:
        case "reject":
            raise Reject(text)
        case "defer":
            raise Defer(text)
        case "quarantine":
            message.quarantine(text)
        case "discard":
            message.discard(text)
        case "tag":
            message.prepend(rule.field, text)
        case "finding":
            findings_of(envelope).append(Finding("rules", rule.name, rule.points, text))
    return rule.action in ("tag", "finding")


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
        """Return whether a rule applies. Raise TimeoutError when no time is left."""
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
            return in_networks(self._session.peer, condition.peer)
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
