"""The process that takes messages out of the spool (layer 6).

One thread hears of new messages and starts jobs; a pool of threads delivers, each blocking as it
needs. Every job ends with its outcomes in the schedule. What dies in between is tried again.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sqlite3
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from minismtp import log as logging
from minismtp import stacks
from minismtp.board import Board
from minismtp.config import Config
from minismtp.control import Control
from minismtp.guard import Failure
from minismtp.hookspecs import ServerInfo
from minismtp.log import Log, describe
from minismtp.metrics import Metrics, use_slot
from minismtp.outbound.agenda import Agenda, Job, delay
from minismtp.outbound.attempt import Attempt, Carrier, Outgoing, destination_of
from minismtp.outbound.destination import Directory
from minismtp.outbound.dsn import Action, Report, notification
from minismtp.outbound.metrics import OutboundMetrics
from minismtp.outbound.resolver import Resolver
from minismtp.outbound.schedule import Outcome, Row, Schedule
from minismtp.outbound.watch import Watch
from minismtp.plugins import PluginSet
from minismtp.settings import ConfigError
from minismtp.spool import BusyError, DamagedError, Entry, Spool, heard

EXIT_CONFIG: Final = 78
_TICK: Final = 1.0
_SWEEP: Final = 60.0  # seconds between two looks for messages that are too old
_DRAIN: Final = 30.0


@dataclass(frozen=True, slots=True)
class Desk:
    """What the supervisor gives the runner: as `worker.Post`."""

    slot: int
    metrics_directory: Path
    ready: int
    lifeline: int
    board: Board


def run(config: Config, desk: Desk) -> int:
    """Deliver until SIGTERM or the supervisor's death; gives the exit status."""
    log = Log(level=config.log.level, style=config.log.format)
    logging.bridge(log, config.log.level)
    use_slot(desk.metrics_directory, desk.slot)
    metrics = Metrics()
    spool = Spool(config.state_directory / "spool")
    try:
        plugins = PluginSet.load(config, metrics, log)
        spool.prepare()
        lock = _locked(spool, desk.lifeline)
        plugins.hooks().on_start(
            ServerInfo(config.hostname, config.state_directory, "outbound", desk.slot)
        )
    except (ConfigError, Failure) as error:
        logging.complain(f"minismtp: {error}")
        return EXIT_CONFIG
    log.start()
    metrics.tally.start()
    runner = Runner(config, spool, plugins, OutboundMetrics(metrics), log, board=desk.board)
    os.write(desk.ready, b"r")
    os.close(desk.ready)
    runner.run(desk.lifeline)
    plugins.hooks().on_stop()
    metrics.tally.flush()
    log.flush()
    os.close(lock)
    return 0


def _locked(spool: Spool, lifeline: int) -> int:
    """Wait until the runner before us has ended, as long as the supervisor lives."""
    while True:
        try:
            return spool.lock()
        except BusyError:
            readable, _, _ = select.select([lifeline], [], [], 0.1)
            if readable or signal.SIGTERM in signal.sigpending():
                os._exit(0)


