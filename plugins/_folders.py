"""Choose the folder of a mailbox for a message by its header."""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from minismtp import Message

# A dot separates the levels of Maildir++; "&" would begin modified UTF-7 (RFC 3501 section 5.1.3).
_NAME = re.compile(r"[!-%'-\-0-~](?:[ -%'-.0-~]{0,98}[!-%'-\-0-~])?", re.ASCII)
_NUMBER = re.compile(r"[+-]?[0-9]{1,9}(?:\.[0-9]{1,9})?")
_LOOKED_AT = 1000  # characters of a value


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A folder, and the value that a field must have for it; the topmost field counts."""

    folder: str
    header: str
    value: str = ""
    least: float | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.folder) or ".." in self.folder:
            raise ValueError(f"folder: {self.folder!r}: expected a name such as Junk or Lists.News")
        if not re.fullmatch(r"[!-9;-~]+", self.header):
            raise ValueError(f"header: expected a field's name, not {self.header!r}")
        if bool(self.value) == (self.least is not None):
            raise ValueError("value: expected either value or least")

    def takes(self, message: Message) -> bool:
        """Return whether the message belongs into this folder."""
        found = message.headers.get(self.header)[:_LOOKED_AT]
        if self.least is None:
            return fnmatchcase(found.lower(), self.value.lower())
        number = _NUMBER.match(found)
        return number is not None and float(number[0]) >= self.least
