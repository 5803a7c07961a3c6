import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import field, replace

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric

from minismtp import Credentials, Defer, Reject, hookimpl, plugin
from minismtp.config import Limits
from minismtp.mail.session import TlsInfo
from minismtp.runtime.metrics import HookMetrics, Metrics
from minismtp.runtime.metrics_buffer import Histogram, MetricsBuffer
from minismtp.session.refusal_reasons import REASONS
from minismtp.testing import Dialogue, Mailroom

LISTENER = {
    "connections": {"result": {"accepted", "refused", "limited"}},
    "connections_active": {},
    "session_duration_seconds": {},
    "commands": {
        "command": {
            *("EHLO", "HELO", "LHLO", "MAIL", "RCPT", "DATA", "BDAT", "CONTENT", "RSET", "NOOP"),
            *("QUIT", "VRFY", "EXPN", "HELP", "STARTTLS", "AUTH", "XCLIENT", "OTHER"),
        },
        "code_class": {"2xx", "3xx", "4xx", "5xx"},
    },
    "tls_sessions": {"version": {"TLSv1.2", "TLSv1.3"}},
    "auth_attempts": {
        "mechanism": {
            *("PLAIN", "LOGIN", "SCRAM-SHA-256", "OAUTHBEARER", "XOAUTH2", "EXTERNAL", "OTHER")
        },
        "result": {"success", "failure", "error", "cancelled"},
    },
    "messages": {
        "outcome": {"stored", "queued", "discarded", "quarantined", "rejected", "deferred"}
    },
    "recipients": {"outcome": {"accepted", "rejected", "deferred"}},
    "message_size_bytes": {},
}
HOOK: dict[str, dict[str, set[str]]] = {
    "hook_duration_seconds": {},
    "hook_cpu_seconds": {},
    "hook_verdicts": {"verdict": {"none", "answer", "reject", "defer", "disconnect"}},
    "hook_errors": {},
    "hook_overruns": {},
}


def families(metrics: Metrics) -> dict[str, Metric]:
    metrics.buffer.flush()
    return {family.name.removeprefix("minismtp_"): family for family in metrics.registry.collect()}


def combinations(family: Metric) -> set[frozenset[tuple[str, str]]]:
    """Return the label combinations of a family without the limits of buckets."""
    return {
        frozenset((name, value) for name, value in sample.labels.items() if name != "le")
        for sample in family.samples
    }


def values(family: Metric) -> set[float]:
    return {sample.value for sample in family.samples if not sample.name.endswith("_created")}


@pytest.mark.parametrize("name", LISTENER)
def test_family_of_a_listener_starts_at_0_in_all_combinations(name: str) -> None:
    family = families(Metrics(["smtp"]))[name]
    expected = [{"listener": "smtp"}]
    for label, choices in LISTENER[name].items():
        expected = [{**known, label: choice} for known in expected for choice in choices]
    assert combinations(family) == {frozenset(labels.items()) for labels in expected}
    assert values(family) == {0.0}


@pytest.mark.parametrize("name", HOOK)
def test_family_of_a_hook_starts_at_0_in_all_combinations(name: str) -> None:
    metrics = Metrics()
    HookMetrics(metrics, "spam", "on_message")
    family = families(metrics)[name]
    expected = [{"plugin": "spam", "hook": "on_message"}]
    for label, choices in HOOK[name].items():
        expected = [{**known, label: choice} for known in expected for choice in choices]
    assert combinations(family) == {frozenset(labels.items()) for labels in expected}
    assert values(family) == {0.0}


def test_shadow_verdicts_stand_apart_from_the_others() -> None:
    metrics = Metrics()
    HookMetrics(metrics, "spam", "on_message", shadow=True)
    found = families(metrics)
    assert len(combinations(found["shadow_verdicts"])) == 5
    assert not found["hook_verdicts"].samples


