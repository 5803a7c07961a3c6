"""Delivery status notifications (RFC 3461, 3464, 6522, 6533).

A notification is a message like any other, with an entry for the spool. Whatever strangers have put
into addresses, replies and messages, its fields stay fields and its parts stay parts: controls are
taken out, no line has more than 998 octets, and what is returned is bounded. A stranger's message
does not come back, because the sender may be forged. Every host takes a notification, because it is
7-bit, the returned message converted, unless the sender's own mailbox needs SMTPUTF8. Making one
never raises.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from minismtp.mail.content import Content
from minismtp.mail.headers import format_field
from minismtp.mail.message import Message
from minismtp.mail.mime_conversion import converted
from minismtp.mail.queue_entry import QueuedRecipient, QueueEntry
from minismtp.mail.trace_fields import date
from minismtp.mail.transfer_encoding import quoted_printable
from minismtp.smtp.grammar import SyntaxProblem, decode_xtext, encode_utf8_address
from minismtp.values.address import to_ascii

Action = Literal["failed", "delayed", "delivered", "relayed", "expanded"]

# Octets up to which a message that failed comes back whole, by what the sender said in RET; of
# larger ones the header does (RFC 3461 section 4.3).
_WHOLE: Final = {"": 64 * 1024, "FULL": 1024 * 1024, "HDRS": 0}
_HEADER: Final = 64 * 1024  # octets of a header that come back
_STATUS: Final = re.compile(r"[0-9]{3} ([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: |$)")
_IDENTIFIER: Final = re.compile(r"<[!-;=?-~]{1,250}>")  # msg-id, RFC 5322 section 3.6.4
_CONTROLS: Final = re.compile(r"[ \x00-\x1f\x7f-\x9f\u2028\u2029]+")
_LONG_WORD: Final = 900  # octets; a field's line has 998 with its name
_PIECE: Final = 220  # characters of at most four octets
_WIDE: Final = re.compile(r"[^\x00-\x7f]")
# Content of lines that RFC 5321 section 4.5.3.1.6 lets every host refuse, or BINARYMIME.
_LINES: Final = re.compile(rb"(?:[^\r\n\0]{0,998}\r\n)*+[^\r\n\0]{0,998}")
_TITLES: Final[dict[Action, tuple[str, str]]] = {
    "failed": (
        "Undelivered mail returned to sender",
        "Your message could not be delivered to the recipients below. It will not be tried again.",
    ),
    "delayed": (
        "Delayed mail (still being tried)",
        (
            "Your message could not be delivered yet to the recipients below. It needs nothing of"
            " you:\nit will be tried again until {until}."
        ),
    ),
    "delivered": ("Mail delivered", "Your message was delivered to the recipients below."),
    "relayed": (
        "Mail relayed",
        "Your message was handed to servers that will send no notification of their own.",
    ),
    "expanded": (
        "Mail forwarded to several recipients",
        (
            "Your message was accepted, and forwarded to all who are behind the addresses below."
            "\nYou will hear of failures only."
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class Report:
    """What is to be told of one recipient: its target, the last reply and the host that gave it."""

    target: QueuedRecipient
    reply: str
    host: str = ""


def wanted(target: QueuedRecipient, action: Action) -> bool:
    """Whether the sender wants to hear of it (RFC 3461 section 4.1)."""
    match action:
        case "failed":
            return not target.notify or "FAILURE" in target.notify
        case "delayed":
            return not target.notify or "DELAY" in target.notify
        case _:
            return "SUCCESS" in target.notify


def status(reply: str, action: Action) -> str:
    """Return the enhanced code of a reply, or the most general one (RFC 3463)."""
    match = _STATUS.match(reply)
    fitting = {"failed": "5", "delayed": "4"}.get(action, "2")
    if match and match[1][0] == fitting:
        return match[1]
    return f"{fitting}.0.0"


def notification(
    entry: QueueEntry,
    message: Message,
    action: Action,
    reports: Iterable[Report],
    *,
    hostname: str,
    now: float,
    until: float,
) -> tuple[QueueEntry, Message] | None:
    """Make the message that tells a sender, ready for the spool. None = nobody is to be told.

    The null reverse-path has nobody to tell, so there is no bounce of a bounce (RFC 5321 6.1).
    """
    told = [report for report in reports if wanted(report.target, action)]
    if not entry.sender or not told:
        return None
    name = f"{secrets.token_hex(6)}.d"
    form = _Form(entry, message, action, told, hostname=hostname, now=now, until=until)
    content = form.content(name)
    notice = QueueEntry(
        id=name,
        sender="",
        listener="",
        peer="",
        helo="",
        login=None,
        arrived=now,
        targets=(QueuedRecipient(kind="relay", address=entry.sender, recipient=entry.sender),),
        body="7BIT" if content.isascii() else "8BITMIME",
        smtputf8=form.utf8,
        trusted=entry.trusted,
    )
    return notice, Message(name, Content.of(content))


class _Form:
    """One notification, filled in. `utf8` says that it has to be an internationalized one."""

    def __init__(
        self,
        entry: QueueEntry,
        message: Message,
        action: Action,
        told: Sequence[Report],
        *,
        hostname: str,
        now: float,
        until: float,
    ) -> None:
        self._entry = entry
        self._action = action
        self._told = told
        self._hostname = hostname
        self._now = now
        self._until = until
        local, _, domain = entry.sender.rpartition("@")
        # Only what cannot be said otherwise: the way back may lead through hosts without SMTPUTF8.
        self.utf8 = not local.isascii()
        in_ascii = entry.sender.isascii() or self.utf8
        self._sender = entry.sender if in_ascii else f"{local}@{to_ascii(domain)}"
        whole = self._message(message) if action == "failed" else b""
        self._whole = bool(whole) and self._travels(whole)
        self._returned = whole if self._whole else _header(entry, message)

    def content(self, name: str) -> bytes:
        """Return the octets of the notification."""
        boundary = f"=_{secrets.token_hex(12)}"
        people = self._people()
        parts = [
            self._part(
                f"text/plain; charset={'us-ascii' if people.isascii() else 'utf-8'}", people
            ),
            self._part(
                f"message/{'global-' if self.utf8 else ''}delivery-status", self._programs()
            ),
            self._part(self._returned_type(), self._returned),
        ]
        # RFC 3834 section 5: auto-generated must not label a DSN, auto-replied may.
        head = [
            self._field("From", f"Mail Delivery System <MAILER-DAEMON@{self._hostname}>"),
            self._field("To", f"<{self._sender}>"),
            self._field("Subject", _TITLES[self._action][0]),
            self._field("Date", date(self._now)),
            self._field("Message-ID", f"<{name}.{int(self._now)}@{self._hostname}>"),
            self._field("Auto-Submitted", "auto-replied"),
            self._field("MIME-Version", "1.0"),
            b"Content-Type: multipart/report; report-type=delivery-status;\r\n"
            b'\tboundary="%s"\r\n' % boundary.encode(),
            b"" if all(map(bytes.isascii, parts)) else b"Content-Transfer-Encoding: 8bit\r\n",
        ]
        line = b"\r\n--" + boundary.encode()
        return b"".join([*head, *(line + b"\r\n" + part for part in parts), line, b"--\r\n"])

    def _returned_type(self) -> str:
        if self._whole:
            return "message/global" if self.utf8 else "message/rfc822"
        return "message/global-headers" if self.utf8 else "text/rfc822-headers"

    def _people(self) -> bytes:
        title = _TITLES[self._action][1].format(until=date(self._until))
        lines = [
            f"This is the mail system at {_clean(self._hostname)}.",
            "",
            *title.split("\n"),
            "",
        ]
        for report in self._told:
            lines.append(f"<{_clean(report.target.recipient)}>")
            if report.reply:
                who = f"{_clean(report.host)} said" if report.host else "reason"
                lines.append(f"    {who}: {_clean(report.reply)}")
            lines.append("")
        return "".join(f"{line}\r\n" for line in lines).encode("utf-8", "backslashreplace")

    def _programs(self) -> bytes:
        """Return the fields for programs: of the message, then of each recipient (RFC 3464 2)."""
        groups = [self._of_message(), *(self._of_recipient(report) for report in self._told)]
        return b"\r\n".join(b"".join(group) for group in groups)

    def _of_message(self) -> Iterator[bytes]:
        yield self._field("Reporting-MTA", f"dns; {self._hostname}")
        if self._entry.dsn_id:
            yield self._field("Original-Envelope-Id", self._entry.dsn_id)
        yield self._field("Arrival-Date", date(self._entry.arrived))

    def _of_recipient(self, report: Report) -> Iterator[bytes]:
        target = report.target
        original = self._original(target.original)
        # A false address would be worse than none; RFC 3464 section 2.3.1 lets it be missing.
        if original and len(original) <= _LONG_WORD:
            yield self._field("Original-Recipient", original)
        final = target.address if target.kind == "relay" else target.recipient
        yield self._field("Final-Recipient", self._final(final))
        yield self._field("Action", self._action)
        yield self._field("Status", status(report.reply, self._action))
        if report.host:
            yield self._field("Remote-MTA", f"dns; {report.host}")
        if report.reply:
            # RFC 3464 section 2.3.6: "smtp" is for what a host has said itself.
            kind = "smtp" if report.host else "X-minismtp"
            yield self._field("Diagnostic-Code", f"{kind}; {report.reply}")
        yield self._field("Last-Attempt-Date", date(self._now))
        if self._action == "delayed":
            yield self._field("Will-Retry-Until", date(self._until))

    def _original(self, original: str) -> str:
        """Return what ORCPT said, in ASCII where it must be (RFC 6533 section 3)."""
        kind, _, address = original.partition(";")
        if kind.lower() != "utf-8":
            return f"{kind}; {_decoded(address)}" if address else ""
        if not self.utf8:
            address = _WIDE.sub(lambda match: f"\\x{{{ord(match[0]):02X}}}", address)
        return f"{kind}; {address}"

    def _final(self, address: str) -> str:
        """Return an address with its type, in ASCII where the notification is (RFC 6533)."""
        if self.utf8 and not address.isascii():
            return f"utf-8; {address}"
        local, _, domain = address.rpartition("@")
        if local.isascii():
            return f"rfc822; {local}@{to_ascii(domain)}"
        return f"utf-8; {encode_utf8_address(local)}@{to_ascii(domain)}"

    def _field(self, name: str, value: str) -> bytes:
        charset = "utf-8" if self.utf8 else "ascii"
        text = _clean(value).encode(charset, "backslashreplace").decode(charset)
        return format_field(name, " ".join(map(_broken, text.split(" "))))

    def _message(self, message: Message) -> bytes:
        """Return a message that may come back whole, as every host takes it; nothing of others."""
        entry = self._entry
        most = _WHOLE.get(entry.dsn_return, 0)
        if not entry.trusted or message.size > most:
            return b""
        with message.open() as reader:
            whole = reader.read()
        if self._travels(whole):
            return whole
        try:
            made = converted(message, eight_bit=self.utf8, binary=True, ascii_fields=not self.utf8)
        except OSError:  # no space for it
            return b""
        with made.open() as reader:
            return reader.read()

    def _travels(self, content: bytes) -> bool:
        """Whether every host takes content as it is; one with SMTPUTF8 has 8BITMIME too."""
        return (content.isascii() or self.utf8) and _LINES.fullmatch(content) is not None

    def _part(self, kind: str, content: bytes) -> bytes:
        """Return a part; RFC 6522 section 4 allows quoted-printable for broken headers."""
        encoding = b"" if content.isascii() else b"Content-Transfer-Encoding: 8bit\r\n"
        if not self._travels(content):
            encoding = b"Content-Transfer-Encoding: quoted-printable\r\n"
            content = b"\r\n".join(map(quoted_printable, content.split(b"\r\n")))
        return b"Content-Type: %s\r\n%s\r\n%s" % (kind.encode(), encoding, content)


def _broken(word: str) -> str:
    """Return a word that fits into a line; a longer one gets blanks, where folding may be."""
    if len(word.encode()) <= _LONG_WORD:
        return word
    return " ".join(word[start : start + _PIECE] for start in range(0, len(word), _PIECE))


def _clean(text: str) -> str:
    return _CONTROLS.sub(" ", text).strip()


def _decoded(original: str) -> str:
    try:
        return decode_xtext(original)
    except SyntaxProblem:
        return original


def _header(entry: QueueEntry, message: Message) -> bytes:
    """Return the fields of a message, whole ones, as many as there is room for.

    Of a stranger's message only what its sender knows it by: no word of the stranger's may reach
    somebody who never sent it.
    """
    if not entry.trusted:
        identifier = _IDENTIFIER.fullmatch(message.headers.get("Message-ID"))
        return format_field("Message-ID", identifier[0]) if identifier else b""
    fields, size = list[bytes](), 0
    for field in message.headers.raw_all():
        size += len(field)
        if size > _HEADER:
            break
        fields.append(field)
    return b"".join(fields)
