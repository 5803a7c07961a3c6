"""What a child of the supervisor inherits."""

import subprocess
import sys
from typing import Final

FORK: Final = """
import gc, os
from minismtp.runtime.log import Log
from minismtp.server.processes import Children, Role

def body(ready):
    os.write(1, str(gc.get_freeze_count()).encode())
    return 0

os.waitpid(Children(Log()).fork("http", 0, Role.ENDPOINT, "", body), 0)
"""


def test_collections_in_a_child_leave_the_memory_that_it_shares_alone() -> None:
    """Each object that a collection looks at is written to, so its page would be copied."""
    done = subprocess.run(
        [sys.executable, "-c", FORK], check=True, capture_output=True, text=True, timeout=60
    )
    assert int(done.stdout) > 10_000
