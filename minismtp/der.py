"""Just enough DER to find a field of a certificate (layer 0; X.690, RFC 5280 section 4.1)."""

from __future__ import annotations

from typing import Final, NamedTuple

_VERSION: Final = 0xA0  # the optional first field of a TBSCertificate


class Element(NamedTuple):
    """One element: its `value` is DER again where it is a sequence; `octets` are all of it."""

    tag: int
    value: bytes
    octets: bytes


def elements(der: bytes) -> list[Element]:
    """Split DER into the elements that follow each other."""
    found, start = [], 0
    while start + 2 <= len(der):
        tag, size, at = der[start], der[start + 1], start + 2
        if size & 0x80:
            octets = size & 0x7F
            size = int.from_bytes(der[at : at + octets], "big")
            at += octets
        found.append(Element(tag, der[at : at + size], der[start : at + size]))
        start = at + size
    return found


def certificate_fields(certificate: bytes) -> list[Element]:
    """Give serial number, algorithm, issuer, validity, subject, public key and what follows.

    Raises ValueError for what is no certificate.
    """
    try:
        fields = elements(elements(elements(certificate)[0].value)[0].value)
        return fields[1:] if fields[0].tag == _VERSION else fields
    except IndexError:
        raise ValueError("this is no certificate") from None
