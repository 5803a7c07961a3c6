"""Judge the name by which a client greets."""

from collections.abc import Iterator, Mapping
from dataclasses import field
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final, Literal, TypeAlias

from minismtp import (
    Address,
    Defer,
    Envelope,
    Finding,
    Reject,
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
    budget_of,
    is_domain,
    local_networks,
    unmapped,
)
from ._options import check_points, check_time

Action: TypeAlias = Literal["reject", "defer", "tag", "off"]

_POINTS: Mapping[str, float] = {
    "own": 3.0,
    "unqualified": 1.0,
    "literal": 2.0,
    "unresolvable": 1.0,
}
_SAID = {
    "own": "you are not {helo}, that is us",
    "unqualified": "{helo} is no full name of a host",
    "literal": "{helo} is not your address",
    "unresolvable": "{helo} is not in the DNS",
}

#: On an envelope whose client has a wrong name: what is wrong with it, such as "own".
HELO_PROBLEMS: Final[StashKey[tuple[str, ...]]] = StashKey()


@plugin
class HeloChecks:
    """Judge the name in HELO or EHLO at MAIL, by checks that each have an action.

    `own`: it is our hostname, one of `names`, or the address of ours that was called, and so a lie.
    `unqualified`: a name without a dot, or an address without brackets. `literal`: an address in
    brackets that is not the client's. `unresolvable`: a name without address and without MX.

    "reject" refuses with 550 5.7.1, "defer" with 451 4.7.1, "tag" makes a finding with its
    `points`, and "off" spares the check. RFC 5321 section 4.1.4 forbids to refuse mail for a wrong
    name alone, and honest hosts have such names; nobody honest has ours. When the DNS does not
    answer within `patience`, that is a failure of this plugin, for `on_error`, where `unresolvable`
    would refuse; else mail passes.

    What is wrong is under `HELO_PROBLEMS` in the envelope's stash. Sessions with a login are left
    alone, and so are `networks`, by default loopback, private and link-local ones; yours take the
    place of the default.
    """

    own: Action = "tag"
    unqualified: Action = "tag"
    literal: Action = "tag"
    unresolvable: Action = "tag"
    names: list[str] = field(default_factory=list)
    points: dict[str, float] = field(default_factory=lambda: dict(_POINTS))
    networks: list[IPv4Network | IPv6Network] = field(default_factory=local_networks)
    patience: timedelta = timedelta(seconds=5)

    def __post_init__(self) -> None:
        check_points(self.points, _POINTS)
        check_time("patience", self.patience)
        self._names = {Address("", name).ascii_domain for name in self.names}
        self._actions: dict[str, Action] = {
            "own": self.own,
            "unqualified": self.unqualified,
            "literal": self.literal,
            "unresolvable": self.unresolvable,
        }

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Know whom to ask."""
        self._resolver: Resolver = server.resolver

    @hookimpl
    def on_mail(self, session: Session, envelope: Envelope) -> None:
        """Run the checks, and refuse what shall be refused."""
        address = address_to_check(session, self.networks)
        if address is None:
            return
        found: list[str] = []
        for problem in self._problems(session, envelope, address):
            action = self._actions[problem]
            if action == "off":
                continue
            found.append(problem)
            envelope.stash[HELO_PROBLEMS] = tuple(found)
            if points := self.points.get(problem):
                finding = Finding("helo", problem, points, session.helo)
                findings_of(envelope).append(finding)
            text = f"HELO: {_SAID[problem].format(helo=session.helo)}"
            if action == "reject":
                raise Reject(text)
            if action == "defer":
                raise Defer(text)

    def _problems(self, session: Session, envelope: Envelope, address: IpAddress) -> Iterator[str]:
        """Yield the names of the checks that fail."""
        helo = Address("", session.helo).ascii_domain.removesuffix(".")
        said = _address_in(helo)
        called = _address_in(session.local)
        if helo in (session.hostname.lower(), *self._names) or (said and said == called):
            yield "own"
        if helo.startswith("["):
            if said != address:
                yield "literal"
        elif said or "." not in helo:
            yield "unqualified"
        elif self.unresolvable != "off" and not self._resolves(helo, envelope):
            yield "unresolvable"

    def _resolves(self, name: str, envelope: Envelope) -> bool:
        """Whether a name has an address or an MX. Raise UnansweredError where that matters."""
        if not is_domain(name):
            return False
        questions = Questions(self._resolver, self.patience, budget_of(envelope))
        try:
            return any(questions.ask(name, kind) for kind in ("A", "AAAA", "MX"))
        except UnansweredError:
            if self.unresolvable == "tag":
                return True
            raise


def _address_in(text: str) -> IpAddress | None:
    """Return the address that a text is, maybe as an address literal (RFC 5321 section 4.1.3)."""
    bare = text.removeprefix("[").removesuffix("]")
    if bare != text:
        bare = bare.removeprefix("ipv6:")
    try:
        return unmapped(ip_address(bare))
    except ValueError:
        return None
