"""Archives other than zip and tar, and files in texts: names and first octets are seen."""

from __future__ import annotations

import binascii
import contextlib
import io
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import Any, Final

import py7zr
import pytest
import rarfile
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from minismtp_plugins import _sequential
from minismtp_plugins._archives import files_in
from minismtp_plugins._budget import BrokenError, Budget, TooMuchError
from minismtp_plugins._encodings import files_in_text
from minismtp_plugins.attachments import Attachments
from test_plugin_attachments import PROGRAM, blocked, mail, tarred, zipped

MIB: Final = 1024 * 1024
ZSTD: Final = b"\x28\xb5\x2f\xfd"
FILES: Final = {
    "a.txt": b"text" * 1000,
    "d/setup.exe": PROGRAM,
    "empty.js": b"",
    "\u00e4.pif": b"x",
}


def names_in(data: bytes, budget: Budget | None = None) -> list[str]:
    found = files_in(io.BytesIO(data), "a", budget or Budget(64 * MIB, 1000, 3))
    return list(dict.fromkeys(inside.name for inside, _ in found))


# 7z


def seven_zip(files: dict[str, bytes], **options: Any) -> bytes:  # noqa: ANN401 - any option
    target = io.BytesIO()
    plain = options.pop("plain", False)
    with py7zr.SevenZipFile(target, "w", **options) as archive:
        if plain:
            archive.set_encoded_header_mode(False)
        for name, data in files.items():
            archive.writestr(data, name)
    return target.getvalue()


_LZMA2: Final = {"id": py7zr.FILTER_LZMA2, "preset": 6}
METHODS: Final[dict[str, list[dict[str, int]] | None]] = {
    "default": None,
    "LZMA": [{"id": py7zr.FILTER_LZMA}],
    "LZMA2": [_LZMA2],
    "BCJ": [{"id": py7zr.FILTER_X86}, _LZMA2],
    "delta": [{"id": py7zr.FILTER_DELTA}, _LZMA2],
    "bzip2": [{"id": py7zr.FILTER_BZIP2}],
    "deflate": [{"id": py7zr.FILTER_DEFLATE}],
    "copy": [{"id": py7zr.FILTER_COPY}],
}
NOT_UNPACKED: Final = {
    "PPMd": [{"id": py7zr.FILTER_PPMD, "order": 6, "mem": 24}],
    "zstd": [{"id": py7zr.FILTER_ZSTD, "level": 3}],
    "ARM": [{"id": py7zr.FILTER_ARM}, _LZMA2],
}


@pytest.mark.parametrize("plain", [False, True], ids=["header packed", "header plain"])
@pytest.mark.parametrize("filters", METHODS.values(), ids=METHODS.keys())
def test_7z_is_looked_into(filters: list[dict[str, int]] | None, plain: bool) -> None:
    data = seven_zip(FILES, filters=filters, plain=plain)
    assert names_in(data) == list(FILES)
    assert blocked(mail(("a.7z", data))) == "a file of type .exe: d/setup.exe in a.7z"
    data = seven_zip({"a.txt": b"x" * 5000, "photo.jpg": PROGRAM}, filters=filters, plain=plain)
    assert blocked(mail(("a.7z", data))) == "a program: photo.jpg"
    data = seven_zip({"b.zip": zipped(("x.scr", b""))}, filters=filters, plain=plain)
    assert blocked(mail(("a.7z", data))).startswith("a file of type .scr: x.scr in")


@pytest.mark.parametrize("filters", NOT_UNPACKED.values(), ids=NOT_UNPACKED.keys())
def test_names_in_a_7z_that_python_cannot_unpack_are_seen(filters: list[dict[str, int]]) -> None:
    assert names_in(seven_zip(FILES, filters=filters)) == list(FILES)
    data = seven_zip({"photo.jpg": PROGRAM}, filters=filters)
    assert blocked(mail(("a.7z", data))) == ""


@pytest.mark.parametrize("hidden", [False, True], ids=["files", "names too"])
def test_encrypted_7z_is_blocked_on_demand(hidden: bool) -> None:
    data = seven_zip({"a.txt": b"x"}, password="x", header_encryption=hidden)  # noqa: S106
    assert blocked(mail(("a.7z", data))) == ""
    plugin = Attachments(action="finding", encrypted=True)
    assert blocked(mail(("a.7z", data)), plugin) == "an encrypted archive: a.7z"


def test_7z_without_files_holds_nothing() -> None:
    assert names_in(b"7z\xbc\xaf\x27\x1c\0\4" + bytes(24)) == []


