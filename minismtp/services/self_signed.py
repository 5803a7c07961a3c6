"""Certificates that a server signs itself: until one of an authority is there, and as proofs.

The library is an extra and takes long to import, so it is imported by the functions.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import (
        CertificateIssuerPrivateKeyTypes,
        PrivateKeyTypes,
    )

RSA_SIZE: Final = 2048  # bits
_DAYS: Final = 365
_LONGEST_NAME: Final = 64  # characters of a common name, RFC 5280 appendix A.1


def self_signed(
    names: Sequence[str],
    kind: str = "ecdsa",
    *,
    subject: str = "minismtp, self-signed",
    proof: tuple[str, bytes] | None = None,
) -> tuple[bytes, bytes]:
    """Return a key and a certificate for names that it signs itself, both PEM.

    The `kind` of the key is "ecdsa" or "rsa". `subject` is shown to people; clients compare the
    names. With a `proof`, the certificate is for a check of its name (RFC 8737): that is the number
    and the value of a critical extension.
    """
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: PLC0415

    key = new_key(kind)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject[:_LONGEST_NAME])])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))  # for clocks that are behind
        .not_valid_after(now + dt.timedelta(days=_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), False)
    )
    if proof is not None:
        number, value = x509.ObjectIdentifier(proof[0]), proof[1]
        builder = builder.add_extension(x509.UnrecognizedExtension(number, value), True)
    else:
        server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        builder = builder.add_extension(x509.BasicConstraints(False, None), True)
        builder = builder.add_extension(server, False)
    made = builder.sign(key, hashes.SHA256())
    return as_pem(key), made.public_bytes(serialization.Encoding.PEM)


def new_key(kind: str) -> CertificateIssuerPrivateKeyTypes:
    """Return a new key for a certificate: "rsa", or "ecdsa" with the curve P-256."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa  # noqa: PLC0415

    if kind == "rsa":
        return rsa.generate_private_key(65537, RSA_SIZE)
    return ec.generate_private_key(ec.SECP256R1())


def as_pem(key: PrivateKeyTypes) -> bytes:
    """Return a private key as PEM, without a password."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
