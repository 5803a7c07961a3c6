"""Do with incoming mail what the domain in its From field asks for (DMARC).

RFC 7489, and of RFC 9989, which takes its place, the policy np and testing by t=y. Organizations
are found by the public suffix list and not by a walk up the DNS: that takes two questions at most,
where the walk may take eight, and gives what domains have been set up with. `pct` still counts.
"""

from dataclasses import dataclass, field, replace
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from typing import Final, Literal

from minismtp import (
    Address,
    AuthResult,
    Defer,
    Envelope,
    Headers,
    Message,
    Reject,
    ServerInfo,
    Session,
    StashKey,
    UnansweredError,
    hookimpl,
    plugin,
    results_of,
)

from ._dmarc import (
    POLICIES,
    Names,
    Policy,
    is_aligned,
    policy_of,
    public_suffixes,
    sampled,
)
from ._dns import address_to_check, can_be_asked, local_networks
from ._from import TooManyDomainsError, domains_of
from ._options import check_time
from .arc import ARC

_RANKS: Final = {"pass": 0, "none": 1, "permerror": 2, "fail": 3, "temperror": 4}


@dataclass(frozen=True, slots=True)
class DmarcResult:
    """What DMARC says: the `result` of RFC 7489 section 11.2 for the `domain` of the From field.

    `policy` is what the domain asks for where mail fails, "" without a record; `disposition` what
    that comes to for this message: less for a part of the mail (pct) or while the domain tests.
    """

    result: str
    domain: str = ""
    policy: str = ""
    disposition: Policy = "none"
    reason: str = ""


#: On an envelope whose message was checked; of several domains in From that of the worst.
DMARC: Final[StashKey[DmarcResult]] = StashKey()


@plugin
class Dmarc:
    """Hold mail against the policy of the domain in its From field, once it has been checked.

    It belongs after `spf` and `dkim_verify`, whose results it needs: without them it fails, and
    mail waits. A message passes if one of them is pass for the domain itself, or, unless the domain
    asks for more, for another of the same organization. With `action` "enforce", mail that fails is
    refused with 550 5.7.1 or put into quarantine, as the domain asks; "report_only" notes what
    would have been done. A message whose From field has no domain, such as MAILER-DAEMON, has no
    policy either, and passes. Of several domains each has to pass: those of several addresses or
    fields, and all that some mail program would show for a field that is broken. More than 16 are
    refused.

    Lists and forwarders change messages, and break what domains have signed. `trusted_sealers` are
    domains (those of their ARC seals) that are believed when they have found a message good before:
    it fails, and yet nothing is done. This needs `arc` before. Name only who checks what it takes.

    `temperror` says what becomes of mail when the DNS does not answer, within `patience` or to the
    checks before, and its answer is what would decide: "defer" it (451 4.7.1), or "tag" it and let
    it pass. Sessions with a login are left alone, and so are `networks`: by default loopback,
    private and link-local ones. Give the same as for `spf`.
    """

    action: Literal["enforce", "report_only"] = "enforce"
    temperror: Literal["defer", "tag"] = "defer"
    trusted_sealers: list[str] = field(default_factory=list)
    networks: list[IPv4Network | IPv6Network] = field(default_factory=local_networks)
    patience: timedelta = timedelta(seconds=10)

    def __post_init__(self) -> None:
        check_time("patience", self.patience)
        self._trusted = {Address("", domain).ascii_domain for domain in self.trusted_sealers}

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Read the public suffix list."""
        self._resolver = server.resolver
        self._suffixes = public_suffixes()

    @hookimpl
    def on_message(self, session: Session, envelope: Envelope, message: Message) -> None:
        """Judge, note, and do what is asked for."""
        if address_to_check(session, self.networks) is None:
            return
        found = self._worst(envelope, message.headers)
        envelope.stash[DMARC] = found
        told = {"header.from": found.domain, "policy.dmarc": found.policy}
        properties = {name: value for name, value in told.items() if value}
        results_of(envelope).append(AuthResult("dmarc", found.result, found.reason, properties))
        if self.action == "report_only":
            return
        if found.result == "temperror" and self.temperror == "defer":
            raise Defer(f"the mail of {found.domain} cannot be checked now (DMARC)")
        if found.disposition == "reject":
            raise Reject(f"{found.reason} (DMARC)")
        if found.disposition == "quarantine":
            message.quarantine(f"dmarc: {found.reason}")

    def _worst(self, envelope: Envelope, headers: Headers) -> DmarcResult:
        """Judge the domains of all From fields; RFC 7489 section 6.6.1 leaves open which counts."""
        try:
            domains = [each for each in domains_of(headers.get_all("From")) if can_be_asked(each)]
        except TooManyDomainsError as error:
            return DmarcResult("permerror", disposition="reject", reason=str(error))
        if not domains:
            return DmarcResult("permerror", reason="no From field has a domain")
        names = Names(self._resolver, self._suffixes, self.patience)
        found = [self._forgiven(_judged(domain, envelope, names), envelope) for domain in domains]
        return max(found, key=lambda each: (POLICIES.index(each.disposition), _RANKS[each.result]))

    def _forgiven(self, found: DmarcResult, envelope: Envelope) -> DmarcResult:
        """Do nothing about a failure that somebody trusted explains (RFC 8617 section 7.2)."""
        chain = envelope.stash.get(ARC, None)
        if found.result != "fail" or chain is None:
            return found
        for report in reversed(chain.reports):
            if report.sealer not in self._trusted:
                break
            if any(_passed(each, found.domain) for each in report.results):
                reason = f"it passed at {report.sealer}, which is trusted"
                return replace(found, disposition="none", reason=reason)
        return found


def _passed(result: AuthResult, domain: str) -> bool:
    sender = Address("", result.properties.get("header.from", "")).ascii_domain
    return (result.method, result.result, sender) == ("dmarc", "pass", domain)


def _judged(domain: str, envelope: Envelope, names: Names) -> DmarcResult:
    results = results_of(envelope)
    if missing := {"spf", "dkim"}.difference(each.method for each in results):
        raise LookupError(
            f"there is no result of {min(missing)}: it has to be checked before DMARC"
        )
    try:
        record = names.record(domain)
        organization = names.organization(domain)
        inherited = record.tags is None and not record.several and organization != domain
        found = names.record(organization) if inherited else record
        tags = found.tags
        if tags is None:
            return DmarcResult(
                "none", domain, reason=found.reason or record.reason or "the domain has no policy"
            )
        policy = policy_of(tags, names, domain if inherited else "")
    except UnansweredError as error:
        return DmarcResult("temperror", domain, reason=str(error))
    if policy is None:
        return DmarcResult("permerror", domain, reason="the policy in its record is not valid")
    aligned = {each.result for each in results if is_aligned(each, domain, tags, envelope, names)}
    if "pass" in aligned:
        return DmarcResult("pass", domain, policy)
    if "temperror" in aligned and policy != "none":
        return DmarcResult("temperror", domain, policy, reason="a check has had no answer")
    reason = f"{domain} does not know this message as its own"
    return DmarcResult("fail", domain, policy, sampled(policy, tags), reason)
