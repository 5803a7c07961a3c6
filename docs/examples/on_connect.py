"""Keep out some networks, before anything is said."""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from minismtp import Reject, Session, hookimpl, plugin
from minismtp.testing import Dialogues


@plugin
class Closed:
    networks: list[IPv4Network | IPv6Network]

    @hookimpl
    def on_connect(self, session: Session) -> None:
        if session.peer == "unix":
            return
        if any(ip_address(session.peer) in network for network in self.networks):
            raise Reject("closed to your network")


def test_network_is_kept_out_and_others_are_greeted(dialogue: Dialogues) -> None:
    closed = Closed(networks=[ip_network("192.0.2.0/24")])
    assert dialogue(closed).banner == "554 mx.example.org closed to your network\r\n"
    assert dialogue(closed, peer="198.51.100.1").banner.startswith("220 ")
