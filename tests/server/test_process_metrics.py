"""What each process uses, and the free space of the disk."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from minismtp.config import Config
from minismtp.runtime.scoreboard import Scoreboard
from minismtp.server.process_metrics import (
    DiskCollector,
    ProcessCollector,
    disk_free,
    mail_directories,
)

if TYPE_CHECKING:
    from conftest import Configure, Running, Start


def test_server_shows_what_each_of_its_processes_uses(configure: Configure, start: Start) -> None:
    server = start(configure(workers=2))
    server.wait_for_log(" queue opened ")
    names = {"supervisor", "worker", "runner", "endpoint"}

    def shown() -> bool:
        text = server.http("/metrics")[1]
        return all(f'process_open_fds{{process="{name}",slot="' in text for name in names)

    server.wait_until(shown)
    found: dict[str, dict[tuple[str, str], float]] = {}
    for family in text_string_to_metric_families(server.http("/metrics")[1]):
        if family.name.startswith("process_"):
            for sample in family.samples:
                key = (sample.labels["process"], sample.labels["slot"])
                found.setdefault(sample.name, {})[key] = sample.value
    [processes] = {frozenset(values) for values in found.values()}  # the same of each
    assert sorted(name for name, _ in processes) == sorted([*names, "worker"])
    assert len({slot for name, slot in processes if name == "worker"}) == 2
    assert all(1e6 < size < 1e9 for size in found["process_resident_memory_bytes"].values())
    assert all(size > 1 for size in found["process_open_fds"].values())
    now = time.time()
    assert all(now - 60 < at <= now + 1 for at in found["process_start_time_seconds"].values())
    assert found["process_cpu_seconds_total"]["supervisor", "-"] > 0


def test_process_that_ended_is_left_out() -> None:
    scoreboard = Scoreboard()
    pid = os.fork()
    if not pid:
        scoreboard.beat(3)
        os._exit(0)
    os.waitpid(pid, 0)
    assert scoreboard.processes() == {3: pid}
    assert [each.process for each in ProcessCollector(scoreboard, os.getpid()).uses()] == [
        "supervisor"
    ]


def test_slot_that_was_cleared_has_no_process() -> None:
    scoreboard = Scoreboard()
    scoreboard.beat(3)
    scoreboard.clear_beat(3)
    assert scoreboard.processes() == {}


def test_own_process_is_measured_as_it_is() -> None:
    [use] = ProcessCollector(Scoreboard(), os.getpid()).uses()
    assert use.cpu == pytest.approx(time.process_time(), abs=1)
    assert use.values["max_fds"] > use.values["open_fds"] > 0
    assert time.time() - 86400 < use.values["start_time_seconds"] < time.time()


def test_free_space_stands_beside_the_space_to_keep_free(tmp_path: Path) -> None:
    values = {
        sample.name: sample.value
        for family in DiskCollector({"state": tmp_path}, 7).collect()
        for sample in family.samples
    }
    assert values["minismtp_disk_reserve_bytes"] == 7
    assert 0 < values["minismtp_disk_free_bytes"] <= values["minismtp_disk_size_bytes"]


def test_directory_that_is_gone_has_no_free_space(tmp_path: Path) -> None:
    assert disk_free(tmp_path / "gone") is None
    names = [
        sample.name
        for family in DiskCollector({"state": tmp_path / "gone"}, 7).collect()
        for sample in family.samples
    ]
    assert names == ["minismtp_disk_reserve_bytes"]


def test_disk_of_each_maildir_plugin_is_shown(tmp_path: Path) -> None:
    text = (
        'state_directory = "state"\n[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\n'
        'tls = "none"\n'
        '[[plugins]]\nuse = "maildir"\npath = "/srv/mail/{domain}/{local}"\n'
        '[[plugins]]\nuse = "maildir"\nname = "shared"\npath = "mail-{local}"\n'
    )
    assert mail_directories(Config.parse(text, tmp_path / "minismtp.toml")) == {
        "state": tmp_path / "state",
        "maildir": Path("/srv/mail"),
        "shared": tmp_path,
    }


def test_metrics_and_disk_problem_agree(running_out: Running) -> None:
    assert running_out.metric("problem", problem="disk") == 1
    free = running_out.metric("disk_free_bytes", directory="state")
    assert free < running_out.metric("disk_reserve_bytes")


@pytest.fixture
def running_out(configure: Configure, start: Start) -> Running:
    """Start a server that wants more free space than there is."""
    return start(configure('[outbound]\nfree_space = "900000GiB"\n'))


def test_mail_refused_for_a_full_disk_is_counted_at_mail(running_out: Running) -> None:
    with running_out.connect() as client:
        client.greet()
        assert client.command("MAIL FROM:<a@client.example>").startswith("452 4.3.1 ")
    labels = {"stage": "mail", "plugin": "server", "reason": "disk_full", "code_class": "4xx"}
    running_out.wait_until(lambda: running_out.metric("refusals_total", **labels) == 1)
