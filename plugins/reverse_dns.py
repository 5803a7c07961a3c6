"""Look up the name of a client in the DNS, and check that it has the client's address (FCrDNS)."""

from collections.abc import Mapping
from dataclasses import field
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from typing import Literal, TypeAlias

from minismtp import (
    AuthResult,
    Defer,
    Envelope,
    Finding,
    Reject,
    Resolver,
    ServerInfo,
    Session,
    UnansweredError,
    findings_of,
    hookimpl,
    plugin,
    results_of,
)

from ._client_name import CLIENT_NAME, ClientName, look_up
from ._dns import IpAddress, address_to_check, budget_of, local_networks
from ._options import check_points, check_time

__all__ = ["CLIENT_NAME", "ClientName", "ReverseDns"]

Action: TypeAlias = Literal["reject", "defer", "tag"]

_POINTS: Mapping[str, float] = {"missing": 2.0, "unconfirmed": 1.0}
_SAID = {
    "missing": "has no name in the DNS",
    "unconfirmed": "is not an address of the name that the DNS has for it",
}


@plugin
class ReverseDns:
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

    missing: Action = "tag"
    unconfirmed: Action = "tag"
    points: dict[str, float] = field(default_factory=lambda: dict(_POINTS))
    networks: list[IPv4Network | IPv6Network] = field(default_factory=local_networks)
    patience: timedelta = timedelta(seconds=5)

    def __post_init__(self) -> None:
        check_points(self.points, _POINTS)
        check_time("patience", self.patience)
        self._actions: dict[str, Action] = {
            "missing": self.missing,
            "unconfirmed": self.unconfirmed,
        }

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Take the resolver."""
        self._resolver: Resolver = server.resolver

    @hookimpl
    def on_mail(self, session: Session, envelope: Envelope) -> None:
        """Look up the client once in a session, and take the action."""
        address = address_to_check(session, self.networks)
        if address is None:
            return
        try:
            client = look_up(session, self._resolver, self.patience, budget_of(envelope))
        except UnansweredError:
            _note(envelope, address, "temperror")
            if {*self._actions.values()} == {"tag"}:
                return
            raise
        if client.confirmed:
            _note(envelope, address, "pass")
        else:
            _note(envelope, address, "fail" if client.name else "permerror")
            self._judge(envelope, address, "unconfirmed" if client.name else "missing")

    def _judge(self, envelope: Envelope, address: IpAddress, problem: str) -> None:
        text = f"{address} {_SAID[problem]}"
        if points := self.points.get(problem):
            findings_of(envelope).append(Finding("reverse_dns", problem, points, text))
        match self._actions[problem]:
            case "reject":
                raise Reject(text, enhanced="5.7.25")
            case "defer":
                raise Defer(text, enhanced="4.7.25")


def _note(envelope: Envelope, address: IpAddress, result: str) -> None:
    found = AuthResult("iprev", result, properties={"policy.iprev": str(address)})
    results_of(envelope).append(found)
