"""The commands that run and look after the server."""

# ruff: noqa: PLC0415 - each command imports what it needs, see `commands`
from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from minismtp.cli.common import (
    EXIT_CONFIG,
    EXIT_USAGE,
    Commands,
    configuration,
    fail,
    say,
)
from minismtp.config.toml_values import ConfigError
from minismtp.runtime.log import complain
from minismtp.server.startup_signals import block_signals

if TYPE_CHECKING:
    from minismtp.config import Config


def add_to(commands: Commands) -> None:
    """Add the commands of this group."""
    commands.add("serve", _serve, "run the server")
    strict = commands.add("check", _check, "check the configuration and everything that it names")
    strict.add_argument("--strict", action="store_true", help="let warnings count as errors")
    _add_queue(commands.add("queue", _queue, "see and steer the mail that waits for delivery"))
    _add_quarantine(
        commands.add("quarantine", _quarantine, "see and release the mail that filters set aside")
    )
    passwd = commands.add(
        "passwd", _passwd, "set a user's password in a password file", config=False
    )
    passwd.add_argument("file", type=Path, metavar="FILE", help="made when it is missing")
    passwd.add_argument("user", type=_user_name, metavar="USER")
    passwd.add_argument(
        "--scheme",
        choices=("scrypt", "argon2id"),
        default="scrypt",
        help="how the password is hashed; default: scrypt",
    )
    passwd.add_argument(
        "--no-scram",
        action="store_true",
        help="store no keys for SCRAM, which is then not offered to anybody of this file",
    )
    passwd.add_argument("--remove", action="store_true", help="remove the user")


def _serve(arguments: argparse.Namespace) -> int:
    block_signals()  # where no import of ours was the first one
    from minismtp.server.supervisor import serve

    config = configuration(arguments)
    if not config.file:
        say(_first_steps(config))
        sys.stdout.flush()  # children inherit what is left in the buffer
    return serve(config)


def _first_steps(config: Config) -> str:
    address, mail = config.listeners[0].address, config.state_directory / "mail"
    return (
        "No configuration file: a harmless server for trying it out.\n"
        f"Mail for anybody at localhost or {config.hostname} is stored below {mail}\n"
        f"Metrics are at http://{config.metrics.address}/metrics\n"
        "Send the first mail:\n"
        rf"  printf 'Subject: Hello\r\n\r\nIt works.\r\n' | curl --url smtp://{address}"
        " --mail-from me@example.org --mail-rcpt me@localhost --upload-file -"
    )


def _check(arguments: argparse.Namespace) -> int:
    from minismtp.cli.check import Problem, check

    def findings() -> Iterator[Problem]:
        try:
            yield from check(configuration(arguments))
        except ConfigError as error:
            yield Problem("error", str(error))

    fatal = False
    for finding in findings():
        complain(str(finding), finding.severity)
        fatal = fatal or arguments.strict or finding.severity == "error"
    if fatal:
        return EXIT_CONFIG
    say("configuration ok")
    return 0


def _add_queue(parser: argparse.ArgumentParser) -> None:
    from minismtp.cli.queue import VERBS

    parser.add_argument("verb", choices=list(VERBS), help="; ".join(map(": ".join, VERBS.items())))
    parser.add_argument("ids", nargs="*", metavar="ID", help="only these messages")
    parser.add_argument("--to-domain", default="", metavar="DOMAIN", help="only recipients there")
    parser.add_argument(
        "--from", dest="sender", metavar="ADDRESS", help='the sender, or "@domain"; "" = bounces'
    )
    parser.add_argument(
        "--older-than",
        metavar="DURATION",
        help='only messages that have waited so long, such as "2h"',
    )
    parser.add_argument(
        "--state",
        choices=("queued", "deferred", "held"),
        default="",
        help="queued: not tried yet; deferred: tried and put off; held: by the operator",
    )
    parser.add_argument("--reason", default="", metavar="TEXT", help="a part of the last reply")
    parser.add_argument("--all", action="store_true", help="everything, where nothing is chosen")
    parser.add_argument("--json", action="store_true", help="for programs")


def _add_quarantine(parser: argparse.ArgumentParser) -> None:
    from minismtp.cli.quarantine import VERBS

    parser.add_argument("verb", choices=list(VERBS), help="; ".join(map(": ".join, VERBS.items())))
    parser.add_argument("ids", nargs="*", metavar="ID", help="only these messages")
    parser.add_argument(
        "--to-domain", default="", metavar="DOMAIN", help="only for mailboxes there"
    )
    parser.add_argument(
        "--from", dest="sender", metavar="ADDRESS", help='the sender, or "@domain"; "" = bounces'
    )
    parser.add_argument(
        "--older-than", metavar="DURATION", help='only messages that are so old, such as "2h"'
    )
    parser.add_argument("--reason", default="", metavar="TEXT", help="a part of the reason")
    parser.add_argument("--all", action="store_true", help="everything, where nothing is chosen")
    parser.add_argument("--json", action="store_true", help="for programs")


def _quarantine(arguments: argparse.Namespace) -> int:
    from minismtp.cli.quarantine import run
    from minismtp.cli.queue import UsageError

    try:
        say(run(configuration(arguments), arguments))
    except UsageError as error:
        return fail(str(error), EXIT_USAGE)
    return 0


def _queue(arguments: argparse.Namespace) -> int:
    from minismtp.cli.queue import UsageError, run

    try:
        text = run(configuration(arguments), arguments)
    except UsageError as error:
        return fail(str(error), EXIT_USAGE)
    if text:
        say(text)
    return 0


def _passwd(arguments: argparse.Namespace) -> int:
    from minismtp.server.privileges import acting_as_owner

    with acting_as_owner(arguments.file.parent):
        return _change_password(arguments)


def _change_password(arguments: argparse.Namespace) -> int:
    from minismtp.smtp.sasl import make_key
    from minismtp.values.durable_files import atomic_write, read_file
    from minismtp.values.passwords import hash_password

    path: Path = arguments.file
    user: str = arguments.user
    try:
        lines = read_file(path).splitlines() if path.exists() else []
        others = [line for line in lines if line.partition(b":")[0].strip() != user.encode()]
        if not arguments.remove:
            password = _ask_password()
            stored = hash_password(password, arguments.scheme)
            if not arguments.no_scram:
                stored += f":{make_key(password).text}"
            place = next((i for i, line in enumerate(lines) if line not in others), len(others))
            others.insert(place, f"{user}:{stored}".encode())
        elif len(others) == len(lines):
            return fail(f"{path}: no user is called {user!r}")
        others = others or [b"# no users"]  # an empty file would be taken for an accident
        # Through a symbolic link to the file itself: the rename would replace the link.
        atomic_write(path.resolve(), b"".join(line + b"\n" for line in others))
    except OSError as error:
        return fail(f"{path}: {error.strerror}")
    except (ValueError, EOFError, ModuleNotFoundError) as error:
        return fail(str(error) or "no password was given")
    return 0


def _ask_password() -> str:
    """Read a password from the terminal, or one line from what is no terminal."""
    from minismtp.values.durable_files import without_marks

    if not sys.stdin.isatty():
        return without_marks(sys.stdin.buffer.readline()).decode().rstrip("\r\n")
    from getpass import getpass

    password = getpass("Password: ")
    if getpass("The same again: ") != password:
        raise ValueError("the two passwords differ")
    return password


def _user_name(text: str) -> str:
    """Refuse what would break the lines of a password file, or the login of this user."""
    if not text or ":" in text or not text.isprintable() or text != text.strip() or text[0] == "#":
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a name without ':', control characters, spaces around it or '#'"
            " before it"
        )
    return text
