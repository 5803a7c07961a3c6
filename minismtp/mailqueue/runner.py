"""The process that takes messages out of the spool.

One thread hears of new messages and starts jobs; a pool of threads delivers, each blocking as it
needs; `housekeeper` and `writer` have a thread each. What dies in between is tried again.
"""

from __future__ import annotations

import os
import select
import signal
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from minismtp.config import Config
from minismtp.config.toml_values import ConfigError
from minismtp.delivery.attempt import DeliveryContext
from minismtp.hooks.guard import Failure
from minismtp.hooks.loader import PluginSet
from minismtp.hooks.specs import ServerInfo
from minismtp.mailqueue.database import QueueDatabase
from minismtp.mailqueue.delivery_log import Watch
from minismtp.mailqueue.delivery_workers import DeliveryPool
from minismtp.mailqueue.handover import Handover
from minismtp.mailqueue.housekeeping import Housekeeper
from minismtp.mailqueue.in_progress import InProgress
from minismtp.mailqueue.index import QueueIndex
from minismtp.mailqueue.journal import DatabaseWriter, use_all_cores
from minismtp.mailqueue.loader import Intake
from minismtp.mailqueue.manager import QueueManager
from minismtp.mailqueue.metrics import Movement, OutboundMetrics
from minismtp.mailqueue.notifications import Notifier
from minismtp.mailqueue.scheduler import JITTER, Scheduler
from minismtp.runtime.log import Log, describe
from minismtp.runtime.process import open_log_and_metrics, report_ready
from minismtp.runtime.scoreboard import Scoreboard
from minismtp.runtime.thread_activity import log_stacks
from minismtp.storage.spool import BusyError, Spool
from minismtp.values.clock import steady_time
from minismtp.values.sqlite_file import set_aside
from minismtp.values.threads import start_thread, surviving

_TICK: Final = 1.0  # seconds between two looks at what nobody calls for
_LOCK_TICK: Final = 0.05
_OTHERS: Final = 8  # threads that work on messages beside those that deliver
_HEARD: Final = 200  # messages that are taken in before jobs are started


@dataclass(frozen=True, slots=True)
class RunnerContext:
    """What the supervisor gives the runner: as `worker.Post`."""

    slot: int
    metrics_directory: Path
    ready: int
    lifeline: int
    scoreboard: Scoreboard


def run(config: Config, context: RunnerContext) -> int:
    """Deliver until SIGTERM or the supervisor's death; gives the exit status."""
    log, metrics = open_log_and_metrics(config, context.metrics_directory, context.slot)
    spool = Spool(config.state_directory / "spool")
    try:
        plugins = PluginSet.load(config, metrics, log)
        spool.prepare()
        lock = _locked(spool, context.lifeline)
        plugins.hooks().on_start(ServerInfo.of(config, "outbound", context.slot))
        delivery = DeliveryContext.of(config, plugins, log)
    except (ConfigError, Failure) as error:
        log.complain(f"minismtp: {error}")
        return os.EX_CONFIG
    log.start()
    metrics.buffer.start()
    runner = Runner(config, spool, delivery, OutboundMetrics(metrics), log, context=context)
    report_ready(context.ready)
    runner.run(context.lifeline, lock)
    plugins.hooks().on_stop()
    metrics.buffer.flush()
    log.flush()
    return 0


def _locked(spool: Spool, lifeline: int) -> int:
    """Wait until the runner before us has ended, as long as the supervisor lives."""
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
        outbound = config.outbound
        retry = [each.total_seconds() for each in outbound.retry]
        expire = outbound.expire.total_seconds()
        self._drain = config.limits.drain.total_seconds()
        self._metrics = metrics
        self._context = context
        self._log = log
        self._watch = Watch(config, log)
        self._delivery = delivery
        directory = config.state_directory / "spool"
        schedule = _open_schedule(directory / "queue.db")
        writer = DatabaseWriter(schedule, log)
        self._manager = QueueManager(
            spool,
            schedule,
            writer,
            QueueIndex(Scheduler(retry, outbound.concurrency, outbound.threads), expire=expire),
            Handover(spool, writer),
            log,
            longest=max(retry) * (1 + JITTER),
            in_progress=InProgress(directory, outbound.threads + _OTHERS, log),
            count_aside=metrics.set_aside,
        )
        notifier = Notifier(self._delivery, spool, log, expire)
        self._intake = Intake(self._manager, self._delivery.key)
        self._pool = DeliveryPool(self._delivery, self._manager, notifier, metrics, self._watch)
        warn_after = outbound.warn_after.total_seconds()
        self._housekeeper = Housekeeper(self._manager, notifier, warn_after=warn_after)
        self._wake_read, self._wake_write = os.pipe()
        self._movement = Movement(time.monotonic)
        self._stopping = False

    def run(self, lifeline: int, lock: int) -> None:
        """Deliver until TERM, then give up the spool's lock and let what is under way end."""
        self._watch.start()
        self._manager.in_progress.start()
        fifo = self._manager.spool.trigger.open()
        messages = self._intake.recover()
        self._show_life()
        self._log.info("queue opened", messages=messages)
        self._manager.writer.start(use_all_cores)
        self._housekeeper.start()
        start_thread("signals", self._watch_signals)
        next_tick = 0.0
        while not self._stopping:
            self._show_life()
            if time.monotonic() >= next_tick:
                next_tick = time.monotonic() + _TICK
                self._tick()
            self._pool.start_jobs()
            patience = min(self._manager.index.patience() or _TICK, _TICK)
            readable, _, _ = select.select([fifo, self._wake_read, lifeline], [], [], patience)
            if lifeline in readable:
                break
            if fifo in readable:
                self._hear(fifo)
        os.close(fifo)
        self._end(lock)

    def _hear(self, fifo: int) -> None:
        names, changed = self._manager.spool.trigger.read(fifo)
        for start in range(0, len(names), _HEARD):
            self._intake.take_in(names[start : start + _HEARD])
            self._pool.start_jobs()
            self._show_life()
        if changed:
            self._manager.hear_of_changes()

    def _show_life(self) -> None:
        """Tell the supervisor that this process does not hang; it first looks after recovery."""
        self._context.scoreboard.beat(self._context.slot)

    def _tick(self) -> None:
        self._intake.take_in_rest()
        self._manager.hear_of_changes()
        census = self._manager.index.census()
        age = 0.0 if census.oldest is None else max(0.0, steady_time() - census.oldest)
        self._metrics.queue(census.states, census.active, age)
        self._context.scoreboard.post_queue(
            len(self._manager.index),
            stuck=self._movement.stopped(
                self._pool.ended, due=self._manager.index.patience() == 0.0
            ),
        )

    def _watch_signals(self) -> None:
        # Not `sigwait`, which is written in Python and may fail with a TERM in its hands.
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
        while self._manager.index.running() and time.monotonic() < end:
            self._show_life()
            time.sleep(_LOCK_TICK)
        self._manager.writer.flush()
        self._watch.close()
        self._manager.in_progress.close()


def _open_schedule(path: Path) -> QueueDatabase:
    """Open the schedule, or make a new one in the place of one that is damaged."""
    try:
        return QueueDatabase(path, check=True)
    except sqlite3.DatabaseError as error:
        set_aside(path, describe(error))
        return QueueDatabase(path)
