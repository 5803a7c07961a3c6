"""Write one file of a Maildir; `maildir` explains why a crash does not lose it."""

from functools import partial
from pathlib import Path
from typing import Literal

from minismtp import DurableFile, GroupSync, Message


class Writer:
    """Writes messages and syncs each, or all of the same moment together; threads may share it.

    `state` is the directory through which the workers cooperate.
    """

    def __init__(self, sync: Literal["file", "group"], state: Path) -> None:
        self._sync = sync
        self._state = state
        self._groups: dict[int, GroupSync] = {}  # by device

    def write(self, folder: str, name: str, trace: bytes, message: Message) -> None:
        """Store a message, with `trace` before it, in new/ and on disk. Raise OSError."""
        temporary = f"{folder}/tmp/{name}"  # noqa: S108 - of the Maildir, not of the system
        with DurableFile(temporary, f"{folder}/new/{name}") as file:
            if self._sync == "group":
                group = self._group(file.status.st_dev, folder)
                file.sync = partial(group.commit, group.ticket())
            file.size = message.write_to(file.descriptor, before=trace)

    def _group(self, device: int, box: str) -> GroupSync:
        """Return the group of a file system, because Maildirs may be on several."""
        group = self._groups.get(device)
        if group is None:
            group = self._groups[device] = GroupSync(box, self._state / f"sync-{device}")
        return group
