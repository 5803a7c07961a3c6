"""Signatures of DKIM and seals of ARC: the keys, and the fields to sign."""

import hashlib
from base64 import b64encode
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from minismtp import DnsRecord, Message

from ._canonical import body_hash, relaxed_field, signed_fields

ARC_FIELDS = ("ARC-Authentication-Results", "ARC-Message-Signature", "ARC-Seal")
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
    """Read a private key. Raise ValueError for the `option` that names the file.

    The library would look whether the factors of an RSA key are primes, which takes 36 ms a key,
    and a server may have thousands. A signature shows within 0.3 ms whether the parts of the key
    belong together.
    """
    try:
        octets = path.read_bytes()
        key = load_pem_private_key(octets, password=None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError) as error:  # TypeError: it has a pass phrase
        raise ValueError(f"{option}: {path}: no private key in PEM: {error}") from error
    except OSError as error:
        raise ValueError(f"{option}: {path}: {error.strerror}") from error
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ValueError(f"{option}: {path}: expected an RSA or Ed25519 key")  # noqa: TRY004 - a mistake in an option
    if key.key_size < _SHORTEST:
        raise ValueError(f"{option}: {path}: {key.key_size} bits; receivers want {SHORT}")
    try:
        key.public_key().verify(signature_of(key, b""), b"", padding.PKCS1v15(), SHA256())
    except (InvalidSignature, ValueError) as error:
        raise ValueError(f"{option}: {path}: the RSA key is damaged") from error
    return key


class Signer(NamedTuple):
    """A private key, with its domain and selector in the DNS."""

    domain: str
    selector: str
    key: PrivateKey

    def record(self) -> DnsRecord:
        """Return the record with the public key (RFC 6376 section 3.6.1, RFC 8463 section 4)."""
        public = self.key.public_key()
        if isinstance(self.key, rsa.RSAPrivateKey):
            kind, octets = (
                "rsa",
                public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            )
        else:
            kind, octets = "ed25519", public.public_bytes(Encoding.Raw, PublicFormat.Raw)
        return DnsRecord(
            f"{self.selector}._domainkey.{self.domain}",
            "TXT",
            f"v=DKIM1; k={kind}; p={b64encode(octets).decode()}",
            f"{self.domain}: the public key of its signatures (DKIM)",
        )

    def tags(self, now: float) -> str:
        """Return the tags a, t, d and s, folded. `now` is in epoch seconds."""
        kind = "rsa" if isinstance(self.key, rsa.RSAPrivateKey) else "ed25519"
        named = f"d={self.domain};\r\n\ts={self.selector};"
        return f"a={kind}-sha256; t={int(now)};\r\n\t{named}"

    def signed(self, name: str, tags: str, octets: bytes) -> str:
        """Return the value of a field with these tags and a signature of `octets` and the field."""
        unsigned = f"{tags}\r\n\tb="
        field = relaxed_field(f"{name}: {unsigned}".encode()).removesuffix(b"\r\n")
        text = b64encode(signature_of(self.key, octets + field)).decode()
        lines = (text[start : start + 72] for start in range(0, len(text), 72))
        return unsigned + "\r\n\t".join(lines)

    def seal(
        self,
        message: Message,
        report: str,
        status: str,
        instance: int,
        before: bytes,
        *,
        now: float,
    ) -> None:
        """Put a set of ARC on top (RFC 8617 section 5.1); `status` is the result of the chain.

        `before` are the octets of the sets below that the seal covers.
        """
        results, signature, seal = ARC_FIELDS
        message.prepend(results, f"i={instance}; {report}")
        content, fields = content_tags(message, "DKIM-Signature")
        tags = f"i={instance}; {self.tags(now)}"
        message.prepend(signature, self.signed(signature, f"{tags}\r\n\t{content}", fields))
        own = b"".join(relaxed_field(message.headers.raw(name)) for name in (results, signature))
        message.prepend(seal, self.signed(seal, f"{tags}\r\n\tcv={status};", before + own))


def signature_of(key: PrivateKey, octets: bytes) -> bytes:
    """Sign octets (RFC 6376 section 3.3.2, RFC 8463 section 3)."""
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(octets, padding.PKCS1v15(), SHA256())
    return key.sign(hashlib.sha256(octets).digest())


def content_tags(message: Message, *others: str) -> tuple[str, bytes]:
    """Return the tags c, h and bh, folded, and the octets of the fields that h names.

    Of the `others` the fields that occur are signed, too.
    """
    headers = message.headers
    names = [name for name in _SEALED for _ in (None, *headers.raw_all(name))]
    names += [name for name in (*_SIGNED, *others) for _ in headers.raw_all(name)]
    with message.open() as reader:
        body = b64encode(body_hash(reader)).decode()
    tags = f"c=relaxed/relaxed;\r\n\th={_folded(names)};\r\n\tbh={body};"
    return tags, signed_fields(headers, [name.lower() for name in names])


def _folded(names: Iterable[str]) -> str:
    lines = [""]
    for name in names:
        if len(lines[-1]) + len(name) > _LINE:
            lines.append("")
        lines[-1] += f"{name}:"
    return "\r\n\t ".join(lines).removesuffix(":")
