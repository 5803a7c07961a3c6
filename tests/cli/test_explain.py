"""The output of `minismtp explain`, the identifiers it takes, and the files that it reads."""

from __future__ import annotations

import base64
import json
import re
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from minismtp.cli.explain import whereabouts
from minismtp.cli.main import main
from minismtp.runtime.decision_log import DecisionLog, Record, recall
from minismtp.runtime.log import Log
from minismtp.values.passwords import hash_password

if TYPE_CHECKING:
    from conftest import Client, Configure, Running, Start, TlsFiles

Capture = pytest.CaptureFixture[str]
Explain = Callable[..., str]

FILTERS = {
    "spam_flag": """\
from minismtp import Reject, hookimpl, plugin

@plugin
class SpamFlag:
    @hookimpl
    def on_message(self, message):
        if message.headers.get("X-Spam"):
            raise Reject("message refused as spam")
""",
    "broken": """\
import logging
from minismtp import hookimpl, plugin

@plugin
class Broken:
    @hookimpl
    def on_rcpt(self, recipient):
        if recipient.address.local == "crash":
            raise ZeroDivisionError("by zero")
        logging.getLogger("third.party").info("asked about a recipient")
""",
    "grumpy": """\
from minismtp import Reject, hookimpl, plugin

@plugin
class Grumpy:
    @hookimpl
    def on_mail(self):
        raise Reject("not today")
""",
}
BEARER = "n,,\1auth=Bearer {}\1\1"  # RFC 7628 section 3.1
TABLES = """
[[plugins]]
use = "spam_flag"

[[plugins]]
use = "broken"

[[plugins]]
use = "grumpy"
mode = "shadow"

[[plugins]]
use = "relay"
networks = ["127.0.0.0/8"]
"""


@pytest.fixture
def explain(capsys: Capture) -> Explain:
    """Return a function that runs the command on a server and returns what it prints."""

    def explain(server: Running, identifier: str, *options: str) -> str:
        assert main(["explain", identifier, "--config", str(server.config), *options]) == 0
        return capsys.readouterr().out

    return explain


@pytest.fixture
def filtering(configure: Configure, start: Start) -> Running:
    """Start a server with filters that refuse, crash, and refuse in shadow mode."""
    outbound = '[outbound]\nsmarthost = "127.0.0.1:9"\ntls = "none"\n'
    config = configure(TABLES, outbound)
    for name, text in FILTERS.items():
        (config.parent / "local_plugins" / f"{name}.py").write_text(text)
    return start(config)


def send(server: Running, content: str, recipient: str = "user@example.org") -> str:
    """Send a message and return the reply to it, or the first refusal."""
    with server.connect() as client:
        client.greet()
        for line in ("MAIL FROM:<a@client.example>", f"RCPT TO:<{recipient}>", "DATA"):
            reply = client.command(line)
            if reply[0] in "45":
                break
        else:
            reply = client.command(f"{content}\r\n.")
        client.command("QUIT")
        return reply


def identifier_in(reply: str) -> str:
    found = re.search(r" \(id ([0-9a-f]{12}(?:\.\d+)?)\)$", reply)
    assert found is not None, reply
    return found[1]


def test_accepted_message_is_explained(filtering: Running, explain: Explain) -> None:
    identifier = send(filtering, "Subject: x\r\n\r\nx").split()[-1]
    text = explain(filtering, identifier)
    assert re.search(rf"^{identifier}  message: stored  ", text, re.MULTILINE)
    assert "  sender=<a@client.example>  to=user@example.org  " in text
    assert "  stored=user@example.org" in text
    for step in (
        r"    grumpy\.on_mail  \d+\.\d ms  shadow:reject  550 5\.7\.1 not today",
        r"  RCPT user@example\.org",
        r"    broken\.on_rcpt  \d+\.\d ms  none",
        r"    mailboxes\.route  \d+\.\d ms  answer",
        r"    spam_flag\.on_message  \d+\.\d ms  none",
        r"    maildir\.deliver  \d+\.\d ms  answer",
    ):
        assert re.search(rf"^ +\+\d+\.\d+ s{step}$", text, re.MULTILINE), (step, text)
    assert f"    => 250 2.0.0 message accepted as {identifier}\n" in text
    assert re.search(rf"^{identifier[:12]}  session closed  ", text, re.MULTILINE)


def test_rejected_message_names_the_plugin(filtering: Running, explain: Explain) -> None:
    reply = send(filtering, "X-Spam: yes\r\n\r\nBuy!")
    assert reply.startswith("550 5.7.1 message refused as spam (id ")
    text = explain(filtering, identifier_in(reply))
    assert "  message: rejected  " in text
    assert re.search(r"spam_flag\.on_message  .* ms  reject  550 5\.7\.1 message refused", text)


def test_what_a_sender_pastes_is_understood(filtering: Running, explain: Explain) -> None:
    reply = send(filtering, "X-Spam: yes\r\n\r\nBuy!")
    assert "  message: rejected  " in explain(filtering, f"the server said {reply}")


