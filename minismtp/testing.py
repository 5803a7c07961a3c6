r"""A whole session in memory, for tests of plugins and of the server itself.

    mailroom = Mailroom()
    dialogue = Dialogue(SpamFlag(), mailroom)
    assert dialogue.mail("X-Spam-Flag: YES\n\nBuy!").startswith("550")
    assert not mailroom.stored

Everything is real but the socket: the protocol, the receiver, the guards around the plugins. With
pytest the fixtures `dialogue` and `mailroom` are there by themselves (`plugins/_pytest.py`).
"""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import Literal

from minismtp.config import Config, Limits, PluginConfig
from minismtp.hooks.facade import Hooks
from minismtp.hooks.loader import PluginSet, plugin
from minismtp.hooks.specs import ServerInfo, hookimpl
from minismtp.mail.content import Content
from minismtp.mail.delivery import Delivery, Destination
from minismtp.mail.envelope import Envelope, Local, Recipient, Relay
from minismtp.mail.message import Message
from minismtp.mail.session import Session, TlsInfo
from minismtp.runtime import log as logging
from minismtp.runtime.log import Log
from minismtp.runtime.metrics import Metrics
from minismtp.runtime.thread_activity import Activity, taken_up
from minismtp.services.resolver import Resolver
from minismtp.services.shared_state import State
from minismtp.session.listener_context import ListenerContext, make_service, new_id
from minismtp.session.receiver import Receiver
from minismtp.values.address import Address


class Dialogue:
    """A client's side of one session with the given plugins. The banner is in `banner`.

    Replies come without the identifiers that refusals end in; `send_raw` gives all octets.

    A plugin may come with its `[[plugins]]` table: `(PluginConfig(use="spam", mode="shadow"),
    SpamFlag())`. `login` and `tls` put the session into that state at once. What was counted is in
    `metrics`; read a value with `count`. Errors are logged to standard error unless `log` is given.
    Plugins ask the DNS of this machine unless `resolver` is given, and share what they keep with
    other dialogues that are given the same `state`. A `service` stands for all that is said of
    plugins, kind, limits, spool, log, resolver and state.
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
        service: ListenerContext | None = None,
    ) -> None:
        self.metrics = metrics or Metrics(["test"])
        self._resolver = resolver
        self._started: Hooks | None = None
        self._closed = False
        if service is None:
            log = log or Log(level="error")
            state = state or State.in_memory()
            service = self._service(plugins, kind, limits or Limits(), spool, log, state=state)
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
        cls, config: Config, listener: str, *, peer: str = "192.0.2.1", log: Log | None = None
    ) -> Dialogue:
        """Begin a session as the configuration has it. Raise ConfigError and guard.Failure."""
        metrics, log = Metrics(), log or Log(level="error")
        plugins = PluginSet.load(config, metrics, log)
        found = next(item for item in config.listeners if item.name == listener)
        service = make_service(
            config,
            found,
            plugins,
            metrics,
            log,
            draining=threading.Event(),
            starttls=found.tls == "starttls",
        )
        state = config.state_directory
        (state / "spool").mkdir(parents=True, exist_ok=True)
        plugins.hooks().on_start(ServerInfo.of(config, "worker"))
        dialogue = cls(service=service, metrics=metrics, peer=peer)
        dialogue._started = plugins.hooks()
        return dialogue

    def send(self, line: str) -> str:
        """Send one line and return the reply's lines, separated by line feeds."""
        return _text(self.send_raw(line.encode() + b"\r\n"))

    def send_raw(self, data: bytes) -> bytes:
        """Send octets and give the octets that come back."""
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
        """Send a whole message, greeting included, and give the first refusal or the last reply."""
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
        """Have the plugins send a message on, as for one domain. Raise their Verdict.

        Gives it as they changed it, and the next hop, None where they leave it to the server.
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

    def close(self) -> None:
        """End the session, as when the connection is gone, and stop the plugins; once."""
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
        logging.bind(**self._bound)
        try:
            with taken_up(self._activity):
                yield
        finally:
            self._bound = {**logging.bound()}
            logging.unbind()

    def _service(
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
        server = ServerInfo("mx.example.org", directory, "worker", 0, resolver, state)
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
        )


class Dialogues:
    """Begins sessions that end together: the fixture `dialogue`.

    They have one state directory, and unless it is given one `state` for their plugins.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._state = State.in_memory()
        self._begun: list[Dialogue] = []

    def __call__(
        self,
        *plugins: object,
        kind: Literal["mx", "submission", "lmtp"] = "mx",
        peer: str = "192.0.2.1",
        login: str | None = None,
        tls: bool = False,
        limits: Limits | None = None,
        log: Log | None = None,
        resolver: Resolver | None = None,
        state: State | None = None,
    ) -> Dialogue:
        """Begin one, as `Dialogue` does."""
        begun = Dialogue(
            *plugins,
            kind=kind,
            peer=peer,
            login=login,
            tls=tls,
            limits=limits,
            spool=self._directory,
            log=log,
            resolver=resolver,
            state=state or self._state,
        )
        self._begun.append(begun)
        return begun

    def configured(self, config: Config, listener: str, *, peer: str = "192.0.2.1") -> Dialogue:
        """Begin one, as `Dialogue.configured` does."""
        begun = Dialogue.configured(config, listener, peer=peer)
        self._begun.append(begun)
        return begun

    def close(self) -> None:
        """End them, the latest first."""
        while self._begun:
            self._begun.pop().close()
        self._state.close()


@plugin
class Mailroom:
    """Take mail for everybody, and keep it in memory: `stored` has the messages of each mailbox."""

    stored: dict[str, list[bytes]] = field(default_factory=dict)

    @hookimpl
    def route(self) -> Local:
        """Take everybody in."""
        return Local()

    @hookimpl
    def deliver(self, message: Message, mailbox: Address) -> bool:
        """Keep a copy as it would be stored."""
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
    """Return a reply as tests know it in advance: refusals end in an identifier (`Reply.about`)."""
    return re.sub(r" \(id [0-9a-f.]+\)(?=\r?$)", "", reply.decode(), flags=re.MULTILINE)
