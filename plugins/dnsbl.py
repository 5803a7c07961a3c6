"""Ask lists in the DNS for what they know of a client (DNSBL, RFC 5782)."""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Final, Literal

from minismtp import (
    Address,
    Breaker,
    Envelope,
    Finding,
    Reject,
    RemoteError,
    Resolver,
    ServerInfo,
    Session,
    StashKey,
    UnansweredError,
    findings_of,
    hookimpl,
    plugin,
)

from ._dns import (
    IpAddress,
    Questions,
    address_to_check,
    can_be_asked,
    local_networks,
    reversed_labels,
)

_log: Final = logging.getLogger(__name__)
_LONGEST_REASON = 200  # characters
_SHARE = 0.5  # of the time that is left, for one question: a slow list leaves some to the others
_CODE = re.compile(r"127(?:\.[0-9]{1,3}(?:-[0-9]{1,3})?){3}")
_IS_CODE = IPv4Network("127.0.0.0/8")
_IS_ERROR = IPv4Network("127.255.255.0/24")
# RFC 5782 section 5: what every list has, and what none has
_TEST_POINTS = {"address": ("2.0.0.127", "1.0.0.127"), "domain": ("test", "invalid")}


@dataclass
class DnsList:
    """One list: its `zone`, and the `points` of being in it; below 0 they speak for the client.

    `codes` are the answers that count, such as 127.0.0.2-11; with none all do. `about` says what is
    looked up there: the client's address, or the domain of the sender or of HELO.
    """

    zone: str
    points: float = 1.0
    codes: list[str] = field(default_factory=list)
    about: list[Literal["address", "sender", "helo"]] = field(default_factory=lambda: ["address"])

    def __post_init__(self) -> None:
        self.zone = self.zone.lower().strip(".")
        if "." not in self.zone or not can_be_asked(self.zone):
            raise ValueError("zone: expected the domain of a list, such as dnsbl.example.org")
        if not self.points:
            raise ValueError("points: expected more or less than 0, as the list would say nothing")
        if not self.about:
            raise ValueError('about: expected some of "address", "sender", "helo"')
        self._ranges = [_ranges(code) for code in self.codes]

    def counts(self, answer: str) -> bool:
        """Whether an answer is one of the codes."""
        octets = [int(part) for part in answer.split(".")]
        return not self._ranges or any(
            all(low <= octet <= high for octet, (low, high) in zip(octets, ranges, strict=True))
            for ranges in self._ranges
        )


@dataclass(frozen=True, slots=True)
class Listing:
    """That `subject`, an address or a domain, is in the list `zone`, with these codes."""

    zone: str
    subject: str
    points: float
    codes: tuple[str, ...]


#: On an envelope: where its client and its domains are listed.
LISTINGS: Final[StashKey[list[Listing]]] = StashKey()


