"""Storage by programs: real ones of /bin/sh, good and bad."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from fakes import envelope as make_envelope
from minismtp_plugins.pipe import Pipe

from minismtp import Address, ByteSize, Content, ContentWriter, Message, RemoteError
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.testing import Dialogue, Mailroom
from minismtp.values.reply import Verdict

ALICE = Address("alice", "example.org")
TEXT = b"Subject: x\r\n\r\n.dot\r\n8-bit \xff\r\n"
Script = Callable[[str], str]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Return a function that writes a shell script and returns its path."""

    def script(text: str) -> str:
        path = tmp_path / "program"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o700)
        return str(path)

    return script


def deliver(plugin: Pipe, mailbox: Address = ALICE, content: bytes = TEXT) -> str:
    """Run it for a copy, and return the refusal."""
    try:
        assert plugin.deliver(make_envelope(), Message("1a2b.1", Content.of(content)), mailbox)
    except Verdict as verdict:
        return f"{type(verdict).__name__} {verdict.reply}"
    return ""


def test_program_reads_the_message_and_has_its_arguments(script: Script, tmp_path: Path) -> None:
    program = script('cat > message; for each; do echo "<$each>"; done > arguments')
    words = ["{recipient}", "{local}@@{domain}", "-f{sender}", "{id} {size} {peer}", "{{x}}", ""]
    assert deliver(Pipe(command=[program, *words], directory=tmp_path)) == ""
    assert (tmp_path / "message").read_bytes() == TEXT
    assert (tmp_path / "arguments").read_text().splitlines() == [
        "<alice@example.org>",
        "<alice@@example.org>",
        "<-fsender@client.example>",
        f"<1a2b.1 {len(TEXT)} 192.0.2.1>",
        "<{x}>",
        "<>",
    ]


@pytest.mark.parametrize(
    "local", ["$(touch forged)", "`id`; rm x", "a b", "{sender}", "a'\"b", "*"]
)
def test_address_stays_one_argument(script: Script, tmp_path: Path, local: str) -> None:
    program = script('printf "%s|%s" "$#" "$1" > arguments')
    assert (
        deliver(Pipe(command=[program, "{local}"], directory=tmp_path), Address(local, "x")) == ""
    )
    assert (tmp_path / "arguments").read_text() == f"1|{local}"
    assert not (tmp_path / "forged").exists()


@pytest.mark.parametrize(("local", "argument"), [("-rf", "{recipient}"), ("a\0b", "{local}")])
def test_address_that_would_be_an_option_is_refused(
    script: Script, local: str, argument: str
) -> None:
    plugin = Pipe(command=[script("exit 0"), argument])
    reply = "Reject 550 5.1.3 address is not taken by the mailbox's program"
    assert deliver(plugin, Address(local, "example.org")) == reply


def test_environment_has_nothing_of_ours(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "x")
    deliver(Pipe(command=[script("/usr/bin/env > environment; pwd > where")], directory=tmp_path))
    found = dict(line.split("=", 1) for line in (tmp_path / "environment").read_text().splitlines())
    assert {name for name in found if name not in {"PWD", "_", "SHLVL", "OLDPWD"}} == {
        *("PATH", "LANG", "HOME", "SENDER", "RECIPIENT", "MESSAGE_ID")
    }
    assert (found["RECIPIENT"], found["MESSAGE_ID"]) == ("alice@example.org", "1a2b.1")
    assert (tmp_path / "where").read_text() == f"{tmp_path}\n"


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("exit 0", ""),
        ("echo fine >&2; exit 0", ""),
        ("exit 75", "Defer 451 4.3.0 the mailbox's program cannot take it now"),
        ("echo busy >&2; exit 69", "Defer 451 4.3.0 busy"),
        ("exit 67", "Reject 550 5.1.1 no such user"),
        ("exit 68", "Reject 550 5.1.2 no such host"),
        ("exit 77", "Reject 550 5.7.1 permission denied"),
        ("printf 'bad\\007 \\344 one\\nsecond' >&2; exit 65", "Reject 554 5.6.0 bad  \\ufffd one"),
        ("head -c 9000 /dev/zero | tr '\\0' x >&2; exit 67", f"Reject 550 5.1.1 {'x' * 200}"),
    ],
)
def test_exit_status_is_the_verdict(script: Script, text: str, verdict: str) -> None:
    assert deliver(Pipe(command=[script(text)])) == verdict


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("echo oops >&2; exit 1", "exit status 1: oops"),
        ("no-such-command", "exit status 127"),
        ("kill -SEGV $$", "killed by signal 11"),
    ],
)
def test_other_endings_are_failures_of_the_program(script: Script, text: str, problem: str) -> None:
    with pytest.raises(RemoteError, match=problem):
        deliver(Pipe(command=[script(text)]))


