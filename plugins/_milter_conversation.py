"""The conversation of one session with a filter of the milter protocol."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Final

from minismtp import Address, Defer, Disconnect, Line, Reject, RemoteError

from . import _milter as wire

_LONGEST: Final = 600.0  # seconds; clients do not wait longer (RFC 5321 section 4.5.3.2.6)
#: The macros of each stage if the filter chooses none.
_MACROS: Final[Mapping[int, tuple[str, ...]]] = {
    wire.CONNECT.stage: (
        *("j", "_", "{daemon_name}", "{daemon_addr}", "v", "{if_addr}"),
        *("{client_addr}", "{client_port}", "{client_name}", "{client_resolve}"),
    ),
    wire.HELO.stage: ("{tls_version}", "{cipher}", "{cipher_bits}", "{cert_subject}"),
    wire.MAIL.stage: (
        *("i", "{auth_type}", "{auth_authen}", "{mail_mailer}", "{mail_host}", "{mail_addr}"),
    ),
    wire.RCPT.stage: ("{rcpt_mailer}", "{rcpt_host}", "{rcpt_addr}"),
    wire.DATA.stage: ("i",),
    wire.END.stage: ("i",),
    wire.END_OF_HEADER.stage: ("i",),
}
_OF_SESSION: Final = (wire.CONNECT, wire.HELO)


class Conversation:
    """Sends the steps of a session to a filter, and raises its refusals as verdicts.

    It owns the connection, and belongs to one thread. The owner keeps `macros` and `mechanism`.
    `released` says that the filter accepted the whole session, `discarded` that it wants the
    message dropped. Each method may raise RemoteError; then the owner closes the conversation.
    """

    def __init__(self, line: Line, patience: timedelta) -> None:
        """Agree with the filter on commands and actions. Raise RemoteError, and close the line."""
        self.macros: dict[str, str] = {}
        self.mechanism = ""
        self.closed = False
        self.released = False
        self.discarded = False
        self._decided = False  # the filter accepted or discarded the message
        self._last_recipient: Address | None = None
        self._line = line
        self._patience = patience
        self._refusal: Exception | None = None  # of the current message
        self._in_message = False
        self._skipping = False
        self._unsent = bytearray()
        self._send(wire.offer())
        try:
            self._options = wire.read_options(*self._receive())
        except BaseException:
            self.close()
            raise

    @property
    def keeps_space(self) -> bool:
        """Whether values of fields include the white space before them."""
        return bool(self._options.steps & wire.LEADING_SPACE)

    @property
    def wants_more(self) -> bool:
        """Whether the filter wants more of this message."""
        return not (self.released or self._decided)

    def wants_refused(self, recipient: Address) -> bool:
        """Whether the filter wants the recipients that others refused."""
        asked = self._options.steps & wire.REFUSED_TOO and recipient != self._last_recipient
        ready = self._in_message and self._refusal is None and not self.closed
        return bool(asked) and ready and self.wants_more

    def step(self, step: wire.Step, data: bytes = b"") -> None:
        """Send a command if the filter wants it, and raise its refusal."""
        if self._refusal is not None:
            raise self._refusal
        if not self._options.wants(step):
            return
        self._send(self._macros_of(step) + wire.packet(step.letter, data))
        if self._options.replies(step):
            letter, said = self._reply(time.monotonic() + _LONGEST)
            self._take_reply(step, letter, said)

    def helo(self, name: str) -> None:
        """Send the name in HELO, which ends the current message."""
        self.abort()
        self.step(wire.HELO, wire.texts(name))

    def mail(self, *arguments: str) -> None:
        """Begin a message: the reverse-path in angle brackets, and parameters."""
        self.abort()
        self._decided = self.discarded = self._skipping = False
        self._last_recipient = None
        self._in_message = True
        self.step(wire.MAIL, wire.texts(*arguments))

    def recipient(self, address: Address, *parameters: str) -> None:
        """Send a recipient with parameters; a refusal is for this recipient."""
        self._last_recipient = address
        self.step(wire.RCPT, wire.texts(f"<{address}>", *parameters))

    def message(self, fields: Iterator[tuple[bytes, bytes]], body: Iterator[bytes]) -> None:
        """Send the message until the filter needs no more."""
        for name, value in fields if self._options.wants(wire.HEADER) else ():
            if self._decided:
                break
            room = wire.CHUNK - len(name) - 2  # a longer field does not fit into a packet
            self.step(wire.HEADER, wire.texts(name, value[:room]))
        if not self._decided:
            self.step(wire.END_OF_HEADER)
        for piece in body:
            if self._decided or self._skipping or not self._options.wants(wire.BODY):
                break
            self.step(wire.BODY, piece)

    def end(self) -> Iterator[tuple[bytes, bytes]]:
        """End the message; yield the letters and data of changes, then raise the verdict."""
        self._send(self._macros_of(wire.END) + wire.packet(wire.END.letter))
        end = time.monotonic() + _LONGEST
        while True:
            letter, data = self._reply(end)
            if letter not in wire.CHANGES:
                break
            if not self._options.actions & wire.CHANGES[letter]:
                raise wire.MilterError(f"the filter makes the change {letter!r} unannounced")
            yield letter, data
        self._in_message = False
        self._take_reply(wire.END, letter, data)

    def abort(self) -> None:
        """Abandon the current message, if there is one."""
        self._refusal = None
        if self._in_message:
            self._in_message = False
            self._send(wire.packet(b"A"))

    def close(self) -> None:
        """Close the connection at once."""
        if not self.closed:
            self.closed = True
            self._line.close()

    def quit(self) -> None:
        """Send QUIT if possible, and close the connection."""
        if not self.closed:
            with contextlib.suppress(RemoteError):
                self._send(wire.packet(b"Q"))
                self._flush()
            self.close()

    def _take_reply(self, step: wire.Step, letter: bytes, data: bytes) -> None:
        of_message = step not in _OF_SESSION and step is not wire.UNKNOWN
        match letter:
            case b"c":
                return
            case b"a" if of_message:
                self._decided = True
            case b"a":
                self.released = step in _OF_SESSION
            case b"d" if of_message:
                self._decided = self.discarded = True
            case b"s" if step is wire.BODY and self._options.steps & wire.SKIP:
                self._skipping = True
            case b"r" | b"t" | b"4" | b"f" | b"y":
                refusal = _refusal(letter, data)
                if of_message and step is not wire.RCPT:
                    self._refusal = refusal
                raise refusal
            case _:
                raise wire.MilterError(f"the filter says {letter!r} to {step.letter!r}")

    def _macros_of(self, step: wire.Step) -> bytes:
        if step.stage not in _MACROS:
            return b""
        names = self._options.macros.get(step.stage, _MACROS[step.stage])
        found = {name: self.macros[name] for name in names if self.macros.get(name)}
        return wire.macros(step, found)

    def _reply(self, end: float) -> tuple[bytes, bytes]:
        """Return the filter's answer; it may ask for more time until `end`."""
        while time.monotonic() < end:
            letter, data = self._receive()
            if letter != b"p":
                return letter, data
        raise wire.MilterError(f"the filter takes more than {_LONGEST:.0f} s")

    def _send(self, data: bytes) -> None:
        """Queue octets until the next reply is awaited, because most filters reply rarely."""
        self._unsent += data
        if len(self._unsent) > wire.CHUNK:
            self._flush()

    def _flush(self) -> None:
        self._line.extend(self._patience)
        self._line.send(bytes(self._unsent))
        self._unsent.clear()

    def _receive(self) -> tuple[bytes, bytes]:
        if self._unsent:
            self._flush()
        self._line.extend(self._patience)
        head = self._line.read(5)
        return head[4:], self._line.read(wire.length(head[:4]))


def _refusal(letter: bytes, data: bytes) -> Reject | Defer | Disconnect:
    match letter:
        case b"r":
            return Reject("refused by a filter")
        case b"t":
            return Defer("a filter asks you to try again later")
        case b"y":
            return wire.read_verdict(data)
        case _:
            return Disconnect("a filter asks you to try again later")
