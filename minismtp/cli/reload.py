"""Has the running server read its configuration again: `minismtp reload`.

The command reads the configuration first, so that a mistake is named here and not only in the log.
It then signals the main process, whose id a worker tells, and waits until the reload is over.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path
from typing import Any, Final

from minismtp.cli.common import CommandError, add_config, configuration, say
from minismtp.runtime.control_socket import ask
from minismtp.server.open_sessions import nobody_answers

_PATIENCE: Final = 90.0  # seconds; a new worker has 60 to become ready
_TICK: Final = 0.1

add_options = add_config


def run(arguments: argparse.Namespace) -> int:
    """Reload; raise ConfigError for a mistake, CommandError if the reload failed, and OSError."""
    control = configuration(arguments).state_directory / "control"
    before = _status(control)
    if before is None:
        raise nobody_answers(control)
    os.kill(before["supervisor"], signal.SIGUSR1)
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        now = _status(control)
        if now is not None and now["reloads"] > before["reloads"]:
            if not now["reload_ok"]:
                raise CommandError("the reload failed, the old configuration goes on: see the log")
            say("reloaded")
            return 0
        time.sleep(_TICK)
    raise CommandError("the reload is not over yet: see the log")


def _status(control: Path) -> dict[str, Any] | None:
    """Return what the first worker that answers says of the server."""
    for answer in ask(control, {"ask": "status"}):
        for line in answer.lines:
            found: dict[str, Any] = line
            return found
    return None
