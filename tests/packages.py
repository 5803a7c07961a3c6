"""The packages of a release, as `make packages` builds them, for the tests that install them."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from source import ROOT

CACHE: Final = ROOT / ".ci" / "packages"
UFW: Final = "etc/ufw/applications.d/minismtp"  #: the only conffile


@dataclass(frozen=True)
class Packages:
    """The directory that the files are in."""

    directory: Path

    def file(self, pattern: str) -> Path:
        """Return the one file that matches."""
        [found] = self.directory.glob(pattern)
        return found


def built() -> Packages:
    """Build the packages of this source tree, or return what was built before."""
    return Packages(Path(subprocess.check_output([CACHE], text=True).strip()))


def newer(deb: Path, target: Path) -> Path:
    """Build the Debian package again as version 1.0.1, whose server and conffile say so."""
    tree = target / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", deb, tree], check=True)
    site = tree / "usr/lib/minismtp/lib/python3/site-packages"
    for file in (tree / "DEBIAN" / "control", site / "minismtp" / "__init__.py"):
        text = file.read_text()
        assert "1.0.0" in text
        file.write_text(text.replace("1.0.0", "1.0.1"))
    profiles = tree / UFW
    profiles.write_text(profiles.read_text().replace("title=", "title=1.0.1: "))
    made = target / "newer.deb"
    command = ("dpkg-deb", "--root-owner-group", "-Znone", "--build")
    subprocess.run([*command, tree, made], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)
    return made
