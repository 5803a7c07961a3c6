"""Whole messages, bodies, headers of many fields and archives cost linear time."""

from __future__ import annotations

import bz2
import gzip
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import Final

import pytest
from fakes import envelope
from minismtp_plugins import _rspamd
from minismtp_plugins._archives import files_in
from minismtp_plugins._budget import BrokenError, Budget, TooMuchError
from minismtp_plugins._canonical import body_hashes
from minismtp_plugins._dkim import Signature
from minismtp_plugins._milter_message import Changes, MilterMessage
from minismtp_plugins._parts import parts_of
from minismtp_plugins.authentication_results import AuthenticationResults
from minismtp_plugins.score import remove_marks
from pumps import grows_too_fast

from minismtp import Content, Message, Session
from minismtp.mail.cleanup import clean
from minismtp.mail.mime_conversion import converted
from minismtp.mail.trace_fields import hops
from minismtp.smtp.dot_stuffing import DotDecoder, dotted

SESSION: Final = Session(
    id="1", listener="smtp", kind="mx", hostname="mx.example.org", peer="192.0.2.1"
)


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


#: Each makes an archive that unpacks to about the given number of octets.
ARCHIVES: Final[dict[str, Callable[[int], bytes]]] = {
    "gzip with a name": lambda size: gzip.compress(b"\x1f\x8b\x08\x08" + b"x" * size),
    "empty gzips": lambda size: gzip.compress(b"") * (size // 20),
    "empty bzip2s": lambda size: bz2.compress(b"x") + bz2.compress(b"") * (size // 14),
    "tar with long names": lambda size: (
        (_tar(b"L", 65536, b"x") + b"/a" * 32768 + _tar(b"0", 0, b"y")) * (size // 65536)
    ),
    "tar of names only": lambda size: _tar(b"L", 0, b"x") * (size // 512),
    "tar in gzip": lambda size: gzip.compress(_tar(b"0", 0, b"x.gz") * (size // 512)),
    "zip of zips": lambda size: _zipped(_zipped(b"x", 1), size // 1000),
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


# Bodies


def _parts(octets: bytes) -> None:
    head = b"Content-Type: multipart/mixed; boundary=b\r\n"
    with suppress(TooMuchError):
        for part in parts_of(lambda: BytesIO(head + octets)):
            assert part.names is not None
            for _ in part.decoded():
                pass


def _decoded(octets: bytes) -> None:
    decoder = DotDecoder(1000)
    for start in range(0, len(octets), 8192):
        decoder.decode(octets[start : start + 8192])


def _cleaned(octets: bytes) -> bytes:
    cleaned = clean(Content.of(octets), len(octets), frozenset({"a", "x", "received"}))
    assert cleaned is not None
    return cleaned[0]


def _converted(octets: bytes) -> None:
    message = Message("1", Content.of(octets))
    converted(message, eight_bit=False, binary=True, ascii_fields=True)


_TOP: Final = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n"
_QUOTED: Final = b"Content-Transfer-Encoding: quoted-printable\r\n\r\n"
_BASE64: Final = b"Content-Transfer-Encoding: base64\r\n\r\n"


BODIES: Final[dict[str, Callable[[bytes], object]]] = {
    "parts": _parts,
    "forms of DKIM": lambda octets: body_hashes(
        BytesIO(b"\r\n" + octets), [("relaxed", None), ("simple", 100)]
    ),
    "DATA": _decoded,
    "DATA, sent": lambda octets: list(dotted(BytesIO(octets))),
    "header section": lambda octets: hops(_cleaned(octets)),
    "conversion": lambda octets: _converted(_TOP + octets),
    "conversion of a header": lambda octets: _converted(b"A:" + octets),
    "conversion of quoted-printable": lambda octets: _converted(_QUOTED + octets),
    "conversion of base64": lambda octets: _converted(_BASE64 + octets),
}
_PIECES: Final = (
    *(b"x", b" ", b"\t", b"\r", b"\n", b"\r\n", b" \r\n", b"\r\n.", b".\r\n", b"\n\n", b"-", b"="),
    *(b"\r\n--b\r\n", b"\n--b--", b"\r\n--b\r\n\r\n", b"\n--", b"Content-Type: a/b\r\n", b"a:\n"),
    *(b"Content-Type: message/rfc822\r\n\r\n", b"Received: x\r\n", b"\r\n x", b"\0"),
    b"\r\n--b\r\nContent-Transfer-Encoding: base64\r\n\r\nx",
    *(b"\xc3\xbc", b"\xff", b"\x80 ", b",", b"=?utf-8?q?", b"=?utf-8?b?QUJD", b"=3", b"=\r\n"),
)


@pytest.mark.parametrize("read", BODIES.values(), ids=BODIES.keys())
def test_body_takes_linear_time(read: Callable[[bytes], object]) -> None:
    slow = []
    for piece in _PIECES:

        def work(size: int, piece: bytes = piece) -> Callable[[], object]:
            octets = piece * (size // len(piece))
            return lambda: read(octets)

        if grows_too_fast(work, 400_000, 0.02):
            slow.append(piece)
    assert slow == []


# Headers of many fields


def _many(name: bytes, count: int) -> Message:
    return Message("1", Content.of((name + b": a\r\n") * count + b"\r\n"))


def _changed_by_a_milter(count: int) -> None:
    changes = Changes(MilterMessage(_many(b"X", count), envelope(), keeps_space=False), None)
    for number in range(min(count, 1000)):
        changes.take(b"m", (number + 1).to_bytes(4, "big") + b"X\0\0")
    changes.apply()


def _changed_by_rspamd(count: int) -> None:
    removed = tuple(("X", number + 1) for number in range(count // 2))
    added = tuple(("Y", "z", None) for _ in range(count // 2))
    result = _rspamd.RspamdResult("no action", 0.0, 15.0, {})
    answer = _rspamd.Answer(result, added=added, removed=removed)
    _rspamd.edited(_many(b"X", count).headers.raw_all(), answer)


def _signed(count: int) -> None:
    raw = b"DKIM-Signature: v=1; d=a.b; s=c; c=relaxed/relaxed; h=" + b"x:" * count
    Signature.read(raw, "d", "s").signed_fields(_many(b"X", count).headers)


def _reported(count: int) -> None:
    plugin = AuthenticationResults(authserv_id="mx.example.org")
    plugin.on_message(SESSION, envelope(), _many(b"Authentication-Results", count))


def _marked(count: int) -> None:
    marks = b"".join(b"X-Spam-%d: a\r\n" % number for number in range(count))
    remove_marks(Message("1", Content.of(marks + b"\r\n")))


FIELDS: Final[dict[str, Callable[[int], object]]] = {
    "removed": lambda count: _many(b"X", count).remove("X"),
    "kept": lambda count: _many(b"X", count).remove("X", lambda _: False),
    "a milter": _changed_by_a_milter,
    "rspamd": _changed_by_rspamd,
    "signed": _signed,
    "results": _reported,
    "marked": _marked,
}


@pytest.mark.parametrize("read", FIELDS.values(), ids=FIELDS.keys())
def test_fields_take_linear_time(read: Callable[[int], object]) -> None:
    def work(count: int) -> Callable[[], object]:
        return lambda: read(count)

    assert not grows_too_fast(work, 8000, 0.005)
