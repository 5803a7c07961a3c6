"""Detect peers that talk before the greeting: mail servers wait for it, many bots do not."""

from datetime import timedelta
from typing import Final

from minismtp import (
    Finding,
    Reject,
    Session,
    StashKey,
    findings_of,
    hookimpl,
    plugin,
)

from ._checks import ClientCheck
from ._options import check_time

#: The key under which a peer is remembered once it continues.
_WAITED: Final[StashKey[str]] = StashKey()


@plugin
class EarlyTalker(ClientCheck):
    """Delay the greeting for strangers, and refuse peers that do not wait (RFC 5321 section 3.1).

    A peer that talks during `delay` is refused at once with 554; with `points` this is a finding of
    the session instead, for the plugin `score`. A peer that waited and then continued is greeted
    without delay for the time `remember`, by all workers, and with `[state] url` by all hosts; "0s"
    delays each session. Peers in `networks`, by default loopback, private and link-local addresses,
    which your list replaces, do not wait. Put it before plugins that ask services about a peer, on
    listeners for mail from other servers, because it cannot know who will log in. The `greet_delay`
    of a listener is for all peers and needs no plugin.
    """

    delay: timedelta = timedelta(seconds=5)
    remember: timedelta = timedelta(days=7)
    points: float | None = None

    def __post_init__(self) -> None:
        check_time("delay", self.delay)

    @hookimpl
    def on_connect(self, session: Session) -> None:
        """Delay the greeting, and refuse a peer that talks."""
        address = self.address_of(session)
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
        """Remember a peer that waited, because it continues."""
        if _WAITED in session.stash:
            self._state.put(session.stash[_WAITED], "", self.remember)
            del session.stash[_WAITED]
