"""The options and actions that filters of clients share."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import ip_address
from typing import Literal, TypeAlias

from minismtp import Defer, Envelope, Finding, Reject, ServerInfo, Session, findings_of, hookimpl

from ._dns import IpAddress, IpNetwork, local_networks, unmapped
from ._options import check_time

#: The filters of this package that leave findings, and those that leave results.
FINDINGS = (
    *("attachments", "dnsbl", "early_talker", "helo", "reverse_dns", "rspamd", "rules"),
    *("spamassassin", "spf"),
)
RESULTS = ("arc", "dkim_verify", "dmarc", "reverse_dns", "spf")
_PEERS = 256  # addresses that each filter remembers
Action: TypeAlias = Literal["reject", "defer", "tag", "off"]


class Filter:
    """A filter that uses the resolver, the state or the clock of its process."""

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Take the resolver, the state and the clock."""
        self._resolver, self._state, self._clock = server.resolver, server.state, server.wall


@dataclass(eq=False, kw_only=True)
class ClientCheck(Filter):
    """A filter of clients that neither have a login nor are in `networks`."""

    networks: list[IpNetwork] = field(default_factory=local_networks)

    def address_of(self, session: Session) -> IpAddress | None:
        """Return the address of a client to check, or None."""
        if session.login is not None or session.peer == "unix":
            return None
        return self._strangers(session.peer)

    @functools.cached_property
    def _strangers(self) -> Callable[[str], IpAddress | None]:
        def stranger(peer: str) -> IpAddress | None:
            address = unmapped(ip_address(peer))
            return None if any(address in network for network in self.networks) else address

        return functools.lru_cache(_PEERS)(stranger)


@dataclass(eq=False, kw_only=True)
class DnsCheck(Filter):
    """A filter that asks the DNS, for at most the time `patience` for each message."""

    patience: timedelta = timedelta(seconds=10)

    def __post_init__(self) -> None:
        check_time("patience", self.patience)


def note(envelope: Envelope, plugin: str, name: str, points: float, text: str) -> None:
    """Append a finding if it has points."""
    if points:
        findings_of(envelope).append(Finding(plugin, name, points, text))


def act(action: Action, text: str, status: str = "7.1") -> None:
    """Refuse or defer if the action says so; `status` is the enhanced code without its class."""
    if action == "reject":
        raise Reject(text, enhanced=f"5.{status}")
    if action == "defer":
        raise Defer(text, enhanced=f"4.{status}")
