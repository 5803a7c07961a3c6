"""The server's own look at the DNS, from time to time: whether the records are still right.

A thread of the process that delivers asks for all records of the configuration. What went wrong is
logged once, and counted in `minismtp_dns_records`, on which an alert is based.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from minismtp.config import Config, PluginConfig
from minismtp.config.mistakes import ConfigError
from minismtp.inspection.dns_check import STATES, DnsChecker, Outcome, State, answered, chains_of
from minismtp.inspection.dns_records import (
    addresses_in_dns,
    own_addresses,
    wanted_records,
)
from minismtp.inspection.questions import HurriedResolver
from minismtp.runtime.log import Log
from minismtp.runtime.metrics import Metrics
from minismtp.values.threads import start_thread

_chance: Final = random.SystemRandom()
_FIRST: Final = 60.0  # seconds until the first look, so that a restart does not wait for it
_AGAIN: Final = 3600.0  # seconds until the next look after a record went wrong
_SECONDS: Final = 30.0  # for all questions
_SECONDS_EACH: Final = 0.1
_JITTER: Final = 0.1
_KNOWN: Final = ("right", "missing", "wrong")


class DnsWatch:
    """Looks again and again. `records` counts them by state for the metrics."""

    def __init__(
        self,
        config: Config,
        plugins: Sequence[tuple[PluginConfig, object]],
        metrics: Metrics,
        log: Log,
    ) -> None:
        self._config, self._plugins, self._log = config, plugins, log
        self._states: dict[tuple[str, str, str], State] = {}
        text = "Records in the DNS that the configuration needs, by what was found last."
        gauge = partial(metrics.gauge, multiprocess_mode="livemostrecent")
        self._gauge = gauge("dns_records", text, ["state"])
        self._show([])

    def start(self) -> None:
        """Start the thread."""
        start_thread("dns", self.run)

    def run(self, sleep: Callable[[float], object] = time.sleep) -> None:
        """Look for ever. A test may give `sleep`."""
        interval = self._config.dns.check.total_seconds()
        sleep(min(_FIRST, interval) * _chance.uniform(0.5, 1.0))
        while True:
            pause = interval if self.look() else min(interval, _AGAIN)
            sleep(pause * _chance.uniform(1 - _JITTER, 1 + _JITTER))

    def look(self) -> bool:
        """Look once; return whether all records that are needed are right."""
        try:
            outcomes = self._outcomes()
        except ConfigError as error:  # such as a name that a plugin gave
            self._log.warning("the records for the DNS are not known", error=str(error))
            return True
        for outcome in outcomes:
            self._tell(outcome)
        self._show(outcomes)
        return not any(outcome.fails for outcome in outcomes)

    def _outcomes(self) -> list[Outcome]:
        config = self._config
        resolver = HurriedResolver(config.dns.nameservers, lambda _: None, _SECONDS)
        addresses = own_addresses(config) or addresses_in_dns(resolver, config.hostname)
        records = wanted_records(config, addresses=addresses, plugins=self._plugins)
        seconds = _SECONDS + _SECONDS_EACH * len(records)
        resolver = HurriedResolver(config.dns.nameservers, lambda _: None, seconds)
        smarthost = config.outbound.smarthost is not None
        checker = DnsChecker(resolver, addresses, chains_of(config), smarthost=smarthost)
        outcomes = answered(checker.asked(records), resolver)
        return [each for each in outcomes if each.state != "missing" or each.need == "required"]

    def _tell(self, outcome: Outcome) -> None:
        """Log what changed since the last look. No answer says nothing about a record."""
        if outcome.state == "unanswered":
            return
        key = (outcome.name, outcome.kind, outcome.wanted)
        before = self._states.get(key, "right")
        self._states[key] = outcome.state
        if outcome.state == before:
            return
        fields = {"name": outcome.name, "type": outcome.kind}
        if outcome.state == "right":
            self._log.info("dns record is right again", **fields)
            return
        fields["wanted"] = outcome.wanted
        if outcome.found:
            fields["found"] = ", ".join(outcome.found)
        if outcome.note:
            fields["note"] = outcome.note
        self._log.warning(f"dns record is {outcome.state}", **fields)

    def _show(self, outcomes: Iterable[Outcome]) -> None:
        count = Counter(each.state for each in outcomes)
        for state in STATES:
            self._gauge.labels(state).set(count[state])
