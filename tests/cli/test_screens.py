"""What commands print on a terminal: nothing wider than it, and colours only there."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
import termios
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minismtp.cli.common import say
from minismtp.cli.main import main
from minismtp.cli.sessions import listed
from minismtp.cli.text import fitted, table, wrapped
from minismtp.server.open_sessions import Survey

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Configure, Launch, Start

WIDTH = 80
HEAD = ("ID", "AGE", "PEER", "LOGIN", "NOW")
words = st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), max_size=60)
lines = st.lists(st.tuples(st.just("8a1f0c5d7e21"), st.just("2h5m"), words, words, words))


@given(lines)
def test_no_line_of_a_table_is_wider_than_the_terminal(rows: list[tuple[str, ...]]) -> None:
    found = [line for part in fitted(HEAD, rows, WIDTH, ("PEER", "LOGIN")) for line in part]
    assert max(map(len, found)) <= WIDTH


@given(lines)
def test_without_a_terminal_a_table_stays_whole(rows: list[tuple[str, ...]]) -> None:
    assert [line for part in fitted(HEAD, rows, None) for line in part] == table(HEAD, rows)


def test_table_that_is_too_wide_has_its_last_column_below() -> None:
    rows = [("1", "2s", "a" * 20, "b" * 40, "c" * 20 + " waits"), ("2", "3s", "a", "b", "-")]
    assert fitted(HEAD, rows, 40, ("PEER", "LOGIN")) == [
        ["ID  AGE  PEER            LOGIN"],
        ["1    2s  aaaaaaaaaaaaa\u2026  bbbbbbbbbbbbbb\u2026", "    cccccccccccccccccccc waits"],
        ["2    3s  a               b"],
    ]


@given(st.lists(st.text(st.characters(codec="ascii", categories=["L", "Zs"]), max_size=300)))
def test_no_wrapped_line_is_wider_than_the_terminal(given_lines: list[str]) -> None:
    found = wrapped([f"    {line.strip()}" for line in given_lines], WIDTH)
    assert all(len(line) <= WIDTH for line in found)


def test_rest_of_a_wrapped_line_is_indented() -> None:
    text = "  " + " ".join(["word"] * 12)
    assert wrapped([text], 40) == ["  " + " ".join(["word"] * 7), "      " + " ".join(["word"] * 5)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "environment", "text"),
    [
        (Terminal, {"TERM": "xterm"}, "\x1b[33mdeferred\x1b[0m, undeferred\n"),
        (Terminal, {"TERM": "xterm", "NO_COLOR": "1"}, "deferred, undeferred\n"),
        (Terminal, {"TERM": "dumb"}, "deferred, undeferred\n"),
        (io.StringIO, {"TERM": "xterm"}, "deferred, undeferred\n"),
    ],
)
def test_words_have_colours_only_on_a_terminal(
    stream: Callable[[], io.StringIO],
    environment: dict[str, str],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    output = stream()
    monkeypatch.setattr(sys, "stdout", output)
    say("deferred, undeferred", coloured=True)
    assert output.getvalue() == text


class Screen:
    """A program on a terminal of 80 columns."""

    def __init__(self, *command: str, **environment: str) -> None:
        self._window, terminal = pty.openpty()
        termios.tcsetwinsize(self._window, (24, WIDTH))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "minismtp", *command],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={
                **os.environ,
                "TERM": "xterm",
                "COLUMNS": str(WIDTH),
                "LINES": "24",
                **environment,
            },
        )
        os.close(terminal)
        self.shown = ""

    def wait_for(self, text: str) -> None:
        """Read until the program showed a text."""
        while text not in self.shown:
            self.shown += os.read(self._window, 4096).decode()

    def press(self, key: str) -> None:
        self.shown = ""
        os.write(self._window, key.encode())

    def close(self) -> int:
        try:
            return self.process.wait(60)
        finally:
            os.close(self._window)


def test_top_sorts_pauses_and_quits_by_keys(launch: Launch) -> None:
    with launch() as server, server.connect() as client:
        client.greet()
        address = server.wait_for_log(r" serving metrics address=(\S+)")[1]
        screen = Screen(
            "top", "--interval", "0.2", "--url", f"http://{address}", "--config", str(server.config)
        )
        screen.wait_for("q quit  s sort by sum  p pause")
        screen.press("s")
        screen.wait_for("s sort by mean")
        screen.press("s")
        screen.wait_for("s sort by 99 %")
        lines = re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", screen.shown).splitlines()
        assert max(map(len, lines)) <= WIDTH
        screen.press("p")
        screen.wait_for("paused")
        screen.press("q")
        assert screen.close() == 0


def test_plugins_shows_only_those_that_are_named(
    configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(configure())
    assert main(["plugins", "greylist", "spf", "--config", config]) == 0
    heads = re.findall(r"^(\w+) \(", capsys.readouterr().out, re.MULTILINE)
    assert heads == ["greylist", "spf"]
    assert main(["plugins", "greylist", "nosuch", "--config", config]) == 1
    assert capsys.readouterr().err == "minismtp: no plugin is called nosuch\n"


def test_sessions_keep_their_identifiers_on_a_narrow_terminal() -> None:
    session = {
        "id": "8a1f0c5d7e21",
        "peer": "2001:db8:1234:5678:9abc:def0:1234:5678",
        "listener": "submissions",
        "state": "delivering",
        "age": 7300.0,
        "login": "a.very.long.name@example.org",
        "tls": "TLSv1.3",
        "message": "8a1f0c5d7e21.12",
        "plugin": "rspamd",
        "hook": "on_message",
        "seconds": 3.21,
    }
    head, line, now = listed(Survey([session], []), WIDTH)
    assert max(map(len, (head, line))) <= WIDTH
    assert line.startswith("8a1f0c5d7e21  ")
    assert line.endswith("  .12")
    assert now == "    rspamd.on_message 3.2s"
    assert "8a1f0c5d7e21.12" in listed(Survey([session], []))[1]


def test_top_says_what_is_wrong(
    configure: Configure, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    server = start(configure('[outbound]\nfree_space = "900000GiB"\n'))
    address = server.wait_for_log(r" serving metrics address=(\S+)")[1]
    options = ["--once", "--interval", "0", "--url", f"http://{address}"]
    server.wait_until(lambda: server.metric("problem", problem="disk") == 1)
    assert main(["top", *options, "--config", str(server.config)]) == 0
    assert "\n! disk: less than free_space (878.9 TiB) is free" in capsys.readouterr().out


def test_without_a_command_a_terminal_shows_what_runs_and_what_is_next(
    configure: Configure, start: Start
) -> None:
    config = configure()

    def shown() -> str:
        screen = Screen(MINISMTP_CONFIG=str(config))
        screen.wait_for("minismtp --help")
        assert screen.close() == 0
        return screen.shown

    assert f"configuration: {config}\r\nthe server does not run\r\n" in shown()
    server = start(config)
    text = shown()
    assert f"the server runs, process {server.process.pid}\r\n" in text
    assert "minismtp top " in text
    known = config.parent / "state" / "newest-release.json"
    known.write_text('{"version": "99.0", "asked": 1.0}')
    assert f"process {server.process.pid}; minismtp 99.0 is available\r\n" in shown()
    config.write_text("workers = -1\n")
    assert f"configuration: {config}, with 2 mistakes\r\n" in shown()
    config.write_text("workers =")
    assert "which cannot be read: " in shown()
    config.unlink()
    assert "which cannot be read: " in shown()


def test_without_a_command_and_a_terminal_there_is_an_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 2
    assert "required: COMMAND" in capsys.readouterr().err


def test_lists_of_plugins_and_hooks_are_there_for_programs(
    configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(configure())
    assert main(["plugins", "--json", "--config", config, "maildir"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert found["name"] == "maildir"
    assert {"name": "path", "default": None}.items() <= found["options"][0].items()
    assert main(["hooks", "--json", "--config", config]) == 0
    hooks = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert hooks["deliver"]["plugins"] == ["maildir"]
    assert hooks["deliver"]["arguments"][0] == "envelope"
    assert hooks["on_helo"]["plugins"] == []
