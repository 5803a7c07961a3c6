"""Listening sockets, which are opened here or passed by systemd."""

from __future__ import annotations

import errno
import os
import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from minismtp.config import Config
from minismtp.config.mistakes import ConfigError, reason
from minismtp.config.types import EVERY_HOST, SocketAddress
from minismtp.inspection.ports import holders, named
from minismtp.server.privileges import acting_as_owner

_FIRST_DESCRIPTOR: Final = 3  # SD_LISTEN_FDS_START
_BACKLOG: Final = 4096
_ADVICE: Final = "stop it, or choose another port"


class ListenError(Exception):
    """Addresses that cannot be listened on; a line for each with file, key, address and reason."""


def open_listeners(config: Config, adopted: dict[str, socket.socket]) -> dict[str, socket.socket]:
    """Return the listening socket of each listener by name. Raise ListenError.

    Sockets from systemd are matched by FileDescriptorName, never by their order. A listener for
    which systemd passed no socket is opened here. The error names all that cannot be opened.
    """
    sockets, mistakes = {}, []
    for index, listener in enumerate(config.listeners):
        key = f"listeners[{index}].address"
        try:
            sock = adopted.get(listener.name) or open_socket(listener.address, config, key)
        except ListenError as error:
            mistakes.append(str(error))
            continue
        # The configuration allowed clear text because of its address, which the socket must have.
        exempt = listener.takes_mail and listener.tls == "none" and listener.address.is_local
        if exempt and not _is_local(sock):
            text = "a local address needs no TLS, but the socket of systemd is not local"
            mistakes.append(_located(text, config, key))
        sock.setblocking(False)
        sockets[listener.name] = sock
    for name in sorted(adopted.keys() - {listener.name for listener in config.listeners}):
        text = f"systemd passes a socket {name!r}, but no listener has that name"
        mistakes.append(_located(text, config))
    if mistakes:
        raise ListenError("\n".join(mistakes))
    return sockets


def _located(text: str, config: Config, key: str = "") -> str:
    return str(config.locate(ConfigError(text, key=key)))


def adopt(environment: dict[str, str], pid: int) -> dict[str, socket.socket]:
    """Return the sockets that systemd passes, by name. Raise ListenError."""
    if environment.get("LISTEN_PID") != str(pid):
        return {}
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    count = int(environment.get("LISTEN_FDS", "0"))
    found = {}
    for offset in range(count):
        sock = socket.socket(fileno=_FIRST_DESCRIPTOR + offset)
        os.set_inheritable(sock.fileno(), False)
        name = names[offset] if offset < len(names) else f"unknown-{offset}"
        if name in found:
            raise ListenError(
                f"systemd passes two sockets {name!r}, but each needs a name of its own"
            )
        found[name] = sock
    return found


def open_socket(address: SocketAddress, config: Config, key: str) -> socket.socket:
    """Return a socket that listens on an address and does not block. Raise ListenError.

    The error has the place of the address, which is that of a key of the configuration.
    """
    try:
        if address.path:
            sock = _open_unix(address.path)
            sock.listen(_BACKLOG)
        else:
            sock = _open_tcp(address.host, address.port)
    except OSError as error:
        problem = reason(error).partition(" (while")[0]  # the library names the address too
        if error.errno == errno.EADDRINUSE and not address.path:
            problem += f" by {named(holders(address, certain=True) or [])}; {_ADVICE}"
        text = f"cannot listen on {address}: {problem}"
        raise ListenError(_located(text, config, key)) from None
    sock.setblocking(False)
    return sock


def _open_tcp(host: str, port: int) -> socket.socket:
    """Return a listening socket. One for every host has IPv6, unless the kernel has none.

    IPv4 clients of such a socket have IPv4-mapped addresses (RFC 4291 section 2.5.5.2).
    """
    both = host == EVERY_HOST
    dualstack = both and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dualstack or ":" in host else socket.AF_INET
    return socket.create_server(
        ("" if both else host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=dualstack
    )


def _is_local(sock: socket.socket) -> bool:
    return sock.family == socket.AF_UNIX or ip_address(sock.getsockname()[0]).is_loopback


def _open_unix(path: Path) -> socket.socket:
    """Bind a unix socket, and replace one that an earlier server left.

    Root does so as the owner of the directory.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with acting_as_owner(path.parent):
            if path.is_socket():
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                    probe.setblocking(False)  # if the queue is full, connecting fails with EAGAIN
                    if probe.connect_ex(str(path)) == errno.ECONNREFUSED:
                        path.unlink()
            sock.bind(str(path))
    except OSError:
        sock.close()
        raise
    return sock


def bound(sock: socket.socket, address: SocketAddress) -> SocketAddress:
    """Return the address of a socket, with the port that the kernel chose for port 0."""
    if address.path:
        return address
    host, port = sock.getsockname()[:2]
    return SocketAddress(EVERY_HOST if address.host == EVERY_HOST else host, port)
