"""Count messages, and write the number down when the process ends."""

from pathlib import Path
from threading import Lock

from minismtp import ServerInfo, hookimpl, plugin
from minismtp.testing import Dialogues, Mailroom


@plugin
class Counter:
    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        self._path = server.state_directory / f"count-{server.role}-{server.slot}"
        self._count, self._lock = 0, Lock()

    @hookimpl
    def on_message(self) -> None:
        with self._lock:  # all sessions of the process share this plugin
            self._count += 1

    @hookimpl
    def on_stop(self) -> None:
        self._path.write_text(str(self._count))


def test_number_is_written_in_the_end(
    dialogue: Dialogues, mailroom: Mailroom, tmp_path: Path
) -> None:
    session = dialogue(Counter(), mailroom)
    session.mail("Subject: x\n\ny\n")
    session.close()
    assert (tmp_path / "count-worker-0").read_text() == "1"
