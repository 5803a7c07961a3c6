"""The name of a client in the DNS, and whether that name has its address (FCrDNS).

It is looked up once in a session, when the first plugin needs it. A confirmed host name also goes
into the Received field, as in Postfix.
"""

import contextlib
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address

from minismtp import Resolver, Session, StashKey, UnansweredError

from ._dns import DnsBudget, IpAddress, Questions, unmapped

_NAMES = 10  # names of an address that are tried
LOCALHOST = "localhost"


@dataclass(frozen=True, slots=True)
class ClientName:
    """The name of a client in the DNS, or ""; `confirmed` if the name has its address."""

    name: str
    confirmed: bool


#: On a session whose client was looked up.
CLIENT_NAME: StashKey[ClientName] = StashKey()
_UNANSWERED: StashKey[bool] = StashKey()


def look_up(
    session: Session, resolver: Resolver, patience: timedelta, budget: DnsBudget | None = None
) -> ClientName:
    """Return the name of a client with an IP address. Raise UnansweredError."""
    if CLIENT_NAME not in session.stash:
        questions = Questions(resolver, patience, budget)
        found = _asked(unmapped(ip_address(session.peer)), questions)
        session.stash[CLIENT_NAME] = found
        if found.confirmed and _is_host(found.name):
            session.name = session.name or found.name
    return session.stash[CLIENT_NAME]


def confirmed_name(session: Session, resolver: Resolver, patience: timedelta) -> str:
    """Return the client's confirmed name, "" if there is no such name or no answer.

    A front end may have sent it by XCLIENT. Loopback and a unix socket are this machine.
    """
    if session.name:
        return session.name
    if session.peer == "unix" or unmapped(ip_address(session.peer)).is_loopback:
        return LOCALHOST
    if not session.stash.get(_UNANSWERED, default=False):
        with contextlib.suppress(UnansweredError):
            look_up(session, resolver, patience)
            return session.name
    session.stash[_UNANSWERED] = True  # so the next plugin does not wait again
    return ""


def _asked(address: IpAddress, questions: Questions) -> ClientName:
    """Return the first name that has the address, else the first. Raise UnansweredError."""
    names = questions.ask(address.reverse_pointer, "PTR")[:_NAMES]
    problem: UnansweredError | None = None
    for name in names:
        try:
            if address in questions.addresses(name, type(address)):
                return ClientName(name.lower(), confirmed=True)
        except UnansweredError as error:  # another name may do
            problem = error
    if problem is not None:
        raise problem
    return ClientName(names[0].lower() if names else "", confirmed=False)


def _is_host(name: str) -> bool:
    """Return whether a name can only be read as a host name."""
    labels = name.split(".")
    words = (label.replace("-", "").replace("_", "") for label in labels)
    if not name.isascii() or not all(map(str.isalnum, words)) or name.startswith("-"):
        return False
    return not all(map(str.isdigit, labels))
