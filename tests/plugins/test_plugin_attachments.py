"""Attachments: blocking, the reading of parts and archives, and the cost of hostile mail."""

from __future__ import annotations

import base64
import bz2
import contextlib
import gzip
import io
import os
import random
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from datetime import timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Final

import pytest
from examples import examples
from fakes import envelope
from hypothesis import given, settings
from hypothesis import strategies as st
from minismtp_plugins._archives import files_in
from minismtp_plugins._budget import BrokenError, Budget, TooMuchError
from minismtp_plugins._parts import parts_of
from minismtp_plugins.attachments import ATTACHMENTS, Attachments

from minismtp import Content, Message, Session, findings_of
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.mail.content import ContentWriter
from minismtp.testing import Dialogue, Mailroom

PROGRAM: Final = b"MZ\x90\0\3\0\0\0" + bytes(100)
MIB: Final = 1024 * 1024


def session(login: str | None = None) -> Session:
    return Session(
        id="1",
        listener="smtp",
        kind="mx",
        hostname="mx.example.org",
        peer="192.0.2.1",
        login=login,
    )


def mail(*attachments: tuple[str, bytes], kind: str = "application/octet-stream") -> bytes:
    message = EmailMessage()
    message["Subject"] = "Hello"
    message.set_content("See what is attached.")
    for name, data in attachments:
        main, _, sub = kind.partition("/")
        message.add_attachment(data, maintype=main, subtype=sub, filename=name)
    return message.as_bytes().replace(b"\n", b"\r\n")


def blocked(content: bytes, plugin: Attachments | None = None) -> str:
    """Return the reason and the name of a blocked attachment, separated by a colon, or nothing."""
    place = envelope()
    (plugin or Attachments(action="finding")).on_message(
        session(), place, Message("1", Content.of(content))
    )
    return ", ".join(f"{found.reason}: {found.name}" for found in place.stash[ATTACHMENTS])


def zipped(*files: tuple[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files:
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)  # no time of now
    return target.getvalue()


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def tarred(*files: tuple[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=form) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return target.getvalue()


def encrypted() -> bytes:
    data = bytearray(zipped(("letter.txt", b"x")))
    data[6] |= 1  # the flag, in the file's header and in the directory
    data[data.rindex(b"PK\1\2") + 8] |= 1
    return bytes(data)


TAR: Final = tarred(("c.txt", b"x"), ("d.js", b""))


# What is blocked


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("setup.exe", "a file of type .exe"),
        ("SETUP.EXE", "a file of type .exe"),
        ("setup.exe. .", "a file of type .exe"),
        ("setup.exe::$DATA", "a file of type .exe"),
        ("C:\\x\\setup.vbs", "a file of type .vbs"),
        ("invoice.pdf.js", "a file of type .js"),
        ("s\u00e4tze.lnk", "a file of type .lnk"),
        ("invoice\u202efdp.txt", "a name that hides what the file is"),
    ],
)
def test_name_of_a_program_is_blocked(name: str, reason: str) -> None:
    assert blocked(mail((name, b"x"))) == f"{reason}: {name}"


@pytest.mark.parametrize(
    "name",
    ["report.pdf", "exe", "a.exe.d", "notes.txt", "photo.of.us.jpg", "x.tar.gz", "\u00e4.zip"],
)
def test_other_names_are_not(name: str) -> None:
    assert blocked(mail((name, b"x"))) == ""


def test_name_that_hides_a_program_is_blocked_where_programs_are_not() -> None:
    plugin = Attachments(action="finding", extensions=[])
    assert blocked(mail(("setup.exe", b"x")), plugin) == ""
    assert blocked(mail(("invoice.pdf.exe", b"x")), plugin).startswith("a name that hides")
    plugin = Attachments(action="finding", extensions=[], disguises=False)
    assert blocked(mail(("invoice.pdf.exe", b"x")), plugin) == ""


