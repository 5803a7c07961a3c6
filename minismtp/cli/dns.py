"""The records that the configuration needs in the DNS, and what the DNS has: `minismtp dns`.

The exit status with --check is 0 if all is right, 1 if something has to be done, and 75 if only an
answer is lacking.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from ipaddress import IPv6Address
from typing import Final

from minismtp.cli.common import (
    EXIT_FAILURE,
    EXIT_NO_ANSWER,
    UsageError,
    add_config,
    argument_type,
    configuration,
    say,
)
from minismtp.cli.progress import Progress
from minismtp.cli.text import json_list, terminal_width, wrapped
from minismtp.config import Config
from minismtp.config.types import SocketAddress, parse_domain, parse_host_address
from minismtp.hooks.dns_zone import DnsRecord
from minismtp.inspection.dns_check import STATES, DnsChecker, Outcome, answered, chains_of
from minismtp.inspection.dns_records import (
    Address,
    addresses_in_dns,
    own_addresses,
    wanted_records,
)
from minismtp.inspection.outside_checks import BLOCK_LISTS, listings, port_25
from minismtp.inspection.questions import HurriedResolver
from minismtp.inspection.zone_text import zone_text

_SECONDS: Final = 15.0
_MOST_SECONDS: Final = 600.0
_NO: Final = "no"
_INDENT: Final = " " * 12


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_config(parser)
    parser.add_argument(
        "--domain",
        action="append",
        default=[],
        help="print the records of the host and this domain only; may be repeated",
    )
    parser.add_argument(
        "--address",
        action="append",
        type=argument_type(parse_host_address),
        default=[],
        help="a public address of this host; may be repeated. Default: [dns] addresses, else those"
        " of the listeners, else those from which packets leave, else those of the host name",
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    _add_checks(parser)


def _add_checks(parser: argparse.ArgumentParser) -> None:
    checks = parser.add_argument_group("check what the DNS has")
    checks.add_argument(
        "--check",
        action="store_true",
        help="ask the DNS for each record, and connect to port 25 of another host. Exit status 0:"
        " all is right; 1: something is wrong, or a required record is missing; 75: the DNS did not"
        " answer",
    )
    checks.add_argument(
        "--strict",
        action="store_true",
        help="fail for missing records that are only recommended as well",
    )
    checks.add_argument(
        "--port25",
        metavar="HOST",
        type=argument_type(_place),
        help=f'the host to connect to, such as "mx.example.net" or "192.0.2.1:25"; "{_NO}": do not'
        " connect. Default: a host of gmail.com, unless all mail goes to a smarthost",
    )
    checks.add_argument(
        "--block-lists",
        nargs="*",
        metavar="LIST",
        type=argument_type(parse_domain),
        help="look the host and the domains up in these lists, by default in "
        + ", ".join(BLOCK_LISTS),
    )
    checks.add_argument(
        "--seconds",
        type=argument_type(_seconds),
        default=_SECONDS,
        help=f"how long all questions together may take (default {_SECONDS:g})",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the records as a zone file, or what the DNS says about them."""
    if not arguments.check and (arguments.block_lists is not None or arguments.port25 is not None):
        raise UsageError("--block-lists and --port25 need --check")
    if "" in arguments.domain:
        raise UsageError("--domain: expected a domain such as example.org, not ''")
    config = configuration(arguments)
    resolver = HurriedResolver(config.dns.nameservers, lambda _: None, arguments.seconds)
    addresses = arguments.address or own_addresses(config)
    addresses = addresses or addresses_in_dns(resolver, config.hostname)
    records = _wanted(config, arguments.domain, addresses)
    if not arguments.check:
        if arguments.json:
            say(*json_list(map(_record_as_json, records)))
        else:
            say(*zone_text(records).removesuffix("\n").split("\n"))
        return 0
    outcomes = _check(arguments, config, records, addresses, resolver)
    if arguments.json:
        say(*json_list(map(_outcome_as_json, outcomes)))
    else:
        width = terminal_width()
        for outcome in outcomes:
            _show(outcome, width)
        say(_summary(outcomes))
    return _status(outcomes, strict=arguments.strict)


