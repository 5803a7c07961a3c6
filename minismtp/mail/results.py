"""The results of filters, which they leave for other plugins.

Checks of a sender leave an `AuthResult` (RFC 8601) on the envelope:

    found = AuthResult("spf", "pass", properties={"smtp.mailfrom": "a@b.example"})
    results_of(envelope).append(found)

Any filter may leave a `Finding` with points that a plugin such as `score` adds up. A session's
findings count for each of its messages:

    findings_of(envelope).append(Finding("dnsbl", "zen.example", 4.0))
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from minismtp.mail.envelope import Envelope
from minismtp.mail.session import Session
from minismtp.values.stash import StashKey

# pvalue = [CFWS] ((value / [[local-part] "@"] domain-name) [CFWS]); value = token / quoted-string
_PLAIN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+./^_`{|}~@-]+")
# Keyword: letters, digits and hyphens (RFC 8601 section 2.2, RFC 5321 section 4.1.2)
_NO_KEYWORD: Final = re.compile(r"[^A-Za-z0-9_-]")
_LONGEST: Final = 900  # octets, of the 998 of a line (RFC 5322 section 2.1.1)
_SHORTENED: Final = 200  # characters of at most four octets


@dataclass(frozen=True, slots=True)
class AuthResult:
    """One result: `method` (spf, dkim, dmarc, arc ...), `result` (pass, fail, none, temperror ...).

    `properties` are those of RFC 8601 section 2.3 with their types: {"header.d": "example.org"}.
    `reason` is a text for people.
    """

    method: str
    result: str
    reason: str = ""
    properties: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the result as resinfo of RFC 8601 section 2.2."""
        parts = [f"{_keyword(self.method)}={_keyword(self.result)}"]
        if self.reason:
            parts.append(f"reason={quoted(self.reason, always=True)}")
        parts += [f"{name}={quoted(value)}" for name, value in self.properties.items()]
        return " ".join(parts)


def _keyword(text: str) -> str:
    """Return a method or a result with "?" for each character that no keyword may have."""
    return _NO_KEYWORD.sub("?", text)


_RESULTS: Final[StashKey[list[AuthResult]]] = StashKey()


def results_of(envelope: Envelope) -> list[AuthResult]:
    """Return the list of the results so far; plugins may add to it."""
    return envelope.stash.setdefault(_RESULTS, [])


def quoted(value: str, *, always: bool = False) -> str:
    """Return a value as a token or a quoted-string, with "?" for control characters."""
    if not always and len(value) <= _LONGEST and _PLAIN.fullmatch(value):
        return value
    clean = value
    if not value.isprintable():
        clean = "".join(char if char.isprintable() else "?" for char in value)
    text = '"' + clean.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if len(text.encode("utf-8", "replace")) <= _LONGEST:
        return text
    return quoted(f"{clean[:_SHORTENED]}...", always=True)


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
