"""Send mail for some domains to a host of one's own, only over verified TLS."""

from minismtp import Delivery, Destination, hookimpl, plugin
from minismtp.testing import Dialogues


@plugin
class Partner:
    domains: list[str]
    host: str

    @hookimpl
    def destination(self, delivery: Delivery) -> Destination | None:
        if delivery.domain in self.domains:
            return Destination(self.host, tls="verified")
        return None


def test_mail_for_a_partner_goes_to_its_host(dialogue: Dialogues) -> None:
    session = dialogue(Partner(domains=["b.example"], host="mail.b.example"))
    assert session.leave("x", to=("bob@b.example",))[1] == Destination(
        "mail.b.example", tls="verified"
    )
    assert session.leave("x", to=("carol@c.example",))[1] is None
