"""The least that a threaded SMTP server in Python can do, as the limit for workloads c, c1 and e.

    bare_sink.py PORT PROCESSES CERTIFICATE KEY

It has the shape of minismtp: some processes that share a listening socket, and a thread for each
session that blocks. It checks nothing, not even a password, keeps nothing and logs nothing.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import sys
from threading import Thread
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_REPLIES: Final = {
    b"EHLO": b"250-bench.example.org\r\n250-STARTTLS\r\n250-AUTH PLAIN\r\n250 PIPELINING\r\n",
    b"STAR": b"220 go ahead\r\n",
    b"AUTH": b"235 ok\r\n",
    b"DATA": b"354 send the message\r\n",
    b"QUIT": b"221 bye\r\n",
}
_OTHER: Final = b"250 ok\r\n"


def serve(connection: socket.socket, tls: ssl.SSLContext) -> None:
    """Answer every command, and reply 250 to every message without storing it."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        connection.sendall(b"220 bench.example.org\r\n")
        for replies in dialogue(connection):
            connection.sendall(b"".join(replies))
            if replies == [_REPLIES[b"STAR"]]:
                with tls.wrap_socket(connection, server_side=True) as secured:
                    for inside in dialogue(secured):
                        secured.sendall(b"".join(inside))
                return


def dialogue(connection: socket.socket) -> Iterator[list[bytes]]:
    """Yield the replies to each packet, until the client quits or leaves."""
    waiting, verb = b"", b""
    while verb != b"QUIT" and (data := connection.recv(65536)):
        waiting += data
        replies = []
        while (end := waiting.find(b"\r\n.\r\n" if verb == b"DATA" else b"\r\n")) >= 0:
            if verb == b"DATA":
                waiting, verb = waiting[end + 5 :], b""
                replies.append(_OTHER)
            else:
                verb, waiting = waiting[:4].upper(), waiting[end + 2 :]
                replies.append(_REPLIES.get(verb, _OTHER))
        yield replies


def main() -> None:
    """Listen, start the other processes, and accept connections in each."""
    port, processes = map(int, sys.argv[1:3])
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*sys.argv[3:])
    os.setpgrp()
    signal.signal(signal.SIGTERM, lambda _, __: os.killpg(0, signal.SIGKILL))
    listening = socket.create_server(("127.0.0.1", port), backlog=1024)
    for _ in range(processes - 1):
        if not os.fork():
            break
    while True:
        connection, _ = listening.accept()
        Thread(target=serve, args=[connection, tls], daemon=True).start()


if __name__ == "__main__":
    main()
