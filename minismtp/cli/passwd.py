"""The passwords of users in a file of the plugin `password_file`: `minismtp passwd`."""

from __future__ import annotations

import argparse
import sys
from getpass import getpass
from pathlib import Path
from typing import Final

from minismtp.cli.common import CommandError, add_config, argument_type, configuration, say
from minismtp.server.privileges import acting_as_owner
from minismtp.smtp.sasl import make_key
from minismtp.values.durable_files import atomic_write, read_file, without_marks
from minismtp.values.passwords import hash_password

_DOVECOT_READS: Final = "argon2id"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("file", type=Path, metavar="FILE", help="made when it is missing")
    parser.add_argument("user", type=argument_type(_user_name), metavar="USER")
    parser.add_argument(
        "--scheme",
        choices=("scrypt", "argon2id"),
        default="scrypt",
        help="how the password is hashed; default: scrypt",
    )
    parser.add_argument(
        "--no-scram",
        action="store_true",
        help="store no keys for SCRAM, which is then not offered to any user of this file",
    )
    parser.add_argument("--remove", action="store_true", help="remove the user")
    add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    """Set or remove the password of one user, and say what was done. Raise CommandError."""
    path: Path = arguments.file
    try:
        with acting_as_owner(path.parent):
            done = _change(path, arguments)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from error
    except (ValueError, EOFError, ModuleNotFoundError) as error:
        raise CommandError(str(error) or "no password was given") from error
    say(done, *_remarks(path, arguments))
    return 0


def _remarks(path: Path, arguments: argparse.Namespace) -> list[str]:
    """Return what a user should know, and what is missing. A faulty configuration is one line."""
    if arguments.remove:
        return []
    found = []
    if arguments.scheme != _DOVECOT_READS:
        found.append(f"Dovecot cannot read this hash. If it has to: --scheme {_DOVECOT_READS}")
    # They take long, and `--help` has no use for them.
    from minismtp.cli.user_remarks import remarks  # noqa: PLC0415
    from minismtp.config.mistakes import ConfigError  # noqa: PLC0415

    try:
        config = configuration(arguments)
        found += remarks(config, path, arguments.user) if config.file else []
    except (OSError, ConfigError) as error:
        found.append(f"Whether the user has a mailbox is not known: {error}")
    return found


def _change(path: Path, arguments: argparse.Namespace) -> str:
    """Change the file and return what was done."""
    user: str = arguments.user
    lines = read_file(path).splitlines() if path.exists() else []
    others = [line for line in lines if line.partition(b":")[0].strip() != user.encode()]
    known = len(others) < len(lines)
    if not arguments.remove:
        password = _ask_password()
        line = password_line(user, password, arguments.scheme, scram=not arguments.no_scram)
        place = next((i for i, line in enumerate(lines) if line not in others), len(others))
        others.insert(place, line.encode())
    elif not known:
        raise CommandError(f"{path}: no user is called {user!r}")
    others = others or [b"# no users"]  # because the server takes an empty file for an accident
    # `resolve`, because the rename would replace a symbolic link instead of the file.
    atomic_write(path.resolve(), b"".join(line + b"\n" for line in others))
    if arguments.remove:
        return f"{user} was removed from {path} and can no longer log in."
    keys = "without keys for SCRAM" if arguments.no_scram else "with keys for SCRAM"
    done = "has a new password" if known else "was added"
    return f"{user} {done} in {path} ({arguments.scheme}, {keys})."


def password_line(user: str, password: str, scheme: str, *, scram: bool = True) -> str:
    """Return the line of a user for a password file. Raise ValueError for an empty password."""
    keys = f":{make_key(password).text}" if scram and password else ""
    return f"{user}:{hash_password(password, scheme)}{keys}"


def first_line(data: bytes) -> str:
    """Return the password in the first line of a file. Raise ValueError if it is not UTF-8."""
    return without_marks(data.partition(b"\n")[0]).decode().rstrip("\r")


def _ask_password() -> str:
    """Read a password from the terminal, or one line from standard input if that is a file."""
    if not sys.stdin.isatty():
        return first_line(sys.stdin.buffer.readline())
    return ask_twice()


def ask_twice() -> str:
    """Read a password from the terminal. Raise ValueError if the two answers differ."""
    password = getpass("Password: ")
    if getpass("The same again: ") != password:
        raise ValueError("the two passwords differ")
    return password


def _user_name(text: str) -> str:
    """Return a name that breaks neither the lines of a password file nor the user's login."""
    if not text or ":" in text or not text.isprintable() or text != text.strip() or text[0] == "#":
        raise ValueError(
            f"{text!r}: expected a name without ':', control characters, spaces around it or '#'"
            " before it"
        )
    return text
