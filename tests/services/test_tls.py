"""Certificates, and the parameters of a handshake."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from minismtp.config.mistakes import ConfigError
from minismtp.config.tables import SniCertificate, TlsConfig
from minismtp.services.tls import Certificates, first_end, not_after, server_context, tls_info

if TYPE_CHECKING:
    from conftest import Configure, Start

AUTHORITY = trustme.CA()
STARTTLS = """
[[listeners]]
name = "smtp"
address = "127.0.0.1:0"
"""


class Pair:
    """A certificate and its key in two files."""

    def __init__(self, directory: Path, name: str, *, until: datetime | None = None) -> None:
        self.certificate = directory / f"{name}.pem"
        self.key = directory / f"{name}.key"
        self.write(name, until=until)

    def write(self, name: str, *, until: datetime | None = None) -> None:
        issued = AUTHORITY.issue_cert(name, not_after=until)
        issued.private_key_pem.write_to_path(self.key)
        issued.cert_chain_pems[0].write_to_path(self.certificate)

    @property
    def config(self) -> TlsConfig:
        return TlsConfig(certificate=self.certificate, key=self.key)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path, "mx.example.org")


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context


def handshake(
    server: ssl.SSLContext, client: ssl.SSLContext, name: str = "mx.example.org"
) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """Connect both ends. Raise what the client's end raises."""
    ours, theirs = socket.socketpair()
    wrapped = server.wrap_socket(ours, server_side=True, do_handshake_on_connect=False)

    def serve() -> None:
        try:
            wrapped.do_handshake()
        except (ssl.SSLError, OSError):
            wrapped.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        return wrapped, client.wrap_socket(theirs, server_hostname=name)
    except BaseException:
        theirs.close()
        wrapped.close()
        raise
    finally:
        thread.join()


def presented(context: ssl.SSLContext, name: str = "mx.example.org") -> str:
    """Return the name in the certificate that a client sees who asks for `name`."""
    client = client_context()
    client.check_hostname = False
    server, connection = handshake(context, client, name)
    with server, connection:
        return str(connection.getpeercert()["subjectAltName"][0][1])  # type: ignore[index]


def test_client_that_trusts_the_authority_completes_the_handshake(pair: Pair) -> None:
    server, client = handshake(server_context(pair.config), client_context())
    with server, client:
        info = tls_info(server)
        assert (info.version, info.cipher) == ("TLSv1.3", client.cipher()[0])  # type: ignore[index]


@pytest.mark.parametrize(
    ("minimum", "offered", "accepted"),
    [("1.2", "TLSv1_2", True), ("1.3", "TLSv1_2", False), ("1.3", "TLSv1_3", True)],
)
def test_oldest_version_is_the_configured_one(
    pair: Pair, minimum: str, offered: str, *, accepted: bool
) -> None:
    tls = TlsConfig(certificate=pair.certificate, key=pair.key, minimum_version=minimum)  # type: ignore[arg-type]
    client = client_context()
    client.maximum_version = ssl.TLSVersion[offered]
    if accepted:
        server, connection = handshake(server_context(tls), client)
        server.close()
        connection.close()
    else:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            handshake(server_context(tls), client)


def test_session_can_be_resumed_once(pair: Pair) -> None:
    assert server_context(pair.config).num_tickets == 1


def test_version_1_1_is_never_spoken(pair: Pair) -> None:
    assert server_context(pair.config).minimum_version >= ssl.TLSVersion.TLSv1_2


def break_certificate(pair: Pair) -> None:
    pair.certificate.unlink()


def break_key(pair: Pair) -> None:
    pair.key.unlink()


def take_other_key(pair: Pair) -> None:
    AUTHORITY.issue_cert("x.example").private_key_pem.write_to_path(pair.key)


def write_rubbish(pair: Pair) -> None:
    pair.certificate.write_text("rubbish")


def encrypt_key(pair: Pair) -> None:
    key = load_pem_private_key(pair.key.read_bytes(), None)
    pair.key.write_bytes(
        key.private_bytes(
            Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"secret")
        )
    )


def write_der(pair: Pair) -> None:
    pem = pair.certificate.read_text().partition("-----END")[0] + "-----END CERTIFICATE-----\n"
    pair.certificate.write_bytes(ssl.PEM_cert_to_DER_cert(pem))


def write_der_key(pair: Pair) -> None:
    key = load_pem_private_key(pair.key.read_bytes(), None)
    pair.key.write_bytes(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))


