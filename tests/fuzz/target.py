"""The definition of a target, and of a finding."""

from __future__ import annotations

import contextlib
import math
import random
import sys
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CORPUS: Final = Path(__file__).parents[1] / "data" / "fuzz"
LONGEST: Final = 1 << 17  # octets of an input
_SECONDS: Final = 0.05  # of CPU time, plus
_SECONDS_EACH: Final = 1e-6  # for each octet more
_MEMORY: Final = 1 << 21  # octets, and
_MEMORY_EACH: Final = 8  # for each octet more
_TRIES: Final = 5  # fewer, where it takes
_DOUBTLESS: Final = 10  # times as long as it may


@dataclass(frozen=True, slots=True)
class Target:
    """One parser: `run` may raise what `raises` names; `covers` are the modules that it is for.

    It never gets more than `most` octets of an input, because what comes before it has that limit.
    `memory` octets are what it may take for any input.
    """

    name: str
    run: Callable[[bytes], object]
    raises: tuple[type[Exception], ...]
    covers: frozenset[str]
    most: int
    memory: int

    def seconds(self, data: bytes) -> float:
        """Return the CPU time that an input takes. Raise exceptions that are not allowed."""
        data = data[: self.most]
        begin = time.thread_time()
        with contextlib.suppress(*self.raises):
            self.run(data)
        return time.thread_time() - begin

    @property
    def seeds(self) -> list[Path]:
        """The inputs in the corpus."""
        return sorted((CORPUS / self.name).iterdir())


TARGETS: Final[dict[str, Target]] = {}


def target(
    *covers: str,
    raises: tuple[type[Exception], ...] = (),
    most: int = LONGEST,
    memory: int = _MEMORY,
) -> Callable[[Callable[[bytes], object]], Callable[[bytes], object]]:
    """Put a function into `TARGETS` under its name."""

    def register(run: Callable[[bytes], object]) -> Callable[[bytes], object]:
        name = run.__name__
        TARGETS[name] = Target(name, run, raises, frozenset(covers), most, memory)
        return run

    return register


def allowed_seconds(data: bytes) -> float:
    """Return how long an input may take; a tracer (coverage) makes everything slower."""
    return (_SECONDS + _SECONDS_EACH * len(data)) * (20 if sys.gettrace() else 1)


def problem(target: Target, data: bytes, *, slack: float = 1.0) -> str:
    """Return what is wrong when a target runs on an input, or an empty text.

    The time is that of the fastest of some runs, because the machine may be busy. `slack` is for
    machines that are slower than the one for which the limits were set.
    """
    fastest, allowed = math.inf, slack * allowed_seconds(data)
    for _ in range(_TRIES):
        try:
            fastest = min(fastest, target.seconds(data))
        except Exception:  # noqa: BLE001 - this is what is looked for
            return traceback.format_exc()
        if fastest <= allowed:
            break
        if fastest > _DOUBTLESS * allowed:
            return f"{fastest:.3f} s for {len(data):,} octets"
    else:
        return f"{fastest:.3f} s for {len(data):,} octets"
    most = target.memory + _MEMORY_EACH * len(data)
    peak = _peak(target, data, most)
    return f"{peak:,} octets of memory for {len(data):,} octets" if peak > most else ""


def _peak(target: Target, data: bytes, enough: int) -> int:
    """Return the memory that an input takes, by the second run when the first fills caches."""
    peak = 0
    for _ in range(2):
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            target.seconds(data)
            peak = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
        if peak <= enough:
            break
    return peak


def pumped(data: bytes, dice: random.Random, most: int = LONGEST) -> bytes:
    """Repeat a slice of an input until it is long, because this does not happen by chance."""
    start = dice.randrange(len(data) + 1)
    length = dice.choice((1, 1, 2, 3, 4, 8, 16, 64, len(data)))
    piece = data[start : start + length] or bytes([dice.randrange(256)])
    times = min(1 << dice.randint(1, 16), max(1, (most - len(data)) // len(piece)))
    return (data[:start] + piece * times + data[start:])[:most]


def pumps(data: bytes, count: int) -> Iterator[bytes]:
    """Yield `count` long inputs that are made of one, always the same."""
    dice = random.Random(data)  # noqa: S311 - to be repeated, not kept secret
    for _ in range(count):
        start = dice.randrange(len(data) + 1)
        piece = data[start : start + dice.choice((1, 2, 4, 8, len(data)))] or b" "
        yield (data[:start] + piece * (LONGEST // 2 // len(piece)) + data[start:])[:LONGEST]
