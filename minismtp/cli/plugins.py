"""The plugins that can be used, with their options: `minismtp plugins`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from minismtp.cli.common import CommandError, add_config, configuration, say
from minismtp.cli.text import json_list, terminal_width, wrapped
from minismtp.config.schema import options, summary
from minismtp.hooks.loader import Available, available


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_config(parser)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these plugins")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def run(arguments: argparse.Namespace) -> int:
    """Print plugins with their options, or why they cannot be used.

    Raise ConfigError, and CommandError for a name that no plugin has.
    """
    plugins = available(configuration(arguments).plugin_path)
    unknown = {*arguments.names} - {each.name for each in plugins}
    if unknown:
        raise CommandError(f"no plugin is called {', '.join(sorted(unknown))}")
    wanted = [each for each in plugins if not arguments.names or each.name in arguments.names]
    if arguments.json:
        say(*json_list(map(_fields, wanted)))
        return 0
    width = terminal_width()
    for found in wanted:
        say(*wrapped(_described(found), width))
    return 0


def _fields(found: Available) -> dict[str, object]:
    """Return the JSON about a plugin. The `default` of an option is null if it is required."""
    fields: dict[str, object] = {"name": found.name, "source": found.source}
    if found.factory is None:
        return {**fields, "problem": found.problem}
    taken = [option._asdict() for option in options(found.factory)]
    return {**fields, "summary": summary(found.factory), "options": taken}


def _described(found: Available) -> Iterator[str]:
    yield f"{found.name} ({found.source})"
    if found.factory is None:
        yield from (f"    cannot be used: {found.problem}", "")
        return
    yield f"    {summary(found.factory)}"
    for option in options(found.factory):
        default = "required" if option.default is None else f"default {option.default}"
        meaning = f"; {option.meaning}" if option.meaning else ""
        yield f"    {option.name}: {option.kind}, {default}{meaning}"
    yield ""
