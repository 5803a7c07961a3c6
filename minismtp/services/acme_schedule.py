"""When a certificate is renewed, and how long a failed attempt waits.

A certificate is renewed when its authority suggests it (RFC 9773), else after 60 to 67 % of its
life. The waits after failures stay below the limits of public authorities. Let's Encrypt allows 5
failed checks of a name an hour, and 5 certificates for the same names a week.

An authority would refuse names that have no address in the DNS yet. So it is not asked for them in
the first attempts, which are some minutes apart. Later ones ask it in any case, because it may see
another DNS than this host does.
"""

from __future__ import annotations

import enum
import hashlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from minismtp.config import AcmeConfig
from minismtp.services.acme_files import State, requested
from minismtp.services.certificate_file import Certificate
from minismtp.values.printable import one_line

_chance: Final = random.SystemRandom()
_LIFE: Final = 0.6  # of a certificate's life, after which the first servers renew
_SPREAD: Final = 1 / 15  # of its life, over which they are spread; 2/3 is the end of it
_LEAST: Final = 0.1  # of its life, before which no clock makes a certificate look old
_LAST: Final = 0.1  # of its life, which must be left when it is renewed
_JITTER: Final = 0.25
_CLOCKS: Final = 3_600.0  # seconds by which a clock is set back without doubts about past times
_LONGEST_TEXT: Final = 600  # characters of an error
_LONGEST_ORDER: Final = 7 * 86_400.0  # seconds; no authority can stop attempts for longer
NO_ADDRESS: Final = "no address in the DNS yet"
#: How many attempts leave out names without an address. They take 22 minutes, about as long as the
#: wait after a refusal.
MOST_LOOKS: Final = 6


class Failure(enum.Enum):
    """Why an attempt failed, with the first and the longest wait after it in seconds."""

    UNREACHED = (60.0, 3_600.0)  # no authority counted it, or it was here
    REFUSED = (1_200.0, 86_400.0)
    ABSENT = (60.0, 300.0)  # names have no address in the DNS, and no authority was asked for them


class AcmeError(Exception):
    """An attempt failed; the text is one line. `ordered` is Retry-After in seconds, 0 if none."""

    def __init__(self, text: str, failure: Failure, ordered: float = 0.0) -> None:
        shown = one_line(text)
        if len(shown) > _LONGEST_TEXT:
            shown = f"{shown[:_LONGEST_TEXT]}..."
        super().__init__(shown)
        self.failure = failure
        self.ordered = ordered


class CheckError(AcmeError):
    """The authority cannot check some of the names; `failed` has the reason for each."""

    def __init__(self, failed: Mapping[str, str]) -> None:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        super().__init__(f"the authority cannot check the names: {reasons}", Failure.REFUSED)
        self.failed = failed


class AbsentError(AcmeError):
    """The names have no address in the DNS, so the authority was not asked for them."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(f"{NO_ADDRESS}: {', '.join(names)}", Failure.ABSENT)


@dataclass(frozen=True, slots=True)
class Plan:
    """When to get the next certificate, in seconds since the epoch, and why."""

    at: float
    reason: str


def plan(acme: AcmeConfig, certificate: Certificate | None, state: State) -> Plan:
    """Return when the next attempt is. `certificate` is the one in use."""
    wanted = requested(acme)
    found = _need(acme, certificate, state, wanted)
    # An attempt in the future was made before a change of the clock, which also ended its wait.
    is_past = state.attempted <= time.time() + _CLOCKS
    if state.error and is_past and state.request == wanted and state.wait_until > found.at:
        waits = waits_for_dns(state)
        reason = "names were not in the DNS" if waits else "the last attempt failed"
        return Plan(state.wait_until, reason)
    return found


def waits_for_dns(state: State) -> bool:
    """Return whether the last attempt left out names without an address, and asked for no other."""
    return 0 < state.looks <= MOST_LOOKS


def _need(acme: AcmeConfig, certificate: Certificate | None, state: State, wanted: str) -> Plan:
    if certificate is None or is_self_signed(certificate):
        return Plan(0.0, "there is no certificate of an authority yet")
    if not set(certificate.names).issuperset(acme.names):
        return Plan(0.0, "names are missing")
    if set(certificate.names) != set(acme.names):
        return Plan(0.0, "the names changed")
    if state.issued and state.issued != wanted:
        return Plan(0.0, "the configuration changed")
    return _renewal(certificate, state)


def is_due(certificate: Certificate, state: State, now: float) -> bool:
    """Return whether it is time to renew a certificate of an authority."""
    return _renewal(certificate, state).at <= now


def is_near_end(certificate: Certificate, now: float) -> bool:
    """Return whether a certificate has little time left, so that any other one is better."""
    return now >= _latest(certificate)


def _renewal(certificate: Certificate, state: State) -> Plan:
    life = certificate.end - certificate.begin
    earliest = min(state.renewed, certificate.end) + life * _LEAST
    if 0 < state.suggested < _latest(certificate):
        return Plan(max(state.suggested, earliest), "the authority suggests it")
    return Plan(max(renewal_time(certificate), earliest), "renewal")


def _latest(certificate: Certificate) -> float:
    return certificate.end - _LAST * (certificate.end - certificate.begin)


def renewal_time(certificate: Certificate) -> float:
    """Return when to renew a certificate of an authority that suggests no time.

    It is the same at each call, and spread over the certificates of an authority.
    """
    seed = hashlib.sha256(f"{certificate.begin} {certificate.names}".encode()).digest()
    share = _LIFE + _SPREAD * int.from_bytes(seed[:4], "big") / 2**32
    return certificate.begin + share * (certificate.end - certificate.begin)


def wait(
    failure: Failure,
    failures: int,
    ordered: float = 0.0,
    draw: Callable[[], float] = _chance.random,
) -> float:
    """Return the seconds to wait after the given number of failures in a row.

    `ordered` is what the authority said in Retry-After. `draw` returns a number from 0 to 1.
    """
    first, longest = failure.value
    doubled = min(first * 2.0 ** min(max(failures - 1, 0), 32), longest)
    return max(doubled, min(ordered, _LONGEST_ORDER)) * (1 + _JITTER * draw())


def is_self_signed(certificate: Certificate) -> bool:
    """Return whether no authority signed a certificate."""
    return certificate.issuer == certificate.subject
