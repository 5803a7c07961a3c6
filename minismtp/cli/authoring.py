"""The commands for who writes plugins, and for who chooses among them."""

# ruff: noqa: PLC0415 - each command imports what it needs, see `commands`
from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from minismtp.cli.common import EXIT_FAILURE, Commands, configuration, fail, say

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
    _add_try(
        commands.add(
            "try", _try, "run one plugin over a message, and show each hook's verdict and time"
        )
    )
    replay = commands.add(
        "replay", _replay, "run stored mail through changed plugins, and show what would differ"
    )
    replay.add_argument(
        "maildir", type=Path, metavar="MAILDIR", help="read only; nothing is delivered"
    )
    replay.add_argument(
        "--plugins",
        type=Path,
        required=True,
        metavar="FILE",
        help="a configuration with the changed plugins, or its [[plugins]] tables alone",
    )
    replay.add_argument(
        "--against",
        default="",
        metavar="FILE",
        help="another such file to compare with, or `accepted` for what became of the mail when it"
        " came; default: the present configuration",
    )
    replay.add_argument("--json", action="store_true", help="a line for each difference")


def _add_try(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "plugin",
        metavar="PLUGIN",
        help="its name in the configuration, else as `use` has it, or a file with `.py`;"
        " it does all that it does, so one that stores mail stores it",
    )
    parser.add_argument("message", type=Path, metavar="FILE", help="the message, as in a Maildir")
    parser.add_argument(
        "--from", dest="sender", default="sender@client.example", metavar="ADDRESS", help="or ''"
    )
    parser.add_argument("--to", action="append", metavar="ADDRESS", help="may be given again")
    parser.add_argument("--peer", default="192.0.2.1", type=_address, help="the client's address")
    parser.add_argument("--helo", default="client.example", metavar="NAME")
    parser.add_argument("--login", metavar="USER", help="who has logged in; default: nobody")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="KEY=VALUE",
        help="an option of the plugin, in TOML; what is no TOML is text; may be given again",
    )
    parser.add_argument("--json", action="store_true")


def _address(text: str) -> str:
    from minismtp.values.peer import plain_address

    try:
        return text if text == "unix" else plain_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _hooks(arguments: argparse.Namespace) -> int:
    import inspect

    from minismtp.hooks import specs
    from minismtp.hooks.loader import PluginSet, hook_names

    for name in hook_names():
        hook = getattr(specs, name)
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
    from minismtp.config.schema import options, summary
    from minismtp.hooks.loader import available

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

    from minismtp.config.schema import schema
    from minismtp.hooks.loader import available

    del arguments
    document = schema({found.name: found.factory for found in available([])})
    say(json.dumps(document, indent=2))
    return 0


def _new_plugin(arguments: argparse.Namespace) -> int:
    from minismtp.cli.new_plugin import SkeletonError, make

    try:
        directory = make(arguments.name, arguments.directory)
    except SkeletonError as error:
        return fail(str(error))
    say(
        f"{directory} has a plugin that works, its test and its pyproject.toml. Next, in the"
        f" environment of minismtp:\n  cd {directory}\n  pip install -e '.[test]'\n  pytest"
    )
    return 0


def _try(arguments: argparse.Namespace) -> int:
    from minismtp.cli.try_plugin import run
    from minismtp.hooks.guard import Failure

    try:
        text, accepted = run(configuration(arguments), arguments)
    except Failure as error:
        return fail(str(error))
    say(text)
    return 0 if accepted else EXIT_FAILURE


def _replay(arguments: argparse.Namespace) -> int:
    from minismtp.cli.replay import run
    from minismtp.hooks.guard import Failure

    try:
        for line in run(configuration(arguments), arguments):
            say(line)
    except Failure as error:
        return fail(str(error))
    return 0
