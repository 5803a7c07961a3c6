"""Log who fails to log in, in lines of one's own."""

import logging

import pytest

from minismtp import hookimpl, plugin
from minismtp.events import Authenticated, Event
from minismtp.testing import Dialogues

LOG = logging.getLogger("logins")


@plugin
class Logins:
    @hookimpl
    def observe(self, event: Event) -> None:
        if isinstance(event, Authenticated) and event.result == "failure":
            LOG.warning("%s failed from %s", event.username, event.peer)


@plugin
class Nobody:
    @hookimpl
    def authenticate(self) -> str | None:
        return None


def test_failed_login_is_logged(dialogue: Dialogues, caplog: pytest.LogCaptureFixture) -> None:
    session = dialogue(Logins(), Nobody(), kind="submission", tls=True)
    session.send("EHLO client.example")
    session.send("AUTH PLAIN AGFsaWNlAGd1ZXNz")  # alice, guess
    assert caplog.messages == ["alice failed from 192.0.2.1"]
