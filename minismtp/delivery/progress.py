"""The progress of one message from host to host of a destination.

A recipient that one host defers (4yz, at any command or after the content) is offered to the next
host in the same attempt, and so is a message if a host cannot be reached. A recipient that may
have the message already is not offered again. At most two hosts are asked, as in Postfix
(smtp_mx_session_limit); hosts that cannot be reached do not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from minismtp.delivery.client import HostConnection, Original
from minismtp.delivery.mx import Host, UnreachableError
from minismtp.delivery.result import RecipientResult, State
from minismtp.mail.message import Message
from minismtp.mail.queue_entry import QueuedRecipient, QueueEntry

_SESSIONS: Final = 2
_STATES: Final[dict[str, State]] = {"2": "delivered", "5": "failed"}  # by the class of a reply


class DeliveryRequest(Struct, frozen=True):
    """A message and its recipients at one destination.

    `original` is the message before plugins edited it for this delivery.
    """

    entry: QueueEntry
    message: Message
    targets: Sequence[QueuedRecipient]
    attempts: int
    original: Original | None = None


class HostRefusal(Struct, frozen=True):
    """A reply that deferred a number of recipients, for whom another host's reply counts."""

    host: str
    reply: str
    recipients: int


class AttemptResult(Struct, frozen=True):
    """The results of an attempt, one for each target.

    `reached` says whether the destination works, None if the attempt did not show it. `passed` has
    the replies that were followed by those of other hosts.
    """

    results: list[RecipientResult]
    reached: bool | None = None
    passed: tuple[HostRefusal, ...] = ()


class RequestProgress:
    """Collects the results of a message.

    `visited` are the hosts that were asked, and `left` the numbers of the targets to offer to the
    next host.
    """

    def __init__(self, request: DeliveryRequest) -> None:
        self.request = request
        self.visited: list[Host] = []
        self.left = [*range(len(request.targets))]
        self._results: dict[int, RecipientResult] = {}  # by the number of the target
        self._failure: UnreachableError | None = None
        self._said: list[HostRefusal] = []

    @property
    def part(self) -> DeliveryRequest:
        """The request for the targets in `left`."""
        if not self._results:
            return self.request
        targets = self.request.targets
        return replace(self.request, targets=[targets[number] for number in self.left])

    def add_results(self, connection: HostConnection, results: Sequence[RecipientResult]) -> None:
        """Record the results of a host for the targets in `left`.

        If all hosts defer a recipient, the reply of the first one counts, because it is preferred
        to the others.
        """
        name, tls = connection.host.name, connection.tls
        put_off: dict[int, str] = {}
        for number, result in zip(self.left, results, strict=True):
            if number not in self._results or not result.try_next_host:
                self._results[number] = replace(result, host=name, tls=tls)
            if result.try_next_host:
                put_off[number] = result.reply
        self.visited.append(connection.host)
        self.left = [*put_off] if len(self.visited) < _SESSIONS else []
        if put_off:
            counts = Counter(put_off.values())
            self._said += [HostRefusal(name, reply, count) for reply, count in counts.items()]

    def add_failure(self, error: UnreachableError, host: str = "") -> None:
        """Record that a host cannot be reached, or that the lookup of hosts failed.

        A temporary failure counts for more than a permanent one.
        """
        if host:
            self._said.append(HostRefusal(host, error.reply, len(self.left)))
        if self._failure is None or (self._failure.final and (host or not error.final)):
            self._failure = error

    def done(self) -> AttemptResult:
        """Return the result of the attempt."""
        failure = self._failure
        numbers = range(len(self.request.targets))
        if failure is None and not self._said:
            return AttemptResult([self._results[n] for n in numbers], reached=True)
        results = [self._results.get(n) for n in numbers]
        told = {(result.host, result.reply) for result in results if result is not None}
        passed = [each for each in self._said if (each.host, each.reply) not in told]
        if failure is None or None not in results:
            return AttemptResult(
                [result for result in results if result], reached=True, passed=tuple(passed)
            )
        reply = failure.reply
        passed = [each for each in passed if each.reply != reply]
        if not failure.final and reply[:1] == "5":
            reply = f"451 4.4.1 {reply}"
        reached = True if self.visited else None if failure.final else False
        return AttemptResult(
            [each or plain_result(reply) for each in results], reached, tuple(passed)
        )


def plain_result(reply: str) -> RecipientResult:
    """Return the result for a reply that no other host can change."""
    return RecipientResult(_STATES.get(reply[0], "deferred"), reply)