def test_recipient_deferred_by_a_crash_names_the_plugin_and_the_error(
    filtering: Running, explain: Explain
) -> None:
    reply = send(filtering, "", "crash@example.org")
    assert reply.startswith("451 4.3.0 ")
    text = explain(filtering, identifier_in(reply))
    assert "  message: no message  " in text
    assert re.search(r"broken\.on_rcpt  .* ms  defer  failed: ZeroDivisionError: by zero", text)
    assert re.search(r"  RCPT => 451 temporary failure, try again later$", text, re.MULTILINE)


def test_relayed_message_is_explained_with_its_attempts(
    filtering: Running, explain: Explain
) -> None:
    identifier = send(filtering, "Subject: x\r\n\r\nx", "user@elsewhere.example").split()[-1]
    filtering.wait_for_log(rf" delivery deferred id={identifier} ")
    text = explain(filtering, identifier)
    assert "  message: queued  " in text
    assert "  queued=user@elsewhere.example" in text
    assert re.search(r"  delivery deferred  .*\n    to=user@elsewhere\.example  .*delay=", text)
    assert re.search(r"    => 4\d\d .*cannot connect", text)


def test_session_without_a_message_is_explained(filtering: Running, explain: Explain) -> None:
    with filtering.connect() as client:
        client.reply()
        reply = client.command("MAIL FROM:<a@client.example>")
        client.command("QUIT")
    text = explain(filtering, identifier_in(reply))
    assert "  MAIL => 503 say EHLO first" in text
    assert "  reason=quit  " in text


def test_json_has_every_step(filtering: Running, explain: Explain) -> None:
    reply = send(filtering, "X-Spam: yes\r\n\r\nBuy!")
    records: list[dict[str, Any]] = json.loads(explain(filtering, identifier_in(reply), "--json"))
    [message] = [record for record in records if record["event"] == "rejected"]
    assert [step[:2] for step in message["steps"]] == [
        ["on_mail", "grumpy"],
        ["RCPT", "user@example.org"],
        ["on_rcpt", "broken"],
        ["route", "mailboxes"],
        ["on_message", "spam_flag"],
    ]


def test_unknown_identifier_is_a_failure(configure: Configure, capsys: Capture) -> None:
    config = str(configure())
    for identifier in ("0123456789ab", "nonsense"):
        assert main(["explain", identifier, "--config", config]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"minismtp: nothing is known of {identifier}; there are no records")


def test_explain_says_where_it_looked(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path, 1 << 20, Log(level="error"))
    log.keep(Record("stored", "0123456789ab.1", 1_700_000_000.0, 0.0, {}, []))
    log.flush()
    assert whereabouts(tmp_path) == (
        f"looked into 1 file of records in {tmp_path}/chronicle, the oldest of 2023-11-14 22:13:20Z"
    )


# The log


def test_summary_line_has_verdicts_stages_and_place(filtering: Running) -> None:
    identifier = send(filtering, "Subject: x\r\n\r\nx").split()[-1]
    line = filtering.wait_for_log(rf"^.* stored session=\S+ id={identifier} .*$")[0]
    assert " sender=<a@client.example> to=user@example.org size=17 " in line
    assert " stored=user@example.org" in line
    hooks = [hook.rpartition(":") for hook in line.rpartition(" hooks=")[2].split(",")]
    assert [name for name, _, _ in hooks] == [
        "grumpy.on_mail:shadow:reject",
        "broken.on_rcpt:none",
        "mailboxes.route:answer",
        "spam_flag.on_message:none",
        "maildir.deliver:answer",
    ]
    assert all(int(microseconds) >= 0 for _, _, microseconds in hooks)
    assert re.search(r" receive=\d\.\d{4} ", line)


def test_line_of_a_library_has_session_and_message(filtering: Running) -> None:
    identifier = send(filtering, "Subject: x\r\n\r\nx").split()[-1]
    filtering.wait_for_log(
        rf" asked about a recipient session={identifier[:12]} id={identifier} logger=third\.party$"
    )
    # The message is finished, so the line of the session's end is not about it.
    filtering.wait_for_log(rf" session closed session={identifier[:12]} peer=")


def dialogues(client: Client) -> None:
    """Log in by each mechanism, with the right password and with a wrong one."""

    def said(*parts: str) -> str:
        return base64.b64encode("\0".join(parts).encode()).decode()

    client.command("EHLO client.example")
    for password in ("wr0ng-secret", "r1ght-secret"):
        for lines in (
            [f"AUTH LOGIN {said('alice')}", said(password)],
            ["AUTH LOGIN", said("alice"), said(password)],
            ["AUTH PLAIN", said("", "alice", password)],
            [f"AUTH PLAIN {said('', 'alice', password)}"],
            ["AUTH SCRAM-SHA-256 " + base64.b64encode(b"n,,n=alice,r=n0nce").decode(), "*"],
            # Responses after the server refused AUTH, and nonsense.
            [f"AUTH NONE {said('', 'alice', password)}", said("alice"), said(password)],
            [f"AUTH OAUTHBEARER {said(BEARER.format(password))}"],
            [f"AUTH PLAIN {password}"],
            [f"PASS {password}"],
        ):
            for line in lines:
                client.command(line)
            client.command("NOOP")


