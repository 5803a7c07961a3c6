"""`minismtp shadow`: what plugins in shadow mode would have done."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from minismtp.cli.main import main
from minismtp.runtime.decision_log import DecisionLog, Record
from minismtp.runtime.log import Log
from minismtp.runtime.thread_activity import Step

if TYPE_CHECKING:
    from conftest import Configure, Start

Capture = pytest.CaptureFixture[str]
TRIAL = '[[plugins]]\nuse = "trial"\nmode = "shadow"\n'
PLUGIN = """
from minismtp import Reject, hookimpl, plugin

@plugin
class Trial:
    @hookimpl
    def on_mail(self, envelope):
        if envelope.sender.startswith("bad"):
            raise Reject("not today")

    @hookimpl
    def on_message(self, message):
        message.quarantine("looks odd")
"""
Keep = Callable[..., None]


@pytest.fixture
def config(configure: Configure) -> Path:
    """Write a configuration with a plugin in shadow mode."""
    path = configure(TRIAL)
    (path.parent / "local_plugins" / "trial.py").write_text(PLUGIN)
    return path


@pytest.fixture
def keep(config: Path) -> Keep:
    """Return a function that puts steps of some seconds ago into the decision log."""
    chronicle = DecisionLog(config.parent / "state", 1_000_000, Log())
    (config.parent / "state").mkdir()

    def keep(*steps: Step, ago: float = 60.0, identifier: str = "8a1f0c5d7e21.1") -> None:
        chronicle.keep(Record("stored", identifier, time.time() - ago, 0.0, {}, [*steps]))
        chronicle.flush()

    return keep


def step(verdict: str, remark: str = "", hook: str = "on_mail", plugin: str = "trial") -> Step:
    return (hook, plugin, 0.0, 0.001, verdict, remark)


def told(capsys: Capture, config: Path, *options: str) -> str:
    assert main(["shadow", "--config", str(config), *options]) == 0
    return capsys.readouterr().out


def plugins(capsys: Capture, config: Path, *options: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(told(capsys, config, "--json", *options))
    return found


def test_calls_are_counted_by_plugin_hook_and_kind(
    keep: Keep, config: Path, capsys: Capture
) -> None:
    keep(step("shadow:none"), step("shadow:reject", "550 no"), step("reject", "550 real"))
    keep(step("shadow:defer", "451 later"), step("shadow:none", hook="on_rcpt"))
    keep(step("shadow:reject", "550 x", plugin="other"))
    trial, other = plugins(capsys, config)
    assert (trial["plugin"], trial["calls"], trial["effects"]) == ("trial", 4, 2)
    assert trial["hooks"] == {
        "on_mail": {"none": 1, "reject": 1, "defer": 1},
        "on_rcpt": {"none": 1},
    }
    assert (other["plugin"], other["calls"]) == ("other", 1)


@pytest.mark.parametrize(
    ("verdict", "remark", "expected"),
    [
        ("shadow:none", "would be quarantined: odd; would be changed", ("quarantined", 1)),
        ("shadow:none", "would be changed", ("changed", 1)),
        ("shadow:disconnect", "421 bye", ("disconnect", 1)),
        ("shadow:reject", "550 would be quarantined", ("reject", 1)),
        ("shadow:defer", "failed: KeyError: 'x'", ("failed", 0)),
        ("shadow:answer", "", ("answer", 0)),
        ("shadow:none", "", ("none", 0)),
    ],
)
def test_kind_is_what_would_have_happened(
    verdict: str,
    remark: str,
    expected: tuple[str, int],
    *,
    keep: Keep,
    config: Path,
    capsys: Capture,
) -> None:
    kind, effects = expected
    keep(step(verdict, remark))
    [trial] = plugins(capsys, config)
    assert (trial["hooks"], trial["effects"]) == ({"on_mail": {kind: 1}}, effects)


def test_examples_are_the_latest_with_their_identifiers(
    keep: Keep, config: Path, capsys: Capture
) -> None:
    for number in range(9):
        verdict = "shadow:none" if number == 7 else "shadow:reject"
        keep(step(verdict, f"550 {number}"), identifier=f"00000000000{number}.1", ago=60 - number)
    [trial] = plugins(capsys, config)
    assert [each["remark"] for each in trial["examples"]] == [
        *("550 3", "550 4", "550 5", "550 6", "550 8")
    ]
    assert trial["examples"][-1]["id"] == "000000000008.1"
    lines = told(capsys, config).splitlines()
    assert "9 calls since " in lines[0]
    assert lines[1] == "    on_mail: 8 reject, 1 none"
    assert lines[2].endswith("Z  000000000008.1  on_mail  reject  550 8")


@pytest.mark.parametrize(
    ("since", "calls"), [([], 2), (["--since", "2d"], 3), (["--since", "30m"], 1)]
)
def test_only_what_is_recent_enough_counts(
    since: list[str], calls: int, keep: Keep, config: Path, capsys: Capture
) -> None:
    for ago in (60.0, 3600.0, 90_000.0):
        keep(step("shadow:none"), ago=ago)
    assert plugins(capsys, config, *since)[0]["calls"] == calls


def test_configured_plugin_that_was_not_called_is_named(config: Path, capsys: Capture) -> None:
    assert told(capsys, config).startswith("trial: 0 calls since ")


def test_nothing_in_shadow_mode_is_said(configure: Configure, capsys: Capture) -> None:
    assert told(capsys, configure()) == "no plugin is or was in shadow mode\n"


def test_duration_that_is_none_is_wrong_usage(config: Path, capsys: Capture) -> None:
    assert main(["shadow", "--config", str(config), "--since", "yesterday"]) == 2
    assert "expected a duration" in capsys.readouterr().err


def test_server_that_runs_tells_at_once_what_would_have_happened(
    config: Path, start: Start, capsys: Capture
) -> None:
    server = start(config)
    for sender in ("good@client.example", "bad@client.example"):
        with server.connect() as client:
            client.begin_data("user@example.org", sender)
            assert client.command("Subject: x\r\n\r\ny\r\n.").startswith("250 ")
            client.command("QUIT")
    [trial] = plugins(capsys, config)
    assert trial["hooks"] == {
        "on_mail": {"none": 1, "reject": 1},
        "on_message": {"quarantined": 2},
    }
    assert "would be quarantined: looks odd" in {each["remark"] for each in trial["examples"]}
