"""A real Prometheus scrapes a server with every kind of traffic.

With $MINISMTP_PROMETHEUS_SECONDS the traffic continues for that time, otherwise each kind comes
once.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from prometheus_client.parser import text_string_to_metric_families
from snippets import MX, SUBMISSION, listener

from minismtp.values.passwords import hash_password

if TYPE_CHECKING:
    from conftest import Client, Launch, Running, TlsFiles

ROOT: Final = Path(__file__).parents[1]
EXAMPLES: Final = ROOT / "etc" / "prometheus"
MONITORING: Final = (ROOT / "docs" / "monitoring.md").read_text()
DEADLINE: Final = 60.0  # seconds; only a failing test waits this long
SECONDS: Final = float(os.environ.get("MINISMTP_PROMETHEUS_SECONDS", "0"))
LISTENERS: Final = MX + SUBMISSION + listener("web", 'kind = "web"')
FILTER: Final = '''\
"""Does what the field X-Test says."""

from minismtp import Message, Reject, hookimpl, plugin


@plugin
class Filter:
    @hookimpl
    def on_message(self, message: Message) -> None:
        match message.headers.get("X-Test"):
            case "reject":
                raise Reject("as you like it")
            case "crash":
                raise RuntimeError("as you like it")
'''
HERE: Final = """
[[plugins]]
use = "filter"
name = "trial"
mode = "shadow"

[[plugins]]
use = "filter"

[[plugins]]
use = "password_file"
path = "passwords"

[[plugins]]
use = "relay"

[limits]
login_backoff = "0s"

[[outbound.routes]]
domain = "example.net"
host = "{there}"

[[outbound.routes]]
domain = "*"
host = "127.0.0.1:9"
"""
THERE: Final = """
[[plugins]]
use = "mailboxes"
name = "net"
domains = ["example.net"]
users = ["bob"]
"""
RIGHT: Final = "AUTH PLAIN AGFsaWNlAHNlY3JldA=="  # alice, secret
WRONG: Final = "AUTH PLAIN AGFsaWNlAHdyb25n"  # alice, wrong
# The used server asks no authority for a certificate, no index for a newer release, and not for
# its records in the DNS. The tests in tests/server/test_certificate_process.py,
# test_update_watch.py and test_dns_watch.py see the metrics of servers that do.
ONLY_OF_OTHERS: Final = {
    "minismtp_acme_last_attempt_successful",
    "minismtp_acme_next_attempt_timestamp_seconds",
    "minismtp_dns_records",
    "minismtp_update_available",
}
RECEIVED: Final = {"yes": "250", "reject": "550", "crash": "451"}


@pytest.fixture(scope="module")
def used(launch: Launch, tls_files: TlsFiles) -> Iterator[Running]:
    """Run a server that accepted, refused, stored and relayed mail."""
    files = {
        "passwords": f"alice:{hash_password('secret')}\n",
        "local_plugins/filter.py": FILTER,
    }
    with launch(THERE) as there:
        tables = (tls_files.table, HERE.format(there=there.address()))
        with launch(*tables, listeners=LISTENERS, workers=2, files=files) as server:
            server.wait_for_log(" queue opened ")
            use(server, tls_files)
            yield server


def use(server: Running, tls_files: TlsFiles) -> None:
    """Make every kind of traffic once."""
    with server.connect() as client:
        client.greet()
        for word, code in RECEIVED.items():
            assert mail(client, "user@example.org", word) == code
        client.command("MAIL FROM:<sender@client.example>")
        assert client.command("RCPT TO:<bob@example.net>").startswith("550 ")
        client.command("QUIT")
    with server.connect("submission") as client:
        client.greet()
        client.command("STARTTLS")
        client.secure(tls_files.client())
        client.command("EHLO client.example")
        assert client.command(WRONG).startswith("535 ")
        assert client.command(RIGHT).startswith("235 ")
        for recipient in ("bob@example.net", "nobody@example.net", "me@example.com"):
            assert mail(client, recipient) == "250"
        client.command("QUIT")


def mail(client: Client, recipient: str, word: str = "yes") -> str:
    """Send a message and return the code of the reply."""
    client.command("MAIL FROM:<alice@example.org>")
    client.command(f"RCPT TO:<{recipient}>")
    client.command("DATA")
    client.send(f"Subject: hello\r\nX-Test: {word}\r\n\r\nIt works.\r\n.\r\n")
    return client.reply()[:3]


def documented() -> dict[str, tuple[set[str], str]]:
    """Return the metrics of the documentation with their labels and types."""
    row = r"^\| `((?:minismtp|process)_\w+)` \| (.*?) ?\| (\w+) \| \S"
    rows = re.findall(row, MONITORING, re.MULTILINE)
    return {name: (set(re.findall(r"\w+", labels)), kind) for name, labels, kind in rows}


def exposed_by_used() -> dict[str, tuple[set[str], str]]:
    """Return the documented metrics that the used server has."""
    return {name: text for name, text in documented().items() if name not in ONLY_OF_OTHERS}


# What the server exposes


def test_used_server_exposes_the_documented_metrics(used: Running) -> None:
    exposed = {}
    for family in text_string_to_metric_families(used.http("/metrics")[1]):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        exposed[name] = (labels, family.type)
    assert exposed == exposed_by_used()
    assert documented().keys() >= ONLY_OF_OTHERS


def test_promtool_has_nothing_to_say_about_a_used_server(
    used: Running, require_program: Callable[[str], str]
) -> None:
    checked = subprocess.run(
        [require_program("promtool"), "check", "metrics"],
        input=used.http("/metrics")[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


# The view of Prometheus


class Prometheus:
    """A Prometheus with the configuration of the example, which scrapes a server every second."""

    def __init__(self, program: str, directory: Path, target: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        config = directory / "prometheus.yml"
        text = (EXAMPLES / "prometheus.yml").read_text()
        text = text.replace("127.0.0.1:9925", target).replace("15s", "1s")
        config.write_text(text.replace("- minismtp-", f"- {EXAMPLES}/minismtp-"))
        self._log = directory / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    program,
                    f"--config.file={config}",
                    f"--storage.tsdb.path={directory / 'data'}",
                    f"--web.listen-address={self.address}",
                ],
                stdout=log,
                stderr=log,
            )

    def ask(self, path: str, **parameters: str) -> Any:  # noqa: ANN401 - any JSON
        """Ask the API and return the data of the answer."""
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=DEADLINE) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the rows of an instant query."""
        result: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return result

    def evaluated(self) -> bool:
        """Return whether every rule was evaluated."""
        groups = self.ask("rules")["groups"]
        return all(rule["health"] != "unknown" for group in groups for rule in group["rules"])


