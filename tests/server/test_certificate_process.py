"""The process that gets certificates, in a server with a real authority."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
from authority import Authority, hurry, serving_challenges
from nameserver import Records, running
from snippets import CLEAR, listener

from minismtp.cli.main import main
from minismtp.config import Config
from minismtp.runtime.log import Log
from minismtp.runtime.metrics import Metrics
from minismtp.server import certificate_process
from minismtp.server.certificate_process import Renewals
from minismtp.services.acme_files import AcmeFiles, State, ensure_certificate
from minismtp.services.acme_schedule import AcmeError, Failure
from minismtp.services.certificate_file import Certificate, certificates_in
from minismtp.values.threads import start_thread

if TYPE_CHECKING:
    from conftest import Configure, Running, Start

Capture = pytest.CaptureFixture[str]
STARTTLS: Final = listener("smtp")
NAMES: Final = "mx.example.org mta-sts.example.org"
HANGS: Final = """
import os, sys, time
from pathlib import Path
from minismtp.config import Config
from minismtp.runtime.scoreboard import Scoreboard
from minismtp.server import certificate_process
from minismtp.services import acme
from minismtp.values.threads import Flag
import signal

acme.get_certificate = lambda *_: time.sleep(3600)
certificate_process._LONGEST_ATTEMPT = 0.01
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2})
lifeline, keep = os.pipe()
ready, said = os.pipe()
directory = Path(sys.argv[2])
directory.mkdir()
context = certificate_process.CertificateContext(0, directory, said, lifeline, Scoreboard())
status = certificate_process.run(Config.load(Path(sys.argv[1])), context)
print(os.read(ready, 1))
os._exit(status)
"""


def listeners(authority: Authority) -> str:
    web = f'[[listeners]]\nname = "web"\nkind = "web"\naddress = "127.0.0.1:{authority.web_port}"\n'
    return STARTTLS + web


def presented(server: Running) -> bytes:
    """Return the certificate that clients of STARTTLS see, DER."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with server.connect() as client:
        client.greet()
        client.command("STARTTLS")
        client.secure(context)
        assert isinstance(client.socket, ssl.SSLSocket)
        return client.socket.getpeercert(binary_form=True) or b""


def names(der: bytes) -> set[str]:
    return {*certificates_in(ssl.DER_cert_to_PEM_cert(der).encode())[0].names}


def certified(path: Path) -> Config:
    """Return a configuration whose state directory has a certificate that is signed by itself."""
    config = Config.load(path)
    config.state_directory.mkdir(exist_ok=True)
    ensure_certificate(config)
    return config