class Runner:
    """The parts of the runner; `_lock` guards the agenda."""

    def __init__(
        self,
        config: Config,
        spool: Spool,
        plugins: PluginSet,
        metrics: OutboundMetrics,
        log: Log,
        *,
        board: Board,
    ) -> None:
        self._config = config
        self._spool = spool
        self._metrics = metrics
        self._log = log
        self._board = board
        outbound = config.outbound
        self._retry = [each.total_seconds() for each in outbound.retry]
        self._expire = outbound.expire.total_seconds()
        self._warn_after = outbound.warn_after.total_seconds()
        self._schedule = _open_schedule(config.state_directory / "spool" / "queue.db", log)
        self._agenda = Agenda(self._retry, outbound.concurrency)
        self._lock = threading.Lock()
        self._watch = Watch()
        self._places = outbound.threads
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._stopping = False
        directory = Directory(
            Resolver(outbound.nameservers),
            hostname=config.hostname,
            own=[listener.address for listener in config.listeners],
            port=outbound.port,
        )
        self._carrier = Carrier(config, plugins.hooks(), directory)

    def run(self, lifeline: int) -> None:
        """Deliver until TERM, then let what is under way end."""
        self._carrier.start()
        control = self._config.state_directory / "control"
        Control(control, "outbound", {"sessions": self._watch.report}).start()
        fifo = self._spool.listen()
        self._recover()
        next_sweep = 0.0
        threading.Thread(target=self._watch_signals, name="signals", daemon=True).start()
        while not self._stopping:
            now = time.time()
            if now >= next_sweep:
                next_sweep = now + _SWEEP
                self._sweep(now)
            self._start_jobs(now)
            readable, _, _ = select.select(
                [fifo, self._wake_read, lifeline], [], [], self._patience(time.time())
            )
            if lifeline in readable:
                break
            if self._wake_read in readable:
                os.read(self._wake_read, 65536)
            if fifo in readable:
                names, knocked = heard(fifo)
                self._take_in(names)
                if knocked:
                    self._reload()
            if self._spool.missed():
                self._take_in(self._spool.names())
            if self._schedule.changed():
                self._reload()
            self._publish()
        self._end()

    def _watch_signals(self) -> None:
        while signal.sigwait({signal.SIGTERM, signal.SIGUSR2}) == signal.SIGUSR2:
            stacks.dump()
        self._stopping = True
        self._rouse()

    def _recover(self) -> None:
        """Bring spool and schedule together after whatever has happened."""
        for name, whole in self._spool.recover():
            if whole:
                self._log.info("found after a crash", id=name)
        present = set(self._spool.names())
        known = self._schedule.names()
        for name in known - present:
            self._schedule.forget(name)
        for name in self._schedule.settled():
            self._spool.remove(name)
            self._schedule.forget(name)
            present.discard(name)
        self._take_in(present - known)
        self._reload()
        self._log.info("queue opened", messages=len(present))

    def _take_in(self, names: Iterable[str]) -> None:
        for name in names:
            try:
                entry, message = self._spool.open(name)
            except FileNotFoundError:
                continue  # done already
            except (DamagedError, OSError) as error:
                self._set_aside(name, error)
                continue
            targets = [(target.address, destination_of(target)) for target in entry.targets]
            held = entry.quarantined is not None and any(t.kind == "relay" for t in entry.targets)
            added = self._schedule.add(
                name, entry.sender, entry.arrived, message.size, targets, held=held
            )
            if added and not held:
                with self._lock:
                    for _, destination in targets:
                        self._agenda.add((name, destination), entry.arrived)

    def _set_aside(self, name: str, error: Exception) -> None:
        self._log.error("damaged message set aside in spool/damaged", id=name, error=str(error))
        if isinstance(error, DamagedError):
            self._spool.set_aside(name)
        self._schedule.forget(name)

    def _reload(self) -> None:
        """Plan everything anew: the operator has changed something."""
        self._return_wanted()
        for name in self._schedule.settled():
            self._settle(name)
        waiting = self._schedule.waiting()
        now = time.time()
        with self._lock:
            self._agenda.clear()
            for message, destination, when in waiting:
                self._agenda.add((message, destination), when)
                if when <= now:
                    self._agenda.open(destination)

    def _return_wanted(self) -> None:
        by_name: dict[str, list[Row]] = {}
        for row in self._schedule.returning():
            by_name.setdefault(row.message, []).append(row)
        for name, rows in by_name.items():
            outcomes = [Outcome(r.number, "failed", _final(r.reply), r.host) for r in rows]
            with contextlib.suppress(FileNotFoundError, DamagedError):
                entry, _ = self._spool.open(name)
                self._report(entry, outcomes, [False] * len(rows))
            self._schedule.record(name, outcomes, time.time())
            self._log.info("returned by the operator", id=name, recipients=len(rows))

    def _start_jobs(self, now: float) -> None:
        while True:
            with self._lock:
                if self._agenda.running >= self._places:
                    return
                job = self._agenda.take(now)
            if job is None:
                return
            threading.Thread(target=self._work, args=(job,), name="delivery", daemon=True).start()

    def _patience(self, now: float) -> float:
        with self._lock:
            if self._agenda.running >= self._places:
                return _TICK
            when = self._agenda.next_time()
        return _TICK if when is None else min(max(when - now, 0.0), _TICK)

    def _work(self, job: Job) -> None:
        """Do jobs for one destination one after the other, over one connection while it holds."""
        destination = job[1]
        attempt = Attempt(self._carrier, destination)
        following: Job | None = job
        try:
            while following is not None:
                with self._watch.on(following):
                    self._do(attempt, following)
                if self._stopping:
                    break
                with self._lock:
                    following = self._agenda.take_from(destination, time.time())
        finally:
            attempt.close()
            self._rouse()

    def _do(self, attempt: Attempt, job: Job) -> None:
        name, destination = job
        now = time.time()
        again: float | None = now + self._retry[0]
        reached: bool | None = None
        try:
            reached, again = self._deliver(attempt, name, destination)
        except FileNotFoundError:
            self._schedule.forget(name)
            again = None
        except DamagedError as error:
            self._set_aside(name, error)
            again = None
        except Exception as error:  # noqa: BLE001 - a job must never end without its message planned
            self._log.exception("delivery failed", error, id=name)
        finally:
            with self._lock:
                self._agenda.done(job, time.time(), reached=reached, again=again)

    def _deliver(
        self, attempt: Attempt, name: str, destination: str
    ) -> tuple[bool | None, float | None]:
        """Make one attempt; gives whether the destination was reached and when to come again."""
        entry, message = self._spool.open(name)
        rows = [
            row
            for row in self._schedule.rows(name)
            if row.destination == destination and row.state == "queued"
        ]
        if not rows:
            return None, None
        begun = time.time()
        outgoing = Outgoing(
            entry, message, tuple(entry.targets[row.number] for row in rows), rows[0].attempts
        )
        done = attempt.deliver(outgoing)
        now = time.time()
        expired = now >= entry.arrived + self._expire
        outcomes, nearest = [], None
        for row, answer in zip(rows, done.answers, strict=True):
            state, when = answer.state, 0.0
            if state == "queued" and expired:
                state = "failed"
            elif state == "queued":
                when = min(now + delay(self._retry, row.attempts + 1), entry.arrived + self._expire)
                nearest = min(when, nearest or when)
            self._metrics.attempt(state, now - begun, now - entry.arrived)
            self._log.info(
                {"queued": "delivery deferred"}.get(state, f"delivery {state}"),
                id=name,
                to=row.address,
                host=done.host,
                tls=done.tls,
                attempts=row.attempts + 1,
                delay=f"{now - entry.arrived:.1f}",
                reply=answer.reply,
            )
            outcomes.append(Outcome(row.number, state, answer.reply, done.host, when))
        # Reports first: after a crash between the two they come twice, never not at all.
        self._report(entry, outcomes, [each.reports for each in done.answers])
        self._schedule.record(name, outcomes, now)
        if all(row.state not in {"queued", "held"} for row in self._schedule.rows(name)):
            self._settle(name)
        return done.reached, nearest

    def _settle(self, name: str) -> None:
        self._spool.remove(name)
        self._schedule.forget(name)

    def _report(self, entry: Entry, outcomes: list[Outcome], reports: list[bool]) -> None:
        by_action: dict[Action, list[Report]] = {}
        for outcome, reported in zip(outcomes, reports, strict=True):
            target = entry.targets[outcome.number]
            report = Report(target, outcome.reply, outcome.host)
            if outcome.state == "failed":
                by_action.setdefault("failed", []).append(report)
            elif outcome.state == "delivered" and not reported:
                action: Action = "delivered" if target.kind == "local" else "relayed"
                by_action.setdefault(action, []).append(report)
        for action, told in by_action.items():
            self._notify(entry, action, told)

    def _notify(self, entry: Entry, action: Action, told: list[Report]) -> None:
        try:
            _, message = self._spool.open(entry.id)
        except (FileNotFoundError, DamagedError):
            return
        now = time.time()
        made = notification(
            entry,
            message,
            action,
            told,
            hostname=self._config.hostname,
            now=now,
            until=entry.arrived + self._expire,
        )
        if made is None:
            return
        notice, content = made
        notice = self._carrier.routed(notice)
        self._spool.add(notice, content)
        self._log.info("notification", id=notice.id, about=entry.id, action=action, to=entry.sender)

    def _sweep(self, now: float) -> None:
        """Look for messages whose sender should hear of a delay."""
        if not self._warn_after:
            return
        for name in self._schedule.to_warn(now - self._warn_after):
            try:
                entry, _ = self._spool.open(name)
            except (FileNotFoundError, DamagedError):
                continue
            told = [
                Report(entry.targets[row.number], row.reply, row.host)
                for row in self._schedule.rows(name)
                if row.state == "queued"
            ]
            self._notify(entry, "delayed", told)
            self._schedule.warned(name)

    def _publish(self) -> None:
        counts, oldest = self._schedule.counts()
        with self._lock:
            running = self._agenda.running
        age = 0.0 if oldest is None else max(0.0, time.time() - oldest)
        self._metrics.queue(counts, running, age)
        self._board.post_queue(sum(counts.values()))

    def _rouse(self) -> None:
        with contextlib.suppress(BlockingIOError):  # then it is awake enough
            os.write(self._wake_write, b"x")

    def _end(self) -> None:
        end = time.monotonic() + _DRAIN
        while time.monotonic() < end:
            with self._lock:
                if not self._agenda.running:
                    break
            time.sleep(0.05)
        self._schedule.close()


def _final(reply: str) -> str:
    """Give the reply of an operator's decision, with what the last host has said."""
    last = f" (the last attempt: {reply})" if reply else ""
    return f"550 5.0.0 returned by the postmaster{last}"


def _open_schedule(path: Path, log: Log) -> Schedule:
    """Open the schedule, or make a new one in the place of one that is damaged."""
    try:
        return Schedule(path)
    except sqlite3.DatabaseError as error:
        log.error("schedule is damaged, made anew from the spool", error=describe(error))
        path.replace(path.with_suffix(".damaged"))
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        return Schedule(path)
