"""When a certificate is renewed: as the authority suggests (RFC 9773), if that makes sense."""

from __future__ import annotations

import base64
import datetime as dt
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import trustme
from authority import Authority, Stub, stub_authority
from cryptography import x509
from snippets import CLEAR, listener

from minismtp.config import Config
from minismtp.runtime.log import Log
from minismtp.runtime.metrics import Metrics
from minismtp.server.certificate_process import Renewals
from minismtp.services.acme import ask_for_renewal
from minismtp.services.acme_files import AcmeFiles, State, requested
from minismtp.services.acme_schedule import AcmeError, Plan, plan, renewal_time
from minismtp.services.certificate_file import Certificate

DAY: Final = 86_400.0
AGE, LIFE = 20 * DAY, 90 * DAY


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Stub]:
    with stub_authority(tmp_path) as running:
        yield running


@pytest.fixture
def config(tmp_path: Path, stub: Stub) -> Config:
    """Configure the stub, with a certificate of an authority that is 20 of 90 days old."""
    path = tmp_path / "minismtp.toml"
    table = Authority(stub.port, 0, 0, stub.trusted, tmp_path).table(tmp_path)
    path.write_text(
        f'hostname = "mx.example.org"\nstate_directory = "state"\n{listener("smtp", CLEAR)}{table}'
    )
    config = Config.load(path)
    begin = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=AGE)
    end = begin + dt.timedelta(seconds=LIFE)
    issued = trustme.CA().issue_cert("mx.example.org", not_before=begin, not_after=end)
    files = AcmeFiles.of(config)
    files.directory.mkdir(parents=True)
    files.install(issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes())
    assert config.tls.acme is not None
    wanted = requested(config.tls.acme)
    files.write_state(State(request=wanted, issued=wanted, renewed=begin.timestamp()))
    return config


def window(start: float, end: float) -> bytes:
    """Return the answer of an authority; the days are from now."""
    days = {"start": start, "end": end}
    now = dt.datetime.now(dt.UTC)
    dates = {name: (now + dt.timedelta(days=day)).isoformat() for name, day in days.items()}
    return json.dumps({"suggestedWindow": dates}).encode()


def present(config: Config) -> Certificate:
    found = AcmeFiles.of(config).present()
    assert found is not None
    return found


def planned(config: Config) -> Plan:
    assert config.tls.acme is not None
    return plan(config.tls.acme, present(config), AcmeFiles.of(config).state())


def test_authority_is_asked_about_the_certificate_in_use(config: Config, stub: Stub) -> None:
    """RFC 9773 section 4.1."""
    stub.renewal = window(1, 2)
    ask_for_renewal(config)
    path = stub.asked[-1].removeprefix("/renewalInfo/")
    issuer, _, serial = path.partition(".")
    pem = AcmeFiles.of(config).certificate.read_bytes()
    certificate = x509.load_pem_x509_certificate(pem)
    found = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    padded = [part + "=" * (-len(part) % 4) for part in (issuer, serial)]
    assert base64.urlsafe_b64decode(padded[0]) == found.key_identifier
    number = int.from_bytes(base64.urlsafe_b64decode(padded[1]), "big")
    assert number == certificate.serial_number