@pytest.mark.parametrize(
    "field",
    [
        b'Content-Disposition: attachment; filename="a.exe"',
        b"Content-Disposition: attachment;\r\n filename=a.exe",
        b"CONTENT-DISPOSITION : attachment; FILENAME = a.exe",
        b"Content-Disposition: attachment; filename*=UTF-8''a%2Eexe",
        b"Content-Disposition: attachment; filename*=no-such-charset''a.e%78e",
        b"Content-Disposition: attachment; filename*0=a.; filename*1=exe",
        b"Content-Disposition: attachment; filename*1*=xe; filename*0*=UTF-8''a%2Ee",
        b'Content-Disposition: attachment; filename="=?utf-8?B?YS5leGU=?="',
        b'Content-Disposition: attachment; filename="a.\\e\\x\\e"',
        b'Content-Disposition: attachment; filename="a.exe',
        b"Content-Disposition: inline; filename=b.txt\r\nContent-Disposition: x; filename=a.exe",
        b'Content-Type: image/png; name="a.exe"\r\nContent-Disposition: x; filename="a.png"',
        b"Content-Type: text/plain; charset=x; name=a.exe",
    ],
)
def test_every_way_to_give_a_name_counts(field: bytes) -> None:
    content = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n" + field + b"\r\n\r\nx\r\n"
    assert blocked(content) == "a file of type .exe: a.exe"


def test_declared_type_is_blocked() -> None:
    content = mail(("a", b"x"), kind="application/hta")
    assert blocked(content) == "of type application/hta: a"
    assert blocked(content, Attachments(action="finding", types=[])) == ""


@pytest.mark.parametrize(
    "data",
    [PROGRAM, b"\x7fELF\2\1\1", b"\xcf\xfa\xed\xfe", b"L\0\0\0\1\x14\2\0", b"\xca\xfe\xba\xbe"],
    ids=["DOS", "ELF", "macOS", "shortcut", "Java"],
)
def test_program_is_known_by_its_first_octets(data: bytes) -> None:
    content = mail(("photo.jpg", data))
    assert blocked(content) == "a program: photo.jpg"
    assert blocked(content, Attachments(action="finding", programs=False)) == ""
    assert blocked(b"Subject: no MIME at all\r\n\r\n" + data) in ("a program: ", "")


def test_text_that_begins_like_a_program_passes() -> None:
    assert blocked(b"Subject: x\r\n\r\nMZ is how my letters begin.\r\n") == ""


def test_program_in_quoted_printable_is_found() -> None:
    body = b"=4D=5A=\r\n=00=00" + b"=00" * 40
    head = b"Content-Type: a/b\r\nContent-Transfer-Encoding: Quoted-Printable\r\n\r\n"
    assert blocked(head + body) == "a program: "


# Archives


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.zip", zipped(("x/setup.exe", b"")), "a file of type .exe: x/setup.exe in a.zip"),
        ("a.docx", zipped(("word/x.bin", PROGRAM)), "a program: word/x.bin"),
        ("a.tar", tarred(("b", b"x" * 700), ("c.scr", b"")), "a file of type .scr: c.scr in a.tar"),
        (
            "a.tgz",
            gzipped(tarred(("b" * 150 + ".scr", b"x"))),
            "a file of type .scr: " + "b" * 150 + ".scr in a.tgz",
        ),
        (
            "a.tar.bz2",
            bz2.compress(tarred(("\u00e4" * 150 + ".scr", b"x"), form=tarfile.PAX_FORMAT)),
            "a file of type .scr: " + "\u00e4" * 150 + ".scr in a.tar.bz2",
        ),
        ("setup.exe.gz", gzipped(b"x"), "a file of type .exe: setup.exe in setup.exe.gz"),
        ("a.gz", gzipped(PROGRAM), "a program: a"),
        ("a.gz", gzipped(b"") + gzipped(PROGRAM), "a program: a"),
        ("a.tgz", gzipped(TAR[:700]) + bytes(9) + gzipped(TAR[700:]) + b"x", "d.js in a.tgz"),
        ("a.tbz2", bz2.compress(TAR[:700]) + bz2.compress(TAR[700:]) + b"x", "d.js in a.tbz2"),
        (
            "a.zip",
            zipped(("b.zip", zipped(("c.tgz", gzipped(tarred(("d.js", b""))))))),
            "archives in each other",
        ),
        ("a", zipped(("b", zipped(("d.js", b"")))), "a file of type .js: d.js in a"),
        ("a.zip", zipped(("readme.txt", b"x"), ("b.tar", tarred(("c.txt", b"x")))), ""),
    ],
)
def test_archives_are_looked_into(name: str, data: bytes, expected: str) -> None:
    found = blocked(mail((name, data)))
    assert expected in found
    assert bool(found) == bool(expected)


def test_archives_are_left_alone_where_depth_is_none() -> None:
    plugin = Attachments(action="finding", depth=0)
    assert blocked(mail(("a.zip", zipped(("setup.exe", b"")))), plugin) == ""


