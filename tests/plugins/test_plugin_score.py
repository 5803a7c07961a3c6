"""Findings add up to a score, and the score decides."""

from __future__ import annotations

import re
from dataclasses import field
from pathlib import Path

import pytest
from minismtp_plugins._checks import FINDINGS, RESULTS
from minismtp_plugins.score import SCORE, Score
from source import ROOT

from minismtp import Envelope, Finding, Headers, Session, findings_of, hookimpl, plugin
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.testing import Dialogue, Mailroom

MAIL = "Subject: hello\n\nA message.\n"
DEFERRED = "451 4.3.0 temporary failure, try again later"


@plugin
class Finder:
    """Make the findings of a test, for the session and for each message."""

    session: list[Finding] = field(default_factory=list)
    message: list[Finding] = field(default_factory=list)

    @hookimpl
    def on_helo(self, session: Session) -> None:
        findings_of(session)[:] = self.session

    @hookimpl
    def on_message(self, envelope: Envelope) -> None:
        findings_of(envelope).extend(self.message)


@plugin
class Notes:
    """Keep the result of the plugin on the last envelope."""

    @hookimpl
    def on_message(self, envelope: Envelope) -> None:
        self.result = envelope.stash.get(SCORE, None)


def points(*values: float) -> Finder:
    return Finder(message=[Finding("p", f"f{n}", value) for n, value in enumerate(values)])


def stored(mailroom: Mailroom) -> Headers:
    return Headers.parse(mailroom.stored["user@example.org"][-1])


def test_findings_of_session_and_message_add_up_for_each_message() -> None:
    finder = Finder(session=[Finding("a", "x", 2.5)], message=[Finding("b", "y", 1.0)])
    mailroom, notes = Mailroom(), Notes()
    dialogue = Dialogue(finder, Score(), notes, mailroom)
    for _ in range(2):
        assert dialogue.mail(MAIL).startswith("250 ")
        assert notes.result is not None
        assert notes.result.score == 3.5
        assert stored(mailroom).get("X-Spam-Score") == "3.5"


def test_weights_multiply_and_the_single_finding_counts_before_its_plugin() -> None:
    finder = Finder(
        message=[Finding("a", "x.y", 1.0), Finding("a", "z", 1.0), Finding("b", "c", 1.0)]
    )
    notes = Notes()
    weights = {"a.x.y": 10.0, "a": 0.5, "b": -1.0, "nobody": 5.0}
    Dialogue(finder, Score(weights=weights), notes, Mailroom()).mail(MAIL)
    assert notes.result is not None
    assert notes.result.score == 9.5
    assert [each.points for each in notes.result.findings] == [10.0, 0.5, -1.0]


@pytest.mark.parametrize(
    ("values", "reply", "outcome"),
    [
        ([], "250 ", "stored"),
        ([4.9], "250 ", "stored"),
        ([8.0], "250 ", "quarantined"),
        ([10, -2.5, 0.5], "250 ", "quarantined"),
        ([10], "451 4.7.1 message deferred: it looks like spam (p.f0)", "deferred"),
        ([7.5, -1, 7.5, 0.5, 0.25, 0.25],
         "550 5.7.1 message refused as spam (p.f0, p.f2, p.f3)", "rejected"),
    ],
)  # fmt: skip
def test_each_threshold_has_its_effect(values: list[float], reply: str, outcome: str) -> None:
    dialogue = Dialogue(points(*values), Score(quarantine=8.0, defer=10.0), Mailroom())
    assert dialogue.mail(MAIL).startswith(reply)
    assert dialogue.count("messages_total", listener="test", outcome=outcome) == 1


def test_marks_from_elsewhere_are_removed_and_ours_say_why() -> None:
    mailroom = Mailroom()
    dialogue = Dialogue(points(4.0, -1.5, 3.25), Score(), mailroom)
    dialogue.mail(f"X-Spam-Flag: NO\nX-Spam-Level: *\nX-SPAM-score: 0\n{MAIL}")
    fields = [each for each in stored(mailroom) if each[0].lower().startswith("x-spam")]
    assert fields == [
        ("X-Spam-Flag", "YES"),
        ("X-Spam-Score", "5.8"),
        ("X-Spam-Status", "Yes, score=5.8 required=5.0 tests=p.f0=4, p.f2=3.25, p.f1=-1.5"),
    ]


