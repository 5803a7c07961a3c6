"""What stands between a plugin's code and a session (layer 3).

Every hook implementation is called through a guard, which times it (wall and CPU), counts its
verdict, and turns any other exception into the plugin's policy: a crashing filter defers mail, it
never accepts or loses it. In shadow mode the implementation works on copies and its verdict is
counted, never applied.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter, thread_time
from typing import Any, Final, Literal, Protocol

from minismtp.envelope import Envelope, Local, Relay
from minismtp.events import HookFailed
from minismtp.log import Log
from minismtp.message import Message
from minismtp.metrics import HookMetrics
from minismtp.reply import Defer, Disconnect, Reject, Reply, Verdict
from minismtp.session import Session
from minismtp.smtp.sasl import StoredKey

#: What an implementation of each verb may return beside None; another type is a bug in the plugin.
ANSWERS: Final[dict[str, type | tuple[type, ...]]] = {
    "authenticate": str,
    "stored_key": StoredKey,
    "route": (Local, Relay),
    "deliver": bool,
    "command": Reply,
    "ehlo_keywords": list,
}
#: Hooks whose failure concerns nobody but the plugin.
HARMLESS: Final = frozenset({"observe", "on_stop"})


class Method(Protocol):
    """A hook implementation as pluggy calls it: positional arguments only."""

    def __call__(self, *args: object) -> Any:  # noqa: ANN401 - each hook has its own answer
        """Run the implementation."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the `[[plugins]]` table says of one plugin; `timeout` in seconds."""

    plugin: str
    on_error: Literal["defer", "ignore"] = "defer"
    shadow: bool = False
    timeout: float = 30.0


class Failure(Exception):  # noqa: N818 - says what happened, and to whom
    """`on_start` of a plugin raised: the process cannot start."""

    def __init__(self, plugin: str, error: BaseException) -> None:
        super().__init__(f"plugin {plugin!r}: on_start: {type(error).__name__}: {error}")


@dataclass(frozen=True, slots=True)
class Guard:
    """Wraps the implementations of one plugin. `announce` receives a `HookFailed` event."""

    policy: Policy
    log: Log
    announce: Callable[[HookFailed], None]

    def wrap(self, hook: str, method: Method, metrics: HookMetrics) -> Method:
        """Give `method` guarded; argument names stay visible to pluggy through `__wrapped__`."""
        expected = ANSWERS.get(hook)
        shadow, timeout = self.policy.shadow, self.policy.timeout

        @functools.wraps(method)
        def guarded(*args: object) -> Any:  # noqa: ANN401 - each hook has its own answer
            if shadow:
                args = tuple(_own(argument) for argument in args)
            begun, cpu = perf_counter(), thread_time()
            verdict: Verdict | None = None
            result = None
            try:
                result = method(*args)
                if not (expected is None or result is None or isinstance(result, expected)):
                    raise TypeError(f"{hook} returned {result!r}")  # noqa: TRY301 - a plugin's bug
            except Verdict as raised:
                verdict = raised
            except (Exception, SystemExit) as error:  # noqa: BLE001 - the one home of such a clause
                verdict = self._failed(hook, error, metrics)
            wall = perf_counter() - begun
            metrics.wall(wall)
            metrics.cpu(thread_time() - cpu)
            if wall > timeout:
                metrics.overrun(1)
                self.log.warning(
                    "plugin overran its timeout", plugin=self.policy.plugin, hook=hook, seconds=wall
                )
            metrics.verdict[_kind(verdict, result)](1)
            if shadow:
                return None
            if verdict is not None:
                raise verdict
            if result is True and metrics.stored is not None:
                metrics.stored(wall)
            return result

        return guarded

    def _failed(self, hook: str, error: BaseException, metrics: HookMetrics) -> Verdict | None:
        plugin, on_error = self.policy.plugin, self.policy.on_error
        metrics.error(1)
        self.log.exception("plugin failed", error, plugin=plugin, hook=hook, policy=on_error)
        if hook == "on_start" and on_error == "defer":
            raise Failure(plugin, error) from error
        if hook != "observe":
            self.announce(HookFailed(plugin, hook, repr(error), on_error))
        if hook in HARMLESS or on_error == "ignore":
            return None
        return Defer("temporary failure, try again later", enhanced="4.3.0")


def _kind(verdict: Verdict | None, result: object) -> str:
    match verdict:
        case None:
            return "none" if result is None else "answer"
        case Reject():
            return "reject"
        case Disconnect():
            return "disconnect"
        case _:
            return "defer"


def _own(argument: object) -> object:
    """Give a shadow plugin its own copy of whatever it could change."""
    match argument:
        case Message():
            return argument.copy()
        case Session() | Envelope():
            twin = copy.copy(argument)
            twin.stash = argument.stash.copy()
            if isinstance(twin, Envelope):
                twin.recipients = [copy.copy(recipient) for recipient in twin.recipients]
            return twin
        case _:
            return copy.copy(argument)
