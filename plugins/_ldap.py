"""The operations of LDAP that a login needs, over a connection with a deadline (RFC 4511)."""

import ssl
from dataclasses import dataclass
from typing import Final

from minismtp import Line

from . import _ldap_ber as ber

SUCCESS: Final = 0
AMBIGUOUS: Final = 4  # sizeLimitExceeded
REFUSALS: Final = frozenset(
    {
        19,  # constraintViolation: locked after too many tries
        32,  # noSuchObject
        34,  # invalidDNSyntax
        48,  # inappropriateAuthentication: an entry without a password
        49,  # invalidCredentials
        50,  # insufficientAccessRights
        53,  # unwillingToPerform: an account that is switched off
    }
)
_MOST: Final = 1024 * 1024  # octets that a directory may answer one login with
_ENTRIES: Final = 2  # enough to see that a search is ambiguous
_START_TLS: Final = b"1.3.6.1.4.1.1466.20037"
_NO_ATTRIBUTES: Final = "1.1"
_VERSION: Final = 3
_SUBTREE: Final = 2
_DEREFERENCE_ALWAYS: Final = 3
_FALSE: Final = b"\x01\x01\x00"
# The tags of RFC 4511 section 4.
_BIND, _BOUND, _SIMPLE = 0x60, 0x61, 0x80
_SEARCH, _ENTRY, _DONE, _REFERENCE = 0x63, 0x64, 0x65, 0x73
_EXTENDED, _EXTENDED_DONE, _REQUEST_NAME = 0x77, 0x78, 0x80
_INTERMEDIATE: Final = 0x79


@dataclass(frozen=True, slots=True)
class Entry:
    """A user's entry, and the user's name after the login."""

    dn: str
    name: str


class Conversation:
    """Operations one after the other; each returns the result code of RFC 4511 section 4.1.9.

    All raise RemoteError for a connection that fails, and ValueError for a malformed answer.
    """

    def __init__(self, line: Line) -> None:
        self._line = line
        self._number = 0
        self._left = _MOST

    def start_tls(self, context: ssl.SSLContext, host: str) -> int:
        """Continue inside TLS if the directory agrees (RFC 4511 section 4.14)."""
        self._send(_EXTENDED, ber.encode(_REQUEST_NAME, _START_TLS))
        code = self._result(_EXTENDED_DONE)
        if code == SUCCESS:
            self._line.secure(context, host)
        return code

    def bind(self, dn: str, password: bytes) -> int:
        """Log in. Raise ValueError for an empty name or password, which any directory takes."""
        if not dn or not password:
            raise ValueError("a bind without a name or a password proves nothing")
        name = ber.encode(ber.OCTETS, dn.encode())
        self._send(_BIND, ber.encode_number(_VERSION), name, ber.encode(_SIMPLE, password))
        return self._result(_BOUND)

    def search(self, base: str, query: str, identity: str, user: str) -> tuple[int, list[Entry]]:
        """Return the first two entries; a user's name is the attribute `identity`, else `user`."""
        self._send(
            _SEARCH,
            ber.encode(ber.OCTETS, base.encode()),
            ber.encode_number(_SUBTREE, ber.ENUMERATED),
            ber.encode_number(_DEREFERENCE_ALWAYS, ber.ENUMERATED),
            ber.encode_number(_ENTRIES),
            ber.encode_number(0),  # the directory's own time limit: ours is the connection's
            _FALSE,  # attributes with their values
            ber.encoded_filter(query),
            ber.encode(ber.SEQUENCE, ber.encode(ber.OCTETS, (identity or _NO_ATTRIBUTES).encode())),
        )
        found: list[Entry] = []
        while True:
            tag, answer = self._answer()
            if tag == _DONE:
                return ber.number(answer.take(ber.ENUMERATED)), found
            if tag == _ENTRY:
                entry = _entry(answer, identity.lower().encode(), user)
                found = [*found, entry][:_ENTRIES]
            elif tag not in (_REFERENCE, _INTERMEDIATE):
                raise ValueError(f"expected a result of the search, got tag {tag:#x}")

    def _send(self, tag: int, *parts: bytes) -> None:
        self._number += 1
        self._line.send(
            ber.encode(ber.SEQUENCE, ber.encode_number(self._number), ber.encode(tag, *parts))
        )

    def _result(self, expected: int) -> int:
        tag, answer = self._answer()
        if tag != expected:
            raise ValueError(f"expected an answer with tag {expected:#x}, got {tag:#x}")
        return ber.number(answer.take(ber.ENUMERATED))

    def _answer(self) -> tuple[int, ber.Elements]:
        """Return the next answer's tag and content, without parts that other versions may add."""
        tag, content = ber.read(self._line.read, self._left)
        self._left -= len(content)
        if tag != ber.SEQUENCE:
            raise ValueError(f"expected a message, got tag {tag:#x}")
        message = ber.Elements(content)
        answered = ber.number(message.take(ber.INTEGER))
        if answered != self._number:  # or 0: the directory ends the connection, section 4.4.1
            raise ValueError(f"expected an answer to message {self._number}, got {answered}")
        tag, content = message.next()
        return tag, ber.Elements(content)


def _entry(answer: ber.Elements, identity: bytes, user: str) -> Entry:
    """Read SearchResultEntry (RFC 4511 section 4.5.2)."""
    dn = answer.take(ber.OCTETS).decode()
    attributes = ber.Elements(answer.take(ber.SEQUENCE))
    while attributes:
        attribute = ber.Elements(attributes.take(ber.SEQUENCE))
        name, values = attribute.take(ber.OCTETS), ber.Elements(attribute.take(ber.SET))
        if name.lower() == identity and values:
            return Entry(dn, values.take(ber.OCTETS).decode())
    return Entry(dn, user)
