"""Refuse clients that call themselves by our name."""

from minismtp import Reject, Session, hookimpl, plugin
from minismtp.testing import Dialogues


@plugin
class Impostor:
    @hookimpl
    def on_helo(self, session: Session) -> None:
        if session.helo.lower() == session.hostname:
            raise Reject("that is our name, not yours")


def test_our_own_name_is_refused(dialogue: Dialogues) -> None:
    session = dialogue(Impostor())
    assert session.send("EHLO mx.example.org") == "550 that is our name, not yours"
    assert session.send("EHLO client.example").startswith("250-")