def test_time_to_store_is_kept_by_plugin() -> None:
    metrics = Metrics()
    HookMetrics(metrics, "maildir", "deliver")
    HookMetrics(metrics, "spam", "on_message")
    assert combinations(families(metrics)["storage_duration_seconds"]) == {
        frozenset({("plugin", "maildir")})
    }


def test_certificate_has_its_end_and_whether_it_loaded() -> None:
    metrics = Metrics()
    metrics.certificate("smtp", loaded=True, not_after=2e9)
    metrics.certificate("smtp", loaded=False, not_after=None)
    read = metrics.registry.get_sample_value
    labels = {"listener": "smtp"}
    assert read("minismtp_tls_certificate_not_after_timestamp_seconds", labels) == 2e9
    assert read("minismtp_tls_certificate_last_reload_successful", labels) == 0


def test_listener_has_the_same_metrics_when_asked_for_again() -> None:
    metrics = Metrics(["smtp"])
    assert metrics.listener("smtp") is metrics.listener("smtp")
    assert metrics.listener("other") is not metrics.listener("smtp")


@plugin
class Users:
    seen: list[str] = field(default_factory=list)

    @hookimpl
    def authenticate(self, credentials: Credentials) -> str | None:
        self.seen.append(credentials.username)
        if credentials.username == "away":
            raise Defer
        return "alice" if credentials.password == "secret" else None  # noqa: S105 - to be guessed


HOSTILE = [
    b"EHLO evil.example\r\n",
    b"GE" + b"T" * 300 + b" / HTTP\r\n",
    b"X" * 20_000 + b"\r\n",
    b"\xff\xfe\x00 \x80\r\n",
    b"CONTENT\r\nREFUSED\r\nCONNECT2\r\nLAST\r\nRESPONSE\r\nevil.example\r\n",
    b"AUTH EVIL-MECHANISM x\r\n",
    b"AUTH PLAIN !!!\r\nAUTH PLAIN AGEAYg==\r\nAUTH PLAIN AGF3YXkAYg==\r\nAUTH LOGIN\r\n*\r\n",
    b"MAIL FROM:<x@evil.example> EVIL=1\r\nMAIL FROM:<x@evil.example>\r\n",
    b"RCPT TO:<@>\r\nRCPT TO:<y@evil.example>\r\nBDAT 3 LAST\r\nxyz",
    b"LHLO evil.example\r\nXCLIENT NAME=evil\r\nSTARTTLS\r\nVRFY evil\r\n",
]


def test_nothing_that_a_peer_says_becomes_a_label() -> None:
    dialogue = Dialogue(
        Users(), Mailroom(), peer="2001:db8::666", limits=Limits(errors=1000, failed_logins=1000)
    )
    before = {name: combinations(family) for name, family in families(dialogue.metrics).items()}
    for data in HOSTILE:
        assert dialogue.send_raw(data)
    dialogue.close()
    after = {name: combinations(family) for name, family in families(dialogue.metrics).items()}
    for labels in map(dict, after.pop("refusals") | before.pop("refusals")):
        assert labels["reason"] in REASONS
        assert labels["stage"] in {"helo", "auth", "mail", "rcpt", "content", "other"}
        assert (labels["listener"], labels["plugin"]) in {("test", "server"), ("test", "users")}
    assert after == before
    exposed = prometheus_client.generate_latest(dialogue.metrics.registry).decode().lower()
    assert "evil" not in exposed
    assert "2001:db8" not in exposed


