"""Let those send mail to other hosts who have logged in or belong to a trusted network."""

from dataclasses import field
from ipaddress import IPv4Network, IPv6Network, ip_address

from minismtp import Envelope, Recipient, Relay, Session, hookimpl, plugin


@plugin
class Relaying:
    """Route every recipient that no plugin before has routed, for users and trusted networks.

    `networks` are those whose hosts need not log in. It belongs after the plugins that know which
    recipients are ours. Nobody else is answered, so their recipients stay refused (550 5.7.1).
    """

    networks: list[IPv4Network | IPv6Network] = field(default_factory=list)

    @hookimpl
    def route(self, session: Session, envelope: Envelope, recipient: Recipient) -> Relay | None:
        """Send a recipient's copy to its own address."""
        del envelope, recipient
        if session.login is not None or self._trusts(session.peer):
            return Relay()
        return None

    def _trusts(self, peer: str) -> bool:
        if not self.networks or peer == "unix":
            return False
        address = ip_address(peer)
        return any(address in network for network in self.networks)
