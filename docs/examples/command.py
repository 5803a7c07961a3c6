"""Answer HELP with the address of a page."""

from minismtp import Reply, hookimpl, plugin
from minismtp.testing import Dialogues


@plugin
class HelpPage:
    page: str

    @hookimpl
    def command(self, verb: str) -> Reply | None:
        return Reply(214, f"see {self.page}", "2.0.0") if verb == "HELP" else None


def test_help_names_the_page(dialogue: Dialogues) -> None:
    session = dialogue(HelpPage(page="https://example.org/mail"))
    session.send("EHLO client.example")
    assert session.send("HELP") == "214 2.0.0 see https://example.org/mail"
    assert session.send("XFUN").startswith("500 ")
