"""What the server says once when it starts, and what keeps it from starting."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme
from snippets import MAILBOXES, listener

from minismtp.cli.main import main

if TYPE_CHECKING:
    from conftest import Configure, Run, Running

TLS = '[tls]\ncertificate = "cert.pem"\nkey = "key.pem"\n'
THREE = "".join(
    listener(name, 'kind = "submission"' if name != "smtp" else "", 'tls = "starttls"')
    for name in ("smtp", "submission", "users")
)


def expired(directory: Path) -> None:
    """Write a certificate that is over, and its key."""
    over = datetime.now(UTC) - timedelta(days=1)
    issued = trustme.CA().issue_cert("mx.example.org", not_before=over, not_after=over)
    issued.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    issued.private_key_pem.write_to_path(directory / "key.pem")
    (directory / "key.pem").chmod(0o600)


def serve(config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "minismtp", "serve", "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_expired_certificate_is_logged_once_for_all_workers_and_listeners(
    configure: Configure, run: Run, tmp_path: Path
) -> None:
    expired(tmp_path)
    config = configure(TLS, listeners=THREE, workers=3)
    with run(config) as server:
        server.wait_for_log(" listening listener=users")
        server.wait_until(lambda: len(server.tree()) >= 6)  # endpoint and runner are among them
        log = server.log
    doubts = re.findall(r" doubtful key=tls.certificate line=\d+ problem=\"(.*)\"", log)
    assert len(doubts) == 1
    assert "cert.pem expired on " in doubts[0]
    loaded = re.findall(r"certificate loaded listener=(\S+)", log)
    assert loaded == ["smtp,submission,users"]


def test_reload_logs_its_doubts_once_more(configure: Configure, run: Run, tmp_path: Path) -> None:
    expired(tmp_path)
    with run(configure(TLS, listeners=THREE)) as server:
        main_process = server.process
        main_process.send_signal(1)
        server.wait_for_log(" reloaded")
        assert len(re.findall(r" doubtful key=tls.certificate", server.log)) == 2


def test_place_of_mail_that_is_a_file_ends_the_start(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "mail").touch()
    done = serve(configure())
    assert done.returncode == 78
    problem = f"path: {tmp_path / 'mail'} is a file; expected a directory"
    assert re.search(rf"plugins\[1\] maildir, line \d+: {problem}", done.stderr)


def test_start_reports_the_mistakes_of_keys_and_plugins_at_once(configure: Configure) -> None:
    config = configure(plugins=MAILBOXES.replace("domains", "domain"), top="worker = 3")
    done = serve(config)
    assert done.returncode == 78
    lines = done.stderr.splitlines()
    assert [re.sub(r", line \d+", "", line) for line in lines] == [
        f"minismtp: {config}: worker: unknown key; did you mean 'workers'?",
        f"minismtp: {config}: plugins[0] mailboxes: domain: unknown key; did you mean 'domains'?",
    ]


def test_port_in_use_is_reported_with_its_process(
    configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = configure(listeners=listener("smtp", 'tls = "none"', address=f"127.0.0.1:{port}"))
        assert main(["check", "--config", str(config)]) == 0
        done = serve(config)
    warned = capsys.readouterr().err
    assert re.search(
        rf"address: 127.0.0.1:{port} is in use by \S+ \(process \d+\), so the server could not"
        r" start: stop it, or choose another port",
        warned,
    )
    assert done.returncode == 1
    assert re.search(r"already in use by \S+ \(process \d+\); stop it, or choose", done.stderr)


def test_ports_of_the_running_server_itself_are_no_problem(
    configure: Configure, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with run(configure()) as server:
        text = server.config.read_text().replace("127.0.0.1:0", server.address(), 1)
        metrics = server.wait_for_log(r" serving metrics address=(\S+)")[1]
        text = text.replace(server.address(), metrics, 1).replace("127.0.0.1:0", server.address())
        server.config.write_text(text)
        assert main(["check", "--strict", "--config", str(server.config)]) == 0
        assert _served(server)
    assert "in use" not in capsys.readouterr().err


def _served(server: Running) -> bool:
    with server.connect() as client:
        return client.reply().startswith("220")
