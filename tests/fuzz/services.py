"""The answers of hosts that we send to, of filters and of other services."""

from __future__ import annotations

from functools import cache
from typing import Any, cast
from unittest.mock import patch

from fakes import envelope
from minismtp_plugins import _milter as wire
from minismtp_plugins._ldap_ber import encoded_filter, escaped
from minismtp_plugins._milter_conversation import Conversation
from minismtp_plugins._milter_message import Changes, MilterMessage
from minismtp_plugins._rspamd import edited, parse
from minismtp_plugins.clamav import Clamav
from minismtp_plugins.dovecot_auth import DovecotAuth
from minismtp_plugins.http_auth import HttpAuth
from minismtp_plugins.ldap import Ldap
from minismtp_plugins.spamassassin import Spamassassin
from minismtp_plugins.webhook import Webhook

from fuzz.peers import Peer, Service, line_of, message_of, session, text_of
from fuzz.target import target
from minismtp import (
    Address,
    Credentials,
    Defer,
    Destination,
    Disconnect,
    HostReply,
    Reject,
    RemoteError,
    SmtpClient,
    SocketAddress,
)
from minismtp.config.outbound_tables import Timeouts
from minismtp.delivery.client import ClientSettings, HostConnection
from minismtp.delivery.mx import Host
from minismtp.delivery.result import HostError, result_of
from minismtp.delivery.tls_security import Security
from minismtp.mail.queue_entry import QueuedRecipient, QueueEntry
from minismtp.services.http_client import WebService
from minismtp.services.release_index import newest_in

_PATIENCE = Clamav.patience
_SECOND = b"\n--\n"  # divides an input into two
_MESSAGE = b"Subject: x\r\nX-Spam-Flag: no\r\n\r\nbody\r\n"
_USER = Credentials("PLAIN", "alice", "secret", "", "")
_TARGETS = [
    QueuedRecipient(kind="relay", address=f"{name}@a.example", recipient=f"{name}@example.org")
    for name in ("one", "two")
]


@target(
    *("delivery.client", "services.smtp_client", "services.smtp_extensions", "smtp.client_reply"),
    raises=(HostError,),
)
def host(data: bytes) -> None:
    entry = QueueEntry.of(envelope(), message_of(_MESSAGE), _TARGETS)
    setting = ClientSettings("mx.example.org", Timeouts(9, 9, 9, 9), cast("Any", None))
    with patch("socket.create_connection", return_value=Peer(data)):
        connection = HostConnection(
            Host("a.example", "192.0.2.1", 25), Destination("a.example"), Security("none"), setting
        )
    for answer in connection.send(entry, _TARGETS, message_of(_MESSAGE)):
        assert answer.reply.isprintable()
        assert answer.reply.isascii()
    connection.quit()


@target("delivery.result", "smtp.client_reply", raises=(Reject, Defer))
def texts_of_replies(data: bytes) -> None:
    lines = data.split(b"\n")
    reply = HostReply.of(550, lines)
    assert str(reply).isprintable()
    assert result_of(reply).state == "failed"
    reply.check()


@target("services.smtp_client", "services.smtp_extensions", raises=(RemoteError,))
def next_server(data: bytes) -> None:
    client = SmtpClient(line_of(data), "mx.example.org", lmtp=data[-1:] == b"L")
    client.greet()
    client.log_in("alice", "secret") if "AUTH" in client.extensions else None
    boxes = [Address.parse("one@example.org"), Address.parse("two@example.org")]
    for reply in client.send(envelope(), message_of(_MESSAGE), boxes).values():
        assert reply.text.isprintable()


@target("services.http_client", "services.remote", raises=(RemoteError,))
def web_server(data: bytes) -> None:
    service = WebService("http://127.0.0.1:1/", timeout=_PATIENCE)
    service._remote = cast("Any", Service(data))
    service.request("POST", b"x")


@target("http_auth", "services.http_client", raises=(RemoteError,))
def http_login(data: bytes) -> None:
    plugin = _http_auth()
    plugin._service._remote = cast("Any", Service(_http(data)))
    name = plugin.authenticate(session(), _USER)
    assert name is None or name.isprintable()


