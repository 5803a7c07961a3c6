"""A client's side of a session as a script of octets, for tests that cite an RFC.

`said` sends a script whole and again octet by octet, because packet boundaries must not matter.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypedDict, Unpack

from stub_plugins import Keeper

from minismtp import Envelope
from minismtp.config import Limits
from minismtp.session.listener_context import ListenerContext
from minismtp.testing import Dialogue, Mailroom

Kind = Literal["mx", "submission", "lmtp"]
MAIL_FROM: Final = "MAIL FROM:<a@client.example>"
RCPT_TO: Final = "RCPT TO:<user@example.org>"
THREE: Final = ("a@example.org", "b@example.org", "c@example.org")
MAIL: Final = MAIL_FROM.encode() + b"\r\n"
RCPT: Final = RCPT_TO.encode() + b"\r\n"
NOBODY: Final = b"RCPT TO:<nobody@example.org>\r\n"
DATA: Final = b"DATA\r\n"
NOOP: Final = b"NOOP\r\n"
EMPTY: Final = b"Subject: x\r\n\r\n"
HI: Final = EMPTY + b"Hi\r\n"
MESSAGE: Final = MAIL + RCPT + DATA + HI + b".\r\n"
SENDER, RECIPIENT, OK = "250 2.1.0", "250 2.1.5", "250 2.0.0"
TAKEN: Final = [SENDER, RECIPIENT, "354", OK]


@dataclass
class Heard:
    """The replies to a script, and what was stored."""

    text: str
    keeper: Keeper
    stored: dict[str, list[bytes]]

    @property
    def codes(self) -> list[str]:
        """The code and the enhanced code of each reply."""
        return codes_of(self.text)

    @property
    def envelope(self) -> Envelope:
        """The envelope of the only message."""
        [envelope] = self.keeper.envelopes
        return envelope

    @property
    def content(self) -> bytes:
        """The content of the only message."""
        [content] = self.keeper.contents
        return content


class How(TypedDict, total=False):
    """The options of a Dialogue."""

    kind: Kind
    login: str | None
    tls: bool
    limits: Limits


def hear(
    script: bytes,
    *plugins: object,
    cut: int = 0,
    change: dict[str, Any] | None = None,
    **how: Unpack[How],
) -> Heard:
    """Send a script, in pieces of `cut` octets, in a session that was greeted.

    `how` is for the Dialogue; `change` replaces parts of its service.
    """
    mailroom, keeper = Mailroom(), Keeper()
    dialogue = Dialogue(keeper, *plugins, mailroom, **how)
    if change:
        service = replace(dialogue.service, **change)
        tls, login = how.get("tls", False), how.get("login")
        dialogue = Dialogue(service=service, tls=tls, login=login)
    greeted(dialogue)
    size = cut or max(len(script), 1)
    pieces = [script[at : at + size] for at in range(0, len(script), size)]
    output = b"".join([dialogue.send_raw(piece) for piece in pieces])
    return Heard(output.decode("ascii"), keeper, mailroom.stored)


def said(
    script: bytes, *plugins: object, change: dict[str, Any] | None = None, **how: Unpack[How]
) -> list[str]:
    """Return the codes of the replies to a script, which are the same however it is cut."""
    whole = hear(script, *plugins, change=change, **how)
    bytewise = hear(script, *plugins, cut=1, change=change, **how)
    assert bytewise.codes == whole.codes
    assert bytewise.keeper.contents == whole.keeper.contents
    return whole.codes


def codes_of(text: str) -> list[str]:
    """Return the code and the enhanced code of each reply in a text."""
    last = r"^([2-5]\d\d) (?:([245]\.\d{1,3}\.\d{1,3}) )?.*\r$"
    return [" ".join(filter(None, codes)) for codes in re.findall(last, text, re.MULTILINE)]


def code(reply: str) -> str:
    """Return the code of one reply, with the enhanced one if it has one."""
    match = re.match(r"\d{3}(?:[ -]\d\.\d+\.\d+(?= ))?", reply)
    assert match is not None, reply
    return match[0]


def rules(*plugins: object, kind: Kind = "mx", limits: Limits | None = None) -> ListenerContext:
    """Return a service for `replace` to change."""
    return Dialogue(*plugins, kind=kind, limits=limits).service


def greeted(dialogue: Dialogue) -> Dialogue:
    """Send EHLO, or LHLO."""
    dialogue.send("LHLO client.example" if dialogue.service.lmtp else "EHLO client.example")
    return dialogue


def at_data(dialogue: Dialogue) -> Dialogue:
    """Go as far as an accepted recipient."""
    greeted(dialogue)
    assert dialogue.send(MAIL_FROM).startswith("250")
    assert dialogue.send(RCPT_TO).startswith("250")
    return dialogue


def b64(text: str) -> bytes:
    """Return the base64 of a text."""
    return base64.b64encode(text.encode())


def plain(password: str, user: str = "alice") -> str:
    """Return AUTH PLAIN with its initial response."""
    response = b64(f"\0{user}\0{password}")
    return f"AUTH PLAIN {response.decode()}"
