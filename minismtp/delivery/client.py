"""A connection to a host, over which messages are sent one after the other (RFC 5321)."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from minismtp.config.outbound_tables import Timeouts
from minismtp.delivery.mx import Host
from minismtp.delivery.result import HostError, LoopError, RecipientResult, TlsError, results_of
from minismtp.delivery.tls_security import (
    AUTHENTICATED,
    AnchorsError,
    Contexts,
    MismatchError,
    Security,
)
from minismtp.mail.envelope import Destination
from minismtp.mail.message import Message
from minismtp.mail.mime_conversion import Form, converted, is_clean, is_sealed
from minismtp.mail.queue_entry import QueuedRecipient, QueueEntry
from minismtp.runtime.thread_activity import here
from minismtp.services.remote import Line, reason
from minismtp.services.smtp_client import SmtpClient, SmtpError
from minismtp.services.smtp_extensions import Extensions
from minismtp.smtp.client_reply import HostReply
from minismtp.values.address import to_ascii
from minismtp.values.cache import BoundedCache

_SMTP: Final = 25  # a router would lead other servers to us at this port
#: in one transaction: every host accepts this number (RFC 5321 section 4.5.3.1.8)
_RECIPIENTS: Final = 100
_REMEMBERED: Final = 86400.0  # seconds for which we know that a host refuses long lines
# Replies about the recipient, the size or our request: shorter lines would not help.
_OTHER_REASONS: Final = re.compile(r"5[0-9][0-9] 5\.[12347]\.")
_UNSENT: Final = 131072  # octets that may wait in the kernel to be sent


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Settings that all connections share."""

    hostname: str
    timeouts: Timeouts
    contexts: Contexts
    #: addresses of hosts that refused long lines
    short_lines: BoundedCache[str, bool] = field(default_factory=lambda: BoundedCache(1 << 20))
    clock: Callable[[], float] = time.monotonic


class Original:
    """A message as it is in the queue, from which conversions are made.

    `edit` lets plugins edit a conversion as they edit any message before it is sent, so that their
    signatures are valid for it. `directory` is for large conversions.
    """

    def __init__(
        self,
        message: Message,
        edit: Callable[[QueueEntry, Message], object] = lambda *_: None,
        directory: Path | None = None,
    ) -> None:
        self._message = message
        self._edit = edit
        self._directory = directory

    @property
    def sealed(self) -> bool:
        """Whether it has a signature that a conversion would break."""
        return is_sealed(self._message)

    def converted(self, entry: QueueEntry, *, eight_bit: bool) -> tuple[QueueEntry, Message, Form]:
        """Return a conversion with its envelope and form. Raise Verdict and OSError."""
        made = self._convert(self._message, entry, eight_bit=eight_bit)
        form = Form.of(made)
        entry = replace(entry, body="8BITMIME" if form.wide and eight_bit else "7BIT")
        self._edit(entry, made)
        edited = Form.of(made)
        if edited != form and (edited.long or not eight_bit):  # because of a plugin
            made = self._convert(made, entry, eight_bit=eight_bit)
            edited = Form.of(made)
        return entry, made, edited

    def _convert(self, message: Message, entry: QueueEntry, *, eight_bit: bool) -> Message:
        return converted(
            message,
            eight_bit=eight_bit,
            binary=entry.body == "BINARYMIME",
            directory=self._directory,
        )


