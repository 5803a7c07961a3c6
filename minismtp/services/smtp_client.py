"""A session with another SMTP or LMTP server, as its client (RFC 5321, RFC 2033).

    with self._server.connect() as line:  # a Remote
        client = SmtpClient(line, hostname)
        client.greet()
        replies = client.send(envelope, message, mailboxes)
        client.quit()

The host is not trusted. Its replies are checked and bounded, each step has a deadline, and what it
says before it is asked is never used as a reply.
"""

from __future__ import annotations

import base64
import contextlib
import ssl
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from math import inf
from time import perf_counter
from typing import BinaryIO, Final, Literal

from msgspec import Struct

from minismtp.config.outbound_tables import Timeouts
from minismtp.mail.envelope import Envelope
from minismtp.mail.message import Message
from minismtp.mail.mime_conversion import Form, converted
from minismtp.runtime.thread_activity import here
from minismtp.services.remote import Line, RemoteError, reason
from minismtp.services.smtp_extensions import Extensions
from minismtp.smtp.client_reply import SERVICE_ENDS, HostReply, ReplyError, ReplyReader, keywords_of
from minismtp.smtp.dot_stuffing import dotted
from minismtp.values.address import Address

_GREETING: Final = 220
_AUTHENTICATED: Final = 235
_DONE: Final = 250
_CONTINUE: Final = 334
_START_INPUT: Final = 354
_PIECE: Final = 65536
_UNKNOWN: Final = "the next server"  # in replies to clients, which need not know its address


class SmtpError(RemoteError):
    """The session cannot continue.

    `reply` is the reply of the host (421, or a refusal to serve), or a 451 that gives the reason.
    """

    def __init__(self, reply: HostReply, text: str = "") -> None:
        super().__init__(text or str(reply))
        self.reply = reply


class RecipientReply(Struct, frozen=True):
    """The reply that decides about a recipient, and the step of the transaction it belongs to.

    "lost" means that the connection failed after the content, so the host may have the message.
    """

    step: Literal["MAIL", "RCPT", "content", "lost"]
    reply: HostReply


