"""Shows where one worker's time goes under load b: a table by function, or a flame graph.

    make profile
    make profile ARGS="--svg build/bench/flame.svg"

py-spy looks at the worker from outside, some hundred times a second, and leaves out threads that
wait. A function's share of the looks, times the CPU time per message, is what it costs.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Final

import bench
import clients
import peers
import processes

RATE: Final = 250  # looks a second


def main() -> int:
    """Run the load and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--per-connection", type=int, default=0)
    parser.add_argument("--discard", action="store_true", help="without the Maildir")
    parser.add_argument("--svg", type=Path, help="write a flame graph instead")
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--image-size", default="3G")
    options = parser.parse_args()
    plugins = bench.DISCARD if options.discard else peers.STORE
    with bench.place(options) as directory, bench.scratch(directory) as home:
        tls = peers.Certificate.make(home)
        with peers.minismtp(plugins)(home, tls) as server:
            worker = busiest(server)
            looked, found, used = run(server, worker, options)
    if options.svg:
        print(options.svg)
        return 0
    share = 1e6 * used / max(found["messages"], 1)  # of all workers together
    print(f"{found['messages']} messages, {share:.0f} us of CPU time for each; {found}")
    print(table(looked, share))
    return 0


def busiest(server: peers.Server) -> int:
    """Return a worker: the process with most threads after a little load."""
    clients.run("load", "-p", server.port, "-s", 40, "-k", 0, "-m", 400, "-b", 5000)
    pids = processes.tree([server.pid])
    return max(pids, key=lambda pid: len(list(Path(f"/proc/{pid}/task").iterdir())))


def run(
    server: peers.Server, worker: int, options: argparse.Namespace
) -> tuple[str, dict[str, Any], float]:
    """Return py-spy's stacks, the client's figures and the CPU seconds of the server."""
    found: dict[str, Any] = {}

    def load() -> None:
        found.update(
            clients.run(
                *("load", "-p", server.port, "-s", options.sessions, "-b", 5000),
                *("-k", options.per_connection, "-m", 10_000_000, "-d", options.seconds + 1),
            )
        )

    pids = processes.tree([server.pid])
    before = processes.cpu_seconds(pids)
    client = threading.Thread(target=load)
    client.start()
    with tempfile.TemporaryDirectory() as name:
        output = options.svg or Path(name) / "stacks"
        subprocess.run(
            [
                *(str(Path(sys.executable).with_name("py-spy")), "record", "--nonblocking"),
                *("--pid", str(worker), "--duration", str(options.seconds)),
                *("--rate", str(RATE), "--output", str(output)),
                *("--format", "flamegraph" if options.svg else "raw"),
            ],
            check=True,
            capture_output=True,
        )
        text = output.read_text()
    client.join()
    return text, found, processes.cpu_seconds(pids) - before


def table(stacks: str, share: float) -> str:
    """Return the functions with the largest own time, in microseconds per message."""
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    total = 0
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [frame.split(" (")[0] + " " + place(frame) for frame in stack.split(";")]
        own[frames[-1]] += int(count)
        for frame in set(frames):
            whole[frame] += int(count)
        total += int(count)
    lines = ["| function | itself, us | with what it calls, us |", "| --- | ---: | ---: |"]
    cost = share / max(total, 1)
    for frame, looks in own.most_common(30):
        lines.append(f"| `{frame}` | {looks * cost:.0f} | {whole[frame] * cost:.0f} |")
    return "\n".join(lines)


def place(frame: str) -> str:
    """Return the file and line of a frame `function (file:line)`, without its directories."""
    with contextlib.suppress(IndexError):
        return frame.split(" (")[1].rstrip(")").rpartition("/")[2]
    return ""


if __name__ == "__main__":
    sys.exit(main())
