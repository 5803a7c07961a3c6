"""A whole session without a socket, for tests of plugins, for trials, and for `minismtp check`.

Everything else is real: the protocol, the receiver, the guards around the plugins.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field, replace
from datetime import timedelta
from pathlib import Path
from typing import Literal, TypedDict, Unpack

from minismtp.config import Config, Limits, PluginConfig
from minismtp.hooks.facade import Hooks
from minismtp.hooks.loader import PluginSet, plugin
from minismtp.hooks.specs import ServerInfo, hookimpl
from minismtp.mail.content import Content
from minismtp.mail.envelope import Delivery, Destination, Envelope, Local, Recipient, Relay
from minismtp.mail.message import Message
from minismtp.mail.queue_entry import QueueEntry
from minismtp.mail.session import Session, TlsInfo
from minismtp.runtime import log as logging
from minismtp.runtime.log import Log
from minismtp.runtime.metrics import Metrics
from minismtp.runtime.thread_activity import Activity
from minismtp.services.resolver import Resolver
from minismtp.services.shared_state import State
from minismtp.session.listener_context import ListenerContext, new_id
from minismtp.session.receiver import Receiver
from minismtp.storage.spool import Spool
from minismtp.values.address import Address
from minismtp.values.clock import Clock


class Dialogue:
    """The client's side of one session with the given plugins. The banner is in `banner`.

    Refusals are returned without the identifiers that they end in, but `send_raw` returns all
    octets.

    A plugin may come with its `[[plugins]]` table: `(PluginConfig(use="spam", mode="shadow"),
    SpamFlag())`. With `login` and `tls` the session begins logged in and inside TLS. `count` reads
    a value of `metrics`. Errors are logged to standard error unless `log` is given. Plugins ask the
    name servers of this machine unless `resolver` is given. Dialogues with the same `state` share
    what their plugins keep there. `advance` lets time pass for the session, its plugins and their
    state; a `state` that is given has a clock of its own. A `service` replaces plugins, kind,
    limits, spool, log, resolver, state and clock.
    """

    def __init__(
        self,
        *plugins: object,
        kind: Literal["mx", "submission", "lmtp"] = "mx",
        peer: str = "192.0.2.1",
        login: str | None = None,
        tls: bool = False,
        limits: Limits | None = None,
        spool: Path | None = None,
        log: Log | None = None,
        metrics: Metrics | None = None,
        resolver: Resolver | None = None,
        state: State | None = None,
        clock: Clock | None = None,
        service: ListenerContext | None = None,
    ) -> None:
        self.metrics = metrics or Metrics(["test"])
        self.clock = clock or Clock()
        self._resolver = resolver
        self._started: Hooks | None = None
        self._closed = False
        self._notices = _Outbox(Path())
        if service is None:
            log = log or Log(level="error", unfolded=True)
            state = state or State.in_memory(clock=self.clock.wall)
            service = self._context(plugins, kind, limits or Limits(), spool, log, state=state)
        if service.queue is None:
            service = replace(service, notices=self._notices)
        self.service = service
        self.session = Session(
            id=new_id(),
            listener=service.listener,
            kind=service.kind,
            hostname=service.hostname,
            peer=peer,
            started=service.wall(),
            login=login,
            tls=TlsInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384") if tls else None,
        )
        self._activity = Activity()
        self._bound: dict[str, object] = {"session": self.session.id}
        self.receiver = Receiver(service, self.session, self._activity)
        with self._logging():
            self.banner = _without_ids(self.receiver.greet())

    @classmethod
    def configured(
        cls,
        config: Config,
        listener: str,
        *,
        peer: str = "192.0.2.1",
        log: Log | None = None,
        clock: Clock | None = None,
    ) -> Dialogue:
        """Begin a session of a configured listener. Raise ConfigError or guard.StartError."""
        clock = clock or Clock()
        metrics, log = Metrics(), log or Log(level="error", unfolded=True)
        plugins = PluginSet.load(config, metrics, log)
        found = next(item for item in config.listeners if item.name == listener)
        service = ListenerContext.of(config, found, plugins, metrics, log)
        service = replace(service, clock=clock.monotonic, wall=clock.wall)
        state = config.state_directory
        (state / "spool").mkdir(parents=True, exist_ok=True)
        plugins.hooks().on_start(ServerInfo.of(config, "worker", clock=clock))
        dialogue = cls(service=service, metrics=metrics, peer=peer, clock=clock)
        dialogue._started = plugins.hooks()
        return dialogue

    def send(self, line: str) -> str:
        """Send one line. Return the reply without its last line end, its lines separated by LF."""
        return _text(self.send_raw(line.encode() + b"\r\n"))

    def send_raw(self, data: bytes) -> bytes:
        """Send octets, and return the octets that come back."""
        with self._logging():
            output = self.receiver.receive(data)
            while self.receiver.pending:
                output += self.receiver.proceed()
        return output

    def mail(
        self,
        content: str | bytes,
        *,
        sender: str = "sender@client.example",
        to: tuple[str, ...] = ("user@example.org",),
    ) -> str:
        """Send a greeting and a whole message. Return the first refusal, or the last reply."""
        data = _with_crlf(content)
        greeting = "LHLO" if self.service.lmtp else "EHLO"
        commands = [f"{greeting} client.example", f"MAIL FROM:<{sender}>"]
        commands += [f"RCPT TO:<{recipient}>" for recipient in to] + ["DATA"]
        for command in commands:
            reply = self.send(command)
            if not reply.startswith(("2", "3")):
                return reply
        stuffed = (b"\r\n" + data).replace(b"\r\n.", b"\r\n..")[2:]
        return _text(self.send_raw(stuffed + b".\r\n"))

    def leave(
        self,
        content: str | bytes,
        *,
        sender: str = "sender@example.org",
        to: tuple[str, ...] = ("user@client.example",),
    ) -> tuple[Message, Destination | None]:
        """Have the plugins prepare a message for delivery to one domain. Raise their Verdict.

        Return the message as they changed it, and the next hop, None if they leave the choice to
        the server.
        """
        envelope = Envelope(
            id=f"{self.session.id}.1",
            reverse_path=Address.parse(sender) if sender else None,
            listener=self.session.listener,
            peer=self.session.peer,
            helo=self.session.helo,
            login=self.session.login,
            arrived=self.session.started,
        )
        addresses = tuple(Address.parse(each) for each in to)
        envelope.recipients += [Recipient(each, Relay()) for each in addresses]
        delivery = Delivery(envelope, addresses, addresses[0].ascii_domain)
        message = Message(envelope.id, Content.of(_with_crlf(content)))
        with self._logging():
            self.service.hooks.on_send(delivery, message)
            return message, self.service.hooks.destination(delivery)

    @property
    def outcomes(self) -> dict[str, str]:
        """What became of recipients of the latest message with a verdict of their own, by address.

        The words are those of `minismtp_recipient_verdicts_total`: rejected, deferred, notified,
        quarantined, dropped. All other recipients share the reply, and are not in here.
        """
        return self.receiver.outcomes

    @property
    def notifications(self) -> list[bytes]:
        """The notifications that senders got about recipients who were refused, the latest last."""
        return [*self._notices.contents]

    def advance(self, by: timedelta) -> None:
        """Let this much time pass at once, as plugins, their state and limits measure it."""
        self.clock.advance(by)

    def close(self) -> None:
        """End the session as if the connection were lost, and stop the plugins."""
        if self._closed:
            return
        self._closed = True
        with self._logging():
            self.receiver.finished()
        if self._started is not None:
            self._started.on_stop()

    def count(self, name: str, **labels: str) -> float:
        """Return the value of a metric, 0 when it has none."""
        self.metrics.buffer.flush()
        return self.metrics.registry.get_sample_value(f"minismtp_{name}", labels) or 0.0

    @contextmanager
    def _logging(self) -> Iterator[None]:
        logging.bound().update(self._bound)
        try:
            with self._activity:
                yield
        finally:
            self._bound = {**logging.bound()}
            logging.bound().clear()

    def _context(
        self,
        plugins: tuple[object, ...],
        kind: str,
        limits: Limits,
        spool: Path | None,
        log: Log,
        *,
        state: State,
    ) -> ListenerContext:
        loaded = PluginSet(self.metrics, log)
        names: set[str] = set()
        for number, item in enumerate(plugins):
            if isinstance(item, tuple):
                table, instance = item
            else:
                name = type(item).__name__.lower()
                name = f"{name}-{number + 1}" if name in names else name
                table, instance = PluginConfig(use=name, key=f"plugins[{number}]"), item
            names.add(table.name)
            loaded.add(table, instance)
        loaded.close()
        directory, resolver = spool or Path(tempfile.gettempdir()), self._resolver or Resolver()
        clock, wall = self.clock.monotonic, self.clock.wall
        server = ServerInfo("mx.example.org", directory, "worker", 0, resolver, state, clock, wall)
        loaded.hooks().on_start(server)
        self._started = loaded.hooks()
        return ListenerContext(
            listener="test",
            kind=kind,
            hostname="mx.example.org",
            limits=limits,
            hooks=loaded.hooks("test"),
            metrics=self.metrics.listener("test"),
            log=log,
            clear_auth=True,
            spool=spool,
            clock=clock,
            wall=wall,
        )


class _Outbox(Spool):
    """Keeps notifications in memory."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.contents: list[bytes] = []

    def has_space(self, size: int = 0) -> bool:
        del size
        return True

    def add(self, entry: QueueEntry, message: Message) -> None:
        del entry
        with message.open() as content:
            self.contents.append(content.read())


