"""check_host() of RFC 7208: whether an address may send for a domain.

The limits of section 4.6.4 (ten terms that ask the DNS, two of them in vain, and ten hosts of an MX
or PTR) still allow more than a hundred questions. So a check of more than 40 questions, or beyond
its budget (`DnsBudget`), is a permerror too, and so is a record above 4 KiB or 300 terms.
"""

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from ipaddress import IPv4Address, ip_address
from typing import NamedTuple, TypeAlias

from minismtp import UnansweredError

from ._dns import IpAddress, TooManyQuestionsError, is_domain
from ._spf_record import (
    RECORDS,
    MacroString,
    Mechanism,
    Record,
    RecordError,
    absence_in,
    expand,
    is_record,
    parse_macros,
)

#: Returns the records of a name and type as text or raises UnansweredError.
Ask: TypeAlias = Callable[[str, str], Sequence[str]]

_TERMS, _VOID = 10, 2  # that ask the DNS, and of them, that find nothing
_HOSTS = 10  # of an MX, or names of an address
_QUESTIONS = 40  # in all: ten terms with ten hosts each would make more than a hundred
_LONGEST_NAME, _LONGEST_EXPLANATION = 253, 1000  # characters; a reply has room for fewer


class Sender(NamedTuple):
    """The sender as macros see it. `receiver` is this server's name."""

    address: IpAddress
    local: str
    domain: str
    helo: str
    receiver: str = "unknown"

    @property
    def dotted(self) -> str:
        """The address for names in the DNS, 192.0.2.1 or nibbles (RFC 7208 section 7.3)."""
        if isinstance(self.address, IPv4Address):
            return str(self.address)
        return ".".join(self.address.exploded.replace(":", "").upper())


class Outcome(NamedTuple):
    """The `result` of RFC 7208 section 2.6, and the reason: a mechanism or an error.

    `explanation` is the domain's own text about a failure.
    """

    result: str
    reason: str = ""
    explanation: str = ""


def check_host(sender: Sender, ask: Ask) -> Outcome:
    """Evaluate the record of the sender's domain; no record makes this raise."""
    try:
        return _Evaluation(sender, ask).outcome()
    except (RecordError, TooManyQuestionsError) as error:
        return Outcome("permerror", str(error))
    except UnansweredError as error:
        return Outcome("temperror", str(error))


class _Found(NamedTuple):
    """The deciding mechanism, or None for the default, in the record of a domain."""

    result: str
    mechanism: Mechanism | None
    record: Record
    domain: str


