"""Apply the policy of the domain in the From field to incoming mail (DMARC).

RFC 7489, with the policy np and testing by t=y of its successor, RFC 9989. Organizational domains
come from the public suffix list, which takes at most two questions. The walk up the DNS of RFC 9989
may take eight, and domains were set up for the list. `pct` still counts.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple

from minismtp import (
    Address,
    AuthResult,
    Defer,
    Envelope,
    Headers,
    Message,
    PluginCheck,
    Reject,
    ServerInfo,
    Session,
    StashKey,
    UnansweredError,
    hookimpl,
    plugin,
    registrable_domain,
    results_of,
)

from ._checks import ClientCheck, DnsCheck
from ._dns import ParsedRecords, Questions, can_be_asked
from ._from import TooManyDomainsError, domains_of
from .arc import ARC

Policy = Literal["none", "quarantine", "reject"]

_POLICIES: Final[tuple[Policy, ...]] = ("none", "quarantine", "reject")
_RANKS: Final = {"pass": 0, "none": 1, "permerror": 2, "fail": 3, "temperror": 4}
# dmarc-version = "v" *WSP "=" *WSP %x44.4d.41.52.43.31 (RFC 7489 section 6.4)
_RECORD: Final = re.compile(r"[vV]\s*+=\s*+DMARC1\s*+(?:;|$)")
_ALMOST: Final = re.compile(r"v?\s*+=?\s*+DMARC1", re.IGNORECASE)
# dmarc-uri = URI [ "!" 1*DIGIT [ "k" / "m" / "g" / "t" ] ]
_URI: Final = re.compile(r"[a-z][a-z0-9+.-]*+:[^\s,!]++(?:![0-9]++[kmgt]?)?")
_PERCENTAGE: Final = re.compile("[0-9]{1,3}")


@dataclass(frozen=True, slots=True)
class DmarcResult:
    """The DMARC `result` (RFC 7489 section 11.2) for the `domain` of the From field.

    `policy` is the domain's for mail that fails, "" without a record. `disposition` is the one for
    this message, which is milder for a part of the mail (pct) and while the domain tests.
    """

    result: str
    domain: str = ""
    policy: str = ""
    disposition: Policy = "none"
    reason: str = ""


#: On an envelope whose message was checked; the worst result if From has several domains.
DMARC: Final[StashKey[DmarcResult]] = StashKey()


def before_fork() -> None:
    """Read the public suffix list once for all processes, each of which would take 2 MB for it."""
    registrable_domain("example.org")


@plugin
class Dmarc(ClientCheck, DnsCheck):
    """Apply the DMARC policy of the domain in the From field to incoming mail.

    Put it after `spf` and `dkim_verify`, whose results it needs; without them the server does not
    start. A message passes if one of these is pass for the domain, or for another domain of the
    organization unless the policy is strict. With `action` "enforce", mail that fails is refused
    with 550 5.7.1 or quarantined, as the domain asks; "report_only" only stores the result. A From
    field without a domain, such as MAILER-DAEMON, has no policy and passes. If there are several
    domains, each has to pass: those of several addresses or fields, and all that some mail program
    would show for a malformed field. More than 16 are refused.

    Mailing lists and forwarders change messages, which breaks signatures. If one of the
    `trusted_sealers` (domains of ARC seals) found that a message passed earlier, a failure has no
    consequence. This needs `arc` before it. Trust only domains that check the mail they accept.

    `temperror` is for mail whose result depends on the DNS while that does not answer, within
    `patience` or to the plugins before: "defer" it (451 4.7.1), or "tag" it and let it pass.
    Sessions with a login are not checked, nor are clients in `networks`: by default loopback,
    private and link-local addresses. Use the same networks as for `spf`.
    """

    needs = ("spf", "dkim_verify")

    action: Literal["enforce", "report_only"] = "enforce"
    temperror: Literal["defer", "tag"] = "defer"
    trusted_sealers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._trusted = {Address("", domain).ascii_domain for domain in self.trusted_sealers}

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Read the public suffix list."""
        super().on_start(server)
        registrable_domain("example.org")

    @hookimpl
    def on_check(self, check: PluginCheck) -> None:
        """Warn if the chains of trusted sealers are read later."""
        if self.trusted_sealers:
            check.comes_after("arc", lest="uses what arc finds out about trusted sealers")

    @hookimpl
    def on_message(self, session: Session, envelope: Envelope, message: Message) -> None:
        """Evaluate the policy, store the result, and apply it."""
        if self.address_of(session) is None:
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
        """Return the worst result of the domains in From (RFC 7489 section 6.6.1)."""
        try:
            domains = [each for each in domains_of(headers.get_all("From")) if can_be_asked(each)]
        except TooManyDomainsError as error:
            return DmarcResult("permerror", disposition="reject", reason=str(error))
        if not domains:
            return DmarcResult("permerror", reason="no From field has a domain")
        questions = Questions(self._resolver, self.patience)
        found = [
            self._overridden(_evaluated(domain, envelope, questions), envelope)
            for domain in domains
        ]
        return max(found, key=lambda each: (_POLICIES.index(each.disposition), _RANKS[each.result]))

    def _overridden(self, found: DmarcResult, envelope: Envelope) -> DmarcResult:
        """Accept a failure if a trusted sealer saw the message pass (RFC 8617 section 7.2)."""
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


