"""The commands for who writes plugins, and for who chooses among them (layer 7)."""

# ruff: noqa: PLC0415 - each command imports what it needs, see `commands`
from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from minismtp.commands.common import Commands, configuration, fail, say

if TYPE_CHECKING:
    from minismtp.config import PluginConfig


def add_to(commands: Commands) -> None:
    """Add the commands of this group."""
    commands.add("hooks", _hooks, "explain the hooks, and tell in which order plugins run")
    commands.add("plugins", _plugins, "list the plugins that can be used, with their options")
    commands.add(
        "schema",
        _schema,
        "print a JSON Schema of the configuration, for editors",
        config=False,
    )
    new = commands.add(
        "new-plugin",
        _new_plugin,
        "make a package for a plugin of one's own, with a test that passes",
        config=False,
    )
    new.add_argument("name", metavar="NAME", help="what `use` will call it, such as greylist")
    new.add_argument(
        "--directory", type=Path, metavar="DIR", help="to be made; default: minismtp-NAME"
    )


def _hooks(arguments: argparse.Namespace) -> int:
    import inspect

    from minismtp import hookspecs
    from minismtp.plugins import PluginSet, hook_names

    for name in hook_names():
        hook = getattr(hookspecs, name)
        say(f"{name}({', '.join(inspect.signature(hook).parameters)})")
        say(textwrap.indent(inspect.getdoc(hook) or "", "    ") + "\n")
    config = configuration(arguments)
    remarks = {plugin.name: _remark(plugin) for plugin in config.plugins}
    say(f"Order of the plugins ({config.file or 'no configuration file'}):")
    for hook, plugins in PluginSet.load(config).order().items():
        say(f"    {hook}: {', '.join(plugin + remarks[plugin] for plugin in plugins)}")
    return 0


def _remark(plugin: PluginConfig) -> str:
    remarks = ["shadow"] if plugin.mode == "shadow" else []
    if plugin.listeners:
        remarks.append(f"only on {' and '.join(plugin.listeners)}")
    return f" ({', '.join(remarks)})" if remarks else ""


def _plugins(arguments: argparse.Namespace) -> int:
    from minismtp.plugins import available
    from minismtp.schema import options, summary

    for found in available(configuration(arguments).plugin_path):
        say(f"{found.name} ({found.source})")
        if found.factory is None:
            say(f"    cannot be used: {found.problem}\n")
            continue
        say(f"    {summary(found.factory)}")
        for option in options(found.factory):
            default = "required" if option.default is None else f"default {option.default}"
            meaning = f"; {option.meaning}" if option.meaning else ""
            say(f"    {option.name}: {option.kind}, {default}{meaning}")
        say("")
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    import json

    from minismtp.plugins import available
    from minismtp.schema import schema

    del arguments
    document = schema({found.name: found.factory for found in available([])})
    say(json.dumps(document, indent=2))
    return 0


def _new_plugin(arguments: argparse.Namespace) -> int:
    from minismtp.skeleton import SkeletonError, make

    try:
        directory = make(arguments.name, arguments.directory)
    except SkeletonError as error:
        return fail(str(error))
    say(
        f"{directory} has a plugin that works, its test and its pyproject.toml. Next, in the"
        f" environment of minismtp:\n  cd {directory}\n  pip install -e '.[test]'\n  pytest"
    )
    return 0
