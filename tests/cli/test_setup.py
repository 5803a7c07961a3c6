"""`minismtp setup`: what it writes, what it refuses, and that it then writes nothing."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest
import tomli
import trustme
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from terminal import Terminal

import minismtp.cli.check
import minismtp.cli.setup
import minismtp.inspection.listeners
from minismtp.cli.main import main
from minismtp.cli.setup import host, material
from minismtp.values.passwords import hash_password, verify_password

EXAMPLE: Final = Path(__file__).parents[2] / "etc" / "minismtp.toml"
NAMES: Final = ("--domain", "example.org", "--hostname", "mx.example.org", "--user", "alice")
Capture = pytest.CaptureFixture[str]


class Setup:
    """A root to set up, below `base`."""

    def __init__(self, base: Path, capsys: Capture, patch: pytest.MonkeyPatch) -> None:
        self.base = base
        self.etc = base / "etc"
        self.config = self.etc / "minismtp.toml"
        self._capsys = capsys
        self._patch = patch

    def __call__(self, *words: str, given: bytes = b"", status: int = 0) -> str:
        """Run the command, expect a status, and return all that it says."""
        place = ["--config", str(self.config), "--state-directory", str(self.base / "var")]
        self._patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
        assert main(["setup", *place, *words]) == status
        said = self._capsys.readouterr()
        return said.out + said.err

    @property
    def files(self) -> dict[str, bytes]:
        """The files that exist, and their content."""
        paths = [path for path in self.base.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.base)): path.read_bytes() for path in paths}

    def refused(self, *words: str, status: int, given: bytes = b"") -> str:
        """Run the command, which changes nothing, also no directory, and says one line."""
        before = self.files, {*self.base.rglob("*")}
        text = self(*words, status=status, given=given)
        assert (self.files, {*self.base.rglob("*")}) == before
        return text.splitlines()[-1]


#: The keys of most tests, because one of RSA takes long.
one_key = cache(material._signing_key)  # noqa: SLF001


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the inspection neither ask the DNS nor see the ports that are taken on this machine."""
    monkeypatch.setattr(minismtp.cli.check, "check_names", lambda *_: iter(()))
    monkeypatch.setattr(minismtp.inspection.listeners, "holders", lambda _: None)


