"""Look up the name of a client in the DNS, and check that it has the client's address (FCrDNS)."""

from dataclasses import field
from datetime import timedelta
from typing import Literal

from minismtp import (
    AuthResult,
    Envelope,
    Session,
    UnansweredError,
    hookimpl,
    plugin,
    results_of,
)

from ._checks import ClientCheck, DnsCheck, act, note
from ._client_name import CLIENT_NAME, ClientName, look_up
from ._dns import budget_of
from ._options import check_points

__all__ = ["CLIENT_NAME", "ClientName", "ReverseDns"]

_POINTS = {"missing": 2.0, "unconfirmed": 1.0}
_SAID = {
    "missing": "has no name in the DNS",
    "unconfirmed": "is not an address of the name that the DNS has for it",
}


@plugin
class ReverseDns(ClientCheck, DnsCheck):
    """Look up the name of the client's address at MAIL, and the addresses of that name.

    `missing` is for an address without a name, `unconfirmed` for a name without the address:
    "reject" refuses with 550 5.7.25, "defer" with 451 4.7.25 (RFC 7372), "tag" makes a finding with
    its `points`. Many honest hosts have no name or a wrong one. If the DNS does not answer within
    `patience`, mail passes if both actions are "tag". Otherwise it is a failure of this plugin, for
    `on_error`.

    The name is under `CLIENT_NAME` in the session's stash, and `results_of(envelope)` has iprev
    (RFC 8601 section 2.7.3). Sessions with a login are not checked, nor are clients in `networks`:
    by default loopback, private and link-local addresses, which your list replaces.
    """

    missing: Literal["reject", "defer", "tag"] = "tag"
    unconfirmed: Literal["reject", "defer", "tag"] = "tag"
    points: dict[str, float] = field(default_factory=_POINTS.copy)
    patience: timedelta = timedelta(seconds=5)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_points(self.points, _POINTS)

    @hookimpl
    def on_mail(self, session: Session, envelope: Envelope) -> None:
        """Look up the client once in a session, and take the action."""
        address = self.address_of(session)
        if address is None:
            return
        client = None
        try:
            client = look_up(session, self._resolver, self.patience, budget_of(envelope))
        except UnansweredError:
            if {self.missing, self.unconfirmed} != {"tag"}:
                raise
        finally:
            found = AuthResult("iprev", _result(client), "", {"policy.iprev": str(address)})
            results_of(envelope).append(found)
        if client is None or client.confirmed:
            return
        problem = "unconfirmed" if client.name else "missing"
        text = f"{address} {_SAID[problem]}"
        note(envelope, "reverse_dns", problem, self.points.get(problem, 0.0), text)
        act(getattr(self, problem), text, "7.25")


def _result(client: ClientName | None) -> str:
    """Return the result for a client's name, None without an answer (RFC 8601 section 2.7.3)."""
    if client is None:
        return "temperror"
    if client.confirmed:
        return "pass"
    return "fail" if client.name else "permerror"
