"""The PROXY header before a request to a web listener: a load balancer says who the client is.

The fields X-Forwarded-For and Forwarded are not read, because any client may send them.
"""

from __future__ import annotations

import socket

from minismtp.server.web_tls import seconds_left
from minismtp.smtp.preamble import ProxyHeader, ProxyProblem, read_header


def proxy_header(sock: socket.socket, due: float) -> ProxyHeader:
    """Return the header, and leave what follows it. `due` is monotonic.

    Raise ProxyProblem, and OSError such as TimeoutError.
    """

    def receive(count: int) -> bytes:
        data = b""
        while len(data) < count:
            sock.settimeout(seconds_left(due))
            more = sock.recv(count - len(data))
            if not more:
                raise ProxyProblem("connection ended within the PROXY header")
            data += more
        return data

    return read_header(receive)
