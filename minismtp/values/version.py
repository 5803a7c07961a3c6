"""Versions by PEP 440, and which of two releases is the newer one."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

_MOST_CHARACTERS: Final = 64
# PEP 440, appendix B, without those parts that only order pre-releases among themselves
_VERSION: Final = re.compile(
    r"""v?(?:(?P<epoch>\d{1,9})!)?
    (?P<release>\d{1,9}(?:\.\d{1,9}){0,9})
    (?P<pre>[-_.]?(?:alpha|beta|preview|pre|rc|a|b|c)[-_.]?\d{0,9})?
    (?P<post>-(?P<bare>\d{1,9})|[-_.]?(?:post|rev|r)[-_.]?(?P<number>\d{0,9}))?
    (?P<dev>[-_.]?dev[-_.]?\d{0,9})?
    (?:\+[a-z0-9]+(?:[-_.][a-z0-9]+)*)?""",
    re.VERBOSE | re.ASCII,
)


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """A version by PEP 440. The order is that of releases; it does not compare pre-releases."""

    key: tuple[int, tuple[int, ...], int]
    text: str = field(compare=False)
    is_stable: bool = field(compare=False)

    @classmethod
    def parse(cls, text: str) -> Version:
        """Return the version that a text is. Raise ValueError."""
        found = _VERSION.fullmatch(text.lower()) if len(text) <= _MOST_CHARACTERS else None
        if found is None:
            raise ValueError(f"expected a version such as 1.2.3, not {text[:_MOST_CHARACTERS]!r}")
        numbers = [int(number) for number in found["release"].split(".")]
        while numbers and not numbers[-1]:  # 1.0 is 1
            numbers.pop()
        step = 0
        if found["pre"]:
            step = -1
        else:
            step += 1 + int(found["bare"] or found["number"] or 0) if found["post"] else 0
            step -= 1 if found["dev"] else 0
        key = (int(found["epoch"] or 0), tuple(numbers), step)
        return cls(key, text, is_stable=not found["pre"] and not found["dev"])

    def __str__(self) -> str:
        return self.text
