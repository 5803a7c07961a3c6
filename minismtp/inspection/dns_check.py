"""What the DNS says about the records that a configuration needs.

A record is right if it does what it is for, not only if its text is the same: an MX record if this
host is among the others, SPF if it permits our addresses, DKIM if it has our key, DMARC whatever
its policy is. Aliases are followed where that is allowed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import islice
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from minismtp.config import Config
from minismtp.delivery.dane import END_ENTITY, TRUST_ANCHOR, Tlsa
from minismtp.hooks.dns_zone import DnsRecord, Need
from minismtp.inspection.certificates import files_by_name
from minismtp.inspection.questions import HurriedResolver, ask_all
from minismtp.inspection.spf_permission import (
    SpfRecordError,
    UndecidedError,
    is_spf,
    permission,
    texts_of,
)
from minismtp.inspection.zone_text import data_of, quoted
from minismtp.services.certificate_file import der_certificates
from minismtp.services.public_suffix import registrable_domain
from minismtp.services.resolver import Found, Resolver, UnansweredError
from minismtp.values.address import to_ascii

Address: TypeAlias = IPv4Address | IPv6Address
State: TypeAlias = Literal["right", "missing", "wrong", "unanswered"]
STATES: Final = ("right", "missing", "wrong", "unanswered")

_MOST_FOUND: Final = 20  # records of one name that are shown
_LONGEST_FOUND: Final = 2000  # characters of one that are shown; a key of 4096 bits takes 750
# RFC 7489 section 6.4: dmarc-version = "v" *WSP "=" *WSP "DMARC1", and then a dmarc-sep
_DMARC: Final = re.compile(r"v[ \t]*=[ \t]*DMARC1[ \t]*(?:;|\Z)")
_POLICIES: Final = {"none", "quarantine", "reject"}
_STS_ID: Final = re.compile(r"v=STSv1\s*;\s*id=[A-Za-z0-9]{1,32}\s*(?:;\s*)?")
_REPORTS: Final = re.compile(r"v=TLSRPTv1\s*;.{0,100}?\brua=(?:mailto:|https://).+")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was wanted, what was found, and what this means; `note` says why it is wrong."""

    name: str
    kind: str
    wanted: str
    state: State
    found: tuple[str, ...] = ()
    note: str = ""
    need: Need = "required"

    @property
    def fails(self) -> bool:
        """Whether something has to be done: it is wrong, or is missing though it is required."""
        return self.state == "wrong" or (self.state == "missing" and self.need == "required")


@dataclass(frozen=True, slots=True)
class _Said:
    """The state of a record, with what was found and why."""

    state: State
    found: Iterable[str] = ()
    note: str = ""


_LATE: Final = _Said("unanswered", note="no time was left")


class Asked(NamedTuple):
    """A question about one thing, and the outcome if it has no answer in time."""

    question: Callable[[], Outcome]
    late: Outcome


def answered(
    asked: Sequence[Asked],
    resolver: HurriedResolver,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Outcome]:
    """Ask all at once, while the resolver has time, and return the outcomes in their order."""
    end = time.monotonic() + resolver.left
    answers = ask_all([each.question for each in asked], end, progress=progress)
    return [answer or each.late for answer, each in zip(answers, asked, strict=True)]


def chains_of(configuration: Config) -> dict[str, list[bytes]]:
    """Return the certificates of the server in DER, by its names. [] cannot be read."""
    found: dict[str, list[bytes]] = {}
    for name, path in files_by_name(configuration).items():
        try:
            found[name] = der_certificates(path)
        except (OSError, ValueError):
            found[name] = []
    return found


