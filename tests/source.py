"""The project's source, without files that the server or the tools created."""

import shutil
import subprocess
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
# For a source tree without git, as an unpacked source distribution is.
_MADE: Final = {"build", "dist", "htmlcov", "minismtp-state", "try", "__pycache__"}


def source_files(root: Path = ROOT) -> list[Path]:
    """Return the regular files of the source, relative to `root`: those in git, and new ones."""
    if (root / ".git").exists():
        listing = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        output = subprocess.check_output(listing, cwd=root, text=True)
        names = {Path(name) for name in output.split("\0") if name}
    else:
        names = {path.relative_to(root) for path in root.rglob("*")}
        names = {name for name in names if not any(map(_is_made, name.parts[:-1]))}
    return sorted(name for name in names if (root / name).is_file())


def copy_source(target: Path, root: Path = ROOT) -> None:
    """Copy the source to the directory `target`, which is made."""
    for name in source_files(root):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target / name)


def _is_made(directory: str) -> bool:
    return directory in _MADE or directory.startswith(".venv") or directory.endswith(".egg-info")
