"""What `minismtp sessions` shows of a server that runs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from minismtp.cli.main import main
from minismtp.runtime.control_socket import Control, ControlAnswer, ask
from minismtp.server.open_sessions import doing
from minismtp.values.passwords import hash_password

if TYPE_CHECKING:
    from conftest import Configure, Launch, Running, Start, TlsFiles

Capture = pytest.CaptureFixture[str]
Show = Callable[..., str]

SLEEPY = """\
import threading

from minismtp import hookimpl, plugin

@plugin
class Sleepy:
    @hookimpl
    def on_rcpt(self, recipient: object) -> None:
        threading.Event().wait()  # for ever
"""
SLEEPY_TABLE = '[[plugins]]\nuse = "sleepy"\n'


@pytest.fixture
def show(capsys: Capture) -> Show:
    """Return a function that runs the command on a server and returns what it prints."""

    def show(server: Running, *options: str) -> str:
        assert main(["sessions", "--config", str(server.config), *options]) == 0
        return capsys.readouterr().out

    return show


def sessions(show: Show, server: Running, *options: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(show(server, "--json", *options))
    return found


@pytest.fixture
def sleepy(configure: Configure, start: Start) -> Running:
    """Start a server whose plugin sleeps at RCPT."""
    config = configure(SLEEPY_TABLE, workers=2)
    (config.parent / "local_plugins" / "sleepy.py").write_text(SLEEPY)
    return start(config)


def test_session_is_shown_with_peer_state_login_and_message(launch: Launch, show: Show) -> None:
    with launch(workers=2) as server, server.connect() as client:
        client.greet()
        client.command("MAIL FROM:<a@client.example>")
        [session] = sessions(show, server)
        assert session["peer"] == "127.0.0.1"
        assert session["listener"] == "smtp"
        assert session["state"] == "mail"
        assert session["helo"] == "client.example"
        assert session["message"] == f"{session['id']}.1"
        assert session["waiting"]
        assert (session["login"], session["tls"], session["plugin"]) == (None, None, "")
        line = show(server).splitlines()[1]
        assert re.fullmatch(
            rf"{session['id']}  127\.0\.0\.1  smtp .* waits for the client .*", line
        )
        client.command("QUIT")
        server.wait_until(lambda: not sessions(show, server))
        assert show(server) == "no sessions\n"


def test_session_in_tls_is_shown_with_its_login(
    server: Running, tls_files: TlsFiles, show: Show
) -> None:
    with server.connect("submission") as client:
        client.greet()
        client.command("STARTTLS")
        client.secure(tls_files.client())
        client.command("EHLO client.example")
        client.command("AUTH PLAIN AGFsaWNlAHNlY3JldA==")
        [session] = [each for each in sessions(show, server) if each["login"]]
    assert (session["login"], session["tls"]) == ("alice", "TLSv1.3")
    assert "secret" not in json.dumps(session)


def test_sessions_of_all_workers_are_shown(configure: Configure, start: Start, show: Show) -> None:
    server = start(configure(workers=3))

    def shared() -> bool:
        """Connect all at once. Return whether several workers shared them."""
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(server.connect()) for _ in range(40)]
            for client in clients:
                client.reply()
            found = sessions(show, server)
        assert len(found) >= 40  # sessions of the last attempt may still be ending
        ages = [session["age"] for session in found]
        assert ages == sorted(ages, reverse=True)
        return len({session["process"] for session in found}) > 1

    server.wait_until(shared)


def test_stack_shows_the_line_of_a_plugin_that_sleeps(sleepy: Running, show: Show) -> None:
    with sleepy.connect() as client:
        client.greet()
        client.command("MAIL FROM:<a@client.example>")
        client.send("RCPT TO:<user@example.org>\r\n")
        sleepy.wait_until(lambda: sessions(show, sleepy)[0]["plugin"])
        [session] = sessions(show, sleepy, "--stack")
        assert (session["plugin"], session["hook"]) == ("sleepy", "on_rcpt")
        number = SLEEPY.splitlines().index("        threading.Event().wait()  # for ever") + 1
        place = f"{sleepy.directory}/local_plugins/sleepy.py:{number} on_rcpt: "
        assert any(line.startswith(place) for line in session["stack"])
        text = show(sleepy, "--stack")
        assert f"\n    {place}threading.Event().wait()  # for ever\n" in text
        line = f"{place}threading.Event().wait()  # for ever"
        assert text.splitlines()[2] == f"    in the plugin: {line}"
        assert " sleepy.on_rcpt " in text


def test_session_that_a_reload_left_to_the_old_workers_is_shown(
    configure: Configure, start: Start, show: Show
) -> None:
    server = start(configure(workers=1))
    with server.connect() as old, server.connect() as new:
        old.reply()
        server.signal(signal.SIGHUP)
        server.wait_for_log(" reloaded$")
        new.reply()
        server.wait_until(lambda: len(sessions(show, server)) == 2)


def test_worker_that_hangs_is_named_and_keeps_nobody_waiting(
    configure: Configure, start: Start, capsys: Capture
) -> None:
    server = start(configure(workers=1))
    [worker] = [pid for pid in server.tree() if "worker" in Path(f"/proc/{pid}/comm").read_text()]
    os.kill(worker, signal.SIGSTOP)
    try:
        assert main(["sessions", "--config", str(server.config)]) == 0
    finally:
        os.kill(worker, signal.SIGCONT)
    assert capsys.readouterr().err == "minismtp: process 0: does not answer\n"


def test_dead_worker_is_passed_over(configure: Configure, start: Start, show: Show) -> None:
    server = start(configure(workers=2))
    stale = server.directory / "state" / "control" / "99.sock"
    control = Control(stale.parent, "99", {})
    control.server_close()
    assert stale.exists()
    assert show(server) == "no sessions\n"


def test_only_the_user_of_the_server_may_ask(server: Running) -> None:
    directory = server.directory / "state" / "control"
    found = [path.stat() for path in directory.glob("*.sock")]
    assert {stat.S_IMODE(status.st_mode) for status in found} == {0o600}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_sockets_are_in_the_runtime_directory_if_there_is_one(
    configure: Configure, start: Start, show: Show, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    server = start(configure())
    monkeypatch.delenv("RUNTIME_DIRECTORY")
    assert (tmp_path / "run" / "control" / "0.sock").is_socket()
    assert show(server) == "no sessions\n"


def test_server_that_does_not_run_is_a_failure(configure: Configure, capsys: Capture) -> None:
    config = configure()
    assert main(["sessions", "--config", str(config)]) == 1
    directory = config.parent / "state" / "control"
    assert capsys.readouterr().err == f"minismtp: {directory}: no server answers here\n"


def test_directory_with_a_long_name_holds_sockets(tmp_path: Path) -> None:
    directory = tmp_path / ("long" * 50)
    directory.mkdir()
    control = Control(directory, "0", {"sessions": lambda _, say: say("here")})
    control.start()
    assert ask(directory, {"ask": "sessions"}) == [ControlAnswer("0", ("here",))]
    control.shutdown()
    control.server_close()


def test_question_that_nobody_knows_is_answered_with_nothing(tmp_path: Path) -> None:
    control = Control(tmp_path, "0", {})
    control.start()
    assert ask(tmp_path, {"ask": "the way"}) == [ControlAnswer("0")]
    control.shutdown()
    control.server_close()


def test_delivery_under_way_is_shown(configure: Configure, start: Start, show: Show) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections, sends nothing
        route = '[[plugins]]\nuse = "relay"\nnetworks = ["127.0.0.0/8"]\n'
        outbound = f'[outbound]\nsmarthost = "127.0.0.1:{silent.getsockname()[1]}"\ntls = "none"\n'
        server = start(configure(route, outbound))
        with server.connect() as client:
            client.begin_data("user@elsewhere.example")
            message = client.command("Subject: x\r\n\r\nx\r\n.").split()[-1]
            client.command("QUIT")

        def delivery() -> dict[str, Any] | None:
            found = sessions(show, server, "--stack")
            return next((each for each in found if each["process"] == "outbound"), None)

        session = server.wait_until(delivery)
        assert session is not None
        assert (session["id"], session["state"]) == (message, "delivering")
        assert session["peer"] == f"via 127.0.0.1:{silent.getsockname()[1]}"
        assert session["listener"] == "outbound"
        assert any("/delivery/" in line for line in session["stack"])
        port = silent.getsockname()[1]
        waits = f" [127.0.0.1]:{port}: the greeting "
        server.wait_until(lambda: waits in show(server))


SLOW: str = """\
import threading

