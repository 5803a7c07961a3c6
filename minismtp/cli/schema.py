"""A JSON Schema of the configuration: `minismtp schema`.

Editors that know TOML use it to complete and check keys and values. It has the options of the
installed plugins, but not of those in the directories of a configuration's `plugin_path`.
"""

from __future__ import annotations

import argparse
import json

from minismtp.cli.common import say
from minismtp.config.schema import schema
from minismtp.hooks.loader import available


def add_options(_: argparse.ArgumentParser) -> None:
    """Add nothing, because the schema does not depend on a configuration."""


def run(_: argparse.Namespace) -> int:
    """Print the schema."""
    document = schema({found.name: found.factory for found in available([])})
    say(*json.dumps(document, indent=2).split("\n"))
    return 0
