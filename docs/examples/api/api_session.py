"""Take mail of users only inside TLS, and of programs without a name not at all."""

from minismtp import Reject, Session, hookimpl, plugin
from minismtp.testing import Dialogues, Mailroom


@plugin
class Manners:
    @hookimpl
    def on_mail(self, session: Session) -> None:
        if session.login is not None and session.tls is None:
            raise Reject("please use TLS")
        if session.helo in ("localhost", "user"):
            raise Reject(f"{session.peer} did not tell its name")


def test_user_without_tls_is_refused(dialogue: Dialogues, mailroom: Mailroom) -> None:
    assert dialogue(Manners(), mailroom, login="alice").mail("x") == "550 5.7.1 please use TLS"
    assert dialogue(Manners(), mailroom, login="alice", tls=True).mail("x").startswith("250 ")
    assert dialogue(Manners(), mailroom).mail("x").startswith("250 ")
