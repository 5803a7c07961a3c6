"""Signals that come while the command `minismtp serve` starts: the first import of all.

HUP, USR1 and USR2 end a process that has not said otherwise, and the imports take a third of a
second. So they are blocked before: HUP then waits for the supervisor, which reloads once it serves.
What comes before, while Python itself starts, ends the process. As a library nothing is touched.
"""

import signal
import sys

_COMMAND = "minismtp"


def is_server() -> bool:
    """Return whether this process is `minismtp serve` or `python -m minismtp serve`."""
    if sys.argv[1:2] != ["serve"]:
        return False
    if sys.argv[0] == "-m":
        return sys.orig_argv[sys.orig_argv.index("-m") + 1] == _COMMAND
    return sys.argv[0].rpartition("/")[2] == _COMMAND


def block_signals() -> None:
    """Let no signal that the supervisor takes later end the process now."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2})


if is_server():
    block_signals()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # an end without a traceback
