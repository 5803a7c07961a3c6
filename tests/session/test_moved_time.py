"""Time that a test moves: plugins, their state and the session see it pass at once."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from minismtp_plugins.greylist import Greylist
from minismtp_plugins.rate_limit import Limit, RateLimit

from minismtp import Defer, Rate, ServerInfo, hookimpl, plugin
from minismtp.config import Config
from minismtp.testing import Clock, Dialogue, Dialogues, Mailroom

MINUTE = timedelta(minutes=1)


@plugin
class Pause:
    """Defers a client's second session in a minute, by a clock or by the state."""

    by_state: bool = False

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        self._server = server
        self._last = -1000.0

    @hookimpl
    def on_connect(self) -> None:
        state, now = self._server.state, self._server.clock()
        if self.by_state:
            if state.add("clients", 1, MINUTE) > 1:
                raise Defer("wait a minute")
        elif now - self._last < 60:
            raise Defer("wait a minute")
        self._last = now


@pytest.mark.parametrize("by_state", [True, False])
def test_plugin_sees_time_pass(by_state: bool, dialogue: Dialogues) -> None:
    session = dialogue(Pause(by_state=by_state))

    def banner() -> str:
        return Dialogue(service=session.service).banner[:3]

    assert banner() == "421"
    dialogue.advance(timedelta(seconds=59))
    assert banner() == "421"
    dialogue.advance(timedelta(seconds=61))
    assert banner() == "220"


def test_greylisted_mail_passes_after_its_delay(dialogue: Dialogues) -> None:
    greylist = Greylist(delay=timedelta(minutes=5))
    assert dialogue(greylist, Mailroom()).mail("x").startswith("451 4.7.1 greylisted")
    dialogue.advance(timedelta(minutes=5))
    assert dialogue(Greylist(), Mailroom()).mail("x").startswith("250 ")


def test_configured_greylist_passes_after_its_delay(dialogue: Dialogues, tmp_path: Path) -> None:
    document: dict[str, object] = {
        "state_directory": "state",
        "listeners": [{"name": "smtp", "address": "127.0.0.1:0", "tls": "none"}],
        "plugins": [{"use": "greylist"}, {"use": "mailboxes", "domains": ["example.org"]}],
    }
    config = Config.build(document, file="mini.toml", base=tmp_path)
    for reply in ("451", "250"):
        session = dialogue.configured(config, "smtp")
        session.send("EHLO client.example")
        session.send("MAIL FROM:<a@client.example>")
        assert session.send("RCPT TO:<b@example.org>")[:3] == reply
        dialogue.advance(timedelta(minutes=6))


def test_limit_is_free_again_after_its_span(dialogue: Dialogues) -> None:
    limit = Limit(by="login", messages=Rate(1, timedelta(hours=1)))
    session = dialogue(RateLimit(limits=[limit]), Mailroom(), login="alice")
    assert session.mail("x").startswith("250")
    assert session.mail("x").startswith("4")
    session.advance(timedelta(hours=1, minutes=4))
    assert session.mail("x").startswith("250")


def test_session_sees_time_pass_too(dialogue: Dialogues) -> None:
    session = dialogue(Mailroom())
    before = session.service.wall(), session.service.clock()
    session.advance(timedelta(days=1))
    after = session.service.wall(), session.service.clock()
    for old, new in zip(before, after, strict=True):
        assert 86_400 <= new - old < 86_400 + 600


def test_time_of_a_session_without_the_fixture_can_be_moved() -> None:
    clock = Clock(wall=lambda: 1000.0, monotonic=lambda: 5.0)
    session = Dialogue(Pause(), clock=clock)
    assert session.service.wall() == 1000.0
    clock.advance(timedelta(seconds=10))
    assert (session.service.wall(), session.service.clock()) == (1010.0, 15.0)


def test_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="forward"):
        Clock().advance(timedelta(seconds=-1))


def test_real_server_has_the_real_clocks(tmp_path: Path) -> None:
    info = ServerInfo("mx.example.org", tmp_path, "worker", 0)
    assert info.clock() <= info.clock()
    assert info.wall() > 1.7e9
    assert replace(info, wall=lambda: 0.0) == info
