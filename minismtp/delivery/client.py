"""One connection to another server, for one message after the other (RFC 5321)."""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from minismtp.delivery.channel import Channel
from minismtp.delivery.content import Original
from minismtp.delivery.deadlines import Deadlines, Timeouts
from minismtp.delivery.extensions import Extensions
from minismtp.delivery.mx import Host
from minismtp.delivery.result import HostError, HostReply, LoopError, RecipientResult, TlsError
from minismtp.delivery.tls_security import (
    AUTHENTICATED,
    AnchorsError,
    Contexts,
    MismatchError,
    Security,
)
from minismtp.delivery.transfer import transact
from minismtp.mail.delivery import Destination
from minismtp.mail.message import Message
from minismtp.mail.mime_conversion import Form, is_clean
from minismtp.mail.queue_entry import QueuedRecipient, QueueEntry
from minismtp.values.address import to_ascii
from minismtp.values.cache import BoundedCache

_PARTING: Final = 10.0

_SMTP: Final = 25  # where a router would lead strangers to us
#: Of one transaction: every host takes so many (RFC 5321 section 4.5.3.1.8).
_RECIPIENTS: Final = 100
_REMEMBERED: Final = 86400.0  # seconds for which a host is known to refuse long lines
# Replies about the recipient, the size, or what we want: other lines would not help.
_OTHER_REASONS: Final = re.compile(r"5[0-9][0-9] 5\.[12347]\.")
_CONTINUE: Final = 334
_AUTHENTICATED: Final = 235


@dataclass(frozen=True, slots=True)
class Setting:
    """What all connections have in common."""

    hostname: str
    deadlines: Deadlines
    timeouts: Timeouts
    contexts: Contexts
    #: Addresses of hosts that have refused long lines.
    short_lines: BoundedCache[str, bool] = field(default_factory=lambda: BoundedCache(1 << 20))


