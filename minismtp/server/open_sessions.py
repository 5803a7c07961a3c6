"""The sessions that are open now: `minismtp sessions`."""

from __future__ import annotations

import argparse
import errno
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from minismtp.config import Config
from minismtp.runtime.control_socket import ask
from minismtp.runtime.log import complain
from minismtp.values.printable import one_line

_HEAD: Final = ("ID", "PEER", "LISTENER", "STATE", "AGE", "LOGIN", "TLS", "MESSAGE", "NOW")


def run(config: Config, arguments: argparse.Namespace) -> str:
    """Return the text to print; what does not answer is told on standard error."""
    found = survey(config.state_directory / "control", stack=arguments.stack)
    for problem in found.problems:
        complain(f"minismtp: {problem}")
    if arguments.json:
        return json.dumps(found.sessions, indent=1)
    return "\n".join(listed(found)) if found.sessions else "no sessions"


def listed(found: Survey) -> list[str]:
    """Return the lines of the table, each session with its stack if that is known."""
    lines = columns([_HEAD, *map(row, found.sessions)])
    for number, session in reversed(list(enumerate(found.sessions, 2))):
        lines[number:number] = [f"    {one_line(line)}" for line in session.get("stack", ())]
    return lines


@dataclass(frozen=True, slots=True)
class Survey:
    """All sessions, the oldest first, and which processes did not say theirs."""

    sessions: list[dict[str, Any]]
    problems: list[str]


def survey(directory: Path, *, stack: bool = False) -> Survey:
    """Ask every process for its sessions. Raise FileNotFoundError when there is none."""
    sessions, problems = [], []
    answers = ask(directory, {"ask": "sessions", "stack": stack})
    if not answers:
        raise nobody_answers(directory)
    for answer in answers:
        sessions += [{**session, "process": answer.process} for session in answer.lines]
        if answer.problem:
            problems.append(f"process {answer.process}: {answer.problem}")
    return Survey(sorted(sessions, key=lambda each: -each["age"]), problems)


def nobody_answers(directory: Path) -> FileNotFoundError:
    """Return the error of a server that does not run."""
    return FileNotFoundError(errno.ENOENT, "no server answers here", str(directory))


def row(session: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of one session, in the order of the table's head."""
    return (
        session["id"],
        session["peer"],
        session["listener"],
        session["state"],
        span(session["age"]),
        session.get("login") or "-",
        session.get("tls") or "-",
        session["message"] or "-",
        doing(session),
    )


def doing(session: dict[str, Any]) -> str:
    """Say what a session is at, and for how long."""
    if session["plugin"]:
        return f"{session['plugin']}.{session['hook']} {span(session['seconds'])}"
    return f"waits for the client {span(session['idle'])}" if session.get("waiting") else "works"


def span(seconds: float) -> str:
    """Return a duration as people read it."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"  # noqa: PLR2004


def columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table whose columns stand below one another."""
    table = [tuple(map(one_line, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
