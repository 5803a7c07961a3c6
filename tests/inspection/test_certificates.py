"""A certificate without its intermediate authority, in a chain as public authorities make it."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID
from snippets import MAILBOXES, SUBMISSION

from minismtp.config import Config
from minismtp.inspection.certificates import check_certificates

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HOST: Final = "mx.example.org"
NOW: Final = datetime.now(UTC)


class Issued(NamedTuple):
    """A certificate, and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        """The certificate as a file has it."""
        return self.certificate.public_bytes(Encoding.PEM)


def issued(name: str, issuer: Issued | None = None, *, authority: bool = True) -> Issued:
    """Return a certificate that tells where to get its issuer's, as those of public authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=90))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if not authority:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
    if issuer:
        where = x509.UniformResourceIdentifier("http://ca.example/issuer.der")
        access = x509.AccessDescription(AuthorityInformationAccessOID.CA_ISSUERS, where)
        builder = builder.add_extension(x509.AuthorityInformationAccess([access]), False)
    signer = issuer.key if issuer else key
    return Issued(builder.sign(signer, hashes.SHA256()), key)


ROOT_CA: Final = issued("A root")
INTERMEDIATE: Final = issued("An intermediate", ROOT_CA)
LEAF: Final = issued(HOST, INTERMEDIATE, authority=False)


@pytest.mark.parametrize(
    ("parts", "complete"),
    [([LEAF], False), ([LEAF, INTERMEDIATE], True), ([LEAF, INTERMEDIATE, ROOT_CA], True)],
    ids=["alone", "with the intermediate", "with the root too"],
)
def test_certificate_without_its_intermediate_lacks_its_chain(
    parts: list[Issued], complete: bool, tmp_path: Path, require_program: Callable[[str], str]
) -> None:
    """What is said agrees with what a client finds who knows the root only."""
    chain, root = tmp_path / "chain.pem", tmp_path / "root.pem"
    chain.write_bytes(b"".join(part.pem for part in parts))
    root.write_bytes(ROOT_CA.pem)
    key = LEAF.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "key.pem").write_bytes(key)
    tables = f'hostname = "{HOST}"\n[tls]\ncertificate = "chain.pem"\nkey = "key.pem"\n'
    text = tables + SUBMISSION.replace("127.0.0.1:0", "0.0.0.0:0") + MAILBOXES
    found = [str(each) for each in check_certificates(Config.parse(text, tmp_path / "m.toml"))]
    advice = "append the certificates of its issuers (certbot: use fullchain.pem)"
    wanted = f"tls.certificate, line 3: {chain} lacks its chain: {advice}"
    assert [wanted in each for each in found] == ([] if complete else [True])
    openssl = require_program("openssl")
    verified = subprocess.run(
        [openssl, "verify", "-CAfile", root, "-untrusted", chain, chain],
        capture_output=True,
        check=False,
    )
    assert (verified.returncode == 0) == complete