class SmtpClient:
    """One session; it belongs to one thread. `extensions` are those that the host announced."""

    def __init__(
        self, line: Line, hostname: str, *, lmtp: bool = False, timeouts: Timeouts | None = None
    ) -> None:
        """Use a connection that is open, and introduce this server by `hostname`.

        Without `timeouts` the deadline of the line stands for the whole session.
        """
        self.closed = False
        self.extensions = Extensions(line.name, {})
        self._line = line
        self._hostname = hostname
        self._lmtp = lmtp
        self._timeouts = timeouts
        self._replies = ReplyReader()
        # These are for each message, and the others are made when they begin.
        self._envelope = self.phase("the envelope")
        self._content = self.phase("the content", "data")
        self._end = self.phase("the reply to the content, which it may have taken", "end")

    def greet(self) -> HostReply:
        """Read the greeting, say EHLO, and return the reply to it. Raise SmtpError."""
        with self.phase("the greeting"):
            self._demand(self._reply(), _GREETING)
            return self._hello()

    def start_tls(self, context: ssl.SSLContext, name: str) -> None:
        """Go over to TLS with a certificate for `name` (RFC 3207). Raise SmtpError if it fails."""
        refusal = self.ask_for_tls()
        if refusal:
            raise _failure(refusal, "4.7.4")
        self.secure(context, name)
        self.hello()

    def ask_for_tls(self) -> str:
        """Say STARTTLS, and return why TLS cannot begin, empty if it can."""
        if "STARTTLS" not in self.extensions:
            return f"{self._line.name} does not offer STARTTLS"
        with self.phase("STARTTLS"):
            [reply] = self._converse("STARTTLS")
        return "" if reply.accepts else f"{self._line.name} refuses STARTTLS: {reply}"

    def secure(self, context: ssl.SSLContext, name: str) -> ssl.SSLSocket:
        """Make the TLS handshake. Clear text that arrived before it is an error."""
        with self.phase("the TLS handshake", status="4.7.5"):
            if self._replies.pending:
                raise _failure(f"{self._line.name} mixes clear text into TLS", "4.7.5")
            try:
                return self._line.secure(context, name)
            except ValueError as error:  # no certificate can be for such a name
                raise _failure(f"{self._line.name}: {error}", "4.7.5") from None

    def hello(self) -> None:
        """Say EHLO again, inside TLS, and forget the extensions announced before (RFC 3207 4.2)."""
        with self.phase("EHLO"):
            self._hello()

    def log_in(self, username: str, password: str) -> None:
        """Log in by PLAIN or LOGIN (RFC 4954, RFC 4616). Raise SmtpError without the password."""
        mechanisms = self.extensions.keywords.get("AUTH", "").upper().split()
        if "PLAIN" in mechanisms:
            secret = _base64(f"\0{username}\0{password}")
            first, more = f"AUTH PLAIN {secret}", []
        elif "LOGIN" in mechanisms:
            secret = _base64(password)
            first, more = "AUTH LOGIN", [_base64(username), secret]
        else:
            raise _failure(f"{self._line.name} offers no AUTH PLAIN or LOGIN", "4.7.8")
        with self.phase("AUTH"):
            [reply] = self._converse(first)
            for step in more:
                if reply.code == _CONTINUE:
                    [reply] = self._converse(step)
        if reply.code != _AUTHENTICATED:
            # A 451, because the operator can correct the login. Some hosts repeat what they did
            # not understand.
            said = str(reply).replace(secret, "...")
            raise _failure(f"login refused by {self._line.name}: {said}", "4.7.8")

    def send(
        self, envelope: Envelope, message: Message, mailboxes: Sequence[Address]
    ) -> dict[Address, HostReply]:
        """Send a message in one transaction, and return the reply for each mailbox.

        8-bit and binary content is encoded for a host that does not take it; lines stay as long as
        they are, so that signatures stay valid. What the host cannot take unharmed has a reply
        that says so. Raise RemoteError if the session fails: the host may have the message then.
        """
        envelope = replace(
            envelope, require_tls=envelope.require_tls and not self._lmtp, dsn_return="", dsn_id=""
        )
        envelope, message = self._fitting(envelope, message)
        extensions = replace(self.extensions, host=_UNKNOWN)
        refusal = extensions.obstacle(envelope, message)
        if envelope.require_tls and not (self._line.is_secure and "REQUIRETLS" in extensions):
            refusal = HostReply(550, (f"5.7.30 {_UNKNOWN} has no REQUIRETLS",))
        obstacles = {box: refusal or extensions.obstacle_to(str(box)) for box in mailboxes}
        replies = {box: obstacle for box, obstacle in obstacles.items() if obstacle}
        boxes = [box for box in obstacles if box not in replies]
        if not boxes:
            return replies
        commands = [extensions.rcpt(str(box)) for box in boxes]
        binary = envelope.body == "BINARYMIME"
        try:
            found = self.transact(
                extensions.mail(envelope, message), commands, message, chunked=binary
            )
        except SmtpError as error:
            if error.reply.code != SERVICE_ENDS:
                raise
            return replies | dict.fromkeys(boxes, error.reply)
        for each in found:
            if each.step == "lost" and each.reply.code != SERVICE_ENDS:
                raise SmtpError(each.reply)
        return replies | {box: each.reply for box, each in zip(boxes, found, strict=True)}

    def _fitting(self, envelope: Envelope, message: Message) -> tuple[Envelope, Message]:
        """Return a message that the host takes, encoded where it must be."""
        binary, eight_bit = envelope.body == "BINARYMIME", "8BITMIME" in self.extensions
        if self.extensions.takes_binary if binary else eight_bit or not Form.of(message).wide:
            return envelope, message
        envelope = replace(envelope, body="8BITMIME" if eight_bit else "7BIT")
        return envelope, converted(message, eight_bit=eight_bit, binary=binary)

    def transact(
        self, mail: str, recipients: Sequence[str], message: Message, *, chunked: bool = False
    ) -> list[RecipientReply]:
        """Send a message by DATA, or `chunked` by BDAT, and return the reply for each RCPT command.

        Raise SmtpError if the session fails before the content was sent. After a reply of step
        "lost", and after a refusal in the middle of the content, the connection is closed.
        """
        commands = [mail, *recipients, *([] if chunked else ["DATA"])]
        at_once = "PIPELINING" in self.extensions.keywords
        with self._envelope:
            converse = self._converse_at_once if at_once else self._converse
            replies = converse(*commands)
            sender = next(replies)
            if sender.accepts:
                found = [RecipientReply("RCPT", next(replies)) for _ in recipients]
            else:
                found = [RecipientReply("MAIL", sender)] * len(recipients)
            taken = [number for number, each in enumerate(found) if each.reply.accepts]
            start = None if chunked or not taken else next(replies)
        if not taken:
            self._leave(replies if at_once else ())
            return found
        count = len(taken) if self._lmtp else 1  # RFC 2033 section 4.2: a reply for each recipient
        if start is not None and start.code != _START_INPUT:
            last = [RecipientReply("content", _refusal(start))]
            self._leave()
        else:
            last = self._send_content(message, count, chunked=chunked)
        last *= len(taken) // len(last)
        for number, each in zip(taken, last, strict=True):
            found[number] = each
        return found

    def _send_content(self, message: Message, count: int, *, chunked: bool) -> list[RecipientReply]:
        """Return the replies to the content, one if the host refused before it had everything."""
        with self._content, message.open() as reader:
            pieces = _chunk(message, reader) if chunked else dotted(reader)
            if not self._stream(pieces):
                early = self._reply()
                self.close()  # the host still waits for the rest
                return [RecipientReply("content", _refusal(early))]
        found: list[RecipientReply] = []
        try:
            with self._end:
                while len(found) < count:
                    found.append(RecipientReply("content", self._reply()))
        except SmtpError as error:
            self.close()
            found += [RecipientReply("lost", error.reply)] * (count - len(found))
        return found

    def _stream(self, pieces: Iterable[bytes]) -> bool:
        """Send content; return False if the host spoke or hung up before the end of it was sent.

        Content that the host takes extends the deadline, as `Timeouts` describes.
        """
        line, timeouts = self._line, self._timeouts
        end = line.clock() + timeouts.content if timeouts else inf
        for piece in pieces:
            try:
                if self._speaks():
                    return False
                line.send(piece)
            except TimeoutError:
                raise
            except RemoteError:
                return False
            if timeouts:
                bought = line.due + len(piece) / timeouts.rate
                line.due = min(bought, line.clock() + timeouts.data, end)
        return True

    def _leave(self, replies: Iterable[HostReply] = ()) -> None:
        """End a transaction without a message. If this fails, so does the next transaction."""
        with contextlib.suppress(SmtpError), self.phase("RSET"):
            # RFC 2920 section 3.1: this empty message has no recipient
            command = "." if any(reply.code == _START_INPUT for reply in replies) else "RSET"
            next(self._converse(command))

    def quit(self, *, wait: bool = True) -> None:
        """End the session, whether the host answers or not, and close the connection.

        A client should read the reply (RFC 5321 section 4.1.1.10). Without `wait` it does not, so
        that a sender does not wait for a result that is known.
        """
        with contextlib.suppress(SmtpError), self.phase("QUIT", "quit"):
            self._put("QUIT")
            if wait:
                self._reply()
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.closed = True
        self._line.close()

    def phase(
        self,
        name: str,
        limit: Literal["command", "data", "end", "quit"] = "command",
        *,
        status: str = "4.4.2",
    ) -> _Phase:
        """Limit the time of a block, and turn every failure of the connection into SmtpError."""
        seconds = getattr(self._timeouts, limit) if self._timeouts else None
        return _Phase(self._line, name, status, seconds)

    def _hello(self) -> HostReply:
        [reply] = self._converse(f"{'LHLO' if self._lmtp else 'EHLO'} {self._hostname}")
        keywords = keywords_of(reply) if reply.accepts else {}
        self.extensions = Extensions(self._line.name, keywords)
        if reply.is_final and not self._lmtp:
            [reply] = self._converse(f"HELO {self._hostname}")
        self._demand(reply, _DONE)
        return reply

    def _converse(self, *commands: str) -> Iterator[HostReply]:
        """Yield the replies to commands. Each command is sent when its reply is wanted."""
        for command in commands:
            self._put(command)
            yield self._reply()

    def _converse_at_once(self, *commands: str) -> Iterator[HostReply]:
        """Send commands together (RFC 2920), and return an iterator over their replies."""
        self._put(*commands)
        return islice(iter(self._reply, None), len(commands))

    def _put(self, *commands: str) -> None:
        if self._speaks():
            reply = self._reply()  # raises for a 421 and for the end of the connection
            raise _failure(f"{self._line.name} speaks before it is asked: {reply}")
        self._line.send("\r\n".join((*commands, "")).encode())

    def _speaks(self) -> bool:
        return bool(self._replies.pending) or self._line.is_readable()

    def _reply(self) -> HostReply:
        replies = self._replies
        while not replies.pending or (reply := replies.next()) is None:
            octets = self._line.receive()
            if not octets:
                raise EOFError
            replies.pending += octets
        if reply.code == SERVICE_ENDS:
            raise SmtpError(reply)
        return reply

    def _demand(self, reply: HostReply, code: int) -> None:
        if reply.code != code:
            raise SmtpError(reply, f"{self._line.name} says {reply}")


