"""Close a mailbox for a while, to strangers only."""

from minismtp import Address, Defer, Recipient, Session, hookimpl, plugin
from minismtp.testing import Dialogues, Mailroom


@plugin
class Moving:
    mailboxes: list[Address]

    @hookimpl
    def on_rcpt(self, session: Session, recipient: Recipient) -> None:
        if session.login is None and recipient.address in self.mailboxes:
            raise Defer("this mailbox is moving, try again later", code=450, enhanced="4.2.1")


def test_one_recipient_waits_and_the_others_do_not(dialogue: Dialogues, mailroom: Mailroom) -> None:
    session = dialogue(Moving(mailboxes=[Address.parse("a@example.org")]), mailroom)
    session.send("EHLO client.example")
    session.send("MAIL FROM:<sender@client.example>")
    assert session.send("RCPT TO:<a@example.org>").startswith("450 4.2.1 ")
    assert session.send("RCPT TO:<b@example.org>").startswith("250 ")
