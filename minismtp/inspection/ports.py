"""Which process listens on an address, from what Linux shows below /proc."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Final, NamedTuple

from minismtp.config.types import SocketAddress

_PROC: Final = Path("/proc")
_LISTENS: Final = "0A"  # the state TCP_LISTEN in /proc/net/tcp
_SOCKET: Final = re.compile(r"socket:\[([0-9]+)\]")
_MOST_NAMED: Final = 3
_INIT: Final = 1


class Holder(NamedTuple):
    """A process that has a listening socket."""

    pid: int
    name: str

    def __str__(self) -> str:
        if self.pid == _INIT and self.name == "systemd":
            return "a socket unit of systemd (`systemctl list-sockets` names it)"
        return f"{self.name} (process {self.pid})"


def holders(address: SocketAddress, *, certain: bool = False) -> list[Holder] | None:
    """Return the processes that listen where `address` would, or None if nothing does.

    The list is empty if a socket is there whose process this user may not see. If it is `certain`
    that the address is in use, a socket for :: counts for IPv4 too, because it may serve both.
    """
    inodes = set(_inodes(address, certain=certain))
    return sorted(_processes(inodes)) if inodes else None


def named(found: list[Holder]) -> str:
    """Return the processes in words."""
    if not found:
        return "a process that this user cannot see (as root, `ss -ltnp` names it)"
    return ", ".join(map(str, found[:_MOST_NAMED]))


def _inodes(address: SocketAddress, *, certain: bool) -> Iterator[str]:
    """Yield the inode of each socket that listens on the port, on this address or on all."""
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (_PROC / "net" / name).read_text(encoding="ascii").splitlines()[1:]:
                _, local, _, state, *_, inode = line.split()[:10]
                host, _, port = local.partition(":")
                listens = state == _LISTENS and int(port, 16) == address.port
                if listens and _overlap(_address(host), address.host, certain=certain):
                    yield inode


def _address(text: str) -> str:
    """Return an address of /proc/net/tcp, which is in words of the machine's byte order."""
    words = bytes.fromhex(text)
    octets = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
    return str(ip_address(octets))


def _overlap(taken: str, wanted: str, *, certain: bool) -> bool:
    """Return whether two sockets cannot both listen."""
    try:
        ours, theirs = ip_address(wanted), ip_address(taken)
    except ValueError:
        return True  # a host name: any address may be meant
    if ours.version != theirs.version:
        return certain and theirs.is_unspecified
    return ours == theirs or ours.is_unspecified or theirs.is_unspecified


def _processes(inodes: set[str]) -> Iterator[Holder]:
    for process in _PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for entry in (process / "fd").iterdir():
                found = _SOCKET.fullmatch(str(entry.readlink()))
                if found and found[1] in inodes:
                    name = (process / "comm").read_text(encoding="utf-8", errors="replace")
                    yield Holder(int(process.name), name.strip())
                    break
