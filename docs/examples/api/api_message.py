"""Add a disclaimer field to long mail, and drop mail that says it is a test."""

from minismtp import Message, hookimpl, plugin, texts_of
from minismtp.testing import Dialogues, Mailroom


@plugin
class LongMail:
    words: int = 1000

    @hookimpl
    def on_message(self, message: Message) -> None:
        if message.headers.get("X-Test"):
            message.discard("a test")
        if len(texts_of(message).visible.split()) > self.words:
            message.prepend("X-Long", "yes")


def test_long_mail_is_marked(dialogue: Dialogues, mailroom: Mailroom) -> None:
    session = dialogue(LongMail(words=2), mailroom)
    session.mail("Subject: x\n\none two three\n", to=("a@example.org",))
    session.mail("Subject: x\n\none\n", to=("b@example.org",))
    session.mail("X-Test: yes\n\none\n", to=("c@example.org",))
    assert mailroom.stored["a@example.org"][0].startswith(b"X-Long: yes\r\n")
    assert not mailroom.stored["b@example.org"][0].startswith(b"X-Long")
    assert "c@example.org" not in mailroom.stored
