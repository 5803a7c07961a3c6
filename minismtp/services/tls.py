"""TLS contexts from the files that the configuration names."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from minismtp.config.mistakes import ConfigError
from minismtp.config.tables import TlsConfig
from minismtp.mail.session import TlsInfo
from minismtp.services import client_certificate
from minismtp.services.certificate_file import certificates_of, open_regular, pair_problem
from minismtp.values.address import to_ascii
from minismtp.values.ciphers import offer_dhe, set_ciphers
from minismtp.values.durable_files import stamp

_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_LOOK_EVERY: Final = 1.0  # seconds


def server_context(
    tls: TlsConfig, *, ask_client: bool = False, file: str = "", ciphers: str = ""
) -> ssl.SSLContext:
    """Return the context of a listener (RFC 8314, RFC 9325). Raise ConfigError with the file.

    `ask_client` lets clients show a certificate signed by `client_ca`. The certificates of
    `[[tls.sni]]` are for their names, and the one of `[tls]` for all others. `ciphers` are for TLS
    1.2; "" means Python's own.
    """
    return _Choice(tls, ask_client=ask_client, file=file, ciphers=ciphers).asking


class _Choice:
    """The contexts of a listener; `asking` chooses by the name that the client asks for.

    Python's ssl fails for a name that is not ASCII, so `named` chooses for it.
    """

    def __init__(self, tls: TlsConfig, *, ask_client: bool, file: str, ciphers: str) -> None:
        self._tls = tls
        self._ask_client = ask_client
        self._file = file
        self._ciphers = ciphers
        if tls.certificate is None or tls.key is None:
            raise self._error("expected a certificate and a key", "tls")
        self._named = {
            entry.name.lower(): self._context(entry.certificate, entry.key, f"tls.sni[{index}]")
            for index, entry in enumerate(tls.sni)
        }
        self.asking = self._first = self._context(tls.certificate, tls.key, "tls")
        if self._named:
            self._first = self._context(tls.certificate, tls.key, "tls")
            self.asking.sni_callback = self._choose
        self.has_names = bool(self._named)

    def named(self, name: bytes) -> ssl.SSLContext:
        """Return the context for the name in the client's hello."""
        if name.isascii():
            return self.asking
        return self._find(name.decode("utf-8", "replace")) or self._first

    def _choose(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        found = self._find(name or "")
        if found is not None:
            connection.context = found

    def _find(self, name: str) -> ssl.SSLContext | None:
        wanted = to_ascii(name)
        return self._named.get(wanted) or self._named.get(f"*.{wanted.partition('.')[2]}")

    def _context(self, certificate: Path, key: Path, where: str) -> ssl.SSLContext:
        if self._ask_client:
            context = client_certificate.make_context()
            self._trust_authorities(context)
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            # As in Postfix: a mail client resumes one session at a time, and each ticket takes a
            # fifteenth of a handshake.
            context.num_tickets = 1
        context.minimum_version = _VERSIONS[self._tls.minimum_version]
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
        # In SMTP a message has its own end, so a close without close_notify cuts nothing off, and
        # the reply still goes out; without the option OpenSSL sends a fatal alert.
        context.options |= getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
        set_ciphers(context, self._ciphers)
        if self._ciphers:
            offer_dhe(context)
        self._load_pair(context, certificate, key, where)
        return context

    def _trust_authorities(self, context: ssl.SSLContext) -> None:
        path, name = self._tls.client_ca, "tls.client_ca"
        if path is None:
            problem = "expected a file of authorities, because a listener has client_certificates"
            raise self._error(problem, name)
        try:
            context.load_verify_locations(path)
        except OSError as error:  # SSLError among them
            raise self._error(f"{path}: {error}", name) from None

    def _load_pair(self, context: ssl.SSLContext, certificate: Path, key: Path, where: str) -> None:
        for name, path in (("certificate", certificate), ("key", key)):
            try:
                open_regular(path).close()
            except OSError as error:
                raise self._error(f"{path}: {error.strerror}", f"{where}.{name}") from None
        try:
            context.load_cert_chain(certificate, key, password="")
            certificates_of(certificate)  # else the time of its end could not be told
        except ssl.SSLError as error:
            reason = (error.reason or error.strerror or "not PEM").replace("_", " ").lower()
            problem = pair_problem(certificate, key, reason)
        except (OSError, ValueError) as error:
            problem = f"{certificate} cannot be used: {error}"
        else:
            return
        raise self._error(problem, f"{where}.certificate")

    def _error(self, problem: str, key: str) -> ConfigError:
        return ConfigError(problem, file=self._file, key=key)


class Certificates:
    """The context of a listener, rebuilt when its files change.

    `current` looks at the files at most once a second. If a new pair does not load, the old one
    stays in use, and the new one is tried again each second, because a repair need not change the
    files. `report` is called with each new problem, and with "" for each success.
    """

    def __init__(
        self,
        tls: TlsConfig,
        *,
        ask_client: bool,
        file: str,
        clock: Callable[[], float],
        report: Callable[[str], None],
        ciphers: str = "",
    ) -> None:
        self._tls = tls
        self._load = partial(_Choice, tls, ask_client=ask_client, file=file, ciphers=ciphers)
        self._clock = clock
        self._report = report
        self._seen: list[tuple[int, ...] | None] | None = stamps(tls)
        self._problem = ""
        self._looked = clock()
        self._changing = threading.Lock()
        self._choice = self._load()

    @property
    def has_names(self) -> bool:
        """Whether it matters which name a client asks for."""
        return self._choice.has_names

    def current(self, name: bytes = b"") -> ssl.SSLContext:
        """Return the context for the next handshake; `name` is the one in the client's hello."""
        if self._clock() - self._looked >= _LOOK_EVERY and self._changing.acquire(blocking=False):
            try:
                self._looked = self._clock()
                self._look()
            finally:
                self._changing.release()
        return self._choice.named(name)

    def _look(self) -> None:
        seen = stamps(self._tls)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._choice = self._load()
        except ConfigError as error:
            self._seen, problem = None, str(error)
            if problem != self._problem:
                self._report(problem)
        else:
            problem = ""
            self._report("")
        self._problem = problem


def stamps(tls: TlsConfig) -> list[tuple[int, ...] | None]:
    """Return a value that differs after a change of any file of certificates or keys."""
    named = [path for entry in tls.sni for path in (entry.certificate, entry.key)]
    paths = (tls.certificate, tls.key, tls.client_ca, *named)
    return [stamp(path) for path in paths if path is not None]


def tls_info(connection: ssl.SSLSocket) -> TlsInfo:
    """Return what a handshake agreed on."""
    cipher = connection.cipher()
    return TlsInfo(
        connection.version() or "",
        cipher[0] if cipher else "",
        client_identity=_identity(connection),
        bits=cipher[2] if cipher else 0,
    )


def _identity(connection: ssl.SSLSocket) -> str:
    """Return the mail address, DNS name or common name of a verified client certificate."""
    if connection.context.verify_mode is ssl.CERT_NONE or not client_certificate.is_verified():
        return ""
    certificate: dict[str, Any] = connection.getpeercert() or {}
    pairs = [pair for part in certificate.get("subject", ()) for pair in part]
    pairs += reversed(certificate.get("subjectAltName", ()))
    names = {str(kind): str(value) for kind, value in pairs}
    wanted = ("email", "emailAddress", "DNS", "commonName")
    return next((names[kind] for kind in wanted if kind in names), "")


def first_end(tls: TlsConfig) -> float:
    """Return when the first certificate expires, in seconds since the epoch."""
    named = (tls.certificate, *(entry.certificate for entry in tls.sni))
    return min(not_after(path) for path in named if path is not None)


def not_after(certificate: Path) -> float:
    """Return when the first certificate of a PEM file expires, in seconds since the epoch.

    Raise ValueError for a file without a certificate.
    """
    return certificates_of(certificate)[0].end
