"""A few thousand sessions of `make fuzz-sessions`, always the same ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from fuzz.sessions import Server, Store, Tally, run

from minismtp import Address, Envelope, hookimpl, plugin

_SESSIONS = 1500


def _run(store: Store | None = None, count: int = _SESSIONS) -> Tally:
    tally = Tally()
    with contextlib.closing(Server(store)) as server:
        for number in range(count):
            run(server, "minismtp", number, tally)
    return tally


def test_random_sessions_follow_the_rules() -> None:
    tally = _run()
    assert not tally.problems, tally.problems[0]
    assert tally.acknowledged > _SESSIONS / 10
    assert tally.queued > _SESSIONS / 50
    assert tally.replies > 5 * _SESSIONS


@plugin
class _Forgetful(Store):
    @hookimpl
    def deliver(self, envelope: Envelope, mailbox: Address) -> bool:  # noqa: ARG002
        """Report a copy, and store none."""
        return True


@plugin
class _Hasty(Store):
    @hookimpl
    def deliver(self, envelope: Envelope, mailbox: Address) -> bool:
        """Store a copy, and report none."""
        self.copies.add((envelope.id, str(mailbox)))
        return False


@plugin
class _Broken(Store):
    @hookimpl
    def deliver(self, envelope: Envelope, mailbox: Address) -> bool:  # noqa: ARG002
        """Fail."""
        raise RuntimeError("broken")


@pytest.mark.parametrize("store", [_Forgetful, _Hasty, _Broken])
def test_what_breaks_a_rule_is_a_problem(store: Callable[[], Store]) -> None:
    assert _run(store(), 100).problems


def test_same_seed_says_the_same() -> None:
    first, second = _run(count=50), _run(count=50)
    assert (first.replies, first.acknowledged) == (second.replies, second.acknowledged)
