"""What commands print with `--json`, as the documentation has it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import pytest

from minismtp.cli.main import COMMANDS, main
from minismtp.values.version import Version

if TYPE_CHECKING:
    from conftest import Launch, Running, TlsFiles

INSIGHT: Final = (Path(__file__).parents[2] / "docs" / "insight.md").read_text()
ROWS: Final = re.findall(r"^\| `(\S+[^`]* --json)` \| (.*) \|$", INSIGHT, re.MULTILINE)
#: Commands that list nothing, or print a form for programs anyway.
SAY_WHAT_THEY_DID: Final = {"serve", "reload", "passwd", "backup", "new-plugin"}
FOR_PROGRAMS: Final = {"schema", "completion"}
WORRIED: Final = '''
"""Refuses nothing; sets aside what says so."""

from minismtp import Message, Reject, hookimpl, plugin


@plugin
class Worried:
    @hookimpl
    def on_message(self, message: Message) -> None:
        if message.headers.get("X-Odd"):
            message.quarantine("odd")
        if message.headers.get("X-Bad"):
            raise Reject("bad")
'''
TABLES: Final = """
[dns]
nameservers = ["127.0.0.1:9"]

[outbound]
smarthost = "127.0.0.1:9"

[[plugins]]
use = "mailboxes"
domains = ["example.org"]

[[plugins]]
use = "worried"
name = "trial"
mode = "shadow"

[[plugins]]
use = "worried"

[[plugins]]
use = "quarantine"

[[plugins]]
use = "maildir"
path = "mail/{local}"

[[plugins]]
use = "relay"
networks = ["127.0.0.0/8"]
"""


@pytest.fixture(scope="module")
def used(launch: Launch, tls_files: TlsFiles) -> Iterator[Running]:
    """Run a server that stored, set aside, queued and refused a message each."""
    files = {"local_plugins/worried.py": WORRIED}
    with launch(tls_files.table, TABLES, plugins="", files=files) as server:
        for recipient, field in (
            ("user@example.org", "X-Test: 1"),
            ("user@example.org", "X-Odd: 1"),
            ("user@example.net", "X-Test: 1"),
            ("user@example.org", "X-Bad: 1"),
        ):
            with server.connect() as client:
                client.begin_data(recipient)
                client.command(f"{field}\r\nSubject: x\r\n\r\nx\r\n.")
                client.command("QUIT")
        server.wait_until(lambda: server.metric("queue_messages", state="deferred") == 1)
        yield server


def documented(command: str) -> set[str]:
    """Return the keys of a command, without those of inner objects."""
    [row] = [row for name, row in ROWS if name == f"{command} --json"]
    own = re.sub(r" with (?:`\w+`(?:, )?)+", "", row.replace("with `[tls.acme]` also", ""))
    keys = set(re.findall(r"`(\w+)`", own))
    before = re.sub(r" show ID$", " list", command)
    return keys | documented(before) if row.startswith("those") else keys


@pytest.fixture
def show(used: Running, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Return a function that runs a command on the used server and returns its document."""

    def run(*words: str, status: int = 0) -> Any:  # noqa: ANN401 - any JSON
        capsys.readouterr()
        assert main([*words, "--json", "--config", str(used.config)]) == status
        output = capsys.readouterr().out
        assert "\x1b" not in output
        return json.loads(output)

    return run


def test_every_command_that_lists_something_takes_json(capsys: pytest.CaptureFixture[str]) -> None:
    known = {row.split()[0] for row, _ in ROWS}
    assert known == COMMANDS.keys() - SAY_WHAT_THEY_DID - FOR_PROGRAMS
    for name in sorted(known):
        assert main([name, "--help"]) == 0
        assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    ["certificate", "queue list", "quarantine list", "shadow", "hooks", "plugins maildir"],
)
def test_list_has_the_documented_keys(command: str, show: Callable[..., Any]) -> None:
    items = show(*command.split())
    assert items
    expected = documented(command.removesuffix(" maildir"))
    if command == "certificate":
        expected -= {"authority", "renewal", "why", "attempted", "failures", "error", "problem"}
    assert all(each.keys() == expected for each in items)


