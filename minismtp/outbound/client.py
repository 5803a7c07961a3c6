"""One connection to another server, for one message after the other (layer 6; RFC 5321).

`smtplib` speaks; what is added here is what it leaves to its callers: absolute deadlines for every
phase, one packet for all commands of an envelope, content that is streamed, and the rules by which
a message may be sent as it is, or must go back (RFC 3030, 6152, 6531, 8689).
"""

from __future__ import annotations

import contextlib
import re
import smtplib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final, Literal, TypeAlias

from minismtp.address import Address
from minismtp.delivery import Destination
from minismtp.message import Message
from minismtp.outbound.destination import Host
from minismtp.spool import Entry, Target

# Seconds for one phase as a whole, sending included. RFC 5321 section 4.5.3.2 asks for as much or
# more for a single wait, but a host that takes ten minutes for each reply serves nobody.
CONNECT: Final = 30.0
GREETING: Final = 300.0
COMMANDS: Final = 300.0
CONTENT: Final = 1800.0
END: Final = 600.0
_PARTING: Final = 10.0

_PIECE: Final = 65536
_NEWLINE: Final = re.compile(rb"\r\n|\r|\n")
_ENHANCED: Final = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: |$)")
_NO_XTEXT: Final = re.compile(r"[^!-*,-<>-~]")
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f]+")

State: TypeAlias = Literal["delivered", "queued", "failed"]


class HostError(Exception):
    """A host cannot be used now; another one may. The reply says why."""

    def __init__(self, reply: str, *, final: bool = False) -> None:
        super().__init__(reply)
        self.reply = reply
        self.final = final


class TlsError(HostError):
    """The host offers TLS, but no handshake comes about."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one recipient, and the reply that says so.

    `reports` tells that the host has taken over the duty to report success (RFC 3461 section 5).
    """

    state: State
    reply: str
    reports: bool = False


