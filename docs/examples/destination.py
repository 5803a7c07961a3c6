"""Send the mail for some domains to hosts of our own choice."""

from minismtp import Delivery, Destination, hookimpl, plugin
from minismtp.testing import Dialogues


@plugin
class Branches:
    hosts: dict[str, str]

    @hookimpl
    def destination(self, delivery: Delivery) -> Destination | None:
        host = self.hosts.get(delivery.domain)
        return None if host is None else Destination(host, tls="verified")


def test_domain_of_a_branch_has_its_host(dialogue: Dialogues) -> None:
    session = dialogue(Branches(hosts={"example.net": "mail.branch.example"}))
    _, hop = session.leave("Subject: x\n\ny\n", to=("bob@example.net",))
    assert hop == Destination("mail.branch.example", tls="verified")
    _, hop = session.leave("Subject: x\n\ny\n", to=("eve@example.com",))
    assert hop is None  # as the configuration and the DNS have it
