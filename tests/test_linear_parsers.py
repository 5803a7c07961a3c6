"""Whole parsers of what strangers send take linear time: fields, records, commands, policies."""

from __future__ import annotations

import bz2
import gzip
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Final

import pytest
from dns.rdataclass import RdataClass
from dns.rdatatype import RdataType
from dns.rdtypes.ANY.TXT import TXT
from fakes import Names, envelope
from minismtp_plugins import _arc, _authres, _dkim, _dmarc, _mime, dkim_sign, dkim_verify
from minismtp_plugins._archives import files_in
from minismtp_plugins._budget import BrokenError, Budget, TooMuchError
from pumps import grows_too_fast

from minismtp import AuthResult, Content, Headers, Message, Reject, Resolver, ServerInfo, Session
from minismtp.address import Address, to_ascii
from minismtp.headers import format_field
from minismtp.outbound.mta_sts import Policy
from minismtp.resolver import Found
from minismtp.smtp import commands, grammar

Parser = Callable[[str], object]

SESSION: Final = Session(
    id="1", listener="smtp", kind="mx", hostname="mx.example.org", peer="192.0.2.1"
)

_SIZE: Final = 16 * 1024  # characters
_SHORT: Final = 0.002  # seconds for so many

#: What a text is made of over and over: a beginning, then pieces that are repeated.
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
    resolver = _Record(f"v=DMARC1; {text}")
    return _dmarc.Names(resolver, _dmarc.public_suffixes(), timedelta(seconds=100)).record(
        "example.org"
    )


def _signature(text: str) -> object:
    return _dkim.Signature.read(
        b"DKIM-Signature: d=a.b; s=c; h=from; " + text.replace("\n", "").encode(), "d", "s"
    )


PARSERS: Final[dict[str, Parser]] = {
    "addresses of From": lambda text: list(_dmarc.from_domains(text)),
    "domain of From": dkim_sign.from_domain,
    "Authentication-Results": _authres.read,
    "Authentication-Results, written": _written,
    "tags": _dkim.read_tags,
    "signature": _signature,
    "signatures": _signatures,
    "instance of ARC": lambda text: _arc.instance_of(f"ARC-Seal: {text}".encode()),
    "record of DMARC": _record,
    "policy of MTA-STS": Policy.parse,
    "header": lambda text: Headers.parse(text.encode()),
    "value": lambda text: _field("Subject", text).get("Subject"),
    "encoded words": lambda text: _field("Subject", text).decoded("Subject"),
    "field, written": lambda text: format_field("Subject", text),
    "parameters of MIME": lambda text: _mime.names_of(_field("Content-Type", f"a/b; {text}")),
    "type of MIME": lambda text: _mime.type_of(_field("Content-Type", text), digest=False),
    "address": Address.parse,
    "domain": to_ascii,
    "MAIL": lambda text: commands.parse(f"MAIL FROM:<{text}".encode()),
    "parameters of a command": grammar.parse_parameters,
    "path": grammar.parse_forward_path,
    "xtext": grammar.decode_xtext,
    "base64": lambda text: grammar.decode_base64(text.encode()),
    "reply": Reject,
}


def _work(parser: Parser, beginning: str, piece: str) -> Callable[[int], Callable[[], object]]:
    def of(size: int) -> Callable[[], object]:
        text = beginning + piece * (size // len(piece))

        def call() -> None:
            with suppress(ValueError, _dkim.UnverifiedError, commands.CommandProblem):
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


def _tar(kind: bytes, size: int, name: bytes) -> bytes:
    head = bytearray(name.ljust(512, b"\0"))
    head[124:135], head[156:157], head[257:262] = b"%011o" % size, kind, b"ustar"
    return bytes(head)


def _many_extras(size: int) -> bytes:
    """Return zips in a zip, with directories of fields that are empty."""
    extra = b"\x99\x99\0\0" * 16_000
    entry = struct.pack("<4s24x5H8xL", b"PK\1\2", 2, len(extra), 0, 0, 0, 0) + b"a/" + extra
    end = struct.pack("<4s4x2H2LH", b"PK\5\6", 1, 1, len(entry), 4, 0)
    return _zipped(b"PK\3\4" + entry + end, size // len(entry))


def _zipped(data: bytes, count: int) -> bytes:
    target = BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for number in range(count):
            archive.writestr(str(number), data)
    return target.getvalue()


#: What is given a size makes an archive of about so many octets, unpacked.
ARCHIVES: Final[dict[str, Callable[[int], bytes]]] = {
    "gzip with a name": lambda size: gzip.compress(b"\x1f\x8b\x08\x08" + b"x" * size),
    "empty gzips": lambda size: gzip.compress(b"") * (size // 20),
    "empty bzip2s": lambda size: bz2.compress(b"x") + bz2.compress(b"") * (size // 14),
    "tar with long names": lambda size: (
        (_tar(b"L", 65536, b"x") + b"/a" * 32768 + _tar(b"0", 0, b"y")) * (size // 65536)
    ),
    "tar of names only": lambda size: _tar(b"L", 0, b"x") * (size // 512),
    "tar in gzip": lambda size: gzip.compress(_tar(b"0", 0, b"x.gz") * (size // 512)),
    "zip of zips": lambda size: _zipped(_zipped(b"x", 1), size // 100),
    "zips of many extras": _many_extras,
}


@pytest.mark.parametrize("make", ARCHIVES.values(), ids=ARCHIVES.keys())
def test_archive_takes_linear_time(make: Callable[[int], bytes]) -> None:
    def work(size: int) -> Callable[[], object]:
        data = make(size)

        def call() -> None:
            with suppress(BrokenError, TooMuchError):
                list(files_in(BytesIO(data), "a", Budget(1 << 30, 1 << 30, 3)))

        return call

    assert not grows_too_fast(work, 400_000, 0.02)
