"""One problem of a configuration, as a person reads it."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from minismtp.config import Config
from minismtp.config.mistakes import ConfigError

Severity: TypeAlias = Literal["error", "warning"]


class Problem(NamedTuple):
    """An error, which will keep something from working, or a warning, which may be intended."""

    severity: Severity
    mistake: ConfigError

    def __str__(self) -> str:
        return f"{self.severity}: {self.mistake}"


def error(config: Config, key: str, message: str) -> Problem:
    """Return a problem with the place of a key in the file."""
    return Problem("error", config.locate(ConfigError(message, key=key)))


def warning(config: Config, key: str, message: str) -> Problem:
    """Return a doubt with the place of a key in the file."""
    return Problem("warning", config.locate(ConfigError(message, key=key)))
