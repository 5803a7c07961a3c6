"""Refuse bounces for more than one recipient, before their content is sent."""

from minismtp import Envelope, Reject, hookimpl, plugin
from minismtp.testing import Dialogues, Mailroom


@plugin
class SingleBounce:
    @hookimpl
    def on_data(self, envelope: Envelope) -> None:
        if envelope.reverse_path is None and len(envelope.recipients) > 1:
            raise Reject("a bounce has one recipient")


def test_bounce_for_two_is_refused(dialogue: Dialogues, mailroom: Mailroom) -> None:
    both = ("a@example.org", "b@example.org")
    session = dialogue(SingleBounce(), mailroom)
    reply = session.mail("Subject: x\n\ny\n", sender="", to=both)
    assert reply == "550 5.7.1 a bounce has one recipient"
