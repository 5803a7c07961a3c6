"""Metrics of a plugin's own, right in all processes and over reloads like those of the server.

A plugin that inherits from `Instrumented` declares a metric in `__post_init__` or `on_start`:

    self._links = self.counter("links", "Links by age of their domain.", age=("new", "known"))

and counts with `self._links.add(age="new")`, here minismtp_plugin_links_total{plugin, age}. All
values of a label are declared, so a stranger cannot make new time series: any other value counts
as "other". Calls never fail because of a value, take 1 us, and do nothing in a plugin that is used
outside of a server.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any, Final, Literal, TypeAlias, TypeVar

from minismtp.runtime.metrics import SECONDS, Metrics
from minismtp.runtime.metrics_buffer import Child, MetricsBuffer

OTHER: Final = "other"
_MOST: Final = 200  # time series of one metric of one plugin
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,59}")
_RESERVED: Final = frozenset({"plugin", "le", "pid", "quantile"})
_MODES: Final[dict[str, str]] = {"sum": "livesum", "max": "livemax", "latest": "livemostrecent"}

_M = TypeVar("_M", bound="_Own")
Labels: TypeAlias = Mapping[str, Sequence[str]]
Across: TypeAlias = Literal["sum", "max", "latest"]


class _Own:
    """A metric with its label values; it counts once it is bound to a server's metrics."""

    def __init__(self, name: str, text: str, labels: Labels, kind: str, **options: Any) -> None:  # noqa: ANN401 - as the kind needs them
        _check(name, text, labels)
        self._name, self._text, self._kind, self._options = name, text, kind, options
        self._labels = {label: (*values,) for label, values in labels.items()}
        self._children: dict[tuple[str, ...], Child] = {}
        self._buffer: MetricsBuffer | None = None

    def bind(self, metrics: Metrics, plugin: str) -> None:
        """Register the metric, with all its time series at 0. Raise TypeError."""
        shape = (self._kind, *self._labels, *map(repr, self._options.values()))
        known = metrics.own.get(self._name)
        if known is None:
            make: Callable[..., Child] = getattr(metrics, self._kind)
            full = f"plugin_{self._name}"
            made = make(full, self._text, ["plugin", *self._labels], **self._options)
            known = metrics.own[self._name] = (shape, plugin, made)
        if known[0] != shape:
            raise TypeError(
                f"the plugin {known[1]!r} has a metric {self._name!r} of another kind or with other"
                f" labels; call this one {plugin.replace('-', '_')}_{self._name}"
            )
        series = product(*self._labels.values())
        self._children = {each: known[2].labels(plugin, *each) for each in series}
        with_other = product(*[(*values, OTHER) for values in self._labels.values()])
        self._rest = {each: (known[2], (plugin, *each)) for each in with_other}
        self._buffer = metrics.buffer

    def _child(self, labels: Mapping[str, str]) -> Child | None:
        """Return the time series of these values. Raise TypeError for other labels."""
        if labels.keys() != self._labels.keys():
            expected = ", ".join(self._labels) or "none"
            raise TypeError(f"the labels of {self._name} are {expected}, not {', '.join(labels)}")
        if self._buffer is None:
            return None
        values = tuple([str(labels[label]) for label in self._labels])
        child = self._children.get(values)
        if child is None:
            known = zip(values, self._labels.values(), strict=True)
            values = tuple([value if value in allowed else OTHER for value, allowed in known])
            metric, key = self._rest[values]
            child = self._children[values] = metric.labels(*key)
        return child

    def _append(self, amount: float, labels: Mapping[str, str]) -> None:
        child, buffer = self._child(labels), self._buffer
        if child is not None and buffer is not None:
            buffer.append(((child, amount),))
            if buffer.idle:
                buffer.announce()


class OwnCounter(_Own):
    """A number that only grows."""

    def add(self, amount: float = 1.0, /, **labels: str) -> None:
        """Add an amount above 0. Raise TypeError for other labels than the declared ones."""
        if amount > 0:
            self._append(amount, labels)


class OwnGauge(_Own):
    """A number that goes up and down; over all processes it is their sum, maximum or latest."""

    def set(self, value: float, /, **labels: str) -> None:
        """Set the value in this process. Raise TypeError for other labels."""
        child: Any = self._child(labels)
        if child is not None:
            child.set(value)


class OwnHistogram(_Own):
    """A distribution of values."""

    def observe(self, value: float, /, **labels: str) -> None:
        """Count a value. Raise TypeError for other labels."""
        self._append(value, labels)


class Instrumented:
    """A base class for plugins with metrics of their own. It adds no option.

    Each method declares a metric and returns what counts. `name` is in lower case and begins with
    what the plugin is about; its full name is minismtp_plugin_`name`, with _total for a counter.
    `text` is a sentence for its readers. Each label is given with all its values. Raise TypeError
    for more than 200 combinations of them, or for names that Prometheus does not take.
    """

    def counter(self, name: str, text: str, /, **labels: Sequence[str]) -> OwnCounter:
        """Declare a number that only grows."""
        return _declared(self, OwnCounter(name, text, labels, "counter"))

    def gauge(
        self, name: str, text: str, /, *, across: Across = "sum", **labels: Sequence[str]
    ) -> OwnGauge:
        """Declare a number that goes up and down.

        `across` says what counts for the whole server: the sum of the processes, their maximum, or
        the value that was set last. A process that ended does not count.
        """
        mode = _MODES.get(across)
        if mode is None:
            raise TypeError(f"{name}: expected across to be sum, max or latest, not {across!r}")
        return _declared(self, OwnGauge(name, text, labels, "gauge", multiprocess_mode=mode))

    def histogram(
        self,
        name: str,
        text: str,
        /,
        *,
        buckets: Sequence[float] = SECONDS,
        **labels: Sequence[str],
    ) -> OwnHistogram:
        """Declare a distribution; `buckets` are upper limits, by default of seconds."""
        return _declared(self, OwnHistogram(name, text, labels, "histogram", buckets=(*buckets,)))


def bind(instance: object, metrics: Metrics, plugin: str) -> None:
    """Let the plugin, by its name in metrics, count with these. Raise TypeError."""
    if isinstance(instance, Instrumented):
        vars(instance)["_own_place"] = metrics, plugin
        for metric in vars(instance).get("_own_metrics", ()):
            metric.bind(metrics, plugin)


def _declared(instance: Instrumented, metric: _M) -> _M:
    vars(instance).setdefault("_own_metrics", []).append(metric)
    if place := vars(instance).get("_own_place"):
        metric.bind(*place)
    return metric


def _check(name: str, text: str, labels: Labels) -> None:
    if not _NAME.fullmatch(name) or name.endswith("_total"):
        raise TypeError(
            f"{name!r}: expected a name of lower-case letters, digits and _, without _total"
        )
    if not text:
        raise TypeError(f"{name}: expected a sentence that says what is counted")
    for label, values in labels.items():
        if not _NAME.fullmatch(label) or label in _RESERVED:
            raise TypeError(f"{name}: a label cannot be called {label!r}")
        if isinstance(values, str) or not values:
            raise TypeError(f'{name}: expected all values of {label}, such as {label}=("a", "b")')
    if (count := prod(map(len, labels.values()))) > _MOST:
        raise TypeError(f"{name}: its labels have {count} combinations; expected {_MOST} at most")
