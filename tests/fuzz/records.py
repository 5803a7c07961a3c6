"""Files, records and questions on this machine, some of them with words of strangers."""

from __future__ import annotations

import argparse
import io
import os
import tempfile
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import msgspec
from fakes import envelope
from minismtp_plugins._database import Query
from minismtp_plugins._directory import Directory, lines_of, read_aliases
from minismtp_plugins._maildir_paths import Template, name_part, path_component
from minismtp_plugins._quota import Quota
from minismtp_plugins._srs import read_secrets
from minismtp_plugins.password_file import PasswordFile
from minismtp_plugins.pipe import Pipe
from prometheus_client import CollectorRegistry

from fuzz.peers import Peer, file_of, message_of, session, text_of, threads_that_fail
from fuzz.target import target
from minismtp import Address
from minismtp.cli.explain import lines_of as explained
from minismtp.cli.shadow import Shadow
from minismtp.cli.trace import line_of
from minismtp.cli.try_plugin import setting
from minismtp.config import Config
from minismtp.config.mistakes import ConfigError
from minismtp.config.types import ByteSize, Rate, SocketAddress, parse_domain, parse_duration
from minismtp.mail.dsn import Report, notification
from minismtp.mail.queue_entry import QueuedRecipient, QueueEntry
from minismtp.mail.trace_fields import received
from minismtp.runtime.control_socket import _Handler as ControlHandler
from minismtp.runtime.decision_log import DIRECTORY, Record, mentions
from minismtp.runtime.log import Log
from minismtp.server import http_endpoint
from minismtp.services.state_sqlite import _read as read_windows
from minismtp.storage.quarantine import _read as read_quarantined
from minismtp.storage.spool import Trigger
from minismtp.storage.spool_file import DamagedError
from minismtp.storage.spool_file import read_message as read_spooled
from minismtp.values.passwords import check_stored_password
from minismtp.values.reply import Reply

#: For input that only our own processes send, over sockets of mode 0600.
_OURS = (ValueError, KeyError, TypeError, OverflowError, OSError, RecursionError)
_LINE = 998  # octets, RFC 5322 section 2.1.1


@target(
    *("config.__init__", "config.toml_values", "config.types", "config.tables"),
    *("config.checks", "config.listener_table", "config.toml_document", "config.toml_places"),
    *("config.mistakes", "config.hints"),
    raises=(ConfigError,),
)
def configuration(data: bytes) -> None:
    with file_of(data) as path:
        Config.load(path)


@target("config.types", raises=(ValueError,), most=4096)
def values_of_options(data: bytes) -> None:
    text = text_of(data[1:])
    kinds = (ByteSize.parse, Rate.parse, SocketAddress.parse, parse_domain, parse_duration)
    str(kinds[(data or b"\0")[0] % len(kinds)](text))


@target("cli.try_plugin", raises=(ConfigError,), most=4096)
def setting_of_a_command(data: bytes) -> None:
    setting(text_of(data))


@target("_directory", raises=(ValueError,), memory=1 << 24)
def aliases_file(data: bytes) -> None:
    domains = ["example.org", "example.net"]
    with file_of(data) as path:
        lines_of(path)
        aliases = read_aliases(path, domains)
    directory = Directory(domains, {"alice", "bob"}, "+", "", "postmaster", aliases)
    directory.check()
    for key in aliases:
        directory.find(key.partition("@")[0], "example.org")


@target("password_file", "values.passwords", "smtp.sasl", raises=(ValueError,), memory=1 << 24)
def password_file(data: bytes) -> None:
    with file_of(data) as path:
        assert PasswordFile(path=path).mechanisms


@target("values.passwords", raises=(ValueError,))
def stored_password(data: bytes) -> None:
    check_stored_password(text_of(data))


@target("_srs", raises=(ValueError,))
def secrets_of_srs(data: bytes) -> None:
    with file_of(data) as path:
        read_secrets(path)


@target("_database", raises=(ValueError,))
def query_of_sql(data: bytes) -> None:
    Query(text_of(data), "format").parameters("alice")
    Query(text_of(data), "numeric").parameters("alice")


@target("pipe", raises=(ValueError,))
def command_of_pipe(data: bytes) -> None:
    Pipe(command=["/bin/true", *text_of(data).split("\n")])


@target("_maildir_paths", raises=(ValueError,), most=1000)
def names_of_maildirs(data: bytes) -> None:
    text = text_of(data)
    for name in (name_part(text), path_component(text)):
        assert "/" not in name
    assert len(path_component(text)) <= 200
    assert path_component(text) not in {"", ".", ".."}
    Template(Path("/var/mail/{domain}/{local}")).fill(Address(text, text.lower()))
    Template(Path(text.replace("\0", "")))


@target("_quota")
def maildirsize(data: bytes) -> None:
    with file_of(data) as path:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            used = Quota(1000)._read(descriptor)
        finally:
            os.close(descriptor)
    assert used is None or used >= 0


@target("storage.spool_file", "mail.queue_entry", raises=(DamagedError,))
def spooled_file(data: bytes) -> None:
    """Read a file whose footer fits: the input is an envelope, behind a message of an octet."""
    footer = b"minismtp-spool-1 %15d %10d\n" % (1, len(data))
    with file_of(b"x" + data + footer) as path:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            entry, _, _ = read_spooled(descriptor, "1a2b.1")
        finally:
            os.close(descriptor)
    again = msgspec.json.decode(msgspec.json.encode(entry), type=QueueEntry)
    assert again == entry
    again.envelope()


