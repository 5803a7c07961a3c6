"""A header of a stranger costs linear time in all filters of senders together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest
from minismtp_plugins.arc import Arc
from minismtp_plugins.attachments import Attachments
from minismtp_plugins.authentication_results import AuthenticationResults
from minismtp_plugins.dkim_verify import DkimVerify
from minismtp_plugins.dmarc import Dmarc
from minismtp_plugins.score import Score
from minismtp_plugins.spf import Spf
from pumps import grows_too_fast
from zones import DictionaryResolver

from minismtp.testing import Dialogue, Mailroom

_SIZE: Final = 200_000  # octets
_SHORT: Final = 0.02  # seconds for the short input

#: Makes line number n of a header; the first line begins a field.
LINES: Final[dict[str, Callable[[int], str]]] = {
    "results": lambda n: f"Authentication-Results: x{n}; spf=pass smtp.mailfrom=a@b{n}",
    "results of long words": lambda _: f"Authentication-Results: {'a' * 900}",
    "one field of results": lambda n: '\t"(\\"a=b;' * 90 if n else "Authentication-Results: x",
    "signatures": lambda n: f"DKIM-Signature: v=1; a=rsa-sha256; d=a{n}.b; s=c; h=from; bh=; b={n}",
    "one signature": lambda n: f" {'b' * 900}" if n else "DKIM-Signature: v=1; d=a.b; s=c; b=",
    "seals": lambda n: f"ARC-Seal: i={n + 1}; a=rsa-sha256; d=a.b; s=c; cv=none; b=YQ==",
    "senders": lambda n: f"From: a@b{n}.example",
    "one sender": lambda n: '\t"\\" <a@b>,(' * 70 if n else "From: x",
    "marks": lambda n: f"X-Spam-Flag: {n}",
    "types": lambda n: f"Content-Type: multipart/mixed; boundary=b{n}",
    "blanks": lambda n: " " * 900 + "x" if n else "Subject: x",
    "no fields": lambda n: f"nothing {n}",
}


def _sends(line: Callable[[int], str], size: int) -> Callable[[], object]:
    lines, length = ["Message-ID: <a@b.example>"], 0
    while length < size and len(lines) < 10_000:
        lines.append(line(len(lines) - 1))
        length += len(lines[-1].encode()) + 2
    content = "\r\n".join([*lines, "", "x", ".", ""]).encode()
    dialogue = Dialogue(
        Spf(), DkimVerify(), Arc(), Dmarc(action="report_only"), AuthenticationResults(),
        Attachments(), Score(), Mailroom(), resolver=DictionaryResolver({}),
    )  # fmt: skip
    dialogue.send("EHLO client.example")

    def call() -> None:
        for command in ("MAIL FROM:<a@b.example>", "RCPT TO:<user@example.org>", "DATA"):
            dialogue.send(command)
        assert dialogue.send_raw(content)[:3] in {b"250", b"550"}

    return call


@pytest.mark.parametrize("line", LINES.values(), ids=LINES.keys())
def test_header_takes_linear_time(line: Callable[[int], str]) -> None:
    assert not grows_too_fast(lambda size: _sends(line, size), _SIZE, _SHORT)
