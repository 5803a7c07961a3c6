"""A configuration of another server as one of minismtp: `minismtp import postfix DIRECTORY`.

`mapping` reads the directory and makes a draft with a report. The files are put into place as those
of `minismtp setup`: all or none, after the inspection of `minismtp check`. The report names every
parameter that is not the default.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import Final

from minismtp.cli.common import (
    EXIT_CONFIG,
    CommandError,
    argument_type,
    fail,
    say,
)
from minismtp.cli.import_postfix.mapping import migrated
from minismtp.cli.import_postfix.migration import Migration
from minismtp.cli.postfix_files.directory import PostfixDirectory
from minismtp.cli.postfix_files.text import PostfixError
from minismtp.cli.setup import host, material, report
from minismtp.cli.setup.placement import Placement, pending
from minismtp.cli.setup.plan import Existing, Made, Plan, PlannedFile, aside
from minismtp.cli.text import json_lines, terminal_width, wrapped
from minismtp.config import DEFAULT_FILE
from minismtp.config.mistakes import reason
from minismtp.config.types import parse_domain

_DIRECTORY: Final = Path("/etc/postfix")
_STATE_DIRECTORY: Final = Path("/var/lib/minismtp")
_HEAD: Final = """\
The mail server of {hostname}. `minismtp import postfix` made this file from
{source}, and it is yours to change. After a change, run `minismtp check` and then
`systemctl reload minismtp`. `man minismtp.toml` explains every key. The comment behind a key
names the parameter and the line that it is from. Relative paths are relative to this file."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("server", choices=("postfix",), help="the server to move from")
    parser.add_argument(
        "directory",
        nargs="?",
        type=_path,
        default=_DIRECTORY,
        metavar="DIRECTORY",
        help=f"with its main.cf and master.cf, also a copy of it; default: {_DIRECTORY}",
    )
    parser.add_argument(
        "--config",
        type=_path,
        metavar="FILE",
        help=f"the file to write; default: $MINISMTP_CONFIG, else {DEFAULT_FILE}",
    )
    parser.add_argument(
        "--domain",
        action="append",
        type=argument_type(parse_domain),
        default=[],
        metavar="DOMAIN",
        help="a domain of your users that only a database has; may be given more than once",
    )
    parser.add_argument(
        "--state-directory",
        type=_path,
        default=_STATE_DIRECTORY,
        metavar="DIRECTORY",
        help=f"for mail and queue; default: {_STATE_DIRECTORY}",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show the files without their secrets, and write nothing",
    )
    parser.add_argument("--json", action="store_true", help="the report as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Write the files, and print what became of each parameter. Raise CommandError.

    Return 78 if the inspection finds an error; then nothing is written.
    """
    os.umask(0o022)  # the files get modes of their own
    named = arguments.config or _path(os.environ.get("MINISMTP_CONFIG") or str(DEFAULT_FILE))
    configuration: Path = named.absolute()
    try:
        directory = PostfixDirectory.read(arguments.directory.absolute())
        domains = tuple(arguments.domain)
        migration = migrated(directory, arguments.state_directory.absolute(), domains)
    except PostfixError as error:
        raise UnusableError(f"{error}; nothing was written") from error
    # Only the report is on standard output if it is to be JSON.
    aside_output = contextlib.redirect_stdout(sys.stderr) if arguments.json else None
    with aside_output or contextlib.nullcontext():
        written = _write(arguments, migration, configuration)
    if written is None:
        return EXIT_CONFIG
    _tell(arguments, migration, configuration)
    return 0


class UnusableError(CommandError):
    """The directory is no usable configuration of Postfix."""

    status = EXIT_CONFIG


@argument_type
def _path(text: str) -> Path:
    if not text or not text.isprintable():
        raise ValueError(f"{text!r}: expected a path without control characters")
    return Path(text)


def _write(arguments: argparse.Namespace, migration: Migration, configuration: Path) -> Plan | None:
    """Show the files, or put them into place. Return None if the inspection found an error."""
    account = host.account()
    owner = host.owner(account)
    try:
        if pending(configuration.parent) and not arguments.dry_run:
            with Placement(configuration.parent, owner):
                say(f"An earlier attempt was cut off. {configuration.parent} is cleaned up.")
        plan = _plan(migration, configuration, host.found(configuration, ()), account)
        host.check_places(plan, migration.state_directory)
        if arguments.dry_run:
            say(*report.dry_run(plan, owner))
            return plan
        say(*report.announced(plan, owner), "")
        contents = material.contents(plan, str(migration.draft.top.keys["hostname"]), "", "")
        with Placement(configuration.parent, owner) as placement:
            placement.stage(
                plan.directories,
                [
                    (file.path, content, file.octets_before)
                    for file, content in zip(plan.files, contents, strict=True)
                ],
            )
            placement.place()
            placement.make(migration.state_directory, host.state_owner(account))
            if not host.passed(contents[-1].decode(), configuration):
                fail("nothing was written, because of the errors above")
                return None
            placement.commit()
    except OSError as error:
        raise CommandError(f"{reason(error)}; nothing was written") from error
    return plan


def _plan(migration: Migration, configuration: Path, existing: Existing, account: str) -> Plan:
    """Return the files. Raise CommandError if one is in the way."""
    draft, base = migration.draft, configuration.parent
    if account:
        draft.top.set("user", account)
    if "hostname" not in draft.top.keys:
        text = "the name of the host is not known; set myhostname in main.cf"
        raise CommandError(f"{text}; nothing was written")
    copy = aside(configuration, existing)
    files = [
        PlannedFile(base / each.name, each.content, shown_as=each.secret) for each in draft.files
    ]
    if any("srs_secret_file" in table.keys for table in draft.plugins):
        files.append(PlannedFile(base / "srs-secret", Made.RANDOM))
    own = {base / "tls/fullchain.pem", base / "tls/key.pem"}
    kept = tuple(file.path for file in files if file.path in own) if own <= existing.keys() else ()
    files = [file for file in files if file.path not in kept]
    if taken := [file.path for file in files if file.path in existing]:
        raise CommandError(f"{taken[0]} exists, but {configuration} does not; move it away")
    head = _HEAD.format(hostname=draft.top.keys["hostname"], source=migration.directory.path)
    text = draft.text(head)
    if copy and copy not in existing:
        files.append(PlannedFile(copy, existing[configuration]))
    whole = (*files, PlannedFile(configuration, text, existing.get(configuration), copy))
    return Plan(whole, kept)


def _tell(arguments: argparse.Namespace, migration: Migration, configuration: Path) -> None:
    if arguments.json:
        value = {
            "configuration": str(configuration),
            "written": not arguments.dry_run,
            **migration.report.as_json(),
        }
        say(*json_lines(value))
        return
    lines = migration.report.lines()
    if not arguments.dry_run:
        option = "" if configuration == DEFAULT_FILE else f" --config {configuration}"
        lines += [
            f"The configuration is {configuration}. Next: what needs your hand above, then",
            f"  minismtp check{option}",
            "docs/migration.md tells how to change over without losing mail.",
        ]
    say(*wrapped(lines, terminal_width()))
