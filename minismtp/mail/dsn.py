"""Delivery status notifications (RFC 3461, 3464, 6522, 6533).

A notification is a message with an entry for the spool, like any other. Strangers cannot forge its
fields or parts by what they write into addresses, replies and messages: control characters are
removed, no line is longer than 998 octets, and the size of what is returned is limited. The message
of a stranger is not returned, because its sender may be forged. Every host accepts a notification,
because it is 7-bit and the returned message is converted, unless the sender's own mailbox needs
SMTPUTF8. Making a notification never raises.
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

# Octets up to which a failed message is returned whole, by what the sender said in RET. Of a larger
# one the header is returned (RFC 3461 section 4.3).
_WHOLE: Final = {"": 64 * 1024, "FULL": 1024 * 1024, "HDRS": 0}
_HEADER: Final = 64 * 1024  # octets of a header that are returned
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
            "Your message could not be delivered yet to the recipients below. You need not do"
            " anything:\nit will be tried again until {until}."
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
            "Your message was accepted and forwarded to the recipients behind the addresses below."
            "\nYou will be notified of failures only."
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class Report:
    """One recipient in a notification: the last reply, and the host that gave it, if any."""

    target: QueuedRecipient
    reply: str
    host: str = ""


def wanted(target: QueuedRecipient, action: Action) -> bool:
    """Return whether the sender wants to be notified (RFC 3461 section 4.1)."""
    wish = {"failed": "FAILURE", "delayed": "DELAY"}.get(action, "SUCCESS")
    return wish in target.notify or (not target.notify and wish != "SUCCESS")


def status(reply: str, action: Action) -> str:
    """Return the enhanced status code of a reply, or the most general one (RFC 3463)."""
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
    """Return the notification for a sender, ready for the spool, or None if none is to be sent.

    The null reverse-path gets none, so there is no bounce of a bounce (RFC 5321 section 6.1).
    """
    reports = [report for report in reports if wanted(report.target, action)]
    if not entry.sender or not reports:
        return None
    name = f"{secrets.token_hex(6)}.d"
    form = _Form(entry, message, action, reports, hostname, now, until)
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


@dataclass
class _Form:
    """One notification, filled in. `utf8` says that it has to be an internationalized one."""

    _entry: QueueEntry
    _message: Message
    _action: Action
    _reports: Sequence[Report]
    _hostname: str
    _now: float
    _until: float

    def __post_init__(self) -> None:
        local, _, domain = self._entry.sender.rpartition("@")
        # Only a local part that has no other form, as a host on the way back may lack SMTPUTF8.
        self.utf8 = not local.isascii()
        in_ascii = self._entry.sender.isascii() or self.utf8
        self._sender = self._entry.sender if in_ascii else f"{local}@{to_ascii(domain)}"
        whole = self._whole_message() if self._action == "failed" else b""
        self._whole = bool(whole) and self._is_transportable(whole)
        self._returned = whole if self._whole else _header(self._entry, self._message)

    def content(self, name: str) -> bytes:
        """Return the octets of the notification."""
        boundary = f"=_{secrets.token_hex(12)}"
        text, global_ = self._text(), "global-" if self.utf8 else ""
        parts = [
            self._part(f"text/plain; charset={'us-ascii' if text.isascii() else 'utf-8'}", text),
            self._part(f"message/{global_}delivery-status", self._status()),
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

    def _text(self) -> bytes:
        """Return the part for people."""
        title = _TITLES[self._action][1].format(until=date(self._until))
        lines = [
            f"This is the mail system at {_clean(self._hostname)}.",
            "",
            *title.split("\n"),
            "",
        ]
        for report in self._reports:
            lines.append(f"<{_clean(report.target.recipient)}>")
            if report.reply:
                who = f"{_clean(report.host)} said" if report.host else "reason"
                lines.append(f"    {who}: {_clean(report.reply)}")
            lines.append("")
        return "".join(f"{line}\r\n" for line in lines).encode("utf-8", "backslashreplace")

    def _status(self) -> bytes:
        """Return the part for programs: fields of the message and each recipient (RFC 3464 2)."""
        groups = [self._message_fields(), *map(self._recipient_fields, self._reports)]
        return b"\r\n".join(b"".join(group) for group in groups)

    def _message_fields(self) -> Iterator[bytes]:
        yield self._field("Reporting-MTA", f"dns; {self._hostname}")
        if self._entry.dsn_id:
            yield self._field("Original-Envelope-Id", self._entry.dsn_id)
        yield self._field("Arrival-Date", date(self._entry.arrived))

    def _recipient_fields(self, report: Report) -> Iterator[bytes]:
        target = report.target
        original = self._original(target.original)
        # A wrong address would be worse than no address, and RFC 3464 section 2.3.1 allows that.
        if original and len(original) <= _LONG_WORD:
            yield self._field("Original-Recipient", original)
        address = target.address if target.kind == "relay" else target.recipient
        yield self._field("Final-Recipient", self._final(address))
        yield self._field("Action", self._action)
        yield self._field("Status", status(report.reply, self._action))
        if report.host:
            yield self._field("Remote-MTA", f"dns; {report.host}")
        if report.reply:
            # RFC 3464 section 2.3.6: "smtp" is for the reply of a host.
            kind = "smtp" if report.host else "X-minismtp"
            yield self._field("Diagnostic-Code", f"{kind}; {report.reply}")
        yield self._field("Last-Attempt-Date", date(self._now))
        if self._action == "delayed":
            yield self._field("Will-Retry-Until", date(self._until))

    def _original(self, original: str) -> str:
        """Return the address of ORCPT, in ASCII where it has to be (RFC 6533 section 3)."""
        kind, _, address = original.partition(";")
        if kind.lower() != "utf-8":
            return f"{kind}; {_decoded(address)}" if address else ""
        if not self.utf8:
            address = _WIDE.sub(lambda match: f"\\x{{{ord(match[0]):02X}}}", address)
        return f"{kind}; {address}"

    def _final(self, address: str) -> str:
        """Return an address with its type, in ASCII if the notification is (RFC 6533)."""
        if self.utf8 and not address.isascii():
            return f"utf-8; {address}"
        local, _, domain = address.rpartition("@")
        if local.isascii():
            return f"rfc822; {local}@{to_ascii(domain)}"
        return f"utf-8; {encode_utf8_address(local)}@{to_ascii(domain)}"

    def _field(self, name: str, value: str) -> bytes:
        charset = "utf-8" if self.utf8 else "ascii"
        text = _clean(value).encode(charset, "backslashreplace").decode(charset)
        return format_field(name, " ".join(map(_foldable, text.split(" "))))

    def _whole_message(self) -> bytes:
        """Return the message as every host accepts it, or nothing if it may not be returned."""
        message, most = self._message, _WHOLE.get(self._entry.dsn_return, 0)
        if not self._entry.trusted or message.size > most:
            return b""
        with message.open() as reader:
            whole = reader.read()
        if self._is_transportable(whole):
            return whole
        try:
            made = converted(message, eight_bit=self.utf8, binary=True, ascii_fields=not self.utf8)
        except OSError:  # there is no space for it
            return b""
        with made.open() as reader:
            return reader.read()

    def _is_transportable(self, content: bytes) -> bool:
        """Return whether every host accepts content; one with SMTPUTF8 has 8BITMIME too."""
        return (content.isascii() or self.utf8) and _LINES.fullmatch(content) is not None

    def _part(self, kind: str, content: bytes) -> bytes:
        """Return a part. RFC 6522 section 4 allows quoted-printable for broken headers."""
        encoding = b"" if content.isascii() else b"Content-Transfer-Encoding: 8bit\r\n"
        if not self._is_transportable(content):
            encoding = b"Content-Transfer-Encoding: quoted-printable\r\n"
            content = b"\r\n".join(map(quoted_printable, content.split(b"\r\n")))
        return b"Content-Type: %s\r\n%s\r\n%s" % (kind.encode(), encoding, content)


def _foldable(word: str) -> str:
    """Return a word that fits into a line; a longer one gets blanks, at which it may be folded."""
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
    """Return the first fields of a message, as many whole ones as there is room for.

    Of a stranger's message, return only the Message-ID, by which its sender knows it. No other word
    of a stranger may reach an address whose owner did not send the message.
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
