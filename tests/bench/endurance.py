"""Reloads and kills a server under load, and counts what that does to mail and metrics.

    make endurance                                  200 reloads, then a worker killed each second
    make endurance ARGS="--reloads 20 --kills 10"

No delivery may fail because of a reload, no acknowledged message may be missing after a killed
worker, and neither the time of a scrape nor the number of metrics files may grow.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import bench
import clients
import filesystem
import peers
import processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECONDS: Final = 3.0  # of one piece of load
STATUS: Final = ("messages", "failed", "lost")


def main() -> int:
    """Run both parts. Return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--reloads", type=int, default=200)
    parser.add_argument("--kills", type=int, default=60)
    options = parser.parse_args()
    with filesystem.image("6G", Path(tempfile.gettempdir())) as directory:
        tls = peers.Certificate.make(directory)
        good = [reloads(directory, tls, options.reloads), kills(directory, tls, options.kills)]
    return int(not all(good))


def reloads(directory: Path, tls: peers.Certificate, count: int) -> bool:
    """Reload repeatedly under load, and wait for the end of each reload."""
    with bench.scratch(directory) as home, peers.minismtp()(home, tls) as server:
        before, files = scrape(home), metrics_files(home)
        with under_load(server) as done:
            for number in range(count):
                os.kill(server.pid, signal.SIGHUP)
                wait_for(partial(said, home, " reloaded", number + 1))
        late = bench.settle(server, done["messages"])
        after = scrape(home)
        print(
            f"{count} reloads: {done}, {server.stored()} stored {late:.1f} s later; scrape"
            f" {before:.0f} ms before, {after:.0f} ms after; metrics files {files} before,"
            f" {metrics_files(home)} after"
        )
        whole: bool = server.stored() >= done["messages"]
        return whole and not done["failed"] and not done["lost"]


def kills(directory: Path, tls: peers.Certificate, count: int) -> bool:
    """Kill a worker each second under load. Connections that break by this are no fault."""
    with bench.scratch(directory) as home, peers.minismtp()(home, tls) as server:
        before = scrape(home)
        with under_load(server) as done:
            for _ in range(count):
                time.sleep(1)
                victims = [pid for pid in processes.tree([server.pid]) if is_worker(pid)]
                with contextlib.suppress(ProcessLookupError, IndexError):
                    os.kill(random.choice(victims), signal.SIGKILL)  # noqa: S311 - no secret
        late = bench.settle(server, done["messages"])
        print(
            f"{count} kills: {done}, {server.stored()} stored {late:.1f} s later; scrape"
            f" {before:.0f} ms before, {scrape(home):.0f} ms after;"
            f" {metrics_files(home)} metrics files"
        )
        whole: bool = server.stored() >= done["messages"]
        return whole


@contextlib.contextmanager
def under_load(server: peers.Server) -> Iterator[dict[str, int]]:
    """Send from 20 sessions, five messages each, while the block runs. Yield the sums."""
    done = dict.fromkeys(STATUS, 0)
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            found = clients.run(
                *("load", "-p", server.port, "-s", 20, "-k", 5, "-b", 5000),
                *("-m", 10_000_000, "-d", SECONDS),
            )
            for name in STATUS:
                done[name] += int(found[name])

    client = threading.Thread(target=run)
    client.start()
    try:
        yield done
    finally:
        over.set()
        client.join()


def wait_for(condition: Callable[[], object]) -> None:
    """Return when a condition holds. Raise RuntimeError if it takes too long."""
    end = time.monotonic() + peers.PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError("it did not come about in time")
        time.sleep(0.02)


def said(home: Path, text: str, times: int = 1) -> bool:
    """Return whether the log has a text at least `times` times."""
    return (home / "log").read_text(errors="replace").count(text) >= times


def scrape(home: Path) -> float:
    """Return the median time of a scrape in milliseconds."""
    wait_for(lambda: said(home, " serving metrics "))
    address = (home / "log").read_text().partition(" serving metrics address=")[2].split()[0]
    times = []
    for _ in range(9):
        start = time.monotonic()
        with urllib.request.urlopen(f"http://{address}/metrics") as answer:
            answer.read()
        times.append((time.monotonic() - start) * 1000)
    return statistics.median(times)


def metrics_files(home: Path) -> int:
    """Return the number of files that the endpoint reads."""
    return len(list((home / "state" / "metrics").iterdir()))


def is_worker(pid: int) -> bool:
    """Return whether a process is a worker."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text() == "minismtp-worker\n"
    return False


if __name__ == "__main__":
    sys.exit(main())