@pytest.fixture
def setup(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> Setup:
    """Return a setup."""
    monkeypatch.setattr(material, "_signing_key", one_key)
    return Setup(tmp_path, capsys, monkeypatch)


def test_new_host_is_whole(setup: Setup) -> None:
    said = setup("--yes", *NAMES)
    assert "configuration ok\n" in said
    assert set(setup.files) == {
        "etc/minismtp.toml",
        "etc/passwords",
        "etc/users",
        "etc/aliases",
        "etc/srs-secret",
        "etc/dkim/example.org.minismtp-rsa.pem",
        "etc/dkim/example.org.minismtp-ed25519.pem",
        "etc/tls/fullchain.pem",
        "etc/tls/key.pem",
    }
    keys = [
        load_pem_private_key(setup.files[name], None) for name in setup.files if "/dkim/" in name
    ]
    assert any(isinstance(key, rsa.RSAPrivateKey) and key.key_size == 2048 for key in keys)
    assert any(isinstance(key, ed25519.Ed25519PrivateKey) for key in keys)
    [password] = re.findall(r"password of alice@example\.org, which is shown only now: (\S+)", said)
    name, stored, scram = setup.files["etc/passwords"].decode().strip().split(":")
    assert (name, verify_password(password, stored)) == ("alice@example.org", True)
    assert scram.startswith("$scram-sha-256$")
    assert "postmaster: alice\nabuse: alice\n" in setup.files["etc/aliases"].decode()


def test_listeners_and_plugins_are_those_of_a_mail_host(setup: Setup) -> None:
    setup("--yes", *NAMES)
    table = tomli.loads(setup.config.read_text())
    listeners = [(each["address"], each["kind"], each["tls"]) for each in table["listeners"]]
    assert listeners == [
        ("*:25", "mx", "starttls"),
        ("*:587", "submission", "starttls"),
        ("*:465", "submission", "implicit"),
    ]
    assert [each["use"] for each in table["plugins"]] == [
        *("mailboxes", "password_file", "relay", "spf", "dkim_verify", "dmarc"),
        *("authentication_results", "maildir", "dkim_sign"),
    ]
    assert 'use = "greylist"' in setup.config.read_text()


def test_dry_run_shows_files_without_secrets_and_writes_nothing(setup: Setup) -> None:
    said = setup("--yes", "--dry-run", *NAMES)
    assert setup.files == {}
    assert not setup.etc.exists()
    assert f"==> {setup.config} (new" in said
    assert 'hostname = "mx.example.org"' in said
    assert "(a new RSA key of 2048 bits, which signs mail)" in said
    assert "PRIVATE KEY" not in said
    assert said.endswith("Nothing was written.\n")


def test_international_names_become_a_labels(setup: Setup) -> None:
    names = ("--domain", "B\u00fccher.example.", "--hostname", "mx.b\u00fccher.example")
    setup("--yes", *names, "--user", "J\u00fcrgen@b\u00fccher.example")
    text = setup.config.read_text()
    assert 'domains = ["xn--bcher-kva.example"]' in text
    assert 'hostname = "mx.xn--bcher-kva.example"' in text
    assert setup.files["etc/passwords"].startswith("j\u00fcrgen@xn--bcher-kva.example:".encode())


def test_files_belong_to_root_and_the_group_of_the_server(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files to others")
    monkeypatch.setattr(host, "ACCOUNT", "nobody")
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        said = Setup(Path(directory), capsys, monkeypatch)("--yes", *NAMES)
        assert "permissions: tried as nobody, the server's user" in said
        group = Path(directory, "etc").stat().st_gid
        assert group != 0
        for path in Path(directory, "etc").rglob("*"):
            status = path.stat()
            assert (status.st_uid, status.st_gid) == (0, group), path
            assert status.st_mode & 0o777 == (0o750 if path.is_dir() else 0o640), path
        assert Path(directory, "var").owner() == "nobody"


def test_directories_can_be_entered_despite_the_umask(setup: Setup) -> None:
    before = os.umask(0o077)
    try:
        setup("--yes", *NAMES, "--state-directory", str(setup.base / "srv" / "mail"))
    finally:
        os.umask(before)
    assert (setup.base / "srv").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--domain", "exa mple.org"), "--domain: 'exa mple.org': expected a domain such as"),
        (("--domain", "alice@example.org"), "--domain: 'alice@example.org': expected a domain"),
        (("--domain", "localhost"), "--domain: 'localhost': expected a domain such as"),
        (("--domain", "192.0.2.1"), "--domain: '192.0.2.1': expected a domain such as"),
        (("--domain", f"{'a' * 64}.org"), "expected a domain such as example.org"),
        (("--domain", "exa\nmple.org"), r"--domain: 'exa\nmple.org': expected a domain"),
        (("--domain", ""), "--domain: '': expected a domain"),
        (("--domain", "example.org.."), "--domain: 'example.org..': expected a domain"),
        (("--hostname", ""), "--hostname: '': expected the full name of this host"),
        (("--hostname", "192.0.2.1"), "--hostname: '192.0.2.1': expected the full name"),
        (("--hostname", "mx_1.example.org"), "--hostname: 'mx_1.example.org': expected the full"),
        (("--hostname", "mx"), "--hostname: 'mx': expected the full name of this host"),
        (("--user", "a:b"), "--user: 'a:b': expected a name such as alice"),
        (("--user", "#a"), "--user: '#a': expected a name"),
        (("--user", "../x"), "--user: '../x': expected a name"),
        (("--user", "alice+tag"), "--user: 'alice+tag': expected a name"),
        (("--user", "a\nb"), r"--user: 'a\nb': expected a name"),
        (("--user", "x" * 65), "with 64 octets at most"),
        (("--user", "alice@example.net"), "expected an address at example.org, or the part"),
        (("--user", "alice@"), "--user: 'alice@': expected an address at example.org, or"),
        (("--password-file", ""), '--password-file: expected the path of a file, or "-"'),
        (("--certificate", ""), "--certificate: '': expected acme, self-signed, or the paths"),
        (("--certificate", "letsencrypt"), "--certificate: 'letsencrypt': expected acme"),
        (("--certificate", "a.pem,"), "--certificate: 'a.pem,': expected acme"),
    ],
    ids=lambda value: ascii(value)[:50],
)
def test_wrong_option_is_refused(words: tuple[str, ...], expected: str, setup: Setup) -> None:
    assert expected in setup.refused("--yes", *NAMES, *words, status=2)
    assert setup.files == {}


