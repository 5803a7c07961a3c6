"""Where mail is written: which file system that is, whether it has a journal, and a private one."""

from __future__ import annotations

import contextlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOGS: Final = ("xfs", "btrfs", "zfs", "jfs", "f2fs", "bcachefs")
_JOURNALS: Final = Path("/proc/fs/jbd2")  # one entry, DEVICE-INODE, for each journal of ext4


@dataclass(frozen=True)
class FileSystem:
    """The file system of a directory, as a report names it."""

    kind: str
    device: str
    options: str
    journal: bool

    @classmethod
    def of(cls, directory: Path) -> FileSystem:
        """Return the file system of a directory, by /proc/self/mountinfo."""
        number = directory.stat().st_dev
        wanted = f"{os.major(number)}:{os.minor(number)}"
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            mount, _, source = line.partition(" - ")
            if mount.split()[2] == wanted:
                kind, device, _ = source.split(" ", 2)
                return cls(kind, device, mount.split()[5], _journal(kind, wanted, device))
        return cls("unknown", "unknown", "", journal=False)

    def __str__(self) -> str:
        journal = "with a journal" if self.journal else "WITHOUT a journal"
        return f"{self.kind} {journal} on {self.device} ({self.options})"


def _journal(kind: str, number: str, device: str) -> bool:
    if not kind.startswith("ext"):
        return kind in _LOGS
    uevent = Path(f"/sys/dev/block/{number}/uevent")
    names = [Path(device).name]
    if uevent.exists():
        names += [line[8:] for line in uevent.read_text().splitlines() if line[:8] == "DEVNAME="]
    with contextlib.suppress(FileNotFoundError):
        return any(entry.name.rpartition("-")[0] in names for entry in _JOURNALS.iterdir())
    return False


@contextlib.contextmanager
def image(size: str, directory: Path) -> Iterator[Path]:
    """Yield a new ext4 with a journal, in a file of `size` in `directory`; it goes at the end.

    Needs root. The loop device does direct I/O: otherwise the page cache of the file system below
    would be measured. The blocks are allocated now, not in the middle of a measurement.
    """
    file = directory / f"minismtp-bench-{os.getpid()}.img"
    mount = directory / f"minismtp-bench-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        stack.callback(file.unlink, missing_ok=True)
        _run("fallocate", "--length", size, str(file))
        _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(file))
        device = _run("losetup", "--find", "--show", "--direct-io=on", str(file)).strip()
        stack.callback(_run, "losetup", "--detach", device)
        mount.mkdir(mode=0o755)
        stack.callback(mount.rmdir)
        _run("mount", "-o", "noatime", device, str(mount))
        stack.callback(_run, "umount", "--lazy", str(mount))  # a process may still be ending
        yield mount


def _run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
