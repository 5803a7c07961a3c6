"""What another server says, and the verdict that it is for whoever waits."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from minismtp import Defer, Reject

_LONGEST = 300  # characters that are passed on
_NUMBER = "(?:0|[1-9][0-9]{0,2})"  # RFC 2034 section 4: no leading zeros, which `Reply` refuses
_ENHANCED = re.compile(rf"([245]\.{_NUMBER}\.{_NUMBER}) +")
_CLOSING = 421


@dataclass(frozen=True, slots=True)
class Said:
    """A reply of the other server, one line that is safe to pass on."""

    code: int
    enhanced: str
    text: str

    @classmethod
    def of(cls, code: int, lines: Sequence[str]) -> "Said":
        """Read the lines of a reply, without their codes."""
        found = _ENHANCED.match(f"{lines[0]} ")
        enhanced = found[1] if found else ""
        text = " ".join(line.removeprefix(enhanced).strip() for line in lines)
        return cls(code, enhanced, text[:_LONGEST].strip() or "no reason given")

    @property
    def accepts(self) -> bool:
        """Whether it has done what it was asked for (2yz)."""
        return self.code // 100 == 2  # noqa: PLR2004

    def check(self) -> None:
        """Raise the verdict that a refusal is: Reject for 5yz, else Defer."""
        if self.accepts:
            return
        refusal = Reject if self.code // 100 == 5 else Defer  # noqa: PLR2004
        code = self.code if self.code // 100 in (4, 5) and self.code != _CLOSING else 451
        fits = self.enhanced[:1] == str(code)[0]
        raise refusal(
            self.text, code=code, enhanced=self.enhanced if fits else f"{code // 100}.0.0"
        )
