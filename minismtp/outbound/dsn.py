"""Delivery status notifications (layer 6; RFC 3461, 3464, 6522, 6533)."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from minismtp.headers import SIZE_LIMIT
from minismtp.message import Content, Message
from minismtp.received import date
from minismtp.spool import Entry, Target

Action = Literal["failed", "delayed", "delivered", "relayed"]

_RETURNED: Final = 64 * 1024  # octets of a message that come back whole; of larger ones, the header
_END: Final = re.compile(rb"\n\r?\n")
_STATUS: Final = re.compile(r"[0-9]{3} ([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: |$)")
_TITLES: Final[dict[str, tuple[str, str]]] = {
    "failed": (
        "Undelivered mail returned to sender",
        "Your message could not be delivered to the recipients below. It will not be tried again.",
    ),
    "delayed": (
        "Delayed mail (still being tried)",
        (
            "Your message could not be delivered yet to the recipients below. It needs nothing of"
            " you:\r\nit will be tried again until {until}."
        ),
    ),
    "delivered": (
        "Mail delivered",
        "Your message was delivered to the recipients below.",
    ),
    "relayed": (
        "Mail relayed",
        "Your message was handed to servers that will send no notification of their own.",
    ),
}


@dataclass(frozen=True, slots=True)
class Report:
    """What is to be told of one recipient: its target, the last reply and the host that gave it."""

    target: Target
    reply: str
    host: str = ""


def wanted(target: Target, action: Action) -> bool:
    """Whether the sender wants to hear of it (RFC 3461 section 4.1)."""
    match action:
        case "failed":
            return not target.notify or "FAILURE" in target.notify
        case "delayed":
            return not target.notify or "DELAY" in target.notify
        case _:
            return "SUCCESS" in target.notify


def status(reply: str, action: Action) -> str:
    """Give the enhanced code of a reply, or the most general one (RFC 3463)."""
    match = _STATUS.match(reply)
    fitting = {"failed": "5", "delayed": "4"}.get(action, "2")
    if match and match[1][0] == fitting:
        return match[1]
    return f"{fitting}.0.0"


def notification(
    entry: Entry,
    message: Message,
    action: Action,
    reports: Iterable[Report],
    *,
    hostname: str,
    now: float,
    until: float,
) -> tuple[Entry, Message] | None:
    """Make the message that tells a sender, ready for the spool. None = nobody is to be told.

    The null reverse-path has nobody to tell, so there is no bounce of a bounce (RFC 5321 6.1).
    """
    told = [report for report in reports if wanted(report.target, action)]
    if not entry.sender or not told:
        return None
    name = f"{secrets.token_hex(6)}.d"
    utf8 = entry.smtputf8 or not entry.sender.isascii()
    boundary = f"=_{secrets.token_hex(12)}"
    whole = action == "failed" and entry.dsn_return != "HDRS" and message.size <= _RETURNED
    returned = _octets(message) if whole else _header(message)
    title, text = _TITLES[action]
    kind = "global" if utf8 else "rfc822"
    if not whole:
        kind = "global-headers" if utf8 else "rfc822-headers"
    kind = ("message/" if whole or utf8 else "text/") + kind
    eight_bit = utf8 or not returned.isascii()
    lines = [
        f"From: Mail Delivery System <MAILER-DAEMON@{hostname}>",
        f"To: <{entry.sender}>",
        f"Subject: {title}",
        f"Date: {date(now)}",
        f"Message-ID: <{name}.{int(now)}@{hostname}>",
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        "Content-Type: multipart/report; report-type=delivery-status;",
        f'\tboundary="{boundary}"',
        *(["Content-Transfer-Encoding: 8bit"] if eight_bit else []),
        "",
        f"--{boundary}",
        "Content-Type: text/plain; charset=utf-8",
        *(["Content-Transfer-Encoding: 8bit"] if eight_bit else []),
        "",
        f"This is the mail system at {hostname}.",
        "",
        text.format(until=date(until)),
        "",
        *(line for report in told for line in _for_people(report)),
        "",
        f"--{boundary}",
        f"Content-Type: message/{'global-' if utf8 else ''}delivery-status",
        *(["Content-Transfer-Encoding: 8bit"] if eight_bit else []),
        "",
        *_for_programs(entry, action, told, hostname=hostname, now=now, until=until, utf8=utf8),
        f"--{boundary}",
        f"Content-Type: {kind}",
        *(["Content-Transfer-Encoding: 8bit"] if eight_bit else []),
        "",
        "",
    ]
    content = "\r\n".join(lines).encode() + returned + f"\r\n--{boundary}--\r\n".encode()
    target = Target(kind="relay", address=entry.sender, recipient=entry.sender)
    notice = Entry(
        id=name,
        sender="",
        listener="",
        peer="",
        helo="",
        login=None,
        arrived=now,
        targets=(target,),
        body="8BITMIME" if eight_bit else "7BIT",
        smtputf8=utf8,
    )
    return notice, Message(name, Content.of(content))


def _for_people(report: Report) -> Sequence[str]:
    said = f" said: {report.reply}" if report.host else f": {report.reply}"
    return [f"<{report.target.recipient}>", f"    {report.host or 'reason'}{said}", ""]


def _for_programs(
    entry: Entry,
    action: Action,
    told: Iterable[Report],
    *,
    hostname: str,
    now: float,
    until: float,
    utf8: bool,
) -> Iterable[str]:
    yield f"Reporting-MTA: dns; {hostname}"
    if entry.dsn_id:
        yield f"Original-Envelope-Id: {entry.dsn_id}"
    yield f"Arrival-Date: {date(entry.arrived)}"
    for report in told:
        kind = "utf-8" if utf8 and not report.target.address.isascii() else "rfc822"
        yield ""
        if report.target.original:
            yield f"Original-Recipient: {report.target.original.replace(';', '; ', 1)}"
        yield f"Final-Recipient: {kind}; {report.target.address}"
        yield f"Action: {action}"
        yield f"Status: {status(report.reply, action)}"
        if report.host:
            yield f"Remote-MTA: dns; {report.host}"
        if report.reply:
            yield f"Diagnostic-Code: smtp; {report.reply}"
        yield f"Last-Attempt-Date: {date(now)}"
        if action == "delayed":
            yield f"Will-Retry-Until: {date(until)}"
    yield ""


def _octets(message: Message) -> bytes:
    with message.open() as reader:
        return reader.read()


def _header(message: Message) -> bytes:
    with message.open() as reader:
        head = reader.read(SIZE_LIMIT)
    end = _END.search(head)
    return head[: end.start() + 1] if end else head
