"""How `make test` gives the test files to its processes; a plugin of pytest, through conftest.py.

Files that take long come first, so that none of them begins when the others are nearly done
and keeps one process busy alone. The order of the rest is pytest-randomly's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
from xdist.scheduler import LoadFileScheduling

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.workermanage import WorkerController

#: What takes half a minute or more, the longest first.
LONG: Final = [
    "tests/test_guide.py",
    "tests/test_systemd.py",
    "tests/test_fuzz.py",
    "tests/test_packages.py",
    "tests/mailqueue/test_queue.py",
    "tests/test_crash.py",
    "tests/test_container.py",
    "tests/test_postfix.py",
    "tests/test_mistakes.py",
    "tests/server/test_supervisor.py",
    "tests/test_author_guide.py",
    "tests/test_full_mailbox.py",
    "tests/test_prometheus.py",
]


class Scheduling(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives each process whole files, and goes on after a test that killed its process.

    The class above puts back all that the dead process had: the fatal test, which then kills one
    process after the other, and files that are done, for which a process waits without end.
    """

    def remove_node(self, node: WorkerController) -> str | None:
        """Put back what a process did not begin; return the test that it was at."""
        fatal = None
        for file, unit in self.assigned_work.pop(node).items():
            for test, done in unit.items():
                if not done and fatal is None:
                    fatal = test
                    unit[test] = True
            if not all(unit.values()):
                self.workqueue[file] = unit
        for other in self.assigned_work:
            self._reschedule(other)
        return fatal

    def _assign_work_unit(self, node: WorkerController) -> None:
        for file in reversed(LONG):
            if file in self.workqueue:
                self.workqueue.move_to_end(file, last=False)
        super()._assign_work_unit(node)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling | None:
    """Return the scheduler above for `--dist=loadfile`."""
    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None