def test_encrypted_archive_is_blocked_on_demand() -> None:
    content = mail(("a.zip", encrypted()))
    assert blocked(content) == ""
    plugin = Attachments(action="finding", encrypted=True)
    assert blocked(content, plugin) == "an encrypted archive: a.zip"


@pytest.mark.parametrize(
    "data",
    [
        zipped(("a", b"x" * 1000))[:-30],
        b"PK\3\4" + bytes(100),
        gzipped(os.urandom(5000))[:2000],
        b"\x1f\x8b\x08" + b"\xff" * 100,
        tarred(("a", b"x"))[:512] + b"y" * 1024,
    ],
    ids=["cut off zip", "no zip", "cut off gzip", "no gzip", "broken tar"],
)
def test_broken_archive_is_blocked_unless_told_otherwise(data: bytes) -> None:
    found = blocked(mail(("a", data)))
    assert found == "" or found.startswith("a broken archive")
    assert blocked(mail(("a", data)), Attachments(action="finding", unreadable=False)) == ""


def names_in(data: bytes, budget: Budget) -> list[str]:
    return [inside.name for inside, _ in files_in(io.BytesIO(data), "a", budget)]


SEEDS: Final = (
    zipped(("a.txt", b"text" * 50), ("b.zip", zipped(("c", b"x")))),
    tarred(("a" * 150, b"text"), ("b", b"x")),
    tarred(("a" * 150, b"text"), ("b", b"x"), form=tarfile.PAX_FORMAT),
    gzipped(tarred(("a", b"x"))),
    bz2.compress(b"x" * 1000),
)


@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=8))
def test_damaged_archive_raises_nothing_unexpected(
    seed: bytes, damages: list[tuple[int, int]]
) -> None:
    data = bytearray(seed)
    for place, octet in damages:
        data[place % len(data)] = octet
    with contextlib.suppress(BrokenError, TooMuchError):
        names_in(bytes(data), Budget(MIB, 100, 3))


def test_unpacking_stays_in_its_budget() -> None:
    bomb = zipped(("b.tar", tarred(("c", bytes(20 * MIB)))))
    assert len(bomb) < MIB
    with pytest.raises(TooMuchError, match="unpack to too much"):
        names_in(bomb, Budget(MIB, 100, 3))
    assert names_in(bomb, Budget(50 * MIB, 100, 3)) == ["b.tar", "b.tar", "c"]


# What is done


@pytest.mark.parametrize(
    ("action", "reply"),
    [
        ("reject", "550 5.7.1 message refused for its attachment, a file of type .exe: a?b.exe"),
        ("quarantine", "250"),
        ("tag", "250"),
        ("finding", "250"),
    ],
)
def test_action_is_taken(action: str, reply: str) -> None:
    table = {"action": action}
    plugin = build(Attachments, table, file="c", key="plugins[0]", base=Path())
    mailroom = Mailroom()
    content = b"X-Blocked-Attachment: forged\r\n" + mail(("a\u202eb.exe", b"x"))
    dialogue = Dialogue(plugin, mailroom)
    assert dialogue.mail(content).startswith(reply)
    stored = mailroom.stored.get("user@example.org", [b""])[0]
    said = b"X-Blocked-Attachment: a file of type .exe: a?b.exe\r\n"
    assert (said in stored) == (action == "tag")
    assert b"forged" not in stored
    outcome = {"reject": "rejected", "quarantine": "quarantined"}.get(action, "stored")
    assert dialogue.count("messages_total", listener="test", outcome=outcome) == 1
    dialogue.close()


def test_finding_has_points() -> None:
    place = envelope()
    message = Message("1", Content.of(mail(("a.exe", b"x"))))
    Attachments(action="finding", points=7).on_message(session(), place, message)
    [finding] = findings_of(place)
    assert (finding.plugin, finding.name, finding.points) == ("attachments", "blocked", 7)
    assert finding.text == "a file of type .exe: a.exe"


def test_mail_of_users_is_left_alone() -> None:
    place = envelope()
    Attachments().on_message(
        session("alice"), place, Message("1", Content.of(mail(("a.exe", b"x"))))
    )
    assert ATTACHMENTS not in place.stash


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"extensions": ["tar.gz"]}, "extensions: expected such as exe, not 'tar.gz'"),
        ({"extensions": [""]}, "extensions: expected such as exe, not ''"),
        ({"types": ["executable"]}, "types: expected such as application/hta, not 'executable'"),
        ({"depth": -1}, "depth: expected 0 or more"),
        ({"budget": "0s"}, 'budget: expected more than "0s"'),
        ({"action": "discard"}, "action: expected one of"),
    ],
)
def test_bad_option_is_named(table: dict[str, object], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"plugins\[0\]\.{problem}"):
        build(Attachments, table, file="c", key="plugins[0]", base=tmp_path)


