"""A message parsed by the standard library, without exceptions and within limits."""

from __future__ import annotations

from email.errors import MessageDefect, MessageError
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import EmailPolicy
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

if TYPE_CHECKING:
    from collections.abc import Callable

_DEPTH_LIMIT: Final = 30  # levels of parts in one message
_FIELD_PARSED: Final = 16 * 1024  # characters
_MIME_FIELD_PARSED: Final = 1024

# Exceptions that `email` raises for hostile input, besides its own errors.
_PARSER_FAULTS: Final = (
    *(MessageError, ValueError, LookupError, TypeError, AttributeError),
    *(AssertionError, NameError, RecursionError),
)


def parse(open_message: Callable[[], BinaryIO]) -> EmailMessage:
    """Return the message that `open_message` returns a new reader of; this never raises.

    A field that is too long or malformed is read as plain text. If the parts cannot be parsed, or
    are nested too deeply, the body is one text and `defects` has an entry.
    """
    parser = BytesParser(policy=_POLICY)
    try:
        parsed = parser.parse(open_message())
    except _PARSER_FAULTS as fault:
        parsed = parser.parse(open_message(), headersonly=True)
        parsed.defects.append(MessageDefect(f"body not parsed: {fault}"))
    return cast("EmailMessage", parsed)  # made by the policy's message_factory


class _Part(EmailMessage):
    """A message or a part of one, with a limit for nested parts.

    The parser of the standard library tests each line against every level above it, so 300 levels
    make it 100 times slower.
    """

    depth = 0

    def attach(self, payload: Any) -> None:  # noqa: ANN401 - as in the standard library
        payload.depth = self.depth + 1
        if payload.depth > _DEPTH_LIMIT:
            raise ValueError("parts nested too deeply")
        super().attach(payload)


class _TolerantPolicy(EmailPolicy):
    """`email.policy.SMTP`, except that a field it cannot parse is read as plain text.

    Its parsers take quadratic time, which is seconds for a Content-Type of 16 KiB in each part.
    """

    def header_fetch_parse(self, name: str, value: str) -> Any:  # noqa: ANN401 - as in the standard library
        mime = name.lower().startswith("content-")
        if len(value) <= (_MIME_FIELD_PARSED if mime else _FIELD_PARSED):
            try:
                return super().header_fetch_parse(name, value)
            except _PARSER_FAULTS:
                pass
        octets = "".join(value.splitlines()).encode("utf-8", "surrogateescape")
        return octets.decode("utf-8", "replace")


_POLICY: Final = _TolerantPolicy(linesep="\r\n", message_factory=_Part)
