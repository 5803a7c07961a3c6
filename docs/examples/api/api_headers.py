"""Refuse mail whose subject is all capital letters, however it is encoded."""

from minismtp import Message, Reject, hookimpl, plugin
from minismtp.testing import Dialogues, Mailroom


@plugin
class Shouting:
    @hookimpl
    def on_message(self, message: Message) -> None:
        subject = message.headers.decoded("Subject")
        if subject.isupper() and "List-Id" not in message.headers:
            raise Reject("please do not shout")


def test_capital_letters_are_refused(dialogue: Dialogues, mailroom: Mailroom) -> None:
    session = dialogue(Shouting(), mailroom)
    assert session.mail("Subject: =?utf-8?q?GR=C3=9CN?=\n\nx") == "550 5.7.1 please do not shout"
    assert session.mail("Subject: GREEN\nList-Id: <a.b>\n\nx").startswith("250 ")
