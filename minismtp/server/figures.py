"""The figures that `minismtp top` and the status page show, taken from the metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Final, Literal, TypeAlias

from prometheus_client import Metric

_ONCE: Final = frozenset(
    {"on_start", "on_stop", "on_disconnect"}
)  # no client waits for these hooks
FLOWS: Final = ("connections", "messages", "refused", "deliveries")
#: By what hooks are sorted: the seconds of all calls, of a call, and of 99 of 100 calls.
HookOrder: TypeAlias = Literal["sum", "mean", "99 %"]
HOOK_ORDERS: Final[tuple[HookOrder, ...]] = ("sum", "mean", "99 %")
Counts: TypeAlias = dict[str, float]


@dataclass(slots=True)
class HookFigures:
    """How often the hook of a plugin ran, and for how many seconds in total.

    `buckets` has the number of calls that took at most that many seconds.
    """

    calls: float = 0.0
    seconds: float = 0.0
    buckets: dict[float, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def mean(self) -> float:
        """Mean seconds of a call."""
        return self.seconds / self.calls if self.calls else 0.0

    @property
    def most(self) -> float:
        """The seconds that 99 of 100 calls took at most: the limit of their bucket, or infinity."""
        wanted = 0.99 * self.calls
        return next((each for each, n in sorted(self.buckets.items()) if n >= wanted), 0.0)

    def by(self, order: HookOrder) -> float:
        """Return what hooks are sorted by."""
        return {"sum": self.seconds, "mean": self.mean, "99 %": self.most}[order]

    def since(self, before: HookFigures) -> HookFigures:
        """Return what was added since an earlier time."""
        return HookFigures(
            max(0.0, self.calls - before.calls),
            max(0.0, self.seconds - before.seconds),
            {limit: max(0.0, n - before.buckets[limit]) for limit, n in self.buckets.items()},
        )


@dataclass(slots=True)
class Overview:
    """Totals since the start of the server, and current values.

    `refusals` counts by stage, plugin, reason and class, `errors` exceptions by plugin, `logins` by
    result. `problems` are those of /readyz. `certificates` has the seconds since the epoch at which
    those of a listener expire, and `stale` the listeners whose changed certificate did not load.
    `dns_records` counts those in the DNS by state. `newer_release` is a version, if there is one.
    `free` and `size` are those of disks in octets by directory; less than `reserve` stops mail.
    `memory` and `started` are by process and slot.
    """

    connections: float = 0.0
    deliveries: float = 0.0
    outcomes: Counts = field(default_factory=lambda: defaultdict(float))
    active: float = 0.0
    limit: float = 0.0
    workers: float = 0.0
    queue: Counts = field(default_factory=dict)
    oldest: float = 0.0
    verdicts: dict[str, Counts] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(float))
    )
    errors: Counts = field(default_factory=lambda: defaultdict(float))
    logins: Counts = field(default_factory=lambda: defaultdict(float))
    refusals: dict[tuple[str, str, str, str], float] = field(
        default_factory=lambda: defaultdict(float)
    )
    hooks: dict[tuple[str, str], HookFigures] = field(
        default_factory=lambda: defaultdict(HookFigures)
    )
    problems: set[str] = field(default_factory=set)
    certificates: Counts = field(default_factory=dict)
    stale: set[str] = field(default_factory=set)
    unusable_files: float = 0.0
    dns_records: Counts = field(default_factory=dict)
    newer_release: str = ""
    reload_ok: bool = True
    free: Counts = field(default_factory=dict)
    size: Counts = field(default_factory=dict)
    reserve: float = 0.0
    memory: dict[tuple[str, str], float] = field(default_factory=dict)
    started: dict[tuple[str, str], float] = field(default_factory=dict)

    @property
    def flows(self) -> Counts:
        """The totals that the page plots, by the names in `FLOWS`."""
        refused = sum(self.refusals.values())
        counts = (self.connections, sum(self.outcomes.values()), refused, self.deliveries)
        return dict(zip(FLOWS, counts, strict=True))

    @property
    def begun(self) -> float:
        """When the server started, in seconds since the epoch; 0 if that is not known."""
        return self.started.get(("supervisor", "-"), 0.0)

    def slowest(self, order: HookOrder = "sum") -> list[tuple[tuple[str, str], HookFigures]]:
        """Return the hooks that ran, the slowest first."""
        ran = [item for item in self.hooks.items() if item[1].calls and item[0][1] not in _ONCE]
        return sorted(ran, key=lambda item: -item[1].by(order))

    def since(self, before: Overview) -> Overview:
        """Return what was added since an earlier time. Current values stay as they are."""
        return replace(
            self,
            connections=max(0.0, self.connections - before.connections),
            deliveries=max(0.0, self.deliveries - before.deliveries),
            outcomes=_minus(self.outcomes, before.outcomes),
            errors=_minus(self.errors, before.errors),
            logins=_minus(self.logins, before.logins),
            refusals={
                name: max(0.0, count - before.refusals.get(name, 0.0))
                for name, count in self.refusals.items()
            },
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
            name = sample.name.removeprefix("minismtp_")
            if not _take_mail(found, name, sample.labels, sample.value):
                _take_server(found, name, sample.labels, sample.value)
    return found


def _take_mail(  # noqa: C901, PLR0912 - one arm for each metric
    found: Overview, name: str, labels: Mapping[str, str], value: float
) -> bool:
    match name:
        case "connections_total":
            found.connections += value
        case "delivery_attempts_total":
            found.deliveries += value
        case "connections_active":
            found.active += value
        case "messages_total":
            found.outcomes[labels["outcome"]] += value
        case "refusals_total":
            key = (labels["stage"], labels["plugin"], labels["reason"], labels["code_class"])
            found.refusals[key] += value
        case "auth_attempts_total":
            found.logins[labels["result"]] += value
        case "queue_messages":
            found.queue[labels["state"]] = value
        case "queue_oldest_message_age_seconds":
            found.oldest = value
        case "hook_verdicts_total":
            found.verdicts[labels["plugin"]][labels["verdict"]] += value
        case "shadow_verdicts_total":
            found.verdicts[f"{labels['plugin']} (shadow)"][labels["verdict"]] += value
        case "hook_errors_total":
            found.errors[labels["plugin"]] += value
        case "hook_duration_seconds_count":
            found.hooks[labels["plugin"], labels["hook"]].calls += value
        case "hook_duration_seconds_sum":
            found.hooks[labels["plugin"], labels["hook"]].seconds += value
        case "hook_duration_seconds_bucket":
            limit = inf if labels["le"] == "+Inf" else float(labels["le"])
            found.hooks[labels["plugin"], labels["hook"]].buckets[limit] += value
        case _:
            return False
    return True


def _take_server(found: Overview, name: str, labels: Mapping[str, str], value: float) -> None:  # noqa: C901, PLR0912 - as above
    match name:
        case "workers":
            found.workers = value
        case "sessions_limit":
            found.limit = value
        case "config_last_reload_successful":
            found.reload_ok = bool(value)
        case "problem" if value:
            found.problems.add(labels["problem"])
        case "tls_certificate_not_after_timestamp_seconds":
            found.certificates[labels["listener"]] = value
        case "tls_certificate_last_reload_successful" if not value:
            found.stale.add(labels["listener"])
        case "unusable_files":
            found.unusable_files = value
        case "dns_records":
            found.dns_records[labels["state"]] = value
        case "update_available" if value:
            found.newer_release = labels["version"]
        case "disk_free_bytes":
            found.free[labels["directory"]] = value
        case "disk_size_bytes":
            found.size[labels["directory"]] = value
        case "disk_reserve_bytes":
            found.reserve = value
        case "process_resident_memory_bytes":
            found.memory[labels["process"], labels["slot"]] = value
        case "process_start_time_seconds":
            found.started[labels["process"], labels["slot"]] = value


def _minus(now: Counts, before: Mapping[str, float]) -> Counts:
    return {name: max(0.0, value - before.get(name, 0.0)) for name, value in now.items()}
