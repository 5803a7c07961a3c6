"""Client certificates: only a valid one is an identity, and none ends a session."""

from __future__ import annotations

import re
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage
from cryptography.x509.oid import NameOID, ObjectIdentifier
from snippets import MX, SUBMISSIONS

from minismtp.config.tables import TlsConfig
from minismtp.services import client_certificate
from minismtp.services.tls import server_context, tls_info

if TYPE_CHECKING:
    from conftest import Launch, Running, TlsFiles

NOW: Final = datetime.now(UTC)
DAY: Final = timedelta(days=1)
ASKING: Final = "client_certificates = true\n"
LISTENERS: Final = MX + ASKING + SUBMISSIONS + ASKING


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


@dataclass(frozen=True)
class Issued:
    """A certificate and its key; the client shows `chain` too."""

    certificate: x509.Certificate
    key: Any
    chain: tuple[x509.Certificate, ...] = ()

    def write(self, path: Path) -> None:
        parts = [each.public_bytes(Encoding.PEM) for each in (self.certificate, *self.chain)]
        form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.write_bytes(self.key.private_bytes(*form) + b"".join(parts))


def issue(
    by: Issued | None,
    *,
    key: Any = None,  # noqa: ANN401 - keys of several kinds
    subject: str = "alice",
    mail: str = "alice@example.org",
    begins: datetime = NOW - 30 * DAY,
    ends: datetime = NOW + 30 * DAY,
    usages: tuple[ObjectIdentifier, ...] = (Usage.CLIENT_AUTH,),
    authority: int | None = None,
    more: tuple[tuple[x509.ExtensionType, bool], ...] = (),
) -> Issued:
    """Issue a certificate; `authority` is how many others may be below that of an authority."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    signer = by.key if by else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(by.certificate.subject if by else name(subject))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
    )
    constraints = x509.BasicConstraints(ca=authority is not None, path_length=authority)
    builder = builder.add_extension(constraints, critical=True)
    if authority is None:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.RFC822Name(mail)]), critical=False
        )
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    for extension, critical in more:
        builder = builder.add_extension(extension, critical=critical)
    digest = None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return Issued(builder.sign(signer, digest), key)


WEAK: Final = rsa.generate_private_key(65537, 1024)  # noqa: S505 - that it is
STRONG: Final = rsa.generate_private_key(65537, 2048)
AUTHORITY: Final = issue(None, subject="authority", authority=3)
STRANGER: Final = issue(None, subject="stranger", authority=3)
IMPOSTOR: Final = issue(None, subject="authority", authority=3)


def below(parent: Issued, **options: Any) -> Issued:  # noqa: ANN401 - as `issue` has them
    """Issue by an authority below another, both shown."""
    middle = issue(parent, subject="middle", authority=0, **options)
    issued = issue(middle)
    return replace(issued, chain=(middle.certificate,))


def without_chain() -> Issued:
    return replace(below(AUTHORITY), chain=())


def too_deep() -> Issued:
    first = issue(AUTHORITY, subject="first", authority=0)
    second = issue(first, subject="second", authority=0)
    return replace(issue(second), chain=(second.certificate, first.certificate))


def outside_of_constraints() -> Issued:
    permitted = x509.NameConstraints([x509.RFC822Name("example.net")], None)
    return below(AUTHORITY, more=((permitted, True),))


def with_critical_extension() -> Issued:
    unknown = x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4.5"), b"\x05\x00")
    return issue(AUTHORITY, more=((unknown, True),))


def with_weak_digest() -> Issued:
    """Have openssl sign, which still knows SHA-1."""
    issued = issue(None)  # it signs again only what is self-signed
    with tempfile.TemporaryDirectory() as name:
        (authority := Path(name, "ca.pem")).touch()
        AUTHORITY.write(authority)
        files = ("-CA", authority, "-CAkey", authority)
        signed = subprocess.run(
            ["timeout", "30", "openssl", "x509", *files, "-sha1", "-days", "9", "-set_serial", "9"],
            input=issued.certificate.public_bytes(Encoding.PEM),
            capture_output=True,
            check=True,
        )
    return replace(issued, certificate=x509.load_pem_x509_certificate(signed.stdout))


def not_for_signatures() -> Issued:
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=True,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    return issue(AUTHORITY, more=((usage, True),))


#: Valid certificates, and their owners.
GOOD: Final[dict[str, tuple[Callable[[], Issued], str]]] = {
    "valid": (lambda: issue(AUTHORITY), "alice@example.org"),
    "without usages": (lambda: issue(AUTHORITY, usages=()), "alice@example.org"),
    "for clients and servers": (
        lambda: issue(AUTHORITY, usages=(Usage.CLIENT_AUTH, Usage.SERVER_AUTH)),
        "alice@example.org",
    ),
    "by a chain": (lambda: below(AUTHORITY), "alice@example.org"),
    "rsa": (
        lambda: issue(AUTHORITY, key=STRONG),
        "alice@example.org",
    ),
}

#: Certificates that are not an identity.
BAD: Final[dict[str, Callable[[], Issued]]] = {
    "unknown authority": lambda: issue(STRANGER),
    "unknown authority, shown": lambda: replace(issue(STRANGER), chain=(STRANGER.certificate,)),
    "unknown authority, chain": lambda: below(STRANGER),
    "authority of the same name": lambda: issue(IMPOSTOR),
    "the same name, shown": lambda: replace(issue(IMPOSTOR), chain=(IMPOSTOR.certificate,)),
    "self-signed": lambda: issue(None),
    "expired": lambda: issue(AUTHORITY, ends=NOW - DAY),
    "not yet valid": lambda: issue(AUTHORITY, begins=NOW + DAY),
    "expired and unknown": lambda: issue(STRANGER, ends=NOW - DAY),
    "for servers": lambda: issue(AUTHORITY, usages=(Usage.SERVER_AUTH,)),
    "for code": lambda: issue(AUTHORITY, usages=(Usage.CODE_SIGNING,)),
    "for mail": lambda: issue(AUTHORITY, usages=(Usage.EMAIL_PROTECTION,)),
    "not for signatures": not_for_signatures,
    "no chain": without_chain,
    "chain of an expired authority": lambda: below(AUTHORITY, ends=NOW - DAY),
    "chain too deep": too_deep,
    "by no authority": lambda: issue(issue(AUTHORITY, subject="bob")),
    "outside of constraints": outside_of_constraints,
    "critical extension": with_critical_extension,
    "weak key": lambda: issue(AUTHORITY, key=WEAK),
    "weak digest": with_weak_digest,
    "without a name": lambda: issue(STRANGER, subject=""),
    "ed25519": lambda: issue(STRANGER, key=ed25519.Ed25519PrivateKey.generate()),
    "p-521": lambda: issue(STRANGER, key=ec.generate_private_key(ec.SECP521R1())),
}


@pytest.fixture(scope="module")
def tables(tls_files: TlsFiles, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    path.write_bytes(AUTHORITY.certificate.public_bytes(Encoding.PEM))
    return f'{tls_files.table}client_ca = "{path}"\n[log]\nrefusals = 10000\n'


@pytest.fixture(scope="module")
def asking(launch: Launch, tables: str) -> Iterator[Running]:
    """Run a server that asks for certificates."""
    with launch(tables, listeners=LISTENERS) as server:
        yield server


def say_by_openssl(server: Running, listener: str, *options: str | Path) -> str:
    """Let openssl's client send EHLO and QUIT inside TLS, and return the replies."""
    starttls = ("-starttls", "smtp") if listener == "smtp" else ()
    address = f"127.0.0.1:{server.port(listener)}"
    done = subprocess.run(
        [
            *("timeout", "30", "openssl", "s_client", "-quiet", "-crlf", "-ign_eof"),
            *("-connect", address, *starttls, *options),
        ],
        input="EHLO client.example\nNOOP\nQUIT\n",
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


VERSIONS: Final = ("-tls1_2", "-tls1_3")


@pytest.mark.parametrize("listener", ["smtp", "submissions"])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", [*GOOD, *BAD])
def test_certificate_breaks_no_session_and_is_an_identity_only_where_it_is_valid(
    asking: Running, tmp_path: Path, kind: str, version: str, listener: str
) -> None:
    issued = GOOD[kind][0]() if kind in GOOD else BAD[kind]()
    issued.write(path := tmp_path / "client.pem")
    before, over = len(told(asking)), len(sessions(asking))
    options = ("-cert", path, "-key", path, "-cert_chain", path, "-cipher", "DEFAULT:@SECLEVEL=0")
    heard = say_by_openssl(asking, listener, version, *options)
    assert "250 2.0.0 ok" in heard
    assert heard.splitlines()[-1].startswith("221 2.0.0 ")
    assert ("EXTERNAL" in heard) is (kind in GOOD)
    asking.wait_for_log(r" session closed .*", count=over + 1)
    if kind in BAD:
        asking.wait_for_log(r" client certificate not accepted .*", count=before + 1)
    assert len(told(asking)) == before + (kind in BAD)


def told(server: Running) -> list[str]:
    return re.findall(r" client certificate not accepted .*", server.log)


def sessions(server: Running) -> list[str]:
    return re.findall(r" session closed .*", server.log)


@pytest.mark.parametrize("version", VERSIONS)
def test_client_without_a_certificate_is_served(asking: Running, version: str) -> None:
    heard = say_by_openssl(asking, "submissions", version)
    assert heard.splitlines()[-1].startswith("221 2.0.0 ")
    assert "EXTERNAL" not in heard


class Ends:
    """Both ends of TLS in memory; a client may show a certificate, and resume a session."""

    def __init__(self, directory: Path, tls_files: TlsFiles) -> None:
        (ca := directory / "ca.pem").write_bytes(AUTHORITY.certificate.public_bytes(Encoding.PEM))
        tls = TlsConfig(certificate=tls_files.certificate, key=tls_files.key, client_ca=ca)
        self.context = server_context(tls, ask_client=True)
        self._trust = tls_files.authority
        self._directory = directory

    def client(self, issued: Issued | None, version: ssl.TLSVersion) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self._trust)
        context.maximum_version = version
        if issued is not None:
            issued.write(path := self._directory / "client.pem")
            context.load_cert_chain(path)
        return context

    def identity(
        self, client: ssl.SSLContext, session: ssl.SSLSession | None = None
    ) -> tuple[str, ssl.SSLSession | None]:
        ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
        near = self.context.wrap_bio(ours, theirs, server_side=True)
        far = client.wrap_bio(theirs, ours, server_hostname="mx.example.org", session=session)
        client_certificate.expect()
        for end in (far, near, far, near):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
        near.write(b"x")
        far.read(1)  # and the tickets that there may be
        assert not far.session_reused
        return tls_info(near).client_identity, far.session  # type: ignore[arg-type]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("kind", GOOD)
