"""What Prometheus scrapes of the queue."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from minismtp.delivery.tls_security import LEVELS
from minismtp.runtime.metrics import SESSION_SECONDS, Metrics

_STANDSTILL: Final = 900.0  # seconds: no single attempt takes so long
DELIVERY_RESULTS: Final = ("delivered", "deferred", "failed")
ASIDE: Final = ("damaged", "fatal")
QUEUE_STATES: Final = ("queued", "deferred", "held", "active")
DELAYS: Final = (0.1, 0.5, 1, 5, 30, 60, 300, 1800, 3600, 14400, 86400, 432000)


class OutboundMetrics:
    """The metrics of the queue; only the process that takes messages out has them."""

    def __init__(self, metrics: Metrics) -> None:
        registry, buffer = metrics.registry, metrics.buffer
        self._messages = Gauge(
            "minismtp_queue_messages",
            "Messages that wait, by state; active are deliveries under way.",
            ["state"],
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self._age = Gauge(
            "minismtp_queue_oldest_message_age_seconds",
            "Age of the oldest message in the queue.",
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        attempts = Counter(
            "minismtp_delivery_attempts",
            "Attempts to deliver to a recipient by result.",
            ["result"],
            registry=registry,
        )
        self._attempts = {r: buffer.adder(attempts.labels(r)) for r in DELIVERY_RESULTS}
        self._next_hosts = buffer.adder(
            Counter(
                "minismtp_delivery_next_hosts",
                "Recipients that a further host was tried for in one attempt.",
                registry=registry,
            )
        )
        secured = Counter(
            "minismtp_delivery_tls",
            "Recipients delivered to other servers by how the connection was secured.",
            ["level"],
            registry=registry,
        )
        self._secured = {level: buffer.adder(secured.labels(level)) for level in LEVELS}
        aside = Counter(
            "minismtp_messages_set_aside",
            "Messages of the queue that wait for an operator: damaged, or fatal to the process.",
            ["reason"],
            registry=registry,
        )
        self._aside = {reason: buffer.adder(aside.labels(reason)) for reason in ASIDE}
        self._duration = buffer.observer(
            Histogram(
                "minismtp_delivery_duration_seconds",
                "Length of attempts.",
                buckets=SESSION_SECONDS,
                registry=registry,
            )
        )
        self._delay = buffer.observer(
            Histogram(
                "minismtp_queue_delay_seconds",
                "Time from arrival to delivery.",
                buckets=DELAYS,
                registry=registry,
            )
        )
        self.queue(dict.fromkeys(QUEUE_STATES, 0), 0, 0.0)

    def attempt(self, state: str, seconds: float, delay: float, tls: str) -> None:
        """Count an attempt for one recipient, and what it waited if it has arrived.

        `tls` is one of `security.LEVELS`, empty when there was no connection.
        """
        self._attempts["deferred" if state == "queued" else state](1)
        self._duration(seconds)
        if state == "delivered":
            self._delay(delay)
            if tls:
                self._secured[tls](1)

    def next_host(self, recipients: int) -> None:
        """Count recipients that one host did not take, so that the next one was tried."""
        self._next_hosts(recipients)

    def set_aside(self, reason: str) -> None:
        """Count a message that is set aside for one of `ASIDE`."""
        self._aside[reason](1)

    def queue(self, counts: Mapping[str, int], active: int, oldest: float) -> None:
        """Say how many messages are in each state, and the age of the oldest in seconds."""
        for state, count in {**counts, "active": active}.items():
            self._messages.labels(state).set(count)
        self._age.set(oldest)


class Movement:
    """Tells a queue that stands still: deliveries are due, and none ends for a long time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ended = 0
        self._moved = clock()

    def stopped(self, ended: int, *, due: bool) -> bool:
        """Take in how many deliveries have ended; say whether nothing moves."""
        now = self._clock()
        if ended != self._ended or not due:
            self._ended, self._moved = ended, now
        return now - self._moved > _STANDSTILL