def test_commands_are_counted_by_verb_and_class() -> None:
    dialogue = Dialogue(Mailroom())
    dialogue.mail("Subject: x")
    dialogue.send("BOGUS")
    dialogue.send("RCPT TO:<user@example.org>")
    dialogue.send("MAIL FROM:<a@client.example>")
    dialogue.send("RCPT TO:<user@example.org>")
    dialogue.send_raw(b"BDAT 1\r\nxBDAT 1 LAST\r\ny")

    def count(command: str, code_class: str) -> float:
        labels = {"command": command, "code_class": code_class}
        return dialogue.count("commands_total", listener="test", **labels)

    assert count("EHLO", "2xx") == 1
    assert count("MAIL", "2xx") == 2
    assert (count("RCPT", "2xx"), count("RCPT", "5xx")) == (2, 1)
    assert (count("DATA", "3xx"), count("CONTENT", "2xx")) == (1, 1)
    assert count("BDAT", "2xx") == 2
    assert count("OTHER", "5xx") == 1
    assert (
        sum(
            sample.value
            for sample in families(dialogue.metrics)["commands"].samples
            if sample.name.endswith("_total")
        )
        == 11
    )


def test_auth_is_counted_by_mechanism_and_result() -> None:
    dialogue = Dialogue(Users())
    dialogue.send("EHLO client.example")
    dialogue.send("AUTH PLAIN AGF3YXkAYg==")
    dialogue.send("AUTH PLAIN AGEAYg==")
    dialogue.send("AUTH LOGIN")
    dialogue.send("*")
    dialogue.send("AUTH PLAIN AGEAc2VjcmV0")
    for mechanism, result in (
        ("PLAIN", "error"),
        ("PLAIN", "failure"),
        ("LOGIN", "cancelled"),
        ("PLAIN", "success"),
    ):
        labels = {"mechanism": mechanism, "result": result}
        assert dialogue.count("auth_attempts_total", listener="test", **labels) == 1


def test_recipients_messages_and_sizes_are_counted() -> None:
    @plugin
    class Refusing:
        @hookimpl
        def on_rcpt(self, recipient: object) -> None:
            if "nobody" in str(recipient):
                raise Reject("no such user")

    dialogue = Dialogue(Refusing(), Mailroom(), limits=Limits(recipients=1))
    dialogue.mail("Subject: x", to=("user@example.org", "other@example.org"))
    dialogue.mail("Subject: x", to=("nobody@example.org",))
    dialogue.mail("Subject: x")
    for outcome, number in (("accepted", 2), ("deferred", 1), ("rejected", 1)):
        assert dialogue.count("recipients_total", listener="test", outcome=outcome) == number
    assert dialogue.count("messages_total", listener="test", outcome="stored") == 1
    assert dialogue.count("message_size_bytes_count", listener="test") == 1
    assert dialogue.count("message_size_bytes_sum", listener="test") == len("Subject: x\r\n")


def test_session_is_counted_from_begin_to_end() -> None:
    clock = iter(range(0, 1000, 2))
    dialogue = Dialogue()
    service = replace(dialogue.service, clock=lambda: float(next(clock)))
    dialogue = Dialogue(service=service, metrics=dialogue.metrics)
    assert dialogue.count("connections_active", listener="test") == 2
    dialogue.receiver.secured(TlsInfo("TLSv1.2", "cipher"))
    dialogue.close()
    assert dialogue.count("connections_active", listener="test") == 1
    assert dialogue.count("session_duration_seconds_count", listener="test") == 1
    assert dialogue.count("session_duration_seconds_sum", listener="test") >= 2
    assert dialogue.count("tls_sessions_total", listener="test", version="TLSv1.2") == 1


def test_silent_sessions_count_for_nothing() -> None:
    dialogue = Dialogue(Users(), Mailroom())

    def counted() -> dict[str, set[float]]:
        found = families(dialogue.metrics)
        return {name: values(found[name]) for name in LISTENER}

    before = counted()
    silent = Dialogue(service=dialogue.service.silent())
    silent.send("EHLO client.example")
    silent.send("AUTH PLAIN AGEAYg==")
    silent.receiver.secured(TlsInfo("TLSv1.3", "cipher"))
    assert silent.mail("Subject: x").startswith("250")
    silent.close()
    assert counted() == before