class SessionOptions(TypedDict, total=False):
    """The options of `Dialogue` that a test may choose."""

    kind: Literal["mx", "submission", "lmtp"]
    peer: str
    login: str | None
    tls: bool
    limits: Limits | None
    log: Log | None
    resolver: Resolver | None
    state: State | None
    clock: Clock | None


class Dialogues:
    """Begins sessions that end together: the fixture `dialogue`.

    The sessions share one state directory and one clock. Their plugins share one state, unless a
    session is given its own `state`.
    """

    def __init__(self, directory: Path) -> None:
        self.clock = Clock()
        self._directory = directory
        self._state = State.in_memory(clock=self.clock.wall)
        self._begun: list[Dialogue] = []

    def __call__(self, *plugins: object, **options: Unpack[SessionOptions]) -> Dialogue:
        """Begin a session with the given plugins, see `Dialogue`."""
        options["state"] = options.get("state") or self._state
        options["clock"] = options.get("clock") or self.clock
        begun = Dialogue(*plugins, spool=self._directory, **options)
        self._begun.append(begun)
        return begun

    def configured(self, config: Config, listener: str, *, peer: str = "192.0.2.1") -> Dialogue:
        """Begin a session of a configured listener, see `Dialogue.configured`."""
        begun = Dialogue.configured(config, listener, peer=peer, clock=self.clock)
        self._begun.append(begun)
        return begun

    def advance(self, by: timedelta) -> None:
        """Let this much time pass at once for all sessions, their plugins and their state."""
        self.clock.advance(by)

    def close(self) -> None:
        """End all sessions, the latest first."""
        while self._begun:
            self._begun.pop().close()
        self._state.close()


@plugin
class Mailroom:
    """Takes mail for every address and keeps it in memory: `stored` has each mailbox's messages."""

    stored: dict[str, list[bytes]] = field(default_factory=dict)

    @hookimpl
    def route(self) -> Local:
        """Accept every recipient."""
        return Local()

    @hookimpl
    def deliver(self, message: Message, mailbox: Address) -> bool:
        """Keep a copy, byte for byte as it would be stored."""
        with message.open() as content:
            self.stored.setdefault(str(mailbox), []).append(content.read())
        return True


def _with_crlf(content: str | bytes) -> bytes:
    data = content.encode() if isinstance(content, str) else content
    data = data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return data if data.endswith(b"\r\n") else data + b"\r\n"


def _text(reply: bytes) -> str:
    return _without_ids(reply).replace("\r\n", "\n").rstrip("\n")


def _without_ids(reply: bytes) -> str:
    """Return a reply without the identifiers of refusals, which tests cannot know in advance."""
    return re.sub(r" \(id [0-9a-f.]+\)(?=\r?$)", "", reply.decode(), flags=re.MULTILINE)