class HostConnection:
    """A connection that is ready for MAIL. `tls` is one of `tls_security.LEVELS`."""

    def __init__(
        self, host: Host, destination: Destination, security: Security, setting: ClientSettings
    ) -> None:
        """Connect, greet, secure and log in. Raise HostError."""
        self.host = host
        self.tls = "none"
        self.messages = 0
        self._destination = destination
        self._security = security
        self._setting = setting
        self._client = SmtpClient(self._connect(), setting.hostname, timeouts=setting.timeouts)
        try:
            self._open()
        except SmtpError as error:
            self.close()
            raise HostError(str(error.reply), final=error.reply.is_final) from None
        except BaseException:
            self.close()
            raise

    def _connect(self) -> Line:
        setting, address = self._setting, (self.host.address, self.host.port)
        try:
            with here.activity.during(f"{self.host}: connecting"):
                sock = socket.create_connection(address, setting.timeouts.connect)
        except OSError as error:
            raise HostError(f"451 4.4.1 cannot connect to {self.host}: {reason(error)}") from None
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The kernel would accept megabytes at once that a slow line needs minutes for. Then we
        # would extend the deadline too early, and wait for the reply before the content is sent.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
        return Line(sock, setting.clock(), str(self.host), setting.clock)

    def _open(self) -> None:
        destination, client = self._destination, self._client
        if destination.implicit:
            self._secure()
        hello = client.greet()
        if not destination.host and self.host.port == _SMTP:
            self._check_name(hello)
        if not destination.implicit and self._security.level != "none":
            self._start_tls()
        if destination.username:
            if self.tls == "none":
                raise HostError(f"451 4.7.8 a password for {self.host} must not travel in clear")
            client.log_in(destination.username, destination.password)

    def _check_name(self, hello: HostReply) -> None:
        """Raise LoopError for a host with our name, because then a router led us back to ourselves.

        A host in the configuration may share our name, and so may a server at another port or a
        machine with a default name such as localhost.
        """
        name = to_ascii(hello.text.partition(" ")[0])
        is_named = "." in name and not name.startswith("localhost.")
        if is_named and name == to_ascii(self._setting.hostname):
            raise LoopError(
                f"550 5.4.6 {self.host} is {name}: mail loops back to this host", final=True
            )

    def _start_tls(self) -> None:
        refusal = self._client.ask_for_tls()
        if not refusal:
            self._secure()
            self._client.hello()
        elif self._security.level != "opportunistic":
            raise TlsError(f"451 4.7.4 {refusal}", self._security.fallback)

    def _secure(self) -> None:
        security = self._security
        name = security.dane.base if security.dane else self.host.name
        try:
            secured = self._client.secure(security.context(self._setting.contexts), name)
            self.tls = security.confirm(secured)
        except SmtpError as error:
            raise TlsError(str(error.reply), security.fallback) from None
        except MismatchError as error:
            raise TlsError(f"451 4.7.5 {self.host}: {error}", security.fallback) from None
        except AnchorsError as found:
            raise TlsError(f"451 4.7.5 {self.host}: {found}", found.security) from None

    def send(
        self,
        entry: QueueEntry,
        targets: Sequence[QueuedRecipient],
        message: Message,
        original: Original | None = None,
    ) -> list[RecipientResult]:
        """Send a message, and return a result for each target.

        If the host cannot take the message as it is, send a conversion of the `original`, the
        message before plugins edited it. Raise HostError if the connection fails before the
        content was sent; later, the result says so, because the host may have the message. Raise
        Verdict or OSError if the conversion fails.
        """
        if entry.require_tls and (
            self.tls not in AUTHENTICATED or "REQUIRETLS" not in self._extensions
        ):  # RFC 8689 section 4.2.1: another host may support it
            raise HostError(f"550 5.7.30 {self.host} does not support REQUIRETLS", final=True)
        form, original = Form.of(message), original or Original(message)
        if self._client.extensions.takes(entry, form):
            return self._transact(entry, targets, message, form)
        if not self._keeps_seal(entry, message, form, original):
            return self._convert(entry, targets, original)
        results = self._transact(entry, targets, message, form, chunked=True)
        left = [number for number, result in enumerate(results) if _minds_lines(result)]
        if left:
            again = self._send_broken(entry, [targets[number] for number in left], original)
            for number, result in zip(left, again, strict=True):
                results[number] = result
        return results

    def _keeps_seal(
        self, entry: QueueEntry, message: Message, form: Form, original: Original
    ) -> bool:
        """Return whether long lines are sent unbroken, so that a signature stays valid."""
        refused = self._setting.short_lines.get(self.host.address)
        unbroken = self._extensions.takes_unbroken(entry, form) and not refused
        return unbroken and original.sealed and is_clean(message)

    def _send_broken(
        self, entry: QueueEntry, targets: Sequence[QueuedRecipient], original: Original
    ) -> list[RecipientResult]:
        """Send a message again with short lines, and remember a host that refuses long ones."""
        if self.closed:
            results = [
                RecipientResult("deferred", f"451 4.6.0 {self.host} refuses long lines")
            ] * len(targets)
        else:
            try:
                results = self._convert(entry, targets, original)
            except HostError as error:  # the results of other recipients still count
                return [RecipientResult("deferred", error.reply, try_next_host=True)] * len(targets)
        if self.closed or any(result.state == "delivered" for result in results):
            address = self.host.address
            self._setting.short_lines.put(address, True, _REMEMBERED, len(address))
        return results

    def _convert(
        self, entry: QueueEntry, targets: Sequence[QueuedRecipient], original: Original
    ) -> list[RecipientResult]:
        eight_bit = "8BITMIME" in self._extensions
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
        chunked = chunked or entry.body == "BINARYMIME"
        extensions = self._client.extensions
        obstacle, failed = extensions.obstacle(entry, message), dict[int, RecipientResult]()
        left, results = list[int](), dict[int, RecipientResult]()
        for number, target in enumerate(targets):
            if found := obstacle or extensions.obstacle_to(target.address):
                failed[number] = RecipientResult("failed", str(found))
            else:
                left.append(number)
        most = min(extensions.recipients or _RECIPIENTS, _RECIPIENTS)
        mail = extensions.mail(entry, message, wide=form.wide)
        while left:
            part, rest = left[:most], left[most:]
            commands = []
            for number in part:
                named = targets[number]
                commands.append(extensions.rcpt(named.address, named.notify, named.original))
            self.messages += 1
            try:
                said = results_of(
                    self._client.transact(mail, commands, message, chunked=chunked),
                    reports="DSN" in extensions.keywords,
                )
            except SmtpError as error:
                self.close()
                reply = str(error.reply)
                if not results:
                    raise HostError(reply, final=error.reply.is_final) from None
                lost = RecipientResult("deferred", reply, try_next_host=True)
                results = dict.fromkeys(left, lost) | results
                break
            results |= dict(zip(part, said, strict=True))
            # At least one recipient of a part is not among these, so the loop ends.
            too_many = [number for number in part if results[number].too_many]
            most = len(part) - len(too_many)
            left = too_many + rest
        results |= failed
        return [results[number] for number in range(len(targets))]

    @property
    def _extensions(self) -> Extensions:
        return self._client.extensions

    def quit(self) -> None:
        """Say QUIT, and close the connection."""
        self._client.quit()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    @property
    def closed(self) -> bool:
        """Whether nothing more can be sent."""
        return self._client.closed


def _minds_lines(result: RecipientResult) -> bool:
    """Return whether a host may have refused content because of its long lines."""
    return result.content_refused and not _OTHER_REASONS.match(result.reply)
