"""The secrets of a new host: keys, the certificate, passwords and their hashes."""

from __future__ import annotations

import datetime as dt
import importlib.util
import secrets
from typing import TYPE_CHECKING, Final

from minismtp.cli.common import CommandError
from minismtp.cli.passwd import password_line
from minismtp.cli.setup.plan import Made, Plan
from minismtp.values.installation import how_to_install

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

_NEEDED: Final = ("cryptography", "publicsuffixlist")
_EXTRAS: Final = ("argon2", "dmarc")
_SIGNS: Final = "abcdefghjkmnpqrstuvwxyz23456789"  # each looks unlike all others
_GROUPS: Final = 5  # of four signs: 99 bits
_RSA_BITS: Final = 2048  # RFC 8301 section 3.2; a longer one exceeds what some DNS servers take
_VALID: Final = dt.timedelta(days=365)
_CLOCKS: Final = dt.timedelta(hours=1)  # that are slow


def has_acme() -> bool:
    """Return whether the package is there that gets certificates."""
    return importlib.util.find_spec("acme") is not None


def check_packages(*, acme: bool) -> None:
    """Raise CommandError if a package is missing that the configuration needs."""
    extras = ("acme", *_EXTRAS) if acme else _EXTRAS
    for package in (*_NEEDED, *["acme"] * acme):
        if importlib.util.find_spec(package) is None:
            text = f"the Python package {package} is missing; {how_to_install(*extras)}"
            raise CommandError(text)


def new_password() -> str:
    """Return a password that people can type."""
    groups = ("".join(secrets.choice(_SIGNS) for _ in range(4)) for _ in range(_GROUPS))
    return "-".join(groups)


def contents(plan: Plan, hostname: str, address: str, password: str) -> list[bytes]:
    """Return the content of each file of a plan."""
    kinds = {file.content for file in plan.files}
    made: dict[str | Made, bytes] = {}
    for kind in kinds & {Made.RSA_KEY, Made.ED25519_KEY}:
        made[kind] = _signing_key(kind)
    if Made.TLS_KEY in kinds:
        made[Made.CERTIFICATE], made[Made.TLS_KEY] = _self_signed(hostname)
    if Made.RANDOM in kinds:
        made[Made.RANDOM] = f"{secrets.token_hex(16)}\n".encode()
    for file in plan.files:
        if file.content is Made.LOGIN:
            line = password_line(address, password, _scheme())
            made[Made.LOGIN] = _with_line(file.before or "", line)
        elif isinstance(file.content, str):
            made[file.content] = file.content.encode("utf-8", "surrogateescape")
    return [made[file.content] for file in plan.files]


def _with_line(before: str, line: str) -> bytes:
    parted = before if before.endswith("\n") or not before else f"{before}\n"
    return f"{parted}{line}\n".encode("utf-8", "surrogateescape")


def _scheme() -> str:
    """Return argon2id, which Dovecot reads too, if its package is installed."""
    return "argon2id" if importlib.util.find_spec("argon2") else "scrypt"


def _signing_key(kind: str | Made) -> bytes:
    from cryptography.hazmat.primitives.asymmetric import ed25519, rsa  # noqa: PLC0415

    if kind is Made.RSA_KEY:
        return _pem(rsa.generate_private_key(public_exponent=65537, key_size=_RSA_BITS))
    return _pem(ed25519.Ed25519PrivateKey.generate())


def _self_signed(hostname: str) -> tuple[bytes, bytes]:
    """Return a certificate and its key, as PEM."""
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    # RFC 5280 appendix A.1: at most 64 characters; the name that counts is below.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hostname[:64])])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS)
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(hostname)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), _pem(key)


def _pem(key: PrivateKeyTypes) -> bytes:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
