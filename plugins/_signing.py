"""Helpers for DKIM signatures and ARC seals: the keys, and the fields to sign."""

import hashlib
from base64 import b64encode
from collections.abc import Iterable, Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from minismtp import Message

from ._canonical import body_hash, relaxed_field, signed_fields

PrivateKey = rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

SHORT = 2048  # bits of RSA keys, RFC 8301 section 3.2
_SHORTEST = 1024
_LINE = 66  # characters of names in a line
# Signed once more than they occur, so that another one cannot be added (RFC 6376 section 8.15).
_SEALED = (
    *("From", "Reply-To", "To", "Cc", "Subject", "Date", "Message-ID", "In-Reply-To", "References"),
    *("MIME-Version", "Content-Type", "Content-Transfer-Encoding"),
)
# Signed if they occur; mailing lists may add theirs (RFC 6376 section 5.4.1, RFC 8058).
_SIGNED = (
    *("Sender", "List-Id", "List-Help", "List-Unsubscribe", "List-Unsubscribe-Post", "List-Post"),
    *("List-Owner", "List-Archive", "Auto-Submitted"),
)


def load_key(option: str, path: Path) -> PrivateKey:
    """Read a private key. Raise ValueError for the `option` that names the file."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:  # TypeError: it has a pass phrase
        raise ValueError(f"{option}: {path}: no private key in PEM: {error}") from error
    except OSError as error:
        raise ValueError(f"{option}: {path}: {error.strerror}") from error
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < _SHORTEST:
            raise ValueError(f"{option}: {path}: {key.key_size} bits; receivers want {SHORT}")
    elif not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ValueError(f"{option}: {path}: expected an RSA or Ed25519 key")  # noqa: TRY004 - a mistake in an option
    return key


def signature_of(key: PrivateKey, octets: bytes) -> bytes:
    """Sign octets (RFC 6376 section 3.3.2, RFC 8463 section 3)."""
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(octets, padding.PKCS1v15(), SHA256())
    return key.sign(hashlib.sha256(octets).digest())


def signed(name: str, tags: str, octets: bytes, key: PrivateKey) -> str:
    """Return the value of a field with these tags and a signature of `octets` and the field."""
    unsigned = f"{tags}\r\n\tb="
    field = relaxed_field(f"{name}: {unsigned}".encode()).removesuffix(b"\r\n")
    text = b64encode(signature_of(key, octets + field)).decode()
    return unsigned + "\r\n\t".join(text[start : start + 72] for start in range(0, len(text), 72))


def names_to_sign(message: Message, *others: str) -> Iterator[str]:
    """Yield the names of fields to sign; of `others` those that occur."""
    for name in _SEALED:
        yield from [name] * (len(message.headers.raw_all(name)) + 1)
    for name in (*_SIGNED, *others):
        yield from [name] * len(message.headers.raw_all(name))


def content_tags(message: Message, *others: str) -> tuple[str, bytes]:
    """Return the tags c, h and bh, folded, and the octets of the fields that h names.

    Of the `others` the fields that occur are signed, too.
    """
    names = list(names_to_sign(message, *others))
    with message.open() as reader:
        body = b64encode(body_hash(reader)).decode()
    tags = f"c=relaxed/relaxed;\r\n\th={_folded(names)};\r\n\tbh={body};"
    return tags, signed_fields(message.headers, names)


def _folded(names: Iterable[str]) -> str:
    lines = [""]
    for name in names:
        if len(lines[-1]) + len(name) > _LINE:
            lines.append("")
        lines[-1] += f"{name}:"
    return "\r\n\t ".join(lines).removesuffix(":")
