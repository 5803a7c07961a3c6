"""Ask a filter that speaks the milter protocol, such as OpenDKIM or rspamd's proxy.

This is the server's side, compatible with Sendmail and Postfix, so filters work without changes.
"""

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from minismtp import (
    Defer,
    Disconnect,
    Envelope,
    Message,
    Recipient,
    Reject,
    Remote,
    RemoteError,
    Reply,
    Resolver,
    ServerInfo,
    Session,
    SocketAddress,
    encode_xtext,
    events,
    hookimpl,
    plugin,
)

from . import _milter as wire
from ._milter_conversation import Conversation
from ._milter_message import Changes, MilterMessage
from ._options import check_time
from .reverse_dns import confirmed_name

_VERDICTS = (Reject, Defer, Disconnect)
_KNOWN = frozenset({"VRFY", "EXPN", "HELP", "XCLIENT"})
_DNS_PATIENCE = timedelta(seconds=5)


@plugin
class Milter:
    """Let a filter (milter) at `address` refuse and change incoming mail.

    The filter is told each step of each session and may refuse it. It may add, change and delete
    header fields, replace the body, add and delete recipients, change the sender, and quarantine or
    discard the message, if it asked for these actions at the start. It may speak the versions 2 to
    6 of the protocol. `patience` is for each of its answers; a filter that reports progress gets up
    to ten minutes.

    Sessions of users are shown too, with {auth_authen} and {auth_type}, because filters such as
    OpenDKIM sign their mail; use `listeners` for a filter of strangers alone. {daemon_name} is the
    name of the listener. Several filters need several tables and are asked in their order.
    """

    address: SocketAddress
    patience: timedelta = timedelta(seconds=30)

    def __post_init__(self) -> None:
        check_time("patience", self.patience)
        self._filter = Remote(self.address, timeout=self.patience)
        self._conversations: dict[str, Conversation] = {}  # by session
        self._resolver = Resolver()
        self._spool: Path | None = None

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Take the resolver, and the directory for large bodies."""
        self._resolver = server.resolver
        spool = server.state_directory / "spool"
        self._spool = spool if spool.is_dir() else None

    @hookimpl
    def on_connect(self, session: Session) -> None:
        """Connect to the filter, and send it the client's name and address."""
        self._begin(session)

    @hookimpl
    def on_helo(self, session: Session) -> None:
        """Send the name in HELO."""
        with self._conversation(session) as conversation:
            _greet(conversation, session)

    @hookimpl
    def on_mail(self, session: Session, envelope: Envelope) -> None:
        """Begin a message. After a lost connection, repeat the earlier steps first."""
        lost = self._is_lost(session)
        with self._conversation(session) as conversation:
            if lost:
                _greet(conversation, session)
            if not conversation.released:
                how = conversation.mechanism or "unknown"
                conversation.macros |= {
                    "i": envelope.id,
                    "{auth_authen}": session.login or "",
                    "{auth_type}": "" if session.login is None else how,
                    "{mail_mailer}": "smtp",
                    "{mail_host}": envelope.sender.rpartition("@")[2],
                    "{mail_addr}": envelope.sender,
                }
                conversation.mail(f"<{envelope.sender}>", *_mail_parameters(envelope))

    @hookimpl
    def on_routed(self, session: Session, recipient: Recipient) -> None:
        """Send a recipient."""
        with self._conversation(session, in_message=True) as conversation:
            if conversation.wants_more:
                conversation.macros |= {
                    "{rcpt_mailer}": "local" if recipient.mailboxes else "smtp",
                    "{rcpt_host}": recipient.address.domain,
                    "{rcpt_addr}": str(recipient.address),
                }
                notify = ",".join(sorted(recipient.notify))
                parameters = [f"NOTIFY={notify}"] if notify else []
                if recipient.original:
                    parameters.append(f"ORCPT={recipient.original}")
                conversation.recipient(recipient.address, *parameters)

    @hookimpl
    def on_data(self, session: Session) -> None:
        """Announce the content."""
        with self._conversation(session, in_message=True) as conversation:
            if conversation.wants_more:
                conversation.step(wire.DATA)

    @hookimpl
    def on_message(self, session: Session, envelope: Envelope, message: Message) -> None:
        """Send the message, and apply the filter's changes and verdict."""
        with self._conversation(session, in_message=True) as conversation:
            sent = MilterMessage(message, envelope, keeps_space=conversation.keeps_space)
            if conversation.wants_more:
                conversation.message(sent.fields(), sent.body())
            if conversation.wants_more:
                changes = Changes(sent, self._spool)
                for letter, data in conversation.end():
                    changes.take(letter, data)
                changes.apply()
            if conversation.discarded:
                message.discard(f"by the filter at {self.address}")

    @hookimpl
    def command(self, session: Session, verb: str, argument: str) -> Reply | None:
        """Send an unknown command."""
        if verb not in _KNOWN and not self._is_lost(session):
            with self._conversation(session) as conversation:
                if not conversation.released:
                    conversation.step(wire.UNKNOWN, wire.texts(f"{verb} {argument}".rstrip()))
        return None

    @hookimpl
    def observe(self, event: events.Event) -> None:
        """Note how a user logged in, refused recipients, and the end of a session."""
        match event:
            case events.Authenticated(result="success"):
                if event.session in self._conversations:
                    self._conversations[event.session].mechanism = event.mechanism
            case events.RecipientDecided() if event.reply.category != 2:  # noqa: PLR2004
                conversation = self._conversations.get(event.session)
                if conversation is not None and conversation.wants_refused(event.recipient):
                    self._tell_refused(conversation, event)
            case events.SessionClosed():
                conversation = self._conversations.pop(event.session, None)
                if conversation is not None:
                    conversation.quit()

    def _tell_refused(self, conversation: Conversation, event: events.RecipientDecided) -> None:
        conversation.macros |= {
            "{rcpt_mailer}": "error",
            "{rcpt_host}": event.reply.enhanced,
            "{rcpt_addr}": f"{event.reply.code} {event.reply.text}",
        }
        with self._watched(conversation), contextlib.suppress(*_VERDICTS):
            conversation.recipient(event.recipient)

    def _is_lost(self, session: Session) -> bool:
        conversation = self._conversations.get(session.id)
        return conversation is None or (conversation.closed and not conversation.released)

    @contextlib.contextmanager
    def _conversation(
        self, session: Session, *, in_message: bool = False
    ) -> Iterator[Conversation]:
        """Yield the session's conversation. Raise RemoteError if it was lost `in_message`.

        Otherwise a lost conversation starts again.
        """
        if self._is_lost(session):
            if in_message:
                raise RemoteError(f"{self.address} was lost during the message")
            self._begin(session)
        conversation = self._conversations[session.id]
        with self._watched(conversation):
            yield conversation

    @contextlib.contextmanager
    def _watched(self, conversation: Conversation) -> Iterator[None]:
        """Close the connection of a filter that fails, or that needs no more of the session."""
        with self._filter.breaker.watch():
            try:
                yield
                if conversation.released:
                    conversation.quit()
            except _VERDICTS:
                raise
            except BaseException:
                conversation.close()
                raise

    def _begin(self, session: Session) -> None:
        """Connect for a session, or start again after XCLIENT, and send the client's name."""
        earlier = self._conversations.pop(session.id, None)
        with self._filter.breaker.watch():
            if earlier is not None:
                earlier.quit()  # as in Postfix, because Sendmail's library hangs after QUIT_NC
            conversation = Conversation(self._filter.open(), self.patience)
            conversation.mechanism = earlier.mechanism if earlier is not None else ""
        self._conversations[session.id] = conversation
        with self._watched(conversation):
            name = confirmed_name(session, self._resolver, _DNS_PATIENCE)
            conversation.macros |= {
                "j": session.hostname,
                "_": f"{name or 'unknown'} [{session.peer}]",
                "v": "minismtp",
                "{daemon_name}": session.listener,
                "{daemon_addr}": session.local,
                "{if_addr}": session.local,
                "{client_addr}": session.peer,
                "{client_port}": str(session.peer_port),
                "{client_name}": name or "unknown",
                "{client_resolve}": "OK" if name else "FAIL",
            }
            connected = name or _literal(session.peer)
            client = wire.connection(connected, session.peer, session.peer_port)
            conversation.step(wire.CONNECT, client)


def _greet(conversation: Conversation, session: Session) -> None:
    if conversation.released or not session.helo:
        return
    tls = session.tls
    conversation.macros |= {
        "{tls_version}": tls.version if tls else "",
        "{cipher}": tls.cipher if tls else "",
        "{cipher_bits}": str(tls.bits) if tls and tls.bits else "",
        "{cert_subject}": tls.client_identity if tls else "",
    }
    conversation.helo(session.helo)


def _mail_parameters(envelope: Envelope) -> Iterator[str]:
    if envelope.size is not None:
        yield f"SIZE={envelope.size}"
    if envelope.body != "7BIT":
        yield f"BODY={envelope.body}"
    if envelope.smtputf8:
        yield "SMTPUTF8"
    if envelope.dsn_return:
        yield f"RET={envelope.dsn_return}"
    if envelope.dsn_id:
        yield f"ENVID={encode_xtext(envelope.dsn_id)}"


def _literal(peer: str) -> str:
    """Return the name for a client without one."""
    return f"[IPv6:{peer}]" if ":" in peer else f"[{peer}]"
