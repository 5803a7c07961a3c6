"""Passwords stored as slow, salted, self-describing hashes.

A stored string names its scheme and its cost: `$scrypt$ln=15,r=8,p=1$SALT$KEY` or argon2's own
`$argon2id$v=19$m=65536,t=3,p=4$SALT$KEY`, in base64 without padding. So files may mix schemes and
costs, and stay valid when the defaults change. Passwords are prepared by RFC 8265 before they are
hashed, because keyboards and programs compose accents differently. Older hashes of unprepared
passwords are valid too.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minismtp.values.installation import how_to_install
from minismtp.values.user_names import prepared_password

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

_DEFAULT = "scrypt"

# The cost of a new scrypt hash: 2**15 blocks of 8 * 128 octets, which is 32 MiB, and about 60 ms.
_LOG_N, _R, _P = 15, 8, 1
_KEY_LENGTH = 32
# The most that a stored string may cost, so that logins cannot exhaust the server.
_MEMORY_LIMIT = 256 << 20
_ROUNDS_LIMIT = 16

_SCRYPT = re.compile(
    r"\$scrypt\$ln=([0-9]{1,2}),r=([0-9]{1,3}),p=([0-9]{1,3})"
    r"\$([A-Za-z0-9+/]+)=*\$([A-Za-z0-9+/]+)=*"
)

# Simultaneous logins beyond four wait, instead of taking 32 MiB and a core each.
_turns = threading.BoundedSemaphore(4)


def hash_password(password: str, scheme: str = _DEFAULT) -> str:
    """Return the string to store for a password. `scheme` is scrypt or argon2id.

    Raise ValueError for an empty password or an unknown scheme, and ModuleNotFoundError for
    argon2id without the extra `argon2`.
    """
    if not password:
        raise ValueError("the password is empty")
    known = _SCHEMES.get(scheme)
    if known is None:
        raise ValueError(f"unknown password scheme {scheme!r}: known are {', '.join(_SCHEMES)}")
    with _turns:
        return known.hash(_octets(prepared_password(password)))


def verify_password(password: str, stored: str | None) -> bool:
    """Return whether a password matches a stored string. A malformed string never matches.

    Pass None for an unknown user. That takes as long as the default scheme and never matches, so
    the time does not reveal which users exist. The call blocks while the hash is computed, and
    waits while four others are. Raise ModuleNotFoundError for argon2id without the extra `argon2`,
    because the password may be right.
    """
    name = _DEFAULT if stored is None else _scheme_of(stored)
    if name not in _SCHEMES:
        return False
    scheme = _SCHEMES[name]
    with _turns:
        if stored is None:
            for each in {prepared_password(password), password}:
                scheme.hash(_octets(each))
            return False
        try:
            return any(
                scheme.verify(_octets(each), stored)
                for each in dict.fromkeys((prepared_password(password), password))
            )
        except ValueError:
            return False


def check_stored_password(stored: str) -> None:
    """Raise ValueError for a stored string that never matches. The error shows no secret."""
    scheme = _SCHEMES.get(_scheme_of(stored))
    if scheme is None:
        raise ValueError(f"not a password hash of a known scheme ({', '.join(_SCHEMES)})")
    try:
        scheme.check(stored)
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from error


@dataclass(frozen=True, slots=True)
class _Scheme:
    hash: Callable[[bytes], str]
    verify: Callable[[bytes, str], bool]  # a malformed string is a ValueError
    check: Callable[[str], object]  # the same, without a password and at once


def _scheme_of(stored: str) -> str:
    return stored.split("$", 2)[1] if stored.startswith("$") else ""


def _octets(password: str) -> bytes:
    return password.encode("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True)
class _ScryptHash:
    """The parts of a stored scrypt string (RFC 7914 names the parameters)."""

    log_n: int
    r: int
    p: int
    salt: bytes
    key: bytes

    @classmethod
    def parse(cls, stored: str) -> _ScryptHash:
        match = _SCRYPT.fullmatch(stored)
        if match is None:
            raise ValueError("expected $scrypt$ln=15,r=8,p=1$SALT$KEY")
        log_n, r, p = (int(number) for number in match.group(1, 2, 3))
        salt, key = (_decode(text) for text in match.group(4, 5))
        parts = cls(log_n, r, p, salt, key)
        if not (log_n and r and p) or parts.memory > _MEMORY_LIMIT or p > _ROUNDS_LIMIT:
            raise ValueError(f"scrypt parameters ln={log_n},r={r},p={p} are out of bounds")
        if len(key) < _KEY_LENGTH // 2:
            raise ValueError("the scrypt key is too short to prove anything")
        return parts

    @property
    def memory(self) -> int:
        """The octets that OpenSSL needs: the blocks V, the working space X and T, and B."""
        return 128 * self.r * ((1 << self.log_n) + 2 + self.p)

    def derive(self, password: bytes) -> bytes:
        return hashlib.scrypt(
            password,
            salt=self.salt,
            n=1 << self.log_n,
            r=self.r,
            p=self.p,
            maxmem=self.memory,
            dklen=len(self.key),
        )


def _hash_scrypt(password: bytes) -> str:
    parts = _ScryptHash(_LOG_N, _R, _P, os.urandom(16), bytes(_KEY_LENGTH))
    salt, key = _encode(parts.salt), _encode(parts.derive(password))
    return f"$scrypt$ln={_LOG_N},r={_R},p={_P}${salt}${key}"


def _verify_scrypt(password: bytes, stored: str) -> bool:
    parts = _ScryptHash.parse(stored)
    return hmac.compare_digest(parts.derive(password), parts.key)


def _argon2() -> ModuleType:
    try:
        import argon2  # noqa: PLC0415 - an optional extra
    except ModuleNotFoundError as error:
        hint = f"argon2id needs argon2-cffi; {how_to_install('argon2')}"
        raise ModuleNotFoundError(hint) from error
    return argon2


def _hash_argon2(password: bytes) -> str:
    return str(_argon2().PasswordHasher().hash(password))


def _verify_argon2(password: bytes, stored: str) -> bool:
    _check_argon2(stored)
    argon2 = _argon2()
    try:
        return bool(argon2.PasswordHasher().verify(stored, password))
    except argon2.exceptions.VerificationError:
        return False


def _check_argon2(stored: str) -> None:
    parameters = _argon2().extract_parameters(stored)  # its InvalidHashError is a ValueError
    if parameters.memory_cost << 10 > _MEMORY_LIMIT or parameters.time_cost > _ROUNDS_LIMIT:
        raise ValueError("argon2id parameters are out of bounds")


# One line for each scheme.
_SCHEMES = {
    "scrypt": _Scheme(_hash_scrypt, _verify_scrypt, _ScryptHash.parse),
    "argon2id": _Scheme(_hash_argon2, _verify_argon2, _check_argon2),
}


def _encode(octets: bytes) -> str:
    return base64.b64encode(octets).decode("ascii").rstrip("=")


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
