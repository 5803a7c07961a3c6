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

    `address` is its socket, TCP or unix; LMTP is not encrypted, so over TCP keep to hosts that you
    trust. What it replies for a mailbox is the reply for that one: 4yz defers, 5yz refuses, with
    its code and text. Messages keep their lines, of any length; 8-bit or binary content is encoded
    for a server that does not take it. `patience` is for one copy with its reply.
    """

    address: SocketAddress
    patience: timedelta = timedelta(minutes=1)

    def __post_init__(self) -> None:
        self._server = Remote(self.address, timeout=self.patience)
        self._hostname = "localhost"

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Learn by which name to introduce ourselves."""
        self._hostname = server.hostname

    @hookimpl
    def deliver(self, envelope: Envelope, message: Message, mailbox: Address) -> bool:
        """Hand over one copy.

        Each copy is a transaction of its own: what is known of one is not lost when the next fails.
        """
        with self._server.connect() as line:
            client = SmtpClient(line, self._hostname, lmtp=True)
            client.greet()
            reply = client.send(envelope, message, [mailbox])[mailbox]
            client.quit(wait=False)
        reply.check()
        return True
