"""Mistakes in the configuration, and the texts that tell a person about them.

A mistake names the file, the table, the line, and what was expected there. The line and the name of
the table are added by `toml_places.Source.locate`, because the readers of values do not know them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

_ENTRY = re.compile(r"((?:[\w-]+\.)*[\w-]+\[[0-9]+\])\.?(.*)", re.DOTALL)
_MOST_TOLD = 100  # mistakes of one file
_LONGEST_WORD = 100  # characters; difflib notes the place of each


class ConfigError(ValueError):
    """A mistake in the configuration; `str()` is the whole line for the user.

    A dataclass may raise it in `__post_init__` with a `key` relative to its own table. `line`
    counts from 1, and 0 is unknown. `name` is that of the `[[...]]` table which the key is in.
    """

    def __init__(
        self, message: str, *, file: str = "", key: str = "", line: int = 0, name: str = ""
    ) -> None:
        super().__init__(message)
        self.message = message
        self.file = file
        self.key = key
        self.line = line
        self.name = name

    @property
    def mistakes(self) -> tuple[ConfigError, ...]:
        """Every single mistake."""
        return (self,)

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, *self._place(), self.message) if part)

    def within(self, key: str, file: str = "") -> ConfigError:
        """Return the same error as seen from outside the table that stands at `key`."""
        dot = "" if self.key.startswith("[") or not (key and self.key) else "."
        path = f"{key}{dot}{self.key}"
        return ConfigError(self.message, file=self.file or file, key=path)

    def _place(self) -> tuple[str, ...]:
        """Return such as ("plugins[3] maildir, line 97", "path")."""
        if not self.line:
            return (self.key,)
        entry = _ENTRY.fullmatch(self.key)
        if entry is None:
            return (f"{self.key}, line {self.line}" if self.key else f"line {self.line}",)
        name = f" {self.name}" if self.name else ""
        return (f"{entry[1]}{name}, line {self.line}", entry[2])


class CombinedConfigError(ConfigError):
    """Several mistakes at once; `str()` has a line for each."""

    def __init__(self, mistakes: Iterable[ConfigError]) -> None:
        self._mistakes = tuple(mistakes)[:_MOST_TOLD]
        first = self._mistakes[0]
        super().__init__(first.message, file=first.file, key=first.key)

    @property
    def mistakes(self) -> tuple[ConfigError, ...]:
        """Every single mistake."""
        return self._mistakes

    def __str__(self) -> str:
        return "\n".join(map(str, self._mistakes))

    def within(self, key: str, file: str = "") -> ConfigError:
        """Return the same errors as seen from outside the table that stands at `key`."""
        return CombinedConfigError(each.within(key, file) for each in self._mistakes)


def combined(mistakes: Iterable[ConfigError]) -> ConfigError:
    """Return one error for all of some mistakes, of which there is at least one."""
    single = [each for several in mistakes for each in several.mistakes]
    return single[0] if len(single) == 1 else CombinedConfigError(single)


def did_you_mean(word: str, known: Collection[str]) -> str:
    """Return `; did you mean 'x'?` when a known word is similar, else an empty text."""
    if len(word) > _LONGEST_WORD:
        return ""
    import difflib  # noqa: PLC0415 - a server without a mistake does not need its memory

    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def remedy(error: OSError) -> str:
    """Return `; ` and what to do about a file that cannot be used, or "" if that is not clear."""
    match error:
        case FileNotFoundError():
            return "; make it, or correct the path"
        case PermissionError():
            return "; let the server's user read it, such as by its group (chgrp, chmod g+r)"
    return ""


def reason(error: OSError) -> str:
    """Describe in one line why a file or an address could not be used."""
    text = error.strerror or str(error)
    return f"{error.filename}: {text}" if error.filename else text
