"""Group commit: one sync serves many writers, and an error fails all affected ones."""

import errno
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from minismtp.values.group_sync import GroupSync, sync_file_system


class Gate:
    """A sync that takes as long as a test wants, and can fail."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.goes_on = threading.Semaphore(0)
        self.syncs = 0
        self.error: OSError | None = None

    def __call__(self, _: int) -> None:
        """Replace syncfs."""
        self.syncs += 1
        self.begun.release()
        assert self.goes_on.acquire(timeout=60)
        if self.error is not None:
            raise self.error


def in_thread(work: Callable[[], None]) -> tuple[threading.Thread, list[OSError]]:
    """Run `work`. Return its thread and the errors that it raised."""
    errors: list[OSError] = []

    def run() -> None:
        try:
            work()
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


def commit(group: GroupSync) -> Callable[[], None]:
    """Return the function of a writer that just wrote."""
    ticket = group.ticket()
    return lambda: group.commit(ticket)


def finish(*threads: threading.Thread) -> None:
    """Wait for threads."""
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_lone_writer_syncs_at_once(tmp_path: Path) -> None:
    syncs: list[int] = []
    group = GroupSync(tmp_path, tmp_path / "counters", syncs.append)
    group.commit(group.ticket())
    group.commit(group.ticket())
    assert len(syncs) == 2
    group.close()


def test_sync_under_way_does_not_count_for_who_comes_later(tmp_path: Path) -> None:
    gate = Gate()
    group = GroupSync(tmp_path, tmp_path / "counters", gate)
    first, _ = in_thread(commit(group))
    assert gate.begun.acquire(timeout=60)
    second, _ = in_thread(commit(group))
    gate.goes_on.release()
    finish(first)
    # The first sync may have missed the data of the second writer, so it needs another.
    assert gate.begun.acquire(timeout=60)
    assert second.is_alive()
    gate.goes_on.release()
    finish(second)
    assert gate.syncs == 2


def test_who_waits_during_a_sync_shares_the_next_one(tmp_path: Path) -> None:
    gate = Gate()
    counters = tmp_path / "counters"
    group, other_process = GroupSync(tmp_path, counters, gate), GroupSync(tmp_path, counters, gate)
    first, _ = in_thread(commit(group))
    assert gate.begun.acquire(timeout=60)
    crowd = [in_thread(commit(each))[0] for each in (group, other_process) * 10]
    gate.goes_on.release()
    finish(first)
    assert gate.begun.acquire(timeout=60)
    gate.goes_on.release(2)  # one may have come after the second sync had begun
    finish(*crowd)
    assert gate.syncs <= 3


def test_error_fails_all_who_wrote_before_the_sync_ended(tmp_path: Path) -> None:
    gate = Gate()
    group = GroupSync(tmp_path, tmp_path / "counters", gate)
    gate.error = OSError(errno.EIO, "lost a page")
    leader, of_leader = in_thread(commit(group))
    assert gate.begun.acquire(timeout=60)
    # Its pages may be the lost ones, because the kernel reports an error only once.
    meanwhile, of_meanwhile = in_thread(commit(group))
    gate.goes_on.release()
    finish(leader, meanwhile)
    assert [error.errno for error in of_leader + of_meanwhile] == [errno.EIO, errno.EIO]

    gate.error = None
    gate.goes_on.release()
    group.commit(group.ticket())


def test_death_of_a_leader_holds_nobody_up(tmp_path: Path) -> None:
    counters = tmp_path / "counters"
    ready, told = os.pipe()
    if not (child := os.fork()):
        gate = Gate()
        doomed = GroupSync(tmp_path, counters, gate)
        in_thread(commit(doomed))
        gate.begun.acquire()
        os.write(told, b"x")
        signal.pause()
    assert os.read(ready, 1) == b"x"
    syncs: list[int] = []
    group = GroupSync(tmp_path, counters, syncs.append)
    waiting, errors = in_thread(commit(group))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    finish(waiting)
    assert len(syncs) == 1
    assert not errors


def test_kernel_syncs_the_file_system_of_a_descriptor(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    sync_file_system(descriptor)
    os.close(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        sync_file_system(descriptor)
    assert caught.value.errno == errno.EBADF
