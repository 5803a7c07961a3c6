"""The passwords of users in a file of the plugin `password_file`: `minismtp passwd`."""

from __future__ import annotations

import argparse
import os
import stat
import sys
import unicodedata
from getpass import getpass
from pathlib import Path
from typing import BinaryIO, Final

from minismtp.cli.common import CommandError, add_config, argument_type, configuration, say
from minismtp.server.privileges import acting_as_owner
from minismtp.smtp.sasl import make_key
from minismtp.values.durable_files import atomic_write, without_marks
from minismtp.values.passwords import hash_password
from minismtp.values.user_names import folded_name

_DOVECOT_READS: Final = "argon2id"
_LONGEST: Final = 4096  # octets of a password; a line of AUTH has room for twice as many


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
    lines = _content(path).splitlines() if path.exists() else []
    others = [line for line in lines if _name(line) != user.encode()]
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
    return f"{user} {done} in {path} ({arguments.scheme}, {keys}).{_alike(user, others)}"


def _content(path: Path) -> bytes:
    """Return what is in a file. Raise OSError, and CommandError if it is a pipe or a device."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)

    with open(path, "rb", opener=opener) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise CommandError(f"{path} is no regular file; expected a file of passwords")
        return without_marks(file.read())


def _name(line: bytes) -> bytes:
    return line.partition(b":")[0].strip()


def _alike(user: str, lines: list[bytes]) -> str:
    """Return a remark about another user whose name differs only in spelling, or ""."""
    wanted = folded_name(user)
    for name in map(_name, lines):
        other = name.decode("utf-8", "replace")
        if other != user and name[:1] != b"#" and folded_name(other) == wanted:
            return f" {other} is there too, so both have to type their names exactly so."
    return ""


def password_line(user: str, password: str, scheme: str, *, scram: bool = True) -> str:
    """Return the line of a user for a password file. Raise ValueError for an empty password."""
    keys = f":{make_key(password).text}" if scram and password else ""
    return f"{user}:{hash_password(password, scheme)}{keys}"


def password_in(file: BinaryIO) -> str:
    """Return the password in the first line of a file, "" if that is empty.

    Raise ValueError for a line that is no password, as the text says after the name of the file.
    """
    line = file.readline(_LONGEST + 1)
    if len(line) > _LONGEST:
        raise ValueError(f"has more than {_LONGEST} octets in its first line")
    try:
        return _checked(without_marks(line).decode().rstrip("\r\n"))
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None


def _checked(password: str) -> str:
    """Return a password. Raise ValueError for one that RFC 8265 (section 4.2) forbids."""
    if any(unicodedata.category(char) == "Cc" for char in password):
        raise ValueError("has a control character, which no user can type")
    return password


def _ask_password() -> str:
    """Read a password from the terminal, or one line from standard input if that is a file."""
    if sys.stdin.isatty():
        return ask_twice()
    try:
        return password_in(sys.stdin.buffer)
    except ValueError as error:
        raise ValueError(f"standard input {error}") from None


def ask_twice() -> str:
    """Read a password from the terminal. Raise ValueError if the two answers differ."""
    password = getpass("Password: ")
    if getpass("The same again: ") != password:
        raise ValueError("the two passwords differ")
    try:
        return _checked(password)
    except ValueError as error:
        raise ValueError(f"the answer {error}") from None


def _user_name(text: str) -> str:
    """Return a name that breaks neither the lines of a password file nor the user's login."""
    if not text or ":" in text or not text.isprintable() or text != text.strip() or text[0] == "#":
        raise ValueError(
            f"{text!r}: expected a name without ':', control characters, spaces around it or '#'"
            " before it"
        )
    return text
