"""The header of an incoming message, put into a form that every reader reads alike.

Real senders forget the empty line that ends a header, send text without any header, or put the
`From ` line of an mbox above it. Readers differ in where such a header ends, so a filter might not
see what the user's mail program shows. This module decides it once, for DATA and BDAT, as smtpd and
cleanup of Postfix do. So filters, mailboxes and the queue get the same header.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from minismtp.mail.headers import fields_end

if TYPE_CHECKING:
    from minismtp.mail.content import Content

#: The fields that only final delivery may write (RFC 5321 section 4.4).
RETURN_PATH: Final = frozenset({"return-path"})

_HEAD: Final = 65536  # octets in which the end of the header section is searched first
_DECIDED: Final = 4096  # octets of a line that suffice to see whether it is a field
_EMPTY_LINE: Final = re.compile(rb"\r?\n")
_MAILBOX_LINES: Final = re.compile(rb"(?:>{0,1000}+From [^\n]*+(?:\n|\Z))*+")
_MAILBOX_LINE: Final = re.compile(rb"(?m)^(?=>*+From )")
_BLANKS_BEFORE_COLON: Final = re.compile(rb"\n([!-9;-~]++)[ \t]++:")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_TOP: Final = (_BYTE_ORDER_MARK, b"From ", b">")  # begins of content whose fields may begin later


def clean(
    content: Content, limit: int, dropped: frozenset[str] = RETURN_PATH
) -> tuple[bytes, Content] | None:
    """Return the header section, with the empty line that ends it, and the content that has it.

    An empty line is inserted before the first line that is not a field, and before a first line
    that begins with white space. `From ` and `>From ` lines on top become X-Mailbox-Line fields.
    Removed are blanks before a colon, a byte order mark before the first field, and the fields
    whose names (in lower case) are in `dropped`. Content without any of these is returned as it is.
    Return None if the section is longer than `limit` octets.
    """
    for size in (_HEAD, limit) if limit > _HEAD else (limit,):
        head = content.head(size + _DECIDED)
        begin, end = _bounds(head) if head.startswith(_TOP) else (0, fields_end(head))
        is_ended = head.startswith(b"\r\n", end)
        if is_ended and end + 2 > limit:
            return None
        if end <= size:  # so `head` has enough of the line that ends the section
            fields, unwanted = b"\n" + head[begin:end], _fields_called(dropped)
            usual = is_ended and end and not begin
            if usual and not _BLANKS_BEFORE_COLON.search(fields) and not unwanted.search(fields):
                return head[: end + 2], content
            fields = unwanted.sub(b"\n", _BLANKS_BEFORE_COLON.sub(rb"\n\1:", fields))[1:]
            return _settled(content, head[:begin], fields, head, end)
    return None


def _bounds(head: bytes) -> tuple[int, int]:
    """Return where the fields begin, after the lines of an mbox, and where they end."""
    start = len(_BYTE_ORDER_MARK) if head.startswith(_BYTE_ORDER_MARK) else 0
    found = _MAILBOX_LINES.match(head, start)
    begin = found.end() if found else start
    end = fields_end(head, begin)
    if end > begin:
        return begin, end
    if begin == len(_BYTE_ORDER_MARK) == start:
        return 0, 0  # the mark belongs to the text, which is the body
    return begin, begin


def _settled(
    content: Content, top: bytes, fields: bytes, head: bytes, end: int
) -> tuple[bytes, Content]:
    """Return `top` as fields, the fields, and an empty line, and the content that has them."""
    lines = _MAILBOX_LINE.sub(b"X-Mailbox-Line: ", top.removeprefix(_BYTE_ORDER_MARK))
    empty_line = _EMPTY_LINE.match(head, end)
    if empty_line:
        ending, end = empty_line[0], empty_line.end()
    else:
        ending = b"" if end == content.size else b"\r\n"
    section = lines + fields + ending
    if section == head[:end]:
        return section, content
    return section, content.behind(section, end)


@lru_cache(64)
def _fields_called(names: frozenset[str]) -> re.Pattern[bytes]:
    """Return a pattern for a line end, and consecutive fields of these names after it."""
    either = "|".join(map(re.escape, sorted(names))) or r"(?!)"
    field = rf"(?:{either}):[^\n]*+(?:\n[ \t][^\n]*+)*+\n?+"
    return re.compile(rf"(?i)\n(?:{field})++".encode())


_fields_called(RETURN_PATH)  # before the fork, because each process would take 0.2 MB to compile it
