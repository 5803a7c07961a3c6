"""Refuse senders at one domain, in whatever spelling it comes."""

from minismtp import Address, Envelope, Reject, hookimpl, plugin
from minismtp.testing import Dialogues, Mailroom


@plugin
class NotFrom:
    domain: str

    def __post_init__(self) -> None:
        self._domain = Address("", self.domain).ascii_domain

    @hookimpl
    def on_mail(self, envelope: Envelope) -> None:
        sender = envelope.reverse_path
        if sender is not None and sender.ascii_domain == self._domain:
            raise Reject(f"mail from {sender.unicode_domain} is not taken here")


def test_each_spelling_is_refused(dialogue: Dialogues, mailroom: Mailroom) -> None:
    for sender in ("a@BÜCHER.example", "a@xn--bcher-kva.example"):
        session = dialogue(NotFrom(domain="bücher.example"), mailroom)
        session.send("EHLO client.example")
        assert session.send(f"MAIL FROM:<{sender}> SMTPUTF8")[:3] == "550"
