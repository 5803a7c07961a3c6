"""Which messages an operator means: the options that `queue` and `quarantine` share."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Container, Iterable, Mapping
from typing import TYPE_CHECKING

from minismtp.cli.common import CommandError, UsageError, add_config, argument_type
from minismtp.config.types import parse_duration
from minismtp.mailqueue.queries import Filter
from minismtp.values.address import Address, to_ascii

if TYPE_CHECKING:
    from minismtp.mail.queue_entry import QueueEntry


def add_options(parser: argparse.ArgumentParser, verbs: Mapping[str, str], reason: str) -> None:
    """Add the verbs with their meanings, and the filter; `reason` says what --reason looks at."""
    add_config(parser)
    parser.add_argument("verb", choices=list(verbs), help="; ".join(map(": ".join, verbs.items())))
    parser.add_argument("ids", nargs="*", metavar="ID", help="only these messages")
    parser.add_argument(
        "--to-domain", default="", metavar="DOMAIN", help="only recipients in this domain"
    )
    parser.add_argument(
        "--from",
        dest="sender",
        metavar="ADDRESS",
        help='only from this sender, or from "@domain"; "" for bounces',
    )
    parser.add_argument(
        "--older-than",
        type=argument_type(parse_duration),
        metavar="DURATION",
        help='only messages that arrived at least this long ago, such as "2h"',
    )
    parser.add_argument("--reason", default="", metavar="TEXT", help=f"only with TEXT in {reason}")
    parser.add_argument("--all", action="store_true", help="all messages, when nothing is chosen")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.set_defaults(state="")


def selected(arguments: argparse.Namespace, command: str, changes: Container[str]) -> Filter:
    """Return the filter; raise UsageError where a verb, such as one of `changes`, needs more."""
    verb = arguments.verb
    older_than = arguments.older_than
    wanted = Filter(
        ids=tuple(arguments.ids),
        to_domain=arguments.to_domain,
        sender=arguments.sender,
        older_than=older_than.total_seconds() if older_than is not None else None,
        state=arguments.state,
        reason=arguments.reason,
    )
    if verb == "show" and not wanted.ids:
        raise UsageError(
            f"{command} show: expected the ID of a message; `{command} list` shows them"
        )
    if verb in changes and wanted == Filter() and not arguments.all:
        raise UsageError(f"{command} {verb}: expected IDs, a filter such as --to-domain, or --all")
    return wanted


def require_all(wanted: Filter, found: Iterable[str], place: str) -> None:
    """Raise CommandError if messages that were named are not among those that were found."""
    if missing := {*wanted.ids} - {*found}:
        names = ", ".join(sorted(missing))
        raise CommandError(f"no message {names} is in {place}, or other options exclude it")


def fits(wanted: Filter, entry: QueueEntry | None) -> bool:
    """Return whether domain, sender and reason fit; an entry that cannot be read is None."""
    sender = wanted.sender
    if entry is None:
        return not (wanted.to_domain or sender is not None or wanted.reason)
    domains = {to_ascii(target.address.rpartition("@")[2]) for target in entry.targets}
    if wanted.to_domain and to_ascii(wanted.to_domain) not in domains:
        return False
    if sender and sender[0] == "@":
        is_from = comparable(entry.sender).endswith(comparable(sender))
    else:
        is_from = sender is None or comparable(entry.sender) == comparable(sender)
    return is_from and wanted.reason.lower() in (entry.quarantined or "").lower()


def comparable(address: str) -> str:
    """Return an address in the one spelling that all its spellings share."""
    with contextlib.suppress(ValueError):
        address = str(Address.parse(address))  # with the same quotes as in the entry
    local, at, domain = address.lower().rpartition("@")
    return f"{local}{at}{to_ascii(domain)}"
