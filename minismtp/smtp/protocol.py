"""The SMTP session as a pure machine: bytes in, events out, one reply for each event.

    protocol.receive(data)
    while (event := protocol.next_event()) is not None:
        ... decide ...
        output += protocol.send(reply)

Replies drive the state: `TRANSITIONS` maps (state, verb, class of the reply) to the next
state, so the machine moves by what the hooks decided. A verb without a row in the present state is
out of sequence and becomes a `Refused` with 503. Only this class changes the state.

Commands, `SaslResponse`, `EndOfChunk`, `EndOfContent` and `Refused` need a reply. `Bdat` and
`ContentChunk` do not: BDAT is answered at the end of its chunk, whose octets are consumed even if
it is refused (RFC 3030 section 2).
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import ClassVar, Final, TypeAlias

from msgspec import Struct

from minismtp.smtp.commands import (
    GREETINGS,
    LONGEST_LINE,
    Bdat,
    Command,
    CommandProblem,
    Greeting,
    Other,
    parse,
)
from minismtp.smtp.dot_stuffing import DotDecoder
from minismtp.values.reply import Reply

_CLOSING: Final = 421  # closes from every state, RFC 5321 section 3.8
_TLS_RECORD: Final = b"\x16\x03"
_BDAT: Final = b"BDAT"
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/]*={0,2}")
_VERB_ROOM: Final = 512  # octets kept of a line that is too long, among them its verb


class SessionState(Enum):
    """Where a session stands between two events."""

    CONNECTED = auto()  # no banner yet
    UNWELCOME = auto()  # 554 banner: only QUIT is left (RFC 5321 section 3.1)
    START = auto()  # banner sent, no greeting yet
    READY = auto()  # greeted, no transaction
    MAIL = auto()  # reverse-path taken
    REFUSED = auto()  # recipients tried, none taken
    RCPT = auto()  # at least one recipient taken
    DATA = auto()  # 354 sent, dot-stuffed content follows
    CHUNKS = auto()  # at least one chunk taken, more to come
    AUTH = auto()  # a challenge sent, a response follows
    TLS = auto()  # 220 sent, a handshake follows
    CLOSED = auto()  # nothing follows

    __hash__ = object.__hash__  # Enum's own is a Python function, and each event asks two tables


# In Python 3.11 access to a member of an Enum costs 0.05 us, and each message needs these about
# forty times.
CLOSED: Final = SessionState.CLOSED
TLS: Final = SessionState.TLS
START: Final = SessionState.START
AUTH: Final = SessionState.AUTH
DATA: Final = SessionState.DATA
CHUNKS: Final = SessionState.CHUNKS

_GREETED: Final = (
    SessionState.READY,
    SessionState.MAIL,
    SessionState.REFUSED,
    SessionState.RCPT,
    SessionState.CHUNKS,
)
_OPEN: Final = (SessionState.START, *_GREETED)
_CHUNKED: Final = (SessionState.RCPT, SessionState.CHUNKS)

#: (state, verb, class of the reply) -> next state. A class without a row leaves the state as it is,
#: if the verb has a row in that state at all. 421 closes in every state.
TRANSITIONS: Final[dict[tuple[SessionState, str, int], SessionState]] = {
    (SessionState.CONNECTED, "CONNECT", 2): SessionState.START,
    (SessionState.CONNECTED, "CONNECT", 5): SessionState.UNWELCOME,
    (SessionState.UNWELCOME, "QUIT", 2): SessionState.CLOSED,
    **{
        (s, greeting, 2): SessionState.READY for s in _OPEN for greeting in ("EHLO", "HELO", "LHLO")
    },
    **{(s, "RSET", 2): SessionState.READY for s in _GREETED},
    (SessionState.START, "RSET", 2): SessionState.START,
    **{(s, "QUIT", 2): SessionState.CLOSED for s in _OPEN},
    **{(s, v, 2): s for s in _OPEN for v in ("NOOP", "HELP", "VRFY", "EXPN", "OTHER")},
    (SessionState.READY, "STARTTLS", 2): SessionState.TLS,
    (SessionState.READY, "AUTH", 3): SessionState.AUTH,
    (SessionState.READY, "AUTH", 2): SessionState.READY,
    (SessionState.AUTH, "RESPONSE", 3): SessionState.AUTH,
    **{(SessionState.AUTH, "RESPONSE", c): SessionState.READY for c in (2, 4, 5)},
    (SessionState.READY, "XCLIENT", 2): SessionState.START,
    (SessionState.START, "XCLIENT", 2): SessionState.START,
    (SessionState.READY, "MAIL", 2): SessionState.MAIL,
    (SessionState.MAIL, "RCPT", 2): SessionState.RCPT,
    **{(SessionState.MAIL, "RCPT", c): SessionState.REFUSED for c in (4, 5)},
    (SessionState.REFUSED, "RCPT", 2): SessionState.RCPT,
    (SessionState.RCPT, "RCPT", 2): SessionState.RCPT,
    (SessionState.RCPT, "DATA", 3): SessionState.DATA,
    **{(SessionState.DATA, "CONTENT", c): SessionState.READY for c in (2, 4, 5)},
    **{(s, "BDAT", 2): SessionState.CHUNKS for s in _CHUNKED},
    **{(s, "BDAT", c): SessionState.READY for s in _CHUNKED for c in (4, 5)},
    **{(s, "LAST", c): SessionState.READY for s in _CHUNKED for c in (2, 4, 5)},
}

#: The same by state, verb and class, so that a verb out of sequence is a missing key. The keys are
#: not tuples, because `get` of a tuple takes 30 us on a free-threaded Python 3.13.
NEXT_STATES: Final[dict[SessionState, dict[str, dict[int, SessionState]]]] = {
    state: {} for state in SessionState
}
for (_state, _verb, _category), _next in TRANSITIONS.items():
    NEXT_STATES[_state].setdefault(_verb, {})[_category] = _next


class ContentChunk(Struct, frozen=True):
    """Some octets of the content, at least one, in their order."""

    data: bytes


class EndOfContent(Struct, frozen=True):
    """The end of DATA, with the last octets of the content, so most messages are one event.

    The flags say what the content had that RFC 5321 forbids.
    """

    bare_newline: bool
    long_line: bool
    data: bytes = b""


class EndOfChunk(Struct, frozen=True):
    """The end of the octets of a BDAT command."""

    last: bool


class SaslResponse(Struct, frozen=True):
    """A line of an authentication exchange, still in base64; `*` cancels (RFC 4954 section 4)."""

    verb: ClassVar[str] = "AUTH"
    data: bytes


class Refused(Struct, frozen=True):
    """A line that can only be answered with `reply`."""

    verb: str
    reply: Reply


Event: TypeAlias = Command | ContentChunk | EndOfContent | EndOfChunk | SaslResponse | Refused


class Protocol:
    """One SMTP or LMTP session with its input buffer.

    `line_length` is the limit for text lines of DATA in octets with CRLF, 0 = no limit. With
    `strict_pipelining` a client has to await the reply to EHLO. `verb` says what the next reply is
    for: a verb, CONNECT, RESPONSE, CONTENT, LAST; it is empty if no reply is due. `line` is the
    last command line without CRLF, or the beginning of one that is too long.
    """

    def __init__(
        self, *, lmtp: bool = False, line_length: int = 0, strict_pipelining: bool = False
    ) -> None:
        self.state = SessionState.CONNECTED
        self.verb = "CONNECT"
        self.line = b""
        self._lmtp = lmtp
        self._line_length = line_length
        self._strict_pipelining = strict_pipelining
        self._next_states = NEXT_STATES[self.state][self.verb]  # by the class of the next reply
        self._buffer = b""
        self._at = 0  # where the input begins that is in no event yet
        self._overlong = b""
        self._decoder: DotDecoder | None = None
        self._chunk: Bdat | None = None
        self._octets = 0  # of the chunk that are still to come
        self._chunk_refusal: Reply | None = None
        self._lost = False

    @property
    def in_content(self) -> bool:
        """Whether the next octets are content: after 354, or in a BDAT chunk."""
        return self.state is DATA or self._chunk is not None

    @property
    def buffered(self) -> bool:
        """Whether the buffer has input that is in no event yet."""
        return self._at < len(self._buffer)

    def receive(self, data: bytes) -> None:
        """Take octets from the peer."""
        self._buffer = self._buffer[self._at :] + data
        self._at = 0

    def send(self, reply: Reply) -> bytes:
        """Answer the last event, move on, and return the octets to send."""
        if not self.verb:
            raise RuntimeError("there is nothing to answer")
        self.verb = ""
        if reply.code == _CLOSING or self._lost:
            self.state = CLOSED
        else:
            if reply.category in self._next_states:
                self.state = self._next_states[reply.category]
            if self.state is DATA:
                self._decoder = DotDecoder(self._line_length)
        return reply.octets or reply.encode()

    def send_each(self, replies: list[Reply]) -> bytes:
        """Answer the content of LMTP: one reply for each recipient (RFC 2033 section 4.2)."""
        self.send(next((reply for reply in replies if reply.code == _CLOSING), replies[-1]))
        return b"".join([reply.encode() for reply in replies])

    def close(self) -> None:
        """End the session. No further event follows."""
        self.state, self._next_states = CLOSED, {}

    def restart(self) -> None:
        """Forget the session after a TLS handshake (RFC 3207 section 4.2)."""
        self.state = START
        self._buffer = b""
        self._at = 0

    def next_event(self) -> Event | None:
        """Return the next event, or None if it needs more input."""
        state = self.state
        if state is CLOSED or state is TLS:
            return None
        if self.verb:
            raise RuntimeError(f"{self.verb} awaits its reply")
        if self._decoder is not None:
            return self._next_content(self._decoder)
        if self._chunk is not None:
            return self._next_octets(self._chunk)
        buffer, start = self._buffer, self._at
        if state is START and buffer.startswith(_TLS_RECORD, start) and not self._overlong:
            self.line = buffer[start : start + _VERB_ROOM]
            return self._refuse("OTHER", Reply(421, "this port speaks plain SMTP first", "4.7.0"))
        end = buffer.find(b"\r\n", start)
        if end < 0:
            if buffer[start + LONGEST_LINE :]:
                # Memory stays bounded: of the line only its verb and a CR at its end are kept.
                self._overlong = self._overlong or buffer[start : start + _VERB_ROOM]
                self._buffer, self._at = b"\r" if buffer.endswith(b"\r") else b"", 0
            return None
        line = buffer[start:end]
        self._at = end + 2
        if self._overlong:
            # The zeros keep it too long, so the parser refuses it.
            line, self._overlong = self._overlong.ljust(LONGEST_LINE, b"\0"), b""
        if state is AUTH:
            return self._next_response(line)
        return self._next_command(line)

    def _expect(self, verb: str) -> None:
        """Have the next reply answer `verb`, and move to one of its next states."""
        self.verb, self._next_states = verb, NEXT_STATES[self.state].get(verb, {})

    def _refuse(self, verb: str, reply: Reply) -> Refused:
        self._expect("REFUSED")
        if verb in GREETINGS:
            reply = Reply(reply.code, reply.text)  # RFC 2034 section 3: no enhanced code there
        return Refused(verb, reply)

    def _next_command(self, line: bytes) -> Event | None:
        self.line = line
        try:
            command = parse(line)
        except CommandProblem as problem:
            refused = self._refuse(problem.verb, problem.reply)
            self._lost = _is_chunk(line)
            if problem.verb == "RCPT":
                self._expect("RCPT")  # for the reply to DATA, RFC 5321 section 3.3
            return refused
        verb = command.verb
        # Not by patterns, because each takes 0.07 us where it does not fit.
        if type(command) is Bdat:
            return self._begin_chunk(command)
        if type(command) is Greeting and self._lmtp is not (verb == "LHLO"):
            # RFC 2033 section 4.1
            text = "this is LMTP: say LHLO" if self._lmtp else "this is SMTP: say EHLO"
            return self._refuse(verb, Reply(500, text))
        if type(command) is Other and verb not in NEXT_STATES[START]:
            self._lost = _is_chunk(line)
            verb = "OTHER"
        allowed = NEXT_STATES[self.state]
        if verb not in allowed:
            return self._refuse(command.verb, self._out_of_sequence(verb))
        if verb == "STARTTLS" and self.buffered:
            # RFC 3207 section 6: commands that came in clear must not count as sent inside TLS.
            self._at = len(self._buffer)
            return self._refuse(verb, Reply(421, "nothing may follow STARTTLS", "4.7.0"))
        if self._strict_pipelining and verb in GREETINGS and self.buffered:
            # RFC 2920 section 3.1: EHLO is the last of a group, its reply must be awaited.
            return self._refuse(verb, Reply(503, "wait for the reply before you go on"))
        self.verb, self._next_states = verb, allowed[verb]
        return command

    def _out_of_sequence(self, verb: str) -> Reply:
        if self.state is START:
            return Reply(503, f"say {'LHLO' if self._lmtp else 'EHLO'} first", "5.5.1")
        if self.state is SessionState.REFUSED and verb in ("DATA", "BDAT"):
            # RFC 5321 section 3.3; RFC 2033 section 4.2 insists on 503.
            return Reply(503 if self._lmtp else 554, "no valid recipients", "5.5.1")
        if self.state is SessionState.CHUNKS and verb == "DATA":
            return Reply(503, "DATA cannot be mixed with BDAT", "5.5.1")
        return Reply(503, "bad sequence of commands", "5.5.1")

    def _next_response(self, line: bytes) -> Event:
        self._expect("RESPONSE")
        self._lost = _is_chunk(line) and not _BASE64.fullmatch(line.strip(b" \t"))
        if len(line) + 2 > LONGEST_LINE:
            # RFC 4954 section 4: 500 5.5.6, and the exchange fails.
            return Refused("AUTH", Reply(500, "authentication line too long", "5.5.6"))
        return SaslResponse(line)

    def _begin_chunk(self, command: Bdat) -> Event | None:
        self._chunk, self._octets, self._chunk_refusal = command, command.size, None
        if "BDAT" in NEXT_STATES[self.state]:
            return command
        self._chunk_refusal = self._out_of_sequence("BDAT")
        return self._next_octets(command)

    def _next_octets(self, chunk: Bdat) -> Event | None:
        refusal = self._chunk_refusal
        if self._octets and self.buffered:
            data = self._buffer[self._at : self._at + self._octets]
            self._at += len(data)
            self._octets -= len(data)
            if refusal is None:
                return ContentChunk(data)
        if self._octets:
            return None
        self._chunk = None
        if refusal is not None:
            return self._refuse("BDAT", refusal)
        self._expect("LAST" if chunk.last else "BDAT")
        return EndOfChunk(chunk.last)

    def _next_content(self, decoder: DotDecoder) -> Event | None:
        octets = self._buffer[self._at :]
        if not octets:
            return None
        data = decoder.decode(octets)
        self._buffer, self._at = decoder.rest, 0
        if not decoder.done:
            return ContentChunk(data) if data else None
        self._decoder = None
        self.verb, self._next_states = "CONTENT", NEXT_STATES[DATA]["CONTENT"]
        return EndOfContent(decoder.bare_newline, decoder.long_line, data)


def _is_chunk(line: bytes) -> bool:
    """Return whether a malformed line was meant as BDAT.

    An unknown number of octets follows it, which must not be read as commands, so the session ends.
    """
    return line.lstrip()[: len(_BDAT)].upper() == _BDAT