@pytest.mark.parametrize("words", [(), ("--yes",)])
def test_nobody_is_asked_without_a_terminal(words: tuple[str, ...], setup: Setup) -> None:
    line = setup.refused(*words, "--user", "alice", status=2)
    assert line == (
        "minismtp: --domain: expected the domain of your mail addresses,"
        " because nobody can be asked"
    )


def test_configuration_that_exists_is_kept(setup: Setup) -> None:
    setup.etc.mkdir()
    setup.config.write_text("# mine\n")
    line = setup.refused("--yes", *NAMES, status=1)
    assert "exists, and is kept. `minismtp setup --add-domain DOMAIN` adds a domain" in line


def test_untouched_example_is_moved_aside(setup: Setup) -> None:
    setup.etc.mkdir()
    setup.config.write_text(EXAMPLE.read_text())
    (setup.etc / "passwords").write_text("# made by: minismtp passwd FILE USER\n")
    setup("--yes", *NAMES)
    assert setup.files["etc/minismtp.toml.example"] == EXAMPLE.read_bytes()
    assert setup.config.read_text().startswith("# The mail server of example.org.")
    first, second = setup.files["etc/passwords"].decode().splitlines()
    assert first == "# made by: minismtp passwd FILE USER"
    assert second.startswith("alice@example.org:")


def test_example_with_own_names_is_kept(setup: Setup) -> None:
    setup.etc.mkdir()
    setup.config.write_text(EXAMPLE.read_text().replace("mx.example.org", "mx.example.net"))
    assert "exists, and is kept" in setup.refused("--yes", *NAMES, status=1)


def test_password_that_exists_is_kept(setup: Setup) -> None:
    setup.etc.mkdir()
    line = f"Alice@example.org:{hash_password('secret')}\n"
    (setup.etc / "passwords").write_text(line)
    assert "alice@example.org has no new password" in setup("--yes", *NAMES)
    assert setup.files["etc/passwords"] == line.encode()


@pytest.mark.parametrize("name", ["users", "aliases"])
def test_file_in_the_way_is_kept(name: str, setup: Setup) -> None:
    setup.etc.mkdir()
    (setup.etc / name).write_text("bob\n")
    assert f"{name} exists, but" in setup.refused("--yes", *NAMES, status=1)


@pytest.mark.parametrize("option", ["-", "file"])
def test_password_is_read(option: str, setup: Setup) -> None:
    (setup.base / "file").write_bytes(b"p\xc3\xa4ss\r\nmore\n")
    option = option if option == "-" else str(setup.base / "file")
    said = setup("--yes", *NAMES, "--password-file", option, given=b"p\xc3\xa4ss\nmore\n")
    assert "password of alice" not in said
    stored = setup.files["etc/passwords"].decode().split(":")[1]
    assert verify_password("p\u00e4ss", stored)


