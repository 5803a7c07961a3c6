"""Check that a sender's domain lets the client send for it (SPF, RFC 7208)."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Literal

from minismtp import (
    Address,
    AuthResult,
    Envelope,
    Message,
    Session,
    StashKey,
    hookimpl,
    plugin,
    quoted,
    results_of,
)

from ._checks import Action, ClientCheck, DnsCheck, act, note
from ._dns import Questions, budget_of
from ._options import check_points
from ._spf import Outcome, Sender, check_host

_LONGEST_EXPLANATION = 300  # characters
_POINTS = {"pass": 0.0, "fail": 4.0, "softfail": 1.0, "permerror": 1.0, "helo_fail": 2.0}


@dataclass(frozen=True, slots=True)
class SpfResult:
    """The SPF `result` for the `domain` of MAIL FROM (RFC 7208 section 2.6).

    For the null reverse-path the domain is the name in HELO. `reason` is a text for people.
    """

    domain: str
    result: str
    reason: str


#: On an envelope whose sender was checked.
SPF: Final[StashKey[SpfResult]] = StashKey()
_HELO: Final[StashKey[tuple[str, Outcome]]] = StashKey()


@plugin
class Spf(ClientCheck, DnsCheck):
    """Check at MAIL that the client may use the sender's domain and the name in HELO.

    `fail`, `softfail` and `permerror` are the actions for a reverse-path with that result; for the
    null reverse-path the name in HELO counts. "reject" refuses with 550 5.7.23, or 5.7.24 for
    permerror (RFC 7372); "tag" leaves the decision to later filters. `temperror` "defer" lets the
    client try again (451 4.7.24). `helo_fail` is for a name in HELO that the client may not use;
    "off" skips this check. `patience` is for all questions of one MAIL. A record
    of more than 4 KiB or 300 terms is a permerror, and so is one that needs more than the plugins
    may ask for one MAIL (50 questions, 128 KiB of answers). `received_spf` adds the Received-SPF
    field.

    Sessions with a login are not checked, nor are clients in `networks`: by default loopback,
    private and link-local addresses, which your list replaces. Add hosts that forward mail to you,
    because SPF cannot know them.

    The results are in `results_of(envelope)` (spf with smtp.mailfrom and smtp.helo) and under `SPF`
    in the envelope's stash. `points` makes findings of results for filters that add up.
    """

    fail: Literal["reject", "tag"] = "reject"
    softfail: Literal["reject", "tag"] = "tag"
    permerror: Literal["reject", "tag"] = "tag"
    temperror: Literal["defer", "tag"] = "defer"
    helo_fail: Literal["reject", "tag", "off"] = "reject"
    points: dict[str, float] = field(default_factory=_POINTS.copy)
    patience: timedelta = timedelta(seconds=20)
    received_spf: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_points(self.points, [*_POINTS, "neutral", "none", "temperror"])

    @property
    def unused_hooks(self) -> tuple[str, ...]:
        """Without `received_spf` no field is added."""
        return () if self.received_spf else ("on_message",)

    @hookimpl
    def on_mail(self, session: Session, envelope: Envelope) -> None:
        """Check both identities, and take the actions."""
        address = self.address_of(session)
        if address is None:
            return
        questions = Questions(self._resolver, self.patience, budget_of(envelope))
        helo = _helo(session)
        mailbox = envelope.reverse_path or Address("postmaster", helo)
        who = Sender(address, mailbox.local, mailbox.ascii_domain, helo, session.hostname)
        outcome = check_host(who, questions.ask)
        identity = "smtp.mailfrom" if envelope.reverse_path else "smtp.helo"
        self._record(envelope, outcome.result, outcome, {identity: envelope.sender or helo})
        envelope.stash[SPF] = SpfResult(who.domain, outcome.result, outcome.reason)
        self._judge(who, outcome)
        # Last, so a slow answer for the name in HELO takes no time from the sender's domain.
        if self.helo_fail != "off" and envelope.reverse_path is not None:
            self._check_helo(session, envelope, who, questions)

    @hookimpl
    def on_message(self, session: Session, envelope: Envelope, message: Message) -> None:
        """Add the Received-SPF field (RFC 7208 section 9.1)."""
        found = envelope.stash.get(SPF, None)
        if found is None or not self.received_spf:
            return
        facts = {
            "client-ip": session.peer,
            "envelope-from": envelope.sender,
            "helo": _helo(session),
            "receiver": session.hostname,
            "identity": "mailfrom" if envelope.sender else "helo",
        }
        pairs = [f"{name}={quoted(value, always=True)}" for name, value in facts.items()]
        message.prepend("Received-SPF", f"{found.result} {'; '.join(pairs)}")

    def _check_helo(
        self, session: Session, envelope: Envelope, sender: Sender, questions: Questions
    ) -> None:
        helo = sender.helo
        known, outcome = session.stash.get(_HELO, ("", Outcome("none")))
        if known != helo:
            who = sender._replace(local="postmaster", domain=helo)
            outcome = check_host(who, questions.ask)
            session.stash[_HELO] = (helo, outcome)
        name = "helo_fail" if outcome.result == "fail" else ""
        self._record(envelope, name, outcome, {"smtp.helo": helo})
        if name:
            act(self.helo_fail, f"{sender.address} may not call itself {helo} (SPF)", "7.23")

    def _record(
        self, envelope: Envelope, name: str, outcome: Outcome, properties: dict[str, str]
    ) -> None:
        """Store the result of a check, and a finding by this name if it has points."""
        found = AuthResult("spf", outcome.result, outcome.reason, properties)
        results_of(envelope).append(found)
        note(envelope, "spf", name, self.points.get(name, 0.0), outcome.reason)

    def _judge(self, who: Sender, outcome: Outcome) -> None:
        """Take the action for a result; pass, neutral and none have no action."""
        action: Action = getattr(self, outcome.result, "tag")
        if action == "tag":
            return
        match outcome.result:
            case "temperror":
                status, text = "7.24", f"SPF of {who.domain} is not known now"
            case "permerror":
                status, text = "7.24", f"SPF is broken: {outcome.reason}"
            case _:
                status, text = "7.23", f"{who.address} may not send for {who.domain} (SPF)"
        if outcome.explanation:  # RFC 7208 section 8.4: a stranger wrote the text
            words = outcome.explanation[:_LONGEST_EXPLANATION]
            text += f"; {who.domain} explains: {words}"
        act(action, text, status)


def _helo(session: Session) -> str:
    """Return the name in HELO in ASCII, even if it is not a domain."""
    return Address("", session.helo).ascii_domain.encode("ascii", "backslashreplace").decode()
