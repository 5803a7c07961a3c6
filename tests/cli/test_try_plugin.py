"""`minismtp try`: one plugin over one message."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from minismtp.cli.main import main

Capture = pytest.CaptureFixture[str]
PLUGIN = """
from minismtp import AuthResult, Finding, Reject, findings_of, hookimpl, plugin, results_of

@plugin
class Words:
    words: list[str]
    text: str = "not wanted"
    score: float = 2.5

    @hookimpl
    def on_connect(self, session):
        findings_of(session).append(Finding("words", "peer", self.score, session.peer))

    @hookimpl
    def on_mail(self, session, envelope):
        who = session.login or session.helo
        results_of(envelope).append(AuthResult("spf", "pass", who))

    @hookimpl
    def on_message(self, message):
        findings = self.words and any(word in message.headers.get("Subject") for word in self.words)
        if findings:
            raise Reject(self.text)
        message.prepend("X-Words", "none")
        message.remove("X-Old")
"""
OTHERS = """
from minismtp import Reject, hookimpl, plugin

@plugin
class Others:
    act: str

    @hookimpl
    def on_start(self):
        if self.act == "start":
            raise OSError("no database")

    @hookimpl
    def on_message(self, envelope, message):
        match self.act:
            case "refuse":
                envelope.refuse(envelope.recipients[0].address, Reject("not me"))
            case "quarantine" | "discard":
                getattr(message, self.act)("because")
            case "replace":
                message.replace(b"Subject: x\\r\\n\\r\\nother\\r\\n")
            case "edit":
                message.remove("Subject")
            case "fail":
                raise KeyError("x")
"""
MAIL = "Subject: lottery\nX-Old: 1\n\nHello.\n"
LISTENERS = (
    '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\ntls = "none"\n'
    '[[listeners]]\nname = "users"\naddress = "127.0.0.1:0"\ntls = "none"\nkind = "submission"\n'
)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work where the plugins and the message are, away from this machine's configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINISMTP_CONFIG", raising=False)
    monkeypatch.setattr("minismtp.config.DEFAULT_FILE", tmp_path / "no.toml")
    (tmp_path / "words.py").write_text(PLUGIN)
    (tmp_path / "others.py").write_text(OTHERS)
    (tmp_path / "mail.eml").write_text(MAIL)
    return tmp_path


WORDS = ["try", "words.py", "mail.eml"]


def told(capsys: Capture, *arguments: str) -> dict[str, Any]:
    """Run the command with --json and return what it printed."""
    main([*arguments, "--json"])
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_refused_message_ends_with_1_and_its_reply(capsys: Capture) -> None:
    assert main([*WORDS, "--set", 'words=["lottery"]']) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "words: rejected: 550 5.7.1 not wanted"
    [step] = [line for line in lines if "on_message" in line]
    assert step.split()[2:] == ["ms", "reject", "550", "5.7.1", "not", "wanted"]


def test_accepted_message_ends_with_0_and_shows_what_changed(capsys: Capture) -> None:
    assert main([*WORDS, "--set", "words=[]"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"+ X-Words: none", "- X-Old: 1", 'result: spf=pass reason="client.example"'} <= {*lines}
    assert "finding: words peer +2.5 192.0.2.1" in lines
    assert lines[-1].startswith("words: accepted: 250 2.0.0 message accepted")


def test_programs_get_the_same(capsys: Capture) -> None:
    report = told(capsys, *WORDS, "--set", "words=[]")
    assert (report["plugin"], report["accepted"], report["outcome"]) == ("words", True, "accepted")
    assert [step["hook"] for step in report["steps"]] == [
        *("on_connect", "on_mail", "RCPT", "on_message")
    ]
    assert (report["added"], report["removed"]) == (["X-Words: none"], ["X-Old: 1"])
    assert report["findings"] == [
        {"plugin": "words", "name": "peer", "points": 2.5, "text": "192.0.2.1"}
    ]


def test_scene_is_set_by_options(capsys: Capture) -> None:
    scene = ["--peer", "2001:db8::1", "--helo", "x.example", "--from", "", "--to", "a@b.example"]
    report = told(capsys, *WORDS, "--set", "words=[]", *scene)
    assert report["findings"][0]["text"] == "2001:db8::1"
    assert report["results"] == ['spf=pass reason="x.example"']
    assert [step["about"] for step in report["steps"] if step["hook"] == "RCPT"] == ["a@b.example"]


def test_user_may_have_logged_in(capsys: Capture) -> None:
    report = told(capsys, *WORDS, "--set", "words=[]", "--login", "alice")
    assert report["results"] == ['spf=pass reason="alice"']


@pytest.mark.parametrize(
    ("value", "text"), [("go away", "go away"), ('"go away"', "go away"), ("a=b", "a=b")]
)
def test_option_that_is_no_toml_is_text(value: str, text: str, capsys: Capture) -> None:
    report = told(capsys, *WORDS, "--set", 'words=["lottery"]', "--set", f"text={value}")
    assert report["reply"] == f"550 5.7.1 {text}"


@pytest.mark.parametrize(
    ("act", "outcome", "line"),
    [
        ("quarantine", "quarantined", "quarantined: because"),
        ("discard", "discarded", "discarded: because"),
        ("replace", "accepted", "the body was changed"),
        ("edit", "accepted", "- Subject: lottery"),
    ],
)
def test_what_became_of_the_message_is_told(
    act: str, outcome: str, line: str, capsys: Capture
) -> None:
    assert main(["try", "others.py", "mail.eml", "--set", f"act={act}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert line in lines
    assert lines[-1].startswith(f"others: {outcome}: 250")
    assert ("the body was changed" in lines) == (act == "replace")


def test_recipient_with_a_verdict_of_its_own_is_told(capsys: Capture) -> None:
    both = ["--to", "bob@example.org", "--to", "ann@example.org"]
    assert main(["try", "others.py", "mail.eml", "--set", "act=refuse", *both]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "quarantined: bob@example.org" in lines
    assert lines[-1].startswith("others: accepted: 250")


def test_plugin_that_fails_shows_why(capfd: Capture) -> None:
    assert main(["try", "others.py", "mail.eml", "--set", "act=fail"]) == 1
    output = capfd.readouterr()
    assert "failed: KeyError: 'x'" in output.out
    assert "Traceback" in output.err


def test_plugin_that_does_not_start_is_one_line(capfd: Capture) -> None:
    assert main(["try", "others.py", "mail.eml", "--set", "act=start"]) == 1
    pattern = r"minismtp: plugin 'others' \(.*/others\.py:\d+\): on_start: OSError: no database\n"
    assert re.search(pattern, capfd.readouterr().err)


def test_configured_plugin_runs_with_its_options_enforced(place: Path, capsys: Capture) -> None:
    table = (
        '[[plugins]]\nuse = "words"\nname = "strict"\nmode = "shadow"\nlisteners = ["users"]\n'
        'words = ["lottery"]\ntext = "configured"\n'
    )
    (place / "x.toml").write_text(f'plugin_path = ["."]\n{LISTENERS}{table}')
    configured = ["try", "strict", "mail.eml", "--config", "x.toml"]
    assert told(capsys, *configured)["reply"] == "550 5.7.1 configured"
    assert told(capsys, *configured, "--set", "text=changed")["reply"] == "550 5.7.1 changed"


def test_installed_plugin_is_found_by_its_name(capsys: Capture) -> None:
    domains = 'domains=["example.org"]'
    report = told(capsys, "try", "mailboxes", "mail.eml", "--set", domains, "--set", 'users=["a"]')
    assert report["reply"].startswith("550 5.1.1 ")


def test_plugin_that_stores_mail_stores_it(place: Path) -> None:
    path = f"path={place}/mail/{{local}}"
    assert main(["try", "maildir", "mail.eml", "--to", "a@example.org", "--set", path]) == 0
    assert len([*place.glob("mail/a/new/*")]) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "problem"),
    [
        (["nowhere.py", "mail.eml"], 78, "nowhere.py: no such file"),
        (["wrods", "mail.eml"], 78, "plugin wrods.use: no plugin is called 'wrods'"),
        (["words.py", "no.eml", "--set", "words=[]"], 1, "no.eml: No such file"),
        (["words.py", "mail.eml"], 78, "plugin words.words: this key is required"),
        (["words.py", "mail.eml", "--set", "words"], 78, "--set: expected KEY=VALUE"),
        (["words.py", "mail.eml", "--set", "=x"], 78, "--set: expected KEY=VALUE"),
        (["words.py", "mail.eml", "--set", "words=1"], 78, "words.words: expected array"),
        (["words.py", "mail.eml", "--set", "wrods=[]"], 78, "did you mean 'words'?"),
        (["words.py", "mail.eml", "--peer", "x"], 2, "argument --peer"),
    ],
)
def test_mistake_is_told_in_one_line(
    arguments: list[str], status: int, problem: str, capsys: Capture
) -> None:
    assert main(["try", *arguments]) == status
    assert problem in capsys.readouterr().err.splitlines()[-1]


FIRST = """
from minismtp import hookimpl, plugin

