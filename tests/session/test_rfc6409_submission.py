"""RFC 6409: the checks and additions of a submission server."""

from __future__ import annotations

import re

import pytest
from client_script import (
    DATA,
    HI,
    MAIL,
    MAIL_FROM,
    RCPT,
    Kind,
    code,
    greeted,
    hear,
)
from stub_plugins import Passwords

from minismtp.testing import Dialogue

FROM = b"From: Alice <alice@example.org>\r\n"


def test_submission_adds_what_is_missing() -> None:
    # RFC 6409 sections 8.1 to 8.3
    heard = hear(
        MAIL + RCPT + DATA + FROM + HI + b".\r\n",
        kind="submission",
        login="bob@example.org",
        change={"add_sender": True},
    )
    [[message]] = heard.stored.values()
    header = message.partition(b"\r\n\r\n")[0].decode().replace("\r\n", "\n")
    assert re.search(r"^Date: \w{3}, \d+ \w{3} \d{4} [\d:]{8} \+0000$", header, re.MULTILINE)
    assert re.search(r"^Message-ID: <[\w.]+@mx\.example\.org>$", header, re.MULTILINE)
    assert re.search(r"^Sender: bob@example\.org$", header, re.MULTILINE)


def test_submission_changes_nothing_that_is_there() -> None:
    # RFC 6409 section 8
    fields = FROM + b"Date: whenever\r\nmessage-id: mine\r\nSENDER: me@b.example\r\n"
    heard = hear(
        MAIL + RCPT + DATA + fields + HI + b".\r\n", kind="submission", login="bob@example.org"
    )
    [[message]] = heard.stored.values()
    assert message.endswith(b"+0000\r\n" + fields + HI)


@pytest.mark.parametrize(
    ("kind", "login", "reply"),
    [
        ("submission", None, "530 5.7.0"),
        ("submission", "alice", "250 2.1.0"),
        ("mx", None, "250 2.1.0"),
        ("lmtp", None, "250 2.1.0"),
    ],
)
def test_submission_needs_a_login(kind: Kind, login: str | None, reply: str) -> None:
    # RFC 6409 section 4.3
    dialogue = greeted(Dialogue(Passwords(), kind=kind, tls=True, login=login))
    assert code(dialogue.send(MAIL_FROM)) == reply