class _Evaluation:
    """One check, with its counts."""

    def __init__(self, sender: Sender, ask: Ask) -> None:
        self._sender = sender
        self._answers = ask
        self._questions = self._terms = self._void = 0
        self._kind = "A" if sender.address.version == 4 else "AAAA"  # noqa: PLR2004
        self._texts: Sequence[str] = ()  # of the record that was looked for last
        self._confirmed: dict[str, bool] = {}  # names that PTR records give the address

    def outcome(self) -> Outcome:
        found = self._evaluate(self._sender.domain)
        if found is None:
            return Outcome("none", f"{self._sender.domain} {absence_in(self._texts)}")
        reason = f"{found.domain}: {found.mechanism.text if found.mechanism else 'no match'}"
        explanation = self._explanation(found) if found.result == "fail" else ""
        return Outcome(found.result, reason, explanation)

    def _evaluate(self, domain: str) -> _Found | None:
        """Return the decision of a domain's record; None without a record."""
        record = self._record(domain)
        while record is not None:
            for mechanism in record.mechanisms:
                if self._matches(mechanism, domain):
                    return _Found(mechanism.result, mechanism, record, domain)
            if record.redirect is None:
                return _Found("neutral", None, record, domain)
            self._count()
            domain = self._name(record.redirect, domain)
            record = self._record(domain)
            if record is None:  # RFC 7208 section 6.1
                raise RecordError(f"redirect leads to {domain}, which {absence_in(self._texts)}")
        return None

    def _record(self, domain: str) -> Record | None:
        self._texts = ()
        # RFC 7208 section 4.3: a name that is no whole domain has no policy.
        if "." not in domain or not is_domain(domain):
            return None
        self._texts = self._ask(domain, "TXT")
        records = [text for text in self._texts if is_record(text)]
        if len(records) > 1:
            raise RecordError(f"{domain} has {len(records)} SPF records")
        try:
            return RECORDS.get(records[0]) if records else None
        except RecordError as error:
            raise RecordError(f"record of {domain}: {error}") from None

    def _matches(self, mechanism: Mechanism, domain: str) -> bool:
        address = self._sender.address
        if mechanism.network is not None:
            return address in mechanism.network
        if mechanism.kind == "all":
            return True
        self._count()
        target = self._name(mechanism.domain, domain) if mechanism.domain else domain
        match mechanism.kind:
            case "include":
                found = self._evaluate(target)
                if found is None:  # RFC 7208 section 5.2
                    raise RecordError(f"include leads to {target}, which {absence_in(self._texts)}")
                return found.result == "pass"
            case "exists":
                return bool(self._of_term(target, "A"))
            case "ptr":
                return any(map(self._is_confirmed, self._names_in(target)))
            case "mx":
                hosts = self._of_term(target, "MX")
                if len(hosts) > _HOSTS:
                    raise RecordError(f"{target} has more than {_HOSTS} MX records")
                return any(self._has(self._ask(host, self._kind), mechanism) for host in hosts)
            case _:
                return self._has(self._of_term(target, self._kind), mechanism)

    def _has(self, addresses: Sequence[str], mechanism: Mechanism) -> bool:
        """Return whether the sender's address has the same first bits as one of these."""
        address = self._sender.address
        length = mechanism.ip4_length if self._kind == "A" else mechanism.ip6_length
        shift = address.max_prefixlen - length
        return any(int(ip_address(text)) >> shift == int(address) >> shift for text in addresses)

    def _ask(self, name: str, kind: str) -> Sequence[str]:
        self._questions += 1
        if self._questions > _QUESTIONS:
            raise RecordError(f"more than {_QUESTIONS} questions to the DNS")
        return self._answers(name, kind)

    @cached_property
    def _pointers(self) -> list[str]:
        names = self._ask_for_names(self._sender.address.reverse_pointer, "PTR")
        return [name.lower().removesuffix(".") for name in names[:_HOSTS]]

    def _names_in(self, domain: str) -> list[str]:
        """Return the names in a domain that PTR records give the address (section 5.5)."""
        return [name for name in self._pointers if f".{name}".endswith(f".{domain.lower()}")]

    def _is_confirmed(self, name: str) -> bool:
        """Return whether a name has the address."""
        if name not in self._confirmed:
            texts = self._ask_for_names(name, self._kind)
            self._confirmed[name] = self._sender.address in map(ip_address, texts)
        return self._confirmed[name]

    def _best_name(self, domain: str) -> str:
        """Return the domain, else a name below it, else any, else "unknown" (section 7.3)."""
        below = sorted(self._names_in(domain), key=lambda name: name != domain.lower())
        return next(filter(self._is_confirmed, [*below, *self._pointers]), "unknown")

    def _ask_for_names(self, name: str, kind: str) -> Sequence[str]:
        try:
            return self._ask(name, kind)
        except UnansweredError:  # RFC 7208 section 5.5: the name does not match
            return ()

    def _count(self) -> None:
        self._terms += 1
        if self._terms > _TERMS:
            raise RecordError(f"more than {_TERMS} terms ask the DNS")

    def _of_term(self, name: str, kind: str) -> Sequence[str]:
        """Ask a term's own question. Questions for the hosts of an MX or PTR are not counted.

        Else a domain whose hosts lack IPv6 would be in error for each IPv6 sender.
        """
        answers = self._ask(name, kind)
        if not answers:
            self._void += 1
            if self._void > _VOID:
                raise RecordError(f"more than {_VOID} terms ask the DNS in vain")
        return answers

    def _name(self, pieces: MacroString, domain: str) -> str:
        name = expand(pieces, lambda letter: self._value(letter, domain)).removesuffix(".")
        if len(name) > _LONGEST_NAME:  # labels go from the left, RFC 7208 section 7.3
            name = name[-_LONGEST_NAME - 1 :].partition(".")[2]
        return name

    def _value(self, letter: str, domain: str) -> str:
        """Return the value of a macro (RFC 7208 section 7.2)."""
        sender = self._sender
        values: dict[str, Callable[[], str]] = {
            "s": lambda: f"{sender.local}@{sender.domain}",
            "l": lambda: sender.local,
            "o": lambda: sender.domain,
            "d": lambda: domain,
            "i": lambda: sender.dotted,
            "p": lambda: self._best_name(domain),
            "v": lambda: "in-addr" if self._kind == "A" else "ip6",
            "h": lambda: sender.helo,
            "c": lambda: str(sender.address),
            "r": lambda: sender.receiver,
            "t": lambda: str(int(time.time())),
        }
        return values[letter]()

    def _explanation(self, found: _Found) -> str:
        """Return the text of exp=, "" after any error (RFC 7208 section 6.2)."""
        if found.record.explanation is None:
            return ""
        try:
            texts = self._ask(self._name(found.record.explanation, found.domain), "TXT")
            if len(texts) != 1 or len(texts[0]) > _LONGEST_EXPLANATION:
                return ""
            pieces = parse_macros(texts[0], explaining=True)
        except (UnansweredError, RecordError):
            return ""
        return expand(pieces, lambda letter: self._value(letter, found.domain))
