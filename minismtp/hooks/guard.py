"""The guard between a plugin's code and a session.

Every hook implementation is called through a guard. It measures the time (wall and CPU), counts the
verdict, and turns any other exception into the plugin's policy, so a filter that crashes defers
mail and never accepts or loses it. In shadow mode the implementation works on copies. Its verdict
and its changes are recorded and never applied.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter, thread_time
from typing import Any, Final, TypeAlias

from minismtp.config import PluginConfig
from minismtp.hooks.declaration import place_of_failure, wrong_answer
from minismtp.hooks.specs import ServerInfo
from minismtp.mail.envelope import Destination, Envelope, Local, Relay, Several
from minismtp.mail.events import HookFailed
from minismtp.mail.message import Message
from minismtp.mail.recipient_verdict import RecipientVerdict
from minismtp.mail.session import Session
from minismtp.runtime.log import Log, describe
from minismtp.runtime.metrics import HookMetrics
from minismtp.smtp.sasl import StoredKey
from minismtp.values.address import Address
from minismtp.values.reply import Defer, Reply, Verdict
from minismtp.values.stash import Stash, StashKey
from minismtp.values.threads import Interrupted, report

#: What an implementation may return besides None. Anything else is a bug in the plugin, so a
#: verdict that is returned instead of raised defers mail and does not let it pass.
ANSWERS: Final[dict[str, type | tuple[type, ...]]] = {
    **dict.fromkeys(("on_connect", "on_helo", "on_mail", "on_rcpt", "on_routed"), ()),
    **dict.fromkeys(("on_data", "on_message", "on_send"), ()),
    "destination": Destination,
    "authenticate": str,
    "stored_key": StoredKey,
    "route": (Local, Relay, Several),
    "deliver": bool,
    "command": Reply,
    "ehlo_keywords": list,
}
#: Hooks whose answers `_judge` looks at, because their type does not say enough.
CHECKED: Final = frozenset({"authenticate", "ehlo_keywords", "command"})
#: Hooks that have no client to refuse. A verdict from them is a failure like any other exception.
WITHOUT_VERDICT: Final = frozenset(
    {"on_start", "on_check", "on_dns", "on_stop", "on_disconnect", "observe"}
)
#: Hooks whose failure concerns only the plugin.
HARMLESS: Final = frozenset({"on_check", "on_dns", "on_stop", "on_disconnect", "observe"})
# ehlo-line = ehlo-keyword *( SP ehlo-param ), RFC 5321 section 4.1.1.1
_EHLO_LINE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*(?: [!-~]+)*")

_MOST_TOLD: Final = 10  # verdicts for single recipients that a step tells

Verdicts: TypeAlias = Mapping[Address, RecipientVerdict]
#: A hook implementation, which is called with positional arguments only.
Method: TypeAlias = Callable[..., Any]


class StartError(Exception):
    """`on_start` of a plugin raised an exception, so the process cannot start."""

    def __init__(self, plugin: str, error: BaseException) -> None:
        place = place_of_failure(error)
        named = f"{plugin!r} ({place})" if place else repr(plugin)
        self.plugin = plugin
        self.reason = f"{describe(error)} ({place})" if place else describe(error)
        super().__init__(f"plugin {named}: on_start: {describe(error)}")


@dataclass(frozen=True, slots=True)
class Guard:
    """Wraps the implementations of the plugin of `table`. `announce` receives `HookFailed`."""

    table: PluginConfig
    log: Log
    announce: Callable[[HookFailed], None]
    _notes: StashKey[Stash] = field(default_factory=StashKey, init=False)

    def wrap(self, hook: str, method: Method, metrics: HookMetrics) -> Method:  # noqa: C901 - one call is cheaper than two
        """Return `method` guarded; argument names stay visible to pluggy through `__wrapped__`."""
        plugin, plain = self.table.name, () if hook in CHECKED else ANSWERS.get(hook, object)
        timeout, shadow = self.table.timeout.total_seconds(), self.table.mode == "shadow"
        own = self._with_own_state if hook == "on_start" else self._copy if shadow else None
        judges = hook == "on_message" and not shadow

        @functools.wraps(method)
        def guarded(*args: object) -> Any:  # noqa: ANN401, C901, PLR0912 - each hook has its own answer
            given = args
            if own is not None:
                args = tuple([own(argument) for argument in args])
            activity, begun, weight, cpu = metrics.begin()
            result, raised, kind, remark = None, None, "none", ""
            refused: list[Verdict] = []
            try:
                result = method(*args)
            except Interrupted:
                raise
            except BaseException as error:  # noqa: BLE001 - the one home of such a clause
                raised = error
            if weight:
                cpu = (thread_time() - cpu) * weight
            wall = perf_counter() - begun
            activity.running = None
            if wall > timeout:
                self._overran(hook, wall, metrics)
            if raised is not None or not (result is None or isinstance(result, plain)):
                refused, result, kind, remark = self._judge(hook, method, raised, result, metrics)
                raised = None  # its traceback refers to this frame
            elif result is not None:
                kind = "answer"
            if shadow:
                kind, remark = f"shadow:{kind}", remark or _changes(given, args)
                refused, result = [], None
            elif judges:
                for argument in args:
                    if argument.__class__ is Envelope and argument.verdicts:
                        remark = self._sign_verdicts(hook, argument, remark)
            try:
                step = (hook, plugin, begun, wall, kind, remark)
                metrics.end(activity, step, cpu, stored=result is True)
            except Exception as error:  # noqa: BLE001 - the plugin may have stored a message
                report(error)
            if refused:
                # With a variable, its traceback would refer to itself through this frame.
                raise refused.pop() from None
            return result

        return guarded

    def _with_own_state(self, argument: object) -> object:
        """Return the ServerInfo of `on_start` with keys of the plugin's own in the shared state."""
        if isinstance(argument, ServerInfo):
            return replace(argument, state=argument.state.of_plugin(self.table.name))
        return argument

    def _sign_verdicts(self, hook: str, envelope: Envelope, remark: str) -> str:
        """Note the plugin in its verdicts for single recipients; return a remark about them."""
        new = {
            address: verdict.signed(self.table.name, hook)
            for address, verdict in envelope.verdicts.items()
            if not verdict.plugin
        }
        envelope.verdicts = {**envelope.verdicts, **new}
        return remark or _told(new)

    def _overran(self, hook: str, wall: float, metrics: HookMetrics) -> None:
        metrics.overrun(1)
        told = {"plugin": self.table.name, "hook": hook, "seconds": f"{wall:.3f}"}
        self.log.warning("plugin overran its timeout", **told)

    def _judge(
        self,
        hook: str,
        method: Method,
        raised: BaseException | None,
        result: object,
        metrics: HookMetrics,
    ) -> tuple[list[Verdict], object, str, str]:
        """Tell an answer and a verdict from a failure, which becomes the policy's verdict.

        Return the verdict, if there is one, the answer, the kind of either for the metrics, and a
        remark for the trace.
        """
        if raised is None and not _is_valid(hook, result):
            raised = TypeError(wrong_answer(hook, method, result, ANSWERS[hook]))
        if raised is None:
            if isinstance(result, Reply):
                result = result.because("", plugin=self.table.name, hook=hook)
            return [], result, "answer", ""
        if isinstance(raised, Verdict) and hook not in WITHOUT_VERDICT:
            return [self._signed(raised, hook)], None, raised.kind, str(raised.reply)
        remark = f"failed: {describe(raised)}"
        verdict = self._failed(hook, raised, metrics)
        if verdict is None:
            return [], None, "none", remark
        return [self._signed(verdict, hook, remark)], None, verdict.kind, remark

    def _signed(self, verdict: Verdict, hook: str, reason: str = "") -> Verdict:
        """Return a verdict whose reply names the plugin, the hook and the error to the log."""
        if not reason and verdict.__cause__ is not None:
            reason = describe(verdict.__cause__)
        verdict.reply = verdict.reply.because(reason, plugin=self.table.name, hook=hook)
        # The frames of its traceback refer to the verdict. They would keep the message of a refused
        # client, and its file on disk, until the next garbage collection.
        return verdict.with_traceback(None)

    def _failed(self, hook: str, error: BaseException, metrics: HookMetrics) -> Verdict | None:
        plugin = self.table.name
        ignored = self.table.on_error == "ignore" or hook in HARMLESS
        applied = "ignore" if ignored or self.table.mode == "shadow" else "defer"
        metrics.error(1)
        if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
            error = error.with_traceback(error.__traceback__.tb_next)  # without the guard's frame
        self.log.exception("plugin failed", error, plugin=plugin, hook=hook, policy=applied)
        if hook == "on_start" and applied == "defer":
            raise StartError(plugin, error) from error
        if hook != "observe":
            self.announce(HookFailed(plugin, hook, describe(error), applied))
        return None if ignored else Defer("temporary failure, try again later", enhanced="4.3.0")

    def _copy(self, argument: object) -> object:
        """Return a copy, for a shadow plugin, of an argument that it could change."""
        match argument:
            case Message():
                return argument.copy()
            case Session() | Envelope():
                twin = copy.copy(argument)
                # The other plugins do not see what a shadow plugin notes.
                twin.stash = argument.stash.behind(argument.stash.setdefault(self._notes, Stash()))
                if isinstance(twin, Envelope):
                    twin.recipients = [copy.copy(recipient) for recipient in twin.recipients]
                return twin
            case _:
                return copy.copy(argument)


