"""A name that the authority cannot check costs that name, and not the certificate."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import pytest
from authority import Authority, hurry, serving_challenges, stub_authority
from snippets import CLEAR, listener

from minismtp.cli.main import main
from minismtp.config import Config
from minismtp.services.acme import get_certificate
from minismtp.services.acme_answers import Answers
from minismtp.services.acme_files import AcmeFiles, ensure_certificate
from minismtp.services.acme_order import order
from minismtp.services.acme_schedule import AcmeError, CheckError, plan

DAY: Final = 86_400.0
HOST: Final = "mx.example.org"
LOST: Final = "autoconfig.example.org"
FOUND: Final = "mta-sts.example.org"


@pytest.fixture
def refused(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> Iterator[set[str]]:
    """Serve challenges under all names except those in a set, and return the set."""
    hurry(monkeypatch)
    names = {LOST}
    directory = tmp_path / "challenges"
    directory.mkdir()
    with serving_challenges(authority.web_port, directory, names):
        yield names


@pytest.fixture
def configured(tmp_path: Path, authority: Authority) -> Callable[..., Config]:
    """Return a function that makes a configuration for names, with a certificate of its own."""

    def make(*names: str, place: Path | None = tmp_path / "challenges") -> Config:
        return with_table(tmp_path, authority.table(place, names=" ".join(names)))

    return make


def with_table(directory: Path, table: str) -> Config:
    path = directory / "minismtp.toml"
    web = listener("web", 'kind = "web"')
    path.write_text(
        f'hostname = "{HOST}"\nstate_directory = "state"\n{listener("smtp", CLEAR)}{web}{table}'
    )
    config = Config.load(path)
    config.state_directory.mkdir(exist_ok=True)
    ensure_certificate(config)
    return config


def refusal(config: Config) -> str:
    """Try to get a certificate, and return why that failed. The one in use stays."""
    file = AcmeFiles.of(config).certificate
    before = file.read_bytes()
    with pytest.raises(AcmeError) as found:
        get_certificate(config)
    assert file.read_bytes() == before
    return str(found.value)


def pause(config: Config) -> float:
    """Return the seconds to the next attempt."""
    files = AcmeFiles.of(config)
    assert config.tls.acme is not None
    return plan(config.tls.acme, files.present(), files.state()).at - time.time()


def travel(monkeypatch: pytest.MonkeyPatch, config: Config, share: float) -> None:
    """Go to when a share of the certificate's life is over."""
    found = AcmeFiles.of(config).present()
    assert found is not None
    now = found.begin + share * (found.end - found.begin)
    monkeypatch.setattr("minismtp.services.acme.time", SimpleNamespace(time=lambda: now))


def test_certificate_comes_without_the_name_that_cannot_be_checked(
    refused: set[str], configured: Callable[..., Config]
) -> None:
    config = configured(HOST, LOST, FOUND)
    files, said = AcmeFiles.of(config), list[str]()
    got = get_certificate(config, said.append)
    assert {*got.names} == {HOST, FOUND}
    assert sum(line.startswith("ordering a certificate for") for line in said) == 2
    state = files.state()
    assert state.error.startswith(f"the authority cannot check the names: {LOST}: ")
    assert HOST not in state.error.partition(LOST)[0]
    assert 1_195 < pause(config) <= 1_500
    # as long as nothing changes, no further certificate is asked for
    assert LOST in refusal(config)
    assert 2_395 < pause(config) <= 3_000
    refused.clear()
    assert {*get_certificate(config).names} == {HOST, LOST, FOUND}
    assert (files.state().error, files.state().failures) == ("", 0)
    assert pause(config) > DAY


def test_host_name_must_be_in_the_certificate(
    refused: set[str], configured: Callable[..., Config]
) -> None:
    refused.add(HOST)
    assert f"{HOST}: " in refusal(configured(FOUND, HOST))
    # without the host name among the names, that is the first one
    refused.add(FOUND)
    text = refusal(configured(FOUND, "b.example.org"))
    assert f"{FOUND}: " in text
    assert "b.example.org" not in text


def test_name_of_the_certificate_in_use_is_lost_only_when_that_is_near_its_end(
    refused: set[str], configured: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused.clear()
    config = configured(HOST, LOST)
    get_certificate(config)
    refused.add(LOST)
    travel(monkeypatch, config, 0.85)
    assert LOST in refusal(config)
    travel(monkeypatch, config, 0.95)
    assert get_certificate(config).names == (HOST,)


def test_certificate_that_lacks_a_name_is_renewed_in_time(
    refused: set[str], configured: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused
    config = configured(HOST, LOST)
    first = get_certificate(config)
    travel(monkeypatch, config, 0.5)
    assert LOST in refusal(config)
    travel(monkeypatch, config, 0.7)
    second = get_certificate(config)
    assert second.names == first.names == (HOST,)
    assert second.end >= first.end


def test_new_key_is_for_the_names_that_can_be_checked(
    refused: set[str], configured: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused
    config = configured(HOST, LOST)
    get_certificate(config)
    key = AcmeFiles.of(config).certificate.read_bytes()[:300]
    assert main(["certificate", "renew", "--new-key", "--config", config.file]) == 0
    assert AcmeFiles.of(config).certificate.read_bytes()[:300] != key
    shown = capsys.readouterr()
    assert "valid until 20" in shown.out
    assert shown.err.startswith("warning: it lacks names: the authority cannot check the names: ")
    assert shown.err.count("\n") == 1


def test_name_that_the_authority_refuses_in_the_order_is_left_out_of_the_next(
    tmp_path: Path,
) -> None:
    """RFC 8555 section 6.7.1."""
    with stub_authority(tmp_path) as stub:
        stub.status = 403
        kind = "urn:ietf:params:acme:error:rejectedIdentifier"
        wrong = {"type": kind, "detail": "no", "identifier": {"type": "dns", "value": LOST}}
        stub.answer = json.dumps({"type": kind, "detail": "some", "subproblems": [wrong]}).encode()
        table = Authority(stub.port, 0, 0, stub.trusted, tmp_path).table(
            None, names=f"{HOST} {LOST}"
        )
        config = with_table(tmp_path, table)
        assert refusal(config) == f"the authority cannot check the names: {LOST}: no"
        assert stub.asked.count("/newOrder") == 2


def test_orders_of_one_attempt_are_few(tmp_path: Path) -> None:
    orders: list[list[str]] = []

    def issue(ways: Mapping[str, Answers]) -> bytes:
        orders.append([*ways])
        raise CheckError({next(iter(ways)): "no"})

    names = [f"{letter}.example" for letter in "abcdefgh"]
    way = Answers("http-01", lambda *_: tmp_path)
    with pytest.raises(CheckError, match=r"a\.example: no; b\.example: no"):
        order(issue, names, [way], bool, lambda _: None)
    assert orders == [names[number:] for number in range(5)]