def _evaluated(domain: str, envelope: Envelope, questions: Questions) -> DmarcResult:
    results = results_of(envelope)
    if missing := {"spf", "dkim"}.difference(each.method for each in results):
        raise LookupError(
            f"there is no result of {min(missing)}: it has to be checked before DMARC"
        )
    try:
        record = record_of(domain, questions)
        parent = registrable_domain(domain)
        inherited = record.tags is None and not record.several and parent != domain
        found = record_of(parent, questions) if inherited else record
        tags = found.tags
        if tags is None:
            return DmarcResult(
                "none", domain, reason=found.reason or record.reason or "the domain has no policy"
            )
        policy = policy_of(tags, questions, domain if inherited else "")
    except UnansweredError as error:
        return DmarcResult("temperror", domain, reason=str(error))
    if policy is None:
        return DmarcResult("permerror", domain, reason="the policy in its record is not valid")
    aligned = {each.result for each in results if is_aligned(each, domain, tags, envelope)}
    if "pass" in aligned:
        return DmarcResult("pass", domain, policy)
    if "temperror" in aligned and policy != "none":
        return DmarcResult("temperror", domain, policy, reason="a check has had no answer")
    reason = f"{domain} does not know this message as its own"
    return DmarcResult("fail", domain, policy, sampled(policy, tags), reason)


class Record(NamedTuple):
    """A domain's record: its `tags`, or None without a valid record, and the reason.

    With `several` records the organization is not asked.
    """

    tags: Mapping[str, str] | None
    reason: str = ""
    several: bool = False


def record_of(domain: str, questions: Questions) -> Record:
    """Return a domain's own record; several are invalid (RFC 7489 section 6.6.3)."""
    texts = [text.strip() for text in questions.ask(f"_dmarc.{domain}", "TXT")]
    records = [text for text in texts if _RECORD.match(text)]
    if len(records) == 1:
        return Record(_TAGS.get(records[0]))
    if records:
        return Record(None, f"{domain} has {len(records)} records", several=True)
    if any(map(_ALMOST.match, texts)):
        return Record(None, f"the record of {domain} does not begin with v=DMARC1;")
    return Record(None)


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


def policy_of(tags: Mapping[str, str], questions: Questions, subdomain: str) -> Policy | None:
    """Return the policy for the domain itself, or for a subdomain without a record of its own.

    A record with an invalid p, sp or np only asks for reports. If it has no address for reports
    either, there is no policy, and this returns None (RFC 7489 section 6.6.3; RFC 9989 for np).
    """
    wanted = tags.get("p", "")
    if not {wanted, tags.get("sp", "none"), tags.get("np", "none")} <= {*_POLICIES}:
        addresses = (text.strip() for text in tags.get("rua", "").split(","))
        return "none" if any(map(_URI.fullmatch, addresses)) else None
    if subdomain:
        wanted = tags.get("sp", wanted)
        if "np" in tags and not questions.lookup(subdomain, "A").exists:
            wanted = tags["np"]
    return next(each for each in _POLICIES if each == wanted)


def sampled(policy: Policy, tags: Mapping[str, str]) -> Policy:
    """Return the policy, or the next weaker one outside the sample (section 6.6.4)."""
    text = tags.get("pct", "100")
    share = int(text) if _PERCENTAGE.fullmatch(text) else 100
    if tags.get("t") == "y":  # RFC 9989: the domain tests
        share = 0
    weaker = policy != "none" and secrets.randbelow(100) >= share
    return _POLICIES[_POLICIES.index(policy) - weaker]


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
    name = name.rpartition("@")[2]
    if name == domain:
        return True
    other = Address("", name).ascii_domain
    if mode == "s" or not other:
        return other == domain
    return registrable_domain(other) == registrable_domain(domain)
