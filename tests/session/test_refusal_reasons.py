"""Every refusal is counted once, with its stage, its plugin and a kind of reason."""

from __future__ import annotations

import pytest

from minismtp import Defer, Local, Recipient, Reject, Session, hookimpl, plugin
from minismtp.config import Limits
from minismtp.runtime.metrics import Metrics
from minismtp.session import replies
from minismtp.session.refusal_reasons import REASONS, reason_of, stage_of
from minismtp.testing import Dialogue
from minismtp.values.reply import Reply


@pytest.mark.parametrize(
    ("command", "reply", "stage", "reason"),
    [
        ("MAIL", replies.NO_SPACE, "mail", "disk_full"),
        ("CONTENT", replies.NO_SPACE, "content", "disk_full"),
        ("BDAT", replies.TOO_BIG, "content", "size"),
        ("MAIL", replies.TOO_BIG, "mail", "size"),
        ("MAIL", replies.AUTH_REQUIRED, "mail", "login"),
        ("AUTH", replies.BAD_CREDENTIALS, "auth", "login"),
        ("AUTH", replies.AUTH_WAIT, "auth", "login"),
        ("AUTH", replies.AUTH_NOT_OFFERED, "auth", "protocol"),
        ("RCPT", replies.NO_ROUTE, "rcpt", "relaying"),
        ("RCPT", replies.NO_ROUTE.because("", plugin="rules", hook="on_rcpt"), "rcpt", "policy"),
        ("RCPT", replies.NO_OUTBOUND, "rcpt", "system"),
        ("RCPT", replies.TOO_MANY, "rcpt", "recipients"),
        ("RCPT", Reply(550, "no such user", "5.1.1"), "rcpt", "address"),
        ("RCPT", Reply(452, "over quota", "4.2.2"), "rcpt", "mailbox_full"),
        ("RCPT", Reply(550, "disabled", "5.2.1"), "rcpt", "mailbox"),
        ("CONTENT", replies.FAULT, "content", "system"),
        ("CONTENT", replies.LOOP, "content", "routing"),
        ("CONTENT", replies.BARE_NEWLINE, "content", "content"),
        ("CONTENT", Reply(451, "x", "4.3.0").because("failed: OSError"), "content", "failure"),
        ("DATA", replies.BINARY_DATA, "data", "protocol"),
        ("CONNECT", Reply(554, "go away"), "connect", "policy"),
        ("EHLO", Reply(501, "syntax"), "helo", "protocol"),
        ("HELO", Reply(452, "no"), "helo", "system"),
        ("OTHER", replies.UNKNOWN_COMMAND, "other", "protocol"),
        ("STARTTLS", replies.TLS_ACTIVE, "other", "protocol"),
    ],
)
def test_stage_and_reason_follow_from_the_command_and_the_codes(
    command: str, reply: Reply, stage: str, reason: str
) -> None:
    assert stage_of(command) == stage
    assert reason_of(stage, reply) == reason
    assert reason in REASONS


@pytest.mark.parametrize("enhanced", ["", *(f"5.{n}.{m}" for n in range(10) for m in range(40))])
def test_reason_is_always_one_of_the_known_words(enhanced: str) -> None:
    assert reason_of("rcpt", Reply(550, "no", enhanced)) in REASONS


@plugin
class Picky:
    @hookimpl
    def on_connect(self, session: Session) -> None:
        if session.peer == "192.0.2.66":
            raise Reject("not you")

    @hookimpl
    def on_helo(self, session: Session) -> None:
        if session.helo == "bad.example":
            raise Defer("not now")

    @hookimpl
    def route(self, recipient: Recipient) -> Local | None:
        return Local() if recipient.address.domain == "example.org" else None

    @hookimpl
    def on_message(self) -> None:
        raise Reject("spam")


def counted(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Return what was refused: stage, plugin, reason and class of the reply."""
    metrics.buffer.flush()
    [family] = [each for each in metrics.registry.collect() if each.name == "minismtp_refusals"]
    names = ("stage", "plugin", "reason", "code_class")
    return {
        tuple(sample.labels[name] for name in names): sample.value
        for sample in family.samples
        if sample.value and sample.name.endswith("_total")
    }


def test_each_refusal_is_counted_once_at_its_stage() -> None:
    dialogue = Dialogue(Picky(), limits=Limits(errors=100))
    for line in (
        *("EHLO bad.example", "EHLO good.example", "MAIL FROM:<a@b.example> SIZE=999999999"),
        *("MAIL FROM:<a@b.example>", "RCPT TO:<x@elsewhere.example>", "RCPT TO:<>"),
        *("RCPT TO:<x@example.org>", "NONSENSE", "DATA", "Subject: x\r\n\r\nx\r\n."),
    ):
        dialogue.send(line)
    dialogue.close()
    assert counted(dialogue.metrics) == {
        ("helo", "picky", "policy", "4xx"): 1,
        ("mail", "server", "size", "5xx"): 1,
        ("rcpt", "server", "relaying", "5xx"): 1,
        ("rcpt", "server", "address", "5xx"): 1,
        ("other", "server", "protocol", "5xx"): 1,
        ("content", "picky", "policy", "5xx"): 1,
    }


def test_refused_connection_is_counted() -> None:
    dialogue = Dialogue(Picky(), peer="192.0.2.66")
    dialogue.close()
    assert counted(dialogue.metrics) == {("connect", "picky", "policy", "5xx"): 1}