@pytest.mark.parametrize(
    ("option", "given", "status", "expected"),
    [
        ("-", b"", 2, "--password-file: - has no password in its first line"),
        ("-", b"\nx", 2, "--password-file: - has no password in its first line"),
        ("-", b"\xff\n", 2, "--password-file: - is not UTF-8"),
        ("-", b"a\0b\n", 2, "--password-file: - has a control character, which no user can type"),
        ("-", b"a\tb\n", 2, "--password-file: - has a control character"),
        ("-", b"x" * 4097, 2, "--password-file: - has more than 4096 octets in its first line"),
        ("/dev/zero", b"", 2, "/dev/zero has more than 4096 octets in its first line"),
        ("/dev", b"", 1, "/dev: Is a directory; nothing was written"),
        ("missing", b"", 1, "missing: No such file or directory; nothing was written"),
    ],
)
def test_missing_password_is_refused(
    option: str, given: bytes, status: int, expected: str, setup: Setup
) -> None:
    words = (*NAMES, "--password-file", option)
    line = setup.refused("--yes", *words, status=status, given=given)
    assert expected in line


@pytest.fixture
def issue(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Return a function that issues a certificate for a name."""

    def issued(name: str) -> tuple[Path, Path]:
        directory = tmp_path_factory.mktemp("certificate")
        made = trustme.CA().issue_cert(name)
        made.cert_chain_pems[0].write_to_path(directory / "cert.pem")
        made.private_key_pem.write_to_path(directory / "key.pem")
        (directory / "key.pem").chmod(0o600)
        return directory / "cert.pem", directory / "key.pem"

    return issued


def test_certificate_that_exists_is_used_where_it_is(
    issue: Callable[[str], tuple[Path, Path]], setup: Setup
) -> None:
    certificate, key = issue("mx.example.org")
    said = setup("--yes", *NAMES, "--certificate", f"{certificate},{key}")
    assert "certificate: mx.example.org" in said
    assert tomli.loads(setup.config.read_text())["tls"] == {
        "certificate": str(certificate),
        "key": str(key),
    }
    assert not (setup.etc / "tls").exists()


def test_certificate_of_certbot_is_kept(
    issue: Callable[[str], tuple[Path, Path]], setup: Setup
) -> None:
    certificate, key = issue("mx.example.org")
    (setup.etc / "tls").mkdir(parents=True)
    certificate.rename(setup.etc / "tls" / "fullchain.pem")
    key.rename(setup.etc / "tls" / "key.pem")
    before = setup.files
    setup("--yes", *NAMES)
    assert before.items() <= setup.files.items()


def test_certificate_that_does_not_fit_is_refused(
    issue: Callable[[str], tuple[Path, Path]], setup: Setup
) -> None:
    (other, other_key), (right, right_key) = issue("mx.example.net"), issue("mx.example.org")
    for certificate, key, expected in (
        (other, other_key, "is for mx.example.net, not for mx.example.org; get one"),
        (right, other_key, "are not a pair of a PEM certificate and its key"),
        (right_key, right, "the certificate: swap the two"),
        (right.parent / "none.pem", right_key, "none.pem: No such file or directory"),
    ):
        choice = f"{certificate},{key}"
        line = setup.refused("--yes", *NAMES, "--certificate", choice, status=78)
        assert expected in line
    assert setup.files == {}


@pytest.mark.parametrize("option", ["--config", "--state-directory"])
@pytest.mark.parametrize("path", ["a\nb", "a\x7f", "\udcff", ""], ids=ascii)
def test_path_that_would_break_the_configuration_is_refused(
    option: str, path: str, setup: Setup
) -> None:
    said = setup("--yes", *NAMES, option, path, status=2)
    assert "expected a path without control characters" in said
    assert setup.files == {}


def test_variable_names_the_configuration(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINISMTP_CONFIG", str(tmp_path / "own.toml"))
    assert main(["setup", "--yes", "--dry-run", *NAMES]) == 0
    assert f"==> {tmp_path}/own.toml (new" in capsys.readouterr().out


def test_certificate_of_an_authority_needs_no_file(setup: Setup) -> None:
    pytest.importorskip("acme")
    said = setup("--yes", *NAMES, "--certificate", "acme")
    assert "listener http: *:80, HTTP" in said
    assert "mta-sts.example.org. IN CNAME mx.example.org." in said
    assert "The server gets its certificate when the names above are in the DNS" in said
    assert tomli.loads(setup.config.read_text())["tls"]["acme"]["names"] == [
        *("mx.example.org", "mta-sts.example.org"),
        *("autoconfig.example.org", "autodiscover.example.org"),
    ]
    assert not (setup.etc / "tls").exists()
    said = setup("--yes", "--add-domain", "example.net", "--user", "bob")
    assert "mta-sts.example.net" in tomli.loads(setup.config.read_text())["tls"]["acme"]["names"]
    text = setup.config.read_text()
    setup.config.write_text(
        re.sub(r"names = \[.*?\]", 'names = ["mx.example.org"]', text, flags=re.DOTALL)
    )
    said = setup("--yes", "--add-domain", "example.com", "--user", "bob")
    assert "Add mta-sts.example.com, autoconfig.example.com, autodiscover.example.com to" in said


def test_another_authority_gets_into_the_configuration(
    issue: Callable[[str], tuple[Path, Path]], setup: Setup
) -> None:
    pytest.importorskip("acme")
    ca, _ = issue("ca.example.org")
    directory = ("--acme-directory", "https://ca.example.org/dir")
    setup("--yes", *NAMES, *directory, "--acme-ca", str(ca))
    table = tomli.loads(setup.config.read_text())["tls"]["acme"]
    assert (table["directory"], table["directory_ca"]) == (directory[1], str(ca))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--acme-directory http://ca.example.org", "--acme-directory: expected"),
        ("--acme-ca ca.pem", "--acme-ca is for the host of an --acme-directory"),
        (
            "--acme-directory https://ca.example.org --certificate self-signed",
            "--acme-directory is for --certificate acme",
        ),
    ],
)
def test_authority_that_cannot_be_is_refused(words: str, expected: str, setup: Setup) -> None:
    assert expected in setup.refused("--yes", *NAMES, *words.split(), status=2)


@pytest.fixture
def dovecot(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the file of a Dovecot as its package left it, in a place that all users can read."""
    if os.geteuid() != 0:
        pytest.skip("only root configures Dovecot")
    # The account may not be able to read this Python.
    monkeypatch.setattr(host, "passed", lambda *_: True)
    monkeypatch.setattr(material, "_signing_key", one_key)
    monkeypatch.setattr(host, "ACCOUNT", "nobody")
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        base.chmod(0o755)
        monkeypatch.setattr(minismtp.cli.setup, "DEFAULT_FILE", base / "etc" / "minismtp.toml")
        for name, place in (("CONFIGURATION", "dovecot"), ("COPY", "share")):
            path = base / place / "dovecot.conf"
            path.parent.mkdir()
            path.write_text("# of the package\n")
            monkeypatch.setattr(minismtp.cli.setup.dovecot, name, path)
        yield base / "dovecot" / "dovecot.conf"


def test_dovecot_that_nobody_configured_offers_the_mail(
    dovecot: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = dovecot.parents[1]
    said = Setup(base, capsys, monkeypatch)("--yes", *NAMES)
    assert f"{dovecot} (replaces the one that is there, which is kept as {base}/share" in said
    assert "Dovecot offers the mail over IMAP, as alice@example.org at mx.example.org" in said
    text = dovecot.read_text()
    assert f"ssl_cert = <{base}/etc/tls/fullchain.pem\n" in text
    assert f"mail_location = maildir:{base}/var/mail/%d/%n\n" in text
    assert dovecot.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("reason", ["option", "changed", "elsewhere", "missing"])
def test_other_dovecot_is_left_alone(
    reason: str, dovecot: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason == "changed":
        dovecot.write_text("# mine\n")
    elif reason == "elsewhere":
        monkeypatch.setattr(minismtp.cli.setup, "DEFAULT_FILE", Path("/etc/minismtp/minismtp.toml"))
    elif reason == "missing":
        dovecot.unlink()
    before = dovecot.read_text() if dovecot.exists() else ""
    words = ["--no-dovecot"] if reason == "option" else []
    said = Setup(dovecot.parents[1], capsys, monkeypatch)("--yes", *NAMES, *words)
    assert "To read mail over IMAP: docs/administrator.md, chapter Reading mail." in said
    assert (dovecot.read_text() if dovecot.exists() else "") == before


def test_dovecot_is_left_alone_if_nothing_is_written(
    dovecot: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "passed", lambda *_: False)
    Setup(dovecot.parents[1], capsys, monkeypatch)("--yes", *NAMES, status=78)
    assert dovecot.read_text() == "# of the package\n"


def test_keys_of_a_second_domain_may_be_some_directories_deeper(setup: Setup) -> None:
    setup("--yes", *NAMES)
    text = setup.config.read_text()
    setup.config.write_text(text.replace("dkim/{domain}.", "dkim/{domain}/x/"))
    (setup.etc / "dkim" / "example.org").mkdir()
    for name in ("minismtp-rsa.pem", "minismtp-ed25519.pem"):
        (setup.etc / "dkim" / "example.org" / "x").mkdir(exist_ok=True)
        old = setup.etc / "dkim" / f"example.org.{name}"
        old.rename(setup.etc / "dkim" / "example.org" / "x" / name)
    here = setup.etc / "dkim" / "example.net" / "x"
    here.mkdir(parents=True)
    key = (setup.etc / "dkim" / "example.org" / "x" / "minismtp-ed25519.pem").read_bytes()
    (here / "minismtp-ed25519.pem").write_bytes(key)
    said = setup("--yes", "--add-domain", "example.net", "--user", "bob")
    assert f"{here}/minismtp-ed25519.pem (exists, and stays as it is)" in said
    assert (here / "minismtp-ed25519.pem").read_bytes() == key
    setup("--yes", "--add-domain", "example.com", "--user", "bob")
    assert (setup.etc / "dkim" / "example.com" / "x" / "minismtp-rsa.pem").exists()


@pytest.mark.parametrize(
    ("content", "status", "expected"),
    [
        (b"# caf\xe9\n", 78, "is not UTF-8"),
        (b"# " + b"x" * (1 << 20) + b"\n", 78, "is longer than 1048576 octets"),
        (b"x = [", 78, "line 1: invalid value"),
        (b"", 1, "has no plugin mailboxes; add one by hand"),
        (None, 1, "does not exist; without --add-domain, `minismtp setup` writes it"),
    ],
    ids=["not UTF-8", "long", "no TOML", "empty", "missing"],
)
def test_configuration_that_cannot_get_a_domain_is_kept(
    content: bytes | None, status: int, expected: str, setup: Setup
) -> None:
    setup.etc.mkdir()
    if content is not None:
        setup.config.write_bytes(content)
    line = setup.refused("--yes", "--add-domain", "b.example", "--user", "bob", status=status)
    assert line.startswith(f"minismtp: {setup.config}")
    assert expected in line


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_configuration_that_is_no_file_gets_no_domain(
    make: Callable[[Path], None], setup: Setup
) -> None:
    setup.etc.mkdir()
    make(setup.config)
    line = setup.refused("--yes", "--add-domain", "b.example", "--user", "bob", status=78)
    assert line.startswith(f"minismtp: {setup.config}: cannot be read: ")


def test_configuration_that_would_be_too_long_is_kept(setup: Setup) -> None:
    setup("--yes", *NAMES)
    text = setup.config.read_bytes()
    setup.config.write_bytes(text + b"#" * ((1 << 20) - len(text)))
    line = setup.refused("--yes", "--add-domain", "b.example", "--user", "bob", status=1)
    assert line.endswith("would be longer than 1048576 octets; nothing was written")


def test_example_need_not_be_utf_8(setup: Setup) -> None:
    setup.etc.mkdir()
    setup.config.write_bytes(EXAMPLE.read_bytes() + b"# caf\xe9\n")
    setup("--yes", *NAMES)
    assert setup.files["etc/minismtp.toml.example"].endswith(b"# caf\xe9\n")


def test_half_a_certificate_is_refused(setup: Setup) -> None:
    (setup.etc / "tls").mkdir(parents=True)
    (setup.etc / "tls" / "key.pem").touch()
    line = setup.refused("--yes", *NAMES, status=1)
    assert "key.pem exists without" in line


def test_key_that_the_server_cannot_read_is_refused(
    issue: Callable[[str], tuple[Path, Path]], setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root acts as others")
    monkeypatch.setattr(host, "ACCOUNT", "nobody")
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        certificate, key = (
            path.rename(Path(directory, path.name)) for path in issue("mx.example.org")
        )
        key.chmod(0o600)
        certificate.chmod(0o644)
        line = setup.refused("--yes", *NAMES, "--certificate", f"{certificate},{key}", status=78)
    assert f"{key}: the server's user nobody cannot read it; chgrp nobody" in line


def test_directory_that_cannot_be_made_is_named(setup: Setup) -> None:
    setup.etc.write_text("a file")
    line = setup.refused("--yes", *NAMES, status=1)
    assert line == f"minismtp: {setup.etc} is no directory; move it away, nothing was written"


def dangling(path: Path) -> None:
    path.symlink_to("/nowhere")


FILES: Final = ("minismtp.toml", "users", "passwords", "srs-secret", "tls/key.pem")
IN_THE_WAY: Final = [
    *((make, name) for make in (Path.mkdir, os.mkfifo, dangling) for name in FILES),
    *((make, name) for make in (os.mkfifo, dangling) for name in ("tls", "plugins", "../var")),
]


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["write", "dry"])
@pytest.mark.parametrize(("make", "name"), IN_THE_WAY)
def test_what_is_in_the_way_is_named(
    make: Callable[[Path], None], name: str, dry: tuple[str, ...], setup: Setup
) -> None:
    path = setup.etc / name
    setup.etc.mkdir()
    path.parent.mkdir(exist_ok=True)
    make(path)
    line = setup.refused("--yes", *NAMES, *dry, status=1)
    assert line.startswith(f"minismtp: {setup.base / 'var' if 'var' in name else path} is ")
    assert line.endswith(("move it away, nothing was written", "write --config /nowhere"))


@pytest.mark.parametrize("name", ["tls", "dkim"])
def test_file_in_the_place_of_a_directory_is_named(name: str, setup: Setup) -> None:
    setup.etc.mkdir()
    (setup.etc / name).touch()
    line = setup.refused("--yes", *NAMES, status=1)
    assert line.endswith(f"{name} is no directory; move it away, nothing was written")


def test_name_that_is_too_long_for_a_file_leaves_nothing(setup: Setup) -> None:
    domain = ".".join(["a" * 60] * 3 + ["b" * 48, "org"])  # one of the two keys has the room
    line = setup.refused("--yes", *NAMES, "--domain", domain, status=1)
    assert line.endswith("minismtp-ed25519.pem: File name too long; nothing was written")


def test_path_may_go_through_a_directory_that_is_made(setup: Setup) -> None:
    assert "configuration ok" in setup("--yes", *NAMES, "--config", f"{setup.base}/a/../b/c.toml")
    assert (setup.base / "b" / "c.toml").exists()


def test_refusal_of_the_inspection_leaves_no_state_directory(setup: Setup) -> None:
    setup.etc.mkdir()
    (setup.etc / "srs-secret").touch()
    line = setup.refused("--yes", *NAMES, status=78)
    assert line == "minismtp: nothing was written, because of the errors above"


def test_directory_of_another_user_is_named() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root becomes others")
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        command = [sys.executable, "-m", "minismtp", "setup", "--yes", *NAMES]
        become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        if subprocess.run(
            [*become, sys.executable, "-c", ""], cwd=directory, check=False
        ).returncode:
            pytest.skip("another user cannot run this Python")
        done = subprocess.run(
            [*become, *command, "--config", f"{directory}/minismtp.toml"],
            cwd=directory,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr == (
            f"minismtp: {directory}/.setup: Permission denied; nothing was written\n"
        )
        assert not any(Path(directory).iterdir())


def test_full_disk_leaves_nothing(setup: Setup) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk")
    setup.etc.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(setup.etc)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        line = setup.refused("--yes", *NAMES, status=1)
        assert "No space left on device; nothing was written" in line
        assert not any(setup.etc.iterdir())
    finally:
        subprocess.run(["umount", setup.etc], check=True)


def test_configuration_that_the_inspection_refuses_is_taken_back(setup: Setup) -> None:
    (setup.base / "var").write_text("a file in the place of the state directory")
    setup("--yes", *NAMES, status=1)
    assert set(setup.files) == {"var"}


def test_missing_package_is_named(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    line = setup.refused("--yes", *NAMES, status=1)
    assert "the Python package cryptography is missing" in line
    assert "dmarc" in line


def test_setup_that_was_killed_is_cleaned_up(setup: Setup) -> None:
    (setup.etc / ".setup").mkdir(parents=True)
    (setup.etc / ".setup" / "0").write_text("half")
    assert "An earlier setup was cut off" in setup("--yes", *NAMES)
    assert not (setup.etc / ".setup").exists()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Return a function that starts the command in a terminal."""
    started: list[Terminal] = []

    def start(*words: str) -> Terminal:
        place = [f"--config={tmp_path}/etc/minismtp.toml", f"--state-directory={tmp_path}/var"]
        started.append(Terminal(sys.executable, "-m", "minismtp", "setup", *place, *words))
        return started[-1]

    yield start
    for each in started:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(each.pid, signal.SIGKILL)


def test_questions_are_asked_again_until_the_answers_are_right(
    terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    asked = terminal()
    asked.type("domain of your mail addresses: ", "no domain\n")
    asked.type("domain of your mail addresses: ", "\udcff\n")
    asked.type("expected a domain such as example.org", "")
    asked.type("domain of your mail addresses: ", "example.org\n")
    asked.type("The name of this host", "mx.example.org\n")
    asked.type("The first user at example.org: ", "alice\n")
    asked.type("or the paths CERT,KEY [", "self-signed\n")
    asked.type("Password: ", "secret\n")
    asked.type("The same again: ", "secert\n")
    asked.type("Password: ", "secret\n")
    asked.type("The same again: ", "secret\n")
    asked.type("Write them? [Y/n]: ", "\n")
    assert asked.end() == 0, asked.screen
    assert "secret" not in asked.screen.replace("srs-secret", "")
    stored = (tmp_path / "etc" / "passwords").read_text().split(":")[1]
    assert verify_password("secret", stored)


@pytest.mark.parametrize(
    ("keys", "status", "said"),
    [
        ("\x03", 130, "\r\nminismtp: interrupted; nothing was written"),
        ("\x04", 1, "\r\nminismtp: the answers ended too early; nothing was written"),
        ("n\n", 1, "nothing was written"),
    ],
    ids=["ctrl-c", "ctrl-d", "no"],
)
def test_nothing_is_written_before_the_last_answer(
    keys: str, status: int, said: str, terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    asked = terminal(*NAMES, "--certificate", "self-signed", "--password-file", "/etc/hostname")
    asked.type("Write them? [Y/n]: ", keys)
    assert asked.end() == status
    assert said in asked.screen
    assert not any(tmp_path.iterdir())