def test_header_of_a_7z_that_unpacks_to_too_much_is_not_unpacked() -> None:
    files = {f"{number}{'x' * 200}": b"" for number in range(20_000)}
    data = seven_zip(files)
    assert len(data) < MIB
    with pytest.raises(TooMuchError, match="too many files"):
        names_in(data, Budget(64 * MIB, 100_000, 3))
    with pytest.raises(TooMuchError, match="too many files"):
        names_in(seven_zip({str(number): b"" for number in range(200)}), Budget(MIB, 100, 3))
    with pytest.raises(TooMuchError, match="unpack to too much"):
        names_in(seven_zip({"a": bytes(2 * MIB)}), Budget(MIB, 100, 3))


# rar


def _numbered(*numbers: int) -> bytes:
    found = b""
    for number in numbers:
        while number > 0x7F:
            found += bytes([number & 0x7F | 0x80])
            number >>= 7  # noqa: PLW2901 - what is left
        found += bytes([number])
    return found


def _block_5(body: bytes) -> bytes:
    sized = _numbered(len(body)) + body
    return struct.pack("<L", zlib.crc32(sized)) + sized


def rar_5(files: dict[str, bytes], *, method: int = 0, encrypted: bool = False) -> bytes:
    blocks = [b"Rar!\x1a\x07\x01\0", _block_5(_numbered(1, 0, 0))]
    extra = _numbered(37, 1, 0, 0, 15) + bytes(33) if encrypted else b""
    for name, data in files.items():
        octets = name.encode()
        head = _numbered(2, 2 | bool(extra)) + (_numbered(len(extra)) if extra else b"")
        head += _numbered(len(data), 4, len(data), 0x20) + struct.pack("<L", zlib.crc32(data))
        blocks += [_block_5(head + _numbered(method << 7, 1, len(octets)) + octets + extra), data]
    return b"".join([*blocks, _block_5(_numbered(5, 0, 0))])


def _block_4(kind: int, flags: int, body: bytes) -> bytes:
    rest = struct.pack("<BHH", kind, flags, 7 + len(body)) + body
    return struct.pack("<H", zlib.crc32(rest) & 0xFFFF) + rest


def rar_4(files: dict[str, bytes], *, method: int = 0x30, flags: int = 0) -> bytes:
    blocks = [b"Rar!\x1a\x07\0", _block_4(0x73, 0, bytes(6))]
    for name, data in files.items():
        octets = name.encode("ascii", "replace")
        kind = 0
        if not name.isascii():  # kind 2 of each character: two octets
            wide = name.encode("utf-16-le")
            packed = b"\0"
            for place in range(0, len(wide), 8):
                packed += b"\xaa" + wide[place : place + 8]
            octets, kind = octets + b"\0" + packed, 0x200
        head = struct.pack(
            "<LLBLLBBHL", len(data), len(data), 0, zlib.crc32(data), 0, 29, method, len(octets), 0
        )
        blocks += [_block_4(0x74, 0x8000 | kind | flags, head + octets), data]
    return b"".join([*blocks, _block_4(0x7B, 0x4000, b"")])


RARS: Final[dict[str, Callable[..., bytes]]] = {"version 4": rar_4, "version 5": rar_5}


@pytest.mark.parametrize("make", RARS.values(), ids=RARS.keys())
def test_rar_is_looked_into(make: Callable[..., bytes]) -> None:
    data = make(FILES)
    assert names_in(data) == list(FILES)
    assert rarfile.RarFile(io.BytesIO(data)).namelist() == list(FILES)  # it is one
    assert blocked(mail(("a.rar", data))) == "a file of type .exe: d/setup.exe in a.rar"
    assert blocked(mail(("a.rar", make({"photo.jpg": PROGRAM})))) == "a program: photo.jpg"
    inner = make({"b.zip": zipped(("x.scr", b""))})
    assert blocked(mail(("a.rar", inner))).startswith("a file of type .scr: x.scr in")


@pytest.mark.parametrize(
    ("make", "method"), [(rar_4, 0x33), (rar_5, 3)], ids=["version 4", "version 5"]
)
def test_names_in_a_rar_are_seen_whatever_packs_it(make: Callable[..., bytes], method: int) -> None:
    assert names_in(make(FILES, method=method)) == list(FILES)
    assert blocked(mail(("a.rar", make({"photo.jpg": PROGRAM}, method=method)))) == ""