@plugin
class Dnsbl:
    """Ask `lists` at MAIL for the client's address, the sender's domain, and the name in HELO.

    A client whose lists have `reject_at` points together is refused with 550 5.7.1, which names
    them, and with `reasons` says what they say about it; 0 leaves all to filters that add up. Each
    listing is a finding with its points, and stands under `LISTINGS` in the envelope's stash.

    Lists are asked one after another, those that speak for a client first, and no more of them than
    it takes to refuse: most answers come from the cache, and lists count what they are asked. All
    have `patience` together, each at most half of what is left. A list that does not answer, or
    answers with an error (127.255.255.0/24: you ask too much, or through a public resolver) or what
    is no code, lists nobody: when the others did not refuse the client either, that is a failure of
    this plugin, for `on_error`. After five failures in a row a list is left alone for 30 seconds.

    Sessions with a login are left alone, and so are `networks`, by default loopback, private and
    link-local ones; yours take the place of the default.
    """

    lists: list[DnsList]
    reject_at: float = 1.0
    reasons: bool = False
    networks: list[IPv4Network | IPv6Network] = field(default_factory=local_networks)
    patience: timedelta = timedelta(seconds=5)

    def __post_init__(self) -> None:
        if not self.lists:
            raise ValueError("lists: expected at least one")
        if self.reject_at < 0:
            raise ValueError("reject_at: expected points above 0, or 0 to refuse nobody")
        if not self.patience:
            raise ValueError("patience: expected more than no time at all")
        self._ordered = sorted(self.lists, key=lambda each: each.points > 0)
        self._breakers = {each.zone: Breaker(each.zone) for each in self.lists}

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Know whom to ask; the command `check` tries the lists."""
        self._resolver: Resolver = server.resolver
        if server.role == "check":
            for each in self.lists:
                if problem := self._problem(each):
                    _log.warning("lists: %s %s", each.zone, problem)

    @hookimpl
    def on_mail(self, session: Session, envelope: Envelope) -> None:
        """Look everything up, and refuse whom the lists have points enough against."""
        address = address_to_check(session, self.networks)
        if address is None:
            return
        found: list[Listing] = []
        envelope.stash[LISTINGS] = found
        problems: list[str] = []
        questions = Questions(self._resolver, self.patience)
        for each, subject, labels in self._lookups(session, envelope, address):
            try:
                answers = self._answers(each, labels, questions)
            except (RemoteError, UnansweredError) as error:
                problems.append(str(error))
                continue
            if codes := tuple(filter(each.counts, answers)):
                found.append(Listing(each.zone, subject, each.points, codes))
                text = f"{subject} is {', '.join(codes)}"
                findings_of(envelope).append(Finding("dnsbl", each.zone, each.points, text))
            if self.reject_at and sum(listing.points for listing in found) >= self.reject_at:
                reason = self._reason(labels, each, questions) if self.reasons else ""
                raise Reject(_refusal(found) + reason)
        if problems:
            raise RemoteError("; ".join(problems))

    def _lookups(
        self, session: Session, envelope: Envelope, address: IpAddress
    ) -> Iterator[tuple[DnsList, str, str]]:
        """Give what to look up, each once: a list, of whom it is to speak, and how it is asked."""
        sender = envelope.reverse_path.ascii_domain if envelope.reverse_path else ""
        domains = {"sender": sender, "helo": Address("", session.helo).ascii_domain}
        for each in self._ordered:
            if "address" in each.about:
                yield each, str(address), reversed_labels(address)
            subjects = dict.fromkeys(domains[what] for what in each.about if what != "address")
            for domain in filter(_is_domain, subjects):
                yield each, domain, domain

    def _answers(self, each: DnsList, labels: str, questions: Questions) -> Sequence[str]:
        """Give what a list answers; raises RemoteError and UnansweredError."""
        with self._breakers[each.zone].watch():
            answers = questions.ask(f"{labels}.{each.zone}", "A", _SHARE)
            for answer in map(IPv4Address, answers):
                if answer not in _IS_CODE or answer in _IS_ERROR:
                    raise RemoteError(f"{each.zone} answers {answer}, which is an error")
        return answers

    def _reason(self, labels: str, each: DnsList, questions: Questions) -> str:
        try:
            texts = questions.ask(f"{labels}.{each.zone}", "TXT", _SHARE)
        except UnansweredError:
            return ""
        return f" ({texts[0][:_LONGEST_REASON]})" if texts else ""

    def _problem(self, each: DnsList) -> str:
        """Say what is wrong with a list, by the entries that all have for trying them."""
        questions = Questions(self._resolver, self.patience)
        listed, absent = _TEST_POINTS["address" if "address" in each.about else "domain"]
        try:
            if not self._answers(each, listed, questions):
                return f"does not list {listed}, as every list does: is it one?"
            if self._answers(each, absent, questions):
                return f"lists {absent}, as no list does: everybody would be in it"
        except (RemoteError, UnansweredError) as error:
            return f"cannot be asked: {error}"
        return ""


def _is_domain(text: str) -> bool:
    """Whether this is a name and no address: lists of domains punish who asks for addresses."""
    return "." in text and text[0] != "[" and not text.rpartition(".")[2].isdigit()


def _refusal(found: list[Listing]) -> str:
    against = [listing for listing in found if listing.points > 0]
    return "; ".join(f"{listing.subject} is listed by {listing.zone}" for listing in against)


def _ranges(code: str) -> list[tuple[int, int]]:
    """Read 127.0.0.2-11; raises ValueError."""
    parts = [part.partition("-") for part in code.split(".")] if _CODE.fullmatch(code) else []
    ranges = [(int(low), int(high or low)) for low, _, high in parts]
    if not parts or any(not low <= high < 256 for low, high in ranges):  # noqa: PLR2004 - an octet
        raise ValueError(f"codes: expected answers such as 127.0.0.2-11, not {code!r}")
    return ranges
