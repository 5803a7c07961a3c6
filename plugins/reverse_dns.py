"""Look up the name of a client in the DNS, and check that it has the client's address (FCrDNS).

It is looked up once in a session, when the first plugin needs it. A confirmed host name also goes
into the Received field, as in Postfix.
"""

import contextlib
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import ip_address
from typing import Literal

from minismtp import (
    AuthResult,
    Envelope,
    Resolver,
    Session,
    StashKey,
    UnansweredError,
    hookimpl,
    plugin,
    results_of,
)

from ._checks import ClientCheck, DnsCheck, act, note
from ._dns import DnsBudget, IpAddress, Questions, budget_of, unmapped
from ._options import check_points

_NAMES = 10  # names of an address that are tried
LOCALHOST = "localhost"
_POINTS = {"missing": 2.0, "unconfirmed": 1.0}
_SAID = {
    "missing": "has no name in the DNS",
    "unconfirmed": "is not an address of the name that the DNS has for it",
}


@dataclass(frozen=True, slots=True)
class ClientName:
    """The name of a client in the DNS, or ""; `confirmed` if the name has its address."""

    name: str
    confirmed: bool

    @property
    def result(self) -> str:
        """The result of iprev (RFC 8601 section 2.7.3)."""
        if self.confirmed:
            return "pass"
        return "fail" if self.name else "permerror"


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


@plugin
class ReverseDns(ClientCheck, DnsCheck):
    """Look up the name of the client's address at MAIL, and the addresses of that name.

    `missing` is for an address without a name, `unconfirmed` for a name without the address:
    "reject" refuses with 550 5.7.25, "defer" with 451 4.7.25 (RFC 7372), "tag" makes a finding with
    its `points`. Many honest hosts have no name or a wrong one. If the DNS does not answer within
    `patience`, mail passes if both actions are "tag". Otherwise it is a failure of this plugin, for
    `on_error`.

    The name is under `CLIENT_NAME` in the session's stash, and `results_of(envelope)` has iprev
    (RFC 8601 section 2.7.3). Sessions with a login are not checked, nor are clients in `networks`:
    by default loopback, private and link-local addresses, which your list replaces.
    """

    missing: Literal["reject", "defer", "tag"] = "tag"
    unconfirmed: Literal["reject", "defer", "tag"] = "tag"
    points: dict[str, float] = field(default_factory=_POINTS.copy)
    patience: timedelta = timedelta(seconds=5)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_points(self.points, _POINTS)

    @hookimpl
    def on_mail(self, session: Session, envelope: Envelope) -> None:
        """Look up the client once in a session, and take the action."""
        address = self.address_of(session)
        if address is None:
            return
        client = None
        try:
            client = look_up(session, self._resolver, self.patience, budget_of(envelope))
        except UnansweredError:
            if {self.missing, self.unconfirmed} != {"tag"}:
                raise
        finally:
            result = client.result if client else "temperror"
            found = AuthResult("iprev", result, "", {"policy.iprev": str(address)})
            results_of(envelope).append(found)
        if client is None or client.confirmed:
            return
        problem = "unconfirmed" if client.name else "missing"
        text = f"{address} {_SAID[problem]}"
        note(envelope, "reverse_dns", problem, self.points.get(problem, 0.0), text)
        act(getattr(self, problem), text, "7.25")
