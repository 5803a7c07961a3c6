"""The sessions that are open now, for `minismtp sessions`, `minismtp top` and the status page."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minismtp.runtime.control_socket import ask
from minismtp.values.units import span


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
    """Return what a session or a delivery does now, and for how long."""
    phase = session.get("phase", "")
    if session["plugin"]:
        more = f" ({phase})" if phase else ""
        return f"{session['plugin']}.{session['hook']} {span(session['seconds'])}{more}"
    if session.get("waiting"):
        return f"waits for the client {span(session['idle'])}"
    return f"{phase} {span(session['phase_seconds'])}" if phase else "works"