class _Phase:
    __slots__ = ("_line", "_name", "_seconds", "_shown", "_status")

    def __init__(self, line: Line, name: str, status: str, seconds: float | None) -> None:
        self._line = line
        self._name = name
        self._shown = f"{line.name}: {name}"
        self._status = status
        self._seconds = seconds

    def __enter__(self) -> None:
        if self._seconds is not None:
            self._line.due = self._line.clock() + self._seconds
        here.activity.phase = (self._shown, perf_counter())

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        here.activity.phase = None
        if error is None:
            return
        match error:
            case SmtpError():
                return
            case ReplyError():
                raise _failure(f"{self._line.name} {error}") from None
            case TimeoutError():
                text = f"timed out in {self._name}"
            case EOFError():
                text = f"hung up during {self._name}"
            case OSError():
                text = f"failed in {self._name}: {reason(error)}"
            case _:
                return
        raise _failure(f"{self._line.name} {text}", self._status) from None


def _failure(text: str, status: str = "4.5.0") -> SmtpError:
    return SmtpError(HostReply(451, (f"{status} {text}",)))


def _refusal(reply: HostReply) -> HostReply:
    """Return a reply that can be nothing but a refusal. Raise SmtpError if it is another one."""
    if not reply.refuses:
        raise _failure(f"out of step: {reply}")
    return reply


def _chunk(message: Message, reader: BinaryIO) -> Iterator[bytes]:
    """Yield the content of a message behind the BDAT command for it (RFC 3030)."""
    yield f"BDAT {message.size} LAST\r\n".encode()
    yield from iter(lambda: reader.read(_PIECE), b"")


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
