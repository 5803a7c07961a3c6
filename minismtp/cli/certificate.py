"""The certificates of the server, and a new one now: `minismtp certificate`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

from minismtp.cli.common import CommandError, UsageError, add_config, configuration, say
from minismtp.cli.text import date, detail, json_list, moment, spaced, terminal_width, wrapped
from minismtp.config import AcmeConfig, Config
from minismtp.config.mistakes import reason
from minismtp.inspection.certificates import Pair, pairs
from minismtp.runtime.log import complain
from minismtp.server.directories import server_process
from minismtp.server.privileges import acting_as_owner
from minismtp.services.acme_files import AcmeFiles, BusyError, require_library
from minismtp.services.acme_schedule import AcmeError, is_self_signed, plan, waits_for_dns
from minismtp.services.certificate_file import certificates_of, common_name


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "verb",
        nargs="?",
        choices=("status", "renew"),
        default="status",
        help="status: names, issuer, dates, the next renewal, the last failure (the default);"
        " renew: get a new certificate of [tls.acme] now",
    )
    parser.add_argument("--json", action="store_true", help="print the status as a JSON list")
    parser.add_argument(
        "--new-key",
        action="store_true",
        help="make a new key as well; its TLSA record has to be in the DNS before",
    )
    add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    """Show or renew certificates. Raise CommandError, ConfigError and OSError."""
    renews = arguments.verb == "renew"
    if arguments.json if renews else arguments.new_key:
        option, verb = ("--json", "status") if renews else ("--new-key", "renew")
        raise UsageError(f"{option} is for `minismtp certificate {verb}`")
    config = configuration(arguments)
    if renews:
        return _renew(config, new_key=arguments.new_key)
    with acting_as_owner(config.state_directory):
        found = [_values(config, pair) for pair in pairs(config)]
    if arguments.json:
        say(*json_list(found))
    elif not found:
        say("no certificate is configured: neither in [tls] nor by [tls.acme]")
    else:
        blocks = spaced(details(values) for values in found)
        say(*wrapped(blocks, terminal_width()), coloured=True)
    return 0


def _renew(config: Config, *, new_key: bool) -> int:
    acme = config.tls.acme
    if acme is None:
        raise CommandError("there is no table [tls.acme], so no certificate is renewed here")
    require_library(config.file)
    from minismtp.services.acme import get_certificate  # noqa: PLC0415 - takes long

    if acme.challenges is None and not server_process(config.state_directory):
        problem = "the server does not run, and it has to answer the authority"
        raise CommandError(f"{problem}; start it first, it then gets the certificate by itself")
    try:
        with acting_as_owner(config.state_directory):
            got = get_certificate(config, _say_step, new_key=new_key)
    except AcmeError as error:
        raise CommandError(f"no new certificate, the old one stays: {error}") from error
    except BusyError:
        problem = "the server is getting a certificate at this moment; see `minismtp certificate`"
        raise CommandError(problem) from None
    say(f"valid until {moment(got.end)}; a running server uses it within a second")
    if problem := AcmeFiles.of(config).state().error:
        complain(f"warning: it lacks names: {problem}", "warning")
    return 0


def _say_step(step: str) -> None:
    say(step)
    sys.stdout.flush()


def _values(config: Config, pair: Pair) -> dict[str, Any]:
    """Return what is known of a certificate; times are ISO 8601 in UTC."""
    values: dict[str, Any] = {"table": pair.table, "file": str(pair.certificate)}
    try:
        first = certificates_of(pair.certificate)[0]
    except OSError as error:
        values["problem"] = reason(error)
    except ValueError as error:
        values["problem"] = str(error)
    else:
        issuer = common_name(first.issuer) or "?"
        values |= {
            "names": list(first.names),
            "issuer": "itself" if is_self_signed(first) else issuer,
            "from": date(first.begin),
            "until": date(first.end),
            "days_left": int((first.end - time.time()) // 86_400),
        }
    if pair.table == "tls" and config.tls.acme is not None:
        values |= _renewal(config, config.tls.acme)
    return values


def _renewal(config: Config, acme: AcmeConfig) -> dict[str, Any]:
    files = AcmeFiles.of(config)
    try:
        present = files.present()
    except ValueError:
        present = None
    state = files.state()
    coming = plan(acme, present, state)
    return {
        "authority": acme.url,
        "renewal": date(coming.at or time.time()),
        "why": coming.reason,
        "attempted": date(state.attempted) if state.attempted else "",
        "failures": state.failures if state.error and not waits_for_dns(state) else 0,
        "error": state.error,
    }


def details(values: dict[str, Any]) -> Iterator[str]:
    """Yield the lines for a certificate, from what `--json` prints of it."""
    yield f"{values['table']}: {values['file']}"
    days = values.get("days_left")
    for name, value in values.items():
        if name in {"table", "file", "days_left", "failures"} or value == "":
            continue
        text = ", ".join(value) if isinstance(value, list) else str(value)
        if name == "until" and days is not None:
            text += f" ({days} days)" if days >= 0 else " (expired)"
        if name == "error" and values.get("failures"):
            text = f"failed: {text}"
        yield detail(name, text)
