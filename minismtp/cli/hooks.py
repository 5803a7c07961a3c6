"""The hooks, and the order in which plugins run: `minismtp hooks`."""

from __future__ import annotations

import argparse
import inspect

from minismtp.cli.common import add_config, configuration, say
from minismtp.config import PluginConfig
from minismtp.hooks import specs
from minismtp.hooks.loader import PluginSet, hook_names

add_options = add_config


def run(arguments: argparse.Namespace) -> int:
    """Print the manual of every hook, and which plugins run at it; raise ConfigError."""
    for name in hook_names():
        hook = getattr(specs, name)
        say(f"{name}({', '.join(inspect.signature(hook).parameters)})")
        manual = (inspect.getdoc(hook) or "").split("\n")
        say(*(f"    {line}".rstrip() for line in manual), "")
    config = configuration(arguments)
    remarks = {plugin.name: _remark(plugin) for plugin in config.plugins}
    say(f"Order of the plugins ({config.file or 'no configuration file'}):")
    for name, plugins in PluginSet.load(config).order().items():
        say(f"    {name}: {', '.join(plugin + remarks[plugin] for plugin in plugins)}")
    return 0


def _remark(plugin: PluginConfig) -> str:
    remarks = ["shadow"] if plugin.mode == "shadow" else []
    if plugin.listeners:
        remarks.append(f"only on {' and '.join(plugin.listeners)}")
    return f" ({', '.join(remarks)})" if remarks else ""
