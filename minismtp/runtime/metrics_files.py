"""The files in which a process keeps its metrics, with disk space reserved for them.

prometheus-client maps sparse files into memory. On a full disk, a write to such a page kills the
process by SIGBUS. So the space of each file is reserved before it is mapped. If the disk is full,
the values stay in the memory of the process and are not exported.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
from pathlib import Path
from typing import Final

from prometheus_client import mmap_dict
from prometheus_client import values as prometheus_values

_SIZE: Final = 1 << 16  # octets of a new file, as in prometheus-client
_log = logging.getLogger(__name__)


class ReservedDict(mmap_dict.MmapedDict):
    """Values by key in the file `filename`, which grows only into reserved space."""

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        path = Path(filename)
        try:
            with path.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, max(_SIZE, path.stat().st_size))
        except OSError as error:
            _log.error("metrics are not exported, %s: %s", filename, error.strerror)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            filename = f"/proc/self/fd/{os.memfd_create(path.name)}"
            os.truncate(filename, _SIZE)
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        needed = self._used + len(key.encode()) + 32  # for its length, padding and two numbers
        while needed > self._capacity:
            self._grow()
        super()._init_value(key)  # type: ignore[no-untyped-call]

    def _grow(self) -> None:
        size = 2 * self._capacity
        try:
            os.posix_fallocate(self._f.fileno(), 0, size)
            self._m = mmap.mmap(self._f.fileno(), size)
        except OSError as error:
            _log.error("metrics are not exported any more, %s: %s", self._fname, error.strerror)
            before, self._m = self._m, mmap.mmap(-1, size)
            self._m[: self._capacity] = before[:]
        self._capacity = size


def install() -> None:
    """Have prometheus-client use these files from now on."""
    prometheus_values.MmapedDict = ReservedDict  # type: ignore[attr-defined]
