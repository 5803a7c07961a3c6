"""A cache of SPF outcomes, so a client that sends ten messages is checked once."""

from minismtp import BoundedCache

from ._dns import IpAddress
from ._spf import Outcome, evaluate
from ._spf_sender import Ask, Sender

_OCTETS = 2 * 1024 * 1024
_SECONDS = 60.0  # so a changed record counts after a minute
_VARIANTS = 8  # of one domain and address, for records that depend on the local part or HELO
_UNKEPT = frozenset("t")  # the time


class Outcomes:
    """Checks senders and keeps the outcomes; threads may share it."""

    def __init__(self) -> None:
        self._known: BoundedCache[
            tuple[IpAddress, str], tuple[tuple[dict[str, str], Outcome], ...]
        ] = BoundedCache(_OCTETS)

    def check_host(self, sender: Sender, ask: Ask) -> Outcome:
        """Return the outcome for a sender, from the cache or from a new check.

        A check depends on the address, the domain, and the values of the macros that it evaluated.
        With the same values it would evaluate the same macros again.
        """
        key = (sender.address, sender.domain)
        known = self._known.get(key) or ()
        for values, outcome in known:
            if all(_value(sender, letter) == value for letter, value in values.items()):
                return outcome
        outcome, letters = evaluate(sender, ask)
        if outcome.result != "temperror" and not letters & _UNKEPT:
            values = {letter: _value(sender, letter) for letter in sorted(letters & set("slhr"))}
            known = (*known[1 - _VARIANTS :], (values, outcome))
            self._known.put(key, known, _SECONDS, sum(_size(each) for each in known))
        return outcome


def _value(sender: Sender, letter: str) -> str:
    match letter:
        case "h":
            return sender.helo
        case "r":
            return sender.receiver
        case _:
            return sender.local


def _size(variant: tuple[dict[str, str], Outcome]) -> int:
    values, outcome = variant
    texts = (outcome.reason, outcome.explanation, *values.values())
    return 500 + 4 * sum(map(len, texts))