@plugin
class First:
    {option}

    @hookimpl
    def on_mail(self, envelope):
        envelope.stash  # notes something
"""
SECOND = """
from minismtp import hookimpl, plugin

@plugin
class Second:
    needs = ("first",)

    @hookimpl
    def on_message(self, message):
        pass
"""


def test_plugins_that_a_plugin_needs_run_before_it(place: Path, capsys: Capture) -> None:
    (place / "first.py").write_text(FIRST.format(option="text: str = 'x'"))
    (place / "second.py").write_text(SECOND)
    assert main(["try", "second.py", "mail.eml"]) == 0
    calls = [line.split()[0] for line in capsys.readouterr().out.splitlines() if " ms " in line]
    assert calls == ["first.on_mail", "second.on_message"]


def test_needed_plugin_that_cannot_run_is_named(place: Path, capsys: Capture) -> None:
    (place / "first.py").write_text(FIRST.format(option="text: str"))
    (place / "second.py").write_text(SECOND)
    assert main(["try", "second.py", "mail.eml"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("minismtp: second needs first before it, but: ")
    assert "text" in error


def test_dmarc_runs_behind_what_it_needs(place: Path, capsys: Capture) -> None:
    config = place / "minismtp.toml"
    config.write_text(LISTENERS + '[dns]\nnameservers = ["127.0.0.1:9"]\n')
    main(["try", "dmarc", "mail.eml", "--json", "--config", str(config), "--peer", "127.0.0.1"])
    out = capsys.readouterr().out
    assert "LookupError" not in out
    assert [step["about"] for step in json.loads(out)["steps"] if "." not in step["about"]][:1] == [
        "spf"
    ]
