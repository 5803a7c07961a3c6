"""The few operations of LDAP that a login needs, over a connection with a deadline (RFC 4511).

ldap3 has time-outs for each read only, and TLS settings of its own: so it speaks, and the
connection is ours.
"""

import re
import ssl
from dataclasses import dataclass

from ldap3 import NONE, SIMPLE, SUBTREE, Connection, Server
from ldap3.core.exceptions import LDAPExceptionError
from ldap3.operation.search import parse_filter
from ldap3.utils.dn import parse_dn

from minismtp import Line, RemoteError

SUCCESS = 0
AMBIGUOUS = 4  # sizeLimitExceeded
REFUSALS = frozenset(
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
#: What ldap3 raises for an answer that is none, beside its own errors: fuzzing has met them all.
FAULTS = (
    *(LDAPExceptionError, LookupError, ValueError, TypeError, AttributeError),
    *(MemoryError, RecursionError),
)
_START_TLS = "1.3.6.1.4.1.1466.20037"
_NO_ATTRIBUTES = "1.1"
_MOST = 1024 * 1024  # octets that a directory may answer with
_SPECIAL = re.compile(rb"[^A-Za-z0-9]")


def escaped(text: str) -> str:
    """Escape a value for a DN (RFC 4514 section 2.4) and a filter (RFC 4515 section 3) alike.

    Both allow any octet as a backslash with two digits: nothing is left to be special.
    """
    return _SPECIAL.sub(lambda match: b"\\%02x" % ord(match[0]), text.encode()).decode()


def check_dn(option: str, text: str) -> None:
    """Raise ValueError for the option when its text is no DN."""
    try:
        if text:
            parse_dn(text)
    except LDAPExceptionError as error:
        raise ValueError(f"{option}: expected a distinguished name: {error}") from error


def check_filter(text: str) -> None:
    """Raise ValueError for the option `filter` when it is none."""
    try:
        parse_filter(text, None, False, False, None, False)  # type: ignore[no-untyped-call]
    except LDAPExceptionError as error:
        raise ValueError(f"filter: expected a search filter: {error}") from error


@dataclass(frozen=True, slots=True)
class Entry:
    """A user's entry, and what the user is called."""

    dn: str
    name: str


class Conversation:
    """Operations one after the other; each gives the result code of RFC 4511 section 4.1.9."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._ldap = Connection(
            Server("ldap://unused", get_info=NONE),
            authentication=SIMPLE,
            user="unused",
            password="unused",  # noqa: S106 - the real ones come with `bind`
            auto_referrals=False,
            auto_escape=False,
            check_names=False,
        )
        # What `open` of ldap3 does with a socket of its own.
        self._ldap.socket = _Socket(line)
        self._ldap.strategy._outstanding = {}  # noqa: SLF001
        self._ldap.closed = False
        self._ldap.listening = True

    def start_tls(self, context: ssl.SSLContext, host: str) -> int:
        """Continue inside TLS where the directory agrees (RFC 4511 section 4.14)."""
        self._ldap.extended(_START_TLS)
        code = self._code()
        if code == SUCCESS:
            self._line.secure(context, host)
        return code

    def bind(self, dn: str, password: bytes) -> int:
        """Log in; a password of no octets would be the login of nobody, and succeed."""
        if not dn or not password:
            raise ValueError("a bind without a name or a password proves nothing")
        self._ldap.user = dn
        self._ldap.password = password  # octets: else ldap3 prepares it, and may refuse to
        self._ldap.bind()
        return self._code()

    def search(self, base: str, query: str, identity: str, user: str) -> tuple[int, list[Entry]]:
        """Return the first two entries; a user's name is the attribute `identity`, else `user`."""
        attributes = [identity or _NO_ATTRIBUTES]
        self._ldap.search(base, query, SUBTREE, attributes=attributes, size_limit=2)
        found = []
        for each in self._ldap.response or []:
            if each["type"] == "searchResEntry":
                values = {name.lower(): value for name, value in each["raw_attributes"].items()}
                name = [value.decode() for value in values.get(identity.lower(), [])]
                found.append(Entry(each["dn"], name[0] if name else user))
        return self._code(), found

    def _code(self) -> int:
        return int(self._ldap.result["result"])


class _Socket:
    """All that ldap3 wants of a socket; who opened the line closes it."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._left = _MOST

    def sendall(self, data: bytes) -> None:
        self._line.send(data)

    def recv(self, size: int) -> bytes:
        data = self._line.receive(size)
        if not data:
            raise RemoteError("the directory hung up in the middle")
        self._left -= len(data)
        if self._left < 0:
            raise RemoteError(f"the directory answers with more than {_MOST} octets")
        return data

    def shutdown(self, how: int) -> None:
        """Leave it open."""

    def close(self) -> None:
        """Leave it open."""
