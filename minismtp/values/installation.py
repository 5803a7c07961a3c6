"""How an optional part is added to this installation."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Final

_OWN: Final = "minismtp"
_DEFAULT_PREFIX: Final = Path("/opt/minismtp")  # as in systemd/install


def how_to_install(*extras: str, package: str = _OWN) -> str:
    """Return the command that installs extras of a package where this interpreter finds them.

    `make install` leaves the folder share/minismtp in its virtual environment, and installs only
    what its list of hashes has. Elsewhere the pip of the interpreter does it.
    """
    prefix = Path(sys.prefix)
    if package == _OWN and (prefix / "share" / _OWN).is_dir():
        place = "" if prefix == _DEFAULT_PREFIX else f" PREFIX={shlex.quote(str(prefix))}"
        return f"in the source tree run `make install EXTRAS={','.join(extras)}{place}`"
    names = f"[{','.join(extras)}]" if extras else ""
    return f"run `{how_to_pip(f'{package}{names}')}`"


def how_to_pip(requirement: str) -> str:
    """Return the command line of pip for a requirement."""
    return f"{shlex.quote(sys.executable)} -m pip install {shlex.quote(requirement)}"
