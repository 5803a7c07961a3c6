"""Rewrite senders of forwarded mail, so that SPF passes and bounces return (SRS).

The receiver of forwarded mail looks up the SPF record of the sender's domain, which does not
include this server. So the sender becomes a local address that contains the old one, signed and
dated:

    alice@example.com             SRS0=hash=day=example.com=alice@ours
    SRS0=...@first.example        SRS1=hash=first.example==...@ours

The second form is for mail that another host already forwarded; a bounce then skips the hosts in
between. The hash is an HMAC-SHA256 cut to 30 bits and compared without case, because some hosts
change the case.

Not every host accepts a local part of more than 64 octets. A sender that would need more is stored
in the state before the message leaves, and the address contains a name for it, an HMAC of 80 bits:

    bounces+1234-name=customer.example.com@...   SRS0=hash=day==name@ours
"""

import hmac
import re
from base64 import b32encode
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from minismtp import Address, read_file

_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_HASH = 6  # characters
_KEY = "srs {}"
_NAME = 16  # characters of the name for a stored sender
_DAYS = 1024  # days after which the two characters of a day repeat
_VALID = 21  # days in which a bounce is accepted, longer than any host retries
_LOCAL_PART = 64  # octets, RFC 5321 section 4.5.3.1.1
_SHORTEST_SECRET = 16
_OURS = re.compile(r"SRS[01][=+-]", re.IGNORECASE)


#: How long a sender is stored, which is as long as bounces are accepted.
KEPT = timedelta(days=_VALID + 1)


class Srs:
    """Rewrites senders into addresses at `domain`; `today` returns the number of the day.

    The first secret signs and all of them verify, so a secret can be replaced gradually. `kept`
    returns the sender that is stored under a key, None for an unknown key.
    """

    def __init__(
        self,
        secrets: list[bytes],
        domain: str,
        today: Callable[[], int],
        *,
        kept: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        self._secrets = secrets
        self._domain = domain
        self._today = today
        self._kept = kept

    def rewrite(self, sender: Address) -> Address:
        """Return the rewritten sender; see `key_of` for one that has to be stored."""
        local, host = sender.local, sender.ascii_domain
        if not _OURS.match(local):
            day = _stamp(self._today())
            new = f"SRS0={self._hash(0, day, host, local)}={day}={host}={local}"
        else:
            rest = local[4:]
            if local[3] == "1":
                host, rest = _first_host(local) or (host, rest)
            new = f"SRS1={self._hash(0, host, rest)}={host}={rest}"
        address = Address(new, self._domain)
        written = str(address).removesuffix(f"@{self._domain}")  # with quotes if needed
        if len(written.encode()) <= _LOCAL_PART:
            return address
        name, day = self._name(0, sender), _stamp(self._today())
        return Address(f"SRS0={self._hash(0, day, '', name)}={day}=={name}", self._domain)

    def key_of(self, sender: Address, rewritten: Address) -> str:
        """Return the key under which a sender has to be stored, "" if the new form contains it."""
        name = rewritten.local.rpartition("==")[2]
        if rewritten.domain == self._domain and is_rewritten(rewritten.local):
            for number in range(len(self._secrets)):
                if name == self._name(number, sender):
                    return _KEY.format(name)
        return ""

    def restore(self, local: str) -> Address:
        """Return the original sender for a rewritten local part. Raise ValueError."""
        given, _, signed = local[5:].partition("=")
        if local[3] == "1":
            host, _, rest = signed.partition("=")
            self._check(given, host, rest)
            return Address(f"SRS0{rest}", host)
        day, _, signed = signed.partition("=")
        host, _, user = signed.partition("=")
        self._check(given, day, host, user)
        # A day in the future means that the clock was ahead, because only this server signs.
        age = (self._today() - _day(day) + _DAYS // 2) % _DAYS - _DAYS // 2
        if abs(age) > _VALID:
            raise ValueError("expired")
        if host:
            return Address(user, host)
        text = self._kept(_KEY.format(user.upper()))
        if text is None:
            raise ValueError("expired")
        return Address.parse(text)

    def _name(self, number: int, sender: Address) -> str:
        """Return the name for a sender, which is always the same, so it is stored once."""
        digest = hmac.digest(self._secrets[number], f"kept\0{sender}".encode(), "sha256")
        return b32encode(digest).decode()[:_NAME]

    def _check(self, given: str, *parts: str) -> None:
        octets = given.upper().encode("utf-8", "replace")
        hashes = (self._hash(number, *parts).encode() for number in range(len(self._secrets)))
        if not any(hmac.compare_digest(octets, each) for each in hashes):
            raise ValueError("wrong hash")

    def _hash(self, number: int, *parts: str) -> str:
        text = "\0".join(parts).lower().encode("utf-8", "surrogatepass")
        digest = hmac.digest(self._secrets[number], text, "sha256")
        return b32encode(digest).decode()[:_HASH]


def is_rewritten(local: str) -> bool:
    """Return whether a local part has the form that `Srs.rewrite` returns."""
    return _OURS.match(local) is not None


def read_secrets(path: Path) -> list[bytes]:
    """Read the secrets, one a line, the one that signs first. Raise OSError and ValueError."""
    lines = [line.strip() for line in read_file(path).splitlines()]
    secrets = [line for line in lines if line]
    if not secrets or min(map(len, secrets)) < _SHORTEST_SECRET:
        raise ValueError(f"{path}: expected a secret of {_SHORTEST_SECRET} characters or more")
    return secrets


def _stamp(day: int) -> str:
    return _DIGITS[day // 32 % 32] + _DIGITS[day % 32]


def _day(stamp: str) -> int:
    first, second = (_DIGITS.index(digit) for digit in stamp.upper())
    return first * 32 + second


def _first_host(local: str) -> tuple[str, str] | None:
    """Return the host that made the SRS0 inside an SRS1, and what it signed."""
    match = re.fullmatch(r"SRS1[=+-][^=]*=([^=]+)=([=+-].*)", local, re.IGNORECASE)
    return (match[1], match[2]) if match else None
