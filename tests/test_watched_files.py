"""Files that are read again: every change that makes them readable or different is noticed."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import ssl
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

import pytest
import trustme
from minismtp_plugins.mailboxes import Mailboxes
from minismtp_plugins.password_file import PasswordFile

from minismtp import WatchedFiles
from minismtp.config.tables import SniCertificate, TlsConfig
from minismtp.services.tls import Certificates
from minismtp.smtp.sasl import make_key
from minismtp.testing import Dialogue
from minismtp.values.passwords import hash_password

NOBODY: Final = 65534
AUTHORITY: Final = trustme.CA()
OTHER_AUTHORITY: Final = trustme.CA()
OLD: Final = AUTHORITY.issue_cert("old.example.org")
NEW: Final = AUTHORITY.issue_cert("new.example.org")
HASH: Final = hash_password("secret")
Value: TypeAlias = Callable[[], str]


@pytest.fixture
def directory() -> Iterator[Path]:
    """Yield a directory that other users can reach, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        gc.collect()  # objects that watch removed files would count as unusable in other tests


@pytest.fixture(autouse=True)
def _seconds_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let two seconds pass between two readings of the clock."""
    monkeypatch.setattr("minismtp.values.durable_files.monotonic", itertools.count(0, 2).__next__)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Become a user to whom the mode of a file applies, because root may read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


# Kinds of watched files: the old and the new content, and the one in use


def pair(which: str) -> bytes:
    issued = OLD if which == "old" else NEW
    return issued.private_key_and_cert_chain_pem.bytes()


def name(which: str) -> bytes:
    return f"{which}\n".encode()


def alias(which: str) -> bytes:
    return f"{which}: user\n".encode()


def user(which: str) -> bytes:
    keys = f":{make_key('secret').text}" if which == "new" else ":"
    return f"user:{HASH}{keys.rstrip(':')}\n".encode()


def presented(context: ssl.SSLContext) -> str:
    """Return the first label of the name in the certificate that a client sees."""
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(ours, theirs, server_side=True)
    trust = ssl.create_default_context()
    trust.check_hostname = False
    AUTHORITY.configure_trust(trust)
    client = trust.wrap_bio(theirs, ours, server_hostname="a.example")
    for each in (client, server, client):
        with contextlib.suppress(ssl.SSLWantReadError):
            each.do_handshake()
    certificate = client.getpeercert() or {}
    return str(certificate["subjectAltName"][0][1]).partition(".")[0]


def watched(tls: TlsConfig, reports: list[str]) -> Certificates:
    seconds = itertools.count(0, 2)
    return Certificates(
        tls,
        ask_client=tls.client_ca is not None,
        file="",
        clock=lambda: float(next(seconds)),
        report=reports.append,
    )


def certificate(path: Path) -> Value:
    found = watched(TlsConfig(certificate=path, key=path), [])
    return lambda: presented(found.current())


def authority(which: str) -> bytes:
    return (AUTHORITY if which == "old" else OTHER_AUTHORITY).cert_pem.bytes()


def client_ca(path: Path) -> Value:
    (own := path.parent.parent / "own.pem").write_bytes(pair("old"))
    found = watched(TlsConfig(certificate=own, key=own, client_ca=path), [])
    old = ssl.PEM_cert_to_DER_cert(authority("old").decode())
    return lambda: "old" if found.current().get_ca_certs(binary_form=True) == [old] else "new"


def text(path: Path) -> Value:
    found = WatchedFiles(lambda: path.read_text().strip(), path)
    return found.get


def password_file(path: Path) -> Value:
    found = PasswordFile(path=path)
    return lambda: "new" if "SCRAM-SHA-256" in found.mechanisms else "old"


def accepted(boxes: Mailboxes) -> str:
    dialogue = Dialogue(boxes)
    for line in ("EHLO client.example", "MAIL FROM:<>"):
        dialogue.send(line)
    found = [w for w in ("old", "new") if dialogue.send(f"RCPT TO:<{w}@example.org>")[0] == "2"]
    return "+".join(found)


def users_file(path: Path) -> Value:
    boxes = Mailboxes(domains=["example.org"], users_file=path)
    return lambda: accepted(boxes)


def aliases_file(path: Path) -> Value:
    boxes = Mailboxes(domains=["example.org"], users=["user"], aliases_file=path)
    return lambda: accepted(boxes)


KINDS: Final = {
    "certificate": (pair, certificate),
    "client_ca": (authority, client_ca),
    "text": (name, text),
    "password_file": (user, password_file),
    "users_file": (name, users_file),
    "aliases_file": (alias, aliases_file),
}

# Changes: how the new content becomes unreadable, and how that is repaired

Repair: TypeAlias = Callable[[], object]


def mode(path: Path, new: bytes) -> Repair:
    path.write_bytes(new)
    path.chmod(0)
    return lambda: path.chmod(0o644)


def mode_of_a_renamed_file(path: Path, new: bytes) -> Repair:
    (other := path.with_name("other")).write_bytes(new)
    other.chmod(0)
    other.rename(path)
    return lambda: path.chmod(0o644)


def owner(path: Path, new: bytes) -> Repair:
    path.write_bytes(new)
    path.chmod(0o600)
    return lambda: os.chown(path, NOBODY, NOBODY)


def directory_above(path: Path, new: bytes) -> Repair:
    path.write_bytes(new)
    path.parent.chmod(0)
    return lambda: path.parent.chmod(0o755)


def directory_at_first_unlike(path: Path, new: bytes) -> Repair:
    path.parent.chmod(0)
    path.write_bytes(new)
    return lambda: path.parent.chmod(0o755)


def removal(path: Path, new: bytes) -> Repair:
    path.unlink()
    return lambda: path.write_bytes(new)


def removed_directory(path: Path, new: bytes) -> Repair:
    path.parent.rename(aside := path.parent.with_name("aside"))
    (aside / path.name).write_bytes(new)
    return lambda: aside.rename(path.parent)


def dangling_link(path: Path, new: bytes) -> Repair:
    path.unlink()
    path.symlink_to("elsewhere")
    return lambda: path.with_name("elsewhere").write_bytes(new)


def loop_of_links(path: Path, new: bytes) -> Repair:
    path.unlink()
    path.symlink_to(path.name)
    path.with_name("other").write_bytes(new)

    def repair() -> None:
        path.unlink()
        path.symlink_to("other")

    return repair


def directory_in_its_place(path: Path, new: bytes) -> Repair:
    path.unlink()
    path.mkdir()

    def repair() -> None:
        path.rmdir()
        path.write_bytes(new)

    return repair


BREAKS: Final = (
    mode,
    mode_of_a_renamed_file,
    owner,
    directory_above,
    directory_at_first_unlike,
    removal,
    removed_directory,
    dangling_link,
    loop_of_links,
    directory_in_its_place,
)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, directory: Path) -> tuple[Path, bytes, Value]:
    """Return a file with the old content, the new content, and a test for the one in use."""
    content, watch = KINDS[request.param]
    (place := directory / "place").mkdir()
    place.chmod(0o755)
    path = place / "file"
    path.write_bytes(content("old"))
    path.chmod(0o644)
    value = watch(path)
    assert value() == "old"
    return path, content("new"), value


@pytest.mark.parametrize("spoil", BREAKS, ids=lambda each: each.__name__)
def test_file_that_can_be_read_again_is_taken_on(
    kind: tuple[Path, bytes, Value], spoil: Callable[[Path, bytes], Repair]
) -> None:
    if spoil is owner and os.geteuid():
        pytest.skip("only root can give a file away")
    path, new, value = kind
    repair = spoil(path, new)
    with as_nobody():
        assert value() != "new"
        assert value() != "new"
    repair()
    with as_nobody():
        assert value() == "new"


def rewritten(path: Path, new: bytes) -> None:
    path.write_bytes(new)


def rewritten_with_the_old_times(path: Path, new: bytes) -> None:
    before = path.stat()
    path.write_bytes(new)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def renamed_into_place(path: Path, new: bytes) -> None:
    (other := path.with_name("other")).write_bytes(new)
    os.utime(other, (0, 0))
    other.rename(path)


def link_to_another(path: Path, new: bytes) -> None:
    (other := path.with_name("other")).write_bytes(new)
    path.unlink()
    path.symlink_to(other.name)


def chain_of_links(path: Path, new: bytes) -> None:
    path.with_name("other").write_bytes(new)
    path.with_name("second").symlink_to("other")
    path.with_name("first").symlink_to("second")
    path.with_name("first").replace(path)


def link_of_the_directory(path: Path, new: bytes) -> None:
    archive = path.parent.with_name("archive")
    archive.mkdir()
    (archive / path.name).write_bytes(new)
    path.parent.rename(path.parent.with_name("before"))
    path.parent.symlink_to(archive.name)


CHANGES: Final = (
    rewritten,
    rewritten_with_the_old_times,
    renamed_into_place,
    link_to_another,
    chain_of_links,
    link_of_the_directory,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda each: each.__name__)
def test_changed_file_is_taken_on(
    kind: tuple[Path, bytes, Value], change: Callable[[Path, bytes], None]
) -> None:
    path, new, value = kind
    change(path, new)
    assert value() == "new"


def test_certificate_of_another_name_is_watched_like_the_first(directory: Path) -> None:
    first, named = directory / "first", directory / "named"
    for path in (first, named):
        path.write_bytes(pair("old"))
    sni = SniCertificate(name="a.example", certificate=named, key=named)
    found = watched(TlsConfig(certificate=first, key=first, sni=[sni]), [])
    named.write_bytes(pair("new"))
    assert found.current() is not None
    assert presented(found.current()) == "new"


def test_certificate_that_stays_unreadable_is_reported_once(directory: Path) -> None:
    (path := directory / "file").write_bytes(pair("old"))
    reports: list[str] = []
    found = watched(TlsConfig(certificate=path, key=path), reports)
    path.unlink()
    for _ in range(5):
        assert presented(found.current()) == "old"
    assert [report.rpartition(": ")[2] for report in reports] == ["No such file or directory"]
    path.write_bytes(b"rubbish")
    for _ in range(5):
        assert presented(found.current()) == "old"
    assert len(reports) == 2
    path.write_bytes(pair("new"))
    assert presented(found.current()) == "new"
    assert reports[2:] == [""]


def test_certificate_that_failed_for_a_passing_reason_is_taken_on_without_a_change(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path := directory / "file").write_bytes(pair("old"))
    found = watched(TlsConfig(certificate=path, key=path), [])
    path.write_bytes(pair("new"))
    load = ssl.SSLContext.load_cert_chain
    faults = [OSError(24, "Too many open files")]

    def fail_once(context: ssl.SSLContext, *args: str, **kwargs: str) -> None:
        if faults:
            raise faults.pop()
        load(context, *args, **kwargs)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", fail_once)
    assert presented(found.current()) == "old"
    assert presented(found.current()) == "new"
