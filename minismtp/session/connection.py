"""One connection: the socket, TLS, and time.

A session's thread blocks in plain `recv` and `send` without any timeout of its own. `due` says
until when it may. The server's watch thread looks at `due` and shuts the socket down at that time.
This wakes the session's thread from a command that trickles in, from a TLS handshake, and from a
peer that does not read. So every deadline is absolute and costs the ordinary path nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import threading
from collections.abc import Callable
from math import inf
from typing import Final

from minismtp.mail.session import Session, TlsInfo, is_silent
from minismtp.runtime.thread_activity import Activity
from minismtp.services import client_certificate
from minismtp.services.tls import Certificates, tls_info
from minismtp.session.listener_context import ListenerContext
from minismtp.session.receiver import Receiver
from minismtp.smtp.preamble import ProxyProblem, read_header, read_hello
from minismtp.values.durable_files import MisdirectedError
from minismtp.values.threads import report

_GRACE: Final = 5.0  # seconds for the last reply of a session that was cut
# Octets asked for between commands. An idle session holds a buffer of this size, which comes from
# the interpreter's pool of small objects. With 8 KiB it would cost two or three pages instead.
_COMMANDS: Final = 448
_CONTENT: Final = 65536
_LINGER: Final = 64  # reads of input that a peer still sends after the last reply


class Connection:
    """Runs a session over a socket. One thread calls `run`, the watch thread `cut` and `drain`.

    `introduce` is set if a balancer sends a PROXY header. It is called with the peer's address and
    returns whether this peer may have one more session.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: ListenerContext,
        session: Session,
        certificates: Certificates | None,
        *,
        implicit_tls: bool,
    ) -> None:
        self.due = inf
        self.session = session
        self.introduce: Callable[[str], bool] | None = None
        self._socket = sock
        self._context = context
        self._certificates = certificates
        self._implicit_tls = implicit_tls
        self._activity = Activity()
        self._receiver = Receiver(context, session, self._activity)
        self._closing = threading.Lock()
        self._closed = False
        status = os.fstat(sock.fileno())
        self._identity = (status.st_dev, status.st_ino)
        self._messages = 0
        self._cut_reason = ""
        self._reason = ""  # how the session ended, where the receiver does not know

    def report(self, *, stack: bool) -> dict[str, object]:
        """Return how the session stands, with the Python stack of its thread if `stack` is set."""
        found = self._receiver.report() | {"waiting": self.due != inf}
        return found | self._activity.stack() if stack else found

    def run(self) -> None:
        """Run the whole session, and close the socket."""
        with self._activity:
            try:
                self._converse()
            except ProxyProblem as problem:
                self._reason = self._cut_reason or "proxy"
                peer = self.session.peer
                self._context.log_refusal("PROXY refused", peer=peer, error=str(problem))
            except (ssl.SSLError, OSError) as error:
                self._note(error)
            except Exception as error:  # noqa: BLE001 - a bug here; the client tries again
                report(error)
                self._apologize()
            finally:
                try:
                    self._receiver.finished(self._reason)
                finally:
                    self.close()

    def _converse(self) -> None:
        if self.introduce is not None:
            self._meet(self.introduce)
        if self._implicit_tls and not self._receiver.closing:
            self._handshake()
        if not self._receiver.closing:
            self._greet()
        while not self._receiver.closing:
            self._turn()
        self._linger()

    def cut(self, reason: str, now: float) -> None:
        """Wake the session's thread, which sends a last reply. A second call ends even that."""
        with self._closing:
            if self._closed:
                return
            how = socket.SHUT_RDWR if self._cut_reason else socket.SHUT_RD
            self._cut_reason = self._cut_reason or reason
            self.due = now + _GRACE
            with contextlib.suppress(OSError):
                # Not SSLSocket.shutdown: that drops TLS and lets the rest go out in clear.
                socket.socket.shutdown(self._socket, how)

    def drain(self, now: float) -> None:
        """Cut a session that waits between two commands. Others notice `draining` themselves."""
        if self.due != inf and self._receiver.at_boundary:
            self.cut("draining", now)

    def _greet(self) -> None:
        delay = self._context.greet_delay
        early = self._speaks_within(delay) if delay else False
        greeting = b""
        if not self._cut_reason:
            self.session.speaks_within = self._speaks_within
            greeting = self._receiver.greet(early=early)
            self.session.speaks_within = is_silent  # drops the reference to this connection
        if self._cut_reason or self._context.draining.up:
            self._send(self._receiver.interrupt(self._cut_reason or "draining"))
        else:
            self._send(greeting)

    def _turn(self) -> None:
        """Receive what the peer sends next, and answer it."""
        receiver = self._receiver
        self.due = receiver.deadline
        if self._context.draining.up and receiver.at_boundary:
            self._send(receiver.interrupt("draining"))
            return
        data = self._receive()
        self.due = inf
        if self._cut_reason or not data:
            self._send(receiver.interrupt(self._cut_reason or "lost"))
            return
        self._answer(receiver.receive(data))
        while receiver.pending:
            self._answer(receiver.proceed())
        if receiver.wants_tls:
            self._handshake()

    def _receive(self) -> bytes:
        if not self._receiver.at_boundary:
            return self._socket.recv(_CONTENT)
        data = self._socket.recv(_COMMANDS)
        return data + self._at_hand() if len(data) == _COMMANDS else data

    def _at_hand(self) -> bytes:
        """Return input that has also arrived, because a group of commands is answered at once."""
        if isinstance(self._socket, ssl.SSLSocket):
            waiting = self._socket.pending()
            return self._socket.recv(waiting) if waiting else b""
        try:
            return self._socket.recv(_CONTENT, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""

    def _answer(self, data: bytes) -> None:
        """Send replies. Those to errors are held back, unless the process is about to end."""
        receiver = self._receiver
        if receiver.delay:
            with self._activity.during("holds its reply back after errors"):
                self._context.draining.wait(receiver.take_delay())
        if receiver.messages != self._messages:
            self._messages = receiver.messages
            self._check_socket()
        self._send(data)

    def _check_socket(self) -> None:
        """Raise MisdirectedError if the reply to a message would reach another peer."""
        status = os.fstat(self._socket.fileno())
        if (status.st_dev, status.st_ino) != self._identity:
            self._socket.detach()
            self._context.log.error("the socket was closed by somebody else, not replied")
            raise MisdirectedError

    def _send(self, data: bytes) -> None:
        if data:
            self.due = self._receiver.deadline
            # The `sendall` of a TLS socket is Python, and one `send` takes nearly every reply.
            if rest := data[self._socket.send(data) :]:
                self._socket.sendall(rest)
            self.due = inf

    def _meet(self, introduce: Callable[[str], bool]) -> None:
        """Learn from the PROXY header who the peer is. Raise ProxyProblem."""
        self.due = self._handshake_due
        header = read_header(self._exactly)
        self.due = inf
        session = self.session
        session.proxied = not header.local
        if header.tls is not None and self._context.clear_auth:
            session.tls = TlsInfo(*header.tls)  # its way to us is loopback
        if header.local:
            # A health check is served like any client, but it is neither logged nor counted.
            self._receiver = Receiver(self._context.silent(), session, self._activity)
        elif header.peer:
            session.peer, session.peer_port = header.peer, header.peer_port
            session.local = header.called
            if not introduce(header.peer):
                self._send(self._receiver.interrupt("limited"))

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self._socket.recv(count - len(data))
            if self._cut_reason or not more:
                raise ProxyProblem("connection ended within the PROXY header")
            data += more
        return data

    def _speaks_within(self, seconds: float) -> bool:
        """Return whether the peer sends something before it is greeted.

        It does not count if the peer closes the connection, or if `cut` does.
        """
        self.due = self._context.clock() + seconds + _GRACE
        if self._context.draining.up:
            return False
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        heard = bool(poll.poll(seconds * 1000))
        self.due = inf
        if not heard:
            return False
        with contextlib.suppress(OSError):
            return bool(socket.socket.recv(self._socket, 1, socket.MSG_PEEK))
        return False

    def _handshake(self) -> None:
        if self._certificates is None:
            raise OSError("no certificates")
        self.due = self._handshake_due
        name = read_hello(self._peek).name if self._certificates.has_names else b""
        context = self._certificates.current(name)
        client_certificate.expect()
        with self._closing:
            wrapped = context.wrap_socket(
                self._socket, server_side=True, do_handshake_on_connect=False
            )
            self._socket = wrapped
        wrapped.do_handshake()
        self.due = inf
        if problem := client_certificate.problem():
            self._context.log_refusal(
                "client certificate not accepted", peer=self.session.peer, error=problem
            )
        self._receiver.secured(tls_info(wrapped))

    def _peek(self, count: int) -> bytes:
        return self._socket.recv(count, socket.MSG_PEEK | socket.MSG_WAITALL)

    @property
    def _handshake_due(self) -> float:
        """When the PROXY header and the TLS handshake must be over."""
        timeout = self._context.limits.handshake_timeout.total_seconds()
        return min(self._context.clock() + timeout, self._receiver.deadline)

    def _linger(self) -> None:
        """Let the last reply arrive, because closing with unread input resets the connection."""
        self._close_tls()
        if self._receiver.reason == "quit" and not self._receiver.unread:
            return
        self.due = self._context.clock() + 1.0
        socket.socket.shutdown(self._socket, socket.SHUT_WR)
        for _ in range(_LINGER):
            if not socket.socket.recv(self._socket, _CONTENT):
                return

    def _close_tls(self) -> None:
        """Send close_notify, so that the peer knows nothing was cut off. Await no answer."""
        if isinstance(self._socket, ssl.SSLSocket):
            self._socket.settimeout(0)
            with contextlib.suppress(OSError, ValueError):
                self._socket.unwrap()
            self._socket.settimeout(None)

    def _apologize(self) -> None:
        """Send the replies decided so far, and end a session whose next reply is unknown."""
        with contextlib.suppress(OSError):
            self._send(self._receiver.take())
            self._send(self._receiver.interrupt("fault"))

    def _note(self, error: OSError) -> None:
        """Remember why the connection broke."""
        if self._cut_reason:
            self._reason = self._cut_reason
        elif isinstance(error, ssl.SSLError) and self.session.tls is None:
            self._reason = "tls"
            self._context.log_refusal(
                "TLS handshake failed",
                peer=self.session.peer,
                error=error.reason or str(error),
            )

    def close(self) -> None:
        """Close the socket. A second call does nothing."""
        if not self._closed:
            with self._closing:
                self._closed = True
                self.due = inf
                self._socket.close()