@pytest.fixture(scope="module")
def prometheus(
    used: Running,
    tls_files: TlsFiles,
    require_program: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Prometheus]:
    """Run one that saw traffic."""
    program = require_program("prometheus")
    target = used.wait_for_log(r" serving metrics address=(\S+)")[1]
    found = Prometheus(program, tmp_path_factory.mktemp("prometheus"), target)
    try:
        used.wait_until(lambda: scrapes(found) >= 1)
        before = {result: attempts(used, result) for result in ("delivered", "failed")}
        end = time.monotonic() + SECONDS
        use(used, tls_files)
        while time.monotonic() < end:
            use(used, tls_files)
        used.wait_until(lambda: all(attempts(used, r) > n for r, n in before.items()))
        seen = scrapes(found)
        used.wait_until(lambda: scrapes(found) >= seen + 2 and found.evaluated())
        yield found
    finally:
        found.process.kill()
        found.process.wait()


def attempts(server: Running, result: str) -> float:
    return server.metric("delivery_attempts_total", result=result)


def scrapes(prometheus: Prometheus) -> int:
    """Return how many scrapes have succeeded so far."""
    try:
        rows = prometheus.query("sum_over_time(up[1h])")
    except OSError:  # not up yet
        return 0
    return int(float(rows[0]["value"][1])) if rows else 0


@pytest.mark.parametrize("metric", exposed_by_used())
def test_prometheus_has_data_of_the_metric(metric: str, prometheus: Prometheus) -> None:
    labels, kind = documented()[metric]
    rows = prometheus.query(f"{metric}_count" if kind == "histogram" else metric)
    assert rows
    assert all(labels <= row["metric"].keys() for row in rows)
    if kind == "histogram":
        assert prometheus.query(f"{metric}_bucket")


MOVING: Final = (
    'minismtp_connections_total{result="accepted"}',
    'minismtp_commands_total{command="CONTENT",code_class="2xx"}',
    "minismtp_tls_sessions_total",
    'minismtp_auth_attempts_total{result="success"}',
    'minismtp_auth_attempts_total{result="failure"}',
    *(f'minismtp_messages_total{{outcome="{o}"}}' for o in ("stored", "queued", "rejected")),
    *(f'minismtp_recipients_total{{outcome="{o}"}}' for o in ("accepted", "rejected")),
    'minismtp_hook_verdicts_total{plugin="filter",verdict="reject"}',
    'minismtp_shadow_verdicts_total{plugin="trial",verdict="reject"}',
    'minismtp_hook_errors_total{plugin="filter"}',
    "minismtp_storage_duration_seconds_count",
    *(f'minismtp_delivery_attempts_total{{result="{r}"}}' for r in ("delivered", "failed")),
    "minismtp_queue_delay_seconds_count",
)


@pytest.mark.parametrize("series", MOVING)
def test_prometheus_sees_the_traffic(series: str, prometheus: Prometheus) -> None:
    [row] = prometheus.query(f"sum(rate({series}[1h]))")
    assert float(row["value"][1]) > 0