def test_program_that_is_missing_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="cannot be run: No such file"):
        deliver(Pipe(command=[str(tmp_path / "missing")]))


def test_program_that_does_not_read_a_large_message_holds_up_nobody(script: Script) -> None:
    writer = ContentWriter()
    writer.write(b"x" * 3_000_000)
    plugin = Pipe(command=[script("exit 0")])
    assert plugin.deliver(make_envelope(), Message("x", writer.finish()), ALICE) is True


def test_program_that_talks_without_end_is_heard_and_forgotten(script: Script) -> None:
    text = "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2; exit 0"
    assert deliver(Pipe(command=[script(text)])) == ""


def alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_program_that_hangs_is_killed_with_its_children(script: Script, tmp_path: Path) -> None:
    program = script("sleep 600 & echo $! > child; echo $$ > parent; wait")
    plugin = Pipe(command=[program], directory=tmp_path, patience=timedelta(milliseconds=500))
    with pytest.raises(RemoteError, match="is too slow"):
        deliver(plugin)
    pids = [int((tmp_path / name).read_text()) for name in ("child", "parent")]
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_child_that_goes_on_keeps_nobody_waiting(script: Script, tmp_path: Path) -> None:
    program = script("sleep 600 & echo $! > child; echo stored >&2; exit 0")
    assert deliver(Pipe(command=[program], directory=tmp_path)) == ""
    os.kill(int((tmp_path / "child").read_text()), 9)


@pytest.mark.parametrize(
    ("limits", "shown"),
    [
        ({"files": 50}, "50 unlimited"),
        ({"memory": ByteSize(1 << 30)}, "1048576"),
        ({"cpu": timedelta(seconds=7)}, "7"),
    ],
)
def test_limits_hold_for_the_program(
    script: Script, tmp_path: Path, limits: dict[str, int], shown: str
) -> None:
    # It waits until they are set, which happens directly after its start.
    flag = {"files": "n", "memory": "v", "cpu": "t"}[next(iter(limits))]
    wanted = shown.split(maxsplit=1)[0]
    program = script(f"until [ $(ulimit -{flag}) = {wanted} ]; do :; done")
    plugin = Pipe(command=[program], directory=tmp_path, **limits)  # type: ignore[arg-type]
    assert deliver(plugin) == ""


def test_session_stores_through_the_program(script: Script, tmp_path: Path) -> None:
    program = script('cat > "$1"')
    dialogue = Dialogue(Pipe(command=[program, "{local}"], directory=tmp_path), Mailroom())
    assert dialogue.mail("Subject: x\n\ntext", to=("a@b.c", "d@e.f")).startswith("250 ")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "d").read_bytes()
    assert (tmp_path / "a").read_bytes().endswith(b"\r\n\r\ntext\r\n")


def test_failure_of_the_program_puts_the_client_off(script: Script) -> None:
    room = Mailroom()
    dialogue = Dialogue(Pipe(command=[script("exit 1")]), room)
    assert dialogue.mail("Subject: x\n\ntext").startswith("451 4.3.0 ")
    assert room.stored == {}


def test_bounce_has_an_empty_sender(script: Script, tmp_path: Path) -> None:
    plugin = Pipe(command=[script('echo "<$1>" > sender'), "{sender}"], directory=tmp_path)
    envelope = replace(make_envelope(), reverse_path=None)
    assert plugin.deliver(envelope, Message("x", Content.of(TEXT)), ALICE) is True
    assert (tmp_path / "sender").read_text() == "<>\n"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"command": []}, "command: expected the absolute path"),
        ({"command": ["cat"]}, "command: expected the absolute path"),
        ({"command": ["/bin/{local}"]}, "command: expected the absolute path"),
        ({"command": ["/bin/cat", "{user}"]}, "known placeholders are {recipient}, {local}"),
        ({"command": ["/bin/cat", "{local!r}"]}, "known placeholders"),
        ({"command": ["/bin/cat", "{local.x}"]}, "known placeholders"),
        ({"command": ["/bin/cat", "{"]}, "command: '{': "),
        ({"command": ["/bin/cat"], "files": -1}, "files: expected"),
    ],
)
def test_wrong_option_is_told(tmp_path: Path, options: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError) as fault:
        build(Pipe, options, file="", key="", base=tmp_path)
    assert problem in str(fault.value)