def _place(text: str) -> SocketAddress:
    """Return a host with its port, 25 if there is no other; an empty one for `no`."""
    if text == _NO:
        return SocketAddress()
    with suppress(ValueError):  # an address of IPv6 may lack its brackets
        text = f"[{IPv6Address(text)}]"
    try:
        with_port = text.rpartition(":")[2].isdecimal() and not text.endswith("]")
        place = SocketAddress.parse(text if with_port else f"{text}:25")
    except ValueError:
        place = SocketAddress("*")
    if place.host in {"", "*"}:
        raise ValueError(f"expected a host such as mx.example.net, not {text!r}")
    return place


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _MOST_SECONDS:
        raise ValueError(f"expected seconds up to {_MOST_SECONDS:g}, not {text!r}")
    return seconds


def _wanted(
    config: Config, domains: Iterable[str], addresses: Sequence[Address]
) -> list[DnsRecord]:
    found: dict[DnsRecord, None] = {}
    for domain in domains or [""]:
        found.update(dict.fromkeys(wanted_records(config, domain, addresses=addresses)))
    return sorted(found, key=lambda each: each.kind == "PTR")


def _check(
    arguments: argparse.Namespace,
    config: Config,
    records: Sequence[DnsRecord],
    addresses: Sequence[Address],
    resolver: HurriedResolver,
) -> list[Outcome]:
    """Ask all questions at once, and return the outcomes in the order of the records."""
    smarthost = config.outbound.smarthost is not None
    checker = DnsChecker(resolver, addresses, chains_of(config), smarthost=smarthost)
    asked = checker.asked(records)
    place: SocketAddress | None = arguments.port25
    if place is None and not smarthost:
        asked.append(port_25(resolver))
    elif place is not None and place.host:
        asked.append(port_25(resolver, place.host, place.port))
    if arguments.block_lists is not None:
        domains = [each.name for each in records if each.kind == "MX"]
        lists = arguments.block_lists or BLOCK_LISTS
        asked += listings(resolver, lists, addresses, dict.fromkeys([config.hostname, *domains]))
    with Progress("asking the DNS", len(asked), shown=not arguments.json) as progress:
        return answered(asked, resolver, progress.show)


def _show(outcome: Outcome, width: int | None) -> None:
    word = f"{outcome.state:<{len(_INDENT)}}"
    optional = " (recommended)" if outcome.need != "required" and outcome.state != "right" else ""
    first = f"{word}{outcome.name} {outcome.kind}{optional}"
    if outcome.state == "right":
        note = f" ({outcome.note})" if outcome.note else ""
        say(*wrapped([f"{first}{note}"], width))
        return
    lines = [first, f"{_INDENT}wanted  {outcome.wanted}"]
    lines += [f"{_INDENT}found   {each}" for each in outcome.found]
    lines += [f"{_INDENT}{outcome.note}"] if outcome.note else []
    say(*wrapped(lines, width))


def _summary(outcomes: Iterable[Outcome]) -> str:
    count = Counter(each.state for each in outcomes)
    return ", ".join(f"{count[state]} {state}" for state in STATES if count[state]) or "nothing"


def _status(outcomes: Sequence[Outcome], *, strict: bool) -> int:
    if any(each.fails or (strict and each.state == "missing") for each in outcomes):
        return EXIT_FAILURE
    return EXIT_NO_ANSWER if any(each.state == "unanswered" for each in outcomes) else 0


def _record_as_json(record: DnsRecord) -> dict[str, object]:
    return {
        "name": record.name,
        "type": record.kind,
        "value": record.value,
        "need": record.need,
        "purpose": record.purpose,
    }


def _outcome_as_json(outcome: Outcome) -> dict[str, object]:
    return {
        "name": outcome.name,
        "type": outcome.kind,
        "state": outcome.state,
        "wanted": outcome.wanted,
        "found": outcome.found,
        "note": outcome.note,
        "need": outcome.need,
    }