def _changes(real: tuple[object, ...], copies: tuple[object, ...]) -> str:
    """Describe what a shadow plugin did to its copies, such as "would be quarantined: why"."""
    changes = []
    for before, after in zip(real, copies, strict=True):
        if isinstance(before, Message) and isinstance(after, Message):
            if after.discarded not in (None, before.discarded):
                changes.append(f"would be discarded: {after.discarded}")
            if after.quarantined not in (None, before.quarantined):
                changes.append(f"would be quarantined: {after.quarantined}")
            if (after.prefix, after.content) != (before.prefix, before.content):
                changes.append("would be changed")
        elif isinstance(before, Envelope) and isinstance(after, Envelope):
            old, new = ((each.added, each.removed, each.reverse_path) for each in (before, after))
            if old != new:
                changes.append("would be readdressed")
            if told := _told(after.verdicts, before.verdicts):
                changes.append(f"would be {told}")
    return "; ".join(changes)


def _told(verdicts: Verdicts, before: Verdicts | None = None) -> str:
    """Describe verdicts for single recipients, such as "refused: 550 5.7.1 no, for a@b.example"."""
    before = before or {}
    texts = [
        f"{verdict}, for {address}"
        for address, verdict in verdicts.items()
        if before.get(address) != verdict
    ]
    more = len(texts) - _MOST_TOLD
    return "; ".join(texts[:_MOST_TOLD]) + (f"; and {more} more" if more > 0 else "")


def _is_valid(hook: str, result: object) -> bool:
    if not isinstance(result, ANSWERS.get(hook, object)):
        return False
    match hook:
        case "authenticate":
            return bool(result) and str(result).isprintable()  # not empty
        case "ehlo_keywords":
            lines = result if isinstance(result, list) else ()
            return all(isinstance(line, str) and _EHLO_LINE.fullmatch(line) for line in lines)
        case _:
            return True
