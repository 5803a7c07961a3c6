"""Mark mail whose Date is missing, and tell other plugins."""

from minismtp import Envelope, Finding, Message, findings_of, hookimpl, plugin
from minismtp.testing import Dialogues, Mailroom


@plugin
class Dateless:
    points: float = 1.5

    @hookimpl
    def on_message(self, envelope: Envelope, message: Message) -> None:
        if not message.headers.get("Date"):
            findings_of(envelope).append(Finding("dateless", "no-date", self.points))
            message.prepend("X-Dateless", "yes")


def test_message_without_a_date_is_marked(dialogue: Dialogues, mailroom: Mailroom) -> None:
    dialogue(Dateless(), mailroom).mail("Subject: x\n\ny\n", to=("me@example.org",))
    assert mailroom.stored["me@example.org"][0].startswith(b"X-Dateless: yes\r\n")
