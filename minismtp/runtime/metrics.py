"""What Prometheus scrapes from one process.

Sessions never touch a metric themselves. They append to a `MetricsBuffer`. A worker keeps the
values in the files of its slot (prometheus-client's multiprocess mode), so there are never more
files than slots. `server.http_endpoint` reads them and adds the metrics of the whole server.
`mailqueue.metrics` has the metrics of the queue.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterable
from copy import copy
from functools import partial
from pathlib import Path
from random import random
from time import perf_counter, thread_time
from typing import Any, Final

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, mmap_dict
from prometheus_client import values as prometheus_values

from minismtp.runtime.metrics_buffer import Additions, Child, Histogram, MetricsBuffer
from minismtp.runtime.thread_activity import Activity, Step, here

SECONDS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
SESSION_SECONDS: Final = (0.01, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600)
SIZES: Final = (1e3, 4e3, 16e3, 64e3, 256e3, 1e6, 4e6, 16e6, 64e6)
COMMANDS: Final = (
    *("EHLO", "HELO", "LHLO", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "QUIT", "VRFY"),
    *("EXPN", "HELP", "STARTTLS", "AUTH", "XCLIENT", "CONTENT", "OTHER"),
)
MECHANISMS: Final = (
    *("PLAIN", "LOGIN", "SCRAM-SHA-256", "OAUTHBEARER", "XOAUTH2", "EXTERNAL", "OTHER"),
)
CONNECTION_RESULTS: Final = ("accepted", "refused", "limited")
AUTH_RESULTS: Final = ("success", "failure", "error", "cancelled")
MESSAGE_OUTCOMES: Final = ("stored", "queued", "discarded", "quarantined", "rejected", "deferred")
RECIPIENT_OUTCOMES: Final = ("accepted", "rejected", "deferred")
VERDICT_OUTCOMES: Final = ("rejected", "deferred", "notified", "quarantined", "dropped")
SERVER: Final = "server"  #: in place of a plugin, for what the server itself refuses
#: Refusals by the server itself that operators are warned of: stage, reason and class.
KNOWN_REFUSALS: Final = (
    *(("mail", "disk_full", "4xx"), ("content", "disk_full", "4xx"), ("rcpt", "relaying", "5xx")),
    *(("content", "system", "4xx"), ("auth", "login", "5xx")),
)
# CPU time is measured by two system calls, so not for every call of a hook. A call that begins
# later than `_PAUSE` seconds after the last measured one of its hook is measured. Of the others one
# in `_SHARE` is, chosen at random, and counts for as many. So no sum is biased, whatever pattern
# the calls have, because the choice does not depend on what the call will take.
_PAUSE: Final = 0.1
_SHARE: Final = 16
VERDICTS: Final = ("none", "answer", "reject", "defer", "disconnect")
# Octets of a new file. All of them are in memory, and most files have a few values.
_FILE_SIZE: Final = 1 << 14
_log: Final = logging.getLogger(__name__)


class _Slot:
    """The slot of this process."""

    number = 0


# The class is made here, before the fork, because making it takes 0.2 MB in each process.
_SlotValue: Final = prometheus_values.MultiProcessValue(lambda: _Slot.number)  # type: ignore[no-untyped-call]


def use_slot(directory: Path, slot: int) -> None:
    """Keep the metrics of this process in the files of `slot`. Call this before `Metrics`."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    prometheus_values.MmapedDict = ReservedDict  # type: ignore[attr-defined]
    _Slot.number = slot
    prometheus_values.ValueClass = _SlotValue
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


class ReservedDict(mmap_dict.MmapedDict):
    """Values by key in the file `filename`, which grows only into reserved space.

    prometheus-client maps sparse files into memory. On a full disk, a write to such a page kills
    the process by SIGBUS. So the space of each file is reserved before it is mapped. If the disk is
    full, the values stay in the memory of the process and are not exported.
    """

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        path = Path(filename)
        try:
            with path.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, max(_FILE_SIZE, path.stat().st_size))
        except OSError as error:
            _log.error("metrics are not exported, %s: %s", filename, error.strerror)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            filename = f"/proc/self/fd/{os.memfd_create(path.name)}"
            os.truncate(filename, _FILE_SIZE)
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        needed = self._used + len(key.encode()) + 32  # for its length, padding and two numbers
        while needed > self._capacity:
            self._grow()
        super()._init_value(key)  # type: ignore[no-untyped-call]

    def _grow(self) -> None:
        size = 2 * self._capacity
        try:
            os.posix_fallocate(self._f.fileno(), 0, size)
            self._m = mmap.mmap(self._f.fileno(), size)
        except OSError as error:
            _log.error("metrics are not exported any more, %s: %s", self._fname, error.strerror)
            before, self._m = self._m, mmap.mmap(-1, size)
            self._m[: self._capacity] = before[:]
        self._capacity = size


