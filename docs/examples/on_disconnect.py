"""Limit how many sessions of a client are open at once in this process."""

from collections import Counter
from threading import Lock

from minismtp import Defer, Session, StashKey, hookimpl, plugin
from minismtp.testing import Dialogues

COUNTED: StashKey[bool] = StashKey()


@plugin
class AtOnce:
    most: int = 5

    def __post_init__(self) -> None:
        self._open: Counter[str] = Counter()
        self._lock = Lock()

    @hookimpl
    def on_connect(self, session: Session) -> None:
        with self._lock:
            if self._open[session.peer] >= self.most:
                raise Defer("too many sessions at once")
            self._open[session.peer] += 1
        session.stash[COUNTED] = True

    @hookimpl
    def on_disconnect(self, session: Session) -> None:
        if session.stash.get(COUNTED, False):  # not for one that was refused
            with self._lock:
                self._open[session.peer] -= 1


def test_session_counts_until_its_end(dialogue: Dialogues) -> None:
    at_once = AtOnce(most=1)
    first = dialogue(at_once)
    assert first.banner.startswith("220 ")
    assert dialogue(at_once).banner.startswith("421 ")
    first.close()
    assert dialogue(at_once).banner.startswith("220 ")
