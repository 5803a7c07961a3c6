"""Pass on mail of those who have logged in or belong to a trusted network, and of our domains."""

from dataclasses import field
from ipaddress import IPv4Network, IPv6Network, ip_address

from minismtp import Address, Envelope, Recipient, Relay, Session, hookimpl, plugin

_WIDEST = {4: 8, 6: 16}  # prefixes of networks that one organization may have


@plugin
class Relaying:
    """Route every recipient that no plugin before has routed, for users and trusted networks.

    `networks` are those whose hosts need not log in; what is not private and wider than /8 (IPv6:
    /16) is refused. As for users, NOTIFY=SUCCESS counts for them, and what failed comes back with
    its content. `domains` are those whose mail we take from everybody, to pass it on: as a backup
    MX, to the hosts that their MX records prefer to us; as a gateway, by a route of `[outbound]`.
    It belongs after the plugins that know which recipients are ours. Nobody else is answered, so
    their recipients stay refused (550 5.7.1).
    """

    networks: list[IPv4Network | IPv6Network] = field(default_factory=list)
    domains: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for domain in self.domains:
            form = Address("", domain).ascii_domain
            if not (form and form.isascii()) or "@" in form or any(map(str.isspace, form)):
                raise ValueError(f"domains: {domain!r} is not a domain")
        self._domains = {Address("", domain).ascii_domain for domain in self.domains}
        for network in self.networks:
            if not network.is_private and network.prefixlen < _WIDEST[network.version]:
                raise ValueError(f"networks: {network} is too wide: an open relay for strangers")

    @hookimpl
    def on_connect(self, session: Session) -> None:
        """Tell the server that a peer is no stranger."""
        if self._trusts(session.peer):
            session.trusted = True

    @hookimpl
    def route(self, session: Session, envelope: Envelope, recipient: Recipient) -> Relay | None:
        """Send a recipient's copy to its own address."""
        del envelope
        ours = recipient.address.ascii_domain in self._domains
        if ours or session.login is not None or self._trusts(session.peer):
            return Relay()
        return None

    def _trusts(self, peer: str) -> bool:
        if not self.networks or peer == "unix":
            return False
        address = ip_address(peer)
        return any(address in network for network in self.networks)
