"""Data on a session or an envelope, each under its own key."""

import pytest

from minismtp.values.stash import Stash, StashKey

SCORE = StashKey[float]()
OTHER = StashKey[float]()


def test_value_is_found_under_its_key() -> None:
    stash = Stash()
    stash[SCORE] = 4.5
    assert stash[SCORE] == 4.5
    assert SCORE in stash
    assert len(stash) == 1


def test_two_keys_of_one_type_are_two() -> None:
    stash = Stash()
    stash[SCORE] = 4.5
    assert OTHER not in stash
    with pytest.raises(KeyError):
        stash[OTHER]


def test_value_is_replaced() -> None:
    stash = Stash()
    stash[SCORE] = 4.5
    stash[SCORE] = 5.5
    assert stash[SCORE] == 5.5
    assert len(stash) == 1


def test_value_is_removed() -> None:
    stash = Stash()
    stash[SCORE] = 4.5
    del stash[SCORE]
    assert SCORE not in stash
    with pytest.raises(KeyError):
        del stash[SCORE]


def test_default_stands_in_for_a_missing_value() -> None:
    stash = Stash()
    assert stash.get(SCORE, None) is None
    stash[SCORE] = 4.5
    assert stash.get(SCORE, None) == 4.5


def test_setdefault_stores_only_what_is_missing() -> None:
    stash = Stash()
    assert stash.setdefault(SCORE, 1.0) == 1.0
    assert stash.setdefault(SCORE, 2.0) == 1.0


def test_copy_has_the_values_and_its_own_life() -> None:
    stash = Stash()
    stash[SCORE] = 4.5
    twin = stash.copy()
    twin[OTHER] = 1.0
    assert twin[SCORE] == 4.5
    assert OTHER not in stash


def test_stash_before_another_keeps_its_own_values() -> None:
    real, own = Stash(), Stash()
    real[SCORE] = 4.5
    both = real.behind(own)
    both[OTHER] = 1.0
    assert (both[SCORE], both.get(OTHER, None), len(both)) == (4.5, 1.0, 2)
    both[SCORE] = 9.0
    assert (both[SCORE], real[SCORE], own[SCORE]) == (9.0, 4.5, 9.0)
    assert OTHER not in real
    assert both.copy()[SCORE] == 9.0
    del both[SCORE]
    assert both[SCORE] == 4.5
    with pytest.raises(KeyError):
        del both[SCORE]
