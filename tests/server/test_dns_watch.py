"""The server's own look at its records in the DNS: log, metrics, and a thread that goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import nameserver
import pytest

from minismtp.config import Config
from minismtp.config.mistakes import ConfigError
from minismtp.hooks.loader import instances
from minismtp.inspection.dns_check import STATES, Outcome, State
from minismtp.runtime.log import Log
from minismtp.runtime.metrics import Metrics
from minismtp.server import dns_watch
from minismtp.server.dns_watch import DnsWatch
from minismtp.server.launch import watches_dns

if TYPE_CHECKING:
    from conftest import Configure, Start

CONFIG: Final = """
hostname = "mx.example.org"
[[listeners]]
name = "smtp"
address = "{address}"
tls = "none"
[dns]
addresses = ["198.51.100.25"]
check = "{check}"
[[plugins]]
use = "mailboxes"
domains = ["example.org"]
"""


def configured(address: str = "*:25", check: str = "6h") -> Config:
    return Config.parse(CONFIG.format(address=address, check=check), Path("minismtp.toml"))


def watching(config: Config) -> tuple[DnsWatch, Metrics]:
    metrics = Metrics()
    return DnsWatch(config, list(instances(config)), metrics, Log()), metrics


def counts(metrics: Metrics) -> dict[str, float]:
    """Return what is in the metrics by state."""
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    return {
        each.labels["state"]: each.value for each in samples if each.name == "minismtp_dns_records"
    }


def outcome(state: State, need: str = "required") -> Outcome:
    found = ("10 b.",) if state == "wrong" else ()
    return Outcome("example.org", "MX", "10 a.", state, found, "why", need)  # type: ignore[arg-type]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Outcome]:
    """Return the outcomes that the next look finds."""
    found: list[Outcome] = []
    monkeypatch.setattr(dns_watch, "answered", lambda *_: [*found])
    return found


def test_change_of_a_record_is_logged_once(
    answers: list[Outcome], capfd: pytest.CaptureFixture[str]
) -> None:
    watch, _ = watching(configured())
    for state in ("right", "wrong", "wrong", "unanswered", "wrong", "missing", "right"):
        answers[:] = [outcome(state)]
        watch.look()
    lines = [line.split(" ", 1)[1] for line in capfd.readouterr().err.splitlines()]
    wanted = 'name=example.org type=MX wanted="10 a."'
    assert lines == [
        f'warning dns record is wrong {wanted} found="10 b." note=why',
        f"warning dns record is missing {wanted} note=why",
        "info dns record is right again name=example.org type=MX",
    ]


def test_metrics_count_what_is_needed(answers: list[Outcome]) -> None:
    watch, metrics = watching(configured())
    assert counts(metrics) == dict.fromkeys(STATES, 0)
    answers[:] = [outcome("right"), outcome("wrong", "recommended"), outcome("unanswered")]
    answers += [outcome("missing"), outcome("missing", "recommended")]
    assert not watch.look()
    assert counts(metrics) == {"right": 1, "missing": 1, "wrong": 1, "unanswered": 1}
    answers[:] = [outcome("right"), outcome("missing", "recommended")]
    assert watch.look()


def test_records_that_are_not_known_are_logged(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConfigError("plugin 'x': on_dns failed")

    monkeypatch.setattr(dns_watch, "wanted_records", refuse)
    watch, _ = watching(configured())
    assert watch.look()
    assert "the records for the DNS are not known" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (configured(), True),
        (configured(check="0s"), False),
        (configured(address="127.0.0.1:25"), False),
        (replace(configured(), hostname="localhost"), False),
    ],
    ids=["public", "never", "local", "no name"],
)
def test_only_public_servers_look(config: Config, expected: bool) -> None:
    assert watches_dns(config) == expected


def test_next_look_is_earlier_after_one_that_found_something(answers: list[Outcome]) -> None:
    watch, _ = watching(configured())
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        answers[:] = [outcome("wrong" if len(pauses) == 1 else "right")]
        if len(pauses) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        watch.run(sleep)
    first, after_wrong, after_right = pauses
    assert 30 <= first <= 60
    assert 3240 <= after_wrong <= 3960
    assert 19_440 <= after_right <= 23_760


def test_thread_goes_on_after_a_failure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = configured(check="10ms")
    watch, _ = watching(config)
    looks: list[int] = []

    def look() -> bool:
        looks.append(1)
        if len(looks) == 1:
            raise RuntimeError("wanted")
        if len(looks) == 3:
            threading.Event().wait()  # or the thread would look within the next tests
        return True

    monkeypatch.setattr(watch, "look", look)
    assert config.dns.check == timedelta(milliseconds=10)
    watch.start()
    end = time.monotonic() + 60
    while len(looks) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    assert len(looks) >= 3
    assert "thread failed: dns" in caplog.text


RECORDS: Final = """
mx A 198.51.100.25
@ MX 10 other.test.
@ TXT "v=spf1 a:mx.example.org -all"
_dmarc TXT "v=DMARC1; p=none"
"""
LISTENER: Final = """
[[listeners]]
name = "smtp"
address = "127.0.0.1:0"
tls = "none"
proxy_protocol = ["192.0.2.0/24"]
"""
SERVER: Final = """
[dns]
nameservers = ["{nameserver}"]
addresses = ["198.51.100.25"]
check = "1s"
[[plugins]]
use = "mailboxes"
domains = ["example.org"]
"""


def test_server_counts_and_logs_what_is_wrong(
    configure: Configure, start: Start, tmp_path: Path, require_program: Callable[[str], str]
) -> None:
    (tmp_path / "dns").mkdir()
    zones = {"example.org": RECORDS, "100.51.198.in-addr.arpa": "25 PTR mx.example.org.\n"}
    with nameserver.serving(tmp_path / "dns", require_program, zones) as address:
        tables = SERVER.format(nameserver=address)
        server = start(configure(tables, listeners=LISTENER, plugins=""))
        server.wait_for_log("dns record is wrong name=example.org type=MX")
        server.wait_until(lambda: server.metric("dns_records", state="wrong") == 1)
        assert server.metric("dns_records", state="right") == 4
        assert "one record in the DNS is missing or wrong" in server.http("/")[1]
