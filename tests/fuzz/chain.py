"""Whole messages through all filters that need no service, incoming and outgoing."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fakes import envelope
from minismtp_plugins.arc import Arc
from minismtp_plugins.attachments import Attachments
from minismtp_plugins.authentication_results import AuthenticationResults
from minismtp_plugins.dkim_sign import DkimSign
from minismtp_plugins.dkim_verify import DKIM_RESULTS, DkimVerify
from minismtp_plugins.dmarc import Dmarc
from minismtp_plugins.rules import Condition, Rule, Rules
from minismtp_plugins.score import Score
from minismtp_plugins.spf import Spf
from zones import published

from fuzz.peers import Zone, session
from fuzz.scripts import split_replies
from fuzz.target import target
from minismtp import Headers
from minismtp.runtime.log import Log
from minismtp.runtime.metrics import Metrics
from minismtp.testing import Dialogue, Mailroom

_BEFORE = (
    b"EHLO client.example\r\nMAIL FROM:<a@client.example>\r\nRCPT TO:<u@example.org>\r\nDATA\r\n"
)


class _Server:
    """Filters with keys of their own; errors that they log are in a file."""

    def __init__(self) -> None:
        directory = Path(tempfile.mkdtemp(prefix="fuzz-"))
        key = rsa.generate_private_key(65537, 2048)
        path = directory / "key"
        path.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )
        records = (published(key), "v=spf1 include:b.example ~all", "v=DMARC1; p=none")
        self.zone = Zone(*(record.encode() for record in records))
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        rule = Rule(name="r", action="tag", any=[Condition(header="Subject", matches="a+b")])
        self._metrics = Metrics(["test"])
        self._first = Dialogue(
            *(Spf(), DkimVerify(), Arc(domain="example.org", selector="s", key=path), Dmarc()),
            *(AuthenticationResults(), Attachments(unpacked=1 << 20), Rules(rules=[rule])),  # type: ignore[arg-type]
            *(Score(), DkimSign(domains=["example.org"], keys=path), Mailroom()),
            log=Log(level="error", descriptor=self.errors.fileno()),
            metrics=self._metrics,
            resolver=self.zone,
        )
        self._service = replace(self._first.service, fix_newlines=True)

    def begin(self, login: str | None = None) -> Dialogue:
        return Dialogue(service=self._service, metrics=self._metrics, login=login)

    def check(self) -> None:
        """Raise AssertionError with what was logged."""
        size = os.fstat(self.errors.fileno()).st_size
        if size:
            self.errors.seek(0)
            said = self.errors.read()
            os.ftruncate(self.errors.fileno(), 0)
            raise AssertionError(said.decode())


_server = cache(_Server)


@target(
    *("spf", "dkim_verify", "arc", "dmarc", "authentication_results", "attachments", "rules"),
    *("score", "session.transaction", "session.submission"),
    most=1 << 14,
    memory=1 << 23,
)
def message_that_comes(data: bytes) -> None:
    server = _server()
    dialogue = server.begin()
    content = (b"\r\n" + data).replace(b"\n.", b"\n..")[2:]
    output = dialogue.send_raw(_BEFORE)
    output += dialogue.send_raw(content + b"\r\n.\r\n")
    dialogue.close()
    assert len(split_replies(output)) == 5
    server.check()


@target("dkim_sign", "arc", "_signing", most=1 << 14, memory=1 << 23)
def message_that_leaves(data: bytes) -> None:
    """Sign a user's message, whose receivers must find the signature good."""
    server = _server()
    dialogue = server.begin("u")
    message, _ = dialogue.leave(b"From: <u@example.org>\r\n" + data)
    before = Headers.parse(message.content.head(1 << 16)).raw_all("DKIM-Signature")
    signed = len(message.headers.raw_all("DKIM-Signature")) > len(before)
    dialogue.close()
    server.check()
    verifier, mail = DkimVerify(), envelope()
    verifier._resolver, verifier._clock = server.zone, time.time
    verifier.on_message(session(), mail, message)
    results = [each.result for each in mail.stash[DKIM_RESULTS]]
    assert not signed or results[0] == "pass", mail.stash[DKIM_RESULTS]
