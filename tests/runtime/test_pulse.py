from __future__ import annotations

import os

from minismtp.runtime.pulse import Pulses


def test_beat_of_another_process_is_seen_in_its_slot_alone() -> None:
    pulses = Pulses()
    pulses.beat(1)
    first = pulses.silence(1)
    pid = os.fork()
    if not pid:
        pulses.beat(2)
        os._exit(0)
    os.waitpid(pid, 0)
    assert 0 <= first <= pulses.silence(1)
    assert pulses.silence(2) < pulses.silence(1)


def test_slot_that_never_beat_is_not_silent() -> None:
    """A process that starts takes its time; the one before it in the slot does not count."""
    pulses = Pulses()
    assert pulses.silence(0) == 0.0
    pulses.beat(0)
    pulses.clear(0)
    assert pulses.silence(0) == 0.0
