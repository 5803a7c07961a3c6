"""The container image that `.ci/image` builds, run as an OCI runtime would, by systemd-nspawn.

The root file system is read-only, the process has no capability and is the first one.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from machine import DEADLINE
from source import ROOT

NUMBER: Final = 10025  # of the user and the group


@dataclass(frozen=True)
class Image:
    """Where the image is, and what it says about itself."""

    root: Path
    settings: dict[str, Any]

    @property
    def command(self) -> list[str]:
        """Return the command that a container begins with."""
        whole: list[str] = self.settings["Entrypoint"] + self.settings["Cmd"]
        return whole

    @property
    def health(self) -> list[str]:
        """Return the command that tells whether the server is ready."""
        command: list[str]
        kind, *command = self.settings["Healthcheck"]["Test"]
        assert kind == "CMD"
        return command


def built() -> Image:
    """Build the image, or return the one that was built before."""
    storage = subprocess.check_output([ROOT / ".ci" / "image"], text=True).strip()
    buildah = ("buildah", "--storage-driver=vfs", f"--root={storage}", f"--runroot={storage}/run")
    said = subprocess.check_output([*buildah, "inspect", "--type=image", "localhost/minismtp"])
    root = subprocess.check_output([*buildah, "mount", "minismtp"], text=True).strip()
    return Image(Path(root), json.loads(said)["Docker"]["config"])


@dataclass
class Container:
    """A container that runs."""

    process: subprocess.Popen[bytes]
    leader: int
    log: Path

    def stop(self) -> int:
        """Send TERM to the first process, as `podman stop` does, and return the exit status."""
        os.kill(self.leader, signal.SIGTERM)
        return self.process.wait(DEADLINE)


_numbers = itertools.count()


@contextlib.contextmanager
def running(nspawn: str, image: Image, directory: Path) -> Iterator[Container]:
    """Run the image with the configuration, state and mail in `directory`."""
    mounts = {"config": "/etc/minismtp", "state": "/var/lib/minismtp"}
    mounts["mail"] = "/var/lib/minismtp/mail"
    for name in ("state", "mail"):
        (directory / name).mkdir()
        os.chown(directory / name, NUMBER, NUMBER)
    variables = [*image.settings["Env"], "RUNTIME_DIRECTORY=/run/minismtp"]
    command: list[str | Path] = [
        *(nspawn, "--quiet", "--register=no", "--keep-unit", "--console=pipe", "--read-only"),
        *("--private-network", "--drop-capability=all", "--no-new-privileges=yes"),
        *(
            f"--machine=minismtp-{os.getpid()}-{next(_numbers)}",
            f"--directory={image.root}",
            "--user=minismtp",
        ),
        f"--tmpfs=/run/minismtp:uid={NUMBER},gid={NUMBER},mode=0750",
        *(f"--setenv={each}" for each in variables),
        f"--bind-ro={directory}/config:{mounts['config']}",
        *(f"--bind={directory}/{name}:{mounts[name]}" for name in ("state", "mail")),
        *image.command,
    ]
    log = directory / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    leader = 0
    try:
        deadline = time.monotonic() + DEADLINE
        while not (leader := _server_below(process.pid)):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield Container(process, leader, log)
    finally:
        if process.poll() is None:
            os.kill(leader or process.pid, signal.SIGKILL)
        process.wait()


def _server_below(pid: int) -> int:
    """Return the process that is the first one inside, 0 before the server began."""
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if b"minismtp" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[1]:
                return int(child)
    return 0
