"""What TLS with one host must be, and whether it is (RFC 3207, RFC 7435, RFC 7672)."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Self

from minismtp.config.toml_values import ConfigError
from minismtp.delivery.dane import END_ENTITY, Dane
from minismtp.mail.delivery import TlsLevel
from minismtp.values.address import to_ascii
from minismtp.values.ciphers import GENEROUS, set_ciphers

#: How a delivery was secured, for logs and metrics. `encrypted`: anybody may have answered.
LEVELS: Final = ("none", "encrypted", "verified", "mta-sts", "dane")
#: Those at which we know who has answered.
AUTHENTICATED: Final = frozenset({"verified", "mta-sts", "dane"})
_DER: Final = 2  # _ssl.ENCODING_DER
_KEY: Final = "outbound.server_ca"


class MismatchError(ValueError):
    """The host's certificate is not the one that it should have."""


class AnchorsError(Exception):
    """Nothing is proved yet, but `security` can be: the host has shown its trust anchors."""

    def __init__(self, security: Security) -> None:
        super().__init__("trust anchors found")
        self.security = security


class Contexts:
    """The TLS settings of all connections, made once: to read the authorities takes a while."""

    def __init__(self, authorities: Path | None = None, ciphers: str = "") -> None:
        """Trust the authorities in a PEM file, else the system's. Raise ConfigError.

        `ciphers` are for TLS 1.2; "" = those that a mail server may have.
        """
        self._ciphers = ciphers or GENEROUS
        try:
            self.verified = ssl.create_default_context(cafile=authorities)
        except ssl.SSLError:
            raise ConfigError(f"{authorities} is no PEM file of certificates", key=_KEY) from None
        except OSError as error:
            raise ConfigError(f"{authorities}: {error.strerror}", key=_KEY) from None
        self.verified.minimum_version = ssl.TLSVersion.TLSv1_2
        set_ciphers(self.verified, self._ciphers)
        # Better than in clear, though anybody could be at the other end (RFC 7435).
        self.open = self._unchecked()

    def anchored(self, anchors: Iterable[bytes]) -> ssl.SSLContext:
        """Trust these certificates (DER) and no others; the names are left to the caller."""
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
    """What a connection must show. `otherwise` is what may be tried when it does not.

    `policy` says what asks for it when it is more than the configuration does.
    `names` are those of which a certificate below a DANE trust anchor must have one; `anchors` are
    the certificates that a host has shown us and that its TLSA records name.
    """

    level: TlsLevel
    policy: Literal["", "dane", "mta-sts", "testing"] = ""
    dane: Dane | None = None
    names: tuple[str, ...] = ()
    anchors: tuple[bytes, ...] = ()
    otherwise: Self | None = None

    def context(self, contexts: Contexts) -> ssl.SSLContext:
        """Return the settings for the handshake."""
        if self.anchors:
            return contexts.anchored(self.anchors)
        if self.level == "verified" and self.dane is None:
            return contexts.verified
        return contexts.open

    def confirm(self, connection: ssl.SSLSocket) -> str:
        """Return the level that a handshake has reached. Raise MismatchError and AnchorsError."""
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
            return  # whatever name and time stand in it (RFC 7672 section 3.1.1)
        anchors = dane.among(_presented(connection))
        if anchors:
            # OpenSSL shall verify the chain, and it does that during a handshake: once more then.
            raise AnchorsError(replace(self, anchors=tuple(anchors)))
        raise MismatchError("no TLSA record is for its certificate")


def matches(pattern: str, name: str) -> bool:
    """Whether a name is the one of a pattern, whose first label may be `*` (RFC 6125 6.4.3)."""
    pattern, name = pattern.lower().rstrip("."), to_ascii(name)
    return name == pattern or (
        pattern.startswith("*.") and name.partition(".")[2] == pattern[2:] != ""
    )


def _presented(connection: ssl.SSLSocket) -> list[bytes]:
    """Return the certificates (DER) that the host has sent, its own first."""
    public: Any = getattr(connection, "get_unverified_chain", None)  # from Python 3.13 on
    if public is not None:
        return list(public() or ())
    private: Any = connection._sslobj  # type: ignore[attr-defined]  # noqa: SLF001 - 3.11 and 3.12
    return [each.public_bytes(_DER) for each in private.get_unverified_chain() or ()]
