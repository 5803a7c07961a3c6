"""Let each client connect once in ten seconds."""

from datetime import timedelta

from minismtp import Defer, ServerInfo, Session, hookimpl, plugin
from minismtp.testing import Dialogues


@plugin
class Slowly:
    pause: timedelta = timedelta(seconds=10)

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        self._state, self._now = server.state, server.wall

    @hookimpl
    def on_connect(self, session: Session) -> None:
        now = self._now()
        last = self._state.get(session.peer)
        self._state.put(session.peer, str(now), self.pause)
        if last is not None and now - float(last) < self.pause.total_seconds():
            raise Defer("slow down")


def test_client_has_to_wait(dialogue: Dialogues) -> None:
    assert dialogue(Slowly()).banner.startswith("220 ")
    assert dialogue(Slowly()).banner.startswith("421 ")
    dialogue.advance(timedelta(seconds=11))
    assert dialogue(Slowly()).banner.startswith("220 ")
