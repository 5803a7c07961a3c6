"""The signals of the server; some are blocked while it starts. This is the first import of all.

HUP, USR1 and USR2 would end the process, and the other imports take a third of a second. A blocked
HUP waits for the supervisor, which reloads once it serves. A signal that comes earlier, while
Python itself starts, ends the process. In other programs nothing is blocked.
"""

import os
import signal
import sys
from typing import Final

#: Those that the supervisor takes one at a time.
SIGNALS: Final = {
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2),
    *(signal.SIGCHLD, signal.SIGALRM),
}
_COMMAND: Final = "minismtp"


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


def ending_signals() -> set[int]:
    """Return the signals that end the server: TERM and INT, and in the foreground also HUP.

    In the foreground, where standard input is a terminal, HUP says that the terminal is gone. It
    says nothing under `nohup`, which has it ignored.
    """
    found = {signal.SIGTERM, signal.SIGINT}
    if os.isatty(0) and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        found.add(signal.SIGHUP)
    return {*map(int, found)}


def next_signal(patience: float) -> int:
    """Return the next signal, or SIGALRM after `patience` seconds.

    Python's `sigtimedwait` returns a random number if its time ran out while the process was
    stopped.
    """
    signal.setitimer(signal.ITIMER_REAL, patience)
    return signal.sigwait(SIGNALS)


if is_server():
    block_signals()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends without a traceback
