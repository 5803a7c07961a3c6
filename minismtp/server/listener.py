"""The listening side of a worker: it accepts connections and runs each session in a thread.

Threads are used again, because starting one takes 250 us and handing a connection to a waiting one
a fifth of that. One more thread, the watch, enforces the deadlines of all sessions.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final, TypeAlias

from minismtp.config import Listener
from minismtp.mail.session import Session
from minismtp.runtime import log as logging
from minismtp.runtime.session_limits import Admission
from minismtp.services.tls import Certificates
from minismtp.session.connection import Connection
from minismtp.session.listener_context import ListenerContext, new_id
from minismtp.values.reply import Reply
from minismtp.values.threads import report, start_thread, surviving

_TICK: Final = 1.0  # seconds; the longest that a loop waits, so that its turns show that it runs
_SHORTEST_TICK: Final = 0.05
_ONE_OF_US: Final = select.EPOLLIN | select.EPOLLEXCLUSIVE


_Inbox: TypeAlias = "queue.SimpleQueue[tuple[Connection, Callable[[], None]]]"


class Sessions:
    """The running sessions of one worker, their threads and their deadlines."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._running: set[Connection] = set()
        self._idle: list[_Inbox] = []
        self._changed = threading.Condition()
        self._stopped = False
        self.turns = 0  # of the watch; while it grows, the watch runs

    def __len__(self) -> int:
        return len(self._running)

    def run(self, connection: Connection, finished: Callable[[], None]) -> None:
        """Run a session in a thread of its own, then call `finished`.

        Raise RuntimeError or MemoryError if no thread can be started, and do not call `finished`.
        """
        try:
            inbox = self._idle.pop()
        except IndexError:
            inbox = queue.SimpleQueue()
            start_thread("session", partial(self._work, inbox))
        self._running.add(connection)
        try:
            inbox.put((connection, finished))
        except MemoryError:
            self._running.discard(connection)
            raise

    def reports(self, *, stack: bool) -> list[dict[str, object]]:
        """Return a report of each session, on request with the stack of its thread."""
        return [connection.report(stack=stack) for connection in self._running.copy()]

    def start_watch(self) -> None:
        """Start the thread that cuts sessions whose deadline has passed."""
        start_thread("watch", self._watch)

    def drain(self, timeout: float) -> bool:
        """End the sessions by 421 at their next command. Return whether all ended in time."""
        self._stopped = True
        now = self._clock()
        for connection in self._running.copy():
            connection.drain(now)
        with self._changed:
            return self._changed.wait_for(lambda: not self._running, timeout)

    def _work(self, inbox: _Inbox) -> None:
        thread, bound = threading.current_thread(), logging.bound()
        while True:
            connection, finished = inbox.get()
            try:
                bound["session"] = connection.session.id
                thread.name = f"session {connection.session.id}"
                try:
                    connection.run()
                finally:
                    connection.close()  # a session that failed early did not do so
                    thread.name = "session"
                    bound.clear()
                    self._running.discard(connection)
                    finished()
            except BaseException as error:  # noqa: BLE001 - the thread goes on
                report(error, "session")
            if self._stopped:
                with self._changed:
                    self._changed.notify_all()
            del connection, finished  # or the session stays in memory until the next one
            self._idle.append(inbox)

    def _watch(self) -> None:
        tick = _TICK
        while True:
            time.sleep(tick)
            now = self._clock()
            nearest = now + _TICK
            for connection in self._running.copy():
                due = connection.due
                if due <= now:
                    with surviving("watch"):
                        connection.cut("timeout", now)
                elif due < nearest:
                    nearest = due
            tick = max(nearest - now, _SHORTEST_TICK)
            self.turns += 1


