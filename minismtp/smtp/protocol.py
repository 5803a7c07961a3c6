"""The SMTP session as a pure machine: bytes in, events out, one reply for each event.

    protocol.receive(data)
    while (event := protocol.next_event()) is not NEED_DATA:
        ... decide ...
        output += protocol.send(reply)

Replies drive the state: `states.TRANSITIONS` maps (state, verb, class of the reply) to the next
state, so the machine moves by what the hooks decided. A verb without a row in the present state is
out of sequence and becomes a `Refused` with 503. Only this class changes the state.

Commands, `SaslResponse`, `EndOfChunk`, `EndOfContent` and `Refused` need a reply. `Bdat` and
`ContentChunk` do not: BDAT is answered at the end of its chunk, whose octets are consumed even if
it is refused (RFC 3030 section 2).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import ClassVar, Final, TypeAlias

from minismtp.smtp.commands import (
    GREETINGS,
    LONGEST_LINE,
    Bdat,
    Command,
    CommandProblem,
    Other,
    StartTls,
    parse,
)
from minismtp.smtp.dot_stuffing import DotDecoder
from minismtp.smtp.states import AUTH, CLOSED, DATA, START, TLS, TRANSITIONS, SessionState
from minismtp.values.reply import Reply

_ALLOWED: Final = frozenset((state, verb) for state, verb, _ in TRANSITIONS)

_NO_RECIPIENTS: Final = frozenset({(SessionState.REFUSED, "DATA"), (SessionState.REFUSED, "BDAT")})
_CLOSING: Final = 421  # closes from every state, RFC 5321 section 3.8
_TLS_RECORD: Final = b"\x16\x03"
_BDAT: Final = b"BDAT"
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/]*={0,2}")
_VERB_ROOM: Final = 512  # octets kept of a line that is too long, among them its verb


class Signal(Enum):
    """What `next_event` gives if there is no event."""

    NEED_DATA = auto()


NEED_DATA: Final = Signal.NEED_DATA


@dataclass(frozen=True, slots=True)
class ContentChunk:
    """Some octets of the content, at least one, in their order."""

    data: bytes


@dataclass(frozen=True, slots=True)
class EndOfContent:
    """The end of DATA. The flags say what the content had that RFC 5321 forbids."""

    bare_newline: bool
    long_line: bool


@dataclass(frozen=True, slots=True)
class EndOfChunk:
    """The end of the octets of a BDAT command."""

    last: bool


@dataclass(frozen=True, slots=True)
class SaslResponse:
    """A line of an authentication exchange, still in base64; `*` cancels (RFC 4954 section 4)."""

    verb: ClassVar[str] = "AUTH"
    data: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """A line that can only be answered with `reply`."""

    verb: str
    reply: Reply


Event: TypeAlias = (
    Command | ContentChunk | EndOfContent | EndOfChunk | SaslResponse | Refused | Signal
)


@dataclass(eq=False, slots=True, kw_only=True, repr=False)
class Protocol:
    """One SMTP or LMTP session with its input buffer.

    `line_length` is the limit for text lines of DATA in octets with CRLF, 0 = no limit. With
    `strict_pipelining` a client has to await the reply to EHLO.
    """

    lmtp: bool = False
    line_length: int = 0
    strict_pipelining: bool = False
    state: SessionState = field(default=SessionState.CONNECTED, init=False)
    _verb: str = field(default="CONNECT", init=False)
    _buffer: bytes = field(default=b"", init=False)
    _at: int = field(default=0, init=False)  # where the input begins that is in no event yet
    _line: bytes = field(default=b"", init=False)
    _overlong: bytes = field(default=b"", init=False)
    _decoder: DotDecoder | None = field(default=None, init=False)
    _chunk: Bdat | None = field(default=None, init=False)
    _chunk_refusal: Refused | None = field(default=None, init=False)
    _octets: int = field(default=0, init=False)  # of the chunk that are still to come
    _lost: bool = field(default=False, init=False)

    @property
    def verb(self) -> str:
        """What the next reply is for: a verb, CONNECT, RESPONSE, CONTENT, LAST; "" for nothing."""
        return self._verb

    @property
    def in_content(self) -> bool:
        """Whether the next octets are content: after 354, or in a BDAT chunk."""
        return self.state is DATA or self._chunk is not None

    @property
    def buffered(self) -> bool:
        """Whether the buffer has input that is in no event yet."""
        return self._at < len(self._buffer)

    @property
    def line(self) -> bytes:
        """The last command line without CRLF. Of a line that is too long, its beginning."""
        return self._line

    @property
    def upcoming(self) -> bytes:
        """The next line as far as it is in the buffer, for `minismtp trace`."""
        end = self._buffer.find(b"\r\n", self._at)
        return self._buffer[self._at : end if end >= 0 else None]

    def receive(self, data: bytes) -> None:
        """Take octets from the peer."""
        self._buffer = self._buffer[self._at :] + data if self.buffered else data
        self._at = 0

    def send(self, reply: Reply) -> bytes:
        """Answer the last event, move on, and give the octets to send."""
        self._move(reply)
        return reply.encode()

    def send_each(self, replies: list[Reply]) -> bytes:
        """Answer the content of LMTP: one reply for each recipient (RFC 2033 section 4.2)."""
        self._move(next((reply for reply in replies if reply.code == _CLOSING), replies[-1]))
        return b"".join([reply.encode() for reply in replies])

    def close(self) -> None:
        """End the session. No further event follows."""
        self.state = SessionState.CLOSED

    def restart(self) -> None:
        """Forget the session after a TLS handshake (RFC 3207 section 4.2)."""
        self.state = SessionState.START
        self._buffer = b""
        self._at = 0

    def next_event(self) -> Event:
        """Return the next event, or NEED_DATA."""
        if self.state is CLOSED or self.state is TLS:
            return NEED_DATA
        if self._verb:
            raise RuntimeError(f"{self._verb} awaits its reply")
        if self._decoder is not None:
            return self._next_content(self._decoder)
        if self._chunk is not None:
            return self._next_octets(self._chunk)
        at_start = self.state is START and not self._overlong
        if at_start and self._buffer.startswith(_TLS_RECORD, self._at):
            return self._refuse("OTHER", Reply(421, "this port speaks plain SMTP first", "4.7.0"))
        line = self._next_line()
        if line is None:
            return NEED_DATA
        if self.state is AUTH:
            return self._next_response(line)
        return self._next_command(line)

    def _move(self, reply: Reply) -> None:
        verb, self._verb = self._verb, ""
        if not verb:
            raise RuntimeError("there is nothing to answer")
        if reply.code == _CLOSING or self._lost:
            self.state = SessionState.CLOSED
            return
        self.state = TRANSITIONS.get((self.state, verb, reply.category), self.state)
        if self.state is DATA:
            self._decoder = DotDecoder(self.line_length)

    def _refuse(self, verb: str, reply: Reply) -> Refused:
        self._verb = "REFUSED"
        if verb in GREETINGS:
            reply = Reply(reply.code, reply.text)  # RFC 2034 section 3: no enhanced code there
        return Refused(verb, reply)

    def _next_line(self) -> bytes | None:
        """Return the next line without CRLF, or None if its end is missing.

        A line longer than any limit is returned as its beginning and zeros. They keep it too long,
        so the parser refuses it.
        """
        end = self._buffer.find(b"\r\n", self._at)
        if end < 0:
            if len(self._buffer) - self._at > LONGEST_LINE:
                # Memory stays bounded: of the line only its verb and a CR at its end are kept.
                self._overlong = self._overlong or self._buffer[self._at : self._at + _VERB_ROOM]
                self._buffer = self._buffer[-1:] if self._buffer.endswith(b"\r") else b""
                self._at = 0
            return None
        line = self._buffer[self._at : end]
        self._at = end + 2
        if self._overlong:
            line, self._overlong = self._overlong.ljust(LONGEST_LINE, b"\0"), b""
        return line

    def _next_command(self, line: bytes) -> Event:
        self._line = line
        try:
            command = parse(line)
        except CommandProblem as problem:
            refused = self._refuse(problem.verb, problem.reply)
            self._lost = _is_chunk(line)
            if problem.verb == "RCPT":
                self._verb = "RCPT"  # for the reply to DATA, RFC 5321 section 3.3
            return refused
        verb = command.verb
        if verb in GREETINGS and self.lmtp is not (verb == "LHLO"):
            # RFC 2033 section 4.1
            text = "this is LMTP: say LHLO" if self.lmtp else "this is SMTP: say EHLO"
            return self._refuse(verb, Reply(500, text))
        if isinstance(command, Bdat):
            return self._begin_chunk(command)
        if isinstance(command, Other) and (SessionState.START, verb) not in _ALLOWED:
            self._lost = _is_chunk(line)
            verb = "OTHER"
        if (self.state, verb) not in _ALLOWED:
            return self._refuse(command.verb, self._out_of_sequence(verb))
        if isinstance(command, StartTls) and self.buffered:
            # RFC 3207 section 6: commands that came in clear must not count as sent inside TLS.
            self._at = len(self._buffer)
            return self._refuse(verb, Reply(421, "nothing may follow STARTTLS", "4.7.0"))
        if self.strict_pipelining and verb in GREETINGS and self.buffered:
            # RFC 2920 section 3.1: EHLO is the last of a group, its reply must be awaited.
            return self._refuse(verb, Reply(503, "wait for the reply before you go on"))
        self._verb = verb
        return command

    def _out_of_sequence(self, verb: str) -> Reply:
        if self.state is START:
            return Reply(503, f"say {'LHLO' if self.lmtp else 'EHLO'} first", "5.5.1")
        if (self.state, verb) in _NO_RECIPIENTS:
            # RFC 5321 section 3.3; RFC 2033 section 4.2 insists on 503.
            return Reply(503 if self.lmtp else 554, "no valid recipients", "5.5.1")
        if self.state is SessionState.CHUNKS and verb == "DATA":
            return Reply(503, "DATA cannot be mixed with BDAT", "5.5.1")
        return Reply(503, "bad sequence of commands", "5.5.1")

    def _next_response(self, line: bytes) -> Event:
        self._verb = "RESPONSE"
        self._lost = _is_chunk(line) and not _BASE64.fullmatch(line.strip(b" \t"))
        if len(line) + 2 > LONGEST_LINE:
            # RFC 4954 section 4: 500 5.5.6, and the exchange fails.
            return Refused("AUTH", Reply(500, "authentication line too long", "5.5.6"))
        return SaslResponse(line)

    def _begin_chunk(self, command: Bdat) -> Event:
        self._chunk = command
        self._octets = command.size
        if (self.state, "BDAT") in _ALLOWED:
            return command
        self._chunk_refusal = Refused("BDAT", self._out_of_sequence("BDAT"))
        return self._next_octets(command)

    def _next_octets(self, chunk: Bdat) -> Event:
        refusal = self._chunk_refusal
        if self._octets and self.buffered:
            data = self._buffer[self._at : self._at + self._octets]
            self._at += len(data)
            self._octets -= len(data)
            if refusal is None:
                return ContentChunk(data)
        if self._octets:
            return NEED_DATA
        self._chunk = None
        if refusal is not None:
            self._chunk_refusal = None
            return self._refuse(refusal.verb, refusal.reply)
        self._verb = "LAST" if chunk.last else "BDAT"
        return EndOfChunk(chunk.last)

    def _next_content(self, decoder: DotDecoder) -> Event:
        while not decoder.done:
            if not self.buffered:
                return NEED_DATA
            data = decoder.decode(self._buffer[self._at :])
            self._buffer = decoder.rest
            self._at = 0
            if data:
                return ContentChunk(data)
        self._decoder = None
        self._verb = "CONTENT"
        return EndOfContent(decoder.bare_newline, decoder.long_line)


def _is_chunk(line: bytes) -> bool:
    """Return whether a malformed line was meant as BDAT.

    An unknown number of octets follows it, which must not be read as commands, so the session ends.
    """
    return line.lstrip()[: len(_BDAT)].upper() == _BDAT