def test_certificate_that_cannot_be_read_has_a_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.toml"
    path.write_text(
        '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\n'
        '[tls]\ncertificate = "missing.pem"\nkey = "missing.pem"\n'
    )
    assert main(["certificate", "--json", "--config", str(path)]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert found.keys() == {"table", "file", "problem"}
    assert "problem" in documented("certificate")


@pytest.mark.parametrize("command", ["queue", "quarantine"])
def test_message_that_is_shown_has_more_keys(command: str, show: Callable[..., Any]) -> None:
    [listed] = show(command, "list")
    [message] = show(command, "show", listed["id"])
    assert message.keys() == documented(f"{command} show ID")


def test_sessions_and_their_decisions(used: Running, show: Callable[..., Any]) -> None:
    with used.connect() as client:
        client.greet()
        for session in show("sessions"):
            assert session.keys() >= {"id", "peer", "state", "age", "process"}
            assert session.keys() <= documented("sessions")
    [item] = show("queue", "list")
    records = show("explain", item["id"])
    assert all(each.keys() == documented("explain ID") for each in records)


def test_top_and_version_are_one_object(
    show: Callable[..., Any], used: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = used.wait_for_log(r" serving metrics address=(\S+)")[1]
    top = show("top", "--once", "--interval", "0.1", "--url", f"http://{address}")
    assert top.keys() == documented("top --once")
    assert top["rates"].keys() == {"connections", "messages", "refused", "deliveries"}
    answer = Version.parse("1.0")
    monkeypatch.setattr("minismtp.services.release_index.newest_release", lambda _: answer)
    assert show("version", "--check").keys() == documented("version --check")


def test_top_prints_a_line_for_each_interval(
    used: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = used.wait_for_log(r" serving metrics address=(\S+)")[1]
    left = [1.0, 1.0]

    def sleep(_: float) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()

    # Only there: other threads of this process sleep too.
    monkeypatch.setattr("minismtp.cli.top.time", SimpleNamespace(**vars(time) | {"sleep": sleep}))
    command = ["top", "--json", "--url", f"http://{address}", "--config", str(used.config)]
    assert main(command) == 130
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line).keys() for line in lines] == [documented("top --once")] * 2


def test_trace_prints_a_line_for_each_line(
    used: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [
        {"at": 1.5, "session": "a", "peer": "192.0.2.1", "said": "client", "text": "QUIT"},
        *({"lost": count} for count in (0, 3, 3, 5)),
    ]
    monkeypatch.setattr("minismtp.cli.trace._said", lambda *_: iter(said))
    assert main(["trace", "--json", "--config", str(used.config)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [said[0], {"lost": 3}, {"lost": 2}]
    assert {key for line in lines for key in line} == documented("trace")


def test_trace_of_a_server_has_the_documented_keys(used: Running) -> None:
    command = [sys.executable, "-m", "minismtp", "trace", "--json", "--config", str(used.config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ended = threading.Event()
        talker = threading.Thread(target=_talk, args=(used, ended))
        talker.start()
        try:
            line = json.loads(process.stdout.readline())
        finally:
            ended.set()
            talker.join()
            process.kill()
    assert line.keys() == documented("trace") - {"lost"}


def _talk(server: Running, ended: threading.Event) -> None:
    while not ended.wait(0.05):
        with server.connect() as client:
            client.greet()
            client.command("QUIT")


def test_check_tells_problems_with_their_places(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.toml"
    listener = '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\ntls = "none"\n'
    path.write_text(f'{listener}\n[[plugins]]\nuse = "maildir"\n')
    command = ["check", "--json", "--config", str(path)]
    assert main(command) == 78
    output = capsys.readouterr()
    assert output.err == ""
    found = json.loads(output.out)
    assert found.keys() == documented("check")
    assert (found["file"], found["accepted"]) == (str(path), False)
    [problem] = [each for each in found["problems"] if each["severity"] == "error"]
    assert problem == {
        "severity": "error",
        "file": str(path),
        "line": 6,
        "key": "plugins[0].path",
        "table": "maildir",
        "text": "this key is required; add path = ...",
    }
    path.write_text("[[listeners]\n")
    assert main(command) == 78
    [problem] = json.loads(capsys.readouterr().out)["problems"]
    assert problem["line"] == 1
    # Without a plugin that routes, there is a warning.
    path.write_text(f'{listener}[[plugins]]\nuse = "maildir"\npath = "mail/{{local}}"\n')
    for options, status in (((), 0), (("--strict",), 78)):
        assert main([*command, *options]) == status
        found = json.loads(capsys.readouterr().out)
        assert found["accepted"] == (status == 0)
        assert {each["severity"] for each in found["problems"]} == {"warning"}


def test_dns_try_replay_and_setup_have_the_documented_keys(
    used: Running, show: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--address", "198.51.100.25")
    assert all(each.keys() == documented("dns") for each in show("dns", *options))
    checked = show("dns", *options, "--check", "--port25", "no", "--seconds", "0.1", status=75)
    assert checked
    assert all(each.keys() == documented("dns --check") for each in checked)
    message = tmp_path / "m" / "cur" / "1"
    (tmp_path / "m" / "new").mkdir(parents=True)
    message.parent.mkdir()
    message.write_bytes(b"X-Bad: 1\r\nSubject: x\r\n\r\nx\r\n")
    tried = show("try", "worried", str(message), status=1)
    assert tried.keys() == documented("try PLUGIN FILE")
    changed = tmp_path / "changed.toml"
    changed.write_text("plugin_path = []\n")
    command = ["replay", str(tmp_path / "m"), "--plugins", str(changed), "--json"]
    capsys.readouterr()
    assert main([*command, "--config", str(used.config)]) == 0
    first, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert first.keys() | last.keys() == documented("replay MAILDIR --plugins FILE")
    new = [*("--domain", "example.org", "--hostname", "mx.example.org", "--user", "alice")]
    command = ["setup", *new, "--config", str(tmp_path / "new" / "minismtp.toml")]
    assert main([*command, "--dry-run", "--json"]) == 0
    files = json.loads(capsys.readouterr().out)
    assert {each["state"] for each in files} == {"new"}
    assert all(each.keys() == documented("setup --dry-run") for each in files)
    assert not (tmp_path / "new").exists()
    assert main([*command, "--json"]) == 2
    assert "--json is for --dry-run" in capsys.readouterr().err
