"""The table of all targets."""

from __future__ import annotations

from fuzz import chain, mail, postfix, records, senders, services, web, wire
from fuzz.target import TARGETS, Target

__all__ = [
    "TARGETS",
    "Target",
    "chain",
    "mail",
    "postfix",
    "records",
    "senders",
    "services",
    "web",
    "wire",
]
