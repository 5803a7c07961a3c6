"""What filters have found, worth some points, for whoever adds them up.

    findings_of(envelope).append(Finding("dnsbl", "zen.example", 4.0))

A session's findings count for each of its messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from minismtp.mail.envelope import Envelope
from minismtp.mail.session import Session
from minismtp.values.stash import StashKey


@dataclass(frozen=True, slots=True)
class Finding:
    """`points` speak for spam when they are above 0, against it below; `text` is for people."""

    plugin: str
    name: str
    points: float
    text: str = ""


_FINDINGS: Final[StashKey[list[Finding]]] = StashKey()


def findings_of(place: Session | Envelope) -> list[Finding]:
    """Return the list of the findings so far, to read or to add to."""
    return place.stash.setdefault(_FINDINGS, [])
