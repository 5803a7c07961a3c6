"""What `minismtp trace` shows of dialogues, and what it hides."""

from __future__ import annotations

import base64
import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from minismtp.cli.main import main
from minismtp.runtime.dialogue_trace import Outlet
from minismtp.values.passwords import hash_password

if TYPE_CHECKING:
    from conftest import Configure, Running, Start, TlsFiles

SECRET = "s3cret-word"  # noqa: S105
Trace = Callable[..., Path]


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Trace]:
    """Yield a function that traces a server from now on, into the file that it returns."""
    with contextlib.ExitStack() as stack:

        def trace(server: Running, *options: str) -> Path:
            path = tmp_path / f"trace{len(list(tmp_path.glob('trace*')))}"
            file = stack.enter_context(path.open("wb"))
            command = [sys.executable, "-m", "minismtp", "trace", "--config", str(server.config)]
            process = subprocess.Popen([*command, *options], stdout=file, stderr=file)
            stack.callback(process.wait, 60)
            stack.callback(process.send_signal, signal.SIGINT)

            def shown() -> bool:
                with server.connect() as client:
                    client.reply()
                return bool(path.read_text())

            if not options:
                server.wait_until(shown)
            return path

        yield trace


def talk(server: Running, path: Path, tls_files: TlsFiles) -> str:
    """Have a dialogue with all kinds of lines, and return its lines in the trace."""

    def encoded(*parts: str) -> str:
        return base64.b64encode("\0".join(parts).encode()).decode()

    with server.connect() as client:
        client.greet()
        client.command("STARTTLS")
        client.secure(tls_files.client())
        client.command("EHLO inside.example")
        client.command(f"AUTH LOGIN {encoded('alice')}")
        client.command(encoded("wrong-" + SECRET))
        client.command(f"AUTH NONE {encoded('', 'alice', SECRET)}")
        client.command(encoded(SECRET))
        client.command(SECRET)
        client.command(f"NOOP\x01{SECRET}")
        client.command(f"AUTH PLAIN {SECRET}")
        client.command(f"AUTH PLAIN {encoded('', 'alice', SECRET)}")
        client.command("MAIL FROM:<a@client.example>")
        client.command("RCPT TO:<user@example.org>")
        client.command("DATA")
        identifier = client.command(f"Subject: {SECRET}\r\n\r\n{SECRET}\r\n.").split()[-1][:12]
        client.command("QUIT")
    end = rf"^.*  {identifier}  127\.0\.0\.1  -: closed: quit$"
    server.wait_until(lambda: re.search(end, path.read_text(), re.MULTILINE))
    return "\n".join(line for line in path.read_text().splitlines() if identifier in line)


@pytest.fixture
def secured(configure: Configure, start: Start, tls_files: TlsFiles) -> Running:
    """Start a server with TLS and a user."""
    limits = '[limits]\nlogin_backoff = "0s"\nfailed_logins = 100\nerrors = 100000\n'
    listener = '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\n'
    users = '[[plugins]]\nuse = "password_file"\npath = "passwords"\n'
    config = configure(limits, tls_files.table, users, listeners=listener, workers=2)
    (config.parent / "passwords").write_text(f"alice:{hash_password(SECRET)}\n")
    return start(config)


def test_dialogue_is_shown_and_secrets_are_not(
    secured: Running, trace: Trace, tls_files: TlsFiles
) -> None:
    text = talk(secured, trace(secured), tls_files)
    said = [line.split("  ", 3)[3] for line in text.splitlines()]
    for line in (
        "-: connected to smtp",
        "C: EHLO client.example",
        "S: 220 2.0.0 ready to start TLS",
        "C: AUTH LOGIN ***",
        "C: ***",
        "S: 334 ***",
        "C: AUTH NONE ***",
        "C: AUTH PLAIN ***",
        "S: 235 2.7.0 authentication succeeded",
        "C: MAIL FROM:<a@client.example>",
        "C: RCPT TO:<user@example.org>",
        "C: DATA",
        "C: .",
        "C: QUIT",
        "-: closed: quit",
    ):
        assert line in said, text
    assert any(re.fullmatch(r"-: TLSv1\.3 \w+", line) for line in said)
    assert any(re.fullmatch(r"C: \(\d+ octets of content\)", line) for line in said)
    assert said.count(f"C: ({len(SECRET)} octets that are no known command)") == 1
    for secret in (SECRET, f"\0alice\0{SECRET}", f"wrong-{SECRET}"):
        assert secret not in text
        assert base64.b64encode(secret.encode()).decode() not in text


def test_session_that_was_there_before_is_shown(secured: Running, trace: Trace) -> None:
    with secured.connect() as client:
        client.greet()
        path = trace(secured)
        identifier = client.command("NONSENSE")[-13:-1]
        secured.wait_until(lambda: f"{identifier}  127.0.0.1  S: 500" in path.read_text())


def test_session_of_a_new_generation_is_shown(secured: Running, trace: Trace) -> None:
    path = trace(secured)
    secured.signal(signal.SIGHUP)
    secured.wait_for_log(" reloaded$")

    def shown() -> bool:
        with secured.connect() as client:
            client.greet()
            identifier = client.command("NONSENSE")[-13:-1]
            return f"{identifier}  127.0.0.1  S: 500" in path.read_text()

    secured.wait_until(shown)


def test_only_peers_that_were_asked_for_are_shown(secured: Running, trace: Trace) -> None:
    other = trace(secured, "--peer", "192.0.2.0/24", "--peer", "2001:db8::/32")
    path = trace(secured)
    with secured.connect() as client:
        client.greet()
        identifier = client.command("NONSENSE")[-13:-1]
    secured.wait_until(lambda: f"{identifier}  127.0.0.1  S: 500" in path.read_text())
    assert other.read_text() == ""


def test_only_the_session_that_was_asked_for_is_shown(secured: Running, trace: Trace) -> None:
    with secured.connect() as one, secured.connect() as other:
        one.greet()
        other.greet()
        identifier = one.command("NONSENSE")[-13:-1]
        path = trace(secured, "--session", identifier)
        secured.wait_until(lambda: one.command("NOOP") and path.read_text())
        other.command("NOOP")
        one.command("QUIT")
        secured.wait_until(lambda: "closed: quit" in path.read_text())
        assert {line.split("  ")[1] for line in path.read_text().splitlines()} == {identifier}


def test_outlet_knows_its_networks() -> None:
    outlet = Outlet((ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")))
    assert [
        outlet.wants("1a", peer) for peer in ("192.0.2.9", "2001:db8::1", "192.0.3.1", "unix")
    ] == [*[True, True, False, False]]
    assert Outlet(()).wants("1a", "unix")
    assert Outlet((), ["1a"]).wants("1a", "unix")
    assert not Outlet((), ["1a"]).wants("2b", "unix")


def test_who_is_slow_to_read_loses_lines_and_holds_up_nobody() -> None:
    outlet = Outlet(())
    for number in range(10_003):
        outlet.put({"at": float(number), "text": "x"})
    assert outlet.lost == 3
    line = outlet.get(0.1)
    assert line is not None
    assert line["at"] == 0.0


def test_wrong_network_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "--peer", "somewhere"]) == 2
    assert 'expected a network such as "192.0.2.0/24"' in capsys.readouterr().err


def test_server_that_does_not_run_is_a_failure(
    configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", "--config", str(configure())]) == 1
    assert "no server answers here" in capsys.readouterr().err
