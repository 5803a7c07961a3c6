"""Whole parsers of text from strangers take linear time: fields, records, commands, policies."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest
from dns.rdataclass import RdataClass
from dns.rdatatype import RdataType
from dns.rdtypes.ANY.TXT import TXT
from fakes import Names, envelope
from minismtp_plugins import (
    _authres,
    _dkim,
    _from,
    _milter,
    _mime,
    arc,
    dkim_verify,
    dmarc,
)
from minismtp_plugins._dns import Questions
from pumps import grows_too_fast

from minismtp import (
    AuthResult,
    BoundedCache,
    Content,
    Headers,
    Message,
    Reject,
    RemoteError,
    Resolver,
    ServerInfo,
    Session,
    folded_name,
    prepared_password,
    quoted,
)
from minismtp.delivery.mta_sts import StsPolicy
from minismtp.mail.address_list import completed, mailboxes_of
from minismtp.mail.dsn import Report, notification
from minismtp.mail.headers import format_field
from minismtp.mail.queue_entry import QueuedRecipient, QueueEntry
from minismtp.runtime.log import Log
from minismtp.services.resolver import Found
from minismtp.smtp import commands, grammar, sasl
from minismtp.smtp.client_reply import HostReply
from minismtp.values.address import Address, to_ascii, to_unicode

Parser = Callable[[str], object]

SESSION: Final = Session(
    id="1", listener="smtp", kind="mx", hostname="mx.example.org", peer="192.0.2.1"
)

_SIZE: Final = 16 * 1024  # characters
_SHORT: Final = 0.002  # seconds for the short input

#: The parts of a text: a beginning, then pieces that are repeated.
_BEGINNINGS: Final = ("", "a=b; ", "a@b ", '"', "(", "<", "=?utf-8?q?", "mx: ", "v=1; b=")
_PIECES: Final = (
    *("a", " ", "\t", ";", "=", ",", ".", "@", '"', "\\", "(", ")", "<", ">", ":", "/", "-", "0"),
    *('\\"', "()", '""', "a=", "a=b;", "a@b,", "<a@b>", '"a" <a@b.c>, ', "a.", "a ", " ;", "\\\\"),
    *(
        "=?utf-8?q?a?= ",
        "=?",
        '";',
        '="',
        "\n ",
        "\r\n\t",
        "\r",
        "a:\n",
        "\u00e9",
        "\u00e9.",
        "%41",
    ),
)


def _field(name: str, text: str) -> Headers:
    octets = text.replace("\n", "").encode()
    return Headers.parse(name.encode() + b": " + octets + b"\r\n\r\n")


def _values(text: str) -> list[str]:
    octets = text.replace("\n", "").encode()
    return _mime.values_of({b"content-type": [octets]}, b"content-type")


def _written(text: str) -> str:
    pieces = {f"header.{start}": text[start : start + 50] for start in range(0, len(text), 50)}
    return _authres.written("mx.example.org", [AuthResult("dkim", "pass", text, pieces)])


def _signatures(text: str) -> object:
    plugin = dkim_verify.DkimVerify()
    plugin.on_start(ServerInfo("mx.example.org", Path(), "worker", 0, Names()))
    octets = text.replace("\n", "").encode()
    start = b"DKIM-Signature: v=1; a=x; d=a.b; h=from; s=s; bh=; b="
    fields = [start + octets + b"%d" % n for n in range(5)]
    message = Message("1", Content.of(b"\r\n".join([*fields, b"", b""])))
    place = envelope()
    plugin.on_message(SESSION, place, message)
    return place.stash


class _Record(Resolver):
    """A DNS in which all names have a text."""

    def __init__(self, text: str) -> None:
        octets = text.encode()
        strings = [octets[start : start + 255] for start in range(0, len(octets), 255)]
        self._record = TXT(RdataClass.IN, RdataType.TXT, strings)

    def lookup(self, name: str, kind: str, *, seconds: float = 10.0) -> Found:
        del kind, seconds
        return Found((self._record,), name)


def _record(text: str) -> object:
    dmarc._TAGS._known = BoundedCache(0)  # noqa: SLF001 - a record that is known takes no time
    resolver = _Record(f"v=DMARC1; {text}")
    return dmarc.record_of("example.org", Questions(resolver, timedelta(seconds=100)))


def _signature(text: str) -> _dkim.Signature:
    return _dkim.Signature.read(
        b"DKIM-Signature: d=a.b; s=c; h=from; " + text.replace("\n", "").encode(), "d", "s"
    )


def _logged(text: str) -> None:
    with open(os.devnull, "wb", 0) as sink:  # noqa: PTH123
        Log(descriptor=sink.fileno()).info(text, text=text)


def _key(text: str) -> object:
    _dkim._KEYS["rsa"]._known = BoundedCache(0)  # noqa: SLF001 - the same
    keys = _dkim.Keys(_Record(f"v=DKIM1; {text}"), timedelta(seconds=100))
    return keys.find(_signature("v=1; a=rsa-sha256; b=; bh="))


def _exchanges(text: str) -> None:
    for begin in (sasl.plain, sasl.oauthbearer, sasl.xoauth2, lambda: sasl.scram_sha_256(_nobody)):
        exchange = begin()
        next(exchange)
        with suppress(sasl.SaslProblem, StopIteration):
            exchange.send(f"n,,n=a,{text}".encode())


def _nobody(_: str) -> None:
    return None


def _notification(text: str) -> object:
    target = QueuedRecipient(kind="relay", address="b@example.net", recipient="b@example.net")
    entry = QueueEntry(
        id="1",
        sender="a@example.org",
        listener="smtp",
        peer="192.0.2.1",
        helo="client.example",
        login=None,
        arrived=0.0,
        targets=(target,),
        dsn_id=text,
    )
    octets = f"Subject: {text}\r\n\r\n".encode()
    message = Message("1", Content.of(octets))
    reports = [Report(target, f"550 {text}", "mx.example.net")]
    return notification(
        entry, message, "failed", reports, hostname="mx.example.org", now=0.0, until=1.0
    )


_OFFER: Final = struct.pack(">III", 6, 0, 0)

PARSERS: Final[dict[str, Parser]] = {
    "domains of From": lambda text: _from.domains_of([text]),
    "addresses of From": mailboxes_of,
    "addresses of From, completed": lambda text: completed(f"From: {text}".encode(), "a.example"),
    "Authentication-Results": _authres.read,
    "Authentication-Results, written": _written,
    "tags": _dkim.read_tags,
    "signature": _signature,
    "signatures": _signatures,
    "instance of ARC": lambda text: arc.instance_of(f"ARC-Seal: {text}".encode()),
    "record of DMARC": _record,
    "policy of MTA-STS": StsPolicy.parse,
    "header": lambda text: Headers.parse(text.encode()),
    "value": lambda text: _field("Subject", text).get("Subject"),
    "encoded words": lambda text: _field("Subject", text).decoded("Subject"),
    "field, written": lambda text: format_field("Subject", text),
    "parameters of MIME": lambda text: _mime.names_of(_values(f"a/b; {text}")),
    "type of MIME": lambda text: _mime.kinds_of(_values(text), digest=False),
    "address": Address.parse,
    "domain": to_ascii,
    "domain for people": to_unicode,
    "login": folded_name,
    "password": prepared_password,
    "MAIL": lambda text: commands.parse(f"MAIL FROM:<{text}".encode()),
    "parameters of a command": grammar.parse_parameters,
    "path": grammar.parse_path,
    "path in brackets": lambda text: grammar.parse_path(f"<{text}>"),
    "source routes": lambda text: grammar.parse_path("@a:" * len(text)),
    "name in EHLO": grammar.parse_helo,
    "xtext": grammar.decode_xtext,
    "base64": lambda text: grammar.decode_base64(text.encode()),
    "reply": Reject,
    "reply of a host": lambda text: HostReply.of(250, text.encode().split(b"\n")),
    "options of a milter": lambda text: _milter.read_options(b"O", _OFFER + text.encode()),
    "reply of a milter": lambda text: _milter.read_verdict(f"550 {text}".encode()),
    "SASL": _exchanges,
    "key of DKIM": _key,
    "notification": _notification,
    "result, quoted": quoted,
    "line of the log": _logged,
}


def _work(parser: Parser, beginning: str, piece: str) -> Callable[[int], Callable[[], object]]:
    def of(size: int) -> Callable[[], object]:
        text = beginning + piece * (size // len(piece))

        def call() -> None:
            with suppress(ValueError, _dkim.UnverifiedError, commands.CommandProblem, RemoteError):
                parser(text)

        return call

    return of


@pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS.keys())
def test_parser_takes_linear_time(parser: Parser) -> None:
    slow = [
        (beginning, piece)
        for beginning in _BEGINNINGS
        for piece in _PIECES
        if grows_too_fast(_work(parser, beginning, piece), _SIZE, _SHORT)
    ]
    assert slow == []
