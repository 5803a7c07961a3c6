"""The process that gets and renews the certificate of `[tls.acme]`.

It runs only if the configuration has that table, as the server's user. A thread looks every few
seconds at the certificate and at the outcome of the last attempt, which are on disk, so it also
sees what `minismtp certificate renew` did. The workers find a new certificate by themselves. The
library for ACME is imported when the process starts, because weeks later, after an upgrade, it may
be another release; a process that starts after an upgrade refuses it. An attempt hangs at worst
this process.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Final

from minismtp.config import AcmeConfig, Config
from minismtp.config.mistakes import ConfigError
from minismtp.runtime.log import Log
from minismtp.runtime.metrics import Metrics
from minismtp.runtime.process import end_with_supervisor, open_log_and_metrics, report_ready
from minismtp.runtime.scoreboard import BEAT_INTERVAL, Scoreboard
from minismtp.runtime.thread_activity import log_stacks
from minismtp.server.installed_code import InstalledCode
from minismtp.services.acme_files import (
    AcmeFiles,
    BusyError,
    State,
    is_time_to_ask,
    require_library,
)
from minismtp.services.acme_schedule import (
    AbsentError,
    AcmeError,
    Failure,
    Plan,
    is_self_signed,
    plan,
    wait,
    waits_for_dns,
)
from minismtp.services.certificate_file import Certificate
from minismtp.services.resolver import Resolver
from minismtp.values.threads import start_thread

_TICK: Final = 5.0  # seconds between two looks
_ATTEMPT: Final = "minismtp.services.acme"  # with its library it takes 20 MiB
#: As installed when the supervisor imported this module.
_CODE: Final = InstalledCode("acme", "josepy", "requests", "urllib3", "cryptography")
_LONGEST_ATTEMPT: Final = 900.0  # seconds
_SIGNALS: Final = {signal.SIGTERM, signal.SIGUSR2}


@dataclass(frozen=True, slots=True)
class CertificateContext:
    """What the supervisor gives this process, as `WorkerContext` is for a worker."""

    slot: int
    metrics_directory: Path
    ready: int
    lifeline: int
    scoreboard: Scoreboard


def run(config: Config, context: CertificateContext) -> int:
    """Keep the certificate new until SIGTERM or the supervisor's death. Return the exit status."""
    log, metrics = open_log_and_metrics(config, context.metrics_directory, context.slot)
    acme = config.tls.acme
    if acme is None:
        return os.EX_CONFIG
    renewals = Renewals(config, acme, metrics, log)
    log.start()
    metrics.buffer.start()
    context.scoreboard.beat(context.slot)
    end_with_supervisor(context.lifeline)
    report_ready(context.ready)
    start_thread("acme", renewals.run)
    status = 0
    while True:
        received = signal.sigtimedwait(_SIGNALS, BEAT_INTERVAL)
        if received is not None and received.si_signo == signal.SIGTERM:
            break
        if received is not None:
            log_stacks(log)
        context.scoreboard.beat(context.slot)
        if time.monotonic() > renewals.end_by:
            log.error("the attempt to get a certificate hangs", limit=_LONGEST_ATTEMPT)
            status = 1
            break
    renewals.stop()
    metrics.buffer.flush()
    log.flush()
    return status


