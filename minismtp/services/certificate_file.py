"""What a PEM file of certificates says: names, times, and who signed whom (RFC 5280)."""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import os
import re
import ssl
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final

from minismtp.values.address import to_ascii
from minismtp.values.der import certificate_fields, elements

# Not by time.strptime, which imports a module when it is first called. Each process that does so
# after the fork takes 1 MB for it, and a command that acts as the server's user may not be able to
# read the module by then.
_TIME: Final = re.compile(r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)Z", re.ASCII)
_PEM: Final = re.compile("-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\\s]++-----END CERTIFICATE-----")
_MOST: Final = 20  # certificates of a file
_LONGEST: Final = 1 << 20  # octets of a file that are read
_MOST_NAMES: Final = 1000
_UTC_TIME: Final = 0x17
_EXTENSIONS: Final = 0xA3  # the optional last field of a TBSCertificate
_DNS_NAME: Final = 0x82  # [2] of a GeneralName, RFC 5280 section 4.2.1.6
_ALTERNATIVE_NAMES: Final = bytes.fromhex("551d11")  # 2.5.29.17
_COMMON_NAME: Final = bytes.fromhex("550403")  # 2.5.4.3
_ORGANIZATION: Final = bytes.fromhex("55040a")  # 2.5.4.10
#: What OpenSSL's words mean, and what to do.
_REASONS: Final = {
    "key values mismatch": "the key is that of another certificate; expected the two that belong"
    " together, and the server's own certificate first",
    "ee key too small": "the key is too short for TLS; get a certificate for one of 2048 bits or"
    " more",
}
_INFORMATION_ACCESS: Final = bytes.fromhex("2b06010505070101")  # 1.3.6.1.5.5.7.1.1
_CA_ISSUERS: Final = bytes.fromhex("2b06010505073002")  # 1.3.6.1.5.5.7.48.2


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate. `issuer` and `subject` are DER, `begin` and `end` seconds since the epoch.

    `names` are its DNS names in A-labels. `has_issuer_address` says that it tells where to get the
    issuer's certificate, as those of public intermediate authorities do.
    """

    issuer: bytes
    subject: bytes
    begin: float
    end: float
    names: tuple[str, ...]
    has_issuer_address: bool

    def is_for(self, name: str) -> bool:
        """Return whether a host name is among the names; a star stands for one label."""
        wanted = to_ascii(name).lower()
        return wanted in self.names or f"*.{wanted.partition('.')[2]}" in self.names


def certificates_of(path: Path) -> list[Certificate]:
    """Return the certificates of a PEM file, in its order. Raise OSError or ValueError."""
    return [_read(der) for der in der_certificates(path)]


def der_certificates(path: Path) -> list[bytes]:
    """Return the same certificates in DER. Raise OSError or ValueError."""
    with open_regular(path) as file:
        found = _der(file.read(_LONGEST))
    if not found:
        raise ValueError(f"{path} contains no PEM certificate")
    return found


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read it. Raise OSError, also for a pipe, which would block, or a device."""
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - has an opener
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK)


def pair_problem(certificate: Path, key: Path, reason: str) -> str:
    """Return what is wrong with two files that OpenSSL refused; `reason` is its own."""
    first, second = (_beginning(path) for path in (certificate, key))
    if _has_key(first) and not _has_certificate(first) and _has_certificate(second):
        return f"{certificate} has the key, and {key} the certificate: swap the two"
    why = _why(first, second, certificate, key) or _REASONS.get(reason, reason)
    return f"{certificate} and {key} are not a pair of a PEM certificate and its key: {why}"


def _why(first: bytes, second: bytes, certificate: Path, key: Path) -> str:
    if not _has_certificate(first):
        return f"{certificate} contains no PEM certificate{_remedy(first, 'x509', certificate)}"
    if not _has_key(second):
        return f"{key} contains no PEM private key{_remedy(second, 'pkey', key)}"
    if b"ENCRYPTED" in second:
        command = f"openssl pkey -in {key} -out NEW"
        return f"the key has a passphrase; expected one without, which `{command}` makes"
    return ""


def _beginning(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(_LONGEST)
    except OSError:
        return b""


def _has_certificate(data: bytes) -> bool:
    return b"-----BEGIN CERTIFICATE-----" in data


def _has_key(data: bytes) -> bool:
    return b"PRIVATE KEY-----" in data


def _remedy(data: bytes, command: str, path: Path) -> str:
    if not data.startswith(b"\x30"):  # a SEQUENCE of DER
        return ""
    return f"; if it is DER, `openssl {command} -inform der -in {path} -out NEW` makes PEM of it"


def certificates_in(data: bytes) -> list[Certificate]:
    """Return the certificates in PEM, in its order. Raise ValueError for one that is damaged."""
    return [_read(der) for der in _der(data)]


def common_name(name: bytes) -> str:
    """Return the common name, else the organization, in a DER name; "" if it has neither."""
    found: dict[bytes, str] = {}
    with contextlib.suppress(ValueError):  # not DER
        for part in islice(elements(_first(name)), _MOST_NAMES):
            kind, value = [*islice(elements(_first(part.value)), 2)]
            found.setdefault(kind.value, value.value.decode("utf-8", "replace"))
    return found.get(_COMMON_NAME, "") or found.get(_ORGANIZATION, "")


def _der(data: bytes) -> list[bytes]:
    text = data.decode("ascii", "replace")
    return [ssl.PEM_cert_to_DER_cert(pem[0]) for pem in islice(_PEM.finditer(text), _MOST)]


def _read(der: bytes) -> Certificate:
    _, _, issuer, validity, subject, _ = certificate_fields(der)
    begin, end = [_seconds(each.tag, each.value) for each in elements(validity.value)][:2]
    extensions = dict(_extensions(der))
    names = tuple(islice(_dns_names(extensions.get(_ALTERNATIVE_NAMES, b"")), _MOST_NAMES))
    access = _CA_ISSUERS in extensions.get(_INFORMATION_ACCESS, b"")
    return Certificate(issuer.octets, subject.octets, begin, end, names, access)


def _seconds(tag: int, value: bytes) -> float:
    text = value.decode("ascii")
    if tag == _UTC_TIME:
        # RFC 5280 section 4.1.2.5.1: two digits from 50 on are 19yy.
        text = ("19" if text[:2] >= "50" else "20") + text
    found = _TIME.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is not a time")
    year, month, day, hour, minute, second = map(int, found.groups())
    return dt.datetime(year, month, day, hour, minute, second, tzinfo=dt.UTC).timestamp()


def _extensions(der: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the object identifier of each extension, and its value."""
    for field in elements(_first(_first(der))):
        if field.tag == _EXTENSIONS:
            for extension in elements(_first(field.value)):
                parts = list(islice(elements(extension.value), 3))
                if parts:
                    yield parts[0].value, parts[-1].value


def _dns_names(value: bytes) -> Iterator[str]:
    for name in elements(_first(value)):
        if name.tag == _DNS_NAME:
            yield name.value.decode("ascii", "replace").lower()


def _first(value: bytes) -> bytes:
    """Return the value of the first element, or nothing if there is none."""
    return next((each.value for each in elements(value)), b"")
