"""The plugins that can be used, with their options: `minismtp plugins`."""

from __future__ import annotations

import argparse

from minismtp.cli.common import add_config, configuration, say
from minismtp.config.schema import options, summary
from minismtp.hooks.loader import available

add_options = add_config


def run(arguments: argparse.Namespace) -> int:
    """Print each plugin with its options, or why it cannot be used; raise ConfigError."""
    for found in available(configuration(arguments).plugin_path):
        say(f"{found.name} ({found.source})")
        if found.factory is None:
            say(f"    cannot be used: {found.problem}", "")
            continue
        say(f"    {summary(found.factory)}")
        for option in options(found.factory):
            default = "required" if option.default is None else f"default {option.default}"
            meaning = f"; {option.meaning}" if option.meaning else ""
            say(f"    {option.name}: {option.kind}, {default}{meaning}")
        say("")
    return 0
