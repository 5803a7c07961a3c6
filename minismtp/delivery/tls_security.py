"""What a TLS connection to a host must prove, and the check (RFC 3207, RFC 7435, RFC 7672)."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, Self

from minismtp.config.mistakes import ConfigError
from minismtp.delivery.dane import END_ENTITY, Dane
from minismtp.values.address import to_ascii
from minismtp.values.ciphers import GENEROUS, TlsLevel, set_ciphers

#: How a delivery was secured, for logs and metrics. "encrypted": the host is not authenticated.
LEVELS: Final = ("none", "encrypted", "verified", "mta-sts", "dane")
#: The levels that authenticate the host.
AUTHENTICATED: Final = frozenset({"verified", "mta-sts", "dane"})
_DER: Final = 2  # _ssl.ENCODING_DER
_KEY: Final = "outbound.server_ca"


class MismatchError(ValueError):
    """The certificate of the host is not an expected one."""


class AnchorsError(Exception):
    """The host presented trust anchors, so a second handshake can prove `security`."""

    def __init__(self, security: Security) -> None:
        super().__init__("trust anchors found")
        self.security = security


class Contexts:
    """The TLS contexts of all connections, made once because loading authorities is slow."""

    def __init__(self, authorities: Path | None = None, ciphers: str = "") -> None:
        """Trust the authorities in a PEM file, else the system's. Raise ConfigError.

        `ciphers` are for TLS 1.2. If empty, the ciphers that mail servers commonly use are allowed.
        """
        self._authorities = authorities
        self._ciphers = ciphers or GENEROUS
        if authorities is not None:
            self.verified  # noqa: B018 - now, so that a mistake stops the start

    @cached_property
    def open(self) -> ssl.SSLContext:
        """The context without a check, because encryption alone is better than clear text.

        See RFC 7435. It is made at the first use, because it takes 0.4 MB of memory.
        """
        return self._unchecked()

    @cached_property
    def verified(self) -> ssl.SSLContext:
        """The context that demands a certificate of a trusted authority. Raise ConfigError.

        The system's authorities are loaded at the first use, because they take 1 MB of memory, and
        a server that only receives mail never needs them.
        """
        try:
            context = ssl.create_default_context(cafile=self._authorities)
        except ssl.SSLError:
            problem = f"{self._authorities} is no PEM file of certificates"
            raise ConfigError(problem, key=_KEY) from None
        except OSError as error:
            raise ConfigError(f"{self._authorities}: {error.strerror}", key=_KEY) from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        set_ciphers(context, self._ciphers)
        return context

    def anchored(self, anchors: Iterable[bytes]) -> ssl.SSLContext:
        """Return a context that trusts only these certificates (DER); the caller checks names."""
        context = self._unchecked()
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # they need not be self-signed
        context.load_verify_locations(cadata=b"".join(anchors))
        return context

    def _unchecked(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        set_ciphers(context, self._ciphers)
        return context


@dataclass(frozen=True, slots=True)
class Security:
    """What a connection must prove, and in `fallback` what may be tried if it does not.

    `policy` is the source of a demand that goes beyond the configuration. A certificate below a
    DANE trust anchor must have one of the `names`. `anchors` are the certificates that the host
    presented and that its TLSA records name.
    """

    level: TlsLevel
    policy: Literal["", "dane", "mta-sts", "testing"] = ""
    dane: Dane | None = None
    names: tuple[str, ...] = ()
    anchors: tuple[bytes, ...] = ()
    fallback: Self | None = None

    def context(self, contexts: Contexts) -> ssl.SSLContext:
        """Return the context for the handshake."""
        if self.anchors:
            return contexts.anchored(self.anchors)
        if self.level == "verified" and self.dane is None:
            return contexts.verified
        return contexts.open

    def confirm(self, connection: ssl.SSLSocket) -> str:
        """Return the level that a handshake reached. Raise MismatchError and AnchorsError."""
        if self.dane is None:
            if self.level != "verified":
                return "encrypted"
            return "mta-sts" if self.policy == "mta-sts" else "verified"
        if self.anchors:
            self._confirm_name(connection)
        else:
            self._confirm_dane(self.dane, connection)
        return "dane"

    def _confirm_name(self, connection: ssl.SSLSocket) -> None:
        """Check the name in the certificate (RFC 7672 section 3.2.3)."""
        certificate: dict[str, Any] = connection.getpeercert() or {}
        shown = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
        if not any(matches(str(pattern), name) for pattern in shown for name in self.names):
            raise MismatchError(f"the certificate is for {', '.join(map(str, shown))}")

    def _confirm_dane(self, dane: Dane, connection: ssl.SSLSocket) -> None:
        certificate = connection.getpeercert(binary_form=True) or b""
        if dane.names(certificate, END_ENTITY):
            return  # whatever its names and dates are (RFC 7672 section 3.1.1)
        anchors = dane.among(_presented(connection))
        if anchors:
            # OpenSSL verifies a chain only during a handshake, so another handshake is needed.
            raise AnchorsError(replace(self, anchors=tuple(anchors)))
        raise MismatchError("no TLSA record is for its certificate")


def matches(pattern: str, name: str) -> bool:
    """Return whether a name matches a pattern, whose first label may be `*` (RFC 6125 6.4.3)."""
    pattern, name = pattern.lower().rstrip("."), to_ascii(name)
    return name == pattern or (
        pattern.startswith("*.") and name.partition(".")[2] == pattern[2:] != ""
    )


def _presented(connection: ssl.SSLSocket) -> list[bytes]:
    """Return the certificates (DER) that the host sent, its own first."""
    public: Any = getattr(connection, "get_unverified_chain", None)  # from Python 3.13 on
    if public is not None:
        return list(public() or ())
    private: Any = connection._sslobj  # type: ignore[attr-defined]  # noqa: SLF001 - 3.11 and 3.12
    return [each.public_bytes(_DER) for each in private.get_unverified_chain() or ()]
