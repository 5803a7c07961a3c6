"""Findings of filters, with points that a plugin such as `score` adds up.

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
    """A finding: points above 0 speak for spam, points below 0 against it; `text` is for people."""

    plugin: str
    name: str
    points: float
    text: str = ""


_FINDINGS: Final[StashKey[list[Finding]]] = StashKey()


def findings_of(place: Session | Envelope) -> list[Finding]:
    """Return the list of the findings so far; plugins may add to it."""
    return place.stash.setdefault(_FINDINGS, [])
