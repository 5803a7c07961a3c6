"""DANE: certificates that TLSA records in the DNS name (RFC 6698, RFC 7671, RFC 7672)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from minismtp.delivery.mx import Host, UnreachableError
from minismtp.services.resolver import Resolver, UnansweredError
from minismtp.values.der import public_key_of

TRUST_ANCHOR: Final = 2  #: DANE-TA: an authority that issued the certificate
END_ENTITY: Final = 3  #: DANE-EE: the certificate itself, whatever its names and dates are

_SELECTORS: Final[dict[int, Callable[[bytes], bytes]]] = {
    0: lambda certificate: certificate,
    1: public_key_of,
}
_MATCHINGS: Final[dict[int, Callable[[bytes], bytes]]] = {
    0: lambda octets: octets,
    1: lambda octets: hashlib.sha256(octets).digest(),
    2: lambda octets: hashlib.sha512(octets).digest(),
}


@dataclass(frozen=True, slots=True)
class Tlsa:
    """One record (RFC 6698 section 2.1)."""

    usage: int
    selector: int
    matching: int
    data: bytes

    @property
    def usable(self) -> bool:
        """Whether it can be applied: PKIX-TA and PKIX-EE are not for SMTP (RFC 7672 3.1.3)."""
        return (
            self.usage in {TRUST_ANCHOR, END_ENTITY}
            and self.selector in _SELECTORS
            and self.matching in _MATCHINGS
        )

    def names(self, certificate: bytes) -> bool:
        """Return whether the record is for a certificate (DER)."""
        return _MATCHINGS[self.matching](_SELECTORS[self.selector](certificate)) == self.data


@dataclass(frozen=True, slots=True)
class Dane:
    """The usable TLSA records of a host, which are at the name `base`.

    Without a usable record the host has only others. TLS is required then, with any certificate.
    """

    base: str
    records: tuple[Tlsa, ...]

    def names(self, certificate: bytes, usage: int) -> bool:
        """Return whether a record of this usage is for a certificate."""
        return any(each.usage == usage and each.names(certificate) for each in self.records)

    def among(self, chain: Iterable[bytes]) -> list[bytes]:
        """Return the certificates of a chain that a record names as trust anchors."""
        return [each for each in chain if self.names(each, TRUST_ANCHOR)]


def look_up(resolver: Resolver, host: Host) -> Dane | None:
    """Return the DANE records of a host, None if it has no TLSA records.

    Raise UnreachableError if the DNS does not answer, because an attacker who can suppress the
    answer must not gain by it (RFC 7672 section 2.1.1).
    """
    for base in host.signed:
        try:
            found = resolver.lookup(f"_{host.port}._tcp.{base}", "TLSA")
        except UnansweredError as error:
            raise UnreachableError(f"451 4.7.5 {host}: {error}") from None
        if found.records and found.secure:
            records = [
                Tlsa(each.usage, each.selector, each.mtype, each.cert) for each in found.records
            ]
            return Dane(base, tuple(each for each in records if each.usable))
    return None
