"""Pipe each copy to a program."""

import contextlib
import os
import re
import resource
import select
import signal
import subprocess
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import IO

from minismtp import (
    Address,
    ByteSize,
    Defer,
    Envelope,
    Message,
    Reject,
    RemoteError,
    hookimpl,
    plugin,
)

from ._options import check_placeholders

_PLACEHOLDERS = ("recipient", "local", "domain", "sender", "id", "size", "peer")
_TEXT = 200  # characters of a program's message in the reply
_HEARD = 4096  # octets of the message that are read
_UNPRINTABLE = re.compile(r"[^ -~]+")
# Statuses of sysexits.h about the mail; another status is a failure of the program.
_REFUSALS = {
    65: (554, "5.6.0", "the content is not taken"),  # EX_DATAERR
    67: (550, "5.1.1", "no such user"),  # EX_NOUSER
    68: (550, "5.1.2", "no such host"),  # EX_NOHOST
    77: (550, "5.7.1", "permission denied"),  # EX_NOPERM
}
_FOR_NOW = (69, 75)  # EX_UNAVAILABLE, EX_TEMPFAIL


@plugin
class Pipe:
    """Store each copy by running a program that reads it from standard input.

    `command` is a list of the program's path and its arguments, which no shell interprets. The
    placeholders {recipient}, {local}, {domain}, {sender}, {id}, {size} and {peer} are filled in.
    An argument stays one argument whatever the values are, and an address that would make it begin
    with "-" is refused. The environment has PATH, LANG, HOME (the `directory`), SENDER, RECIPIENT
    and MESSAGE_ID; the program runs in `directory`, as the user of the server.

    Exit status 0 means that the program stored the copy. 75 and 69 defer it; 65, 67, 68 and 77
    refuse it; other statuses and signals are failures of the program, for `on_error`. The first
    line on its standard error goes into the reply. After `patience` the program is killed with all
    its processes. `cpu` (seconds), `memory` and `files` limit each process; 0 is no limit.
    """

    command: list[str]
    directory: Path = Path("/")
    patience: timedelta = timedelta(minutes=1)
    cpu: timedelta = timedelta(0)
    memory: ByteSize = ByteSize(0)
    files: int = 0

    def __post_init__(self) -> None:
        if not self.command or not self.command[0].startswith("/") or "{" in self.command[0]:
            raise ValueError("command: expected the absolute path of a program first")
        for argument in self.command:
            check_placeholders("command", argument, _PLACEHOLDERS)
        if self.files < 0:
            raise ValueError("files: expected a number, 0 for no limit")

    @hookimpl
    def deliver(self, envelope: Envelope, message: Message, mailbox: Address) -> bool:
        """Run the program for one copy."""
        arguments = self._arguments(envelope, message, mailbox)
        # A file, not a pipe, so a program that does not read delays nothing.
        with tempfile.TemporaryFile() as file:
            message.write_to(file.fileno())
            file.seek(0)
            status, said = self._run(arguments, envelope, mailbox, file)
        _check(status, said, self.command[0])
        return True

    def _arguments(self, envelope: Envelope, message: Message, mailbox: Address) -> list[str]:
        values = {
            "recipient": str(mailbox),
            "local": mailbox.local,
            "domain": mailbox.ascii_domain,
            "sender": envelope.sender,
            "id": envelope.id,
            "size": str(message.size),
            "peer": envelope.peer,
        }
        filled = [argument.format(**values) for argument in self.command]
        for before, after in zip(self.command, filled, strict=True):
            if (after.startswith("-") and not before.startswith("-")) or "\0" in after:
                raise Reject("address is not taken by the mailbox's program", enhanced="5.1.3")
        return filled

    def _run(
        self, arguments: list[str], envelope: Envelope, mailbox: Address, stdin: IO[bytes]
    ) -> tuple[int, str]:
        """Return the exit status and the first line on standard error."""
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "HOME": str(self.directory),
            "SENDER": envelope.sender,
            "RECIPIENT": str(mailbox),
            "MESSAGE_ID": envelope.id,
        }
        try:
            process = subprocess.Popen(  # noqa: S603 - a list, and no shell
                arguments,
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd=self.directory,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise RemoteError(f"{arguments[0]} cannot be run: {error.strerror}") from error
        with process:
            try:
                self._limit(process.pid)
                said = _listen(process, time.monotonic() + self.patience.total_seconds())
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
        return process.returncode, said

    def _limit(self, pid: int) -> None:
        """Set the limits of a program after its start; preexec_fn is unsafe with threads."""
        cpu = -(-self.cpu // timedelta(seconds=1))
        limits = {
            resource.RLIMIT_CPU: cpu,
            resource.RLIMIT_AS: self.memory,
            resource.RLIMIT_NOFILE: self.files,
        }
        with contextlib.suppress(ProcessLookupError):
            for kind, value in limits.items():
                if value:
                    resource.prlimit(pid, kind, (value, value))


def _listen(process: "subprocess.Popen[bytes]", due: float) -> str:
    """Wait for the end of a program, and return the first line on its standard error.

    Processes that it started may continue and keep standard error open; they are not waited for.
    """
    assert process.stderr is not None  # noqa: S101 - it is a pipe
    stream, heard = process.stderr.fileno(), b""
    os.set_blocking(stream, False)
    ended = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(stream, select.POLLIN)
        while True:
            left = due - time.monotonic()
            events = dict(poll.poll(left * 1000)) if left > 0 else {}
            if not events:
                raise RemoteError("the program is too slow")
            if stream in events:
                piece = os.read(stream, _HEARD)
                heard = (heard + piece)[:_HEARD]
                if not piece:
                    poll.unregister(stream)
            elif ended in events:
                break
    finally:
        os.close(ended)
    line = heard.decode("utf-8", "replace").strip().partition("\n")[0]
    return _UNPRINTABLE.sub(" ", line.encode("ascii", "backslashreplace").decode())[:_TEXT].strip()


def _check(status: int, said: str, program: str) -> None:
    """Raise the verdict of an exit status."""
    if status == 0:
        return
    if status in _FOR_NOW:
        raise Defer(said or "the mailbox's program cannot take it now", enhanced="4.3.0")
    if status in _REFUSALS:
        code, enhanced, text = _REFUSALS[status]
        raise Reject(said or text, code=code, enhanced=enhanced)
    how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    raise RemoteError(f"{program}: {how}: {said}")
