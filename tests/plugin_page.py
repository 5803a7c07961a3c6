"""The page with whole plugins: its files and its transcripts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from source import ROOT

PAGE: Final = (ROOT / "docs" / "plugin-examples.md").read_text()
FILES: Final = dict(re.findall(r"^```python (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
#: The transcripts: the commands, each with what it prints.
TRANSCRIPTS: Final = [
    re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.sub(r"\\\n\s*", "", block), re.MULTILINE)
    for block in re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
]


def transcript(word: str) -> list[tuple[str, str]]:
    """Return the only transcript with a word in its commands."""
    [found] = [each for each in TRANSCRIPTS if any(word in command for command, _ in each)]
    return found


def write_files(place: Path) -> None:
    """Write the files of the page as an author would."""
    for name, text in FILES.items():
        (place / name).write_text(text)


def build_wheel(place: Path) -> Path:
    """Make the package with the commands of the page, and return its wheel."""
    write_files(place)
    for command, _ in transcript("new-plugin"):
        if command.startswith("cd "):
            place = place / command.removeprefix("cd ")
        elif command.startswith(("minismtp", "cp", "sed")):
            run(command, place)
    run(f"{sys.executable} -m pip wheel -q --no-build-isolation --no-deps -w dist .", place)
    [wheel] = (place / "dist").glob("*.whl")
    return wheel


def run(command: str, directory: Path) -> str:
    """Run a command of the page with the programs of these tests. It must succeed."""
    done = subprocess.run(
        ["sh", "-euc", command],
        cwd=directory,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
