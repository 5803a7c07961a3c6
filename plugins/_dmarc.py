"""Records of DMARC, whose From field is whose, and what is aligned (RFC 7489, RFC 9989)."""

import functools
import re
import secrets
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Final, Literal

from publicsuffixlist import PublicSuffixList

from minismtp import Address, AuthResult, Envelope, Resolver

from ._authres import without_texts
from ._dns import Questions

Policy = Literal["none", "quarantine", "reject"]

POLICIES: Final[tuple[Policy, ...]] = ("none", "quarantine", "reject")
_RECORD: Final = re.compile(r"v\s*=\s*DMARC1\s*(?:;|$)")
_NAME: Final = re.compile(r"[a-z0-9_.-]+")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_ANGLE: Final = re.compile(r"<([^<>]*+)>")
_BETWEEN: Final = re.compile("[,;:]")
_PERCENTAGE: Final = re.compile("[0-9]{1,3}")


def from_domains(value: str) -> Iterator[str]:
    """Give the domain of each address in a From field, with A-labels; "" for what has none.

    Names and comments do not count, whatever stands in them; they may hold addresses. What readers
    take for different addresses has no domain: two "@", a route, a control character anywhere.
    """
    if _CONTROL.search(value):
        yield ""
    bare = without_texts(value, '""')
    addresses = _ANGLE.findall(bare)
    pieces = _BETWEEN.split(_ANGLE.sub("<", bare))
    addresses += [piece for piece in pieces if "@" in piece and "<" not in piece]
    for address in addresses:
        local, _, text = address.partition("@")
        domain = Address("", text.strip(" \t").removesuffix(".")).ascii_domain
        yield domain if local.strip(" \t") and _NAME.fullmatch(domain) else ""


@functools.cache
def public_suffixes() -> PublicSuffixList:
    """Read the list, once in a process."""
    return PublicSuffixList()


class Names:
    """What the DNS and the public suffix list say of names; raises UnansweredError."""

    def __init__(self, resolver: Resolver, suffixes: PublicSuffixList, patience: timedelta) -> None:
        self._questions = Questions(resolver, patience)
        self._suffixes = suffixes

    def organization(self, domain: str) -> str:
        """Give the organizational domain (RFC 7489 section 3.2)."""
        return self._suffixes.privatesuffix(domain) or domain

    def record(self, domain: str) -> Mapping[str, str] | None:
        """Give the tags of a domain's own record; more than one is none (section 6.6.3)."""
        found = self._questions.lookup(f"_dmarc.{domain}", "TXT")
        texts = [b"".join(each.strings).decode("latin-1").strip() for each in found.records]
        records = [text for text in texts if _RECORD.match(text)]
        return _tags(records[0]) if len(records) == 1 else None

    def exists(self, domain: str) -> bool:
        """Whether there is such a name, with records of any type."""
        return self._questions.lookup(domain, "A").exists


def _tags(record: str) -> dict[str, str]:
    pairs = (spec.partition("=") for spec in record.split(";"))
    return {name.strip().lower(): value.strip().lower() for name, _, value in pairs}


def policy_of(tags: Mapping[str, str], names: Names, subdomain: str) -> Policy | None:
    """Give the policy for the domain itself, or for a subdomain that has no record of its own."""
    wanted = tags.get("p")
    if subdomain:
        wanted = tags.get("sp", wanted)
        if "np" in tags and not names.exists(subdomain):
            wanted = tags["np"]
    for policy in POLICIES:
        if policy == wanted:
            return policy
    return "none" if "rua" in tags else None  # RFC 7489 section 6.6.3


def sampled(policy: Policy, tags: Mapping[str, str]) -> Policy:
    """Give the policy, or the next weaker one for what is not in the sample (section 6.6.4)."""
    text = tags.get("pct", "100")
    share = int(text) if _PERCENTAGE.fullmatch(text) else 100
    if tags.get("t") == "y":  # RFC 9989: the domain tests
        share = 0
    weaker = policy != "none" and secrets.randbelow(100) >= share
    return POLICIES[POLICIES.index(policy) - weaker]


def is_aligned(
    result: AuthResult, domain: str, tags: Mapping[str, str], envelope: Envelope, names: Names
) -> bool:
    """Whether a result is about the domain, or about its organization (RFC 7489 section 3.1)."""
    if result.method == "dkim":
        name, mode = result.properties.get("header.d", ""), tags.get("adkim")
    elif result.method == "spf":
        # HELO counts where MAIL FROM has no domain (RFC 7489 section 3.1.2)
        identity = "smtp.helo" if envelope.reverse_path is None else "smtp.mailfrom"
        name, mode = result.properties.get(identity, ""), tags.get("aspf")
    else:
        return False
    other = Address("", name.rpartition("@")[2]).ascii_domain
    if mode == "s" or not other:
        return other == domain
    return names.organization(other) == names.organization(domain)