from minismtp import hookimpl, plugin

@plugin
class Sleepy:
    @hookimpl
    def {hook}(self) -> None:
        threading.Event().wait()  # for ever
"""


@pytest.mark.parametrize("hook", ["on_message", "deliver"])
def test_message_is_shown_until_it_is_answered(
    configure: Configure, start: Start, show: Show, hook: str
) -> None:
    storage = '[[plugins]]\nuse = "mailboxes"\ndomains = ["example.org"]\n' + SLEEPY_TABLE
    config = configure(plugins=storage)
    (config.parent / "local_plugins" / "sleepy.py").write_text(SLOW.format(hook=hook))
    server = start(config)
    with server.connect() as client:
        client.begin_data("user@example.org")
        client.send("Subject: x\r\n\r\nx\r\n.\r\n")
        server.wait_until(lambda: sessions(show, server)[0]["plugin"])
        [session] = sessions(show, server)
        assert session["hook"] == hook
        assert session["message"] == f"{session['id']}.1"


def test_login_that_waits_after_a_failure_says_so(
    configure: Configure, start: Start, show: Show
) -> None:
    config = configure(
        '[[plugins]]\nuse = "password_file"\npath = "passwords"\n[limits]\nlogin_backoff = "9s"\n'
    )
    (config.parent / "passwords").write_text(f"alice:{hash_password('secret')}\n")
    server = start(config)
    with server.connect() as client:
        client.greet()
        assert client.command("AUTH PLAIN AGFsaWNlAHdyb25n").startswith("535 ")
        client.send("AUTH PLAIN AGFsaWNlAHdyb25n\r\n")
        server.wait_until(lambda: " waits after a failed login " in show(server))


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"waiting": True}, "waits for the client 4s"),
        ({}, "works"),
        ({"phase": "mx.example: the envelope"}, "mx.example: the envelope 3s"),
        ({"plugin": "spam", "hook": "on_message"}, "spam.on_message 2s"),
        (
            {"plugin": "lmtp", "hook": "deliver", "phase": "unix: the content"},
            "lmtp.deliver 2s (unix: the content)",
        ),
    ],
)
def test_what_a_session_does_is_said_in_words(facts: dict[str, object], text: str) -> None:
    known = {"plugin": "", "hook": "", "seconds": 2.0, "idle": 4.0, "phase_seconds": 3.0}
    assert doing(known | facts) == text
