from __future__ import annotations

import os

from minismtp.runtime.scoreboard import Scoreboard


def test_beat_of_another_process_is_seen_in_its_slot_alone() -> None:
    scoreboard = Scoreboard()
    scoreboard.beat(1)
    first = scoreboard.silence(1)
    pid = os.fork()
    if not pid:
        scoreboard.beat(2)
        os._exit(0)
    os.waitpid(pid, 0)
    assert 0 <= first <= scoreboard.silence(1)
    assert scoreboard.silence(2) < scoreboard.silence(1)


def test_slot_that_never_beat_is_not_silent() -> None:
    """A process may start slowly; the former process of the slot does not count."""
    scoreboard = Scoreboard()
    assert scoreboard.silence(0) == 0.0
    scoreboard.beat(0)
    scoreboard.clear_beat(0)
    assert scoreboard.silence(0) == 0.0