class Renewals:
    """Gets the certificate when it is time. `end_by` is when an attempt hangs, monotonic."""

    def __init__(self, config: Config, acme: AcmeConfig, metrics: Metrics, log: Log) -> None:
        self._config = config
        self._acme = acme
        self._files = AcmeFiles.of(config)
        self._log = log
        self._failures = 0  # in a row
        self._resume = 0.0  # monotonic; attempts whose failure could not be noted wait, too
        self._told = ""
        self._ending = threading.Event()
        self.end_by = inf
        gauge = partial(metrics.gauge, multiprocess_mode="livemostrecent")
        text = "Whether the last attempt to get a certificate succeeded."
        self._succeeded = gauge("acme_last_attempt_successful", text)
        text = "When the next certificate will be asked for."
        self._next = gauge("acme_next_attempt_timestamp_seconds", text)

    def run(self) -> None:
        """Look again and again."""
        with contextlib.suppress(ImportError):  # which the first attempt raises again
            try:
                self._import()
            except ConfigError as error:
                self._tell_once(str(error))
        while not self._ending.is_set():
            try:
                self.step()
            except OSError as error:  # of a file
                self._tell_once(f"{error.filename}: {error.strerror}")
            except ConfigError as error:  # no library, or of another release
                self._tell_once(str(error))
            finally:
                self.end_by = inf
            self._ending.wait(_TICK)

    def stop(self) -> None:
        """Look no more."""
        self._ending.set()

    def step(self) -> None:
        """Get a certificate if it is time. Raise OSError, and ConfigError without the library."""
        certificate, state = self._certificate(), self._files.state()
        coming = self._show(certificate, state)
        if coming.at <= time.time():
            if time.monotonic() >= self._resume:
                self._get(coming.reason)
        elif certificate is not None and not is_self_signed(certificate) and not state.error:
            self._ask(state)

    def _import(self) -> None:
        """Import what an attempt needs. Raise ConfigError if there is none of this release."""
        require_library(self._config.file)
        if _ATTEMPT not in sys.modules:
            with _CODE.guarding():
                importlib.import_module(_ATTEMPT)

    def _show(self, certificate: Certificate | None, state: State, *, failed: bool = False) -> Plan:
        """Set the metrics, and return when the next attempt is."""
        coming = plan(self._acme, certificate, state)
        self._succeeded.set(float(not (state.error or failed)))
        self._next.set(coming.at or time.time())
        return coming

    def _get(self, reason: str) -> None:
        self._import()
        from minismtp.services.acme import get_certificate  # noqa: PLC0415 - takes long

        self.end_by = time.monotonic() + _LONGEST_ATTEMPT
        self._log.info("getting a certificate", names=",".join(self._acme.names), reason=reason)
        resolver = Resolver(self._config.dns.nameservers)  # a new one, without old answers
        try:
            got = get_certificate(
                self._config, lambda step: self._log.debug("acme", step=step), resolver
            )
        except BusyError:
            return
        except AbsentError as error:
            coming = self._show(self._certificate(), self._files.state())
            text = "the certificate waits for the DNS"
            self._log.warning(text, reason=str(error), next=_date(coming.at))
        except AcmeError as error:
            self._failures += 1
            self._resume = time.monotonic() + wait(Failure.UNREACHED, self._failures)
            coming = self._show(self._certificate(), self._files.state(), failed=True)
            text = "no new certificate, the old one stays"
            self._log.error(text, error=str(error), next=_date(coming.at))
        else:
            self._failures, self._resume = 0, 0.0
            state = self._files.state()
            coming = self._show(got, state)
            self._log.info("got a certificate", names=",".join(got.names), until=_date(got.end))
            if state.error:
                tell = self._log.warning if waits_for_dns(state) else self._log.error
                text = "the certificate lacks names"
                tell(text, error=state.error, next=_date(coming.at))

    def _ask(self, state: State) -> None:
        """Ask the authority when it wants the renewal, some times a day."""
        if not is_time_to_ask(state):
            return
        self._import()
        from minismtp.services.acme import ask_for_renewal  # noqa: PLC0415 - takes long

        self.end_by = time.monotonic() + _LONGEST_ATTEMPT
        try:
            ask_for_renewal(self._config)
        except BusyError:
            pass
        except AcmeError as error:
            self._log.info("the time of the renewal is not known", error=str(error))

    def _certificate(self) -> Certificate | None:
        try:
            return self._files.present()
        except ValueError:  # damaged, so another one is needed
            return None

    def _tell_once(self, problem: str) -> None:
        if problem != self._told:
            self._told = problem
            self._log.error("the certificate cannot be looked after", error=problem)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds or time.time()))
