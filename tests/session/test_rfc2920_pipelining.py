"""RFC 2920: groups of commands."""

from __future__ import annotations

from dataclasses import replace

from client_script import (
    DATA,
    MAIL,
    MAIL_FROM,
    NOBODY,
    NOOP,
    OK,
    RCPT,
    RCPT_TO,
    RECIPIENT,
    SENDER,
    codes_of,
    greeted,
    rules,
)
from stub_plugins import OnlyUser

from minismtp.config import Limits
from minismtp.testing import Dialogue, Mailroom


def test_group_of_commands_is_answered_in_order_in_one_piece() -> None:
    # RFC 2920 section 3.2
    dialogue = Dialogue(OnlyUser(), Mailroom())
    dialogue.send("EHLO c.example")
    output = dialogue.send_raw(b"RSET\r\n" + MAIL + RCPT + NOBODY + b"FOO\r\n" + NOOP + DATA)
    assert codes_of(output.decode()) == [OK, SENDER, RECIPIENT, "550 5.1.1", "500 5.5.2", OK, "354"]


def test_batch_is_answered_in_one_piece() -> None:
    # RFC 2920 section 3.2
    mailroom = Mailroom()
    dialogue = greeted(Dialogue(mailroom))
    batch = f"{MAIL_FROM}\r\n{RCPT_TO}\r\nRCPT TO:<other@example.org>\r\nDATA\r\n".encode()
    lines = dialogue.receiver.receive(batch).decode().split("\r\n")
    assert [line[:3] for line in lines] == ["250", "250", "250", "354", ""]
    assert not dialogue.receiver.pending
    lines = dialogue.receiver.receive(b"x\r\n.\r\nNOOP\r\nQUIT\r\n").decode().split("\r\n")
    assert [line[:3] for line in lines] == ["250", "250", "221", ""]
    assert [*mailroom.stored] == ["user@example.org", "other@example.org"]


def test_replies_of_a_huge_batch_do_not_pile_up() -> None:
    dialogue = greeted(Dialogue(limits=Limits(junk_commands=100_000)))
    output = dialogue.receiver.receive(b"NOOP\r\n" * 10_000)
    assert 65536 <= len(output) < 66_000
    assert dialogue.receiver.pending
    while dialogue.receiver.pending:
        output += dialogue.receiver.proceed()
    assert output == b"250 2.0.0 ok\r\n" * 10_000


def test_strict_pipelining_refuses_commands_behind_ehlo() -> None:
    # RFC 2920 section 3.1
    service = replace(rules(), strict_pipelining=True)
    dialogue = Dialogue(service=service)
    first, second = dialogue.send_raw(
        f"EHLO client.example\r\n{MAIL_FROM}\r\n".encode()
    ).splitlines()
    assert first.startswith(b"503 wait for the reply before you go on (id ")
    assert second.startswith(b"503 5.5.1 say EHLO first (id ")
    assert dialogue.session.helo == ""
    assert dialogue.send("EHLO client.example").startswith("250")
    assert dialogue.send_raw(f"{MAIL_FROM}\r\nRSET\r\n".encode()).count(b"250 ") == 2


def test_pipelining_behind_ehlo_is_let_pass_by_default() -> None:
    reply = Dialogue().send_raw(f"EHLO client.example\r\n{MAIL_FROM}\r\n".encode())
    assert reply.endswith(b"250 2.1.0 sender ok\r\n")
