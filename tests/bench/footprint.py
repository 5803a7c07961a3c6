"""What people feel without any load: how long commands take, and what memory a server uses.

The commands run one after the other, each several times, and the fastest run counts. The memory is
the proportional set size (PSS) of all processes: at rest, and after some thousand messages. Python
files are compiled before, as installers do it. On a busy machine only the CPU time says something.
"""

from __future__ import annotations

import argparse
import os
import smtplib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from processes import proportional, tree

ROOT: Final = Path(__file__).parents[2]
MINISMTP: Final = Path(sys.executable).with_name("minismtp")
PORT: Final = 2525  # of the default without a configuration
EXAMPLE: Final = ROOT / "etc" / "minismtp.toml"
MESSAGE: Final = "Subject: x\n\n" + 70 * f"{'x' * 70}\n"
MIB: Final = 1 << 20
LEFT_OUT: Final = {"PYTHONDONTWRITEBYTECODE", "MINISMTP_CONFIG", "STATE_DIRECTORY"}
_CONFIGURATION: Final = f"""
workers = 4
state_directory = "state"
[[listeners]]
name = "smtp"
address = "127.0.0.1:{PORT}"
tls = "none"
[[plugins]]
use = "mailboxes"
domains = ["localhost"]
[[plugins]]
use = "maildir"
path = "mail/{{local}}"
"""
#: Commands, and the seconds that they may take.
COMMANDS: Final = {
    "--help": 0.15,
    "queue list": 0.25,
    "check": 0.5,
    f"check --config {EXAMPLE}": 0.5,
}
#: Servers, and the MiB that they may use at rest and after a load; 0 = no target.
SERVERS: Final = {"serve": (60, 90), "serve --config four.toml": (0, 0)}


def environment(directory: Path) -> dict[str, str]:
    """Return an environment with compiled files and without a configuration."""
    kept = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
    return kept | {"PYTHONPYCACHEPREFIX": str(directory / "compiled")}


def fastest(command: str, directory: Path, rounds: int) -> tuple[float, float]:
    """Return the seconds of the fastest of some runs, and the least CPU time of one."""
    elapsed, used = [], []
    for _ in range(rounds + 1):  # the first one compiles
        begun, before = time.perf_counter(), os.times()
        subprocess.run(
            [MINISMTP, *command.split()],
            cwd=directory,
            env=environment(directory),
            capture_output=True,
            check=False,
        )
        elapsed.append(time.perf_counter() - begun)
        after = os.times()
        used.append(sum(after[2:4]) - sum(before[2:4]))
    return min(elapsed), min(used)


@contextmanager
def serving(command: str, directory: Path) -> Iterator[int]:
    """Run a server within the block, and return its process id once it answers."""
    with subprocess.Popen(
        [MINISMTP, *command.split()],
        cwd=directory,
        env=environment(directory),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            _wait()
            yield server.pid
        finally:
            server.terminate()


def _wait() -> None:
    for _ in range(100):
        with suppress(OSError), smtplib.SMTP("127.0.0.1", PORT) as client:
            client.noop()
            return
        time.sleep(0.1)
    raise TimeoutError("the server does not answer")


def send(messages: int) -> None:
    """Send messages over one connection."""
    with smtplib.SMTP("127.0.0.1", PORT) as client:
        for _ in range(messages):
            client.sendmail("me@example.org", ["me@localhost"], MESSAGE)


def memory(command: str, directory: Path, messages: int, sessions: int) -> tuple[float, float]:
    """Return the MiB of a server at rest and after a load."""
    with serving(command, directory) as pid:
        time.sleep(3)  # so that all processes have started
        idle = proportional(tree([pid])) / MIB
        with ThreadPoolExecutor(sessions) as pool:
            list(pool.map(send, [messages // sessions] * sessions))
        time.sleep(2)
        return idle, proportional(tree([pid])) / MIB


def main() -> None:
    """Print a line for each command and each server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--messages", type=int, default=5000)
    parser.add_argument("--sessions", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "four.toml").write_text(_CONFIGURATION)
        (directory / "minismtp-state" / "spool").mkdir(parents=True)
        for command, target in COMMANDS.items():
            elapsed, used = fastest(command, directory, arguments.rounds)
            print(f"{command:50} {elapsed:.2f} s, {used:.2f} s of CPU time  target {target} s")
        for command, (rest, loaded) in SERVERS.items():
            found = memory(command, directory, arguments.messages, arguments.sessions)
            print(f"{command:50} {found[0]:6.1f} MiB at rest  target {rest or '-'} MiB")
            print(f"{'':50} {found[1]:6.1f} MiB after a load  target {loaded or '-'} MiB")


if __name__ == "__main__":
    main()
