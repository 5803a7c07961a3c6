"""The number of the format in which the state directory is written.

The file `format` in the state directory holds it. It grows with each release whose spool, queue.db
or state.db an earlier release would misread. A release reads all earlier formats. What was written
before this file existed has format 1.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from minismtp.config import Config
from minismtp.config.mistakes import ConfigError
from minismtp.values.durable_files import atomic_write

FORMAT: Final = 1
_NAME: Final = "format"


def state_directory(config: Config) -> Path:
    """Return the state directory. Raise ConfigError if it has a format of a later release."""
    directory = config.state_directory
    if not _is_known(directory):
        message = (
            f"{directory} was written by a later release of minismtp; this one knows formats up to"
            f" {FORMAT}. Install the later release again, or restore a backup made before it"
        )
        raise config.locate(ConfigError(message, key="state_directory"))
    return directory


def mark_format(config: Config) -> None:
    """Write the file before anything else is written. Raise ConfigError as above.

    If it cannot be written, as on a full disk, the next start tries again.
    """
    path = state_directory(config) / _NAME
    if not path.exists():
        with contextlib.suppress(OSError):
            atomic_write(path, b"%d\n" % FORMAT)


def _is_known(directory: Path) -> bool:
    try:
        content = (directory / _NAME).read_bytes()
    except OSError:
        return True  # there is none yet, or nothing here can be read, which others report
    return content in [b"%d\n" % number for number in range(1, FORMAT + 1)]
