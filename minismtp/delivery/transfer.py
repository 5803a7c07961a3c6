"""One mail transaction over a channel: an envelope, and the content (RFC 5321 3.3)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Final

from minismtp.delivery.channel import Channel
from minismtp.delivery.content import pieces
from minismtp.delivery.extensions import Extensions
from minismtp.delivery.result import HostError, HostReply, RecipientResult
from minismtp.mail.message import Message
from minismtp.mail.mime_conversion import Form
from minismtp.mail.queue_entry import QueuedRecipient, QueueEntry
from minismtp.smtp.dot_stuffing import dotted

_START_INPUT: Final = 354


def transact(
    channel: Channel,
    extensions: Extensions,
    entry: QueueEntry,
    targets: Sequence[QueuedRecipient],
    message: Message,
    *,
    form: Form,
    chunked: bool = False,
) -> list[RecipientResult]:
    """Send a message; one answer for each target. Raise HostError before anything was taken.

    BINARYMIME goes by BDAT, and so does what is to be `chunked` (RFC 3030); all else by DATA.

    A connection that is lost later is an answer: nobody knows whether the message was taken. The
    channel is closed then.
    """
    chunked = chunked or entry.body == "BINARYMIME"
    commands = [extensions.mail(entry, message, wide=form.wide), *map(extensions.rcpt, targets)]
    commands += [] if chunked else ["DATA"]
    pipelining = "pipelining" in extensions
    with channel.phase(channel.timeouts.command, "the envelope"):
        replies = channel.converse(commands, at_once=pipelining)
        sender = next(replies)
        answers = [sender.answer] * len(targets)
        if sender.accepts:
            answers = _judged(islice(replies, len(targets)))
        taken = [number for number, answer in enumerate(answers) if answer.state == "delivered"]
        start = None if chunked or not taken else next(replies)
    if not taken:
        _leave(channel, replies if pipelining else iter(()))
        return answers
    if start is not None and start.code != _START_INPUT:
        verdict = _refusal(start)
        _leave(channel, iter(()))
    else:
        with message.open() as reader:
            bdat = f"BDAT {message.size} LAST\r\n".encode()
            verdict = _send(channel, chain([bdat], pieces(reader)) if chunked else dotted(reader))
    for number in taken:
        refused = verdict.state == "failed"
        answers[number] = replace(verdict, reports="dsn" in extensions, content_refused=refused)
    return answers


def _judged(replies: Iterable[HostReply]) -> list[RecipientResult]:
    """Return the answers to RCPT; what is "too many" stands behind somebody who was not."""
    answers, some = [], False
    for reply in replies:
        if some and not reply.accepts and reply.is_too_many:
            answers.append(RecipientResult("queued", str(reply), elsewhere=True, crowded=True))
        else:
            answers.append(reply.answer)
        some = some or reply.accepts
    return answers


def _send(channel: Channel, content: Iterable[bytes]) -> RecipientResult:
    with channel.phase(channel.timeouts.data, "the content"):
        if not channel.stream(content):
            early = channel.reply()
            channel.close()  # it still waits for the rest
            return _refusal(early)
    try:
        with channel.phase(
            channel.timeouts.end, "the reply to the content, which it may have taken"
        ):
            return channel.reply().answer
    except HostError as error:
        channel.close()
        # 421 is a refusal; otherwise the host may have the message, and another one had it twice.
        return RecipientResult("queued", error.reply, elsewhere=error.reply.startswith("421"))


def _leave(channel: Channel, replies: Iterator[HostReply]) -> None:
    """End a transaction without a message; what goes wrong shows in the next one."""
    with contextlib.suppress(HostError), channel.phase(channel.timeouts.command, "RSET"):
        if any(reply.code == _START_INPUT for reply in replies):
            channel.ask(".")  # RFC 2920 section 3.1: nobody gets this empty message
        else:
            channel.ask("RSET")


def _refusal(reply: HostReply) -> RecipientResult:
    """Return the answer of a reply that can be nothing but a refusal."""
    answer = reply.answer
    if answer.state == "delivered":
        raise HostError(f"451 4.5.0 out of step: {reply}")
    return answer
