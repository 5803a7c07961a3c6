"""A whole session in memory, for tests of plugins and of the server itself (layer 5).

    dialogue = Dialogue(SpamFlag())
    assert dialogue.send("EHLO client.example").startswith("250")

Everything is real but the socket: the protocol, the receiver, the guards around the plugins.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Literal

from minismtp.config import Config, Limits, PluginConfig
from minismtp.log import Log
from minismtp.metrics import Metrics
from minismtp.plugins import PluginSet
from minismtp.receiver import Receiver
from minismtp.service import Service, make_service, new_id
from minismtp.session import Session, TlsInfo


class Dialogue:
    """A client's side of one session with the given plugins. The banner is in `banner`.

    `login` and `tls` put the session into that state at once. `metrics` holds what was counted;
    read a value with `count`.
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
        service: Service | None = None,
    ) -> None:
        self.metrics = Metrics(["test"])
        if service is None:
            service = self._service(plugins, kind, limits or Limits(), spool)
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
        self.receiver = Receiver(service, self.session)
        self.banner = self.receiver.greet().decode()

    @classmethod
    def configured(cls, config: Config, listener: str, *, peer: str = "192.0.2.1") -> Dialogue:
        """Begin a session as the configuration has it; raises ConfigError."""
        metrics, log = Metrics(), Log(level="error")
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
        return cls(service=service, peer=peer)

    def send(self, line: str) -> str:
        """Send one line and give the reply's lines, parted by line feeds and without the last."""
        return self.send_raw(line.encode() + b"\r\n").decode().replace("\r\n", "\n").rstrip("\n")

    def send_raw(self, data: bytes) -> bytes:
        """Send octets and give the octets that come back."""
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
        data = content.encode() if isinstance(content, str) else content
        data = data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        if not data.endswith(b"\r\n"):
            data += b"\r\n"
        greeting = "LHLO" if self.service.lmtp else "EHLO"
        commands = [f"{greeting} client.example", f"MAIL FROM:<{sender}>"]
        commands += [f"RCPT TO:<{recipient}>" for recipient in to] + ["DATA"]
        for command in commands:
            reply = self.send(command)
            if reply[0] not in "23":
                return reply
        stuffed = (b"\r\n" + data).replace(b"\r\n.", b"\r\n..")[2:]
        return self.send_raw(stuffed + b".\r\n").decode().replace("\r\n", "\n").rstrip("\n")

    def count(self, name: str, **labels: str) -> float:
        """Give the value of a metric, 0 when it has none."""
        self.metrics.tally.flush()
        return self.metrics.registry.get_sample_value(f"minismtp_{name}", labels) or 0.0

    def _service(
        self, plugins: tuple[object, ...], kind: str, limits: Limits, spool: Path | None
    ) -> Service:
        log = Log(level="error")
        loaded = PluginSet(self.metrics, log)
        for plugin in plugins:
            name = type(plugin).__name__.lower()
            loaded.add(PluginConfig(use=name, name=name), plugin)
        loaded.close()
        return Service(
            listener="test",
            kind=kind,
            hostname="mx.example.org",
            limits=limits,
            hooks=loaded.hooks(),
            metrics=self.metrics.listener("test"),
            log=log,
            clear_auth=True,
            spool=spool,
        )
