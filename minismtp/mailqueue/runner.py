"""The process that takes messages out of the spool.

The main thread loads new messages and starts jobs. A pool of threads delivers them, each blocking
as it needs. The housekeeper and the database writer have a thread each. A delivery that the death
of the process interrupts is tried again.
"""

from __future__ import annotations

import os
import select
import signal
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from minismtp.config import Config
from minismtp.config.mistakes import ConfigError
from minismtp.delivery.attempt import DeliveryContext
from minismtp.hooks.guard import StartError
from minismtp.hooks.loader import PluginSet
from minismtp.hooks.sources import Packages
from minismtp.hooks.specs import ServerInfo
from minismtp.mailqueue.database import DatabaseWriter, QueueDatabase, use_all_cores
from minismtp.mailqueue.delivery_log import DeliveryLog
from minismtp.mailqueue.delivery_workers import DeliveryPool
from minismtp.mailqueue.handover import Handover
from minismtp.mailqueue.housekeeping import Housekeeper
from minismtp.mailqueue.in_progress import InProgress
from minismtp.mailqueue.index import QueueIndex
from minismtp.mailqueue.loader import Loader
from minismtp.mailqueue.manager import QueueManager
from minismtp.mailqueue.metrics import OutboundMetrics, StallDetector
from minismtp.mailqueue.notifications import Notifier
from minismtp.mailqueue.scheduler import JITTER, ProcessorTime, Scheduler
from minismtp.runtime.log import Log, describe
from minismtp.runtime.metrics import Metrics
from minismtp.runtime.process import open_log_and_metrics, report_ready
from minismtp.runtime.scoreboard import Scoreboard
from minismtp.runtime.suspects import Suspects
from minismtp.runtime.thread_activity import log_stacks
from minismtp.storage.spool import BusyError, Spool
from minismtp.values.sqlite_file import set_aside
from minismtp.values.threads import start_thread, surviving

_TICK: Final = 1.0  # seconds between two looks at what no event announces
_LOCK_TICK: Final = 0.05
# Seconds from one look for new messages to the next. Under load each message would wake this
# process, which shares its core with a worker; so some tens are read at once.
_GATHERING: Final = 0.02
_DOMAINS: Final = 10_000  # whose destinations are remembered


@dataclass(frozen=True, slots=True)
class RunnerContext:
    """What the supervisor gives the runner, as `WorkerContext` is for a worker.

    `packages` are those of the generation. `begin` starts what else this process does, because
    there is one such process.
    """

    slot: int
    metrics_directory: Path
    ready: int
    lifeline: int
    scoreboard: Scoreboard
    suspects: Suspects
    packages: Packages
    begin: Callable[[Config, PluginSet, Metrics, Log], object]


def run(config: Config, context: RunnerContext) -> int:
    """Deliver until SIGTERM or the supervisor's death; return the exit status."""
    log, metrics = open_log_and_metrics(config, context.metrics_directory, context.slot)
    spool = Spool(config.state_directory / "spool")
    try:
        plugins = PluginSet.load(config, metrics, log, context.packages)
        spool.prepare()
        lock = _locked(spool, context.lifeline)
        plugins.hooks().on_start(ServerInfo.of(config, "outbound", context.slot))
        delivery = DeliveryContext.of(config, plugins, log)
    except (ConfigError, StartError) as error:
        log.complain(f"minismtp: {error}")
        return os.EX_CONFIG
    log.start()
    metrics.buffer.start()
    runner = Runner(config, spool, delivery, OutboundMetrics(metrics), log, context=context)
    context.begin(config, plugins, metrics, log)
    report_ready(context.ready)
    runner.run(context.lifeline, lock)
    plugins.hooks().on_stop()
    metrics.buffer.flush()
    log.flush()
    return 0


def _locked(spool: Spool, lifeline: int) -> int:
    """Wait until the last runner gives up the spool, as long as the supervisor lives."""
    while True:
        try:
            return spool.lock()
        except BusyError:
            readable, _, _ = select.select([lifeline], [], [], _LOCK_TICK)
            if readable or signal.SIGTERM in signal.sigpending():
                os._exit(0)