def empty_key(pair: Pair) -> None:
    pair.key.write_bytes(b"")


def make_pipe(pair: Pair) -> None:
    pair.key.unlink()
    os.mkfifo(pair.key)


def swap(pair: Pair) -> None:
    content = pair.certificate.read_bytes()
    pair.certificate.write_bytes(pair.key.read_bytes())
    pair.key.write_bytes(content)


def take_short_key(pair: Pair) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - to be refused
    name = x509.Name([])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
    made = made.public_key(key.public_key()).not_valid_before(now)
    signed = made.not_valid_after(now + timedelta(days=1)).sign(key, hashes.SHA256())
    pair.certificate.write_bytes(signed.public_bytes(Encoding.PEM))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pair.key.write_bytes(pem)


def mark_as_trusted(pair: Pair) -> None:
    """OpenSSL reads such a file, but nobody else does."""
    text = pair.certificate.read_text()
    pair.certificate.write_text(text.replace(" CERTIFICATE-", " X509 CERTIFICATE-"))


NO_PAIR: Final = "tls.certificate: {certificate} and {key} are not a pair of a PEM certificate"


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (break_certificate, "tls.certificate: {certificate}: No such file or directory"),
        (break_key, "tls.key: {key}: No such file or directory"),
        (take_other_key, NO_PAIR + " and its key: the key is that of another certificate;"),
        (write_rubbish, NO_PAIR + " and its key: {certificate} contains no PEM certificate"),
        (encrypt_key, NO_PAIR + " and its key: the key has a passphrase; expected one without"),
        (write_der, NO_PAIR + " and its key: {certificate} contains no PEM certificate; if it is"),
        (write_der_key, NO_PAIR + " and its key: {key} contains no PEM private key; if it is DER"),
        (empty_key, NO_PAIR + " and its key: {key} contains no PEM private key"),
        (take_short_key, NO_PAIR + " and its key: the key is too short for TLS; get a certificate"),
        (make_pipe, "tls.key: {key}: not a regular file"),
        (swap, "tls.certificate: {certificate} has the key, and {key} the certificate: swap"),
        (mark_as_trusted, "tls.certificate: {certificate} cannot be used: {certificate} contains"),
    ],
)
def test_bad_pair_is_one_line_with_file_and_key(
    pair: Pair, spoil: Callable[[Pair], None], expected: str
) -> None:
    spoil(pair)
    with pytest.raises(ConfigError) as caught:
        server_context(pair.config, file="m.toml")
    message = str(caught.value)
    assert message.startswith(
        "m.toml: " + expected.format(certificate=pair.certificate, key=pair.key)
    )
    assert "\n" not in message


def test_client_that_asks_for_another_name_sees_its_certificate(tmp_path: Path) -> None:
    first, second = Pair(tmp_path, "mx.example.org"), Pair(tmp_path, "mail.example.com")
    sni = SniCertificate(name="mail.example.com", certificate=second.certificate, key=second.key)
    tls = TlsConfig(certificate=first.certificate, key=first.key, sni=[sni])
    context = server_context(tls)
    assert presented(context, "mail.example.com") == "mail.example.com"
    assert presented(context, "MAIL.example.com") == "mail.example.com"
    assert presented(context, "mx.example.org") == "mx.example.org"
    assert presented(context, "other.example") == "mx.example.org"


def test_wildcard_stands_for_one_label(tmp_path: Path) -> None:
    first, second = Pair(tmp_path, "mx.example.org"), Pair(tmp_path, "*.example.com")
    sni = SniCertificate(name="*.example.com", certificate=second.certificate, key=second.key)
    context = server_context(TlsConfig(certificate=first.certificate, key=first.key, sni=[sni]))
    assert presented(context, "a.example.com") == "*.example.com"
    assert presented(context, "a.b.example.com") == "mx.example.org"
    assert presented(context, "example.com") == "mx.example.org"


@pytest.mark.parametrize("year", [2030, 2049, 2050, 2999])
def test_end_of_a_certificate_is_read_in_both_forms_of_time(tmp_path: Path, year: int) -> None:
    # RFC 5280 section 4.1.2.5: UTCTime through 2049, GeneralizedTime from 2050 on.
    until = datetime(year, 6, 1, 12, 30, 15, tzinfo=UTC)
    pair = Pair(tmp_path, "mx.example.org", until=until)
    assert not_after(pair.certificate) == until.timestamp()


