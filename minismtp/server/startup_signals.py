"""Blocks signals while the command `minismtp serve` starts. This is the first import of all.

HUP, USR1 and USR2 would end the process, and the other imports take a third of a second. A blocked
HUP waits for the supervisor, which reloads once it serves. A signal that comes earlier, while
Python itself starts, ends the process. In other programs nothing is blocked.
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
    """Block the signals that the supervisor will handle."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2})


if is_server():
    block_signals()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends without a traceback
