"""The secrets of a new host: keys, the certificate, passwords and their hashes."""

from __future__ import annotations

import importlib.util
import secrets
from typing import Final

from minismtp.cli.common import CommandError
from minismtp.cli.passwd import password_line
from minismtp.cli.setup.plan import Made, Plan
from minismtp.services.self_signed import as_pem, self_signed
from minismtp.values.installation import how_to_install

_NEEDED: Final = ("cryptography", "publicsuffixlist")
_EXTRAS: Final = ("argon2", "dmarc")
_SIGNS: Final = "abcdefghjkmnpqrstuvwxyz23456789"  # each looks unlike all others
_GROUPS: Final = 5  # of four signs: 99 bits
_RSA_BITS: Final = 2048  # RFC 8301 section 3.2; a longer one exceeds what some DNS servers take


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
        made[Made.TLS_KEY], made[Made.CERTIFICATE] = self_signed([hostname], subject=hostname)
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
        return as_pem(rsa.generate_private_key(public_exponent=65537, key_size=_RSA_BITS))
    return as_pem(ed25519.Ed25519PrivateKey.generate())
