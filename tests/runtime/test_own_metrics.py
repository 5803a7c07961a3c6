"""Metrics of a plugin's own: what they count, and what keeps them bounded."""

from collections.abc import Callable
from typing import Any

import pytest

from minismtp import Instrumented, Message, ServerInfo, Session, hookimpl, plugin
from minismtp.config import PluginConfig
from minismtp.config.mistakes import ConfigError
from minismtp.hooks.guard import StartError
from minismtp.testing import Dialogue, Dialogues, Mailroom


@plugin
class Measured(Instrumented):
    """Has a metric of each kind, one of them without labels."""

    prefix: str = "measured"

    def __post_init__(self) -> None:
        self._clients = self.counter(
            f"{self.prefix}_clients", "Clients.", family=("4", "6"), at=("day", "night")
        )
        self._all = self.counter(f"{self.prefix}_all", "All clients.")

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        self._slot = self.gauge(f"{self.prefix}_slot", "The slot.", across="max")
        self._size = self.histogram(f"{self.prefix}_size", "Octets.", buckets=(100, 1000))
        self._slot.set(server.slot + 7)

    @hookimpl
    def on_connect(self, session: Session) -> None:
        family = "6" if ":" in session.peer else "4" if "." in session.peer else session.peer
        self._clients.add(family=family, at="day")
        self._all.add(2.5)
        self._all.add(-1)

    @hookimpl
    def on_message(self, message: Message) -> None:
        self._size.observe(message.size)


LABELS = {"plugin": "measured", "at": "day"}


def test_counter_counts_by_its_labels(dialogue: Dialogues) -> None:
    session = dialogue(Measured())
    assert session.count("plugin_measured_clients_total", **LABELS, family="4") == 1
    assert session.count("plugin_measured_all_total", plugin="measured") == 2.5


def test_declared_series_begin_at_zero(dialogue: Dialogues) -> None:
    session = dialogue(Measured())
    family = next(f for f in session.metrics.registry.collect() if f.name.endswith("_clients"))
    shown = {(s.labels["family"], s.labels["at"]) for s in family.samples}
    assert shown == {("4", "day"), ("4", "night"), ("6", "day"), ("6", "night")}


def test_value_that_was_not_declared_counts_as_other(dialogue: Dialogues) -> None:
    session = dialogue(Measured(), peer="unix")
    assert session.count("plugin_measured_clients_total", **LABELS, family="other") == 1
    assert session.count("plugin_measured_clients_total", **LABELS, family="unix") == 0


def test_gauge_has_the_value_that_was_set(dialogue: Dialogues) -> None:
    assert dialogue(Measured()).count("plugin_measured_slot", plugin="measured") == 7


def test_histogram_has_the_values_and_their_number(dialogue: Dialogues) -> None:
    session = dialogue(Measured(), Mailroom())
    session.mail("Subject: x\n\n" + "y" * 500)
    own = {"plugin": "measured"}
    assert session.count("plugin_measured_size_count", **own) == 1
    assert session.count("plugin_measured_size_bucket", **own, le="100.0") == 0
    assert session.count("plugin_measured_size_bucket", **own, le="1000.0") == 1


def test_two_tables_of_one_plugin_share_a_metric() -> None:
    first = PluginConfig(use="measured", name="first")
    session = Dialogue((first, Measured()), (PluginConfig(use="measured"), Measured()))
    for name in ("first", "measured"):
        assert session.count("plugin_measured_all_total", plugin=name) == 2.5


def test_plugin_outside_of_a_server_counts_nothing() -> None:
    session = Session(id="1", peer="192.0.2.1", listener="smtp", kind="mx", hostname="mx.example")
    Measured().on_connect(session)


def test_metric_of_another_plugin_with_other_labels_is_a_mistake() -> None:
    @plugin
    class Other(Instrumented):
        def __post_init__(self) -> None:
            self.counter("measured_all", "Something else.", kind=("a",))

        @hookimpl
        def on_stop(self) -> None: ...

    with pytest.raises(ConfigError) as refused:
        Dialogue(Measured(), Other())
    assert str(refused.value) == (
        "plugins[1]: plugin 'other': the plugin 'measured' has a metric 'measured_all' of another"
        " kind or with other labels; call this one other_measured_all"
    )


def test_counting_with_other_labels_is_a_failure_of_the_plugin(
    capfd: pytest.CaptureFixture[str],
) -> None:
    @plugin
    class Wrong(Instrumented):
        def __post_init__(self) -> None:
            self._seen = self.counter("wrong", "Clients.", kind=("a",))

        @hookimpl
        def on_connect(self) -> None:
            self._seen.add(knid="a")

    assert Dialogue(Wrong()).banner.startswith("421 ")
    assert "TypeError: the labels of wrong are kind, not knid" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("declare", "problem"),
    [
        (lambda it: it.counter("Links", "x"), "'Links': expected a name of lower-case letters"),
        (lambda it: it.counter("links_total", "x"), "'links_total': .* without _total"),
        (lambda it: it.counter("x" * 61, "x"), "expected a name"),
        (lambda it: it.counter("links", ""), "links: expected a sentence"),
        (lambda it: it.counter("links", "x", plugin=("a",)), "cannot be called 'plugin'"),
        (lambda it: it.counter("links", "x", age="new"), r"expected all values of age, such as"),
        (lambda it: it.counter("links", "x", age=()), "expected all values of age"),
        (
            lambda it: it.counter("links", "x", a=[*map(str, range(20))], b=[*map(str, range(11))]),
            "220 combinations; expected 200 at most",
        ),
        (lambda it: it.gauge("links", "x", across="mean"), "expected across to be sum, max or"),
    ],
)
@pytest.mark.usefixtures("capfd")
def test_metric_that_cannot_be_is_refused_at_the_start(
    declare: Callable[[Any], object], problem: str
) -> None:
    @plugin
    class Wrong(Instrumented):
        @hookimpl
        def on_start(self) -> None:
            declare(self)

    with pytest.raises(StartError, match=rf"{__file__}:\d+\): on_start: TypeError: .*{problem}"):
        Dialogue(Wrong())


def test_metrics_are_no_options() -> None:
    with pytest.raises(TypeError):
        Measured(counter=1)  # type: ignore[call-arg]
