"""The figures that `minismtp top` and the status page show, taken from the metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from prometheus_client import Metric

_ONCE: Final = frozenset({"on_start", "on_stop"})  # no client waits for these hooks
FLOWS: Final = ("connections", "messages", "refused", "deliveries")


@dataclass(slots=True)
class HookFigures:
    """How often the hook of a plugin ran, and for how many seconds in total."""

    calls: float = 0.0
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        """Mean seconds of a call."""
        return self.seconds / self.calls if self.calls else 0.0

    def since(self, before: HookFigures) -> HookFigures:
        """Return what was added since an earlier time."""
        return HookFigures(
            max(0.0, self.calls - before.calls), max(0.0, self.seconds - before.seconds)
        )


@dataclass(slots=True)
class Overview:
    """Totals since the start of the server, and current values."""

    connections: float = 0.0
    deliveries: float = 0.0
    outcomes: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    active: float = 0.0
    queue: dict[str, float] = field(default_factory=dict)
    oldest: float = 0.0
    verdicts: dict[str, dict[str, float]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(float))
    )
    hooks: dict[tuple[str, str], HookFigures] = field(
        default_factory=lambda: defaultdict(HookFigures)
    )

    @property
    def flows(self) -> dict[str, float]:
        """The totals that the page plots, by the names in `FLOWS`."""
        refused = [self.outcomes.get(outcome, 0.0) for outcome in ("rejected", "deferred")]
        counts = (self.connections, sum(self.outcomes.values()), sum(refused), self.deliveries)
        return dict(zip(FLOWS, counts, strict=True))

    def slowest(self) -> list[tuple[tuple[str, str], HookFigures]]:
        """Return the hooks by the mean duration of a call, the slowest first."""
        ran = [item for item in self.hooks.items() if item[1].calls and item[0][1] not in _ONCE]
        return sorted(ran, key=lambda item: -item[1].mean)

    def since(self, before: Overview) -> Overview:
        """Return what was added since an earlier time. Current values stay as they are."""
        return replace(
            self,
            connections=max(0.0, self.connections - before.connections),
            deliveries=max(0.0, self.deliveries - before.deliveries),
            outcomes=_minus(self.outcomes, before.outcomes),
            verdicts={
                name: _minus(now, before.verdicts.get(name, {}))
                for name, now in self.verdicts.items()
            },
            hooks={
                name: now.since(before.hooks.get(name, HookFigures()))
                for name, now in self.hooks.items()
            },
        )


def overview(families: Iterable[Metric]) -> Overview:
    """Return the figures of a scrape."""
    found = Overview()
    for family in families:
        for sample in family.samples:
            _take(found, sample.name.removeprefix("minismtp_"), sample.labels, sample.value)
    return found


def _take(  # noqa: C901 - one arm for each metric
    found: Overview, name: str, labels: dict[str, str], value: float
) -> None:
    match name:
        case "connections_total":
            found.connections += value
        case "delivery_attempts_total":
            found.deliveries += value
        case "connections_active":
            found.active += value
        case "messages_total":
            found.outcomes[labels["outcome"]] += value
        case "queue_messages":
            found.queue[labels["state"]] = value
        case "queue_oldest_message_age_seconds":
            found.oldest = value
        case "hook_verdicts_total":
            found.verdicts[labels["plugin"]][labels["verdict"]] += value
        case "shadow_verdicts_total":
            found.verdicts[f"{labels['plugin']} (shadow)"][labels["verdict"]] += value
        case "hook_duration_seconds_count":
            found.hooks[labels["plugin"], labels["hook"]].calls += value
        case "hook_duration_seconds_sum":
            found.hooks[labels["plugin"], labels["hook"]].seconds += value


def _minus(now: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    return {name: max(0.0, value - before.get(name, 0.0)) for name, value in now.items()}
