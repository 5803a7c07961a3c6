import bdb
import contextlib
import gc
import inspect
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from stub_plugins import Observer

from minismtp import (
    Address,
    Credentials,
    Defer,
    Disconnect,
    Envelope,
    Local,
    Message,
    Recipient,
    Reject,
    Reply,
    ServerInfo,
    Session,
    StashKey,
    hookimpl,
    plugin,
)
from minismtp.config import PluginConfig
from minismtp.events import HookFailed
from minismtp.hooks.guard import ANSWERS, HARMLESS, Guard, StartError
from minismtp.hooks.loader import hook_names
from minismtp.runtime.decision_log import DecisionLog, mentions
from minismtp.runtime.log import Log
from minismtp.runtime.metrics import HookMetrics, Metrics
from minismtp.services.shared_state import State
from minismtp.testing import Dialogue, Mailroom
from minismtp.values.reply import Verdict
from minismtp.values.threads import Interrupted

NOTE: StashKey[str] = StashKey()


def under(
    instance: object,
    *,
    on_error: Literal["defer", "ignore"] = "defer",
    mode: Literal["enforce", "shadow"] = "enforce",
    timeout: timedelta = timedelta(seconds=30),
) -> tuple[PluginConfig, object]:
    """Return a plugin with its table."""
    table = PluginConfig(use="tested", on_error=on_error, mode=mode, timeout=timeout)
    return table, instance


@plugin
class Raising:
    """Raises a given exception at MAIL, a given number of times."""

    error: BaseException
    times: int = 1

    @hookimpl
    def on_mail(self) -> None:
        if self.times:
            self.times -= 1
            raise self.error


class Unprintable(Exception):  # noqa: N818 - its text is what counts
    def __repr__(self) -> str:
        raise ValueError("no text")

    __str__ = __repr__


class Cancelled(BaseException):
    """Like asyncio.CancelledError or gevent.Timeout."""


def mail(dialogue: Dialogue) -> str:
    dialogue.send("EHLO client.example")
    return dialogue.send("MAIL FROM:<a@client.example>")


@pytest.mark.parametrize(
    ("verdict", "reply"),
    [
        (Reject("no"), "550 5.7.1 no"),
        (Reject("no", code=554, enhanced="5.7.0"), "554 5.7.0 no"),
        (Reject("no", enhanced=""), "550 no"),
        (Defer("later"), "451 4.7.1 later"),
        (Defer("later", code=450, enhanced="4.2.0"), "450 4.2.0 later"),
        (Disconnect("bye"), "421 4.7.0 bye"),
        (Disconnect("bye", code=554, enhanced="5.7.1"), "554 5.7.1 bye"),
    ],
    ids=str,
)
def test_verdict_becomes_the_reply(verdict: Verdict, reply: str) -> None:
    assert mail(Dialogue(Raising(error=verdict))) == reply


@pytest.mark.parametrize(
    "error",
    [
        ValueError("boom"),
        SystemExit(0),
        Cancelled("out of time"),
        Unprintable(),
        StopIteration(),
        RecursionError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_other_exception_defers_and_the_session_goes_on(error: BaseException) -> None:
    dialogue = Dialogue(Raising(error=error))
    assert mail(dialogue) == "451 4.3.0 temporary failure, try again later"
    assert mail(dialogue).startswith("250")
    assert dialogue.count("hook_errors_total", plugin="raising", hook="on_mail") == 1


def test_plugin_that_calls_sys_exit_defers() -> None:
    @plugin
    class Leaving:
        @hookimpl
        def on_mail(self) -> None:
            sys.exit("good bye")

    assert mail(Dialogue(Leaving())).startswith("451 4.3.0")


def test_interrupt_from_the_keyboard_is_no_failure_of_the_plugin() -> None:
    with pytest.raises(Interrupted):
        mail(Dialogue(Raising(error=Interrupted())))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, bdb.BdbQuit])
