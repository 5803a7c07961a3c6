"""What the hosts of a destination say of one message, one after the other.

A recipient whom one host puts off (4yz, at any command or at the end of the content) is offered to
the next host in the same attempt, and so is a message that a host cannot be asked about. Nobody is
offered again who may have the message already. Two hosts are asked, as Postfix does
(smtp_mx_session_limit); those that cannot be reached do not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from minismtp.delivery.client import HostConnection
from minismtp.delivery.content import Original
from minismtp.delivery.mx import Host, UnreachableError
from minismtp.delivery.result import RecipientResult
from minismtp.mail.message import Message
from minismtp.mail.queue_entry import QueuedRecipient, QueueEntry

_SESSIONS: Final = 2


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message and those of its targets that go to one destination.

    `original` is the message before plugins have edited it for that.
    """

    entry: QueueEntry
    message: Message
    targets: Sequence[QueuedRecipient]
    attempts: int
    original: Original | None = None


@dataclass(frozen=True, slots=True)
class Passed:
    """What a host said of so many recipients, while what another one said counts."""

    host: str
    reply: str
    recipients: int


@dataclass(frozen=True, slots=True)
class Done:
    """What an attempt brought: an answer for each target.

    `reached` says whether the destination works, None when that was not found out. `passed` has
    what else was said.
    """

    answers: list[RecipientResult]
    reached: bool | None = None
    passed: tuple[Passed, ...] = ()


class Course:
    """The way of a message from host to host; `visited` are those that were asked."""

    def __init__(self, outgoing: Outgoing) -> None:
        self.outgoing = outgoing
        self.visited: list[Host] = []
        self._answers: dict[int, RecipientResult] = {}  # by the number of the target
        self._failure: UnreachableError | None = None
        self._said: list[Passed] = []

    @property
    def left(self) -> list[int]:
        """The numbers of the targets for whom another host is to be asked."""
        if len(self.visited) >= _SESSIONS:
            return []
        answers = map(self._answers.get, range(len(self.outgoing.targets)))
        return [n for n, answer in enumerate(answers) if answer is None or answer.elsewhere]

    @property
    def part(self) -> Outgoing:
        """The message with these targets."""
        targets = self.outgoing.targets
        return replace(self.outgoing, targets=[targets[number] for number in self.left])

    def answered(self, connection: HostConnection, answers: Sequence[RecipientResult]) -> None:
        """Note what a host has answered about each of `left`.

        When all put a recipient off, the first one's reply counts: it is preferred to the others.
        """
        name, tls = connection.host.name, connection.tls
        for number, answer in zip(self.left, answers, strict=True):
            if number not in self._answers or not answer.elsewhere:
                self._answers[number] = replace(answer, host=name, tls=tls)
        self.visited.append(connection.host)
        put_off = Counter(answer.reply for answer in answers if answer.elsewhere)
        self._said += [Passed(name, reply, count) for reply, count in put_off.items()]

    def failed(self, error: UnreachableError, host: str = "") -> None:
        """Note that a host cannot be asked, or that there is no further one.

        What may change counts for more than what is final.
        """
        if host:
            self._said.append(Passed(host, error.reply, len(self.left)))
        if self._failure is None or (self._failure.final and (host or not error.final)):
            self._failure = error

    def done(self) -> Done:
        """Return what has come of it."""
        failure = self._failure
        answers = [self._answers.get(n) for n in range(len(self.outgoing.targets))]
        told = {(answer.host, answer.reply) for answer in answers if answer is not None}
        passed = [each for each in self._said if (each.host, each.reply) not in told]
        if failure is None or None not in answers:
            return Done(
                [answer for answer in answers if answer], reached=True, passed=tuple(passed)
            )
        reply = failure.reply
        passed = [each for each in passed if each.reply != reply]
        if not failure.final and reply[:1] == "5":
            reply = f"451 4.4.1 {reply}"
        reached = True if self.visited else None if failure.final else False
        return Done([each or answer_of(reply) for each in answers], reached, tuple(passed))


def answer_of(reply: str) -> RecipientResult:
    """Return the answer that a reply is, if it is for good."""
    match reply[0]:
        case "2":
            return RecipientResult("delivered", reply)
        case "5":
            return RecipientResult("failed", reply)
        case _:
            return RecipientResult("queued", reply)
