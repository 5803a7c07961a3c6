"""The hooks, and the order in which plugins run: `minismtp hooks`."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable

from minismtp.cli.common import add_config, configuration, say
from minismtp.cli.text import json_list
from minismtp.config import PluginConfig
from minismtp.hooks import specs
from minismtp.hooks.loader import PluginSet, hook_names


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_config(parser)
    parser.add_argument("--json", action="store_true", help="print JSON for programs")


def run(arguments: argparse.Namespace) -> int:
    """Print the manual of every hook, and which plugins run at it; raise ConfigError."""
    hooks = {name: getattr(specs, name) for name in hook_names()}
    if not arguments.json:
        for name, hook in hooks.items():
            say(f"{name}({', '.join(_arguments(hook))})")
            say(*(f"    {line}".rstrip() for line in _manual(hook).split("\n")), "")
    config = configuration(arguments)
    order = PluginSet.load(config).order()
    if arguments.json:
        items = [
            {
                "name": name,
                "arguments": _arguments(hook),
                "manual": _manual(hook),
                "plugins": order.get(name, []),
            }
            for name, hook in hooks.items()
        ]
        say(*json_list(items))
        return 0
    remarks = {plugin.name: _remark(plugin) for plugin in config.plugins}
    say(f"Order of the plugins ({config.file or 'no configuration file'}):")
    for name, plugins in order.items():
        say(f"    {name}: {', '.join(plugin + remarks[plugin] for plugin in plugins)}")
    return 0


def _arguments(hook: Callable[..., object]) -> list[str]:
    return list(inspect.signature(hook).parameters)


def _manual(hook: Callable[..., object]) -> str:
    return inspect.getdoc(hook) or ""


def _remark(plugin: PluginConfig) -> str:
    remarks = ["shadow"] if plugin.mode == "shadow" else []
    if plugin.listeners:
        remarks.append(f"only on {' and '.join(plugin.listeners)}")
    return f" ({', '.join(remarks)})" if remarks else ""
