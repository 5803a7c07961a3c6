"""`minismtp reload`, and what HUP means to a server in the foreground."""

from __future__ import annotations

import fcntl
import os
import pty
import subprocess
import sys
import termios
from typing import TYPE_CHECKING

import pytest

from minismtp.cli.main import main

if TYPE_CHECKING:
    from conftest import Configure, Start

Capture = pytest.CaptureFixture[str]


def test_reload_waits_until_the_new_configuration_is_in_force(
    configure: Configure, start: Start, capsys: Capture
) -> None:
    server = start(configure())
    text = server.config.read_text()
    server.config.write_text(f"{text}\n[limits]\nrecipients = 7\n")
    assert main(["reload", "--config", str(server.config)]) == 0
    assert capsys.readouterr().out == "reloaded\n"
    with server.connect() as client:
        client.reply()
        assert "LIMITS RCPTMAX=7" in client.command("EHLO client.example")


def test_mistake_is_named_and_the_server_left_alone(
    configure: Configure, start: Start, capsys: Capture
) -> None:
    server = start(configure())
    server.config.write_text(f"{server.config.read_text()}\n[limits]\nrecipient = 7\n")
    assert main(["reload", "--config", str(server.config)]) == 78
    assert "recipient" in capsys.readouterr().err
    assert " reloading" not in server.log


def test_reload_that_fails_says_so(configure: Configure, start: Start, capsys: Capture) -> None:
    server = start(configure())
    broken = "from minismtp import hookimpl, plugin\n@plugin\nclass Broken:\n"
    broken += "    @hookimpl\n    def on_start(self):\n        raise OSError('no database')\n"
    (server.config.parent / "local_plugins" / "broken.py").write_text(broken)
    server.config.write_text(f'{server.config.read_text()}\n[[plugins]]\nuse = "broken"\n')
    assert main(["reload", "--config", str(server.config)]) == 1
    assert "the reload failed, the old configuration goes on" in capsys.readouterr().err


def test_server_that_does_not_run_is_a_failure(configure: Configure, capsys: Capture) -> None:
    assert main(["reload", "--config", str(configure())]) == 1
    assert "no server answers here" in capsys.readouterr().err


def test_server_in_the_foreground_ends_with_its_terminal(configure: Configure) -> None:
    window, terminal = pty.openpty()
    server = subprocess.Popen(
        [sys.executable, "-m", "minismtp", "serve", "--config", str(configure())],
        stdin=terminal,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
    )
    os.close(terminal)
    with server:
        assert server.stderr is not None
        for line in server.stderr:
            if " listening " in line:
                break
        os.close(window)
        assert server.wait() == 0
