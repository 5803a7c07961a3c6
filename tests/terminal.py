"""A command in a terminal of its own, for the tests that type answers."""

from __future__ import annotations

import contextlib
import os
import pty


class Terminal:
    """Runs a command; `screen` is what it has shown."""

    def __init__(self, *command: str, environment: dict[str, str] | None = None) -> None:
        self.pid, self._keyboard = pty.fork()
        if not self.pid:
            variables = os.environ if environment is None else environment
            os.execvpe(command[0], command, variables)  # noqa: S606 - in the child of pty.fork
        self.screen = ""
        self._answered = 0

    def type(self, prompt: str, keys: str) -> None:
        """Wait for a prompt, and answer it."""
        while (place := self.screen.find(prompt, self._answered)) < 0:
            self.screen += os.read(self._keyboard, 1024).decode(errors="replace")
        self._answered = place + len(prompt)
        os.write(self._keyboard, keys.encode("utf-8", "surrogateescape"))

    def answer(self, *answers: tuple[str, str]) -> int:
        """Type several answers, and return the exit status."""
        for prompt, keys in answers:
            self.type(prompt, keys)
        return self.end()

    def end(self) -> int:
        """Return the exit status."""
        with contextlib.suppress(OSError):  # the other end of the terminal is gone
            while data := os.read(self._keyboard, 1024):
                self.screen += data.decode(errors="replace")
        os.close(self._keyboard)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