def count_thread_failures(registry: CollectorRegistry) -> Callable[[str, int], None]:
    """Return a function that counts the failures of threads by name (see `values.threads`).

    It bypasses the buffer, because the buffer's own thread may be the one that fails.
    """
    text = "Unexpected exceptions that threads raised and survived."
    counter = Counter("minismtp_thread_failures", text, ["thread"], registry=registry)
    return lambda thread, times: counter.labels(thread).inc(times)


class HookMetrics:
    """The record of the calls of one plugin's implementation of one hook."""

    def __init__(self, metrics: Metrics, plugin: str, hook: str, *, shadow: bool = False) -> None:
        labels = (plugin, hook)
        verdicts = metrics.shadow_verdicts if shadow else metrics.hook_verdicts
        mark = "shadow:" if shadow else ""
        self._plugin = plugin
        self._hook = hook
        self._buffer = metrics.buffer
        self._duration = metrics.hook_duration.labels(*labels)
        self._cpu = metrics.hook_cpu.labels(*labels)
        self._verdicts = {mark + kind: (verdicts.labels(*labels, kind), 1.0) for kind in VERDICTS}
        self._storage = metrics.storage_duration.labels(plugin) if hook == "deliver" else None
        self._measured = 0.0  # when the last call began whose CPU time was measured
        self.error = metrics.buffer.adder(metrics.hook_errors.labels(*labels))
        self.overrun = metrics.buffer.adder(metrics.hook_overruns.labels(*labels))

    def begin(self) -> tuple[Activity, float, int, float]:
        """Begin a call in this thread.

        Return what the thread works on, when the call begins, for how many calls its CPU time
        counts, and the CPU time so far. A call that counts for 0 is not measured.
        """
        activity, begun, weight, cpu = here.activity, perf_counter(), 0, 0.0
        if begun - self._measured > _PAUSE:
            weight = 1
        elif random() * _SHARE < 1:  # noqa: S311 - no secret depends on it
            weight = _SHARE
        if weight:
            self._measured, cpu = begun, thread_time()
        activity.running = (self._hook, self._plugin, begun)
        return activity, begun, weight, cpu

    def end(self, activity: Activity, step: Step, cpu: float, *, stored: bool) -> None:
        """Note a call as a step, and count it with its weighted CPU time, and mail it `stored`."""
        buffer, counted = self._buffer, (self._verdicts[step[4]], (self._duration, step[3]))
        buffer.append((*counted, (self._cpu, cpu)) if cpu else counted)
        if stored and self._storage is not None:
            buffer.append(((self._storage, step[3]),))
        if buffer.idle:
            buffer.announce()
        if len(activity.steps) < activity.most_steps:
            activity.steps.append(step)


class ListenerMetrics:
    """The metrics of one listener, bound to their labels once, because a look-up takes time.

    Nearly all are additions of 1, which `add` puts into `buffer`.
    """

    def __init__(self, metrics: Metrics, listener: str) -> None:
        def one(counter: Counter, *labels: str) -> tuple[tuple[Child, float], ...]:
            return ((counter.labels(listener, *labels), 1.0),)

        self.buffer = metrics.buffer
        self.add: Callable[[Additions], None] = metrics.buffer.append
        self.connections = {each: one(metrics.connections, each) for each in CONNECTION_RESULTS}
        self.tls = {each: one(metrics.tls_sessions, each) for each in ("TLSv1.2", "TLSv1.3")}
        self.messages = {each: one(metrics.messages, each) for each in MESSAGE_OUTCOMES}
        self.recipients = {each: one(metrics.recipients, each) for each in RECIPIENT_OUTCOMES}
        self.verdicts = {each: one(metrics.recipient_verdicts, each) for each in VERDICT_OUTCOMES}
        self.commands = {
            (command, category): one(metrics.commands, command, f"{category}xx")
            for command in COMMANDS
            for category in (2, 3, 4, 5)
        }
        self.auth = {
            (mechanism, result): one(metrics.auth, mechanism, result)
            for mechanism in MECHANISMS
            for result in AUTH_RESULTS
        }
        self.active = metrics.connections_active.labels(listener)
        self._listener, self._refusals = listener, metrics.refusals
        self._refused: dict[tuple[str, ...], Additions] = {}
        for stage, reason, code_class in KNOWN_REFUSALS:
            self._refusal(stage, SERVER, reason, code_class)
        self.session_duration = metrics.session_duration.labels(listener)
        self.message_size = metrics.message_size.labels(listener)

    def refused(self, stage: str, plugin: str, reason: str, code_class: str) -> None:
        """Count a refusal, by its `plugin` or by the server itself if that is empty.

        `stage` and `reason` are words of `session.refusal_reasons`.
        """
        self.add(self._refusal(stage, plugin or SERVER, reason, code_class))

    def _refusal(self, *labels: str) -> Additions:
        found = self._refused.get(labels)
        if found is None:
            found = self._refused[labels] = ((self._refusals.labels(self._listener, *labels), 1.0),)
        return found

    def silent(self) -> ListenerMetrics:
        """Return metrics that count nothing, for sessions such as health checks of a balancer."""
        silent = copy(self)
        silent.add = deque[Additions](maxlen=0).append
        return silent