@dataclass(frozen=True, slots=True)
class DnsChecker:
    """Compares records with what `resolver` says.

    `addresses` are our public ones, as far as they are known. `chains` are the certificates of the
    server in DER, its own first, by its names. With a `smarthost`, other addresses send our mail.
    """

    resolver: Resolver
    addresses: Sequence[Address] = ()
    chains: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    smarthost: bool = False
    _judges: dict[str, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        judges = {
            **dict.fromkeys(("A", "AAAA"), self._address),
            "MX": self._mx,
            "TXT": self._txt,
            "CNAME": self._alias,
            "SRV": self._srv,
            "TLSA": self._tlsa,
            "PTR": self._ptr,
        }
        object.__setattr__(self, "_judges", judges)

    def asked(self, records: Iterable[DnsRecord]) -> list[Asked]:
        """Return the questions about the records, for `answered`."""
        return [Asked(partial(self.check, each), _outcome(each, _LATE)) for each in records]

    def check(self, record: DnsRecord) -> Outcome:
        """Return the outcome for one record."""
        try:
            said = self._judges[record.kind](record)
        except UnansweredError as error:
            said = _Said("unanswered", note=str(error))
        return _outcome(record, said)

    def _ask(self, name: str, kind: str) -> Found:
        return self.resolver.lookup(name, kind)

    def _records(self, name: str, kind: str) -> tuple[Any, ...]:
        return self._ask(name, kind).records

    def _address(self, record: DnsRecord) -> _Said:
        found = self._ask(record.name, record.kind)
        texts = [str(each.address) for each in found.records]
        if not record.value and not texts:
            texts = [str(each.address) for each in self._records(record.name, "AAAA")]
        if texts and found.name != record.name:
            note = f"an alias (CNAME) for {found.name}; MX must name no alias (RFC 2181 10.3)"
            return _Said("wrong", texts, note)
        if not record.value:
            return _Said("right" if texts else "missing", texts)
        wanted = ip_address(record.value)
        return _compared(texts, any(ip_address(each) == wanted for each in texts))

    def _mx(self, record: DnsRecord) -> _Said:
        wanted = _host(record.value.split()[1])
        records = self._records(record.name, "MX")
        texts = [each.to_text() for each in records]
        hosts = [_host(each.exchange.to_text()) for each in records]
        note = "it says that the domain has no mail (RFC 7505)" if hosts == [""] else ""
        return _compared(texts, wanted in hosts, note)

    def _alias(self, record: DnsRecord) -> _Said:
        """Judge a name that has to lead to this host, by an alias or by an address."""
        answers = [self._ask(record.name, kind) for kind in ("A", "AAAA")]
        target = _host(record.value)
        there = {ip_address(each.address) for answer in answers for each in answer.records}
        if not there:
            return _Said("missing")
        ours = {*self.addresses} or {
            ip_address(each.address)
            for kind in ("A", "AAAA")
            for each in self._records(target, kind)
        }
        is_right = answers[0].name == target or bool(there & ours)
        return _compared(map(str, sorted(there, key=str)), is_right, "it leads to another host")

    def _srv(self, record: DnsRecord) -> _Said:
        _, _, port, target = record.value.split()
        found = self._records(record.name, "SRV")
        fits = any(
            each.port == int(port) and _host(each.target.to_text()) == _host(target)
            for each in found
        )
        return _compared([each.to_text() for each in found], fits)

    def _ptr(self, record: DnsRecord) -> _Said:
        found = [each.target.to_text() for each in self._records(record.name, "PTR")]
        fits = _host(record.value) in map(_host, found)
        return _compared(found, fits, "ask the provider of the address to change it")

    def _tlsa(self, record: DnsRecord) -> _Said:
        host = record.name.split(".", 2)[2]
        if not any(self._ask(host, kind).secure for kind in ("A", "AAAA")):
            return _Said("right", note="not needed, because DNSSEC does not sign the zone")
        found = self._records(record.name, "TLSA")
        records = [Tlsa(each.usage, each.selector, each.mtype, each.cert) for each in found]
        chain = self.chains.get(host.lower()) or [b""]
        fits = any(_is_named(chain, each) for each in records if each.usable)
        note = "it names another certificate, so servers with DANE send no mail here"
        return _compared([each.to_text() for each in found], fits, note)

    # Texts

    def _txt(self, record: DnsRecord) -> _Said:
        texts = texts_of(self._records(record.name, "TXT"))
        if is_spf(record.value):
            return self._spf(record, texts)
        if record.value.startswith("v=DMARC1"):
            return self._dmarc(record, texts)
        if record.value.startswith("v=DKIM1"):
            return _dkim(record, texts)
        for version, pattern in (("v=STSv1", _STS_ID), ("v=TLSRPTv1", _REPORTS)):
            if record.value.startswith(version):
                return _of_version(record.value, texts, version, pattern)
        key = record.value.partition("=")[0]
        alike = [text for text in texts if text.partition("=")[0] == key]
        return _compared(map(quoted, alike), record.value in texts)

    def _spf(self, record: DnsRecord, texts: Iterable[str]) -> _Said:
        found = [text for text in texts if is_spf(text)]
        if not found:
            return _unrecognized(texts, "v=spf1 ")
        shown = [quoted(text) for text in found]
        if len(found) != 1:
            return _compared(shown, is_right=False, note="a domain must have one SPF record only")
        ask = self._records
        try:
            for address in self.addresses:
                sign = permission(record.name, found[0], address, ask)
                if sign != "+" and not self.smarthost:
                    return _Said("wrong", shown, f"it does not permit {address} ({sign})")
        except SpfRecordError as error:
            return _Said("wrong", shown, str(error))
        except UndecidedError as undecided:
            return _Said("right", shown, f"not judged: {undecided}")
        return _Said("right", shown)

    def _dmarc(self, record: DnsRecord, texts: Iterable[str]) -> _Said:
        found = [text for text in texts if _DMARC.match(text)]
        note = ""
        if not found:
            domain = record.name.removeprefix("_dmarc.")
            with suppress(ModuleNotFoundError):  # of an extra
                above = registrable_domain(domain)
                if above != domain:
                    others = texts_of(self._records(f"_dmarc.{above}", "TXT"))
                    found = [text for text in others if _DMARC.match(text)]
                    note = f"the policy is that of {above}"
        if not found:
            return _unrecognized(texts, "v=DMARC1;")
        shown = [quoted(text) for text in found]
        if len(found) != 1:
            return _compared(shown, is_right=False, note="several policies have no effect")
        tags = tags_of(found[0])
        if tags.get("p", "").lower() not in _POLICIES:
            return _Said("wrong", shown, "its policy p is not none, quarantine or reject")
        return _Said("right", shown, note)


def _is_named(chain: Sequence[bytes], tlsa: Tlsa) -> bool:
    own, *others = chain
    with suppress(ValueError):
        if tlsa.usage == END_ENTITY:
            return tlsa.names(own)
        return tlsa.usage == TRUST_ANCHOR and any(map(tlsa.names, others))
    return False


def _outcome(record: DnsRecord, said: _Said) -> Outcome:
    wanted = data_of(record) or "any public address"
    need: Need = "recommended" if record.need == "signed" else record.need
    found = tuple(map(_shortened, islice(said.found, _MOST_FOUND)))
    return Outcome(record.name, record.kind, wanted, said.state, found, said.note, need)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_FOUND else f"{text[:_LONGEST_FOUND]}\u2026"


def _dkim(record: DnsRecord, texts: Sequence[str]) -> _Said:
    shown, wanted = [quoted(text) for text in texts], tags_of(record.value)
    kind = wanted.get("k", "rsa")
    if len(texts) != 1:
        note = "several records for one selector have no effect (RFC 6376 3.6.2.2)"
        return _compared(shown, is_right=False, note=note)
    tags = tags_of(texts[0])
    if tags.get("v", "DKIM1") != "DKIM1" or tags.get("k", "rsa") != kind:
        return _Said("wrong", shown, f"it is not a record for a key of {kind}")
    if tags.get("p", "") != wanted.get("p", ""):
        note = "it has another public key" if tags.get("p") else "it says that the key is revoked"
        return _Said("wrong", shown, note)
    return _Said("right", shown)


def _of_version(wanted: str, texts: Iterable[str], version: str, pattern: re.Pattern[str]) -> _Said:
    found = [text for text in texts if text.startswith(version)]
    shown = map(quoted, found)
    if len(found) > 1:
        return _Said("wrong", shown, "several records have no effect")
    if not found:
        return _unrecognized(texts, f"{version};")
    if pattern.fullmatch(found[0]) is None:
        return _compared(shown, is_right=False)
    if tags_of(found[0]).get("id") != tags_of(wanted).get("id"):
        note = f"has another id; publish {wanted!r} if the policy changed since"
        return _Said("right", shown, note)
    return _Said("right", shown)


def _unrecognized(texts: Iterable[str], beginning: str) -> _Said:
    """Judge texts of which none is a record: some may be meant to be, or all are about others."""
    word = beginning.strip(" ;").partition("=")[2].lower()
    alike = [quoted(text) for text in texts if word in text.lower()]
    return _compared(alike, is_right=False, note=f"it has to begin with {beginning!r}")


def _compared(found: Iterable[str], is_right: bool, note: str = "") -> _Said:
    """Return the state by what was found; the note is for what is wrong."""
    texts = list(found)
    if is_right:
        return _Said("right", texts)
    return _Said("wrong", texts, note) if texts else _Said("missing")


def tags_of(text: str) -> dict[str, str]:
    """Return the tags of a list such as that of DKIM (RFC 6376 section 3.2), without blanks."""
    found: dict[str, str] = {}
    for part in text.split(";"):
        name, equals, value = part.partition("=")
        if equals:
            found.setdefault(name.strip(), "".join(value.split()))
    return found


def _host(text: str) -> str:
    return to_ascii(text.removesuffix("."))
