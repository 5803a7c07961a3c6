"""The command `minismtp` (layer 7).

Exit status: 0 done, 1 failure, 2 usage, 78 a mistake in the configuration. A user's mistake is one
line on standard error, never a traceback. Each command imports what it needs by itself, so that
`serve` forks from a small process and `--help` is quick.
"""

# ruff: noqa: PLC0415 - see above
import argparse
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from minismtp import __version__
from minismtp.log import complain
from minismtp.settings import ConfigError, reason

if TYPE_CHECKING:
    from minismtp.config import Config, PluginConfig

EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
EXIT_CONFIG: Final = 78  # EX_CONFIG of sysexits.h
EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it

Command = Callable[[argparse.Namespace], int]


def main(argv: list[str] | None = None) -> int:
    """Run a command and give its exit status."""
    try:
        arguments = parser().parse_args(argv)
    except SystemExit as end:  # argparse has said all
        return end.code if isinstance(end.code, int) else EXIT_FAILURE
    command: Command = arguments.command
    try:
        status = command(arguments)
        sys.stdout.flush()
    except ConfigError as error:
        return _complain(str(error), EXIT_CONFIG)
    except BrokenPipeError:
        # Whoever read our output has enough; Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except OSError as error:
        return _complain(reason(error), EXIT_FAILURE)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return status


def _complain(message: str, status: int) -> int:
    complain(f"minismtp: {message}")
    return status