@pytest.mark.parametrize(
    "data",
    [
        rar_4({"a.txt": b"x"}, flags=4),
        b"Rar!\x1a\x07\0" + _block_4(0x73, 0x80, bytes(6)) + bytes(50),
        rar_5({"a.txt": b"x"}, encrypted=True),
        b"Rar!\x1a\x07\x01\0" + _block_5(_numbered(4, 0, 0, 0, 15) + bytes(16)) + bytes(50),
    ],
    ids=["version 4", "version 4, names too", "version 5", "version 5, names too"],
)
def test_encrypted_rar_is_blocked_on_demand(data: bytes) -> None:
    assert blocked(mail(("a.rar", data))) == ""
    plugin = Attachments(action="finding", encrypted=True)
    assert blocked(mail(("a.rar", data)), plugin) == "an encrypted archive: a.rar"


def test_packed_name_of_a_rar_is_unpacked() -> None:
    """A run of the other name, with and without a high octet."""
    head = struct.pack("<LLBLLBBHL", 0, 0, 0, 0, 0, 29, 0x30, 0, 0)
    name = b"setup.exe\0" + b"\x04" + b"\xd0" + b"\x07" + b"\x44"
    head = head[:19] + struct.pack("<H", len(name)) + head[21:]
    data = b"Rar!\x1a\x07\0" + _block_4(0x74, 0x8200, head + name)
    assert names_in(data) == ["setup.exe\u0444"]
    assert rarfile.RarFile(io.BytesIO(data)).namelist() == ["setup.exe\u0444"]


# xz, zstd


def test_xz_is_looked_into() -> None:
    data = lzma.compress(tarred(("b" * 700, b"x"), ("c.scr", b"")))
    for name in ("a.tar.xz", "a.txz"):
        assert blocked(mail((name, data))) == f"a file of type .scr: c.scr in {name}"
    assert blocked(mail(("setup.exe.xz", lzma.compress(b"x")))) == (
        "a file of type .exe: setup.exe in setup.exe.xz"
    )
    assert blocked(mail(("a.xz", lzma.compress(b"x") + lzma.compress(PROGRAM)))) == ""
    assert blocked(mail(("a.xz", lzma.compress(PROGRAM)))) == "a program: a"
    with pytest.raises(TooMuchError, match="unpack to too much"):
        names_in(lzma.compress(tarred(("c", bytes(2 * MIB)))), Budget(MIB, 100, 3))


def test_name_of_a_zstd_counts_where_python_cannot_unpack_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(_sequential._DECOMPRESSORS, ZSTD, None)  # noqa: SLF001
    data = ZSTD + bytes(20)
    assert blocked(mail(("setup.exe.zst", data))) == (
        "a file of type .exe: setup.exe in setup.exe.zst"
    )
    assert blocked(mail(("a.tar.zst", data))) == ""


def test_zstd_is_looked_into_where_python_can(monkeypatch: pytest.MonkeyPatch) -> None:
    zstd = pytest.importorskip("backports.zstd")  # as Python 3.14 has it
    decoder = zstd.ZstdDecompressor
    monkeypatch.setitem(_sequential._DECOMPRESSORS, ZSTD, decoder)  # noqa: SLF001
    data = zstd.compress(tarred(("c.scr", b"")))
    assert blocked(mail(("a.tar.zst", data))) == "a file of type .scr: c.scr in a.tar.zst"


# winmail.dat


def _attribute(kind: int, data: bytes) -> bytes:
    return b"\2" + struct.pack("<LL", kind, len(data)) + data + struct.pack("<H", sum(data) % 65536)


def _property(kind: int, number: int, octets: bytes) -> bytes:
    return struct.pack("<HHLL", kind, number, 1, len(octets)) + octets + bytes(-len(octets) % 4)


TNEF: Final = b"\x78\x9f\x3e\x22\x01\0"


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        (_attribute(0x18010, b"a.exe\0"), "a file of type .exe: a.exe in winmail.dat"),
        (
            _attribute(0x18010, b"a.jpg\0") + _attribute(0x6800F, PROGRAM),
            "a program: a.jpg",
        ),
        (
            _attribute(0x6800F, zipped(("b.js", b""))),
            "a file of type .js: b.js in winmail.dat",
        ),
        (
            _attribute(0x69005, struct.pack("<L", 1) + _property(0x1E, 0x3707, b"long.exe\0")),
            "a file of type .exe: long.exe in winmail.dat",
        ),
        (
            _attribute(0x69005, _property(0x1F, 0x3707, "l\u00e4ng.exe\0".encode("utf-16-le"))),
            "a file of type .exe: l\u00e4ng.exe in winmail.dat",
        ),
        (_attribute(0x18010, b"a.txt\0") + _attribute(0x6800F, b"x"), ""),
    ],
)
def test_attachments_in_tnef_are_seen(attributes: bytes, expected: str) -> None:
    data = TNEF + _attribute(0x89006, bytes(4)) + attributes
    assert blocked(mail(("winmail.dat", data), kind="application/ms-tnef")) == expected