# Parts


def leaves(content: bytes, piece: int = 65536) -> list[tuple[str, list[str], bytes]]:
    """Return type, names and decoded content of the parts that have no parts."""

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(piece if size is None or size < 0 else min(size, piece))

    return [
        (part.kind, part.names, b"".join(part.decoded()))
        for part in parts_of(lambda: Slow(content))
        if part.kind and not part.kind.startswith(("multipart/", "message/rfc822"))
    ]


def build_mail(seed: int) -> EmailMessage:
    """Return a message of nested parts."""
    chance = random.Random(seed)  # noqa: S311
    message = EmailMessage()
    message["Subject"] = f"number {seed}"
    message.set_content("text\n" * chance.randrange(5), cte=chance.choice(["7bit", "base64"]))
    if chance.random() < 0.5:
        message.add_alternative("<p>text</p>\n", subtype="html", cte="quoted-printable")
    for number in range(chance.randrange(4)):
        data = chance.randbytes(chance.choice([0, 1, 2, 3, 100, 70_000]))
        message.add_attachment(data, "application", "x-test", filename=f"{number}.bin")
    if chance.random() < 0.3 and seed < 1000:
        message.add_attachment(build_mail(seed + 1000))
    return message


@pytest.mark.parametrize("piece", [1000, 65536])
@pytest.mark.parametrize("seed", range(12))
def test_parts_are_those_that_the_parser_of_python_finds(seed: int, piece: int) -> None:
    message = build_mail(seed)
    wire = message.as_bytes().replace(b"\n", b"\r\n")
    expected = [
        (part.get_content_type(), [part.get_filename()] * (part.get_filename() is not None), part)
        for part in message.walk()
        if not part.is_multipart()
    ]
    found = leaves(wire, piece)
    assert [each[:2] for each in found] == [each[:2] for each in expected]
    for (kind, _, data), (_, _, part) in zip(found, expected, strict=True):
        wanted = part.get_payload(decode=True)
        assert isinstance(wanted, bytes)
        if kind.startswith("text/"):
            assert data.split() == wanted.split()
        else:
            assert data.rstrip(b"\r\n") == wanted.rstrip(b"\r\n")


HIDING: Final = {
    "delimiter with blanks": b"Content-Type: multipart/mixed; boundary=b\n\n--b \t x\n%s\n\nx\n",
    "after the end": b"Content-Type: multipart/mixed; boundary=b\n\n--b\n\nx\n--b--\n--b\n%s\n\nx",
    "no end": b"Content-Type: multipart/mixed; boundary=b\n\n--b\n%s\n\nx",
    "no body": b"Content-Type: multipart/mixed; boundary=b\n\n--b\n%s\n--b--\n",
    "no header end": b"Content-Type: multipart/mixed; boundary=b\n\n--b\n%s",
    "quoted": b'Content-Type: multipart/mixed; boundary="b b"\n\n--b b\n%s\n\nx',
    "split": b"Content-Type: multipart/mixed; boundary*0=b; boundary*1=c\n\n--bc\n%s\n\nx",
    "octets": b"Content-Type: multipart/mixed; boundary=\xff\xfe\n\n--\xff\xfe\n%s\n\nx",
    "prefix": b"Content-Type: multipart/mixed; boundary=b\n\n--b\n"
    b"Content-Type: multipart/mixed; boundary=bc\n\n--bc\n\nx\n--bc\n%s\n\nx",
    "same": b"Content-Type: multipart/mixed; boundary=b\n\n--b\n"
    b"Content-Type: multipart/mixed; boundary=b\n\n--b\n%s\n\nx",
    "message": b"Content-Type: message/rfc822\n\n%s\n\nx",
    "digest": b"Content-Type: multipart/digest; boundary=b\n\n--b\n\n%s\n\nx",
    "comment": b"Content-Type: multipart/mixed (x); boundary=b\n\n--b\n%s\n\nx",
    "unknown subtype": b"Content-Type: MULTIPART/x; BOUNDARY=b\n\n--b\n%s\n\nx",
}


