"""Mail that goes through plugins and nowhere else, for `try` and `replay`.

Everything is real except the socket and the storage. Mail that no plugin routes or stores is
accepted for every recipient and dropped. The caller chooses the state directory; the state that
several servers share is kept there too.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, BinaryIO, Final

from minismtp.cli.common import CommandError
from minismtp.config import Config, Listener, PluginConfig
from minismtp.config.tables import StateConfig
from minismtp.hooks.guard import StartError
from minismtp.hooks.loader import PluginSet, plugin
from minismtp.hooks.specs import ServerInfo, hookimpl
from minismtp.mail.envelope import Delivery, Envelope, Local
from minismtp.mail.message import Message
from minismtp.mail.queue_entry import QueueEntry
from minismtp.mail.session import Session
from minismtp.runtime.decision_log import DecisionLog, Record
from minismtp.runtime.log import Log
from minismtp.runtime.metrics import Metrics
from minismtp.runtime.thread_activity import Activity, Step
from minismtp.session.in_memory import Dialogue
from minismtp.session.listener_context import ListenerContext
from minismtp.smtp.dot_stuffing import dotted
from minismtp.storage.spool import Spool
from minismtp.values.address import Address
from minismtp.values.reply import Verdict

if TYPE_CHECKING:
    from pathlib import Path

REFUSALS: Final = ("reject", "defer", "disconnect")  # among the verdicts of a step


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleClient:
    """The client that sends a message; `sender` is empty for the null reverse-path."""

    sender: str
    recipients: tuple[str, ...]
    peer: str = "192.0.2.1"
    helo: str = "client.example"
    login: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The outcome for a message: accepted, quarantined, discarded, deferred or rejected.

    `steps` are the calls of the plugins' hooks, and the replies that refused something. `message`
    is the message after the plugins changed it, `before` the one that the client sent. Both are
    None if the session ended before the content. `outcomes` are those of recipients with a verdict
    of their own, by address.
    """

    outcome: str
    reply: str
    steps: list[Step]
    session: Session
    envelope: Envelope | None
    message: Message | None
    before: Message | None
    outcomes: dict[str, str]

    @property
    def accepted(self) -> bool:
        """Whether the last reply to the client was 250."""
        return self.outcome not in ("deferred", "rejected")

    @property
    def refused_by(self) -> str:
        """The plugin and hook that refused first; empty if no plugin refused anything."""
        for hook, name, _, _, verdict, _ in self.steps:
            if verdict in REFUSALS:
                return f"{name}.{hook}"
        return ""


class DryRun:
    """A server without sockets and storage, whose plugins run until `close`."""

    def __init__(
        self, config: Config, plugins: Iterable[tuple[PluginConfig, object]], log: Log
    ) -> None:
        """Start the plugins; raise ConfigError and CommandError."""
        config = replace(config, state=StateConfig())  # not the one that running servers share
        self._metrics = Metrics(listener.name for listener in config.mail_listeners)
        self._records = _RecordsInMemory(config.state_directory, log)
        self._first = _First()
        loaded = PluginSet(self._metrics, log)
        loaded.add(_FIRST, self._first)
        for table, instance in plugins:
            loaded.add(table, instance, file=config.file)
        loaded.add(_LAST, _Last())
        loaded.close()
        #: What is most likely a mistake in the source of a plugin.
        self.doubts = [text for _, text in loaded.doubts()]
        (config.state_directory / "spool").mkdir(parents=True, exist_ok=True)
        self._hooks = loaded.hooks()
        try:
            self._hooks.on_start(ServerInfo.of(config, "worker"))
        except StartError as error:
            raise CommandError(str(error)) from error
        self._services = [
            self._service(config, each, loaded, log) for each in config.mail_listeners
        ]

    def _service(
        self, config: Config, listener: Listener, plugins: PluginSet, log: Log
    ) -> ListenerContext:
        # The server's own rules for clients are off, because the plugins are the subject.
        return replace(
            ListenerContext.of(config, listener, plugins, self._metrics, log),
            starttls=False,
            queue=_EmptyQueue(config.state_directory),
            decision_log=self._records,
            greet_delay=0.0,
            match_sender=False,
            match_from=False,
            fix_newlines=True,
        )

    def run(self, client: ExampleClient, content: BinaryIO) -> Result:
        """Send the message at the position of `content`, whose lines may end with LF or CRLF."""
        first = self._first
        first.envelope = first.message = first.before = None
        self._records.records = []
        kind = "mx" if client.login is None else "submission"
        service = next((each for each in self._services if each.kind == kind), self._services[0])
        dialogue = Dialogue(
            service=service, metrics=self._metrics, peer=client.peer, login=client.login
        )
        reply = _converse(dialogue, client, content)
        dialogue.close()
        self._metrics.buffer.flush()
        ours = (_FIRST.name, _LAST.name)
        # The record of the session comes last, but began first.
        records = reversed(self._records.records)
        return Result(
            outcome=_outcome(reply, first.message),
            reply=reply,
            steps=[step for record in records for step in record.steps if step[1] not in ours],
            session=dialogue.session,
            envelope=first.envelope,
            message=first.message,
            before=first.before,
            outcomes=dialogue.outcomes,
        )

    def send(self, result: Result) -> list[Step]:
        """Let the plugins change an accepted message as if it was sent on. Return their steps."""
        if not result.accepted or result.envelope is None or result.message is None:
            return []
        recipients = tuple(each.address for each in result.envelope.recipients)
        delivery = Delivery(result.envelope, recipients, recipients[0].ascii_domain)
        activity = Activity()
        with activity, contextlib.suppress(Verdict):  # a verdict is in the steps
            self._hooks.on_send(delivery, result.message)
        return activity.steps

    def close(self) -> None:
        """Stop the plugins."""
        self._hooks.on_stop()


