"""Orders a certificate for all names that the authority can check.

An order is for all of its names or for none (RFC 8555 section 7.4). So one name without its record
in the DNS would leave the host without a certificate. A name is therefore checked in each way that
there is, and if none succeeds, the next order is without that name, unless it must be in the
certificate. The authority does not repeat the checks that succeeded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from minismtp.services.acme_answers import Answers
from minismtp.services.acme_schedule import CheckError

_MOST_ORDERS: Final = 5  # of one attempt, each with two minutes for the checks


class Issue(Protocol):
    """Orders a certificate for names, each with its way to be checked."""

    def __call__(self, ways: Mapping[str, Answers]) -> bytes:
        """Return the certificate and its chain, PEM. Raise AcmeError and OSError."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with its chain, PEM, and why the authority cannot check the `missing` names."""

    chain: bytes
    names: tuple[str, ...]
    missing: dict[str, str]


def order(
    issue: Issue,
    names: Sequence[str],
    answers: Sequence[Answers],
    is_enough: Callable[[Collection[str]], bool],
    say: Callable[[str], None],
) -> Issued:
    """Return a certificate for the names, or for those of them that are enough.

    Raise CheckError if the others are not enough, AcmeError and OSError.
    """
    ways = dict.fromkeys(names, 0)  # for each name, which of the answers is next
    reasons: dict[str, str] = {}
    for _ in range(_MOST_ORDERS):
        used = {name: answers[number] for name, number in ways.items()}
        try:
            chain = issue(used)
        except CheckError as error:
            failed = {name: error.failed[name] for name in used if name in error.failed}
            if not failed:
                raise
            for name, reason in failed.items():
                shown = f"{reason} ({used[name]})" if len(answers) > 1 else reason
                reasons[name] = f"{reasons[name]}, and {shown}" if name in reasons else shown
                ways[name] += 1
            ways = {name: number for name, number in ways.items() if number < len(answers)}
            if not is_enough(ways):
                break
            say(str(error))
        else:
            missing = {name: reasons[name] for name in names if name not in ways}
            return Issued(chain, tuple(ways), missing)
    lost = {name: reason for name, reason in reasons.items() if name not in ways}
    raise CheckError(lost or reasons)
