"""Measures the cost of a plugin on every stage of a message."""

from minismtp import Envelope, Message, Recipient, Reject, Session, hookimpl, plugin


@plugin
class EveryStage:
    """Judges at each stage, and finds nothing."""

    @hookimpl
    def on_connect(self, session: Session) -> None:
        if session.peer.startswith("192.0.2."):
            raise Reject("go away")

    @hookimpl
    def on_helo(self, session: Session) -> None:
        if session.helo == "localhost":
            raise Reject("who are you")

    @hookimpl
    def on_mail(self, envelope: Envelope) -> None:
        if envelope.sender.endswith("@spam.example"):
            raise Reject("no spam")

    @hookimpl
    def on_rcpt(self, recipient: Recipient) -> None:
        if recipient.address.local.startswith("trap"):
            raise Reject("no such mailbox")

    @hookimpl
    def on_data(self, envelope: Envelope) -> None:
        if len(envelope.recipients) > 50:
            raise Reject("too many recipients")

    @hookimpl
    def on_message(self, message: Message) -> None:
        if message.headers.get("X-Spam-Flag") == "YES":
            raise Reject("spam")