@pytest.mark.parametrize("hook", hook_names())
def test_what_ends_a_program_is_a_failure_of_the_plugin(
    hook: str, error: type[BaseException], written: Log
) -> None:
    def method(*_: object) -> None:
        raise error

    metrics = Metrics()
    guard = Guard(PluginConfig(use="tested"), written, lambda _: None)
    guarded = guard.wrap(hook, method, HookMetrics(metrics, "tested", hook))
    if hook in HARMLESS:
        assert guarded() is None
    else:
        with pytest.raises(StartError if hook == "on_start" else Defer):
            guarded()
    metrics.buffer.flush()
    labels = {"plugin": "tested", "hook": hook}
    assert metrics.registry.get_sample_value("minismtp_hook_errors_total", labels) == 1


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Log]:
    """Yield a log that writes nothing to standard error."""
    with (tmp_path / "log").open("wb") as file:
        yield Log(descriptor=file.fileno())


def test_failure_is_logged_with_session_plugin_hook_and_traceback(
    capfd: pytest.CaptureFixture[str],
) -> None:
    dialogue = Dialogue(Raising(error=ValueError("boom")), log=Log(level="error"))
    mail(dialogue)
    [line] = capfd.readouterr().err.splitlines()
    assert f" error plugin failed session={dialogue.session.id} " in line
    assert 'error="ValueError: boom" plugin=raising hook=on_mail policy=defer' in line
    assert f'{__file__}\\", line' in line
    assert line.endswith('ValueError: boom"')


def test_failure_with_on_error_ignore_is_no_opinion_but_counted(
    capfd: pytest.CaptureFixture[str],
) -> None:
    dialogue = Dialogue(under(Raising(error=ValueError("boom")), on_error="ignore"))
    assert mail(dialogue).startswith("250")
    assert dialogue.count("hook_errors_total", plugin="tested", hook="on_mail") == 1
    assert dialogue.count("hook_verdicts_total", plugin="tested", hook="on_mail", verdict="none")
    assert "policy=ignore" in capfd.readouterr().err


def test_verdict_counts_with_on_error_ignore_too() -> None:
    dialogue = Dialogue(under(Raising(error=Reject("no")), on_error="ignore"))
    assert mail(dialogue) == "550 5.7.1 no"


GOOD = {
    "on_start": object(),
    "on_stop": object(),
    "observe": object(),
    "ehlo_keywords": ["XFUN", "XSIZE 10 20"],
    "authenticate": "alice",
    "route": Local(),
    "deliver": True,
    "command": Reply(250, "ok"),
}
WRONG = [
    *((hook, value) for hook in ("on_connect", "on_helo", "on_mail") for value in (True, "no")),
    *((hook, Reject("returned")) for hook in ("on_rcpt", "on_data", "on_message")),
    ("authenticate", True),
    ("authenticate", b"alice"),
    ("authenticate", ""),
    ("authenticate", "alice\r\nRCPT TO:<b@example.org>"),
    ("stored_key", "key"),
    ("route", "user@example.org"),
    ("route", True),
    ("deliver", "stored"),
    ("deliver", 1),
    ("command", "250 ok"),
    ("ehlo_keywords", "XFUN"),
    ("ehlo_keywords", ("XFUN",)),
    ("ehlo_keywords", ["XFUN", 1]),
    ("ehlo_keywords", ["XFUN\r\n250 SIZE 1"]),
    ("ehlo_keywords", [""]),
]


def guarded(
    hook: str, method: Callable[..., object], table: PluginConfig | None = None
) -> Callable[..., Any]:
    guard = Guard(table or PluginConfig(use="tested"), Log(level="error"), lambda _: None)
    return guard.wrap(hook, method, HookMetrics(Metrics(), "tested", hook))


@pytest.mark.parametrize("hook", hook_names())
def test_every_hook_may_return_none(hook: str) -> None:
    assert guarded(hook, lambda: None)() is None


@pytest.mark.parametrize("hook", GOOD)
def test_answer_of_the_right_type_passes(hook: str) -> None:
    assert guarded(hook, lambda: GOOD[hook])() == GOOD[hook]


@pytest.mark.parametrize(("hook", "answer"), WRONG, ids=str)
@pytest.mark.usefixtures("capfd")
def test_answer_of_a_wrong_type_is_a_failure(hook: str, answer: object) -> None:
    with pytest.raises(Defer, match="4\\.3\\.0"):
        guarded(hook, lambda: answer)()


