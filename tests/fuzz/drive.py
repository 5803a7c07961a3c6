"""Fuzz all targets with atheris, one process for each: `make fuzz-parsers SECONDS=600`.

Coverage guides it. Beside the mutations of libFuzzer it repeats slices of inputs until they are
long. What raises something unexpected, or takes too long while it is instrumented, is judged again
in a process that is not, as `tests/test_parsers_fuzzed.py` would judge it. Findings are kept in
`build/fuzz/findings`; put them into `tests/data/fuzz`, and they are tests.
"""

from __future__ import annotations

import argparse
import hashlib
import mmap
import os
import random
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fuzz.target import LONGEST, allowed_seconds, problem, pumped

if TYPE_CHECKING:
    from fuzz.target import Target

_BUILD: Final = Path(__file__).parents[2] / "build" / "fuzz"
_HANGS: Final = 20  # seconds after which libFuzzer ends the process
_MEMORY: Final = 2048  # MiB, the same
_MOST: Final = 20  # inputs of one target that are judged again
_ENOUGH: Final = 5  # findings of one target
_PUMP: Final = 32  # one mutation in 32 repeats a part, because long inputs take long
_SHORT: Final = 4096  # octets that the others make: more executions


class _Run:
    """Fuzzes one target, in a process of its own; `executions` is shared with the parent.

    It ends the process after some `seconds`, because libFuzzer counts in whole ones.
    """

    def __init__(self, target: Target, seconds: float, executions: Any) -> None:  # noqa: ANN401 - a memoryview
        self._target = target
        self._end = time.monotonic() + seconds
        self._executions = executions
        self._suspects = _BUILD / "suspects" / target.name
        self._seen: set[object] = set()
        self._worst = 1.0

    def one(self, data: bytes) -> None:
        """Take one input."""
        if time.monotonic() > self._end:
            os._exit(0)
        self._executions[0] += 1
        try:
            slow = self._target.seconds(data) / allowed_seconds(data)
        except Exception as error:  # noqa: BLE001 - this is what is looked for
            place = traceback.extract_tb(error.__traceback__)[-1]
            self._keep((type(error), place.filename, place.lineno), data)
        else:
            if slow > self._worst:
                self._worst = slow * 1.2
                self._keep(slow, data)

    def _keep(self, kind: object, data: bytes) -> None:
        if kind not in self._seen and len(self._seen) < _MOST:
            self._seen.add(kind)
            name = hashlib.sha256(data).hexdigest()[:12]
            (self._suspects / name).write_bytes(data)


def _mutate(mutate: Callable[[bytes, int], bytes], data: bytes, most: int, seed: int) -> bytes:
    dice = random.Random(seed)  # noqa: S311 - libFuzzer's, to be repeated
    if dice.randrange(_PUMP):
        return mutate(data[:_SHORT], min(most, _SHORT))
    return pumped(data, dice, most)


def _fuzz(atheris: Any, target: Target, seconds: float, executions: Any) -> None:  # noqa: ANN401 - has no types
    """Run libFuzzer, which ends the process."""
    corpus, artifacts = _BUILD / "corpus" / target.name, _BUILD / "suspects" / target.name
    run = _Run(target, seconds, executions)
    options = [
        *(f"-max_len={LONGEST}", f"-timeout={_HANGS}"),
        *(f"-rss_limit_mb={_MEMORY}", f"-artifact_prefix={artifacts}/", "-verbosity=0"),
        *("-print_final_stats=0", str(corpus), str(target.seeds[0].parent)),
    ]
    atheris.Setup(
        [target.name, *options],
        run.one,
        custom_mutator=lambda data, most, seed: _mutate(atheris.Mutate, data, most, seed),
    )
    atheris.Fuzz()


def _run(atheris: Any, target: Target, seconds: float) -> int:  # noqa: ANN401 - has no types
    """Fuzz a target in a process of its own; return the number of executions."""
    shared = mmap.mmap(-1, 8)
    executions = memoryview(shared).cast("Q")
    for name in ("corpus", "suspects"):
        (_BUILD / name / target.name).mkdir(parents=True, exist_ok=True)
    with (_BUILD / "log").open("ab") as log:
        child = os.fork()
        if child == 0:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            try:
                _fuzz(atheris, target, seconds, executions)
            finally:
                os._exit(1)
    os.waitpid(child, 0)
    return executions[0]


def _judge(targets: dict[str, Target], name: str) -> int:
    """Print which suspects of a target are findings, keep them, and return how many there are."""
    found = 0
    suspects = sorted((_BUILD / "suspects" / name).iterdir(), key=lambda path: path.stat().st_size)
    for path in suspects:
        data = path.read_bytes()
        path.unlink()
        if found == _ENOUGH:
            continue
        what = problem(targets[name], data)
        if what:
            found += 1
            kept = _BUILD / "findings" / name
            kept.mkdir(parents=True, exist_ok=True)
            (kept / path.name).write_bytes(data)
            print(f"{name}: {kept / path.name}: {what}")
    return found


def main() -> int:
    """Fuzz; return 1 when there are findings."""
    parser = argparse.ArgumentParser(prog="make fuzz-parsers")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--judge", metavar="TARGET", help=argparse.SUPPRESS)
    parser.add_argument("only", nargs="*", metavar="TARGET", help="these targets and no others")
    arguments = parser.parse_args()
    if arguments.judge:
        from fuzz.targets import TARGETS  # noqa: PLC0415 - here without instrumentation

        return min(_judge(TARGETS, arguments.judge), 100)
    try:
        import atheris  # noqa: PLC0415 - there is none for every Python
    except ModuleNotFoundError:
        print("atheris is not installed: there is none for this Python; nothing was fuzzed")
        return 0
    begin = time.monotonic()
    with atheris.instrument_imports(include=["minismtp", "minismtp_plugins"]):
        from fuzz.targets import TARGETS  # noqa: PLC0415 - here with instrumentation
    names = arguments.only or list(TARGETS)
    total = findings = 0
    for number, name in enumerate(names):
        left = arguments.seconds - (time.monotonic() - begin)
        executions = _run(atheris, TARGETS[name], max(0.1, left / (len(names) - number)))
        found = 0
        if any((_BUILD / "suspects" / name).iterdir()):
            command = [sys.executable, "-m", "fuzz.drive", "--judge", name]
            found = subprocess.run(command, check=False).returncode
        total, findings = total + executions, findings + found
        print(f"{name}: {executions:,} executions, {found} findings", flush=True)
    print(f"{len(names)} parsers, {total:,} executions, {findings} findings")
    return min(findings, 1)


if __name__ == "__main__":
    sys.exit(main())
