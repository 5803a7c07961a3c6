"""How a real authority checks names: over HTTP, over TLS (RFC 8737), and one after the other."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from authority import Authority, hurry, serving_challenges, stub_authority
from snippets import CLEAR, listener
from web_service import counted, serving, web_tls

from minismtp.config import Config
from minismtp.runtime.metrics import Metrics
from minismtp.server.web_pages import Site
from minismtp.services.acme import get_certificate
from minismtp.services.acme_challenges import Challenges
from minismtp.services.acme_files import AcmeFiles, ensure_certificate
from minismtp.services.acme_schedule import AcmeError, is_self_signed, plan
from minismtp.services.acme_tls_challenges import TlsChallenges

if TYPE_CHECKING:
    from conftest import TlsFiles

HTTP: Final = listener("http", 'kind = "web"')
HTTPS: Final = listener("https", 'kind = "web"', 'tls = "implicit"')
Serve = Callable[..., AbstractContextManager[tuple[int, Path, Metrics]]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the library not sleep for a second between two questions."""
    hurry(monkeypatch)


@pytest.fixture
def serve(tmp_path: Path, authority: Authority, tls_files: TlsFiles) -> Serve:
    """Return a function that serves TLS to the authority, with the challenges of a directory."""

    def run(state: Path) -> AbstractContextManager[tuple[int, Path, Metrics]]:
        tls = web_tls(tls_files, TlsChallenges(state))
        return serving(Site(Challenges(state)), tmp_path, tls=tls, port=authority.tls_port)

    return run


def configured(directory: Path, table: str, *listeners: str) -> Config:
    path = directory / "minismtp.toml"
    top = 'hostname = "mx.example.org"\nstate_directory = "state"\n'
    path.write_text("".join([top, listener("smtp", CLEAR), *listeners, table]))
    config = Config.load(path)
    config.state_directory.mkdir(exist_ok=True)
    ensure_certificate(config)
    return config


def failure(config: Config) -> str:
    """Try to get a certificate, which stays the same, and return why it failed."""
    files = AcmeFiles.of(config)
    before = files.certificate.read_bytes()
    with pytest.raises(AcmeError) as found:
        get_certificate(config)
    assert files.certificate.read_bytes() == before
    assert not leftovers(config)
    return str(found.value)


def leftovers(config: Config) -> list[Path]:
    return [*AcmeFiles.of(config).directory.glob("*challenges/*")]


def test_names_are_checked_over_tls_alone(
    tmp_path: Path, authority: Authority, serve: Serve
) -> None:
    names = "mx.example.org mta-sts.example.org"
    config = configured(tmp_path, authority.table(None, names=names), HTTPS)
    said: list[str] = []
    leftover = TlsChallenges(config.state_directory).put("old.example.org", "of a killed process")
    with serve(config.state_directory) as (_, _, metrics):
        got = get_certificate(config, said.append)
        assert counted(metrics, "served") >= 2
    assert {*got.names} == {*names.split()}
    assert "the authority checks the names (tls-alpn-01, port 443)" in said
    assert not leftover.exists()
    assert not leftovers(config)


def test_names_are_checked_over_tls_if_port_80_is_closed(
    tmp_path: Path, authority: Authority, serve: Serve
) -> None:
    config = configured(tmp_path, authority.table(None), HTTP, HTTPS)
    said: list[str] = []
    with serve(config.state_directory):
        got = get_certificate(config, said.append)
    assert not is_self_signed(got)
    [refused] = [line for line in said if "cannot check the names: mx.example.org: " in line]
    assert "connection refused" in refused
    assert said.index("the authority checks the names (http-01, port 80)") < said.index(refused)


def test_names_are_checked_over_http_first(tmp_path: Path, authority: Authority) -> None:
    config = configured(tmp_path, authority.table(None), HTTPS, HTTP)
    with serving_challenges(
        authority.web_port, tmp_path / "state" / "acme" / "challenges"
    ) as asked:
        get_certificate(config)
    assert asked


def test_failure_tells_of_each_way_that_was_tried(tmp_path: Path, authority: Authority) -> None:
    config = configured(tmp_path, authority.table(None), HTTP, HTTPS)
    text = failure(config)
    assert text.count("mx.example.org: ") == 1
    assert "connection refused (http-01, port 80), and Failed to connect to 127.0.0.1:" in text
    assert text.endswith(" (tls-alpn-01, port 443)")
    files = AcmeFiles.of(config)
    assert config.tls.acme is not None
    coming = plan(config.tls.acme, files.present(), files.state())
    assert 1_195 < coming.at - time.time() <= 1_500


@pytest.mark.parametrize("kind", ["http-01", "tls-alpn-01"])
def test_way_that_is_chosen_is_the_only_one(
    kind: str, tmp_path: Path, authority: Authority, serve: Serve
) -> None:
    config = configured(tmp_path, authority.table(None, f'challenge = "{kind}"'), HTTP, HTTPS)
    challenges = tmp_path / "state" / "acme" / "challenges"
    if kind == "http-01":
        with serve(config.state_directory):
            text = failure(config)
    else:
        with serving_challenges(authority.web_port, challenges) as asked:
            text = failure(config)
        assert not asked
    reason = "connection refused" if kind == "http-01" else "Failed to connect"
    assert reason in text
    assert ", port " not in text


def test_certificate_of_another_server_on_the_port_is_refused(
    tmp_path: Path, authority: Authority, serve: Serve
) -> None:
    config = configured(tmp_path, authority.table(None), HTTPS)
    with serve(tmp_path / "another"):
        assert "mx.example.org: " in failure(config)


def test_check_that_the_authority_does_not_offer_is_named(tmp_path: Path) -> None:
    with stub_authority(tmp_path) as stub:
        base = f"https://localhost:{stub.port}"
        identifier = {"type": "dns", "value": "mx.example.org"}
        challenge = {"type": "dns-01", "url": f"{base}/c", "token": "A" * 43, "status": "pending"}
        stub.status = 201
        stub.headers = {"Location": f"{base}/order"}
        order: dict[str, Any] = {  # and the authorization
            "status": "pending",
            "identifiers": [identifier],
            "identifier": identifier,
            "authorizations": [f"{base}/a"],
            "finalize": f"{base}/f",
            "challenges": [challenge],
        }
        stub.answer = json.dumps(order).encode()
        table = Authority(stub.port, 0, 0, stub.trusted, tmp_path).table(None)
        config = configured(tmp_path, table, HTTP, HTTPS)
        assert failure(config) == (
            "the authority cannot check the names: mx.example.org: the authority offers no check"
            " by http-01 (http-01, port 80), and the authority offers no check by tls-alpn-01"
            " (tls-alpn-01, port 443)"
        )
