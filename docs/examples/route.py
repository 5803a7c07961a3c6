"""Deliver every address of a domain to one mailbox."""

from minismtp import Address, Local, Recipient, hookimpl, plugin
from minismtp.testing import Dialogues, Mailroom


@plugin
class CatchAll:
    domain: str
    mailbox: Address

    @hookimpl
    def route(self, recipient: Recipient) -> Local | None:
        return Local(self.mailbox) if recipient.address.domain == self.domain else None


def test_mail_for_anybody_goes_to_one_mailbox(dialogue: Dialogues, mailroom: Mailroom) -> None:
    plugin = CatchAll(domain="example.net", mailbox=Address.parse("all@example.org"))
    dialogue(plugin, mailroom).mail("Subject: x\n\ny\n", to=("who@example.net",))
    assert list(mailroom.stored) == ["all@example.org"]
