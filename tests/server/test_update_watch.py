"""The server's question for a newer release: log, metrics, page, and a thread that goes on."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import wait_until
from package_index import package_index

from minismtp.config import Config
from minismtp.config.mistakes import ConfigError
from minismtp.runtime.log import Log
from minismtp.runtime.metrics import Metrics
from minismtp.server import update_watch
from minismtp.server.known_release import is_newer, known_answer, newer_release
from minismtp.server.update_watch import UpdateWatch
from minismtp.services.remote import RemoteError
from minismtp.values.version import Version

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Configure, Start, TlsFiles

FILE = "newest-release.json"
DAY = 86400.0
LISTENER = '[[listeners]]\nname = "a"\naddress = "127.0.0.1:0"\ntls = "none"\n'


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the versions that the index names next; without any it is away."""
    versions: list[str] = []

    def newest(_: str) -> Version:
        if not versions:
            raise RemoteError("pypi.org:443: Connection refused")
        return Version.parse(versions.pop(0))

    monkeypatch.setattr(update_watch, "newest_release", newest)
    return versions


def watching(
    directory: Path, check: timedelta = timedelta(days=1)
) -> tuple[UpdateWatch, Callable[[], dict[str, float]]]:
    """Return a watch of version 1.0.0, and a function that returns what the metric shows."""
    config = Config.embedded()
    config = replace(
        config, state_directory=directory, updates=replace(config.updates, check=check)
    )
    metrics = Metrics()

    def shown() -> dict[str, float]:
        samples = [each for family in metrics.registry.collect() for each in family.samples]
        return {
            each.labels["version"]: each.value
            for each in samples
            if each.name == "minismtp_update_available"
        }

    return UpdateWatch(config, metrics, Log(), running="1.0.0"), shown