def parser() -> argparse.ArgumentParser:
    """Give the whole command line; its manual is made from it."""
    whole = argparse.ArgumentParser(
        prog="minismtp",
        description="An SMTP server whose plugins are plain Python.",
        epilog="Exit status: 0 done, 1 failure, 2 usage, 78 a mistake in the configuration.",
    )
    whole.add_argument("--version", action="version", version=f"minismtp {__version__}")
    commands = whole.add_subparsers(metavar="COMMAND", required=True)

    def add(
        name: str, command: Command, text: str, *, config: bool = True
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        sub.set_defaults(command=command)
        if config:
            sub.add_argument(
                "--config",
                type=Path,
                metavar="FILE",
                help="default: $MINISMTP_CONFIG, else /etc/minismtp/minismtp.toml,"
                " else a harmless configuration for trying it out",
            )
        return sub

    add("serve", _serve, "run the server")
    strict = add("check", _check, "check the configuration and everything that it names")
    strict.add_argument("--strict", action="store_true", help="let warnings count as errors")
    add("hooks", _hooks, "explain the hooks, and tell in which order plugins run")
    add("plugins", _plugins, "list the plugins that can be used, with their options")
    add("schema", _schema, "print a JSON Schema of the configuration, for editors", config=False)
    _add_queue(add("queue", _queue, "see and steer the mail that waits for delivery"))
    sessions = add("sessions", _sessions, "show the sessions that are open now")
    sessions.add_argument("--stack", action="store_true", help="and where their threads are")
    sessions.add_argument("--json", action="store_true")
    explain = add("explain", _explain, "tell how a message or a session was decided, step by step")
    explain.add_argument("id", metavar="ID", help="as in the reply, the log or a Received field")
    explain.add_argument("--json", action="store_true")
    trace = add("trace", _trace, "show the dialogue of sessions as it happens, until Ctrl-C")
    trace.add_argument(
        "--peer",
        action="append",
        default=[],
        type=_network,
        metavar="NET",
        help="only with clients in it, such as 192.0.2.0/24; may be given again",
    )
    top = add("top", _top, "show rates, queue, verdicts, slow hooks and sessions, again and again")
    top.add_argument("--once", action="store_true", help="one look, for scripts")
    top.add_argument("--interval", type=float, default=2.0, metavar="SECONDS")
    top.add_argument("--url", default="", help="of the metrics; default: as configured")
    passwd = add("passwd", _passwd, "set a user's password in a password file", config=False)
    passwd.add_argument("file", type=Path, metavar="FILE", help="made when it is missing")
    passwd.add_argument("user", type=_user_name, metavar="USER")
    passwd.add_argument(
        "--scheme",
        choices=("scrypt", "argon2id"),
        default="scrypt",
        help="how the password is hashed; default: scrypt",
    )
    passwd.add_argument(
        "--no-scram",
        action="store_true",
        help="store no keys for SCRAM, which is then not offered to anybody of this file",
    )
    passwd.add_argument("--remove", action="store_true", help="remove the user")
    return whole


def _add_queue(parser: argparse.ArgumentParser) -> None:
    from minismtp.postmaster import VERBS

    parser.add_argument("verb", choices=list(VERBS), help="; ".join(map(": ".join, VERBS.items())))
    parser.add_argument("ids", nargs="*", metavar="ID", help="only these messages")
    parser.add_argument("--to-domain", default="", metavar="DOMAIN", help="only recipients there")
    parser.add_argument(
        "--from", dest="sender", metavar="ADDRESS", help='the sender, or "@domain"; "" = bounces'
    )
    parser.add_argument(
        "--older-than",
        metavar="DURATION",
        help='only messages that have waited so long, such as "2h"',
    )
    parser.add_argument(
        "--state",
        choices=("queued", "deferred", "held"),
        default="",
        help="queued: not tried yet; deferred: tried and put off; held: by the operator",
    )
    parser.add_argument("--reason", default="", metavar="TEXT", help="a part of the last reply")
    parser.add_argument("--all", action="store_true", help="everything, where nothing is chosen")
    parser.add_argument("--json", action="store_true", help="for programs")


def _queue(arguments: argparse.Namespace) -> int:
    from minismtp.config import Config
    from minismtp.postmaster import UsageError, run

    try:
        text = run(Config.load(arguments.config), arguments)
    except UsageError as error:
        return _complain(str(error), EXIT_USAGE)
    if text:
        _say(text)
    return 0


def _sessions(arguments: argparse.Namespace) -> int:
    from minismtp.config import Config
    from minismtp.insight import sessions

    _say(sessions.run(Config.load(arguments.config), arguments))
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    from minismtp.config import Config
    from minismtp.insight import explain

    text = explain.run(Config.load(arguments.config), arguments)
    if not text:
        return _complain(f"nothing is known of {arguments.id}", EXIT_FAILURE)
    _say(text)
    return 0


def _trace(arguments: argparse.Namespace) -> int:
    from minismtp.config import Config
    from minismtp.insight import trace

    for line in trace.run(Config.load(arguments.config), arguments):
        _say(line)
        sys.stdout.flush()
    return 0


def _top(arguments: argparse.Namespace) -> int:
    from minismtp.config import Config
    from minismtp.insight import top

    for screen in top.run(Config.load(arguments.config), arguments):
        _say(screen)
        sys.stdout.flush()
    return 0


def _network(text: str) -> str:
    from ipaddress import ip_network

    try:
        return str(ip_network(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _serve(arguments: argparse.Namespace) -> int:
    from minismtp.config import Config
    from minismtp.supervisor import serve

    config = Config.load(arguments.config)
    if not config.file:
        _say(_first_steps(config))
        sys.stdout.flush()  # children inherit what is left in the buffer
    return serve(config)


def _first_steps(config: "Config") -> str:
    address, mail = config.listeners[0].address, config.state_directory / "mail"
    return (
        "No configuration file: a harmless server for trying it out.\n"
        f"Mail for anybody at localhost or {config.hostname} is stored below {mail}\n"
        f"Metrics are at http://{config.metrics.address}/metrics\n"
        "Send the first mail:\n"
        rf"  printf 'Subject: Hello\r\n\r\nIt works.\r\n' | curl --url smtp://{address}"
        " --mail-from me@example.org --mail-rcpt me@localhost --upload-file -"
    )


def _check(arguments: argparse.Namespace) -> int:
    from minismtp.check import Finding, check
    from minismtp.config import Config

    def findings() -> Iterator[Finding]:
        try:
            yield from check(Config.load(arguments.config))
        except ConfigError as error:
            yield Finding("error", str(error))

    fatal = False
    for finding in findings():
        complain(str(finding), finding.severity)
        fatal = fatal or arguments.strict or finding.severity == "error"
    if fatal:
        return EXIT_CONFIG
    _say("configuration ok")
    return 0


def _hooks(arguments: argparse.Namespace) -> int:
    import inspect

    from minismtp import hookspecs
    from minismtp.config import Config
    from minismtp.plugins import PluginSet, hook_names

    for name in hook_names():
        hook = getattr(hookspecs, name)
        _say(f"{name}({', '.join(inspect.signature(hook).parameters)})")
        _say(textwrap.indent(inspect.getdoc(hook) or "", "    ") + "\n")
    config = Config.load(arguments.config)
    remarks = {plugin.name: _remark(plugin) for plugin in config.plugins}
    _say(f"Order of the plugins ({config.file or 'no configuration file'}):")
    for hook, plugins in PluginSet.load(config).order().items():
        _say(f"    {hook}: {', '.join(plugin + remarks[plugin] for plugin in plugins)}")
    return 0


def _remark(plugin: "PluginConfig") -> str:
    remarks = ["shadow"] if plugin.mode == "shadow" else []
    if plugin.listeners:
        remarks.append(f"only on {' and '.join(plugin.listeners)}")
    return f" ({', '.join(remarks)})" if remarks else ""


def _plugins(arguments: argparse.Namespace) -> int:
    from minismtp.config import Config
    from minismtp.plugins import available
    from minismtp.schema import options, summary

    for found in available(Config.load(arguments.config).plugin_path):
        _say(f"{found.name} ({found.source})")
        if found.factory is None:
            _say(f"    cannot be used: {found.problem}\n")
            continue
        _say(f"    {summary(found.factory)}")
        for option in options(found.factory):
            default = "required" if option.default is None else f"default {option.default}"
            meaning = f"; {option.meaning}" if option.meaning else ""
            _say(f"    {option.name}: {option.kind}, {default}{meaning}")
        _say("")
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    import json

    from minismtp.plugins import available
    from minismtp.schema import schema

    del arguments
    document = schema({found.name: found.factory for found in available([])})
    _say(json.dumps(document, indent=2))
    return 0


def _user_name(text: str) -> str:
    """Refuse what would break the lines of a password file, or the login of this user."""
    if not text or ":" in text or not text.isprintable() or text != text.strip() or text[0] == "#":
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a name without ':', control characters, spaces around it or '#'"
            " before it"
        )
    return text


def _passwd(arguments: argparse.Namespace) -> int:
    from minismtp.files import atomic_write
    from minismtp.passwords import hash_password
    from minismtp.smtp.sasl import make_key

    path: Path = arguments.file
    user: str = arguments.user
    try:
        lines = path.read_bytes().splitlines() if path.exists() else []
        others = [line for line in lines if line.partition(b":")[0].strip() != user.encode()]
        if not arguments.remove:
            password = _ask_password()
            stored = hash_password(password, arguments.scheme)
            if not arguments.no_scram:
                stored += f":{make_key(password).text}"
            place = next((i for i, line in enumerate(lines) if line not in others), len(others))
            others.insert(place, f"{user}:{stored}".encode())
        elif len(others) == len(lines):
            return _complain(f"{path}: no user is called {user!r}", EXIT_FAILURE)
        # Through a symbolic link to the file itself: the rename would replace the link.
        atomic_write(path.resolve(), b"".join(line + b"\n" for line in others))
    except OSError as error:
        return _complain(f"{path}: {error.strerror}", EXIT_FAILURE)
    except (ValueError, EOFError, ModuleNotFoundError) as error:
        return _complain(str(error) or "no password was given", EXIT_FAILURE)
    return 0


def _ask_password() -> str:
    """Read a password from the terminal, or one line from what is no terminal."""
    if not sys.stdin.isatty():
        return sys.stdin.buffer.readline().decode().rstrip("\r\n")
    from getpass import getpass

    password = getpass("Password: ")
    if getpass("The same again: ") != password:
        raise ValueError("the two passwords differ")
    return password


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
