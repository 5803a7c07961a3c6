"""Asks in the terminal for what the options leave open. A wrong answer is asked for again."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from minismtp.cli.common import CommandError, UsageError, say
from minismtp.cli.passwd import ask_twice
from minismtp.cli.setup.answers import host_name

#: Ends of names that are not in the DNS (RFC 6761, RFC 6762, RFC 8375), or only in networks.
_OURS_ALONE: Final = tuple(
    f".{name}"
    for name in ("local", "localdomain", "localhost", "internal", "lan", "home.arpa", "invalid")
)
T = TypeVar("T")


class Asker:
    """Takes an option if it is there, else asks, else takes the default, or raises UsageError."""

    def __init__(self, *, may_ask: bool) -> None:
        self.may_ask = may_ask

    def answer(
        self, option: str, given: str | None, question: str, parse: Callable[[str], T], default: str
    ) -> T:
        """Return the answer to a question. The default "" means that there is none."""
        if given is None and self.may_ask:
            return self._asked(question, parse, default)
        if given is None and not default:
            raise UsageError(f"{option}: expected {question}, because nobody can be asked")
        try:
            return parse(default if given is None else given)
        except ValueError as error:
            raise UsageError(f"{option}: {error}") from None

    def _asked(self, question: str, parse: Callable[[str], T], default: str) -> T:
        shown = f" [{default}]" if default else ""
        while True:
            text = _line(f"{question[:1].upper()}{question[1:]}{shown}: ")
            try:
                return parse(text.strip() or default)
            except ValueError as error:
                say(f"  {error}")

    def password(self) -> str:
        """Return a password, or "" if one is to be made."""
        if not self.may_ask:
            return ""
        say("Password of the first user; leave it empty, and one is made and shown once.")
        while True:
            try:
                with _own_line():
                    return ask_twice()
            except ValueError as error:
                say(f"  {error}")
            except EOFError:
                raise _ended() from None

    def confirm(self, question: str) -> bool:
        """Return whether the administrator agrees; without a terminal that is so."""
        return not self.may_ask or _line(f"{question} [Y/n]: ").strip().lower() in {"", "y", "yes"}


def _line(prompt: str) -> str:
    try:
        with _own_line():
            return _typed(prompt)
    except UnicodeDecodeError:
        return "\ufffd"  # is no name, so the question comes again
    except EOFError:
        raise _ended() from None


def _typed(prompt: str) -> str:
    """Return a line with its end. Raise EOFError."""
    sys.stdout.write(prompt)
    sys.stdout.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


@contextlib.contextmanager
def _own_line() -> Iterator[None]:
    """Let what is said after Ctrl-C or Ctrl-D begin on a line of its own, not behind a prompt."""
    try:
        yield
    except (EOFError, KeyboardInterrupt):
        say("")
        raise


def _ended() -> CommandError:
    return CommandError("the answers ended too early; nothing was written")


def likely_hostname(domain: str) -> str:
    """Return this machine's name if other servers could know it, else one in the domain."""
    try:
        name = host_name(socket.gethostname())
    except ValueError:
        name = ""
    return name if name and not name.endswith(_OURS_ALONE) else f"mx.{domain}"
