"""Look up clients in lists in the DNS (DNSBL, RFC 5782)."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from typing import Final, Literal

from minismtp import (
    Address,
    Breaker,
    Envelope,
    PluginCheck,
    Reject,
    RemoteError,
    Session,
    StashKey,
    UnansweredError,
    hookimpl,
    plugin,
    start_thread,
)

from ._checks import ClientCheck, DnsCheck, note
from ._dns import DnsBudget, IpAddress, Questions, can_be_asked, is_domain, reversed_labels

_CODE = re.compile(r"127(?:\.[0-9]{1,3}(?:-[0-9]{1,3})?){3}")
_CODES = IPv4Network("127.0.0.0/8")
_ERRORS = IPv4Network("127.255.255.0/24")
_TEST_POINTS = {"address": ("2.0.0.127", "1.0.0.127"), "domain": ("test", "invalid")}
_LONGEST_REASON = 200  # characters
_SHARE = 0.5  # of the remaining time for one question, so a slow list leaves time for the others


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


@dataclass(frozen=True, slots=True)
class Listing:
    """An entry of `subject`, an address or a domain, in the list `zone`, with its codes."""

    zone: str
    subject: str
    points: float
    codes: tuple[str, ...]


#: On an envelope: the entries of its client and its domains.
LISTINGS: Final[StashKey[list[Listing]]] = StashKey()


@plugin
class Dnsbl(ClientCheck, DnsCheck):
    """Look up the client's address, the sender's domain and the name in HELO in `lists` at MAIL.

    A client is refused with 550 5.7.1 if its lists have `reject_at` points together. The reply
    names the lists, and with `reasons` includes their text. 0 never refuses, and leaves that to
    filters that add up findings. Each entry is a finding with its points, and is under `LISTINGS`
    in the envelope's stash.

    Lists are asked one after the other, those that speak for a client first, until there are enough
    points to refuse, because lists limit the number of questions. `patience` is for all lists, and
    each gets at most half of the remaining time. A list fails if it does not answer, or answers
    with an error (127.255.255.0/24: too many questions, or through a public resolver) or with an
    invalid code. If the other lists do not refuse the client, this is a failure of the plugin, for
    `on_error`. After five failures in a row a list is not asked for 30 seconds.

    Sessions with a login are not checked, nor are clients in `networks`: by default loopback,
    private and link-local addresses, which your list replaces.
    """

    lists: list[DnsList]
    reject_at: float = 1.0
    reasons: bool = False
    patience: timedelta = timedelta(seconds=5)

    def __post_init__(self) -> None:
        if not self.lists:
            raise ValueError("lists: expected at least one")
        if self.reject_at < 0:
            raise ValueError("reject_at: expected points above 0, or 0 to refuse no client")
        super().__post_init__()
        self._ordered = sorted(self.lists, key=lambda each: each.points > 0)
        self._breakers = {each.zone: Breaker(each.zone) for each in self.lists}

    @hookimpl
    def on_check(self, check: PluginCheck) -> None:
        """For the command `check`, try the lists, all at once."""
        if check.role != "check":
            return
        problems: dict[int, str] = {}

        def ask(number: int) -> None:
            problems[number] = self._problem(self.lists[number])

        asked = range(len(self.lists))
        for thread in [start_thread("list", partial(ask, each), once=True) for each in asked]:
            thread.join()
        for number, problem in sorted(problems.items()):
            if problem:
                check.warn(f"lists[{number}]: {self.lists[number].zone} {problem}")

    @hookimpl
    def on_mail(self, session: Session, envelope: Envelope) -> None:
        """Look up the client, and refuse it if its lists have enough points."""
        address = self.address_of(session)
        if address is None:
            return
        found: list[Listing] = []
        envelope.stash[LISTINGS] = found
        problems: list[str] = []
        # Enough for all lists that the administrator named, and their reasons.
        budget = DnsBudget(questions=4 * len(self.lists))
        questions = Questions(self._resolver, self.patience, budget)
        for each, subject, labels in self._lookups(session, envelope, address):
            try:
                answers = self._answers(each, labels, questions)
            except (RemoteError, UnansweredError) as error:
                problems.append(str(error))
                continue
            if codes := tuple(filter(each.counts, answers)):
                found.append(Listing(each.zone, subject, each.points, codes))
                text = f"{subject} is {', '.join(codes)}"
                note(envelope, "dnsbl", each.zone, each.points, text)
            if self.reject_at and sum(listing.points for listing in found) >= self.reject_at:
                reason = self._reason(labels, each, questions) if self.reasons else ""
                raise Reject(_refusal(found) + reason)
        if problems:
            raise RemoteError("; ".join(problems))

    def _lookups(
        self, session: Session, envelope: Envelope, address: IpAddress
    ) -> Iterator[tuple[DnsList, str, str]]:
        """Yield each question once: a list, its subject, and the name to look up."""
        subject, labels = str(address), reversed_labels(address)
        for each in self._ordered:
            if "address" in each.about:
                yield each, subject, labels
            domains = {}
            if "sender" in each.about and envelope.reverse_path:
                domains[envelope.reverse_path.ascii_domain] = True
            if "helo" in each.about:
                domains[Address("", session.helo).ascii_domain] = True
            for domain in filter(_is_domain, domains):
                yield each, domain, domain

    def _answers(self, each: DnsList, labels: str, questions: Questions) -> Sequence[str]:
        """Return what a list answers. Raise RemoteError and UnansweredError."""
        with self._breakers[each.zone].watch():
            answers = questions.ask(f"{labels}.{each.zone}", "A", _SHARE)
            each.check(answers)
        return answers

    def _reason(self, labels: str, each: DnsList, questions: Questions) -> str:
        try:
            texts = questions.ask(f"{labels}.{each.zone}", "TXT", _SHARE)
        except UnansweredError:
            return ""
        return f" ({texts[0][:_LONGEST_REASON]})" if texts else ""

    def _problem(self, each: DnsList) -> str:
        """Return the problem of a list, by the entries that every list has for tests, or ""."""
        questions = Questions(self._resolver, self.patience)
        listed, absent = each.test_points
        try:
            if not self._answers(each, listed, questions):
                return f"does not list {listed}, as every list does: is it one?"
            if self._answers(each, absent, questions):
                return f"lists {absent}, as no list does, so it may list every client"
        except (RemoteError, UnansweredError) as error:
            return f"cannot be asked: {error}"
        return ""


def _is_domain(text: str) -> bool:
    """Return whether this is a name, because lists of domains punish questions for addresses."""
    return "." in text and is_domain(text) and not text.rpartition(".")[2].isdigit()


def _refusal(found: list[Listing]) -> str:
    against = [listing for listing in found if listing.points > 0]
    return "; ".join(f"{listing.subject} is listed by {listing.zone}" for listing in against)