def test_end_of_a_chain_is_that_of_its_first_certificate(pair: Pair) -> None:
    own = not_after(pair.certificate)
    until = datetime(2030, 1, 1, tzinfo=UTC)
    other = AUTHORITY.issue_cert("x.example", not_after=until)
    other.cert_chain_pems[0].write_to_path(pair.certificate, append=True)
    assert not_after(pair.certificate) == own


def test_first_end_is_that_of_the_certificate_for_any_name_that_ends_first(tmp_path: Path) -> None:
    main = Pair(tmp_path, "mx.example.org", until=datetime(2031, 1, 1, tzinfo=UTC))
    until = datetime(2030, 1, 1, tzinfo=UTC)
    (tmp_path / "other").mkdir()
    other = Pair(tmp_path / "other", "mx.example.net", until=until)
    named = SniCertificate(name="mx.example.net", certificate=other.certificate, key=other.key)
    assert first_end(replace(main.config, sni=[named])) == until.timestamp()


def test_file_without_a_certificate_has_no_end(pair: Pair) -> None:
    with pytest.raises(ValueError, match="contains no PEM certificate"):
        not_after(pair.key)


class Reloading:
    """Certificates with a clock that the test moves, and their reports."""

    def __init__(self, tls: TlsConfig) -> None:
        self.now = 0.0
        self.reports: list[str] = []
        self.certificates = Certificates(
            tls, ask_client=False, file="", clock=lambda: self.now, report=self.reports.append
        )

    def later(self) -> ssl.SSLContext:
        self.now += 2
        return self.certificates.current()


def test_unchanged_certificate_is_not_read_again(pair: Pair) -> None:
    reloading = Reloading(pair.config)
    assert reloading.later() is reloading.later()
    assert reloading.reports == []


def test_renewed_certificate_is_taken_on(pair: Pair) -> None:
    reloading = Reloading(pair.config)
    pair.write("renewed.example.org")
    assert presented(reloading.later(), "renewed.example.org") == "renewed.example.org"
    assert reloading.reports == [""]


def test_certificate_whose_times_cannot_be_read_leaves_the_old_one_in_use(pair: Pair) -> None:
    """The metric of its end is set for each that is loaded."""
    reloading = Reloading(pair.config)
    mark_as_trusted(pair)
    assert presented(reloading.later()) == "mx.example.org"
    assert "contains no PEM certificate" in reloading.reports[0]


def test_broken_certificate_leaves_the_old_one_in_use(pair: Pair) -> None:
    reloading = Reloading(pair.config)
    pair.certificate.write_text("rubbish")
    assert presented(reloading.later()) == "mx.example.org"
    assert len(reloading.reports) == 1
    assert "are not a pair" in reloading.reports[0]


def test_certificate_written_before_its_key_is_taken_on_with_it(pair: Pair) -> None:
    reloading = Reloading(pair.config)
    issued = AUTHORITY.issue_cert("renewed.example.org")
    issued.cert_chain_pems[0].write_to_path(pair.certificate)
    assert presented(reloading.later()) == "mx.example.org"
    issued.private_key_pem.write_to_path(pair.key)
    assert presented(reloading.later()) == "renewed.example.org"


def test_certificate_renamed_into_place_with_an_old_date_is_taken_on(
    pair: Pair, tmp_path: Path
) -> None:
    reloading = Reloading(pair.config)
    newer = Pair(tmp_path, "renewed.example.org")
    for new, old in ((newer.certificate, pair.certificate), (newer.key, pair.key)):
        os.utime(new, (0, 0))
        new.rename(old)
    assert presented(reloading.later()) == "renewed.example.org"


def test_running_server_takes_on_a_renewed_certificate(
    configure: Configure, start: Start, pair: Pair
) -> None:
    table = f'[tls]\ncertificate = "{pair.certificate}"\nkey = "{pair.key}"\n'
    server = start(configure(table, listeners=STARTTLS))
    until = datetime(2030, 1, 1, tzinfo=UTC)
    pair.write("mx.example.org", until=until)

    def presents_renewed() -> bool:
        with server.connect() as client:
            client.greet()
            client.command("STARTTLS")
            client.secure(client_context())
            assert isinstance(client.socket, ssl.SSLSocket)
            certificate = client.socket.getpeercert()
            return certificate is not None and "2030" in str(certificate["notAfter"])

    server.wait_until(presents_renewed)
    end = server.metric("tls_certificate_not_after_timestamp_seconds", listener="smtp")
    assert end == until.timestamp()
