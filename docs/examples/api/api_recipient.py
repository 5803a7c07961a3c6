"""Deliver mail for user+folder@domain to user@domain."""

from minismtp import Address, Local, Recipient, hookimpl, plugin
from minismtp.testing import Dialogues, Mailroom


@plugin
class Folders:
    domain: str

    @hookimpl
    def route(self, recipient: Recipient) -> Local | None:
        user, plus, _ = recipient.address.local.partition("+")
        if recipient.address.domain != self.domain or not plus:
            return None  # the next plugin knows
        return Local(Address(user, self.domain))


def test_mail_for_a_folder_is_for_its_user(dialogue: Dialogues, mailroom: Mailroom) -> None:
    session = dialogue(Folders(domain="example.org"), mailroom)
    session.mail("x", to=("alice+news@example.org", "bob@example.org"))
    assert sorted(mailroom.stored) == ["alice@example.org", "bob@example.org"]
