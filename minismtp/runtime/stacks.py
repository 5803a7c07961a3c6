"""What every thread of a process is doing, for a person to read."""

from __future__ import annotations

import faulthandler
import os
import threading

from minismtp.runtime.log import Log


def dump(log: Log) -> None:
    """Log the stack of every thread in one piece: other processes do so at the same time.

    The names of the threads come first, since `faulthandler` does not tell them.
    """
    names = [f"Thread 0x{each.ident or 0:016x}: {each.name}\n" for each in threading.enumerate()]
    with os.fdopen(os.memfd_create("stacks"), "w+b") as file:
        file.write("".join([f"Process {os.getpid()}\n", *names]).encode())
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        log.dump(file.read().decode("utf-8", "backslashreplace"))
