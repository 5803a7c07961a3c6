"""Live dialogues of sessions, for `minismtp trace`.

While no trace runs, `Tracing.outlets` is empty, which is all that a session checks. The lines are
made from the events of the protocol, so secrets can be recognized. Credentials are masked. Content
and unknown commands appear as a number of octets, because an unknown command may be a password that
was sent too late.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Collection
from ipaddress import IPv4Network, IPv6Network
from typing import Final, TypeAlias

from minismtp.mail.session import Session
from minismtp.runtime.metrics import COMMANDS
from minismtp.smtp.commands import Auth
from minismtp.smtp.protocol import (
    ContentChunk,
    EndOfChunk,
    EndOfContent,
    Event,
    Refused,
    SaslResponse,
)
from minismtp.values.peer import in_networks
from minismtp.values.printable import one_line
from minismtp.values.reply import Reply

_MOST: Final = 10_000  # lines that wait for a slow reader
_SHOWN: Final = frozenset(COMMANDS) - {"AUTH", "CONTENT", "OTHER"}
_CONTINUE: Final = 334


#: A line of a dialogue for `minismtp trace`: `at` in epoch seconds, `session`, `peer`, `text`, and
#: `said`, which is "C" for the client, "S" for the server, or "-" for an event.
TracedLine: TypeAlias = dict[str, str | float]


class Outlet:
    """The lines of one trace: of peers in its networks, and of its sessions.

    Without networks it is of all peers, and without sessions of all sessions.
    """

    def __init__(
        self,
        networks: tuple[IPv4Network | IPv6Network, ...],
        sessions: Collection[str] = (),
    ) -> None:
        self._networks = networks
        self._sessions = frozenset(sessions)
        self._lines: queue.Queue[TracedLine] = queue.Queue(_MOST)
        self.lost = 0

    def wants(self, session: str, peer: str) -> bool:
        """Return whether this session of a peer is traced."""
        if self._sessions and session not in self._sessions:
            return False
        return not self._networks or in_networks(peer, self._networks)

    def put(self, line: TracedLine) -> None:
        """Add a line, or drop it if the reader is too slow, because sessions never wait."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.lost += 1

    def get(self, patience: float) -> TracedLine | None:
        """Return the next line, or None after `patience` seconds without one."""
        try:
            return self._lines.get(timeout=patience)
        except queue.Empty:
            return None


class Tracing:
    """The traces of the sessions of this process."""

    def __init__(self) -> None:
        self.outlets: tuple[Outlet, ...] = ()
        self._lock = threading.Lock()

    def open(self, outlet: Outlet) -> None:
        """Begin a trace of all sessions, including those already open."""
        with self._lock:
            self.outlets = (*self.outlets, outlet)

    def close(self, outlet: Outlet) -> None:
        """End a trace."""
        with self._lock:
            self.outlets = tuple(each for each in self.outlets if each is not outlet)

    def happened(self, session: Session, text: str) -> None:
        """Trace an event that neither side sent."""
        self._show(session, "-", text)

    def heard(self, session: Session, event: Event, line: bytes) -> None:
        """Trace an event that the client sent, and its line."""
        if isinstance(event, EndOfContent) and event.data:
            self.heard(session, ContentChunk(event.data), line)
        text = abbreviated(event, line)
        if text:
            self._show(session, "C", text)

    def answered(self, session: Session, reply: Reply) -> None:
        """Trace a reply of the server, line by line."""
        # With the challenges of SCRAM a reader could try passwords offline.
        text = "334 ***" if reply.code == _CONTINUE else reply.encode().decode("ascii").rstrip()
        for line in text.split("\r\n"):
            self._show(session, "S", line)

    def _show(self, session: Session, said: str, text: str) -> None:
        line: TracedLine = {"at": time.time(), "said": said, "text": text}
        line |= {"session": session.id, "peer": session.peer}
        for outlet in self.outlets:
            if outlet.wants(session.id, session.peer):
                outlet.put(line)


def abbreviated(event: Event, line: bytes) -> str:
    """Return a line of the client without secrets, or "" if the event has no text."""
    match event:
        case EndOfChunk():
            return ""
        case ContentChunk(data):
            return f"({len(data)} octets of content)"
        case EndOfContent():
            return "."
        case SaslResponse(data):
            return "*" if data == b"*" else "***"
        case Auth(mechanism=mechanism, initial=initial):
            return f"AUTH {mechanism}" + ("" if initial is None else " ***")
        case Refused(verb="AUTH"):
            return "AUTH ***"
        case _ if event.verb in _SHOWN:
            return one_line(line.rstrip(b"\0").decode("utf-8", "backslashreplace"))
        case _:
            return f"({len(line)} octets that are no known command)"