def test_message_below_the_threshold_has_no_flag() -> None:
    mailroom = Mailroom()
    Dialogue(Score(), mailroom).mail(f"X-Spam-Flag: YES\n{MAIL}")
    assert "X-Spam-Flag" not in stored(mailroom)
    assert stored(mailroom).get("X-Spam-Status") == "No, score=0.0 required=5.0 tests=none"


def test_fields_stay_as_they_are_without_a_tag() -> None:
    mailroom = Mailroom()
    Dialogue(points(9), Score(tag=None), mailroom).mail(f"X-Spam-Flag: NO\n{MAIL}")
    assert stored(mailroom).get_all("X-Spam-Flag") == ["NO"]
    assert "X-Spam-Score" not in stored(mailroom)


def test_log_says_how_the_score_came_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        Dialogue(points(1, 2.5), Score(), Mailroom()).mail(MAIL)
        Dialogue(Score(), Mailroom()).mail(MAIL)
    assert caplog.messages == ["score 3.5: p.f1=2.5 p.f0=1"]


def test_user_who_has_logged_in_is_left_alone() -> None:
    mailroom = Mailroom()
    dialogue = Dialogue(points(100), Score(), mailroom, login="alice", tls=True)
    assert dialogue.mail(f"X-Spam-Flag: YES\n{MAIL}").startswith("250 ")
    assert stored(mailroom).get("X-Spam-Flag") == "YES"


def test_names_of_findings_cannot_break_a_field_or_a_reply() -> None:
    finder = Finder(message=[Finding("a\r\nX-Evil: 1", "\u00e4=b, c\0" + "x" * 5000, 6.0)])
    mailroom = Mailroom()
    assert Dialogue(finder, Score(), mailroom).mail(MAIL).startswith("250 ")
    assert "X-Evil" not in stored(mailroom)
    assert "tests=a__X-Evil:_1.__b__c_xxx" in stored(mailroom).get("X-Spam-Status")


def test_scanners_own_sum_goes_by_the_name_of_the_scanner() -> None:
    finder = Finder(message=[Finding("rspamd", "score", 20.0, "BAD")])
    reply = Dialogue(finder, Score(), Mailroom()).mail(MAIL)
    assert reply == "550 5.7.1 message refused as spam (rspamd)"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_points_that_are_no_number_defer(value: float) -> None:
    assert Dialogue(points(value), Score(), Mailroom()).mail(MAIL) == DEFERRED


def test_many_findings_make_a_field_of_bounded_size() -> None:
    mailroom = Mailroom()
    Dialogue(points(*[0.001] * 10_000), Score(tag=1.0), mailroom).mail(MAIL)
    assert len(stored(mailroom).get("X-Spam-Status")) < 2000


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"tag": 20.0}, "reject: expected at least the 20 of tag, not 15"),
        ({"defer": 4.0}, "defer: expected at least the 5 of tag, not 4"),
        ({"quarantine": 20.0}, "reject: expected at least the 20 of quarantine, not 15"),
        ({"reject": float("nan")}, "reject: expected a number"),
        ({"weights": {"a": float("inf")}}, "weights: expected a number for a"),
    ],
)
def test_options_that_make_no_sense_are_mistakes(table: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        build(Score, table, file="c.toml", key="plugins[0]", base=Path())


def test_lists_of_filters_are_those_that_leave_something() -> None:
    """`score` and `authentication_results` warn of these filters only if the lists are complete."""
    sources = {
        path.stem: path.read_text()
        for path in (ROOT / "plugins").glob("[!_]*.py")
        if path.stem not in {"score", "authentication_results"}
    }
    leaves = {
        FINDINGS: r"\bnote\(envelope|findings_of\(\w+\)\.(append|extend)",
        RESULTS: r"results_of\(\w+\)\.(append|extend)|results_of\(envelope\)\s*\+=",
    }
    for known, pattern in leaves.items():
        assert {name for name, text in sources.items() if re.search(pattern, text)} == {*known}
