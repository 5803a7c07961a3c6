"""Hand mail to another SMTP server while its sender waits."""

import ssl
from datetime import timedelta
from pathlib import Path
from typing import Literal

from minismtp import (
    Address,
    Envelope,
    HostReply,
    Message,
    Remote,
    ServerInfo,
    SmtpClient,
    SocketAddress,
    StashKey,
    hookimpl,
    plugin,
    read_file,
    warn_of_readers,
)

from ._login import authorities

_MOST = 100  # recipients that every server accepts (RFC 5321 section 4.5.3.1.8)


@plugin
class Forward:
    """Store mail by handing it to another SMTP server, whose reply is the reply.

    This server stores nothing then: it is a filter in front of the server at `address`. A message
    is sent to all of its mailboxes in one transaction. Lines keep their length; 8-bit or binary
    content is encoded for a server that does not accept it. `tls` is "none", "starttls" (which the
    server must offer) or "implicit". The certificate must be for the host of `address`, from an
    authority in the file `ca` or, without `ca`, of the system. `username` and the first line of
    `password_file` are the login, by AUTH PLAIN or LOGIN, inside TLS or on this machine only.
    `patience` is the time for a whole message including its reply.
    """

    address: SocketAddress
    tls: Literal["none", "starttls", "implicit"] = "none"
    ca: Path | None = None
    username: str = ""
    password_file: Path | None = None
    patience: timedelta = timedelta(minutes=2)

    def __post_init__(self) -> None:
        self._context: ssl.SSLContext | None = None
        if self.tls != "none":
            if self.address.path is not None:
                raise ValueError('tls: expected "none" for a unix socket, which has no name')
            self._context = authorities(self.ca)
        if bool(self.username) != (self.password_file is not None):
            raise ValueError("username: expected it and password_file together")
        if self.username and self.tls == "none" and not self.address.is_local:
            raise ValueError("tls: expected starttls or implicit, as a password is sent")
        if self.password_file is not None and not self.password_file.is_file():
            raise ValueError(f"password_file: {self.password_file}: no such file")
        implicit = self._context if self.tls == "implicit" else None
        self._server = Remote(self.address, timeout=self.patience, tls=implicit)
        self._hostname = "localhost"
        self._replies: StashKey[dict[Address, HostReply]] = StashKey()

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Store the host name for EHLO, and warn if other users can read the password."""
        self._hostname = server.hostname
        if server.role == "check" and self.password_file is not None:
            warn_of_readers("password_file", self.password_file)

    @hookimpl
    def deliver(self, envelope: Envelope, message: Message, mailbox: Address) -> bool:
        """Hand the message over for this mailbox and for those that follow it.

        A mailbox that the server refuses does not affect the others. The replies for the others
        are kept for their calls. A copy from the queue is sent alone, because the other mailboxes
        may have theirs.
        """
        replies = envelope.stash.setdefault(self._replies, {})
        if mailbox not in replies:
            boxes = [mailbox] if envelope.queued else _from(envelope, mailbox)
            replies |= self._send(envelope, message, boxes)
        replies[mailbox].check()
        return True

    def _send(
        self, envelope: Envelope, message: Message, boxes: list[Address]
    ) -> dict[Address, HostReply]:
        with self._server.connect() as line:
            client = SmtpClient(line, self._hostname)
            client.greet()
            if self._context is not None and self.tls == "starttls":
                client.start_tls(self._context, self.address.host)
            if self.password_file is not None:
                text = read_file(self.password_file).decode()
                client.log_in(self.username, text.partition("\n")[0].removesuffix("\r"))
            replies = client.send(envelope, message, boxes)
            client.quit(wait=False)
            return replies


def _from(envelope: Envelope, mailbox: Address) -> list[Address]:
    """Return this mailbox and those that follow it, in the order of delivery."""
    boxes = [box for recipient in envelope.recipients for box in recipient.mailboxes]
    boxes = list(dict.fromkeys(boxes))
    return boxes[boxes.index(mailbox) :][:_MOST] if mailbox in boxes else [mailbox]
