"""The command line as argparse has it, with errors of one line that say what may be meant."""

from __future__ import annotations

import argparse
import sys
from typing import Final, NoReturn

from minismtp.cli.common import EXIT_USAGE, fail

_FEW: Final = 8  # choices that fit into a line
_UNKNOWN: Final = "unrecognized arguments: "
#: How each command is called, for its `--help` and the manual page.
EXAMPLES: Final = {
    "setup": "minismtp setup --domain example.org --hostname mx.example.org --user alice",
    "import": "minismtp import postfix /etc/postfix --dry-run",
    "serve": "minismtp serve --config /etc/minismtp/minismtp.toml",
    "check": "minismtp check --strict",
    "dns": "minismtp dns --check",
    "reload": "minismtp reload",
    "queue": "minismtp queue hold --to-domain example.net",
    "quarantine": "minismtp quarantine list --older-than 1d",
    "passwd": "minismtp passwd /etc/minismtp/passwords alice@example.org",
    "certificate": "minismtp certificate renew",
    "backup": "minismtp backup /root/minismtp-backup",
    "sessions": "minismtp sessions --stack",
    "explain": "minismtp explain alice@example.org",
    "shadow": "minismtp shadow --since 2h",
    "trace": "minismtp trace --peer 192.0.2.0/24",
    "top": "minismtp top --interval 5",
    "hooks": "minismtp hooks",
    "plugins": "minismtp plugins greylist spf",
    "schema": "minismtp schema",
    "new-plugin": "minismtp new-plugin my-filter",
    "try": "minismtp try attachments mail.eml --to alice@example.org",
    "replay": "minismtp replay /var/lib/minismtp/mail/alice --plugins changed.toml",
    "version": "minismtp version --check",
    "completion": "minismtp completion bash",
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line. `known` are further options, for what is mistyped."""

    known: tuple[str, ...] = ()

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and end."""
        if message.startswith(_UNKNOWN):
            from minismtp.config.mistakes import did_you_mean  # noqa: PLC0415 - takes long

            word = message.removeprefix(_UNKNOWN).split()[0].partition("=")[0]
            message += did_you_mean(word, self.known) if word.startswith("-") else ""
        program = self.prog.removeprefix("minismtp").strip()
        place = f"{program}: " if program else ""
        sys.exit(fail(f"{place}{message}; see `{self.prog} --help`", EXIT_USAGE))

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """Raise ArgumentError for a word that is not among the choices of an argument."""
        if action.choices is None or value in action.choices:
            return
        from minismtp.config.mistakes import did_you_mean  # noqa: PLC0415 - takes long

        known = [str(choice) for choice in action.choices]
        few = f"; expected {', '.join(known)}" if len(known) <= _FEW else ""
        hint = did_you_mean(str(value), known) or few
        raise argparse.ArgumentError(action, f"there is no {value!r}{hint}")


def options_of(parser: argparse.ArgumentParser) -> tuple[str, ...]:
    """Return the options of a parser."""
    return (*parser._option_string_actions,)  # noqa: SLF001 - argparse shows them in no other way
