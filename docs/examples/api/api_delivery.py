"""Tell other servers how often mail was tried."""

from minismtp import Delivery, Message, hookimpl, plugin
from minismtp.testing import Dialogues


@plugin
class Tried:
    @hookimpl
    def on_send(self, delivery: Delivery, message: Message) -> None:
        if delivery.envelope.login is not None:
            message.prepend("X-Attempt", f"{delivery.attempts + 1} to {delivery.domain}")


def test_attempt_is_in_the_header(dialogue: Dialogues) -> None:
    message, _ = dialogue(Tried(), login="alice").leave("x", to=("bob@b.example",))
    assert message.headers.get("X-Attempt") == "1 to b.example"