def test_every_hook_that_can_affect_a_session_has_its_answers_checked() -> None:
    without = {"on_start", "on_check", "on_dns", "on_stop", "on_disconnect", "observe"}
    assert {*hook_names()} - {*ANSWERS} == without


def test_wrong_answer_is_logged_by_its_type_only(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Defer):
        guarded("authenticate", lambda: ["secret"])()
    written = capfd.readouterr().err
    assert "authenticate returned list" in written
    assert "secret" not in written


@pytest.mark.parametrize("hook", ["observe", "on_stop", "on_disconnect"])
@pytest.mark.parametrize("error", [ValueError("boom"), Reject("no"), Disconnect("bye")], ids=str)
def test_hook_that_judges_nothing_cannot_affect_anything(
    hook: str, error: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    def method() -> None:
        raise error

    assert guarded(hook, method)() is None
    assert "plugin failed" in capfd.readouterr().err


@pytest.mark.parametrize("error", [OSError("no database"), Reject("no database")], ids=repr)
@pytest.mark.usefixtures("capfd")
def test_failure_of_on_start_names_the_plugin(error: Exception) -> None:
    def on_start() -> None:
        raise error

    with pytest.raises(
        StartError, match=r"^plugin 'tested' \(.+:\d+\): on_start: \w+: .*no database$"
    ):
        guarded("on_start", on_start)()


@pytest.mark.parametrize(
    "table",
    [PluginConfig(use="tested", on_error="ignore"), PluginConfig(use="tested", mode="shadow")],
    ids=str,
)
def test_start_goes_on_without_a_plugin_that_may_fail(
    table: PluginConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    def on_start() -> None:
        raise OSError("no database")

    guarded("on_start", on_start, table)()
    assert "policy=ignore" in capfd.readouterr().err


def test_guard_shows_the_arguments_of_the_method() -> None:
    def on_rcpt(recipient: Recipient, session: Session) -> None:
        """Nothing."""

    assert [*inspect.signature(guarded("on_rcpt", on_rcpt)).parameters] == ["recipient", "session"]


def test_each_call_is_timed() -> None:
    dialogue = Dialogue(Raising(error=Reject("no")))
    mail(dialogue)
    mail(dialogue)
    labels = {"plugin": "raising", "hook": "on_mail"}
    assert dialogue.count("hook_duration_seconds_count", **labels) == 2
    assert dialogue.count("hook_cpu_seconds_total", **labels) > 0


def test_cpu_time_of_calls_in_quick_succession_is_extrapolated_without_a_bias(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every second call may take long. A sample of each 16th call would see all or none of them."""
    monkeypatch.setattr("minismtp.runtime.metrics.random", random.Random(1).random)  # noqa: S311
    metrics = HookMetrics(Metrics(), "tested", "on_mail")
    clock = iter([1.0 + number / 1e6 for number in range(32_000)])
    monkeypatch.setattr("minismtp.runtime.metrics.perf_counter", lambda: next(clock))
    weights = [metrics.begin()[2] for _ in range(32_000)]
    assert weights[0] == 1
    assert set(weights) == {0, 1, 16}
    long, short = sum(weights[::2]), sum(weights[1::2])
    assert long == pytest.approx(16_000, rel=0.1)
    assert short == pytest.approx(16_000, rel=0.1)


def test_cpu_time_of_calls_with_pauses_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = HookMetrics(Metrics(), "tested", "on_mail")
    clock = iter([number * 0.11 for number in range(1, 1000)])
    monkeypatch.setattr("minismtp.runtime.metrics.perf_counter", lambda: next(clock))
    assert {metrics.begin()[2] for _ in range(1, 1000)} == {1}


def test_call_beyond_the_timeout_is_logged_and_counted(capfd: pytest.CaptureFixture[str]) -> None:
    @plugin
    class Slow:
        @hookimpl
        def on_mail(self) -> None:
            sum(range(10_000))

    dialogue = Dialogue(under(Slow(), timeout=timedelta(microseconds=1)), log=Log())
    assert mail(dialogue).startswith("250")
    assert dialogue.count("hook_overruns_total", plugin="tested", hook="on_mail") == 1
    assert "plugin overran its timeout" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("verdict", "label"),
    [(Reject(), "reject"), (Defer(), "defer"), (Disconnect(), "disconnect")],
    ids=str,
)
def test_verdict_is_counted_by_its_kind(verdict: Verdict, label: str) -> None:
    dialogue = Dialogue(Raising(error=verdict))
    mail(dialogue)
    labels = {"plugin": "raising", "hook": "on_mail"}
    assert dialogue.count("hook_verdicts_total", **labels, verdict=label) == 1
    assert dialogue.count("hook_errors_total", **labels) == 0


def test_answer_and_no_opinion_are_counted_apart() -> None:
    dialogue = Dialogue(Raising(error=Reject("no"), times=0), Mailroom())
    assert dialogue.mail("Subject: x").startswith("250")
    assert dialogue.count("hook_verdicts_total", plugin="raising", hook="on_mail", verdict="none")
    assert dialogue.count("hook_verdicts_total", plugin="mailroom", hook="route", verdict="answer")


def test_time_to_store_is_counted_only_where_something_was_stored() -> None:
    @plugin
    class Elsewhere:
        @hookimpl
        def deliver(self) -> None:
            return None

    dialogue = Dialogue(Elsewhere(), Mailroom())
    dialogue.mail("Subject: x")
    assert dialogue.count("storage_duration_seconds_count", plugin="mailroom") == 1
    assert dialogue.count("storage_duration_seconds_count", plugin="elsewhere") == 0


def test_failure_is_announced_to_observers() -> None:
    observer = Observer()
    mail(Dialogue(Raising(error=ValueError("boom")), observer, log=Log(level="error")))
    assert observer.failures == [HookFailed("raising", "on_mail", "ValueError: boom", "defer")]


@pytest.mark.usefixtures("capfd")
def test_failing_observer_disturbs_neither_session_nor_other_observers() -> None:
    @plugin
    class Broken:
        @hookimpl
        def observe(self) -> None:
            raise ValueError("boom")

    observer = Observer()
    dialogue = Dialogue(Broken(), observer, Mailroom())
    assert dialogue.mail("Subject: x").startswith("250")
    assert not observer.failures
    assert observer.events
    assert dialogue.count("hook_errors_total", plugin="broken", hook="observe") == len(
        observer.events
    )


# Shadow mode


@pytest.mark.parametrize(
    ("error", "label"),
    [
        (Reject(), "reject"),
        (Defer(), "defer"),
        (Disconnect(), "disconnect"),
        (ValueError("boom"), "defer"),
    ],
    ids=repr,
)
@pytest.mark.usefixtures("capfd")
def test_shadow_verdict_is_counted_and_never_applied(error: Exception, label: str) -> None:
    dialogue = Dialogue(under(Raising(error=error), mode="shadow"))
    assert mail(dialogue).startswith("250")
    labels = {"plugin": "tested", "hook": "on_mail", "verdict": label}
    assert dialogue.count("shadow_verdicts_total", **labels) == 1
    assert dialogue.count("hook_verdicts_total", **labels) == 0


@pytest.mark.usefixtures("capfd")
def test_failure_in_shadow_mode_is_counted_and_announced_as_ignored() -> None:
    observer = Observer()
    dialogue = Dialogue(under(Raising(error=ValueError("boom")), mode="shadow"), observer)
    mail(dialogue)
    assert dialogue.count("hook_errors_total", plugin="tested", hook="on_mail") == 1
    assert [failure.policy for failure in observer.failures] == ["ignore"]


def test_shadow_answers_are_not_used() -> None:
    @plugin
    class Everything:
        @hookimpl
        def ehlo_keywords(self) -> list[str]:
            return ["XSHADOW"]

        @hookimpl
        def authenticate(self, credentials: Credentials) -> str:
            return credentials.username

        @hookimpl
        def route(self) -> Local:
            return Local()

        @hookimpl
        def deliver(self) -> bool:
            return True

        @hookimpl
        def command(self) -> Reply:
            return Reply(250, "shadow")

    dialogue = Dialogue(under(Everything(), mode="shadow"))
    assert "XSHADOW" not in dialogue.send("EHLO client.example")
    assert dialogue.send("AUTH PLAIN AGEAYg==").startswith("535")
    assert dialogue.send("XFUN").startswith("500")
    dialogue.send("MAIL FROM:<a@client.example>")
    assert dialogue.send("RCPT TO:<user@example.org>") == "550 5.7.1 relaying denied"
    assert dialogue.count("shadow_verdicts_total", plugin="tested", hook="route", verdict="answer")
    only_routes = Dialogue(under(Everything(), mode="shadow"), Mailroom())
    only_routes.mail("Subject: x")
    assert only_routes.count("storage_duration_seconds_count", plugin="mailroom") == 1
    assert only_routes.count("storage_duration_seconds_count", plugin="tested") == 0


@plugin
class Changing:
    """Changes all its arguments."""

    key: StashKey[str] = field(default_factory=StashKey)

    @hookimpl
    def on_helo(self, session: Session) -> None:
        session.helo = "changed.example"
        session.login = "mallory"
        session.stash[self.key] = "of the session"

    @hookimpl
    def on_rcpt(self, envelope: Envelope, recipient: Recipient) -> None:
        envelope.reverse_path = None
        envelope.recipients.append(recipient)
        recipient.address = Address("changed", "example.org")
        for earlier in envelope.recipients:
            earlier.address = Address("changed", "example.org")

    @hookimpl
    def on_message(self, envelope: Envelope, message: Message) -> None:
        envelope.recipients.clear()
        message.prepend("X-Shadow", "yes")
        message.replace(b"changed")
        message.quarantine("shadow")
        message.discard("shadow")


@plugin
class Wishing:
    """Does one thing to a message."""

    wish: str

    @hookimpl
    def on_message(self, envelope: Envelope, message: Message) -> None:
        match self.wish:
            case "discard" | "quarantine":
                getattr(message, self.wish)("because")
            case "prepend":
                message.prepend("X-Shadow", "yes")
            case "replace":
                message.replace(b"other")
            case "add":
                envelope.add(Address("other", "example.org"))
            case "remove":
                envelope.remove(envelope.recipients[0].address)
            case "sender":
                envelope.reverse_path = None
            case "both":
                message.prepend("X-Shadow", "yes")
                message.quarantine("because")
            case _:
                pass


@pytest.mark.parametrize(
    ("wish", "remark"),
    [
        ("discard", "would be discarded: because"),
        ("quarantine", "would be quarantined: because"),
        ("prepend", "would be changed"),
        ("replace", "would be changed"),
        ("add", "would be readdressed"),
        ("remove", "would be readdressed"),
        ("sender", "would be readdressed"),
        ("both", "would be quarantined: because; would be changed"),
        ("nothing", ""),
    ],
)
def test_what_a_shadow_plugin_did_to_its_copies_is_noted(
    wish: str, remark: str, tmp_path: Path
) -> None:
    decisions = DecisionLog(tmp_path, 1_000_000, Log())
    begun = Dialogue(under(Wishing(wish=wish), mode="shadow"), Mailroom())
    dialogue = Dialogue(service=replace(begun.service, decision_log=decisions))
    dialogue.mail("Subject: x\n\ny\n")
    decisions.flush()
    steps = [step for record in mentions(tmp_path, "shadow:") for step in record.steps]
    assert [step[4:] for step in steps if step[0] == "on_message"] == [("shadow:none", remark)]


def test_what_a_plugin_did_for_real_is_no_wish(tmp_path: Path) -> None:
    decisions = DecisionLog(tmp_path, 1_000_000, Log())
    begun = Dialogue(Wishing(wish="both"), under(Wishing(wish="nothing"), mode="shadow"))
    dialogue = Dialogue(service=replace(begun.service, decision_log=decisions))
    dialogue.mail("Subject: x\n\ny\n")
    decisions.flush()
    steps = [step for record in mentions(tmp_path, "on_message") for step in record.steps]
    assert {step[5] for step in steps if step[0] == "on_message"} <= {""}


def test_shadow_plugin_changes_copies_only() -> None:
    mailroom, changing = Mailroom(), Changing()
    dialogue = Dialogue(under(changing, mode="shadow"), mailroom)
    reply = dialogue.mail("Subject: x", to=("user@example.org", "other@example.org"))
    assert reply.startswith("250")
    assert [*mailroom.stored] == ["user@example.org", "other@example.org"]
    [stored] = mailroom.stored["user@example.org"]
    assert stored.endswith(b"Subject: x\r\n")
    assert b"X-Shadow" not in stored
    assert dialogue.session.helo == "client.example"
    assert dialogue.session.login is None
    assert changing.key not in dialogue.session.stash
    assert dialogue.count("messages_total", listener="test", outcome="stored") == 1


@plugin
class Notes:
    """Writes a note at EHLO, and replies at MAIL with the note it finds."""

    text: str
    found: list[str] = field(default_factory=list)

    @hookimpl
    def on_helo(self, session: Session) -> None:
        self.found.append(session.stash.get(NOTE, "nothing"))
        session.stash[NOTE] = self.text

    @hookimpl
    def on_mail(self, session: Session) -> None:
        self.found.append(session.stash[NOTE])
        self.found.append(session.stash.setdefault(NOTE, "default"))


def test_shadow_plugin_finds_its_own_notes_and_reads_those_of_others() -> None:
    real, shadow = Notes(text="real"), Notes(text="shadow")
    table, _ = under(shadow, mode="shadow")
    dialogue = Dialogue(real, (table, shadow))
    mail(dialogue)
    assert shadow.found == ["real", "shadow", "shadow"]
    assert real.found == ["nothing", "real", "real"]
    assert dialogue.session.stash[NOTE] == "real"


def test_shadow_plugin_can_delete_only_its_own_notes() -> None:
    other: StashKey[int] = StashKey()
    seen: list[object] = []

    @plugin
    class Deleting:
        @hookimpl
        def on_helo(self, session: Session) -> None:
            seen.append(session.stash.setdefault(other, 1))
            del session.stash[other]
            seen.append(other in session.stash)
            del session.stash[NOTE]

    dialogue = Dialogue(Notes(text="real"), under(Deleting(), mode="shadow"), log=Log())
    mail(dialogue)
    assert seen == [1, False]
    assert dialogue.session.stash[NOTE] == "real"
    assert dialogue.count("hook_errors_total", plugin="tested", hook="on_helo") == 1


def test_shadow_plugin_is_started_and_observes(tmp_path: Path) -> None:
    started: list[ServerInfo] = []

    @plugin
    class Started(Observer):
        @hookimpl
        def on_start(self, server: ServerInfo) -> None:
            started.append(server)

    instance = Started()
    mail(Dialogue(under(instance, mode="shadow"), spool=tmp_path))
    assert [server.state_directory for server in started] == [tmp_path]
    assert instance.events


def files_open_below(directory: Path) -> int:
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            count += descriptor.readlink().is_relative_to(directory)
    return count


@pytest.mark.parametrize("error", [Reject("no"), ValueError("boom")], ids=repr)
@pytest.mark.usefixtures("capfd")
def test_refused_message_leaves_no_file_open(error: Exception, tmp_path: Path) -> None:
    @plugin
    class Refusing:
        @hookimpl
        def on_message(self, message: Message) -> None:
            assert message.size > 300_000
            raise type(error)(*error.args)

    dialogue = Dialogue(Mailroom(), Refusing(), spool=tmp_path)
    gc.disable()
    try:
        assert dialogue.mail("Subject: x\n\n" + ("y" * 78 + "\n") * 4000)[0] in "45"
        assert files_open_below(tmp_path) == 0
    finally:
        gc.enable()


@plugin
class Counting:
    """Counts its calls in the shared state."""

    seen: int = 0

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        self._state = server.state

    @hookimpl
    def on_mail(self) -> None:
        self.seen = self._state.add("calls", 1, timedelta(hours=1))


def test_plugin_in_shadow_mode_stores_in_a_state_of_its_own_and_keeps_it() -> None:
    state, trial, ordinary = State.in_memory(), Counting(), Counting()
    table = PluginConfig(use="counting", name="trial", mode="shadow")
    mail(Dialogue((table, trial), state=state))
    mail(Dialogue((table, trial), state=state))
    mail(Dialogue((PluginConfig(use="counting"), ordinary), state=state))
    assert (trial.seen, ordinary.seen) == (2, 1)
    mail(Dialogue((replace(table, mode="enforce"), trial), state=state))
    assert trial.seen == 3
    state.close()
