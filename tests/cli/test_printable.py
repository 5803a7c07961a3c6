"""Commands and the status page show text of strangers without letting it act."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minismtp.cli import (
    certificate,
    explain,
    quarantine,
    queue,
    replay,
    sessions,
    shadow,
    trace,
    try_plugin,
)
from minismtp.cli.common import fail, say
from minismtp.cli.main import COMMANDS
from minismtp.mail.content import Content
from minismtp.mail.message import Message
from minismtp.mail.queue_entry import QueuedRecipient, QueueEntry
from minismtp.mail.results import Finding
from minismtp.mailqueue.database import Waiting
from minismtp.runtime.decision_log import Record
from minismtp.server import open_sessions
from minismtp.server.figures import HookFigures, Overview
from minismtp.server.history import History
from minismtp.server.status_page import Status, render
from minismtp.storage.quarantine import Kept
from minismtp.values.printable import one_line, printable

NOW: Final = 1_700_000_000.0
PLAIN: Final = "text"
#: Each moves, hides, reorders or ends something on some terminal, or in some browser.
HOSTILE: Final = [
    "\x1b[2J\x1b]0;title\x07",
    *("\b\b", "\x7f", "\x80", "\x9b31m", "\r", "\n", "\r\n", "\v", "\f", "\x85", "\0", "\t"),
    *("\u2028", "\u2029"),
    *("\u202e", "\u202d", "\u2066", "\u2069", "\u200e", "\u061c"),
    *("\u200b", "\u200d", "\u2060", "\ufeff", "\u00ad", "\U000e0041", "\ud800", "\ue000"),
]


def waiting(text: str, **more: str | float) -> Waiting:
    fields: dict[str, Any] = {
        **dict.fromkeys(("message", "sender", "address", "destination", "reply", "host"), text),
        "arrived": NOW,
        "size": 1,
        "state": "queued",
        "attempts": 1,
        "next": NOW,
        "tried": NOW,
        "closed_until": 0.0,
        "closed_reply": text,
    }
    return Waiting(**{**fields, **more})


def queued(text: str) -> list[Waiting]:
    return [waiting(text), waiting(text, reply="", attempts=0, closed_until=NOW + 9)]


def contents(text: str) -> dict[str, dict[str, str]]:
    names = ("subject", "login", "peer", "listener", "quarantine", "problem")
    return {text: dict.fromkeys(names, text)}


def quarantined(text: str) -> quarantine.Found:
    name = text
    text = text.encode("utf-8", "replace").decode()  # the stored message is the only one
    target = QueuedRecipient(kind="local", address=text, recipient=text)
    entry = QueueEntry(
        id=text,
        sender=text,
        listener=text,
        peer=text,
        helo=text,
        login=text,
        arrived=NOW,
        targets=(target, target),
        quarantined=text,
    )
    octets = text.encode("utf-8", "surrogatepass")
    # A field ends at its line feed, which belongs to the header that is shown as it is.
    content = Content.of(b"Subject: " + octets.replace(b"\n", b" ") + b"\r\n\r\nx\r\n")
    message = Message("x", content)
    kept = Kept(Path(name.replace("\0", "")), name, name, NOW, 1)
    store = cast("Any", Mock(open=lambda _: (entry, message)))
    return replace(quarantine.read(store, kept, headers=True), problem=text)


def session(text: str) -> dict[str, Any]:
    names = ("id", "peer", "listener", "state", "login", "tls", "helo", "message", "plugin", "hook")
    return {**dict.fromkeys(names, text), "age": 1.0, "seconds": 1.0, "idle": 1.0, "stack": [text]}


def step(text: str, what: str = "") -> tuple[str, str, float, float, str, str]:
    return what or text, text, NOW, 0.1, text, text


def record(text: str) -> Record:
    steps = [step(text), step(text, "RCPT"), step(text, "reply")]
    return Record(text, text, NOW, NOW, {"helo": text, "reply": text}, steps)


def shadows(text: str) -> shadow.Shadow:
    found = shadow.Shadow(text)
    found.add((text, text, NOW, 0.1, f"shadow:{text}", text), NOW, text)
    return found


def report(text: str) -> dict[str, Any]:
    steps = [
        {"hook": hook, "about": text, "seconds": 0.1, "verdict": text, "remark": text}
        for hook in ("RCPT", "reply", text)
    ]
    finding = Finding(text, text, 1.0, text)
    names = ("plugin", "outcome", "reply", "quarantined", "discarded")
    return dict.fromkeys(names, text) | {
        "accepted": True,
        "steps": steps,
        "added": [text],
        "removed": [text],
        "body_changed": True,
        "results": [text],
        "findings": [finding],
        "recipients": {text: text},
    }


def page(text: str) -> str:
    figures = Overview(
        queue={text: 1.0},
        outcomes={text: 1.0},
        verdicts={text: {text: 1.0}},
        refusals={(text, text, text, text): 1.0},
        hooks={(text, text): HookFigures(1.0)},
        errors={text: 1.0},
        logins={text: 1.0},
        memory={(text, text): 1.0},
        certificates={text: 0.0},
        stale={text},
        problems={"disk"},
    )
    found = open_sessions.Survey([session(text)], [text])
    return render(
        Status(
            hostname=text,
            figures=figures,
            history=History(lambda: figures),
            found=found,
            now=NOW,
            waiting=queued(text),
            sentences={"disk": text},
        )
    )


SHOWN: Final[dict[str, Callable[[str], Iterable[str]]]] = {
    "queue list": lambda text: queue.listed(queued(text), NOW),
    "queue show": lambda text: queue.details(queued(text), contents(text), NOW),
    "queue --json": lambda text: queue.listed_as_json(queued(text[:1]), {}, NOW),
    "quarantine list": lambda text: quarantine.listed([quarantined(text)], NOW),
    "quarantine show": lambda text: quarantine.details([quarantined(text)], NOW),
    "quarantine --json": lambda text: quarantine.listed_as_json(
        [quarantined(text)], NOW, headers=True
    ),
    "sessions": lambda text: sessions.listed(
        open_sessions.Survey([session(text), session(text)], [])
    ),
    "sessions --json": lambda text: [json.dumps([session(text)])],
    "explain": lambda text: explain.lines_of(record(text)),
    "trace": lambda text: [
        trace.line_of({"at": NOW, "session": text, "peer": text, "said": "C", "text": text})
    ],
    "certificate": lambda text: certificate.details(
        {"table": "tls", "file": "c.pem", "names": [text], "issuer": text, "error": text}
    ),
    "shadow": lambda text: shadow.lines_of(shadows(text), NOW),
    "try": lambda text: try_plugin.as_text(report(text)),
    "replay": lambda text: [replay.line_of(replay.Difference(text, text, text, text, text))],
    "page": lambda text: page(text).split("\n"),
}


def shown(
    show: Callable[[str], Iterable[str]], text: str, capsys: pytest.CaptureFixture[str]
) -> str:
    say(*show(text))
    return capsys.readouterr().out


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
@pytest.mark.parametrize("name", SHOWN)
def test_nothing_that_strangers_say_acts_on_a_screen(
    name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    harmless = shown(SHOWN[name], f"a{PLAIN}b", capsys)
    output = shown(SHOWN[name], f"a{text}b", capsys)
    assert all(char.isprintable() or char == "\n" for char in output)
    assert output.count("\n") == harmless.count("\n")


def test_error_is_printed_without_controls(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail("\x1b[2Jno \u202e") == 1
    assert capsys.readouterr().err == "minismtp: \\u001b[2Jno \\u202e\n"


def test_text_that_can_be_read_stays_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = 'G\u00fc\u00dfe \u4f60\u597d "\u05e9\u05dc\u05d5\u05dd"\n  \U0001f600 x'
    say(*text.split("\n"))
    assert capsys.readouterr().out == text + "\n"


@given(st.text())
def test_escapes_are_those_of_json(text: str) -> None:
    document = json.dumps([text], ensure_ascii=False)
    if max(text, default="") < "\ud800" or not any("\ud800" <= char <= "\udfff" for char in text):
        assert json.loads(printable(document)) == [text]
    assert one_line(text).isprintable()


def test_every_command_is_in_the_table_or_shows_no_strangers() -> None:
    """A new command that shows text of strangers must be in the table."""
    shows = {name.split()[0] for name in SHOWN} - {"page"}
    silent = {
        "setup",
        "import",
        "serve",
        "reload",
        "check",
        "completion",
        "version",
        "passwd",
        "backup",
        "dns",
        "hooks",
        "plugins",
        "schema",
        "new-plugin",
        "top",
    }
    assert COMMANDS.keys() == shows | silent