# Texts


def uuencoded(name: str, data: bytes) -> bytes:
    lines = [binascii.b2a_uu(data[start : start + 45]) for start in range(0, len(data), 45)]
    return f"begin 644 {name}\n".encode() + b"".join(lines) + b"`\nend\n"


def yencoded(name: str, data: bytes) -> bytes:
    octets = bytearray()
    for octet in data:
        shifted = (octet + 42) % 256
        critical = shifted in (0, 10, 13, 61)
        octets += bytes([61, (shifted + 64) % 256]) if critical else bytes([shifted])
    head = f"=ybegin line=128 size={len(data)} name={name}\n".encode()
    return head + bytes(octets) + b"\n=yend size=1\n"


TEXTS: Final[dict[str, Callable[[str, bytes], bytes]]] = {"uuencode": uuencoded, "yEnc": yencoded}


@pytest.mark.parametrize("piece", [1, 7, 4096])
@pytest.mark.parametrize("make", TEXTS.values(), ids=TEXTS.keys())
def test_files_in_a_text_are_found(make: Callable[[str, bytes], bytes], piece: int) -> None:
    data = bytes(range(256)) * 3
    text = b"Hello\n\n" + make("a.bin", data) + b"and\n" + make("my file.txt", b"x") + b"bye\n"
    pieces = [text[start : start + piece] for start in range(0, len(text), piece)]
    found = [(name, b"".join(octets)) for name, octets in files_in_text(pieces)]
    assert found == [("a.bin", data), ("my file.txt", b"x")]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("make", TEXTS.values(), ids=TEXTS.keys())
def test_files_in_a_text_are_looked_at(
    make: Callable[[str, bytes], bytes], line_end: bytes
) -> None:
    for name, data, expected in (
        ("a.exe", b"x", "a file of type .exe: a.exe"),
        ("photo.jpg", PROGRAM, "a program: photo.jpg"),
        ("a.zip", zipped(("b.scr", b"")), "a file of type .scr: b.scr in a.zip"),
        ("a.txt", b"x", ""),
    ):
        text = make(name, data)
        if make is uuencoded:
            text = text.replace(b"\n", line_end)
        body = b"Hello." + line_end * 2 + text
        assert blocked(b"Subject: x\r\n\r\n" + body) == expected
        head = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
        for content in (
            b"--b\r\n\r\n" + body,
            b"--b\r\nContent-Type: text/plain\r\n\r\n" + body,
            b"--b\r\nContent-Type: a/b\r\nContent-Transfer-Encoding: x-uuencode\r\n\r\n" + body,
            body + b"--b\r\n\r\nx\r\n--b--\r\n",
            b"--b\r\n\r\nx\r\n--b--\r\n" + body,
        ):
            assert blocked(head + content) == expected


def test_uuencode_of_windows_counts_too_many_octets() -> None:
    lines = b"begin 644 a.jpg\n" + binascii.b2a_uu(PROGRAM[:45]).replace(b"\n", b"  \n") + b"end\n"
    assert blocked(b"Subject: x\r\n\r\n" + lines) == "a program: a.jpg"


@pytest.mark.parametrize(
    "text", [b"begin 644\n", b"begin x y\n", b"We begin 644 a.exe\n", b"begin\n"]
)
def test_text_that_only_looks_so_passes(text: bytes) -> None:
    assert blocked(b"Subject: x\r\n\r\n" + text + b"abc\n") == ""


# Damage


SEEDS: Final = (
    seven_zip(FILES),
    seven_zip(FILES, plain=True),
    rar_4(FILES),
    rar_5(FILES),
    rar_5(FILES, encrypted=True),
    lzma.compress(tarred(("a", b"x"))),
    TNEF + _attribute(0x18010, b"a\0") + _attribute(0x69005, _property(0x1E, 0x3707, b"b\0")),
)


@settings(max_examples=examples(300), deadline=None)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=8))
def test_damaged_archive_raises_nothing_unexpected(
    seed: bytes, damages: list[tuple[int, int]]
) -> None:
    data = bytearray(seed)
    for place, octet in damages:
        data[place % len(data)] = octet
    with contextlib.suppress(BrokenError, TooMuchError):
        names_in(bytes(data), Budget(MIB, 100, 3))


@pytest.mark.parametrize("seed", SEEDS[:6])
def test_cut_off_archive_raises_nothing_unexpected(seed: bytes) -> None:
    for length in range(len(seed)):
        with contextlib.suppress(BrokenError, TooMuchError):
            names_in(seed[:length], Budget(MIB, 100, 3))
