"""Checks of options that several plugins have; each raises ValueError for a wrong value.

The server names the file and the table of the option in front of the text.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from itertools import pairwise
from string import Formatter


def check_time(option: str, time: timedelta) -> None:
    """Refuse a time of zero or less, in which nothing could be done."""
    if time <= timedelta(0):
        raise ValueError(f'{option}: expected more than "0s"')


def check_placeholders(option: str, text: str, known: Sequence[str]) -> None:
    """Refuse other placeholders than the known ones, and formats of these."""
    try:
        found = {part[1:] for part in Formatter().parse(text) if part[1] is not None}
    except ValueError as error:
        raise ValueError(f"{option}: {text!r}: {error}") from None
    if not found <= {(name, "", None) for name in known}:
        names = ", ".join(f"{{{name}}}" for name in known)
        raise ValueError(f"{option}: {text!r}: known placeholders are {names}")


def check_points(points: Mapping[str, float], names: Iterable[str]) -> None:
    """Refuse points for a result that the plugin does not have."""
    known = list(names)
    for name in points:
        if name not in known:
            raise ValueError(f"points: expected some of {', '.join(known)}, not {name!r}")


def check_thresholds(**thresholds: float | None) -> None:
    """Refuse thresholds that do not rise from the first to the last."""
    known = [(name, value) for name, value in thresholds.items() if value is not None]
    for name, value in known:
        if math.isnan(value):
            raise ValueError(f"{name}: expected a number")
    for (lower, low), (upper, high) in pairwise(known):
        if low > high:
            raise ValueError(f"{upper}: expected at least the {low:g} of {lower}, not {high:g}")
