"""Add up the findings of earlier filters, and act on the sum."""

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from minismtp import (
    Defer,
    Envelope,
    Finding,
    Message,
    PluginCheck,
    Reject,
    Session,
    StashKey,
    findings_of,
    hookimpl,
    plugin,
)

from ._checks import FINDINGS
from ._options import check_thresholds

_log: Final = logging.getLogger(__name__)
_NAMED: Final = 3  # findings in a reply
_LOGGED: Final = 20
_LONGEST: Final = 80  # characters of a name
_STRANGE: Final = re.compile(r"[^!-+\--<>-~]")  # characters that are not printable, and = and ,
_TESTS = 100  # named in a field


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """The sum for a message, and its findings with weighted points."""

    score: float
    findings: tuple[Finding, ...]


#: The result of an envelope's message.
SCORE: Final[StashKey[ScoreResult]] = StashKey()


@plugin
class Score:
    """Mark, quarantine, defer or refuse a message by the points of other filters.

    Filters make findings, for the session or the message, with points above 0 for spam or below 0
    against it. `weights` multiplies them: a key is a plugin (`rspamd = 0.5`) or one finding
    (`"dnsbl.zen.spamhaus.org" = 2.0`), which takes precedence over its plugin; 0 ignores them.

    With a sum of at least `tag` a message gets X-Spam-Flag. X-Spam-Score and X-Spam-Status always
    show the sum and the findings, and such fields of the sender are removed. From `quarantine` on
    the message is quarantined, from `defer` on deferred with 451 4.7.1, and from `reject` on
    refused with 550 5.7.1. `""` turns each of these off, `tag` with all fields. A reply names the
    worst findings, and the log all. Mail of users after a login is not checked. Put it after all
    filters that make findings.
    """

    tag: float | None = 5.0
    quarantine: float | None = None
    defer: float | None = None
    reject: float | None = 15.0
    weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_thresholds(tag=self.tag, quarantine=self.quarantine, reject=self.reject)
        check_thresholds(tag=self.tag, defer=self.defer, reject=self.reject)
        for name, weight in self.weights.items():
            if not math.isfinite(weight):
                raise ValueError(f"weights: expected a number for {name}")

    @hookimpl
    def on_check(self, check: PluginCheck) -> None:
        """Warn if filters that make findings come later."""
        check.comes_after(*FINDINGS, lest="adds up the findings of the filters above it only")

    @hookimpl
    def on_message(self, session: Session, envelope: Envelope, message: Message) -> None:
        """Add up the points, and take the action for the sum."""
        if session.login is not None:
            return
        found = [self._weighted(each) for each in (*findings_of(session), *findings_of(envelope))]
        found.sort(key=lambda finding: finding.points, reverse=True)
        score = math.fsum(finding.points for finding in found)
        if not math.isfinite(score):
            raise ValueError(f"the points are no numbers: {found}")
        envelope.stash[SCORE] = ScoreResult(score, tuple(found))
        named = [f"{_label(finding)}={finding.points:g}" for finding in found]
        if found:
            _log.info("score %.1f: %s", score, " ".join(named[:_LOGGED]))
        if self.tag is not None:
            remove_marks(message)
            mark(message, spam=score >= self.tag, score=score, required=self.tag, tests=named)
        self._act(message, score, found)

    def _weighted(self, finding: Finding) -> Finding:
        weight = self.weights.get(f"{finding.plugin}.{finding.name}")
        if weight is None:
            weight = self.weights.get(finding.plugin, 1.0)
        return Finding(finding.plugin, finding.name, finding.points * weight, finding.text)

    def _act(self, message: Message, score: float, found: list[Finding]) -> None:
        worst = ", ".join(_label(finding) for finding in found[:_NAMED] if finding.points > 0)
        refused = self.reject is not None and score >= self.reject
        if not refused and self.defer is not None and score >= self.defer:
            raise Defer(f"message deferred: it looks like spam ({worst})")
        text = f"message refused as spam ({worst})"
        act_on_score(message, score, text, quarantine=self.quarantine, reject=self.reject)


def _label(finding: Finding) -> str:
    """Return the name of a finding as one word of ASCII."""
    whole = finding.name == "score"  # the sum of a scanner
    name = finding.plugin if whole else f"{finding.plugin}.{finding.name}"
    return _STRANGE.sub("_", name)[:_LONGEST]


def remove_marks(message: Message) -> None:
    """Remove all X-Spam-* fields of the sender."""
    headers = message.headers
    marks = {raw for name in headers.names("x-spam-") for raw in headers.raw_all(name)}
    if marks:
        message.edit([raw for raw in headers.raw_all() if raw not in marks])


def mark(
    message: Message, *, spam: bool, score: float, required: float, tests: Sequence[str]
) -> None:
    """Put X-Spam-Status and X-Spam-Score on top, and X-Spam-Flag if it is spam."""
    named = ", ".join(tests[:_TESTS]) or "none"
    word = "Yes" if spam else "No"
    status = f"{word}, score={score:.1f} required={required:.1f} tests={named}"
    message.prepend("X-Spam-Status", status)
    message.prepend("X-Spam-Score", f"{score:.1f}")
    if spam:
        message.prepend("X-Spam-Flag", "YES")


def act_on_score(
    message: Message, score: float, text: str, *, quarantine: float | None, reject: float | None
) -> None:
    """Refuse a message from the score `reject` on, or quarantine it from `quarantine` on."""
    if reject is not None and score >= reject:
        raise Reject(text)
    if quarantine is not None and score >= quarantine:
        message.quarantine(f"spam, score {score:.1f}")
