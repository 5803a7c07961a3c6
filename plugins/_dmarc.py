"""Records of DMARC, and alignment (RFC 7489, RFC 9989)."""

import functools
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal

from publicsuffixlist import PublicSuffixList

from minismtp import Address, AuthResult, Envelope, Resolver

from ._dns import ParsedRecords, Questions

Policy = Literal["none", "quarantine", "reject"]

POLICIES: Final[tuple[Policy, ...]] = ("none", "quarantine", "reject")
# dmarc-version = "v" *WSP "=" *WSP %x44.4d.41.52.43.31 (RFC 7489 section 6.4)
_RECORD: Final = re.compile(r"[vV]\s*+=\s*+DMARC1\s*+(?:;|$)")
_ALMOST: Final = re.compile(r"v?\s*+=?\s*+DMARC1", re.IGNORECASE)
# dmarc-uri = URI [ "!" 1*DIGIT [ "k" / "m" / "g" / "t" ] ]
_URI: Final = re.compile(r"[a-z][a-z0-9+.-]*+:[^\s,!]++(?:![0-9]++[kmgt]?)?")
_ORGANIZATIONS: Final = 1024  # domains whose organization is remembered
_PERCENTAGE: Final = re.compile("[0-9]{1,3}")


@dataclass(frozen=True, slots=True)
class Record:
    """A domain's record: its `tags`, or None without a valid record, and the reason.

    With `several` records the organization is not asked.
    """

    tags: Mapping[str, str] | None
    reason: str = ""
    several: bool = False


@functools.cache
def public_suffixes() -> PublicSuffixList:
    """Return the list, which is read once in a process."""
    return PublicSuffixList()


@functools.lru_cache(_ORGANIZATIONS)
def organization(domain: str) -> str:
    """Return the organizational domain (RFC 7489 section 3.2)."""
    return public_suffixes().privatesuffix(domain) or domain


class Domains:
    """Lookups of domains in the DNS. They raise UnansweredError."""

    def __init__(self, resolver: Resolver, patience: timedelta) -> None:
        self._questions = Questions(resolver, patience)

    def record(self, domain: str) -> Record:
        """Return a domain's own record; several are invalid (RFC 7489 section 6.6.3)."""
        texts = [text.strip() for text in self._questions.ask(f"_dmarc.{domain}", "TXT")]
        records = [text for text in texts if _RECORD.match(text)]
        if len(records) == 1:
            return Record(_TAGS.get(records[0]))
        if records:
            return Record(None, f"{domain} has {len(records)} records", several=True)
        if any(map(_ALMOST.match, texts)):
            return Record(None, f"the record of {domain} does not begin with v=DMARC1;")
        return Record(None)

    def exists(self, domain: str) -> bool:
        """Return whether the name exists, with records of any type."""
        return self._questions.lookup(domain, "A").exists


def _tags(record: str) -> dict[str, str]:
    """Read a record. A tag with two different values is ignored, because either could count."""
    tags: dict[str, str] = {}
    for spec in record.split(";"):
        name, _, value = spec.partition("=")
        name, value = name.strip().lower(), value.strip().lower()
        if name == "rua" and tags.get(name):  # one more place for reports
            value = f"{tags[name]},{value}"
        elif tags.get(name, value) != value:
            value = ""
        tags[name] = value
    return tags


_TAGS: Final = ParsedRecords(_tags, lambda text: 4 * len(text) + 300 * text.count(";"))


def policy_of(tags: Mapping[str, str], names: Domains, subdomain: str) -> Policy | None:
    """Return the policy for the domain itself, or for a subdomain without a record of its own.

    A record with an invalid p, sp or np only asks for reports. If it has no address for reports
    either, there is no policy, and this returns None (RFC 7489 section 6.6.3; RFC 9989 for np).
    """
    wanted = tags.get("p", "")
    if not {wanted, tags.get("sp", "none"), tags.get("np", "none")} <= {*POLICIES}:
        return "none" if any(map(_is_uri, tags.get("rua", "").split(","))) else None
    if subdomain:
        wanted = tags.get("sp", wanted)
        if "np" in tags and not names.exists(subdomain):
            wanted = tags["np"]
    return next(each for each in POLICIES if each == wanted)


def _is_uri(text: str) -> bool:
    return _URI.fullmatch(text.strip()) is not None


def sampled(policy: Policy, tags: Mapping[str, str]) -> Policy:
    """Return the policy, or the next weaker one outside the sample (section 6.6.4)."""
    text = tags.get("pct", "100")
    share = int(text) if _PERCENTAGE.fullmatch(text) else 100
    if tags.get("t") == "y":  # RFC 9989: the domain tests
        share = 0
    weaker = policy != "none" and secrets.randbelow(100) >= share
    return POLICIES[POLICIES.index(policy) - weaker]


def is_aligned(
    result: AuthResult, domain: str, tags: Mapping[str, str], envelope: Envelope
) -> bool:
    """Return whether a result is for the domain or its organization (RFC 7489 section 3.1)."""
    if result.method == "dkim":
        name, mode = result.properties.get("header.d", ""), tags.get("adkim")
    elif result.method == "spf":
        # HELO counts where MAIL FROM has no domain (RFC 7489 section 3.1.2)
        identity = "smtp.helo" if envelope.reverse_path is None else "smtp.mailfrom"
        name, mode = result.properties.get(identity, ""), tags.get("aspf")
    else:
        return False
    if name == domain:
        return True
    other = Address("", name.rpartition("@")[2]).ascii_domain
    if mode == "s" or not other:
        return other == domain
    return organization(other) == organization(domain)
