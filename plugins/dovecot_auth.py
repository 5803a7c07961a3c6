"""Let Dovecot check the passwords of users."""

import base64
import re
import secrets
from datetime import timedelta

from minismtp import (
    Credentials,
    Defer,
    Line,
    Remote,
    RemoteError,
    Session,
    SocketAddress,
    hookimpl,
    plugin,
)

from ._login import may_be_asked
from ._options import check_time
from ._user_names import spellings_of

_MAJOR = "1"  # version of the protocol
_LINES = 1000  # of a greeting
_ESCAPED = re.compile("\1(.)", re.DOTALL)
_ESCAPES = {"0": "\0", "1": "\1", "t": "\t", "r": "\r", "n": "\n", "l": "\n"}


@plugin
class DovecotAuth:
    """Authenticate users by Dovecot's authentication service, so that both have the same users.

    `address` is that of an auth socket (`service auth` with a `unix_listener` or `inet_listener` in
    Dovecot): `unix:/run/dovecot/auth-client`, or host:port, which is not encrypted and so belongs
    on loopback. Dovecot gets the client's address, so `allow_nets` works, and learns whether TLS is
    used. It decides who may act as another user (master users), and returns the user's name after
    the login. Each login has a connection of its own, limited by `patience`. While Dovecot or its
    database is down, the client gets 454 and keeps its password.

    Dovecot expects names in lower case unless `auth_username_format` says otherwise. With
    `ignore_case` a refused login is tried again with the name in lower case and ordinary width, if
    that differs, and with the password in the normal form of RFC 8265, if that differs.
    """

    address: SocketAddress
    patience: timedelta = timedelta(seconds=10)
    ignore_case: bool = True

    def __post_init__(self) -> None:
        check_time("patience", self.patience)
        self._service = Remote(self.address, timeout=self.patience)

    @hookimpl
    def authenticate(self, session: Session, credentials: Credentials) -> str | None:
        """Return Dovecot's name for the user; None if it refuses the login."""
        if not may_be_asked(credentials):
            return None
        spellings = spellings_of(credentials, ignore_case=self.ignore_case)
        return next(filter(None, (self._ask(session, each) for each in spellings)), None)

    def _ask(self, session: Session, credentials: Credentials) -> str | None:
        with self._service.connect() as line:
            number = _greet(line)
            line.send(f"AUTH\t{number}\t{_request(session, credentials)}\n".encode())
            verdict, *fields = _read(line)
        name = _value(fields, "user=")
        match verdict, fields[:1]:
            case "OK", [same] if same == str(number) and name:
                return name
            case "FAIL", [same] if same == str(number):
                # Older versions say `temp`, newer ones have a code for it.
                if "temp" in fields or "code=temp_fail" in fields:
                    raise Defer("Dovecot cannot tell now", enhanced="4.7.0")
                return None
        raise RemoteError(f"{self.address} answers no login")


def _greet(line: Line) -> int:
    """Exchange greetings; return the number for the connection and its request."""
    # Dovecot closes a connection whose number another one has, and a process has many.
    number = 1 + secrets.randbelow(2**31 - 1)
    line.send(f"VERSION\t{_MAJOR}\t1\nCPID\t{number}\n".encode())
    version = _read(line)
    if version[:2] != ["VERSION", _MAJOR]:
        raise RemoteError(f"no Dovecot of version {_MAJOR} greets, but {version[:2]}")
    mechanisms = []
    for _ in range(_LINES):
        match _read(line):
            case ["MECH", mechanism, *_]:
                mechanisms.append(mechanism)
            case ["DONE", *_] if "PLAIN" in mechanisms:
                return number
            case ["DONE", *_]:
                raise RemoteError("Dovecot does not offer PLAIN")
    raise RemoteError("Dovecot's greeting has no end")


def _request(session: Session, credentials: Credentials) -> str:
    texts = (credentials.authorization, credentials.username, credentials.password)
    # no-penalty: addresses already wait here, and Dovecot's wait would look like a dead service.
    parts = ["PLAIN", "service=smtp", "nologin", "no-penalty"]
    if session.tls is not None or session.peer == "unix":
        parts.append("secured")
    if session.peer != "unix":
        parts.append(f"rip={session.peer}")
    if session.local and session.local != "unix":
        parts.append(f"lip={session.local}")
    # The response comes last, because Dovecot reads everything after it as a part of it.
    parts.append("resp=" + base64.b64encode("\0".join(texts).encode()).decode())
    return "\t".join(parts)


def _read(line: Line) -> list[str]:
    return line.read_until(b"\n").decode("utf-8", "replace").split("\t")


def _value(fields: list[str], name: str) -> str:
    """Return the value of a parameter without escapes."""
    value = next((each for each in fields if each.startswith(name)), name).removeprefix(name)
    return _ESCAPED.sub(lambda match: _ESCAPES.get(match[1], match[1]), value)
