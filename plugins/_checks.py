"""The options and actions that filters of clients share."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, TypeAlias

from minismtp import Defer, Envelope, Finding, Reject, ServerInfo, Session, findings_of, hookimpl

from ._dns import IpAddress, IpNetwork, address_to_check, local_networks
from ._options import check_time

Action: TypeAlias = Literal["reject", "defer", "tag", "off"]


@dataclass(eq=False, kw_only=True)
class ClientCheck:
    """A filter of clients that neither have a login nor are in `networks`."""

    networks: list[IpNetwork] = field(default_factory=local_networks)

    def address_of(self, session: Session) -> IpAddress | None:
        """Return the address of a client to check, or None."""
        return address_to_check(session, self.networks)


@dataclass(eq=False, kw_only=True)
class DnsCheck:
    """A filter that asks the DNS, for at most the time `patience` for each message."""

    patience: timedelta = timedelta(seconds=10)

    def __post_init__(self) -> None:
        check_time("patience", self.patience)

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Take the resolver."""
        self._resolver = server.resolver


def act(
    action: Action, envelope: Envelope, finding: Finding, text: str, status: str = "7.1"
) -> None:
    """Append a finding that has points, and refuse or defer if the action says so.

    `status` is the enhanced status code without its class.
    """
    if finding.points:
        findings_of(envelope).append(finding)
    if action == "reject":
        raise Reject(text, enhanced=f"5.{status}")
    if action == "defer":
        raise Defer(text, enhanced=f"4.{status}")
