"""Relay mail of users after a login, of trusted networks, and for further domains."""

from dataclasses import field
from functools import lru_cache, partial
from ipaddress import IPv4Network, IPv6Network

from minismtp import (
    Address,
    DnsZone,
    Envelope,
    PluginCheck,
    Recipient,
    Relay,
    Session,
    hookimpl,
    in_networks,
    plugin,
)

_PEERS = 1024  # of which it is remembered whether they are trusted
_WIDEST = {4: 8, 6: 16}  # shortest prefixes of networks that one organization may have


@plugin
class Relaying:
    """Route every recipient that no earlier plugin routed, for users and trusted networks.

    Hosts in `networks` need not log in; public networks wider than /8 (IPv6: /16) are not allowed.
    As for users, NOTIFY=SUCCESS works for them, and returned mail has its content. Mail for
    `domains` is accepted from all clients and relayed: as a backup MX, to the hosts that their MX
    records prefer; as a gateway, by a route of `[outbound]`. Put it after the plugins that route
    local recipients. Recipients of other clients stay refused (550 5.7.1).
    """

    networks: list[IPv4Network | IPv6Network] = field(default_factory=list)
    domains: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._trusts = lru_cache(_PEERS)(partial(in_networks, networks=self.networks))
        for domain in self.domains:
            form = Address("", domain).ascii_domain
            if not (form and form.isascii()) or "@" in form or any(map(str.isspace, form)):
                problem = f"{domain!r} is not a domain; expected such as example.org"
                raise ValueError(f"domains: {problem}")
        self._domains = dict.fromkeys(Address("", each).ascii_domain for each in self.domains)
        for network in self.networks:
            if not network.is_private and network.prefixlen < _WIDEST[network.version]:
                raise ValueError(f"networks: {network} is too wide: it would make an open relay")

    @hookimpl
    def on_connect(self, session: Session) -> None:
        """Mark a session from a trusted network as trusted."""
        if self._trusts(session.peer):
            session.trusted = True

    @hookimpl
    def on_check(self, check: PluginCheck) -> None:
        """Report plugins below this one whose recipients it would take."""
        if late := check.below_with("route"):
            text = (
                f"takes every recipient of users who logged in before {', '.join(late)} is asked,"
                " so mail between your own users is not delivered: put this table below"
                f" {late[-1]}"
            )
            sending = check.config.outbound
            if sending.smarthost or sending.routes:  # which may bring it back
                check.warn(text)
            else:
                check.error(text)

    @hookimpl
    def on_dns(self, zone: DnsZone) -> None:
        """Receive mail for the domains, whose users are elsewhere."""
        for domain in self._domains:
            zone.receive(domain, users=False)

    @hookimpl
    def route(self, session: Session, envelope: Envelope, recipient: Recipient) -> Relay | None:
        """Route a recipient to its own address."""
        del envelope
        ours = recipient.address.ascii_domain in self._domains
        if ours or session.login is not None or self._trusts(session.peer):
            return Relay()
        return None