class HostConnection:
    """A connection that is ready for MAIL. `tls` is one of `security.LEVELS`."""

    def __init__(
        self, host: Host, destination: Destination, security: Security, setting: Setting
    ) -> None:
        """Connect, greet, secure and log in. Raise HostError."""
        self.host = host
        self.tls = "none"
        self.messages = 0
        self._destination = destination
        self._security = security
        self._setting = setting
        self._channel = Channel(host, setting.hostname, setting.deadlines, setting.timeouts)
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
            hello = channel.hello()
            self._demand(hello, 250)
        if not destination.host and self.host.port == _SMTP:
            self._check_name(hello)
        if not destination.implicit and self._security.level != "none":
            self._start_tls()
        if destination.username:
            self._log_in()
        keywords = dict(channel.esmtp_features)
        self._extensions = Extensions(str(self.host), keywords)

    def _check_name(self, hello: HostReply) -> None:
        """Raise LoopError for a host that has our name: a router has led us back to ourselves.

        Hosts that the configuration names may share it, and so may a server at another port;
        machines that nobody has named do.
        """
        name = to_ascii(hello.text.partition(" ")[0])
        is_named = "." in name and not name.startswith("localhost.")
        if is_named and name == to_ascii(self._channel.local_hostname):
            raise LoopError(
                f"550 5.4.6 {self.host} is {name}: mail loops back to this host", final=True
            )

    def _start_tls(self) -> None:
        channel, security = self._channel, self._security
        problem = f"451 4.7.4 {self.host} does not offer STARTTLS"
        if channel.has_extn("starttls"):
            with channel.phase(channel.timeouts.command, "STARTTLS"):
                [reply] = channel.ask("STARTTLS")
            if reply.accepts:
                self._secure()
                with channel.phase(channel.timeouts.command, "EHLO"):
                    self._demand(channel.hello(), 250)
                return
            problem = f"451 4.7.4 {self.host} refuses STARTTLS: {reply}"
        if security.level != "opportunistic":
            raise TlsError(problem, security.otherwise)

    def _secure(self) -> None:
        channel, security = self._channel, self._security
        name = security.dane.base if security.dane else self.host.name
        try:
            with channel.phase(channel.timeouts.command, "the TLS handshake", status="4.7.5"):
                secured = channel.secure(security.context(self._setting.contexts), name)
                self.tls = security.confirm(secured)
        except HostError as error:
            raise TlsError(error.reply, security.otherwise) from None
        except MismatchError as error:
            raise TlsError(f"451 4.7.5 {self.host}: {error}", security.otherwise) from None
        except AnchorsError as found:
            raise TlsError(f"451 4.7.5 {self.host}: {found}", found.security) from None

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

    def send(
        self,
        entry: QueueEntry,
        targets: Sequence[QueuedRecipient],
        message: Message,
        original: Original | None = None,
    ) -> list[RecipientResult]:
        """Send a message; one answer for each target. Raise HostError before anything was taken.

        What the host cannot take as it is goes as a conversion of the `original`, the message
        before plugins have edited it; making that may raise Verdict or OSError. After the content,
        a lost connection is an answer: nobody knows whether it was taken.
        """
        if entry.require_tls and (
            self.tls not in AUTHENTICATED or "requiretls" not in self._extensions
        ):  # RFC 8689 section 4.2.1: another host may do
            raise HostError(f"550 5.7.30 {self.host} does not support REQUIRETLS", final=True)
        form, original = Form.of(message), original or Original(message)
        if self._extensions.takes(entry, form):
            return self._transact(entry, targets, message, form)
        if not self._keeps_seal(entry, message, form, original):
            return self._convert(entry, targets, original)
        answers = self._transact(entry, targets, message, form, chunked=True)
        left = [number for number, answer in enumerate(answers) if _minds_lines(answer)]
        if left:
            again = self._send_broken(entry, [targets[number] for number in left], original)
            for number, answer in zip(left, again, strict=True):
                answers[number] = answer
        return answers

    def _keeps_seal(
        self, entry: QueueEntry, message: Message, form: Form, original: Original
    ) -> bool:
        """Return whether long lines go unbroken, so that the signature of another stays good."""
        refused = self._setting.short_lines.get(self.host.address)
        unbroken = self._extensions.takes_unbroken(entry, form) and not refused
        return unbroken and original.sealed and is_clean(message)

    def _send_broken(
        self, entry: QueueEntry, targets: Sequence[QueuedRecipient], original: Original
    ) -> list[RecipientResult]:
        """Send once more what was refused unbroken; remember where that was the reason."""
        if self.closed:
            answers = [
                RecipientResult("queued", f"451 4.6.0 {self.host} refuses long lines")
            ] * len(targets)
        else:
            try:
                answers = self._convert(entry, targets, original)
            except HostError as error:  # others of the message may have been answered
                return [RecipientResult("queued", error.reply, elsewhere=True)] * len(targets)
        if self.closed or any(answer.state == "delivered" for answer in answers):
            address = self.host.address
            self._setting.short_lines.put(address, True, _REMEMBERED, len(address))
        return answers

    def _convert(
        self, entry: QueueEntry, targets: Sequence[QueuedRecipient], original: Original
    ) -> list[RecipientResult]:
        eight_bit = "8bitmime" in self._extensions
        entry, message, form = original.converted(entry, eight_bit=eight_bit)
        return self._transact(entry, targets, message, form)

    def _transact(
        self,
        entry: QueueEntry,
        targets: Sequence[QueuedRecipient],
        message: Message,
        form: Form,
        *,
        chunked: bool = False,
    ) -> list[RecipientResult]:
        problem = self._extensions.obstacle(entry, message)
        problems = [problem or self._extensions.obstacle_to(target) for target in targets]
        failed = {n: RecipientResult("failed", each) for n, each in enumerate(problems) if each}
        answers: dict[int, RecipientResult] = {}
        left = [number for number in range(len(targets)) if number not in failed]
        most = min(self._extensions.recipients or _RECIPIENTS, _RECIPIENTS)
        while left:
            part, rest = left[:most], left[most:]
            named = [targets[number] for number in part]
            self.messages += 1
            try:
                said = transact(
                    self._channel,
                    self._extensions,
                    entry,
                    named,
                    message,
                    form=form,
                    chunked=chunked,
                )
            except HostError as error:
                self.close()
                if not answers:
                    raise
                lost = RecipientResult("queued", error.reply, elsewhere=True)
                answers = dict.fromkeys(left, lost) | answers
                break
            answers |= dict(zip(part, said, strict=True))
            # At least one of a part is not crowded, so this comes to an end.
            crowded = [number for number in part if answers[number].crowded]
            most = len(part) - len(crowded)
            left = crowded + rest
        answers |= failed
        return [answers[number] for number in range(len(targets))]

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


def _minds_lines(answer: RecipientResult) -> bool:
    """Return whether a host may have refused content for its long lines."""
    return answer.content_refused and not _OTHER_REASONS.match(answer.reply)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