def test_buffer_adds_up_in_a_thread_of_its_own() -> None:
    added = threading.Event()

    class Signalling(prometheus_client.Counter):
        def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
            super().inc(amount, exemplar)
            added.set()

    registry = prometheus_client.CollectorRegistry()
    counter = Signalling("things", "Things.", registry=registry)
    buffer = MetricsBuffer()
    buffer.start()
    buffer.adder(counter)(2)
    assert added.wait(60)
    added.clear()
    buffer.adder(counter)(3)
    assert added.wait(60)
    assert registry.get_sample_value("things_total") == 5


@given(st.lists(st.floats(0, 20) | st.sampled_from([0.1, 0.5, 10.0]), min_size=1))
def test_many_observations_at_once_are_those_one_by_one(amounts: list[float]) -> None:
    registry = prometheus_client.CollectorRegistry()
    together = Histogram("together", "At once.", registry=registry)
    alone = prometheus_client.Histogram("alone", "One by one.", registry=registry)
    together.observe_all(amounts)
    for amount in amounts:
        alone.observe(amount)
    for bound in ("0.1", "0.5", "10.0", "+Inf"):
        counts = [
            registry.get_sample_value(f"{name}_bucket", {"le": bound})
            for name in ("together", "alone")
        ]
        assert counts[0] == counts[1]
    sums = [registry.get_sample_value(f"{name}_sum") for name in ("together", "alone")]
    assert sums[0] == pytest.approx(sums[1])


def test_buffer_loses_nothing_of_many_threads() -> None:
    registry = prometheus_client.CollectorRegistry()
    counter = prometheus_client.Counter("things", "Things.", registry=registry)
    sizes = Histogram("sizes", "Sizes.", registry=registry)
    buffer = MetricsBuffer()
    buffer.start()
    add, observe = buffer.adder(counter), buffer.adder(sizes)

    def work() -> None:
        for _ in range(500):
            add(1)
            observe(2)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    buffer.flush()
    assert registry.get_sample_value("things_total") == 2000
    assert registry.get_sample_value("sizes_sum") == 4000


SLOT = """
import sys
from pathlib import Path
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from minismtp.runtime.metrics import Metrics, use_slot

directory = Path(sys.argv[1])
use_slot(directory, 3)
metrics = Metrics(["smtp"])
smtp = metrics.listener("smtp")
smtp.add(smtp.messages["stored"] * 2)
smtp.add(((smtp.active, 1.0),))
metrics.buffer.flush()
registry = CollectorRegistry()
MultiProcessCollector(registry, str(directory))
sys.stdout.buffer.write(generate_latest(registry))
"""


@pytest.fixture(scope="module")
def slot(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, int]]:
    """Return what a process of slot 3 exposes, and the sizes of its files."""
    directory = tmp_path_factory.mktemp("metrics")
    text = subprocess.run(
        [sys.executable, "-c", SLOT, directory], capture_output=True, text=True, check=True
    ).stdout
    return text, {path.name: path.stat().st_size for path in directory.iterdir()}


def test_process_keeps_its_metrics_in_the_files_of_its_slot(
    slot: tuple[str, dict[str, int]],
) -> None:
    text, files = slot
    assert 'minismtp_messages_total{listener="smtp",outcome="stored"} 2.0' in text
    assert 'minismtp_messages_total{listener="smtp",outcome="queued"} 0.0' in text
    assert 'minismtp_connections_active{listener="smtp"} 1.0' in text
    assert files
    assert all(name.endswith("_3.db") for name in files)


def test_file_of_a_few_values_is_small(slot: tuple[str, dict[str, int]]) -> None:
    """All of it is in memory, for each process."""
    assert slot[1]["gauge_livesum_3.db"] == 16 * 1024
    assert 16 * 1024 < slot[1]["counter_3.db"] <= 64 * 1024


def test_promtool_has_nothing_to_say(
    slot: tuple[str, dict[str, int]], require_program: Callable[[str], str]
) -> None:
    checked = subprocess.run(
        [require_program("promtool"), "check", "metrics"],
        input=slot[0],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
