"""The states of an SMTP session, and what moves it from one to the next."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final


class SessionState(Enum):
    """Where a session stands between two events."""

    CONNECTED = auto()  # no banner yet
    UNWELCOME = auto()  # 554 banner: only QUIT is left (RFC 5321 section 3.1)
    START = auto()  # banner sent, no greeting yet
    READY = auto()  # greeted, no transaction
    MAIL = auto()  # reverse-path taken
    REFUSED = auto()  # recipients tried, none taken
    RCPT = auto()  # at least one recipient taken
    DATA = auto()  # 354 sent, dot-stuffed content follows
    CHUNKS = auto()  # at least one chunk taken, more to come
    AUTH = auto()  # a challenge sent, a response follows
    TLS = auto()  # 220 sent, a handshake follows
    CLOSED = auto()  # nothing follows

    __hash__ = object.__hash__  # Enum's own is a Python function, and each event asks two tables


# In Python 3.11 access to a member of an Enum costs 0.05 us, and each message needs these about
# forty times.
CLOSED: Final = SessionState.CLOSED
TLS: Final = SessionState.TLS
START: Final = SessionState.START
AUTH: Final = SessionState.AUTH
DATA: Final = SessionState.DATA

_GREETED: Final = (
    SessionState.READY,
    SessionState.MAIL,
    SessionState.REFUSED,
    SessionState.RCPT,
    SessionState.CHUNKS,
)
_OPEN: Final = (SessionState.START, *_GREETED)
_CHUNKED: Final = (SessionState.RCPT, SessionState.CHUNKS)

#: (state, verb, class of the reply) -> next state. A class without a row leaves the state as it is,
#: if the verb has a row in that state at all. 421 closes in every state.
TRANSITIONS: Final[dict[tuple[SessionState, str, int], SessionState]] = {
    (SessionState.CONNECTED, "CONNECT", 2): SessionState.START,
    (SessionState.CONNECTED, "CONNECT", 5): SessionState.UNWELCOME,
    (SessionState.UNWELCOME, "QUIT", 2): SessionState.CLOSED,
    **{
        (s, greeting, 2): SessionState.READY for s in _OPEN for greeting in ("EHLO", "HELO", "LHLO")
    },
    **{(s, "RSET", 2): SessionState.READY for s in _GREETED},
    (SessionState.START, "RSET", 2): SessionState.START,
    **{(s, "QUIT", 2): SessionState.CLOSED for s in _OPEN},
    **{(s, v, 2): s for s in _OPEN for v in ("NOOP", "HELP", "VRFY", "EXPN", "OTHER")},
    (SessionState.READY, "STARTTLS", 2): SessionState.TLS,
    (SessionState.READY, "AUTH", 3): SessionState.AUTH,
    (SessionState.READY, "AUTH", 2): SessionState.READY,
    (SessionState.AUTH, "RESPONSE", 3): SessionState.AUTH,
    **{(SessionState.AUTH, "RESPONSE", c): SessionState.READY for c in (2, 4, 5)},
    (SessionState.READY, "XCLIENT", 2): SessionState.START,
    (SessionState.START, "XCLIENT", 2): SessionState.START,
    (SessionState.READY, "MAIL", 2): SessionState.MAIL,
    (SessionState.MAIL, "RCPT", 2): SessionState.RCPT,
    **{(SessionState.MAIL, "RCPT", c): SessionState.REFUSED for c in (4, 5)},
    (SessionState.REFUSED, "RCPT", 2): SessionState.RCPT,
    (SessionState.RCPT, "RCPT", 2): SessionState.RCPT,
    (SessionState.RCPT, "DATA", 3): SessionState.DATA,
    **{(SessionState.DATA, "CONTENT", c): SessionState.READY for c in (2, 4, 5)},
    **{(s, "BDAT", 2): SessionState.CHUNKS for s in _CHUNKED},
    **{(s, "BDAT", c): SessionState.READY for s in _CHUNKED for c in (4, 5)},
    **{(s, "LAST", c): SessionState.READY for s in _CHUNKED for c in (2, 4, 5)},
}

#: The same by state, verb and class, so that a verb out of sequence is a missing key. The keys are
#: not tuples, because `get` of a tuple takes 30 us on a free-threaded Python 3.13.
NEXT_STATES: Final[dict[SessionState, dict[str, dict[int, SessionState]]]] = {
    state: {} for state in SessionState
}
for (_state, _verb, _category), _next in TRANSITIONS.items():
    NEXT_STATES[_state].setdefault(_verb, {})[_category] = _next
