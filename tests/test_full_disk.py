"""A state directory on a full disk, which is in memory (root)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from conftest import Running, configure_in, running

from minismtp import State
from minismtp.config.tables import StateConfig

PAGE: Final = 4096
SIZE: Final = 4 * 1024 * 1024
RELAY: Final = '[[plugins]]\nuse = "relay"\n'
SLOT: Final = """
import sys
from pathlib import Path
from minismtp.runtime.metrics import Metrics, use_slot

use_slot(Path(sys.argv[1]), 3)
metrics = Metrics([f"listener{number}" for number in range(int(sys.argv[2]))])
listener = metrics.listener("listener0")
listener.add(listener.messages["stored"] * 2)
metrics.buffer.flush()
print(metrics.messages.labels("listener0", "stored")._value.get())
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 4 MiB."""
    if os.geteuid() != 0:
        if os.environ.get("MINISMTP_REQUIRE_SERVICES"):
            pytest.fail("only root can mount a disk")
        pytest.skip("only root can mount a disk")
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(path)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def fill(disk: Path, *, leave: int = 0) -> Path:
    """Fill a disk except for `leave` octets."""
    path = disk / "filling"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(PAGE))
        except OSError:
            pass
        file.truncate(max(0, file.tell() - leave))
    return path


@pytest.mark.parametrize("leave", [0, PAGE, 16 * PAGE, 40 * PAGE])
def test_process_with_metrics_lives_on_a_full_disk(disk: Path, leave: int) -> None:
    fill(disk, leave=leave)
    done = subprocess.run(
        [sys.executable, "-c", SLOT, disk, "100"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "2.0\n"), done.stderr
    assert "metrics are not exported" in done.stderr
    assert "No space left on device" in done.stderr


def test_files_of_metrics_have_their_space_before_they_are_used(disk: Path) -> None:
    subprocess.run([sys.executable, "-c", SLOT, disk, "1"], capture_output=True, check=True)
    for path in disk.glob("*.db"):
        status = path.stat()
        assert status.st_blocks * 512 >= status.st_size > 0


def test_shared_state_on_a_full_disk_is_an_error_until_there_is_space(disk: Path) -> None:
    program = """
import sys
from datetime import timedelta
from pathlib import Path
from minismtp import RemoteError, State
from minismtp.config.tables import StateConfig
state = State.of(StateConfig(), Path(sys.argv[1]))
for number in range(5000):
    try:
        state.put(f"{number}", "v" * 1000, timedelta(hours=1))
    except RemoteError as error:
        print(error)
        break
"""
    fill(disk, leave=20 * PAGE)
    done = subprocess.run([sys.executable, "-c", program, disk], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"full" in done.stdout
    (disk / "filling").unlink()
    state = State.of(StateConfig(), disk)
    assert state.get("0") == "v" * 1000
    state.close()
    fill(disk)
    done = subprocess.run([sys.executable, "-c", program, disk], capture_output=True, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("leave", [0, 3 * PAGE, 40 * PAGE], ids=["nothing", "little", "some"])
def test_server_starts_on_a_full_disk(disk: Path, leave: int, tmp_path: Path) -> None:
    config = configure_in(tmp_path)("[outbound]\nfree_space = 1_000_000\n", RELAY, workers=2)
    config.write_text(config.read_text().replace('"state"', f'"{disk}"'))
    filling = fill(disk, leave=leave)
    with running(config) as server, server.connect() as client:
        client.greet()
        assert client.command("MAIL FROM:<a@client.example>").startswith("452 4.3.1 ")
        assert server.http("/metrics")[0] == 200
        filling.unlink()
        server.wait_until(lambda: client.command("MAIL FROM:<a@client.example>")[:3] == "250")
        client.command("RCPT TO:<alice@example.org>")
        client.command("DATA")
        assert client.command("Subject: x\r\n\r\nx\r\n.").startswith("250 2.0.0 ")
        assert server.mail("alice")
        assert "worker died" not in server.log
        assert "endpoint died" not in server.log
        assert f"status={-signal.SIGBUS}" not in server.log  # of the process that delivers


def said_to_mail(server: Running) -> str:
    with server.connect() as client:
        client.greet()
        return client.command("MAIL FROM:<a@client.example>")


def test_server_whose_state_directory_was_moved_says_452_until_it_is_back(tmp_path: Path) -> None:
    config = configure_in(tmp_path)("[outbound]\nfree_space = 1_000_000\n", RELAY)
    with running(config) as server:
        assert said_to_mail(server).startswith("250 ")
        (tmp_path / "state").rename(tmp_path / "moved")
        server.wait_until(lambda: said_to_mail(server).startswith("452 4.3.1 "))
        server.wait_for_log("no mail is taken, .*/state/spool: No such file")
        (tmp_path / "moved").rename(tmp_path / "state")
        server.wait_until(lambda: said_to_mail(server).startswith("250 "))
        with server.connect() as client:
            client.begin_data("alice@example.org")
            assert client.command("Subject: x\r\n\r\nx\r\n.").startswith("250 2.0.0 ")
        assert "worker died" not in server.log
