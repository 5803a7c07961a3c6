"""Just enough DER to find a field of a certificate (X.690, RFC 5280 section 4.1)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final, NamedTuple

_VERSION: Final = 0xA0  # the optional first field of a TBSCertificate
_FIELDS: Final = 6  # of every certificate, behind its version
_PUBLIC_KEY: Final = 5  # among these


class Element(NamedTuple):
    """An element. The `value` of a sequence is DER again. `octets` is the whole element."""

    tag: int
    value: bytes
    octets: bytes


def elements(der: bytes) -> Iterator[Element]:
    """Yield the elements of a sequence."""
    start = 0
    while start + 2 <= len(der):
        tag, size, at = der[start], der[start + 1], start + 2
        if size & 0x80:
            octets = size & 0x7F
            size = int.from_bytes(der[at : at + octets], "big")
            at += octets
        yield Element(tag, der[at : at + size], der[start : at + size])
        start = at + size


def certificate_fields(certificate: bytes) -> list[Element]:
    """Return the serial number, algorithm, issuer, validity, subject and public key.

    Raise ValueError if this is not a certificate. Further elements are not read, because a stranger
    may have put any number of them there.
    """
    content = next(elements(certificate), None)
    signed = content and next(elements(content.value), None)
    fields = list(islice(elements(signed.value), 1 + _FIELDS)) if signed else []
    fields = fields[1:] if fields and fields[0].tag == _VERSION else fields[:_FIELDS]
    if len(fields) < _FIELDS:
        raise ValueError("this is not a certificate")
    return fields


def public_key_of(certificate: bytes) -> bytes:
    """Return the SubjectPublicKeyInfo of a certificate (DER). Raise ValueError."""
    return certificate_fields(certificate)[_PUBLIC_KEY].octets