def test_window_in_the_past_makes_a_renewal_now(
    config: Config, stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.renewal = window(-2, -1)
    attempts: list[str] = []

    def get(*_: object) -> Certificate:
        attempts.append("")
        return present(config)

    monkeypatch.setattr("minismtp.services.acme.get_certificate", get)
    assert config.tls.acme is not None
    with (tmp_path / "log").open("wb") as log:
        descriptor = os.dup(log.fileno())
        renewals = Renewals(config, config.tls.acme, Metrics(), Log(descriptor=descriptor))
    renewals.step()
    assert not attempts
    renewals.step()
    assert attempts
    assert 'reason="the authority suggests it"' in (tmp_path / "log").read_text()


def test_window_ahead_is_waited_for(config: Config, stub: Stub) -> None:
    stub.renewal = window(50, 51)
    stub.headers = {"Retry-After": "10000"}
    state = ask_for_renewal(config)
    coming = planned(config)
    assert 50 * DAY - 60 <= coming.at - time.time() <= 51 * DAY
    assert coming.at > renewal_time(present(config))
    assert coming.reason == "the authority suggests it"
    assert 9_900 < state.ask_after - time.time() <= 10_000
    asked = len(stub.asked)
    assert ask_for_renewal(config) == state
    assert len(stub.asked) == asked


@pytest.mark.parametrize(("start", "end"), [(69, 71), (400, 500), (2_900_000, 2_800_000)])
def test_window_after_the_end_does_not_let_the_certificate_expire(
    config: Config, stub: Stub, start: float, end: float
) -> None:
    stub.renewal = window(start, end)
    ask_for_renewal(config)
    found = present(config)
    assert planned(config).at <= found.end - LIFE / 10 + 1


@pytest.mark.parametrize(
    ("answer", "status", "headers"),
    [
        (b"no JSON", 200, {}),
        (b"\xff", 200, {}),
        (b"", 200, {}),
        (b"[]", 200, {}),
        (b"3", 200, {}),
        (b"{}", 200, {}),
        (b'{"suggestedWindow": 3}', 200, {}),
        (b'{"suggestedWindow": {}}', 200, {}),
        (b'{"suggestedWindow": {"start": 1, "end": 2}}', 200, {}),
        (b'{"suggestedWindow": {"start": "x", "end": "y"}}', 200, {}),
        (window(1, 2), 404, {}),
        (window(1, 2), 500, {}),
        (window(1, 2), 503, {"Retry-After": "9" * 30}),
        (window(1, 2), 200, {"Retry-After": "9" * 30}),
        (b"x" * ((1 << 20) + 1), 200, {}),
        (b"[" * 200_000, 200, {}),
    ],
    ids=[
        *("words", "octet", "nothing", "list", "number", "no window", "number as window"),
        *("empty window", "numbers", "no dates", "404", "500", "503 for ever", "for ever"),
        *("long", "deep"),
    ],
)
def test_answer_without_sense_leaves_the_usual_time(
    config: Config, stub: Stub, answer: bytes, status: int, headers: dict[str, str]
) -> None:
    stub.renewal, stub.renewal_status, stub.headers = answer, status, headers
    with pytest.raises(AcmeError) as found:
        ask_for_renewal(config)
    assert "\n" not in str(found.value)
    assert planned(config) == Plan(renewal_time(present(config)), "renewal")
    assert DAY - 60 < AcmeFiles.of(config).state().ask_after - time.time() <= DAY
    asked = len(stub.asked)
    ask_for_renewal(config)
    assert len(stub.asked) == asked


@pytest.mark.parametrize("part", ["pause", "header_pause"])
def test_answer_that_trickles_in_is_cut_off(
    part: str, config: Config, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minismtp.services.acme_client._LONGEST_REQUEST", 0.5)
    stub.renewal = window(1, 2).ljust(100_000)
    stub.headers = {"X-Long": "x" * 60_000}
    setattr(stub, part, 0.01)
    begun = time.monotonic()
    with pytest.raises(AcmeError, match=r"the answer takes longer than 0\.5 s"):
        ask_for_renewal(config)
    assert time.monotonic() - begun < 60
    assert planned(config).reason == "renewal"


@pytest.mark.parametrize(
    ("silent", "text"),
    [(True, "no answer within 0.5 s"), (False, "Remote end closed|IncompleteRead")],
)
def test_answer_that_ends_in_the_middle_is_a_failure(
    silent: bool, text: str, config: Config, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minismtp.services.acme_client._TIMEOUT", 0.5 if silent else 60)
    stub.renewal, stub.missing, stub.silent = window(1, 2), 10, silent
    with pytest.raises(AcmeError, match=text):
        ask_for_renewal(config)
