"""Refuse senders that nobody could answer: those of domains that are reserved."""

from minismtp import Envelope, Reject, hookimpl, plugin
from minismtp.testing import Dialogues


@plugin
class Unanswerable:
    @hookimpl
    def on_mail(self, envelope: Envelope) -> None:
        if envelope.reverse_path is None:
            return  # a bounce, which nobody answers
        if envelope.reverse_path.domain.endswith((".invalid", ".test", ".localhost")):
            raise Reject("no answer would reach you", code=553, enhanced="5.1.8")


def test_reserved_domain_is_refused_and_a_bounce_is_not(dialogue: Dialogues) -> None:
    session = dialogue(Unanswerable())
    session.send("EHLO client.example")
    assert session.send("MAIL FROM:<a@b.invalid>") == "553 5.1.8 no answer would reach you"
    assert session.send("MAIL FROM:<>").startswith("250 ")
