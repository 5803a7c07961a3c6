"""Let ClamAV scan every message for viruses.

The message is streamed from memory or disk, so memory is bounded for any size. clamd unpacks MIME
parts and archives, within the limits of its own configuration.
"""

import contextlib
import logging
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final, Literal

from minismtp import (
    ByteSize,
    Envelope,
    Line,
    Message,
    Reject,
    Remote,
    RemoteError,
    SocketAddress,
    StashKey,
    hookimpl,
    plugin,
)

from ._options import check_time

_log: Final = logging.getLogger(__name__)
_PIECE: Final = 65536
_ANSWER: Final = 4096  # octets
_VERDICT: Final = re.compile(r"stream: (?:OK|(.+) FOUND)")


@dataclass(frozen=True, slots=True)
class ClamavResult:
    """clamd's result for a message; `virus` is empty for a clean one."""

    virus: str


#: The result of an envelope's message; it is missing if the message was too large for a scan.
CLAMAV: Final[StashKey[ClamavResult]] = StashKey()


@plugin
class Clamav:
    """Refuse mail in which ClamAV finds a virus, with 550 5.7.1 and the name of the virus.

    `address` is where clamd listens. With the `action` quarantine or discard the client gets 250,
    and the message is quarantined or dropped. Messages of more than `largest` octets, including the
    fields that the server added, are logged and pass without a scan. clamd's own `StreamMaxLength`
    should not be lower, because messages between the two are deferred. `patience` is for a whole
    scan. Mail of users after a login is scanned too, because their machines catch viruses as well.
    """

    address: SocketAddress = SocketAddress(path=Path("/run/clamav/clamd.ctl"))
    action: Literal["reject", "quarantine", "discard"] = "reject"
    largest: ByteSize = ByteSize(26 * 1024 * 1024)
    patience: timedelta = timedelta(seconds=30)

    def __post_init__(self) -> None:
        check_time("patience", self.patience)
        self._clamd = Remote(self.address, timeout=self.patience)

    @hookimpl
    def on_message(self, envelope: Envelope, message: Message) -> None:
        """Scan the message, and take the action if it has a virus."""
        if message.size > self.largest:
            _log.warning("not scanned for viruses: %d octets", message.size)
            return
        with self._clamd.connect() as line:
            virus = _scan(line, message)
        envelope.stash[CLAMAV] = ClamavResult(virus)
        if not virus:
            return
        text = f"the message contains a virus: {virus}"
        _log.info("%s (%s)", text, self.action)
        match self.action:
            case "reject":
                raise Reject(text)
            case "quarantine":
                message.quarantine(text)
            case "discard":
                message.discard(text)


def _scan(line: Line, message: Message) -> str:
    """Return the name of the virus in a message, "" for a clean one. Raise RemoteError."""
    try:
        line.send(b"zINSTREAM\0")
        with message.open() as reader:
            for piece in iter(lambda: reader.read(_PIECE), b""):
                line.send(len(piece).to_bytes(4, "big") + piece)
        line.send(bytes(4))
    except RemoteError as error:
        raise _reason(line, error) from error
    answer = _answer(line)
    verdict = _VERDICT.fullmatch(answer)
    if verdict is None:
        raise RemoteError(f"clamd answers {answer!r}")
    return verdict[1] or ""


def _reason(line: Line, error: RemoteError) -> RemoteError:
    """Return clamd's answer before it hung up, which it does above its `StreamMaxLength`."""
    with contextlib.suppress(RemoteError):
        return RemoteError(f"clamd answers {_answer(line)!r} before the end of the message")
    return error


def _answer(line: Line) -> str:
    return line.read_until(b"\0", _ANSWER).decode("utf-8", "replace")
