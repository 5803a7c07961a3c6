"""SMTP over one socket: commands go out, replies come in (RFC 5321 section 4.2).

`smtplib`, made safe against hosts that do not behave: replies are checked and bounded, every phase
has an absolute deadline, and what was said unasked is never taken for an answer.
"""

from __future__ import annotations

import contextlib
import re
import smtplib
import socket
import ssl
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from minismtp.delivery.deadlines import Deadlines, Timeouts
from minismtp.delivery.mx import Host
from minismtp.delivery.result import HostError, HostReply

_LINE_LIMIT: Final = 8192  # octets; RFC 5321 section 4.5.3.1.5 has 512
_REPLY_LIMIT: Final = 65536
_RECEIVED: Final = 8192
# Reply-code = %x32-35 %x30-35 %x30-39 ; a line of a reply goes on with "-", SP or its end
_LINE: Final = re.compile(rb"([2-5][0-5][0-9])(?:([ -])(.*))?\r?\n", re.DOTALL)
_UNSENT: Final = 131072  # octets that may wait to be sent
_SERVICE_ENDS: Final = 421


class Channel(smtplib.SMTP):
    """A connection to a host; it belongs to one thread, but anybody may hang it up."""

    def __init__(self, host: Host, hostname: str, deadlines: Deadlines, timeouts: Timeouts) -> None:
        super().__init__(local_hostname=hostname)
        self.timeouts = timeouts
        self._host = host
        self._deadlines = deadlines
        self._heard = b""

    def open(self) -> None:
        """Connect. Raise HostError."""
        address = (self._host.address, self._host.port)
        try:
            self.sock = socket.create_connection(address, self.timeouts.connect)
        except OSError as error:
            raise HostError(f"451 4.4.1 cannot connect to {self._host}: {reason(error)}") from None
        self.sock.settimeout(None)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The kernel would take megabytes in advance, which a slow line needs minutes for: of those
        # it must not take credit now, and the wait for the reply must not begin before they left.
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)

    @contextlib.contextmanager
    def phase(self, seconds: float, what: str, *, status: str = "4.4.2") -> Iterator[None]:
        """Let the block run for `seconds`; raise HostError for any failure of the connection."""
        try:
            with self._deadlines.within(self, seconds):
                yield
        except TimeoutError:
            raise HostError(f"451 {status} {self._host} timed out in {what}") from None
        except smtplib.SMTPServerDisconnected:
            raise HostError(f"451 {status} {self._host} hung up during {what}") from None
        except OSError as error:
            raise HostError(
                f"451 {status} {self._host} failed in {what}: {reason(error)}"
            ) from None

    def hang_up(self) -> None:
        """End the connection for the thread that waits for it."""
        if self.sock is not None:
            with contextlib.suppress(OSError):
                # Not of SSLSocket, which would go on in clear.
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    def secure(self, context: ssl.SSLContext, name: str) -> ssl.SSLSocket:
        """Make the TLS handshake, and forget what was said before it (RFC 3207 section 4.2)."""
        if self._heard:
            raise HostError(f"451 4.7.5 {self._host} mixes clear text into TLS")
        try:
            wrapped = context.wrap_socket(
                self._socket, server_hostname=name, do_handshake_on_connect=False
            )
        except ValueError as error:  # no certificate can be for such a name
            raise HostError(f"451 4.7.5 {self._host}: {error}") from None
        self.sock = wrapped
        wrapped.do_handshake()
        self.ehlo_resp = self.helo_resp = None
        self.esmtp_features, self.does_esmtp = {}, False
        return wrapped

    def hello(self) -> HostReply:
        """Say EHLO, or HELO where that is not understood; `esmtp_features` has the extensions."""
        self._expect_silence()
        code, text = self.ehlo(self.local_hostname)
        if code // 100 == 5:  # noqa: PLR2004
            code, text = self.helo(self.local_hostname)
        return HostReply.of(code, text.split(b"\n"))

    def ask(self, *commands: str) -> list[HostReply]:
        """Send commands in one packet and give the reply to each."""
        return list(self.converse(commands, at_once=True))

    def converse(self, commands: Sequence[str], *, at_once: bool) -> Iterator[HostReply]:
        """Yield the replies to commands, sent at once (RFC 2920) or each in its turn."""
        if at_once:
            self._put(*commands)
        for command in commands:
            if not at_once:
                self._put(command)
            yield self.reply()

    def stream(self, pieces: Iterable[bytes]) -> bool:
        """Send content; False when the host spoke or hung up before the end of it was sent.

        What the host takes buys time for the phase that this is in, as `Timeouts` says.
        """
        timeouts, deadlines = self.timeouts, self._deadlines
        end = deadlines.now() + timeouts.content
        for piece in pieces:
            try:
                if self._has_spoken():
                    return False
                self._socket.sendall(piece)
            except OSError:
                return False
            deadlines.progress(self, len(piece) / timeouts.rate, most=timeouts.data, end=end)
        return True

    def reply(self) -> HostReply:
        """Return the next reply. Raise HostError if it is unterminated, malformed, or a 421."""
        reply = HostReply.of(*self._read_lines())
        if reply.code == _SERVICE_ENDS:
            raise HostError(str(reply))
        return reply

    def getreply(self) -> tuple[int, bytes]:
        """Return the next reply in the form of smtplib, for `ehlo` and `helo`."""
        code, lines = self._read_lines()
        return code, b"\n".join(lines)

    def _put(self, *commands: str) -> None:
        self._expect_silence()
        self._socket.sendall("".join(f"{command}\r\n" for command in commands).encode())

    @property
    def _socket(self) -> socket.socket:
        if self.sock is None:
            raise smtplib.SMTPServerDisconnected("closed")
        return self.sock

    def _read_lines(self) -> tuple[int, list[bytes]]:
        lines: list[bytes] = []
        size, codes = 0, set()
        while True:
            line = self._read_line()
            match = _LINE.fullmatch(line)
            if match is not None:
                codes.add(match[1])
                lines.append(match[3] or b"")
            if match is None or len(codes) > 1:  # RFC 5321 section 4.2.1: the same in each line
                said = HostReply.of(0, [line]).text
                raise HostError(f"451 4.5.0 {self._host} gives no SMTP reply: {said}")
            size += len(line)
            if size > _REPLY_LIMIT:
                raise HostError(f"451 4.5.0 {self._host} does not end its reply")
            if match[2] != b"-":
                return int(match[1]), lines

    def _read_line(self) -> bytes:
        while b"\n" not in self._heard:
            if len(self._heard) > _LINE_LIMIT:
                raise HostError(f"451 4.5.0 {self._host} does not end a line of its reply")
            data = self._socket.recv(_RECEIVED)
            if not data:
                raise smtplib.SMTPServerDisconnected("hung up")
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        return line + b"\n"

    def _expect_silence(self) -> None:
        """Raise HostError when the host has spoken before it is asked: 421, or out of step."""
        if self._has_spoken():
            said = self.reply()
            raise HostError(f"451 4.5.0 {self._host} speaks before it is asked: {said}")

    def _has_spoken(self) -> bool:
        if not self._heard:
            sock = self._socket
            try:
                if isinstance(sock, ssl.SSLSocket):
                    data = _read_now(sock)
                else:
                    data = sock.recv(_RECEIVED, socket.MSG_DONTWAIT)
            except (BlockingIOError, ssl.SSLWantReadError):
                return False
            if not data:
                raise smtplib.SMTPServerDisconnected("hung up")
            self._heard = data
        return True


def _read_now(sock: ssl.SSLSocket) -> bytes:
    sock.settimeout(0)
    try:
        return sock.recv(_RECEIVED)
    finally:
        sock.settimeout(None)


def reason(error: BaseException) -> str:
    """Say in a few words why something failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
