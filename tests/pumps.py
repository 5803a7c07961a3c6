"""Texts that make a slow regular expression slow, made from the expression; and how time grows.

A pattern of quadratic time is slow on what it nearly matches, over and over: a prefix of a match,
then one piece of the pattern many times, then something that fails. The pieces are the literals and
classes of the pattern, the bodies of its repetitions and alternatives, and pairs of all these.
"""

from __future__ import annotations

import gc
import re
import re._constants as sre  # type: ignore[import-not-found]
import re._parser  # type: ignore[import-not-found]
from collections.abc import Callable, Iterator
from itertools import product
from time import thread_time
from typing import Any, Final

_SAMPLES: Final = 'a0 \t\n\r.,;:"\\()<>=-_@/é　\x00~'
_CATEGORIES: Final = {
    sre.CATEGORY_DIGIT: "0",
    sre.CATEGORY_SPACE: " \t\n\r　",
    sre.CATEGORY_WORD: "a0_é",
    sre.CATEGORY_NOT_DIGIT: "a;",
    sre.CATEGORY_NOT_SPACE: "a;",
    sre.CATEGORY_NOT_WORD: " ;",
}
_REPEATS: Final = {sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT}
_LOOKS: Final = {sre.ASSERT, sre.ASSERT_NOT}
_TAILS: Final = ("", "\x00", "\n!")
_MOST: Final = 24  # pieces of one pattern

#: The allowed ratio of times for four times the size: linear is 4, quadratic 16.
_FACTOR: Final = 8
_TOO_LONG: Final = 40  # times `short`, for a fifth of the size


def grows_too_fast(
    work: Callable[[int], Callable[[], object]], size: int, short: float = 0.0005
) -> bool:
    """Return whether `work` of four times the size takes far more than four times as long.

    What `work` returns for a size is timed, in CPU seconds of this thread, the best of some runs;
    what takes `short` seconds needs no second look.
    """
    work(1)()  # data that is read once, such as a list, does not count
    for part in (40, 5):  # an exponential pattern would never finish
        if all(_seconds(work(size // part), 1) > _TOO_LONG * short for _ in range(3)):
            return True
    if _seconds(work(size), runs=1) < short:
        return False
    # A busy machine adds time to a thread, but a quadratic pattern is slow each time.
    return all(_seconds(work(size), 3) > _FACTOR * _seconds(work(size // 4), 5) for _ in range(4))


def _seconds(call: Callable[[], object], runs: int) -> float:
    best = float("inf")
    gc.disable()  # it may collect objects of other tests
    try:
        for _ in range(runs):
            begun = thread_time()
            call()
            best = min(best, thread_time() - begun)
    finally:
        gc.enable()
    return best


def pumps(pattern: re.Pattern[Any]) -> Iterator[tuple[str, str, str]]:
    """Yield (prefix, piece, tail) for texts of prefix, piece many times, tail."""
    source = pattern.pattern
    if isinstance(source, bytes):
        tree = re._parser.parse(source.decode("latin-1"), pattern.flags | re.ASCII)  # noqa: SLF001
    else:
        tree = re._parser.parse(source, pattern.flags)  # noqa: SLF001
    pieces = [piece for piece in dict.fromkeys(_pieces(tree)) if piece][:_MOST]
    prefixes = [prefix for prefix in dict.fromkeys(_prefixes(tree)) if prefix]
    yield from product(["", *prefixes], pieces, _TAILS)
    yield from product([""], prefixes, _TAILS)
    yield from (("", one + other, "\x00") for one, other in product(pieces, repeat=2))


def _pieces(tree: Any) -> Iterator[str]:  # noqa: ANN401 - the tree of `re` has no types
    """Yield each literal and run of them, members of each class, samples of each inner pattern."""
    run = ""
    for operator, argument in tree:
        if operator is sre.LITERAL:
            run += chr(argument)
            yield chr(argument)
            continue
        yield run
        run = ""
        yield from _members(operator, argument)
        for inner in _inner(operator, argument):
            yield from _pieces(inner)
            yield _sample(inner)
    yield run


def _prefixes(tree: Any) -> Iterator[str]:  # noqa: ANN401
    """Yield the beginnings of a match, up to each element and into it."""
    before = ""
    for operator, argument in tree:
        for inner in _inner(operator, argument):
            yield from (before + prefix for prefix in _prefixes(inner))
        before += _sample([(operator, argument)])
        yield before


def _sample(tree: Any) -> str:  # noqa: ANN401
    """Return a text that matches, with each repetition once at least."""
    text = ""
    for operator, argument in tree:
        inner = [] if operator in _LOOKS else _inner(operator, argument)
        if operator is sre.LITERAL:
            text += chr(argument)
        elif operator in _REPEATS:
            text += _sample(inner[0]) * min(max(1, argument[0]), argument[1])
        elif inner:
            text += _sample(inner[0])
        else:
            text += next(_members(operator, argument), "")
    return text


def _inner(operator: Any, argument: Any) -> list[Any]:  # noqa: ANN401
    """Return the patterns within an element."""
    if operator in _REPEATS:
        return [argument[2]]
    if operator is sre.SUBPATTERN:
        return [argument[-1]]
    if operator is sre.BRANCH:
        return list(argument[1])
    if operator in _LOOKS:
        return [argument[1]]
    return [argument] if operator is sre.ATOMIC_GROUP else []


def _members(operator: Any, argument: Any) -> Iterator[str]:  # noqa: ANN401
    """Yield characters of a class, at least one for each part of it."""
    if operator is sre.ANY:
        yield from "a;"
    elif operator is sre.NOT_LITERAL:
        yield from [each for each in _SAMPLES if ord(each) != argument][:4]
    elif operator is sre.IN and argument[0][0] is sre.NEGATE:
        named = "".join(_named(*part) for part in argument[1:])
        yield from [each for each in _SAMPLES if each not in named][:4]
    elif operator is sre.IN:
        for part in argument:
            yield from _named(*part)[:: max(1, len(_named(*part)) - 1)]


def _named(kind: Any, value: Any) -> str:  # noqa: ANN401
    """Return the characters of one part of a class; of a wide range, its ends and our samples."""
    if kind is sre.CATEGORY:
        return _CATEGORIES[value]
    if kind is sre.RANGE:
        low, high = value
        return chr(low) + "".join(c for c in _SAMPLES if low < ord(c) < high) + chr(high)
    return chr(value)
