"""Durations and sizes as people read them: one form for the commands and the status page."""

from __future__ import annotations

from typing import Final

_UNITS: Final = ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s"))
_FEW: Final = 10  # below it, a fraction matters


def span(seconds: float) -> str:
    """Return a duration in its two largest units, such as "2h5m"; short ones as "0.4s"."""
    if 0 < seconds < _FEW and seconds != int(seconds):
        return f"{seconds:.1f}s"
    whole = max(0, round(seconds))
    for size, unit, smaller, smaller_unit in _UNITS:
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size}{unit}" + (f"{rest}{smaller_unit}" if rest else "")
    return f"{whole}s"


def octets(count: float) -> str:
    """Return a size with its unit, such as "4.8 KiB"."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1000:  # noqa: PLR2004
            return f"{size:.0f} {unit}" if unit == "B" or size >= _FEW else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
