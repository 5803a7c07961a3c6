"""What runs here and what to do next: `minismtp` without a command, on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from minismtp import __version__
from minismtp.cli.common import say
from minismtp.cli.text import plural
from minismtp.config import DEFAULT_FILE, Config
from minismtp.config.mistakes import ConfigError
from minismtp.server.directories import server_process
from minismtp.server.known_release import newer_release

_UNITS: Final = [
    Path(place) / "systemd/system/minismtp.service"
    for place in ("/etc", "/usr/local/lib", "/usr/lib", "/lib")
]
_RUNNING: Final = [
    ("minismtp top", "see mail come and go"),
    ("minismtp queue list", "see the mail that waits for delivery"),
    ("minismtp sessions", "see the clients that are connected"),
    ("minismtp reload", "use a changed configuration"),
]


def show() -> int:
    """Print the version, the configuration, whether the server runs, and the next commands."""
    lines, steps = _state()
    steps = [*steps, ("minismtp --help", "see all commands")]
    width = max(len(command) for command, _ in steps)
    say(f"minismtp {__version__}", *lines, "", "What to do next:")
    say(*(f"    {command:<{width}}  {text}" for command, text in steps))
    return 0


def _state() -> tuple[list[str], list[tuple[str, str]]]:
    file = Config.file_to_read()
    if file is None:
        steps = [
            ("minismtp serve", "try the server out: local mail only, on 127.0.0.1:2525"),
            ("minismtp check", "check a configuration that you write"),
        ]
        return [f"no configuration: {DEFAULT_FILE} does not exist"], steps
    named = f"configuration: {file}"
    try:
        config = Config.read(file)
    except ConfigError as error:
        return [f"{named}, which cannot be read: {error.message}"], [_check(file)]
    pid = server_process(config.state_directory)
    runs = f"the server runs, process {pid}" if pid else "the server does not run"
    if newer := newer_release(config.state_directory):
        runs = f"{runs}; minismtp {newer} is available"
    if config.mistakes:
        return [f"{named}, with {plural(len(config.mistakes), 'mistake')}", runs], [_check(file)]
    return [named, runs], _RUNNING if pid else list(_to_start(file))


def _to_start(file: Path) -> Iterator[tuple[str, str]]:
    yield _check(file)
    if any(unit.exists() for unit in _UNITS) and file == DEFAULT_FILE:
        yield "systemctl enable --now minismtp", "start the server, now and at each boot"
    else:
        yield "minismtp serve", "start the server in this terminal"


def _check(file: Path) -> tuple[str, str]:
    return "minismtp check", f"find the mistakes in {file.name}, with lines and what to do"