class Runner:
    """The parts of the runner, and its main loop."""

    def __init__(
        self,
        config: Config,
        spool: Spool,
        delivery: DeliveryContext,
        metrics: OutboundMetrics,
        log: Log,
        *,
        context: RunnerContext,
    ) -> None:
        outbound, directory = config.outbound, config.state_directory / "spool"
        retry = [each.total_seconds() for each in outbound.retry]
        database = _open_database(directory / "queue.db")
        writer = DatabaseWriter(database, log)
        handover = Handover(spool, writer)
        index = QueueIndex(
            Scheduler(retry, outbound.concurrency, outbound.threads, ProcessorTime().is_busy),
            expire=outbound.expire.total_seconds(),
            longest=max(retry) * (1 + JITTER),
        )
        work = InProgress(context.suspects.of(context.slot))
        manager = QueueManager(spool, database, writer, index, handover, log, metrics.set_aside)
        notifier, deliveries = Notifier(delivery, spool, log), DeliveryLog(config, log)
        key = lru_cache(_DOMAINS)(delivery.key)
        warn_after = outbound.warn_after.total_seconds()
        self._loader = Loader(manager, spool, database, writer, index, handover, work, key, log)
        self._pool = DeliveryPool(
            delivery, manager, index, work, notifier, metrics, deliveries, log, retry
        )
        self._housekeeper = Housekeeper(manager, index, writer, work, notifier, log, warn_after)
        self._spool, self._manager, self._index, self._writer = spool, manager, index, writer
        self._deliveries, self._metrics = deliveries, metrics
        self._context, self._log, self._drain = context, log, config.limits.drain.total_seconds()
        self._wake_read, self._wake_write = os.pipe()
        self._stall_detector = StallDetector(time.monotonic)
        self._stopping = False

    def run(self, lifeline: int, lock: int) -> None:
        """Deliver until SIGTERM, then give up the spool's lock and let running deliveries end."""
        self._deliveries.start()
        fifo = self._spool.trigger.open()
        self._writer.start(use_all_cores)
        messages = self._loader.load_all(self._start_jobs)
        self._show_life()
        self._log.info("queue opened", messages=messages)
        self._housekeeper.start()
        start_thread("signals", self._watch_signals)
        next_tick = next_read = 0.0
        while not self._stopping:
            self._show_life()
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + _TICK
                self._tick()
            self._pool.start_jobs()
            patience = min(self._index.seconds_to_next() or _TICK, _TICK)
            sources = [self._wake_read, lifeline]
            if (pause := next_read - time.monotonic()) > 0:
                patience = min(patience, pause)
            else:
                sources.append(fifo)
            readable, _, _ = select.select(sources, [], [], patience)
            if lifeline in readable:
                break
            if fifo in readable:
                self._read(fifo)
                next_read = time.monotonic() + _GATHERING
        os.close(fifo)
        self._end(lock)

    def _read(self, fifo: int) -> None:
        names, changed = self._spool.trigger.read(fifo)
        self._loader.load(names, self._start_jobs)
        if changed:
            self._manager.apply_changes()

    def _start_jobs(self) -> None:
        self._pool.start_jobs()
        self._show_life()

    def _show_life(self) -> None:
        """Tell the supervisor that this process does not hang; it watches after the first call."""
        self._context.scoreboard.beat(self._context.slot)

    def _tick(self) -> None:
        self._loader.load_missed()
        self._manager.apply_changes()
        states, age = self._index.counts()
        self._metrics.queue(states, age)
        due = self._index.is_due()  # although hanging deliveries may have taken all places
        stalled = self._stall_detector.is_stalled(self._pool.ended, due=due)
        self._context.scoreboard.post_queue(sum(states.values()) - states["active"], stuck=stalled)

    def _watch_signals(self) -> None:
        # Not `sigwait`, which is written in Python and may fail after it took a SIGTERM.
        while signal.sigwaitinfo({signal.SIGTERM, signal.SIGUSR2}).si_signo == signal.SIGUSR2:
            with surviving("signals"):
                log_stacks(self._log)
        self._stopping = True
        os.write(self._wake_write, b"x")

    def _end(self, lock: int) -> None:
        self._housekeeper.stop()
        self._manager.stop()
        os.close(lock)
        end = time.monotonic() + self._drain
        while self._index.running() and time.monotonic() < end:
            self._show_life()
            time.sleep(_LOCK_TICK)
        self._writer.flush()
        self._deliveries.close()


def _open_database(path: Path) -> QueueDatabase:
    """Open the database; replace one that is damaged with a new one."""
    try:
        return QueueDatabase(path, check=True)
    except sqlite3.DatabaseError as error:
        set_aside(path, describe(error))
        return QueueDatabase(path)
