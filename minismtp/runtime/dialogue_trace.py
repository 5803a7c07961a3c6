"""The dialogue of sessions as it happens, for `minismtp trace`.

As long as nobody looks, `Tracing.outlets` is empty, and that is all a session ever asks. What is
shown is made from the protocol's events, so it is known what is secret: what authenticates is
masked, content is a number of octets, and so is whatever is no known command; it may be a password
that came too late.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final

from minismtp.mail.session import Session
from minismtp.smtp.commands import Auth
from minismtp.smtp.protocol import (
    ContentChunk,
    EndOfChunk,
    EndOfContent,
    Event,
    Refused,
    SaslResponse,
    Signal,
)
from minismtp.values.reply import Reply

_MOST: Final = 10_000  # lines that wait for one who is slow to read
_SHOWN: Final = frozenset(
    {
        *("EHLO", "HELO", "LHLO", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "QUIT"),
        *("STARTTLS", "VRFY", "EXPN", "HELP", "XCLIENT"),
    }
)
_CONTINUE: Final = 334


@dataclass(frozen=True, slots=True)
class TracedLine:
    """One line of a dialogue: `said` by "C", "S" or "-" (what happened), at epoch seconds."""

    at: float
    session: str
    peer: str
    said: str
    text: str


class Outlet:
    """Where one looks: the lines of sessions with peers in one of the networks; none = all."""

    def __init__(self, networks: tuple[IPv4Network | IPv6Network, ...]) -> None:
        self._networks = networks
        self._lines: queue.Queue[TracedLine] = queue.Queue(_MOST)
        self.lost = 0

    def wants(self, peer: str) -> bool:
        """Whether the sessions of a peer are looked at."""
        if not self._networks:
            return True
        try:
            address = ip_address(peer)
        except ValueError:  # a unix socket
            return False
        return any(address in network for network in self._networks)

    def put(self, line: TracedLine) -> None:
        """Show a line; who does not keep up loses it, for a session waits for nobody."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.lost += 1

    def get(self, patience: float) -> TracedLine | None:
        """Return the next line, None when there is none for so many seconds."""
        try:
            return self._lines.get(timeout=patience)
        except queue.Empty:
            return None


class Tracing:
    """Who looks at the sessions of one process."""

    def __init__(self) -> None:
        self.outlets: tuple[Outlet, ...] = ()
        self._lock = threading.Lock()

    def open(self, outlet: Outlet) -> None:
        """Let somebody look at all sessions, those that run included."""
        with self._lock:
            self.outlets = (*self.outlets, outlet)

    def close(self, outlet: Outlet) -> None:
        """End that."""
        with self._lock:
            self.outlets = tuple(each for each in self.outlets if each is not outlet)

    def happened(self, session: Session, text: str) -> None:
        """Show what neither side has said."""
        self._show(session, "-", text)

    def heard(self, session: Session, event: Event, line: bytes) -> None:
        """Show what the client has said: the event, and the line that it came by."""
        text = abbreviated(event, line)
        if text:
            self._show(session, "C", text)

    def answered(self, session: Session, reply: Reply) -> None:
        """Show what the server says, a line at a time."""
        # The challenges of SCRAM would let one try passwords at home.
        text = "334 ***" if reply.code == _CONTINUE else reply.encode().decode("ascii").rstrip()
        for line in text.split("\r\n"):
            self._show(session, "S", line)

    def _show(self, session: Session, said: str, text: str) -> None:
        line = TracedLine(time.time(), session.id, session.peer, said, text)
        for outlet in self.outlets:
            if outlet.wants(session.peer):
                outlet.put(line)


def abbreviated(event: Event, line: bytes) -> str:
    """Return what the client has said, without what may be secret; nothing for no words."""
    match event:
        case Signal() | EndOfChunk():
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
            return _printable(line)
        case _:
            return f"({len(line)} octets that are no known command)"


def _printable(line: bytes) -> str:
    text = line.decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