def test_identity_is_the_mail_address_of_the_certificate(
    tmp_path: Path, tls_files: TlsFiles, kind: str, version: ssl.TLSVersion
) -> None:
    make, whose = GOOD[kind]
    ends = Ends(tmp_path, tls_files)
    assert ends.identity(ends.client(make(), version))[0] == whose
    assert client_certificate.problem() == ""
    assert ends.identity(ends.client(None, version))[0] == ""
    assert client_certificate.problem() == ""


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_resumed_session_brings_no_identity_that_was_not_verified(
    tmp_path: Path, tls_files: TlsFiles, version: ssl.TLSVersion
) -> None:
    ends = Ends(tmp_path, tls_files)
    client = ends.client(issue(STRANGER), version)
    identity, session = ends.identity(client)
    for _ in range(3):
        assert identity == ""
        assert client_certificate.problem() != ""
        identity, session = ends.identity(client, session)


def test_where_openssl_is_hidden_a_bad_certificate_ends_the_handshake(
    tmp_path: Path, tls_files: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_certificate, "_library", lambda: None)
    ends = Ends(tmp_path, tls_files)
    version = ssl.TLSVersion.TLSv1_2
    assert ends.identity(ends.client(issue(AUTHORITY), version))[0] == "alice@example.org"
    assert ends.identity(ends.client(None, version))[0] == ""
    with pytest.raises(ssl.SSLCertVerificationError):
        ends.identity(ends.client(issue(STRANGER), version))
