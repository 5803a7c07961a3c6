"""Check the name in a client's HELO or EHLO."""

from collections.abc import Iterator
from dataclasses import field
from datetime import timedelta
from ipaddress import ip_address
from typing import Final

from minismtp import (
    Address,
    Envelope,
    Session,
    StashKey,
    UnansweredError,
    hookimpl,
    plugin,
)

from ._checks import Action, ClientCheck, DnsCheck, act, note
from ._dns import IpAddress, Questions, budget_of, is_domain, unmapped
from ._options import check_points

_POINTS = {"own": 3.0, "unqualified": 1.0, "literal": 2.0, "unresolvable": 1.0}
_SAID = {
    "own": "you are not {helo}, that is us",
    "unqualified": "{helo} is no full name of a host",
    "literal": "{helo} is not your address",
    "unresolvable": "{helo} is not in the DNS",
}

#: On an envelope whose client has a wrong name: the checks that failed, such as "own".
HELO_PROBLEMS: Final[StashKey[tuple[str, ...]]] = StashKey()


@plugin
class HeloChecks(ClientCheck, DnsCheck):
    """Check the name in HELO or EHLO at MAIL; each check has an action.

    `own` is for this server's hostname, one of `names`, or the server's address, all of which are
    false. `unqualified` is for a name without a dot, or an address without brackets. `literal` is
    for an address in brackets that is not the client's. `unresolvable` is for a name with neither
    an address nor an MX.

    "reject" refuses with 550 5.7.1, "defer" with 451 4.7.1, "tag" makes a finding with its
    `points`, and "off" skips the check. RFC 5321 section 4.1.4 forbids refusing mail for a wrong
    name alone, and honest hosts have wrong names, but no honest host has this server's. If the DNS
    does not answer within `patience`, mail passes, unless `unresolvable` would refuse. Then it is a
    failure of this plugin, for `on_error`.

    The failed checks are under `HELO_PROBLEMS` in the envelope's stash. Sessions with a login are
    not checked, nor are clients in `networks`: by default loopback, private and link-local
    addresses, which your list replaces.
    """

    own: Action = "tag"
    unqualified: Action = "tag"
    literal: Action = "tag"
    unresolvable: Action = "tag"
    names: list[str] = field(default_factory=list)
    points: dict[str, float] = field(default_factory=_POINTS.copy)
    patience: timedelta = timedelta(seconds=5)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_points(self.points, _POINTS)
        self._names = {Address("", name).ascii_domain for name in self.names}

    @hookimpl
    def on_mail(self, session: Session, envelope: Envelope) -> None:
        """Run the checks, and take the action of each that fails."""
        address = self.address_of(session)
        if address is None:
            return
        for problem in self._problems(session, envelope, address):
            action: Action = getattr(self, problem)
            if action == "off":
                continue
            envelope.stash[HELO_PROBLEMS] = (*envelope.stash.get(HELO_PROBLEMS, ()), problem)
            note(envelope, "helo", problem, self.points.get(problem, 0.0), session.helo)
            act(action, f"HELO: {_SAID[problem].format(helo=session.helo)}")

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
        """Return whether a name has an address or an MX. Raise UnansweredError if it matters."""
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
    """Return a text as an address, also from an address literal (RFC 5321 section 4.1.3)."""
    bare = text.removeprefix("[").removesuffix("]")
    if bare != text:
        bare = bare.removeprefix("ipv6:")
    try:
        return unmapped(ip_address(bare))
    except ValueError:
        return None
