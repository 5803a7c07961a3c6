"""One connection to another server, for one message after the other (layer 6; RFC 5321)."""

from __future__ import annotations

import base64
import contextlib
import ssl
from collections.abc import Sequence
from typing import Final

from minismtp.delivery import Destination
from minismtp.message import Message
from minismtp.outbound.answer import Answer, HostError, HostReply, TlsError
from minismtp.outbound.channel import Channel
from minismtp.outbound.deadlines import Deadlines, Timeouts
from minismtp.outbound.destination import Host
from minismtp.outbound.extensions import Extensions
from minismtp.outbound.transfer import transact
from minismtp.spool import Entry, Target

_PARTING: Final = 10.0

#: Of one transaction: every host takes so many (RFC 5321 section 4.5.3.1.8).
_RECIPIENTS: Final = 100
_CONTINUE: Final = 334
_AUTHENTICATED: Final = 235


class Connection:
    """A connection that is ready for MAIL. `tls` is none, encrypted or verified."""

    def __init__(
        self,
        host: Host,
        destination: Destination,
        hostname: str,
        deadlines: Deadlines,
        timeouts: Timeouts,
    ) -> None:
        """Connect, greet, secure and log in. Raises HostError."""
        self.host = host
        self.tls = "none"
        self.messages = 0
        self._destination = destination
        self._channel = Channel(host, hostname, deadlines, timeouts)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        destination, channel = self._destination, self._channel
        channel.open()
        if destination.implicit:
            self._secure()
        with channel.phase(channel.timeouts.command, "the greeting"):
            self._demand(channel.reply(), 220)
            self._demand(channel.hello(), 250)
        if not destination.implicit and destination.tls != "none":
            self._start_tls()
        if destination.username:
            self._log_in()
        keywords = dict(channel.esmtp_features)
        self._extensions = Extensions(str(self.host), keywords, self.tls == "verified")

    def _start_tls(self) -> None:
        channel, wanted = self._channel, self._destination.tls != "opportunistic"
        if not channel.has_extn("starttls"):
            if wanted:
                raise HostError(f"451 4.7.4 {self.host} does not offer STARTTLS")
            return
        with channel.phase(channel.timeouts.command, "STARTTLS"):
            [reply] = channel.ask("STARTTLS")
        if not reply.accepts:
            if wanted:
                raise HostError(f"451 4.7.4 {self.host} refuses STARTTLS: {reply}")
            return
        self._secure()
        with channel.phase(channel.timeouts.command, "EHLO"):
            self._demand(channel.hello(), 250)

    def _secure(self) -> None:
        verified = self._destination.tls == "verified"
        try:
            with self._channel.phase(
                self._channel.timeouts.command, "the TLS handshake", status="4.7.5"
            ):
                self._channel.secure(_context(verified=verified), self.host.name.strip("[]"))
        except HostError as error:
            raise TlsError(error.reply) from None
        self.tls = "verified" if verified else "encrypted"

    def _log_in(self) -> None:
        """Log in by PLAIN or LOGIN, inside TLS only (RFC 4954, RFC 4616)."""
        channel, destination = self._channel, self._destination
        if self.tls == "none":
            raise HostError(f"451 4.7.8 a password for {self.host} must not travel in clear")
        mechanisms = channel.esmtp_features.get("auth", "").upper().split()
        username, password = destination.username, destination.password
        if "PLAIN" in mechanisms:
            secret = _base64(f"\0{username}\0{password}")
            first, more = f"AUTH PLAIN {secret}", []
        elif "LOGIN" in mechanisms:
            secret = _base64(password)
            first, more = "AUTH LOGIN", [_base64(username), secret]
        else:
            raise HostError(f"451 4.7.8 {self.host} offers no AUTH PLAIN or LOGIN")
        with channel.phase(channel.timeouts.command, "AUTH"):
            [reply] = channel.ask(first)
            for step in more:
                if reply.code == _CONTINUE:
                    [reply] = channel.ask(step)
        if reply.code != _AUTHENTICATED:
            # Wrong today, right tomorrow: it is our operator who can mend it. Some hosts repeat
            # what they did not understand.
            said = str(reply).replace(secret, "...")
            raise HostError(f"451 4.7.8 login refused by {self.host}: {said}")

    def send(self, entry: Entry, targets: Sequence[Target], message: Message) -> list[Answer]:
        """Send a message; one answer for each target. Raises HostError before anything was taken.

        After the content, a lost connection is an answer: nobody knows whether it was taken.
        """
        problem = self._extensions.obstacle(entry, targets, message)
        if problem:
            return [Answer("failed", problem)] * len(targets)
        self.messages += 1
        answers: list[Answer] = []
        while len(answers) < len(targets):
            part = targets[len(answers) : len(answers) + _RECIPIENTS]
            try:
                answers += transact(self._channel, self._extensions, entry, part, message)
            except HostError as error:
                self.close()
                if not answers:
                    raise
                answers += [Answer("queued", error.reply)] * (len(targets) - len(answers))
        return answers

    def quit(self) -> None:
        """End the session as good manners want it."""
        with contextlib.suppress(HostError), self._channel.phase(_PARTING, "QUIT"):
            self._channel.ask("QUIT")
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._channel.close()

    @property
    def closed(self) -> bool:
        """Whether nothing more can be sent."""
        return self._channel.sock is None

    @staticmethod
    def _demand(reply: HostReply, wanted: int) -> None:
        if reply.code != wanted:
            raise HostError(str(reply), final=reply.is_final)


def _context(*, verified: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not verified:
        # Better than in clear, though anybody could be at the other end (RFC 7435).
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
