"""Tell users of submission how to reach the help desk."""

from minismtp import Session, hookimpl, plugin
from minismtp.testing import Dialogues


@plugin
class HelpDesk:
    telephone: str

    @hookimpl
    def ehlo_keywords(self, session: Session) -> list[str] | None:
        return [f"XHELPDESK {self.telephone}"] if session.kind == "submission" else None


def test_keyword_is_told_to_users_only(dialogue: Dialogues) -> None:
    desk = HelpDesk(telephone="+1-555-0100")
    assert "XHELPDESK +1-555-0100" in dialogue(desk, kind="submission").send("EHLO x.example")
    assert "XHELPDESK" not in dialogue(desk).send("EHLO x.example")
