"""Store each message as one file, which is synced before the client gets its reply."""

from pathlib import Path
from urllib.parse import quote

from minismtp import (
    Address,
    Envelope,
    Local,
    Message,
    atomic_write,
    hookimpl,
    make_directory,
    plugin,
)
from minismtp.testing import Dialogues


@plugin
class Files:
    directory: Path

    @hookimpl
    def route(self) -> Local:
        return Local()

    @hookimpl
    def deliver(self, envelope: Envelope, message: Message, mailbox: Address) -> bool:
        # The same name for the same message: a second attempt replaces the first.
        make_directory(self.directory)
        name = f"{envelope.id}-{quote(str(mailbox), safe='')}"
        with message.open() as content:  # all of it in memory: `maildir` shows a better way
            atomic_write(self.directory / name, content.read())
        return True


def test_message_is_in_its_file(dialogue: Dialogues, tmp_path: Path) -> None:
    reply = dialogue(Files(directory=tmp_path / "mail")).mail("Subject: x\n\ny\n")
    assert reply.startswith("250 ")
    [stored] = (tmp_path / "mail").iterdir()
    assert stored.read_bytes().endswith(b"Subject: x\r\n\r\ny\r\n")
