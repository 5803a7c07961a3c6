"""The records that the configuration needs in the DNS: `minismtp dns`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from ipaddress import ip_address

from minismtp.cli.common import add_config, argument_type, configuration, say
from minismtp.cli.text import json_list
from minismtp.config import Config
from minismtp.hooks.dns_zone import DnsRecord
from minismtp.inspection.dns_records import Address, own_addresses, wanted_records
from minismtp.inspection.zone_text import zone_text


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_config(parser)
    parser.add_argument(
        "--domain",
        action="append",
        default=[],
        help="only the host and this domain; may be repeated",
    )
    parser.add_argument(
        "--address",
        action="append",
        type=argument_type(ip_address),
        default=[],
        help="a public address of this host; may be repeated. Default: [dns] addresses, else those"
        " of the listeners, else those from which packets leave",
    )
    parser.add_argument("--json", action="store_true", help="for programs")


def run(arguments: argparse.Namespace) -> int:
    """Print the records as a zone file."""
    config = configuration(arguments)
    addresses = arguments.address or own_addresses(config)
    records = _wanted(config, arguments.domain, addresses)
    if arguments.json:
        say(*json_list(map(_as_json, records)))
    else:
        say(*zone_text(records).removesuffix("\n").split("\n"))
    return 0


def _wanted(
    config: Config, domains: Iterable[str], addresses: Sequence[Address]
) -> list[DnsRecord]:
    found: dict[DnsRecord, None] = {}
    for domain in domains or [""]:
        found.update(dict.fromkeys(wanted_records(config, domain, addresses=addresses)))
    return sorted(found, key=lambda each: each.kind == "PTR")


def _as_json(record: DnsRecord) -> dict[str, object]:
    return {
        "name": record.name,
        "type": record.kind,
        "value": record.value,
        "need": record.need,
        "purpose": record.purpose,
    }
