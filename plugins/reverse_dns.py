"""Ask the DNS for the name of a client, and whether the name has its address (FCrDNS)."""

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
    """Look up at MAIL the name that belongs to the client's address, and the addresses of the name.

    `missing` is for an address without a name, `unconfirmed` for one whose name does not have the
    address: "reject" refuses with 550 5.7.25, "defer" with 451 4.7.25 (RFC 7372), "tag" makes a
    finding with its `points`. Many honest hosts have no name, or a wrong one. When the DNS does not
    answer within `patience`, that is a failure of this plugin, for `on_error`, where something else
    than "tag" is to be done; else mail passes.

    The name is under `CLIENT_NAME` in the session's stash, and `results_of(envelope)` has iprev
    (RFC 8601 section 2.7.3). Sessions with a login are left alone, and so are `networks`, by
    default loopback, private and link-local ones; yours take the place of the default.
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
        """Know whom to ask."""
        self._resolver: Resolver = server.resolver

    @hookimpl
    def on_mail(self, session: Session, envelope: Envelope) -> None:
        """Look the client up, once in a session, and judge it."""
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
