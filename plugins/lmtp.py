"""Hand each copy to an LMTP server, such as Dovecot's."""

from datetime import timedelta

from minismtp import (
    Address,
    Envelope,
    Message,
    Remote,
    ServerInfo,
    SmtpClient,
    SocketAddress,
    hookimpl,
    plugin,
)


@plugin
class Lmtp:
    """Store each copy through an LMTP server (RFC 2033), Dovecot's for example.

    `address` is its socket, TCP or unix. LMTP is not encrypted, so use TCP only in a network that
    you trust. The reply of the server for a mailbox decides: 4yz defers, 5yz refuses, with its code
    and text. Lines keep their length; 8-bit or binary content is encoded for a server that does not
    accept it. `patience` is the time for one copy including its reply.
    """

    address: SocketAddress
    patience: timedelta = timedelta(minutes=1)

    def __post_init__(self) -> None:
        self._server = Remote(self.address, timeout=self.patience)
        self._hostname = "localhost"

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Store the host name for LHLO."""
        self._hostname = server.hostname

    @hookimpl
    def deliver(self, envelope: Envelope, message: Message, mailbox: Address) -> bool:
        """Hand over one copy.

        Each copy is a transaction of its own, so the result of one does not depend on the next.
        """
        with self._server.connect() as line:
            client = SmtpClient(line, self._hostname, lmtp=True)
            client.greet()
            reply = client.send(envelope, message, [mailbox])[mailbox]
            client.quit(wait=False)
        reply.check()
        return True
