from __future__ import annotations

import os

from minismtp.runtime.pulse import Heartbeats


def test_beat_of_another_process_is_seen_in_its_slot_alone() -> None:
    heartbeats = Heartbeats()
    heartbeats.beat(1)
    first = heartbeats.silence(1)
    pid = os.fork()
    if not pid:
        heartbeats.beat(2)
        os._exit(0)
    os.waitpid(pid, 0)
    assert 0 <= first <= heartbeats.silence(1)
    assert heartbeats.silence(2) < heartbeats.silence(1)


def test_slot_that_never_beat_is_not_silent() -> None:
    """A process that starts takes its time; the one before it in the slot does not count."""
    heartbeats = Heartbeats()
    assert heartbeats.silence(0) == 0.0
    heartbeats.beat(0)
    heartbeats.clear(0)
    assert heartbeats.silence(0) == 0.0