@target("webhook", "services.http_client", raises=(RemoteError, Reject, Defer))
def hook_on_the_web(data: bytes) -> None:
    plugin = Webhook(url="http://127.0.0.1:1/")
    plugin._service._remote = cast("Any", Service(data))
    plugin.deliver(envelope(), message_of(_MESSAGE), Address.parse("u@example.org"))


@cache  # it reads all authorities
def _http_auth() -> HttpAuth:
    return HttpAuth(url="http://127.0.0.1:1/")


@cache
def _ldap() -> Ldap:
    return Ldap(url="ldap://127.0.0.1/", base="dc=example", identity="uid", filter="(uid={user})")


def _http(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@target("_rspamd", raises=(RemoteError,))
def rspamd_answer(data: bytes) -> None:
    answer = parse(data)
    message = message_of(_MESSAGE)
    message.edit(edited(message.headers.raw_all(), answer))
    assert answer.action


@target("spamassassin", "score", raises=(RemoteError, Reject))
def spamd_answer(data: bytes) -> None:
    plugin = Spamassassin()
    plugin._spamd = cast("Any", Service(data))
    plugin.on_message(session(), envelope(), message_of(_MESSAGE))


@target("clamav", raises=(RemoteError, Reject))
def clamd_answer(data: bytes) -> None:
    plugin = Clamav()
    plugin._clamd = cast("Any", Service(data))
    plugin.on_message(envelope(), message_of(_MESSAGE))


@target("dovecot_auth", "_login", raises=(RemoteError, Defer))
def dovecot_answer(data: bytes) -> None:
    plugin = DovecotAuth(address=SocketAddress("127.0.0.1", 1))
    plugin._service = cast("Any", Service(data))
    with patch("secrets.randbelow", return_value=0):
        plugin.authenticate(session(), _USER)


@target("ldap", "_ldap", "_ldap_ber", raises=(RemoteError,))
def ldap_answer(data: bytes) -> None:
    plugin = _ldap()
    plugin._service = cast("Any", Service(data))
    plugin.authenticate(_USER)


@target("_ldap_ber", most=1000)
def name_for_ldap(data: bytes) -> None:
    value = escaped(text_of(data))
    assert value.isascii()
    assert text_of(data).encode() in encoded_filter(f"(uid={value})")


@target("_milter", raises=(RemoteError,))
def milter_packets(data: bytes) -> None:
    wire.length(data[:4].ljust(4, b"\0"))
    letter, rest = data[:1], data[1:]
    if letter == b"O":
        wire.read_options(letter, rest)
    elif letter == b"y":
        wire.read_verdict(rest)


@target(
    *("_milter", "_milter_conversation", "_milter_message", "milter"),
    raises=(RemoteError, Reject, Defer, Disconnect),
    most=1 << 14,
)
def milter_conversation(data: bytes) -> None:
    """Read the output of a filter; packets are lines here, whose lengths are corrected."""
    packets = [line for line in data.split(b"\n") if line]
    if packets:
        packets[0] = b"O\0\0\0\6\0\0\1\xff\0\0\0\0" + packets[0]
    said = b"".join([wire.packet(line[:1], line[1:]) for line in packets])
    conversation = Conversation(line_of(said), _PATIENCE)
    mail, message = envelope(), message_of(_MESSAGE)
    conversation.step(wire.CONNECT, wire.connection("a.example", "192.0.2.1", 25))
    conversation.helo("a.example")
    conversation.mail("<a@a.example>")
    conversation.recipient(Address.parse("u@example.org"))
    conversation.step(wire.DATA)
    shown = MilterMessage(message, mail, keeps_space=conversation.keeps_space)
    conversation.message(shown.fields(), shown.body())
    changes = Changes(shown, None)
    for letter, packet in conversation.end():
        changes.take(letter, packet)
    changes.apply()


@target("_milter_message", raises=(RemoteError,))
def message_for_milters(data: bytes) -> None:
    said, _, mail = data.partition(_SECOND)
    shown = MilterMessage(message_of(mail), envelope(), keeps_space=False)
    fields = b"".join(value for _, value in shown.fields())
    body = b"".join(shown.body())
    assert len(fields) + len(body) <= len(mail)
    changes = Changes(shown, None)
    for packet in said.split(b"\n"):
        changes.take(packet[:1], packet[1:])
    changes.apply()


@target("services.release_index", "values.version", raises=(ValueError,))
def page_of_releases(data: bytes) -> None:
    newest_in(data)