class _RecordsInMemory(DecisionLog):
    """Keeps the records of one message."""

    def __init__(self, directory: Path, log: Log) -> None:
        super().__init__(directory, 0, log)
        self.records: list[Record] = []

    def later(self, record: Callable[[], Record], *, accepted: bool) -> None:
        del accepted
        self.records.append(record())


class _EmptyQueue(Spool):
    """A queue for other servers that takes every message and drops it."""

    def has_space(self, size: int = 0) -> bool:
        del size
        return True

    def add(self, entry: QueueEntry, message: Message) -> None:
        pass


@plugin
class _First:
    """Keeps envelope and message, before any other plugin sees them."""

    envelope: Envelope | None = field(default=None, init=False)
    message: Message | None = field(default=None, init=False)
    before: Message | None = field(default=None, init=False)

    @hookimpl
    def on_mail(self, envelope: Envelope) -> None:
        self.envelope = envelope

    @hookimpl
    def on_message(self, message: Message) -> None:
        self.message, self.before = message, message.copy()


@plugin
class _Last:
    """Accepts all mail that no other plugin routes or stores, and drops it."""

    @hookimpl
    def route(self) -> Local:
        return Local()

    @hookimpl
    def deliver(self, mailbox: Address) -> bool:
        del mailbox
        return True


_FIRST: Final = PluginConfig(use="-first")
_LAST: Final = PluginConfig(use="-last")


def _converse(dialogue: Dialogue, client: ExampleClient, content: BinaryIO) -> str:
    """Send all commands and the content. Return the last reply, or the first refusal."""
    if not dialogue.banner.startswith("220"):
        return dialogue.banner.strip()
    told = "".join((client.sender, *client.recipients))
    utf8 = "" if told.isascii() else " SMTPUTF8"
    greeting = "LHLO" if dialogue.service.lmtp else "EHLO"
    for command in (
        f"{greeting} {client.helo}",
        f"MAIL FROM:<{client.sender}> BODY=8BITMIME{utf8}",
    ):
        reply = dialogue.send(command)
        if not reply.startswith("250"):
            return reply
    replies = [dialogue.send(f"RCPT TO:<{each}>") for each in client.recipients]
    if not any(reply.startswith("250") for reply in replies):
        return replies[0]
    reply = dialogue.send("DATA")
    if not reply.startswith("354"):
        return reply
    output = b"".join(map(dialogue.send_raw, dotted(content)))
    first = output.decode().partition("\r\n")[0]
    return re.sub(r" \(id [0-9a-f.]+\)$", "", first)


def _outcome(reply: str, message: Message | None) -> str:
    if not reply.startswith("2"):
        return "deferred" if reply.startswith("4") else "rejected"
    if message is not None and message.discarded is not None:
        return "discarded"
    if message is not None and message.quarantined is not None:
        return "quarantined"
    return "accepted"
