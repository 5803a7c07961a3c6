r"""What tests of plugins need: a session in memory, and a plugin that takes its mail.

    mailroom = Mailroom()
    dialogue = Dialogue(SpamFlag(), mailroom)
    assert dialogue.mail("X-Spam-Flag: YES\n\nBuy!").startswith("550")
    assert not mailroom.stored

Everything is real but the socket: the protocol, the decisions, the guards around the plugins. With
pytest, tests just name the fixtures `dialogue`, which begins sessions, and `mailroom`:

    def test_spam_is_refused(dialogue: Dialogues, mailroom: Mailroom) -> None:
        session = dialogue(SpamFlag(), mailroom)
        assert session.mail("X-Spam-Flag: YES\n\nBuy!") == "550 5.7.1 message refused as spam"

`Dialogue.mail` returns the first refusal, or the reply to the content; `send` sends one line, and
`leave` has the plugins prepare mail for another server. `count` reads a metric, `advance` lets time
pass for plugins and their shared state, and `close` ends the session as if the connection were
lost.

Pytest finds these fixtures by itself, because the package installs `plugins/_pytest.py` as one of
its plugins. Other test runners begin sessions with `Dialogue` and end them with `close`.
"""

from minismtp.session.in_memory import Dialogue as Dialogue
from minismtp.session.in_memory import Dialogues as Dialogues
from minismtp.session.in_memory import Mailroom as Mailroom
from minismtp.values.clock import Clock as Clock
