"""The files of `[tls.acme]`: certificate, account, and what became of the last attempt.

All are in the directory `acme` of the state directory, with mode 0600, and written durably. The
certificate, its chain and its key are one file, so that no reader finds the certificate of one
order beside the key of another.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import msgspec

from minismtp.config import AcmeConfig, Config
from minismtp.config.mistakes import ConfigError
from minismtp.services.certificate_file import Certificate, certificates_of
from minismtp.services.self_signed import RSA_SIZE, as_pem, new_key, self_signed
from minismtp.values.durable_files import atomic_write, make_directory, sync_directory
from minismtp.values.installation import how_to_install

_RESERVE: Final = 64 * 1024  # octets that must fit on the disk before an order; a chain has 8 KiB
_KEY_ENDS: Final = b"-----END PRIVATE KEY-----"
_LONGEST_STATE: Final = 64 * 1024  # octets


Moment: TypeAlias = Annotated[float, msgspec.Meta(ge=0.0, le=253_402_300_799.0)]  # up to 9999


class BusyError(Exception):
    """Another process is getting a certificate."""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the last attempt. Times are seconds since the epoch, 0 if not known.

    `request` is what was asked for, and `issued` the same of the last certificate; see
    `requested`. After a failure, `error` says why, and there is no attempt before `wait_until`.
    `looks` is how many attempts in a row left names out because they had no address in the DNS.
    `suggested` is when the authority wants the renewal (RFC 9773), and `ask_after` when to ask it
    again. `account` is the URL of the account at `account_directory`.
    """

    request: str = ""
    issued: str = ""
    attempted: Moment = 0.0
    renewed: Moment = 0.0
    failures: int = 0
    looks: int = 0
    error: str = ""
    wait_until: Moment = 0.0
    suggested: Moment = 0.0
    ask_after: Moment = 0.0
    account: str = ""
    account_directory: str = ""


def requested(acme: AcmeConfig) -> str:
    """Return what an attempt asks for. If it changes, there is a new attempt at once."""
    return " ".join([*_service(acme), *sorted(acme.names)])


def is_of_service(acme: AcmeConfig, state: State) -> bool:
    """Return whether the last certificate is of the same authority, account and kind of key."""
    return not state.issued or state.issued.startswith(" ".join([*_service(acme), ""]))


def _service(acme: AcmeConfig) -> list[str]:
    return [acme.url, acme.key_type, acme.eab_key_id]


def is_time_to_ask(state: State) -> bool:
    """Return whether the authority may be asked again when it wants the renewal."""
    # A time far ahead is from before a change of the clock.
    return not 0.0 <= state.ask_after - time.time() <= 2 * 86_400.0


class AcmeFiles:
    """The files in a directory. All methods raise OSError, or ValueError for damaged files."""

    def __init__(self, directory: Path) -> None:
        self.directory: Final = directory
        self.certificate: Final = directory / "certificate.pem"
        self.account_key: Final = directory / "account.key"
        self._state = directory / "state.json"
        self._next_key = directory / "next.key"

    @classmethod
    def of(cls, config: Config) -> AcmeFiles:
        """Return the files of a server."""
        return cls(config.acme_directory)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Make the directory, and let no other process get a certificate.

        Raise BusyError, and OSError also if the state directory was moved.
        """
        make_directory(self.directory, within=self.directory.parent)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.directory / "lock", flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise BusyError from None
        finally:
            os.close(descriptor)

    def state(self) -> State:
        """Return what became of the last attempt; a file that is damaged counts as none."""
        try:
            with self._state.open("rb") as file:
                return msgspec.json.decode(file.read(_LONGEST_STATE), type=State)
        except (FileNotFoundError, msgspec.MsgspecError):
            return State()

    def write_state(self, state: State) -> None:
        """Store what became of an attempt."""
        atomic_write(self._state, msgspec.json.encode(state))

    def present(self) -> Certificate | None:
        """Return the certificate in use, or None if there is no file."""
        try:
            return certificates_of(self.certificate)[0]
        except FileNotFoundError:
            return None

    def account_key_pem(self) -> bytes:
        """Return the account's key, which the first call makes."""
        try:
            return self.account_key.read_bytes()
        except FileNotFoundError:
            made = as_pem(new_key("ecdsa"))
            atomic_write(self.account_key, made)
            return made

    def prepare_key(self, kind: str, *, new: bool = False) -> bytes:
        """Return the key for the next certificate.

        It is that of the certificate in use, so that TLSA records stay right (RFC 7671 section
        8.1), unless that is of another kind or a `new` one is wanted. It is on disk with room for
        the chain, so a full disk is noticed before the order.
        """
        pem = (None if new else self._present_key(kind)) or as_pem(new_key(kind))
        atomic_write(self._next_key, pem + b"\n" * _RESERVE)
        return pem

    def _present_key(self, kind: str) -> bytes | None:
        """Return the key of the certificate in use, if it is of a kind."""
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

        try:
            pem, end, _ = self.certificate.read_bytes().partition(_KEY_ENDS)
            key = serialization.load_pem_private_key(pem + end, password=None)
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return pem + end + b"\n" if _is_of(kind, key) else None

    def try_out(self, key: bytes, chain: bytes) -> None:
        """Raise ssl.SSLError if TLS cannot use a key and a chain together."""
        atomic_write(self._next_key, key + chain)
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._next_key)

    def install(self, key: bytes, chain: bytes) -> None:
        """Make a key and a chain the certificate in use."""
        self._next_key.unlink(missing_ok=True)
        atomic_write(self.certificate, key + chain)

    def begin_with(self, key: bytes, chain: bytes) -> None:
        """Make a key and a chain the certificate in use, unless another process was faster."""
        temporary = self.directory / f".begin.{os.getpid()}"
        atomic_write(temporary, key + chain)
        try:
            with contextlib.suppress(FileExistsError):
                os.link(temporary, self.certificate)
        finally:
            temporary.unlink()
        sync_directory(self.directory)

    def drop_key(self) -> None:
        """Remove the key of an order that failed."""
        self._next_key.unlink(missing_ok=True)


def ensure_certificate(config: Config) -> bool:
    """Make a certificate that the server signs itself, unless there is one already.

    Return whether it was made. Raise ConfigError if the extra `acme` is missing, or the file cannot
    be written.
    """
    acme, files = config.tls.acme, AcmeFiles.of(config)
    if acme is None or files.certificate.exists():
        return False
    require_library(config.file)
    try:
        make_directory(files.directory, within=config.state_directory)
        files.begin_with(*self_signed(acme.names, acme.key_type))
    except OSError as error:
        problem = f"{files.certificate} cannot be written: {error.strerror}"
        raise ConfigError(problem, file=config.file, key="tls.acme") from error
    return True


def require_library(file: str = "") -> None:
    """Raise ConfigError if the library `acme` is not installed."""
    import importlib.util  # noqa: PLC0415 - only servers with [tls.acme] need it

    missing = [name for name in ("acme", "cryptography") if importlib.util.find_spec(name) is None]
    if missing:
        problem = f"needs the module {missing[0]!r}; {how_to_install('acme')}"
        raise ConfigError(problem, file=file, key="tls.acme")


def _is_of(kind: str, key: object) -> bool:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa  # noqa: PLC0415

    if kind == "rsa":
        return isinstance(key, rsa.RSAPrivateKey) and key.key_size >= RSA_SIZE
    return isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1)