@target("storage.spool", most=1 << 15)
def names_in_the_fifo(data: bytes) -> None:
    reader, writer = os.pipe()
    try:
        os.set_blocking(reader, False)
        os.write(writer, data)
        names, _ = Trigger.read(reader)
    finally:
        os.close(reader)
        os.close(writer)
    assert all("/" not in name and name for name in names)


@target("storage.quarantine", "mail.queue_entry", raises=(DamagedError,))
def quarantined_file(data: bytes) -> None:
    with file_of(data) as path:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            read_quarantined(descriptor, len(data))
        finally:
            os.close(descriptor)


@target("mail.dsn", "mail.queue_entry")
def notification_of_failure(data: bytes) -> None:
    """Tell a sender: the lines are a reply, an original recipient, an ENVID, a host, a message."""
    lines = data.split(b"\n", 4) + [b""] * 4
    reply, original, envid, host = (text_of(line[:600]) for line in lines[:4])
    recipient = "ü@example.org" if original.startswith("utf-8") else "u@example.org"
    wide = QueuedRecipient(
        kind="relay", address=recipient, recipient=recipient, original=original[:500]
    )
    entry = QueueEntry(
        id="1a2b.1",
        sender="sender@client.example",
        listener="smtp",
        peer="192.0.2.1",
        helo="client.example",
        login=None,
        arrived=1_700_000_000.0,
        targets=(wide,),
        dsn_id=envid[:100],
    )
    message = message_of(lines[4])
    found = notification(
        *(entry, message, "failed", [Report(wide, reply[:500], host[:255])]),
        hostname="mx.example.org",
        now=1_700_000_000.0,
        until=1_700_000_000.0,
    )
    assert found is not None
    with found[1].open() as reader:
        report = reader.read().partition(b"message/rfc822")[0].partition(b"text/rfc822-headers")[0]
    assert max(map(len, report.split(b"\r\n"))) <= _LINE


@target("mail.trace_fields", raises=())
def trace_field_to_write(data: bytes) -> None:
    peer = session()
    peer.helo = "".join(letter for letter in text_of(data)[:255] if letter.isprintable())
    received(peer, envelope())


@target("runtime.decision_log", "cli.explain", "cli.shadow")
def chronicle(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        state = Path(name)
        (state / DIRECTORY).mkdir()
        (state / DIRECTORY / "current.jsonl").write_bytes(data)
        for record in mentions(state, "1a2b"):
            _show(record)


def _show(record: Record) -> None:
    "\n".join(explained(record)).encode("utf-8", "backslashreplace")
    shadow = Shadow("x")
    for step in record.steps:
        shadow.add(step, record.time, record.id)


@target("cli.trace", raises=_OURS, most=1 << 14)
def line_of_trace(data: bytes) -> None:
    line_of(msgspec.json.decode(data, type=dict[str, Any]))


@target("runtime.control_socket")
def question_of_control(data: bytes) -> None:
    handler = object.__new__(ControlHandler)
    handler.connection = cast("Any", argparse.Namespace(settimeout=lambda _: None))
    handler.rfile = cast("Any", io.BytesIO(data))
    handler.wfile = cast("Any", io.BytesIO())
    handler.server = cast("Any", argparse.Namespace(answerers={"it": lambda _, say: say("x")}))
    with threads_that_fail():
        handler.handle()


@target("server.http_endpoint")
def request_for_the_page(data: bytes) -> None:
    said = io.BytesIO()
    with patch.object(http_endpoint, "FLUSH_INTERVAL", 0), threads_that_fail():
        handler = object.__new__(_Request)
        handler.rfile = cast("Any", io.BytesIO(data))
        handler.wfile = cast("Any", said)
        handler.connection = cast("Any", Peer(b""))
        handler.client_address = ("127.0.0.1", 1)
        handler.server = cast("Any", _Page())
        handler.close_connection = True
        handler.handle()
    assert not data.strip() or b"Traceback" not in said.getvalue()


class _Request(http_endpoint._Handler):
    def _page(self) -> bytes:
        return b"page"


class _Page:
    """What the handler of a request wants of its server."""

    registry = CollectorRegistry()
    hosts = ("status.example.org",)
    board = argparse.Namespace(read=lambda: argparse.Namespace(ready=True))


@target("runtime.log", most=1 << 14)
def log_lines(data: bytes) -> None:
    text = text_of(data)
    for style in ("text", "json"):
        with tempfile.TemporaryFile() as file:
            log = Log(level="debug", style=style, descriptor=file.fileno())
            log.info(text, value=text, other=data.decode("utf-8", "surrogateescape"))
            file.seek(0)
            line = file.read()
        assert line.count(b"\n") == 1
        assert line[:-1].decode().isprintable()


@target("values.reply", raises=(ValueError,))
def reply_to_write(data: bytes) -> None:
    octets = Reply(550, text_of(data), "5.7.1").about("1a2b").encode()
    assert all(line[:3] == b"550" for line in octets.split(b"\r\n")[:-1])
    assert max(map(len, octets.split(b"\r\n"))) <= 510


@target("services.state_sqlite", raises=(ValueError,))
def windows_of_rates(data: bytes) -> None:
    read_windows(text_of(data))
