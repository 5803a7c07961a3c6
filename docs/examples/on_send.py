"""Put a field on top of mail that leaves for other servers."""

from minismtp import Delivery, Message, hookimpl, plugin
from minismtp.testing import Dialogues


@plugin
class Complaints:
    address: str

    @hookimpl
    def on_send(self, delivery: Delivery, message: Message) -> None:
        if delivery.envelope.login is not None:
            message.prepend("X-Complaints-To", self.address)


def test_field_is_on_mail_of_users(dialogue: Dialogues) -> None:
    session = dialogue(Complaints(address="abuse@example.org"), login="alice")
    message, _ = session.leave("Subject: x\n\ny\n", to=("bob@example.net",))
    assert message.headers.get("X-Complaints-To") == "abuse@example.org"
