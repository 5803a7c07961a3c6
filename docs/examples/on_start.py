"""Read a list once in each process, and refuse to start without it."""

from pathlib import Path

from minismtp import Reject, ServerInfo, Session, hookimpl, plugin
from minismtp.testing import Dialogues


@plugin
class PeerList:
    name: str = "peers"

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        self._peers = set((server.state_directory / self.name).read_text().split())

    @hookimpl
    def on_connect(self, session: Session) -> None:
        if session.peer in self._peers:
            raise Reject("your host is on our list")


def test_peer_on_the_list_is_refused(dialogue: Dialogues, tmp_path: Path) -> None:
    (tmp_path / "peers").write_text("192.0.2.1\n192.0.2.9\n")
    assert dialogue(PeerList(), peer="192.0.2.9").banner.startswith("554 ")