@pytest.mark.parametrize("form", HIDING.values(), ids=HIDING.keys())
def test_part_cannot_hide(form: bytes) -> None:
    field = b"Content-Disposition: attachment; filename=a.exe"
    for content in (form % field, (form % field).replace(b"\n", b"\r\n")):
        assert blocked(content) == "a file of type .exe: a.exe"


@settings(max_examples=examples(150))
@given(
    st.lists(
        st.sampled_from(
            [
                *(b"Content-Type: multipart/mixed; boundary=", b"b", b"c", b'"', b"\r\n", b"\n"),
                *(b"--b", b"--c", b"--", b"\r", b" ", b";", b"=", b"name*0*=utf-8''%", b"\xff"),
                *(b"Content-Type: message/rfc822", b"Content-Type: multipart/digest; boundary=c"),
                *(b"Content-Transfer-Encoding: base64", b"QUJD", b"\0", b"PK\3\4"),
            ]
        )
    ),
    st.integers(1, 7),
)
def test_any_octets_have_parts(tokens: list[bytes], piece: int) -> None:
    with contextlib.suppress(TooMuchError):
        assert leaves(b"".join(tokens), piece) == leaves(b"".join(tokens))
    blocked(b"".join(tokens))


# Cost


def multipart(*parts: bytes) -> bytes:
    head = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
    return head + b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"


COSTLY: Final[dict[str, Callable[[], bytes]]] = {
    "10,000 parts": lambda: multipart(*[b"\r\nx"] * 10_000),
    "ends of multiparts": lambda: multipart(b"\r\nx") + b"--b--\r\n" * 100_000,
    "500 levels": lambda: b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(500)
    ),
    "500 messages": lambda: b"Content-Type: message/rfc822\r\n\r\n" * 500,
    "header of 10 MB": lambda: b"Content-Type: a/b" + b";x" * 5_000_000 + b"\r\n\r\n",
    "10 MB of fields": lambda: b"Content-Type: a/b\r\n" * 500_000 + b"\r\n",
    "parameters": lambda: multipart(*[b"Content-Type: a/b" + b';x="' * 1000 + b"\r\n\r\nx"] * 500),
    "name behind many fields": lambda: multipart(
        b"Content-Disposition: attachment\r\n" * 4
        + b"Content-Disposition: attachment; filename=a.exe\r\n\r\nx"
    ),
    "name behind long parameters": lambda: multipart(
        b"Content-Disposition: attachment; x=" + b"y" * 5000 + b"; filename=a.exe\r\n\r\nx"
    ),
    "long boundary": lambda: (
        b"Content-Type: multipart/mixed; boundary=%b\r\n\r\n--%b\r\n"
        b"Content-Disposition: attachment; filename=a.exe\r\n\r\nx\r\n" % (b"b" * 251, b"b" * 251)
    ),
    "name in a gzip": lambda: mail(("a.gz", gzipped(b"\x1f\x8b\x08\x08" + b"x" * 4 * MIB))),
    "empty gzips": lambda: mail(("a.gz", gzipped(gzipped(b"") * 6000))),
    "empty bzip2s": lambda: mail(("a.bz2", bz2.compress(b"x") + bz2.compress(b"") * 6000)),
    "files": lambda: mail(("a.zip", zipped(*[(f"{number}", b"") for number in range(6000)]))),
}


@pytest.mark.parametrize("make", COSTLY.values(), ids=COSTLY.keys())
def test_too_much_is_blocked_unless_told_otherwise(make: Callable[[], bytes]) -> None:
    content = make()
    assert blocked(content).startswith("too much to be checked, ")
    assert blocked(content, Attachments(action="finding", unreadable=False)) == ""


def test_archives_have_their_time() -> None:
    plugin = Attachments(action="finding", budget=timedelta(microseconds=1))
    found = blocked(mail(("a.tar", TAR)), plugin)
    assert found == "too much to be checked, archives that take too long: "


def test_memory_is_bounded_whatever_the_size_of_the_message(tmp_path: Path) -> None:
    inner = base64.encodebytes(zipped(("a", random.Random(1).randbytes(6 * MIB))))  # noqa: S311
    part = b"Content-Type: a/b; name=a.zip\nContent-Transfer-Encoding: base64\n\n" + inner
    writer = ContentWriter(tmp_path)
    writer.write(multipart(part, b"\n" + b"x" * 8 * MIB))
    message = Message("1", writer.finish())
    del inner, part
    tracemalloc.start()
    try:
        Attachments().on_message(session(), envelope(), message)
        assert tracemalloc.get_traced_memory()[1] < 3 * MIB
    finally:
        tracemalloc.stop()
