"""The command `minismtp`: finds the module of a command, runs it, and reports its errors.

The exit status is 0 for success, 1 for a failure, 2 for wrong usage, 75 if a service on the net did
not answer, 78 for a mistake in the configuration, and 130 after Ctrl-C. A mistake of the user is
one line on standard error, never a traceback.
"""

from __future__ import annotations

import argparse
import codecs
import importlib
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from minismtp import __version__
from minismtp.cli.arguments import EXAMPLES, Parser, options_of
from minismtp.cli.common import EXIT_CONFIG, EXIT_FAILURE, EXIT_INTERRUPTED, CommandError, fail
from minismtp.values.printable import escape_unencodable
from minismtp.values.threads import Interrupted

COMMANDS: Final = {
    "setup": "write the configuration of a new mail host, with keys, certificate and first user",
    "import": "write a configuration from that of another server, such as Postfix",
    "serve": "run the server",
    "check": "check the configuration and everything that it names",
    "dns": "print the records that the configuration needs in the DNS, and check them",
    "reload": "have the running server read its configuration again",
    "queue": "see and steer the mail that waits for delivery",
    "quarantine": "see and release the mail that filters set aside",
    "passwd": "set a user's password in a password file",
    "certificate": "show the certificates, and get a new one now",
    "backup": "copy configuration, mail, queue and databases, also of a running server",
    "sessions": "show the sessions that are open now",
    "explain": "tell how a message or a session was decided, step by step",
    "shadow": "tell what plugins in shadow mode would have done, with examples",
    "trace": "show the dialogue of sessions as it happens, until Ctrl-C",
    "top": "show rates, queue, verdicts, slow hooks and sessions, again and again",
    "hooks": "explain the hooks, and tell in which order plugins run",
    "plugins": "list the plugins that can be used, with their options",
    "schema": "print a JSON Schema of the configuration, for editors",
    "new-plugin": "make a package for a plugin of your own, with a test that passes",
    "try": "run one plugin over a message, and show each hook's verdict and time",
    "replay": "run stored mail through changed plugins, and show what would differ",
    "version": "print the version, and ask whether there is a newer one",
    "completion": "print a script that completes commands and options in a shell",
}
_MODULES: Final = {  # else as the command
    "import": "import_postfix",
    "new-plugin": "new_plugin",
    "try": "try_plugin",
}
_HANDLER: Final = "minismtp.escape"  # of codecs
_LAST_STREAM: Final = 2  # the descriptor of standard error


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status."""
    open_standard_streams()
    _escape_what_is_not_encoded()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    words = sys.argv[1:] if argv is None else argv
    try:
        run = _command(words)
    except SystemExit as end:  # argparse has printed the message
        return end.code if isinstance(end.code, int) else EXIT_FAILURE
    try:
        status = run()
        sys.stdout.flush()
    except CommandError as error:
        return fail(str(error), error.status)
    except BrokenPipeError:
        # The reader of our output is gone; Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except (OSError, _config_error()) as error:
        return _failed(error)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return status


def _escape_what_is_not_encoded() -> None:
    """Have standard output escape the characters that its encoding lacks, such as ISO 8859-1."""
    output = sys.stdout
    if isinstance(output, io.TextIOWrapper) and codecs.lookup(output.encoding).name != "utf-8":
        codecs.register_error(_HANDLER, escape_unencodable)
        output.reconfigure(errors=_HANDLER)


def _command(words: Sequence[str]) -> Callable[[], int]:
    """Return what runs the command that is called with these words. Raise SystemExit."""
    if not words and sys.stdout.isatty():
        from minismtp.cli.overview import show  # noqa: PLC0415 - takes long

        return show
    arguments = parser(words).parse_args(words)
    return partial(arguments.run, arguments)


def _interrupt(*_: object) -> None:
    raise Interrupted


def _config_error() -> type[Exception]:
    """Return ConfigError. It is imported when an error was raised, because that takes long."""
    from minismtp.config.mistakes import ConfigError  # noqa: PLC0415

    return ConfigError


def _failed(error: Exception) -> int:
    from minismtp.config.mistakes import ConfigError, reason  # noqa: PLC0415

    if isinstance(error, ConfigError):
        for mistake in error.mistakes:
            fail(str(mistake))
        return EXIT_CONFIG
    return fail(reason(error) if isinstance(error, OSError) else str(error))


def parser(words: Sequence[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """Return the command line, with the options of those commands that are among `words`.

    Without arguments it is whole; the manual page is made from it.
    """
    whole = Parser(
        prog="minismtp",
        description="An SMTP server whose plugins are plain Python.",
        epilog="Exit status: 0 done, 1 failure, 2 usage, 75 no answer, 78 a mistake in the"
        " configuration, 130 Ctrl-C.",
    )
    whole.add_argument("--version", action="version", version=f"minismtp {__version__}")
    commands = whole.add_subparsers(metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"Example: {EXAMPLES[name]}",
        )
        if name in words:
            module = importlib.import_module(f"minismtp.cli.{_MODULES.get(name, name)}")
            module.add_options(sub)
            sub.set_defaults(run=module.run)
            whole.known += options_of(sub)
    return whole


def open_standard_streams() -> None:
    """Open /dev/null as each standard stream that is closed.

    Otherwise the next file or socket would get its descriptor, and with it the lines of the log.
    Programs that plugins start inherit them.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _LAST_STREAM:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
