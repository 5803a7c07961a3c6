"""The dialogues of old and odd clients, replayed from `data/dialogues` to a server.

Each file was written from public descriptions of such clients: `C:` is what one says, `S:` how the
server has to answer, `# to:` whose mailbox gets the mail.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from minismtp_plugins._maildir_paths import path_component

if TYPE_CHECKING:
    from conftest import Launch, Running

DIALOGUES: Final = sorted((Path(__file__).parent / "data" / "dialogues").iterdir())


@pytest.fixture(scope="module")
def server(launch: Launch) -> Iterator[Running]:
    """Run a server with defaults, for all of them."""
    with launch() as server:
        yield server


def lines(path: Path) -> list[tuple[bytes, bytes]]:
    """Read a dialogue: who speaks, and what."""
    parted = [line.partition(b":") for line in path.read_bytes().split(b"\n") if line]
    return [(who, said.removeprefix(b" ")) for who, _, said in parted]


def test_there_are_five_of_them() -> None:
    assert len(DIALOGUES) >= 5


@pytest.mark.parametrize("path", DIALOGUES, ids=lambda path: path.name)
def test_mail_of_an_odd_client_is_stored(path: Path, server: Running) -> None:
    dialogue = lines(path)
    [mailbox] = [said.decode() for who, said in dialogue if who == b"# to"]
    with server.connect() as client:
        for who, said in dialogue:
            if who == b"C":
                client.send(said + b"\r\n")
            elif who == b"S":
                reply = client.reply()
                assert reply.startswith(said.decode()), reply
    [stored] = server.mail(path_component(mailbox))
    subject = next(said for who, said in dialogue if who == b"C" and said[:8] == b"Subject:")
    assert b"\r\n" + subject + b"\r\n" in stored
    assert b"\nReceived: from " in stored
    assert stored.partition(b"\r\n\r\n")[0].isascii()
