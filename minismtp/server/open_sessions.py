"""The sessions that are open now, for `minismtp sessions`, `minismtp top` and the status page."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minismtp.runtime.control_socket import ask


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