class Metrics:
    """All metrics of one process, under the names in docs/monitoring.md.

    `counter`, `gauge` and `histogram` define a metric whose name begins with `minismtp_`.
    """

    def __init__(
        self, listeners: Iterable[str] = (), registry: CollectorRegistry | None = None
    ) -> None:
        self.registry = registry or CollectorRegistry()
        self.buffer = MetricsBuffer()
        #: Those of `own_metrics` by name: the shape, the first plugin, and the metric.
        self.own: dict[str, tuple[tuple[str, ...], str, Any]] = {}
        self.counter = partial(Counter, namespace="minismtp", registry=self.registry)
        self.gauge = partial(Gauge, namespace="minismtp", registry=self.registry)
        self.histogram = partial(Histogram, namespace="minismtp", registry=self.registry)
        self._define_process()
        self._define_sessions()
        self._define_mail()
        self._define_hooks()
        self._listeners = {name: ListenerMetrics(self, name) for name in listeners}

    def listener(self, name: str) -> ListenerMetrics:
        """Return the metrics of a listener. All its combinations of labels start at 0."""
        if name not in self._listeners:
            self._listeners[name] = ListenerMetrics(self, name)
        return self._listeners[name]

    def certificate(self, listener: str, *, loaded: bool, not_after: float | None) -> None:
        """Set whether a listener's certificates loaded, and when they expire in epoch seconds."""
        self.certificate_loaded.labels(listener).set(float(loaded))
        if not_after is not None:
            self.certificate_not_after.labels(listener).set(not_after)

    def _define_process(self) -> None:
        self.thread_failed = count_thread_failures(self.registry)
        text = "Lines of the log that were dropped because its reader was too slow."
        self.log_dropped = self.buffer.adder(self.counter("log_lines_dropped", text))
        text = "Files of passwords, users and the like that are gone, unreadable or empty."
        self.unusable_files = self.gauge("unusable_files", text, multiprocess_mode="livemax")

    def _define_sessions(self) -> None:
        counter, listener = self.counter, ["listener"]
        newest = partial(self.gauge, multiprocess_mode="livemostrecent")
        text = "Connections by result."
        self.connections = counter("connections", text, [*listener, "result"])
        text = "Connections open now."
        self.connections_active = self.gauge(
            "connections_active", text, listener, multiprocess_mode="livesum"
        )
        text = "Length of sessions."
        self.session_duration = self.histogram(
            "session_duration_seconds", text, listener, buckets=SESSION_SECONDS
        )
        text = "Replies by command and class."
        self.commands = counter("commands", text, [*listener, "command", "code_class"])
        text = "TLS handshakes that succeeded."
        text = "Refusals by stage, plugin and kind of reason."
        labels = [*listener, "stage", "plugin", "reason", "code_class"]
        self.refusals = counter("refusals", text, labels)
        self.tls_sessions = counter("tls_sessions", text, [*listener, "version"])
        self.auth = counter("auth_attempts", "AUTH exchanges.", [*listener, "mechanism", "result"])
        text = "Whether the files of a listener's certificate loaded when they last changed."
        self.certificate_loaded = newest("tls_certificate_last_reload_successful", text, listener)
        text = "When the first of a listener's certificates expires."
        self.certificate_not_after = newest(
            "tls_certificate_not_after_timestamp_seconds", text, listener
        )

    def _define_mail(self) -> None:
        labels = ["listener", "outcome"]
        self.messages = self.counter("messages", "Messages by outcome.", labels)
        self.recipients = self.counter("recipients", "Recipients by the outcome of RCPT.", labels)
        text = "Verdicts on the content for one recipient alone."
        self.recipient_verdicts = self.counter("recipient_verdicts", text, labels)
        text = "Size of received messages."
        self.message_size = self.histogram("message_size_bytes", text, ["listener"], buckets=SIZES)
        text = "Time to store a copy durably."
        self.storage_duration = self.histogram(
            "storage_duration_seconds", text, ["plugin"], buckets=SECONDS
        )

    def _define_hooks(self) -> None:
        counter, labels = self.counter, ["plugin", "hook"]
        text = "Wall time of hook implementations."
        self.hook_duration = self.histogram("hook_duration_seconds", text, labels, buckets=SECONDS)
        text = "CPU time of hook implementations, extrapolated from a sample of calls."
        self.hook_cpu = counter("hook_cpu_seconds", text, labels)
        text = "Calls of hook implementations by verdict."
        self.hook_verdicts = counter("hook_verdicts", text, [*labels, "verdict"])
        text = "Exceptions of plugins that are not verdicts."
        self.hook_errors = counter("hook_errors", text, labels)
        text = "Hook calls that took longer than the plugin's timeout."
        self.hook_overruns = counter("hook_overruns", text, labels)
        text = "Calls of plugins in shadow mode by verdict."
        self.shadow_verdicts = counter("shadow_verdicts", text, [*labels, "verdict"])