def logged(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [line.split(" ", 1)[1] for line in capfd.readouterr().err.splitlines()]


def test_newer_release_is_logged_once_and_shown(
    answers: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    watch, shown = watching(tmp_path)
    answers += ["1.0.0", "1.1.0", "1.1.0", "1.2.0"]
    assert watch.look()
    assert shown() == {}
    for _ in range(3):
        assert watch.look()
    assert shown() == {"1.1.0": 0, "1.2.0": 1}
    assert logged(capfd) == [
        "warning newer release version=1.1.0 running=1.0.0",
        "warning newer release version=1.2.0 running=1.0.0",
    ]


def test_release_that_was_withdrawn_is_shown_no_more(answers: list[str], tmp_path: Path) -> None:
    watch, shown = watching(tmp_path)
    answers += ["1.1.0", "1.0.0"]
    watch.look()
    watch.look()
    assert shown() == {"1.1.0": 0}


def test_index_that_is_away_is_one_line(
    answers: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    watch, _ = watching(tmp_path)
    assert not watch.look()
    assert not watch.look()
    answers.append("1.0.0")
    assert watch.look()
    assert not watch.look()
    line = 'info the package index did not answer error="pypi.org:443: Connection refused"'
    assert logged(capfd) == [line, line]


def pauses(watch: UpdateWatch, count: int) -> list[float]:
    """Return the first pauses of a thread, in seconds."""
    found: list[float] = []

    def sleep(seconds: float) -> None:
        found.append(seconds)
        if len(found) == count:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        watch.run(sleep)
    return found


def test_index_is_asked_once_a_day_and_earlier_after_a_failure(
    answers: list[str], tmp_path: Path
) -> None:
    answers.append("1.0.0")
    first, after_answer, after_failure = pauses(watching(tmp_path)[0], 3)
    assert 30 <= first <= 60
    assert 0.9 * DAY <= after_answer <= 1.1 * DAY
    assert 0.9 * 4 * 3600 <= after_failure <= 1.1 * 4 * 3600


def test_restart_knows_the_answer_and_does_not_ask_again(
    answers: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    answers.append("1.1.0")
    watching(tmp_path)[0].look()
    watch, shown = watching(tmp_path)
    [first] = pauses(watch, 1)
    assert DAY - 60 < first <= DAY
    assert shown() == {"1.1.0": 1}
    assert logged(capfd)[1] == "warning newer release version=1.1.0 running=1.0.0"


@pytest.mark.parametrize("ahead", [-2 * DAY, DAY], ids=["old", "of the future"])
def test_restart_long_after_the_answer_asks_soon(ahead: float, tmp_path: Path) -> None:
    asked = time.time() + ahead
    (tmp_path / FILE).write_text(json.dumps({"version": "1.0.0", "asked": asked}))
    [first] = pauses(watching(tmp_path)[0], 1)
    assert 30 <= first <= 60


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\xff", b"[]", b'{"version": "1.1.0"}', b'{"version": 1, "asked": 1}'),
        b" " * 2000 + b'{"version": "1.1.0", "asked": 1}',  # too long
    ],
    ids=lambda content: repr(content[:20]),
)
def test_file_that_something_else_wrote_is_no_answer(content: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert known_answer(tmp_path) is None
    assert newer_release(tmp_path) == ""


def test_version_in_the_file_is_not_believed(tmp_path: Path) -> None:
    text = "9.9.9\x1b[31m; rm"
    (tmp_path / FILE).write_text(json.dumps({"version": text, "asked": 1.0}))
    assert newer_release(tmp_path) == ""
    assert not is_newer("99.0rc1")


def test_full_disk_keeps_nothing_and_harms_nothing(answers: list[str], tmp_path: Path) -> None:
    watch, shown = watching(tmp_path / "missing")
    answers.append("1.1.0")
    assert watch.look()
    assert shown() == {"1.1.0": 1}


def test_server_does_not_ask_unless_it_shall(
    configure: Configure, start: Start, tls_files: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_files.authority))
    with package_index(tls_files) as index:
        server = start(configure(f'[updates]\nindex = "{index.url}"\n'))
        server.wait_for_log(" queue opened ")
        assert "update_available" not in server.http("/metrics")[1]
        assert index.requests == []


def test_thread_goes_on_after_a_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    looks: list[int] = []

    class Failing(UpdateWatch):
        def look(self) -> bool:
            looks.append(1)
            if len(looks) == 1:
                raise RuntimeError("wanted")
            threading.Event().wait()  # the thread outlives the test
            return True

    config = Config.embedded()
    updates = replace(config.updates, check=timedelta(milliseconds=10))
    config = replace(config, state_directory=tmp_path, updates=updates)
    Failing(config, Metrics(), Log()).start()
    wait_until(lambda: len(looks) == 2)
    assert "thread failed: updates" in caplog.text


@pytest.mark.parametrize(
    "url",
    ["http://pypi.org/simple/", "pypi.org", "https://", "https://u:p@pypi.org/", "https://a b/"],
)
def test_index_has_to_be_a_url_of_https(url: str) -> None:
    with pytest.raises(ConfigError, match=r"updates\.index, line 6: expected a URL"):
        Config.parse(f'{LISTENER}[updates]\nindex = "{url}"', Path("x.toml"))


def test_server_tells_of_a_newer_release(
    configure: Configure,
    start: Start,
    tls_files: TlsFiles,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_files.authority))
    with package_index(tls_files) as index:
        index.status = 404
        server = start(configure(f'[updates]\ncheck = "1s"\nindex = "{index.url}"\n'))
        server.wait_for_log("info the package index did not answer error=.*answers 404")
        assert server.http("/readyz")[0] == 200
        index.has("minismtp-99.0.0.tar.gz")
        server.wait_for_log("warning newer release version=99.0.0 running=")
        server.wait_until(lambda: server.metric("update_available", version="99.0.0") == 1)
        assert "(99.0.0 is available)" in server.http("/")[1]
        assert newer_release(server.directory / "state") == "99.0.0"
