"""Take one message of a session for a few recipients only, counting those that exist."""

from minismtp import Defer, Envelope, hookimpl, plugin
from minismtp.testing import Dialogues, Mailroom


@plugin
class Few:
    most: int = 5

    @hookimpl
    def on_routed(self, envelope: Envelope) -> None:
        if len(envelope.recipients) >= self.most:
            raise Defer("too many recipients for one message", code=452, enhanced="4.5.3")


def test_recipient_beyond_the_last_is_put_off(dialogue: Dialogues, mailroom: Mailroom) -> None:
    session = dialogue(Few(most=2), mailroom)
    session.send("EHLO client.example")
    session.send("MAIL FROM:<sender@client.example>")
    replies = [session.send(f"RCPT TO:<{name}@example.org>") for name in "abc"]
    assert [reply[:3] for reply in replies] == ["250", "250", "452"]
