"""The scripts that complete commands in a shell, run by that shell."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from minismtp.cli.main import COMMANDS, main

if TYPE_CHECKING:
    from collections.abc import Callable

#: Asks each shell what may follow some words, one suggestion a line.
ASK = {
    "bash": """
source SCRIPT
COMP_WORDS=(minismtp "$@")
COMP_CWORD=$#
_shtab_minismtp
printf '%s\\n' "${COMPREPLY[@]}"
""",
    "fish": """
source SCRIPT
complete --do-complete "minismtp $argv"
""",
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that returns the path of the script for a shell."""
    directory = tmp_path_factory.mktemp("completion")

    def script(shell: str) -> Path:
        path = directory / shell
        if not path.exists():
            with pytest.MonkeyPatch.context() as patch, path.open("w") as file:
                patch.setattr("sys.stdout", file)
                assert main(["completion", shell]) == 0
        return path

    return script


@pytest.mark.parametrize("shell", ASK)
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", set(COMMANDS)),
        ("qu", {"queue", "quarantine"}),
        ("queue re", {"retry", "release", "remove"}),
        ("queue --st", {"--state"}),
        ("completion ", {"bash", "zsh", "fish"}),
    ],
)
def test_shell_suggests_what_the_command_knows(
    shell: str,
    words: str,
    expected: set[str],
    scripts: Callable[[str], Path],
    require_program: Callable[[str], str],
) -> None:
    ask = ASK[shell].replace("SCRIPT", str(scripts(shell)))
    asked = words.split(" ") if shell == "bash" else [words]
    done = subprocess.run(
        [require_program(shell), "-c", ask, *(["bash"] if shell == "bash" else []), *asked],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert {line.split("\t")[0] for line in done.stdout.split("\n") if line} == expected


def test_zsh_reads_its_script(
    scripts: Callable[[str], Path], require_program: Callable[[str], str]
) -> None:
    zsh = require_program("zsh")
    subprocess.run([zsh, "-n", scripts("zsh")], check=True, timeout=60)
    assert scripts("zsh").read_text().startswith("#compdef minismtp\n")


@pytest.mark.parametrize(
    ("words", "suggested"), [("check --config ", "a.toml"), ("replay ", "folder")]
)
def test_names_of_files_are_suggested_where_one_is_wanted(
    words: str, suggested: str, tmp_path: Path, scripts: Callable[[str], Path]
) -> None:
    (tmp_path / "a.toml").touch()
    (tmp_path / "folder").mkdir()
    ask = ASK["bash"].replace("SCRIPT", str(scripts("bash")))
    done = subprocess.run(
        ["bash", "-c", ask, "bash", *words.split(" ")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert suggested in done.stdout.split("\n")