class Deadlines:
    """Shuts down sockets whose time has passed: a timeout for each wait would not end a drip."""

    def __init__(self) -> None:
        self._due: dict[socket.socket, float] = {}
        self._passed: set[socket.socket] = set()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the thread that watches."""
        threading.Thread(target=self._run, name="deadlines", daemon=True).start()

    @contextlib.contextmanager
    def within(self, sock: socket.socket, seconds: float) -> Iterator[None]:
        """Give the block so long; what it waits for then ends, and TimeoutError is raised."""
        with self._lock:
            self._due[sock] = time.monotonic() + seconds
        try:
            yield
        finally:
            with self._lock:
                del self._due[sock]
                passed = sock in self._passed
                self._passed.discard(sock)
            if passed:
                raise TimeoutError

    def hang_up(self) -> None:
        """Shut down all that are waited for."""
        self._cut(float("inf"))

    def _run(self) -> None:
        while True:
            time.sleep(1)
            self._cut(time.monotonic())

    def _cut(self, now: float) -> None:
        with self._lock:
            for sock, due in self._due.items():
                if due <= now:
                    self._passed.add(sock)
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)


class Connection:
    """A connection that is ready for MAIL. `tls` is none, encrypted or verified."""

    def __init__(
        self, host: Host, destination: Destination, hostname: str, deadlines: Deadlines
    ) -> None:
        """Connect, greet, secure and log in. Raises HostError."""
        self.host = host
        self.tls = "none"
        self.messages = 0
        self.closed = False
        self._hostname = hostname
        self._destination = destination
        self._deadlines = deadlines
        self._smtp = smtplib.SMTP(local_hostname=hostname)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        destination = self._destination
        try:
            self._socket = socket.create_connection((self.host.address, self.host.port), CONNECT)
        except OSError as error:
            raise HostError(f"451 4.4.1 cannot connect to {self.host}: {_why(error)}") from None
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(None)
        self._smtp.sock = self._socket
        with self._phase(GREETING, "the greeting"):
            if destination.implicit:
                self._secure()
            code, text = self._smtp.getreply()
            self._demand(code, text, 220)
            self._hello()
        if not destination.implicit and destination.tls != "none":
            self._start_tls()
        if destination.username:
            self._log_in()

    def _hello(self) -> None:
        code, text = self._smtp.ehlo(self._hostname)
        if code // 100 == 5:  # noqa: PLR2004
            code, text = self._smtp.helo(self._hostname)
        self._demand(code, text, 250)

    def _start_tls(self) -> None:
        wanted = self._destination.tls != "opportunistic"
        if not self._smtp.has_extn("starttls"):
            if wanted:
                raise HostError(f"451 4.7.4 {self.host} does not offer STARTTLS")
            return
        with self._phase(GREETING, "STARTTLS"):
            code, text = self._smtp.docmd("STARTTLS")
            if code != 220:  # noqa: PLR2004
                if wanted:
                    raise HostError(_reply(code, text, "451 4.7.4"))
                return
            self._secure()
            self._hello()

    def _secure(self) -> None:
        """Make the handshake, and forget what was said before it (RFC 3207 section 4.2)."""
        verified = self._destination.tls == "verified"
        try:
            self._socket = _context(verified=verified).wrap_socket(
                self._socket, server_hostname=self.host.name.strip("[]")
            )
        except (OSError, ValueError) as error:
            raise TlsError(f"451 4.7.5 TLS with {self.host} failed: {_why(error)}") from None
        smtp = self._smtp
        smtp.sock, smtp.file = self._socket, None
        smtp.ehlo_resp = smtp.helo_resp = None
        smtp.esmtp_features, smtp.does_esmtp = {}, False
        self.tls = "verified" if verified else "encrypted"

    def _log_in(self) -> None:
        username, password = self._destination.username, self._destination.password
        with self._phase(COMMANDS, "AUTH"):
            try:
                self._smtp.login(username, password)
            except smtplib.SMTPResponseException as error:
                # Wrong today, right tomorrow: it is our operator who can mend it.
                text = _reply(error.smtp_code, error.smtp_error, "451 4.7.8")
                raise HostError(f"451 4.7.8 login refused by {self.host}: {text}") from None
            except smtplib.SMTPException as error:
                raise HostError(f"451 4.7.8 cannot log in at {self.host}: {error}") from None

    def send(self, entry: Entry, targets: Sequence[Target], message: Message) -> list[Answer]:
        """Send a message; one answer for each target. Raises HostError before anything was taken.

        After the content, a lost connection is an answer: nobody knows whether it was taken.
        """
        problem = self._obstacle(entry, targets, message)
        if problem:
            return [Answer("failed", problem)] * len(targets)
        self.messages += 1
        with self._phase(COMMANDS, "the envelope"):
            answers = self._envelope(entry, targets, message)
        taken = [number for number, answer in enumerate(answers) if answer.state == "delivered"]
        if not taken:
            return answers
        verdict = self._content(entry, message)
        for number in taken:
            reports = answers[number].reports and verdict.state == "delivered"
            answers[number] = Answer(verdict.state, verdict.reply, reports)
        return answers

    def quit(self) -> None:
        """End the session as good manners want it."""
        with contextlib.suppress(HostError), self._phase(_PARTING, "QUIT"):
            self._smtp.docmd("QUIT")
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self.closed = True
        self._smtp.close()
        with contextlib.suppress(AttributeError, OSError):
            self._socket.close()

    def _obstacle(self, entry: Entry, targets: Sequence[Target], message: Message) -> str:
        """Give why a message cannot travel here unharmed, empty when it can."""
        smtp = self._smtp
        limit = smtp.esmtp_features.get("size", "")
        if limit.isdigit() and 0 < int(limit) < message.size:
            return f"552 5.3.4 {self.host} takes no message of {message.size} octets"
        if entry.body == "BINARYMIME":
            if not (smtp.has_extn("binarymime") and smtp.has_extn("chunking")):
                return f"554 5.6.1 {self.host} takes no BINARYMIME"
        elif not smtp.has_extn("8bitmime") and not _is_ascii(message):
            return f"554 5.6.3 {self.host} takes no 8BITMIME"
        if not smtp.has_extn("smtputf8"):
            addresses = [entry.sender, *(target.address for target in targets)]
            header = b"".join(message.headers.raw_all())
            if not all(map(str.isascii, addresses)) or (entry.smtputf8 and not header.isascii()):
                return f"550 5.6.7 {self.host} takes no SMTPUTF8"
        if entry.require_tls and not (self.tls == "verified" and smtp.has_extn("requiretls")):
            return f"550 5.7.30 {self.host} does not support REQUIRETLS"
        return ""

    def _envelope(self, entry: Entry, targets: Sequence[Target], message: Message) -> list[Answer]:
        smtp = self._smtp
        dsn = smtp.has_extn("dsn")
        lines = [f"MAIL FROM:<{_ascii_domain(entry.sender)}>{self._mail(entry, message)}"]
        lines += [f"RCPT TO:<{_ascii_domain(t.address)}>{_rcpt(t) if dsn else ''}" for t in targets]
        replies = self._ask(lines)
        code, text = replies[0]
        if code // 100 != 2:  # noqa: PLR2004
            state = _state(code)
            return [Answer(state, _reply(code, text))] * len(targets)
        answers = []
        for code, text in replies[1:]:
            accepted = code // 100 == 2  # noqa: PLR2004
            answers.append(
                Answer("delivered" if accepted else _state(code), _reply(code, text), dsn)
            )
        return answers

    def _ask(self, lines: list[str]) -> list[tuple[int, bytes]]:
        """Send commands, in one packet where the host allows it, and give the replies."""
        smtp = self._smtp
        if not smtp.has_extn("pipelining"):
            replies = []
            for line in lines:
                smtp.send(f"{line}\r\n".encode())
                replies.append(smtp.getreply())
                if replies[0][0] // 100 != 2:  # noqa: PLR2004
                    break
        else:
            smtp.send("".join(f"{line}\r\n" for line in lines).encode())
            replies = [smtp.getreply() for _ in lines]
        for code, text in replies:
            if code == 421:  # noqa: PLR2004 - the host is about to hang up
                raise HostError(_reply(code, text))
        if all(code // 100 != 2 for code, _ in replies[1:]):  # noqa: PLR2004
            smtp.docmd("RSET")
        return replies

    def _mail(self, entry: Entry, message: Message) -> str:
        smtp, parts = self._smtp, [""]
        if smtp.has_extn("size"):
            parts.append(f"SIZE={message.size}")
        if entry.body == "BINARYMIME":
            parts.append("BODY=BINARYMIME")
        elif smtp.has_extn("8bitmime") and (entry.body == "8BITMIME" or not _is_ascii(message)):
            parts.append("BODY=8BITMIME")
        if entry.smtputf8 and smtp.has_extn("smtputf8"):
            parts.append("SMTPUTF8")
        if entry.require_tls:
            parts.append("REQUIRETLS")
        if smtp.has_extn("dsn"):
            parts += [f"RET={entry.dsn_return}"] if entry.dsn_return else []
            parts += [f"ENVID={_xtext(entry.dsn_id)}"] if entry.dsn_id else []
        return " ".join(parts)

    def _content(self, entry: Entry, message: Message) -> Answer:
        smtp = self._smtp
        try:
            with self._phase(CONTENT, "the content"), message.open() as reader:
                if entry.body == "BINARYMIME":
                    smtp.send(f"BDAT {message.size} LAST\r\n".encode())
                    for piece in iter(lambda: reader.read(_PIECE), b""):
                        smtp.send(piece)
                else:
                    code, text = smtp.docmd("DATA")
                    if code != 354:  # noqa: PLR2004
                        smtp.docmd("RSET")
                        return Answer(_state(code), _reply(code, text))
                    for piece in dotted(reader):
                        smtp.send(piece)
            with self._phase(END, "the reply to the content"):
                code, text = smtp.getreply()
        except HostError as error:
            self.close()
            return Answer("queued", error.reply)
        if code // 100 == 2:  # noqa: PLR2004
            return Answer("delivered", _reply(code, text))
        return Answer(_state(code), _reply(code, text))

    @contextlib.contextmanager
    def _phase(self, seconds: float, what: str) -> Iterator[None]:
        try:
            with self._deadlines.within(self._socket, seconds):
                yield
        except TimeoutError:
            raise HostError(f"451 4.4.2 {self.host}: no end of {what} in time") from None
        except smtplib.SMTPServerDisconnected:
            raise HostError(f"451 4.4.2 {self.host} hung up during {what}") from None
        except (OSError, smtplib.SMTPException) as error:
            raise HostError(f"451 4.4.2 {self.host} failed in {what}: {_why(error)}") from None

    def _demand(self, code: int, text: bytes, wanted: int) -> None:
        if code != wanted:
            raise HostError(_reply(code, text), final=code // 100 == 5)  # noqa: PLR2004


def dotted(reader: BinaryIO, size: int = _PIECE) -> Iterator[bytes]:
    """Give content for DATA, in pieces: lines end with CRLF, dots doubled, the end marked."""
    at_start, held = True, b""
    read: Callable[[], bytes] = lambda: reader.read(size)  # noqa: E731
    for octets in iter(read, b""):
        piece = held + octets
        held = b"\r" if piece.endswith(b"\r") else b""  # its LF may be in the next piece
        piece = piece[: len(piece) - len(held)]
        if not piece.count(b"\r\n") == piece.count(b"\n") == piece.count(b"\r"):
            piece = _NEWLINE.sub(b"\r\n", piece)  # what came by BDAT may have any
        if not piece:
            continue
        stuffed = piece.replace(b"\r\n.", b"\r\n..")
        yield b"." + stuffed if at_start and piece.startswith(b".") else stuffed
        at_start = piece.endswith(b"\n")
    yield (b"" if at_start and not held else b"\r\n") + b".\r\n"


def _context(*, verified: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not verified:
        # Better than in clear, though anybody could be at the other end (RFC 7435).
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _is_ascii(message: Message) -> bool:
    with message.open() as reader:
        return all(piece.isascii() for piece in iter(lambda: reader.read(_PIECE), b""))


def _rcpt(target: Target) -> str:
    notify = f" NOTIFY={','.join(sorted(target.notify))}" if target.notify else ""
    kind, _, original = target.original.partition(";")
    return notify + (f" ORCPT={kind};{_xtext(original)}" if original else "")


def _xtext(text: str) -> str:
    """Encode as RFC 3461 section 4 wants it."""
    return _NO_XTEXT.sub(
        lambda match: "".join(f"+{octet:02X}" for octet in match[0].encode()), text
    )


def _ascii_domain(address: str) -> str:
    if address.isascii():
        return address
    parsed = Address.parse(address)
    return str(Address(parsed.local, parsed.ascii_domain))


def _state(code: int) -> State:
    return "failed" if code // 100 == 5 else "queued"  # noqa: PLR2004


def _reply(code: int, text: bytes | str, otherwise: str = "") -> str:
    """Give a host's reply as one line; what is no reply at all is a reason to try again."""
    line = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    # smtplib has taken the codes of the lines away, not the enhanced codes.
    lines = [part.strip() for part in line.split("\n")]
    first = _ENHANCED.match(lines[0])
    if first:
        lines[1:] = [part.removeprefix(first[1]).strip() for part in lines[1:]]
    line = _UNPRINTABLE.sub(" ", " ".join(lines))[:500]
    if code < 200:  # noqa: PLR2004
        return f"451 4.5.0 no SMTP reply: {line}"
    return f"{otherwise} ({code} {line})" if otherwise else f"{code} {line}"


def _why(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