class Server(socketserver.ThreadingTCPServer):
    """One listener of one worker, on a listening socket that all workers share."""

    def __init__(
        self,
        listener: Listener,
        sock: socket.socket,
        context: ListenerContext,
        sessions: Sessions,
        admission: Admission,
        *,
        slot: int = 0,
        certificates: Certificates | None = None,
    ) -> None:
        # The constructor of the base class would open another socket; this one listens already.
        socketserver.BaseServer.__init__(
            self,
            ("", 0) if listener.address.path else sock.getsockname()[:2],
            socketserver.BaseRequestHandler,
        )
        self.socket = sock
        self._family = sock.family
        if self._family != socket.AF_UNIX:
            # All replies of a batch are sent at once, so Nagle's algorithm could only delay them.
            # On Linux, accepted connections inherit this.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.listener = listener
        self._context = context
        self._sessions = sessions
        self._admission = admission
        self._slot = slot
        self._certificates = certificates
        # Users can still submit mail when many connections come from outside.
        self._reserved = context.limits.reserved_sessions if listener.kind == "mx" else 0
        self.turns = 0  # of the loop that accepts; while it grows, the loop runs
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve_forever(self, poll_interval: float = 0.0) -> None:  # noqa: ARG002 - nothing is polled
        """Accept connections until `stop`. Each connection wakes only one of the workers.

        The kernel wakes the first waiting worker in its list. A worker that accepted a connection
        registers again, which moves it to the end of the list. Otherwise one worker on one core
        would run nearly all sessions.
        """
        with select.epoll() as poll:
            poll.register(self.socket, _ONE_OF_US)
            poll.register(self._wake_read, select.EPOLLIN)
            while True:
                ready = {descriptor for descriptor, _ in poll.poll(_TICK)}
                if ready - {self._wake_read}:
                    # Also while stopping, because no other worker was woken for this connection.
                    self._accept()
                if ready != {self._wake_read}:
                    # A new registration reports connections that already wait. The kernel may have
                    # woken a worker for them that hangs or died.
                    poll.unregister(self.socket)
                    poll.register(self.socket, _ONE_OF_US)
                self.turns += 1
                if self._wake_read in ready:
                    return

    def stop(self) -> None:
        """Make `serve_forever` return."""
        os.write(self._wake_write, b"x")

    def _serve(self, request: socket.socket, peer: str, port: int) -> None:
        """Hand a connection to a thread, or refuse it with 421 if a limit is reached.

        If this raises, the connection no longer counts for the limits.
        """
        proxied = bool(self.listener.proxy_protocol) and self.listener.is_behind(peer)
        admitted = self._admission.enter(
            self._slot, "" if proxied else peer, reserved=self._reserved
        )
        if isinstance(admitted, str):
            self._refuse(request, peer, admitted)
            return
        try:
            self._begin(request, peer, port, admitted, proxied=proxied)
        except (RuntimeError, MemoryError):
            self._admission.leave(self._slot, admitted)
            self._refuse(request, peer, "threads")
        except BaseException:
            self._admission.leave(self._slot, admitted)
            raise

    def _begin(
        self, request: socket.socket, peer: str, port: int, admitted: bytes, *, proxied: bool
    ) -> None:
        """Hand an admitted connection to a thread.

        Raise RuntimeError or MemoryError if none can be started.
        """
        session = Session(
            id=new_id(),
            listener=self.listener.name,
            kind=self.listener.kind,
            hostname=self._context.hostname,
            peer=peer,
            peer_port=port,
            started=self._context.wall(),
        )
        if self._family != socket.AF_UNIX:
            session.local = _peer(request.getsockname())[0]
        connection = Connection(
            request,
            self._context,
            session,
            self._certificates,
            implicit_tls=self.listener.tls == "implicit",
        )

        def introduce(found: str) -> bool:
            nonlocal admitted
            address = self._admission.introduce(self._slot, found)
            admitted = admitted if address is None else address
            return address is not None

        if proxied:
            connection.introduce = introduce
        self._sessions.run(connection, lambda: self._admission.leave(self._slot, admitted))

    def server_close(self) -> None:
        """Close this worker's descriptors. The other workers keep the listening socket."""
        self.socket.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _accept(self) -> None:
        try:
            # Its public form looks up enums for family and type, which takes 5 us.
            descriptor, address = self.socket._accept()  # type: ignore[attr-defined]  # noqa: SLF001
            request = socket.socket(self._family, socket.SOCK_STREAM, 0, descriptor)
        except BlockingIOError:
            return
        except OSError as error:
            # The client hung up, or there are too few descriptors: then wait for sessions to end.
            self._context.log.warning("accept failed", error=str(error))
            self._context.draining.wait(_SHORTEST_TICK)
            return
        try:
            self._serve(request, *_peer(address))
        except OSError:
            # It failed before its session began.
            self._context.log.error("connection not served", peer=_peer(address)[0])
            request.close()
        except BaseException:
            request.close()
            raise

    def _refuse(self, request: socket.socket, peer: str, limit: str) -> None:
        metrics = self._context.metrics
        metrics.add(metrics.connections["limited"])
        metrics.buffer.announce()
        text = f"{self._context.hostname} too many connections, try again later"
        reply = Reply(421, text, "4.7.0")
        said = {} if self.listener.tls == "implicit" else {"reply": str(reply)}
        self._context.log_refusal("connection limited", peer=peer, limit=limit, **said)
        with contextlib.suppress(OSError):
            request.setblocking(False)
            if said:
                request.send(reply.encode())
        request.close()


def _peer(address: object) -> tuple[str, int]:
    """Return the IP address and port of a peer. An IPv4-mapped IPv6 address becomes IPv4."""
    if isinstance(address, tuple):
        host = str(address[0]).partition("%")[0]
        return host.removeprefix("::ffff:") if "." in host else host, int(address[1])
    return "unix", 0
