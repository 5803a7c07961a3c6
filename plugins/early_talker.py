"""Notice peers that talk before they are greeted: mail servers wait, many bots do not."""

from dataclasses import field
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from minismtp import (
    Finding,
    Reject,
    ServerInfo,
    Session,
    StashKey,
    findings_of,
    hookimpl,
    plugin,
)

from ._dns import address_to_check, local_networks
from ._options import check_time

#: The key under which a peer will be remembered, once it goes on.
_WAITED: Final[StashKey[str]] = StashKey()


@plugin
class EarlyTalker:
    """Have strangers wait `delay` for the greeting, and refuse who cannot (RFC 5321 section 3.1).

    Who talks in the meantime is refused at once with 554; with `points`, it is a finding of the
    session instead, for the plugin `score`. Who has waited, and then gone on, is greeted without
    delay for the time `remember`, by all workers and with `[state] url` all hosts; "0s" has each
    session wait. Peers of `networks`, by default loopback, private and link-local ones, neither
    wait nor are listened to; yours take the place of the default. It belongs before the plugins
    that ask others about a peer, on listeners for mail from other servers: nothing here knows who
    will log in. The `greet_delay` of a listener is for everybody and needs no plugin.
    """

    delay: timedelta = timedelta(seconds=5)
    remember: timedelta = timedelta(days=7)
    points: float | None = None
    networks: list[IPv4Network | IPv6Network] = field(default_factory=local_networks)

    def __post_init__(self) -> None:
        check_time("delay", self.delay)

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Know where to look who has waited."""
        self._state = server.state

    @hookimpl
    def on_connect(self, session: Session) -> None:
        """Let a peer wait, and refuse one that talks."""
        address = address_to_check(session, self.networks)
        if address is None:
            return
        key = f"waited {address}"
        known = bool(self.remember) and self._state.get(key) is not None
        if session.speaks_within(0 if known else self.delay.total_seconds()):
            if self.points is None:
                raise Reject("you talk before the greeting")
            text = "talked before the greeting"
            findings_of(session).append(Finding("early_talker", "early", self.points, text))
        elif self.remember and not known:
            session.stash[_WAITED] = key

    @hookimpl
    def on_helo(self, session: Session) -> None:
        """Remember who has waited, now that it goes on."""
        if _WAITED in session.stash:
            self._state.put(session.stash[_WAITED], "", self.remember)
            del session.stash[_WAITED]
