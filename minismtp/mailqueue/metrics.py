"""What Prometheus scrapes of the queue."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final, TypeAlias

from minismtp.delivery.tls_security import LEVELS
from minismtp.mailqueue.recipient import QUEUE_STATES
from minismtp.runtime.metrics import SESSION_SECONDS, Metrics
from minismtp.runtime.metrics_buffer import Additions, Child

_STANDSTILL: Final = 900.0  # seconds; no single attempt takes longer
DELIVERY_RESULTS: Final = ("delivered", "deferred", "failed")
ASIDE: Final = ("damaged", "fatal")
_Counters: TypeAlias = dict[str, tuple[Child, float]]
DELAYS: Final = (0.1, 0.5, 1, 5, 30, 60, 300, 1800, 3600, 14400, 86400, 432000)


class OutboundMetrics:
    """The metrics of the queue. Only the process that takes messages out has them."""

    def __init__(self, metrics: Metrics) -> None:
        self._buffer = buffer = metrics.buffer
        gauge = partial(metrics.gauge, multiprocess_mode="livemostrecent")

        def counters(name: str, text: str, label: str, values: Iterable[str]) -> _Counters:
            counter = metrics.counter(name, text, [label])
            return {value: (counter.labels(value), 1.0) for value in values}

        text = "Messages that wait, by state; active are deliveries under way."
        self._messages = gauge("queue_messages", text, ["state"])
        text = "Age of the oldest message in the queue."
        self._age = gauge("queue_oldest_message_age_seconds", text)
        text = "Attempts to deliver to a recipient by result."
        self._attempts = counters("delivery_attempts", text, "result", DELIVERY_RESULTS)
        text = "Recipients that a further host was tried for in one attempt."
        #: Count recipients that one host did not take, so that the next one was tried.
        self.next_host = buffer.adder(metrics.counter("delivery_next_hosts", text))
        text = "Recipients delivered to other servers by how the connection was secured."
        self._secured = counters("delivery_tls", text, "level", LEVELS)
        text = "Messages of the queue that wait for an operator: damaged, or fatal to the process."
        self._aside = counters("messages_set_aside", text, "reason", ASIDE)
        text = "Length of attempts."
        self._duration = metrics.histogram(
            "delivery_duration_seconds", text, buckets=SESSION_SECONDS
        )
        text = "Time from arrival to delivery."
        self._delay = metrics.histogram("queue_delay_seconds", text, buckets=DELAYS)
        self.queue(dict.fromkeys(QUEUE_STATES, 0), 0.0)

    def attempt(self, state: str, seconds: float, delay: float, tls: str) -> None:
        """Count an attempt for one recipient by its shown state, and the delay of a delivery.

        `seconds` is how long the attempt took, `delay` is how many seconds ago the message arrived,
        and `tls` is one of `tls_security.LEVELS`, or empty if there was no connection.
        """
        happened = [self._attempts[state], (self._duration, seconds)]
        if state == "delivered":
            happened.append((self._delay, delay))
            if tls:
                happened.append(self._secured[tls])
        self._add(happened)

    def _add(self, additions: Additions) -> None:
        self._buffer.append(additions)
        if self._buffer.idle:
            self._buffer.announce()

    def set_aside(self, reason: str) -> None:
        """Count a message that is set aside for one of the reasons `ASIDE`."""
        self._add((self._aside[reason],))

    def queue(self, counts: Mapping[str, int], age: float) -> None:
        """Show how many messages are in each of `QUEUE_STATES`, and the oldest's age in seconds."""
        for state, count in counts.items():
            self._messages.labels(state).set(count)
        self._age.set(age)


class StallDetector:
    """Detects a queue that stands still: deliveries are due, and none ends for a long time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ended = 0
        self._moved = clock()

    def is_stalled(self, ended: int, *, due: bool) -> bool:
        """Return whether nothing moves; `ended` is how many deliveries have ended so far."""
        now = self._clock()
        if ended != self._ended or not due:
            self._ended, self._moved = ended, now
        return now - self._moved > _STANDSTILL