def test_no_secret_is_ever_logged(configure: Configure, start: Start, tls_files: TlsFiles) -> None:
    limits = '[limits]\nlogin_backoff = "0s"\nfailed_logins = 1000\nerrors = 1000\n'
    log = '[log]\nlevel = "debug"\n'
    listener = '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\n'
    users = '[[plugins]]\nuse = "password_file"\npath = "passwords"\n'
    config = configure(limits, log, tls_files.table, users, listeners=listener)
    (config.parent / "passwords").write_text(f"alice:{hash_password('r1ght-secret')}\n")
    server = start(config)
    with server.connect() as client:
        client.reply()
        client.command("EHLO client.example")
        client.command("STARTTLS")
        client.secure(tls_files.client())
        dialogues(client)
        client.command("MAIL FROM:<a@client.example>")
        client.command("RCPT TO:<user@example.org>")
        client.command("DATA")
        client.command("Subject: x\r\n\r\nthe-b0dy-of-it\r\n.")
        client.command("QUIT")
    server.wait_for_log("session closed")
    server.signal(signal.SIGTERM)
    server.wait()
    state = server.directory / "state" / "chronicle"
    written = server.log + "".join(path.read_text() for path in state.iterdir())
    assert "alice" in written
    for secret in ("wr0ng-secret", "r1ght-secret", "the-b0dy-of-it"):
        assert secret not in written
        for parts in (secret, f"\0alice\0{secret}", BEARER.format(secret)):
            assert base64.b64encode(parts.encode()).decode().rstrip("=") not in written


# The ring


def record(number: int, **fields: str | int) -> Record:
    return Record("stored", f"{number:012x}.1", float(number), 0.0, fields, [])


def test_ring_keeps_the_newest_within_its_bound(tmp_path: Path) -> None:
    chronicle = DecisionLog(tmp_path, 80_000, Log())
    for number in range(2000):
        chronicle.keep(record(number, text="x" * 80))
        if number % 20 == 0:
            chronicle.flush()
    chronicle.flush()
    files = [*(tmp_path / "chronicle").iterdir()]
    assert sum(path.stat().st_size for path in files) <= 90_000
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert recall(tmp_path, f"{1999:012x}.1") == [record(1999, text="x" * 80)]
    assert recall(tmp_path, f"{1800:012x}") == [record(1800, text="x" * 80)]
    assert recall(tmp_path, f"{0:012x}.1") == []


def test_several_processes_share_the_ring(tmp_path: Path) -> None:
    """Each opens the file again, so several in one process act like several processes."""
    writers = [DecisionLog(tmp_path, 1_000_000, Log()) for _ in range(4)]

    def write(own: int) -> None:
        for number in range(own, 400, 4):
            writers[own].keep(record(number))
            writers[own].flush()

    threads = [threading.Thread(target=write, args=(own,)) for own in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(recall(tmp_path, f"{number:012x}.1") == [record(number)] for number in range(400))


def test_line_cut_off_by_a_crash_is_passed_over(tmp_path: Path) -> None:
    chronicle = DecisionLog(tmp_path, 1_000_000, Log())
    chronicle.keep(record(1))
    chronicle.flush()
    path = tmp_path / "chronicle" / "current.jsonl"
    path.write_bytes(path.read_bytes() + b'{"event":"stored","id":"000000000001.1","ti')
    assert recall(tmp_path, f"{1:012x}.1") == [record(1)]


def test_ring_of_no_size_keeps_nothing(tmp_path: Path) -> None:
    chronicle = DecisionLog(tmp_path, 0, Log())
    chronicle.keep(record(1))
    chronicle.flush()
    assert not (tmp_path / "chronicle").exists()


def test_ring_that_cannot_be_written_is_told_once(tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "chronicle").touch()
    chronicle = DecisionLog(tmp_path, 1_000_000, Log())
    for number in range(3):
        chronicle.keep(record(number))
        chronicle.flush()
    assert capfd.readouterr().err.count("chronicle not written") == 1


def test_step_list_is_bounded(configure: Configure, start: Start, explain: Explain) -> None:
    server = start(configure("[limits]\nerrors = 100000\n", "[log]\nrefusals = 5000\n"))
    with server.connect() as client:
        client.greet()
        client.send("NONSENSE\r\n" * 2000)
        reply = [client.reply() for _ in range(2000)][-1]
        client.command("QUIT")
    server.wait_for_log(" session closed ")
    [found] = json.loads(explain(server, identifier_in(reply), "--json"))
    assert len(found["steps"]) == 500


def test_refusal_with_a_long_text_keeps_its_identifier_in_short_lines(server: Running) -> None:
    # RFC 5321 section 4.5.3.1.5
    with socket.create_connection(("127.0.0.1", server.port())) as sock:
        sock.sendall(b"EHLO client.example\r\nRCPT TO:<" + b"x" * 600 + b"\r\nQUIT\r\n")
        sock.settimeout(60)
        data = b"".join(iter(lambda: sock.recv(65536), b""))
    assert re.search(rb"\(id [0-9a-f]{12}\)\r\n", data)
    assert all(len(line) <= 510 for line in data.split(b"\r\n"))