# Rules and alerts

ALERTS: Final = re.findall(
    r"- alert: (\w+)", (EXAMPLES / "minismtp-alerts.yml").read_text(), re.MULTILINE
)
ORDINARY, *CASES = (EXAMPLES / "minismtp-alerts.test.yml").read_text().split("\n  - name: ")[1:]


@pytest.mark.parametrize(
    "arguments",
    ["check config prometheus.yml", "test rules minismtp-alerts.test.yml"],
    ids=["config", "alerts"],
)
def test_promtool_is_content_with_the_examples(
    arguments: str, require_program: Callable[[str], str]
) -> None:
    done = subprocess.run(
        [require_program("promtool"), *arguments.split()],
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


@pytest.mark.parametrize("alert", ALERTS)
def test_alert_has_a_case_where_it_fires_and_is_quiet_on_an_ordinary_day(alert: str) -> None:
    [case] = [text for text in CASES if text.startswith(f"{alert}\n")]
    assert f"alertname: {alert}\n" in case
    assert "exp_alerts:\n          - exp_labels:" in case
    assert f"- {{alertname: {alert}, eval_time: 6h}}" in ORDINARY


def test_guide_says_what_to_do_about_every_alert_and_no_other() -> None:
    assert re.findall(r"^\| `(Minismtp\w+)` \| \w+ \| .", MONITORING, re.MULTILINE) == ALERTS


def test_rules_work_in_prometheus(prometheus: Prometheus) -> None:
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules if rule["type"] == "alerting"} == {*ALERTS}
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}
    records = [rule["name"] for rule in rules if rule["type"] == "recording"]
    assert [name for name in records if not prometheus.query(name)] == []


# The dashboard

DASHBOARD: Final = json.loads((ROOT / "etc" / "grafana" / "minismtp.json").read_text())
PANELS: Final = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS: Final = [
    pytest.param(target["expr"], target["legendFormat"], id=f"{panel['title']}-{target['refId']}")
    for panel in PANELS
    for target in panel["targets"]
]
SELECTOR: Final = re.compile(r"((?:minismtp|process)_\w+?)(?:_bucket|_sum|_count)?\{([^}]*)\}")
FOR_GRAFANA: Final = {"$job": "minismtp", "$instance": ".*", "$__rate_interval": "1h"}


@pytest.mark.parametrize(("expression", "legend"), TARGETS)
def test_panel_shows_something(expression: str, legend: str, prometheus: Prometheus) -> None:
    for name, value in FOR_GRAFANA.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    rows = prometheus.query(expression)
    metrics = {name for name, _ in SELECTOR.findall(expression)}
    assert bool(rows) is not (metrics <= ONLY_OF_OTHERS)
    shown = {*re.findall(r"\{\{(\w+)\}\}", legend)}
    assert all(shown <= row["metric"].keys() for row in rows)


def test_panels_ask_for_labels_that_their_metric_has() -> None:
    for target in TARGETS:
        expression = str(target.values[0])
        labels = {"job", "instance", "le"}
        for metric, selector in SELECTOR.findall(expression):
            labels |= documented()[metric][0]
            assert {*re.findall(r'(\w+)!?=~?"', selector)} <= labels
            assert selector.startswith('job=~"$job",instance=~"$instance"')
        for grouping in re.findall(r"by \(([^)]*)\)", expression):
            assert {*grouping.split(", ")} <= labels


def test_dashboard_shows_every_metric() -> None:
    shown = {name for target in TARGETS for name, _ in SELECTOR.findall(str(target.values[0]))}
    assert shown == documented().keys()


def test_every_panel_says_what_it_shows() -> None:
    assert [panel["title"] for panel in PANELS if len(panel.get("description", "")) < 15] == []


def test_annotations_can_be_queried(prometheus: Prometheus) -> None:
    shown = {each["name"]: each["expr"] for each in DASHBOARD["annotations"]["list"]}
    assert "Reloads" in shown
    for expression in shown.values():
        for name, value in FOR_GRAFANA.items():
            expression = expression.replace(name, value)  # noqa: PLW2901
        assert "$" not in expression
        prometheus.query(expression)


def test_dashboard_can_be_turned_to_any_prometheus_job_and_instance() -> None:
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance"]
    assert {panel["datasource"]["uid"] for panel in PANELS} == {"${datasource}"}
    for name in ("job", "instance"):
        assert re.fullmatch(
            rf"label_values\(minismtp_workers.*, {name}\)", variables[name]["definition"]
        )


def test_panels_do_not_cover_each_other() -> None:
    taken: dict[tuple[int, int], int] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["id"]) == panel["id"]
    assert {*taken.values()} == {panel["id"] for panel in DASHBOARD["panels"]}