def status(config: Path, capsys: Capture) -> dict[str, Any]:
    assert main(["certificate", "--json", "--config", str(config)]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_server_gets_its_certificate_and_renews_it(
    configure: Configure,
    start: Start,
    authority: Authority,
    capsys: Capture,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    table = authority.table(None, names=NAMES)
    config = configure(table, listeners=listeners(authority))
    server = start(config)
    server.wait_for_log(r" warning doubtful key=tls\.certificate .*signed itself")
    server.wait_for_log(r" info got a certificate names=\S+ until=20\d\d-")
    found = status(config, capsys)
    server.wait_until(lambda: b"Pebble" in presented(server))
    first = presented(server)
    assert names(first) == {*NAMES.split()}
    assert found["issuer"].startswith("Pebble Intermediate")
    assert (found["error"], found["failures"], {*found["names"]}) == ("", 0, names(first))
    assert server.metric("acme_next_attempt_timestamp_seconds") > time.time()
    assert server.metric("acme_last_attempt_successful") == 1

    assert main(["certificate", "renew", "--config", str(config)]) == 0
    assert "valid until 20" in capsys.readouterr().out
    server.wait_until(lambda: presented(server) != first)

    copy = tmp_path_factory.mktemp("backup") / "copy"
    assert main(["backup", str(copy), "--config", str(config)]) == 0
    files = AcmeFiles.of(Config.load(config))
    for path in (files.certificate, files.account_key):
        assert (copy / str(path).lstrip("/")).read_bytes() == path.read_bytes()

    configure(authority.table(None, names="mx.example.org"), listeners=listeners(authority))
    server.signal(signal.SIGHUP)
    server.wait_until(lambda: names(presented(server)) == {"mx.example.org"})
    assert len(re.findall(r" info getting a certificate ", server.log)) == 2
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


def test_server_with_port_443_alone_gets_its_certificate(
    configure: Configure, start: Start, authority: Authority
) -> None:
    """RFC 8737."""
    address = f"127.0.0.1:{authority.tls_port}"
    web = listener("web", 'kind = "web"', 'tls = "implicit"', address=address)
    server = start(configure(authority.table(None), listeners=STARTTLS + web))
    server.wait_for_log(r" info got a certificate names=mx\.example\.org until=20\d\d-")
    server.wait_until(lambda: b"Pebble" in presented(server))
    assert server.metric("web_requests_total", listener="web", result="served") >= 1


def test_certificate_stays_if_the_authority_cannot_check_the_names(
    configure: Configure, start: Start, authority: Authority, capsys: Capture
) -> None:
    place = configure().parent / "challenges"
    place.mkdir()  # which no web server serves
    config = configure(authority.table(place), listeners=STARTTLS)
    server = start(config)
    server.wait_for_log(
        r' error no new certificate, the old one stays error="the authority cannot check the names:'
        r" mx\.example\.org: .* next=20\d\d-"
    )
    assert names(presented(server)) == {"mx.example.org"}
    assert server.metric("acme_next_attempt_timestamp_seconds") > time.time()
    assert server.metric("acme_last_attempt_successful") == 0
    found = status(config, capsys)
    assert (found["issuer"], found["failures"]) == ("itself", 1)
    assert "mx.example.org: " in found["error"]
    assert main(["certificate", "--config", str(config)]) == 0
    assert "failed: the authority cannot check" in capsys.readouterr().out
    assert main(["certificate", "renew", "--config", str(config)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("minismtp: no new certificate, the old one stays: ")
    assert error.count("\n") == 1
    [process] = [each for each in server.tree() if "acme" in Path(f"/proc/{each}/comm").read_text()]
    os.kill(process, signal.SIGKILL)
    server.wait_for_log(" error certificate process died ")
    assert server.metric("process_replacements_total", process="certificates") == 1
    server.wait_until(lambda: len(server.tree()) == 5)  # and another one is started
    assert server.log.count(" info getting a certificate ") == 1  # which waits


def test_renewal_by_hand_needs_a_table_and_a_server_that_answers(
    configure: Configure, authority: Authority, capsys: Capture
) -> None:
    path = configure(listeners=listener("smtp", CLEAR))
    assert main(["certificate", "--config", str(path)]) == 0
    assert capsys.readouterr().out.startswith("no certificate is configured")
    assert main(["certificate", "renew", "--config", str(path)]) == 1
    assert "there is no table [tls.acme]" in capsys.readouterr().err
    path = configure(authority.table(None), listeners=listeners(authority))
    assert main(["certificate", "renew", "--config", str(path)]) == 1
    assert "the server does not run" in capsys.readouterr().err
    assert status(path, capsys)["problem"].endswith("No such file or directory")
    config = certified(path)
    with AcmeFiles.of(config).locked():
        place = path.parent
        configure(authority.table(place), listeners=STARTTLS)
        assert main(["certificate", "renew", "--config", str(path)]) == 1
    assert "is getting a certificate at this moment" in capsys.readouterr().err
    for words in (["renew", "--json"], ["--new-key"]):
        assert main(["certificate", *words, "--config", str(path)]) == 2


@pytest.fixture
def renewals(configure: Configure, authority: Authority) -> Renewals:
    """Return the part that decides, with a certificate of its own."""
    place = configure().parent
    config = certified(configure(authority.table(place), listeners=STARTTLS))
    assert config.tls.acme is not None
    with (place / "log").open("wb") as log:
        return Renewals(config, config.tls.acme, Metrics(), Log(descriptor=os.dup(log.fileno())))


def test_failure_that_cannot_be_noted_waits_too(
    renewals: Renewals, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def fail(*_: object) -> None:
        attempts.append("")
        raise AcmeError("the disk is full", Failure.UNREACHED)

    monkeypatch.setattr("minismtp.services.acme.get_certificate", fail)
    for _ in range(3):
        renewals.step()
    assert len(attempts) == 1


def test_names_that_the_new_certificate_lacks_are_in_the_log(
    configure: Configure, renewals: Renewals, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = configure().parent
    files = AcmeFiles(directory / "state" / "acme")

    def get(*_: object) -> Certificate:
        files.write_state(State(error="the authority cannot check the names: b.example: no"))
        found = files.present()
        assert found is not None
        return found

    monkeypatch.setattr("minismtp.services.acme.get_certificate", get)
    renewals.step()
    [line] = re.findall("error the certificate lacks names .*", (directory / "log").read_text())
    assert 'error="the authority cannot check the names: b.example: no" next=20' in line


def test_record_that_comes_late_is_waited_for_without_a_refusal(
    configure: Configure, authority: Authority, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    place = configure().parent
    with running(Records({})) as records, serving_challenges(authority.web_port, place) as asked:
        own = replace(authority, dns_port=records.address.port)
        path = configure(own.table(place), listeners=STARTTLS)
        config, metrics = certified(path), Metrics()
        assert config.tls.acme is not None
        with (place / "log").open("wb") as log:
            descriptor = os.dup(log.fileno())
            renewals = Renewals(config, config.tls.acme, metrics, Log(descriptor=descriptor))
        for _ in range(3):  # of which the first one looks
            renewals.step()
        assert not asked
        problem = "no address in the DNS yet: mx.example.org"
        [line] = re.findall("warning .*", (place / "log").read_text())
        assert line.startswith(
            f'warning the certificate waits for the DNS reason="{problem}" next=20'
        )
        found = status(path, capsys)
        assert (found["error"], found["failures"]) == (problem, 0)
        assert found["why"] == "names were not in the DNS"
        assert main(["certificate", "--config", str(path)]) == 0
        shown = capsys.readouterr().out
        assert problem in shown
        assert "failed" not in shown
        files = AcmeFiles.of(config)
        files.write_state(msgspec.structs.replace(files.state(), wait_until=1.0))
        records.known["mx.example.org", "A"] = ["192.0.2.1"]
        renewals.step()
    assert set(asked) == {"mx.example.org"}
    text = (place / "log").read_text()
    assert " info got a certificate names=mx.example.org until=20" in text
    assert " error " not in text
    assert files.state().error == ""


def test_library_is_imported_before_the_first_look(
    renewals: Renewals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weeks later, after an upgrade, it may be of another release than this process."""
    done: list[str] = []

    def look() -> None:
        done.append("look")
        renewals.stop()

    monkeypatch.delitem(sys.modules, "minismtp.services.acme", raising=False)
    module = "minismtp.server.certificate_process.importlib"
    monkeypatch.setattr(f"{module}.import_module", done.append)
    monkeypatch.setattr(renewals, "step", look)
    renewals.run()
    assert done == ["minismtp.services.acme", "look"]


def test_thread_goes_on_after_a_failure(
    renewals: Renewals, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = iter([RuntimeError("wanted"), PermissionError(13, "no", "x"), None])
    over = threading.Event()

    def plan(*_: object) -> None:
        if (outcome := next(outcomes)) is not None:
            raise outcome
        over.set()
        renewals.stop()
        raise OSError

    monkeypatch.setattr(certificate_process, "plan", plan)
    monkeypatch.setattr(certificate_process, "_TICK", 0.01)
    start_thread("acme", renewals.run).join(60)
    assert over.is_set()


def test_attempt_that_hangs_ends_the_process(
    configure: Configure, authority: Authority, tmp_path: Path
) -> None:
    path = configure(authority.table(tmp_path), listeners=STARTTLS)
    certified(path)
    done = subprocess.run(
        [sys.executable, "-c", HANGS, path, tmp_path / "metrics"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "b'r'\n")
    assert " error the attempt to get a certificate hangs limit=0.01" in done.stderr
