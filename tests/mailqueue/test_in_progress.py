"""The messages in progress when a process died, as the next process finds them."""

from __future__ import annotations

import os
from unittest.mock import MagicMock, Mock

import pytest

from minismtp.mailqueue.in_progress import InProgress
from minismtp.mailqueue.loader import Loader
from minismtp.mailqueue.recipient import RecipientStatus
from minismtp.runtime.suspects import PLACES, Suspects


@pytest.fixture
def suspects() -> Suspects:
    """Return what the supervisor and its processes share."""
    return Suspects()


def started(suspects: Suspects) -> InProgress:
    return InProgress(suspects.of(0))


def die(suspects: Suspects, *keys: str) -> list[tuple[str, int]]:
    """Let a process die at work; a suspect message that has to wait is not in progress."""
    pid = os.fork()
    if not pid:
        progress = started(suspects)
        for key in keys:
            progress.begin(key)
        os._exit(9)
    os.waitpid(pid, 0)
    blamed = suspects.blame(0)
    suspects.clear_notes(0)
    return blamed


def test_what_two_runners_died_on_is_poison(suspects: Suspects) -> None:
    assert die(suspects, "a x", "b x") == [("a x", 1), ("b x", 1)]
    assert started(suspects).poison("a x", "b x") == []
    # Suspects are sent one at a time, so `a x` is not in progress.
    assert die(suspects, "b x", "a x") == [("b x", 2)]
    assert started(suspects).poison("a x", "b x") == ["b x"]


def test_poison_is_named_until_it_is_held(suspects: Suspects) -> None:
    die(suspects, "a x")
    die(suspects, "a x")
    assert started(suspects).poison("a x")
    progress = started(suspects)
    assert progress.poison("a x")
    progress.forget("a x")
    assert not started(suspects).poison("a x")
    die(suspects, "a x")
    assert not started(suspects).poison("a x")


def test_work_that_ended_is_not_suspect(suspects: Suspects) -> None:
    die(suspects, "a x")
    progress = started(suspects)
    place = progress.begin("a x")
    assert place is not None
    progress.end(place, "a x")
    die(suspects, "a x")
    assert not started(suspects).poison("a x")


def test_suspects_are_tried_one_at_a_time(suspects: Suspects) -> None:
    die(suspects, "a x", "b x")
    progress = started(suspects)
    place = progress.begin("a x")
    assert place is not None
    assert progress.begin("b x") is None
    assert progress.begin("c x") is not None
    progress.end(place, "a x")
    assert progress.begin("b x") is not None


def test_runner_that_another_replaced_may_still_die_of_its_work(suspects: Suspects) -> None:
    lives, next_runner = InProgress(suspects.of(0)), InProgress(suspects.of(1))
    lives.begin("a x")
    place = next_runner.begin("c x")
    assert place is not None
    suspects.blame(0)
    suspects.clear_notes(0)
    next_runner.end(place, "c x")
    assert next_runner.begin("a x") is not None
    assert not next_runner.poison("a x")


def test_death_of_the_whole_server_is_no_messages_doing(suspects: Suspects) -> None:
    for _ in range(3):
        die(suspects, "a x")
    assert not started(Suspects()).poison("a x")


def test_any_key_and_any_number_of_them_is_taken(suspects: Suspects) -> None:
    progress = started(suspects)
    keys = ["x" * 5000, "\udc80é", "", *map(str, range(PLACES))]
    places = [progress.begin(key) for key in keys]
    for place, key in zip(places, keys, strict=True):
        assert place is not None
        progress.end(place, key)
    assert [progress.begin(key) is None for key in keys[:3]] == [False] * 3
    assert len(suspects.blame(0)) == 2  # nothing is the fingerprint of an empty key


def loader(suspects: Suspects) -> tuple[Loader, Mock, Mock]:
    """Return a loader with messages `known` and `new`, its manager and its index."""
    known = RecipientStatus("known", 0, "bob@example.net", "example.net")
    spool = Mock(names=lambda: ["known", "new"], recover=list, set_aside_misnamed=list)
    spool.open.side_effect = FileNotFoundError
    spool.trigger.overflowed.return_value = False
    database = Mock(changed=list, messages=lambda: [(0.0, False, [known])])
    manager, index = Mock(), MagicMock()
    work = started(suspects)
    made = Loader(manager, spool, database, MagicMock(), index, Mock(), work, str, Mock())
    made.load_all(bool)
    return made, manager, index


@pytest.mark.parametrize("key", ["known example.net", "known "], ids=["sent", "returned"])
def test_message_on_which_two_runners_died_is_held_until_the_operator_wants(
    suspects: Suspects, key: str
) -> None:
    for state in ("queued", "held", "queued"):
        *_, index = loader(suspects)
        [status] = index.add.call_args.args[2]
        assert status.state == state
        die(suspects, key)
        if state == "queued":
            die(suspects, key)
    assert started(suspects).poison(key)


def test_message_on_which_two_runners_died_reading_is_set_aside(suspects: Suspects) -> None:
    loader(suspects)[1].set_aside.assert_not_called()
    die(suspects, "? new")
    loader(suspects)[1].set_aside.assert_not_called()
    die(suspects, "? new")
    die(suspects, "? new")
    name, error = loader(suspects)[1].set_aside.call_args.args
    assert (name, str(error)) == ("new", "two runners died while they read it")
    assert not started(suspects).poison("? new")
