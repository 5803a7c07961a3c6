"""The question to a package index, and answers of all kinds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from package_index import PackageIndex, package_index

from minismtp.services import release_index
from minismtp.services.release_index import newest_release
from minismtp.services.remote import RemoteError

if TYPE_CHECKING:
    from conftest import TlsFiles


@pytest.fixture
def index(tls_files: TlsFiles, monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageIndex]:
    """Run an index that this process trusts."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_files.authority))
    with package_index(tls_files) as found:
        yield found


def test_newest_release_is_the_highest_stable_one_that_was_not_yanked(index: PackageIndex) -> None:
    index.has(
        "minismtp-1.2.0.tar.gz",
        "minismtp-1.10.0-py3-none-any.whl",
        "minismtp-1.9.0.tar.gz",
        "minismtp-2.0.0rc1.tar.gz",
        "minismtp-3.0.0.dev1-py3-none-any.whl",
        "other-9.0.0.tar.gz",
        "minismtp-9.0.0.exe",
        "minismtp-latest.tar.gz",
        "",
        yanked=("minismtp-1.11.0.tar.gz", "minismtp-1.11.0-py3-none-any.whl"),
    )
    assert newest_release(index.url).text == "1.10.0"


def test_release_counts_if_one_of_its_files_was_not_yanked(index: PackageIndex) -> None:
    index.has("minismtp-1.2.0.tar.gz", yanked=("minismtp-1.2.0-py3-none-any.whl",))
    assert newest_release(index.url).text == "1.2.0"


@pytest.mark.parametrize("end", ["/", ""])
def test_question_has_nothing_about_this_host(index: PackageIndex, end: str) -> None:
    index.has("minismtp-1.2.0.tar.gz")
    newest_release(index.url.removesuffix("/") + end)
    [(path, fields)] = index.requests
    assert path == "/simple/minismtp/"
    assert fields == {
        "Host": f"localhost:{index.port}",
        "Accept-Encoding": "identity",
        "Accept": "application/vnd.pypi.simple.v1+json",
        "Connection": "close",
        "Content-Length": "0",
        "User-Agent": "minismtp",
    }


@pytest.mark.parametrize(
    ("status", "body", "problem"),
    [
        (404, b"", "answers 404"),
        (301, b"", "answers 301"),
        (503, b"", "answers 503"),
        (200, b"<!DOCTYPE html>", "something else than PEP 691"),
        (200, b"", "something else than PEP 691"),
        (200, b"\xff\xfe", "something else than PEP 691"),
        (200, b"[" * 100_000, "something else than PEP 691"),
        (200, b'{"a":' * 100_000, "something else than PEP 691"),
        (200, b'{"files": 1}', "something else than PEP 691"),
        (200, b'{"files": [{"filename": 1}]}', "something else than PEP 691"),
        (200, b'{"files": []}', "names no release"),
        (200, json.dumps({"files": [{"filename": "minismtp-1.0rc1.tar.gz"}]}).encode(), "names no"),
        (200, b" " * 5_000_000, "more than 4194304 octets"),
    ],
    ids=lambda value: value[:30].decode("latin-1") if isinstance(value, bytes) else None,
)
def test_other_answer_is_an_error(
    index: PackageIndex, status: int, body: bytes, problem: str
) -> None:
    index.status, index.body = status, body
    index.fields = {"Location": "http://127.0.0.1:9/"} if status == 301 else {}
    with pytest.raises(RemoteError, match=problem):
        newest_release(index.url)
    assert len(index.requests) == 1  # no redirect is followed


def test_answer_that_stops_is_an_error(
    index: PackageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.has("minismtp-1.2.0.tar.gz")
    index.missing = 1
    monkeypatch.setattr(release_index, "_TIMEOUT", timedelta(seconds=1))
    with pytest.raises(RemoteError):
        newest_release(index.url)


def test_index_without_a_valid_certificate_is_not_believed(
    index: PackageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.has("minismtp-1.2.0.tar.gz")
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(RemoteError, match="certificate"):
        newest_release(index.url)
    assert index.requests == []


@pytest.mark.parametrize("host", ["localhost:9", "a..b", "x" * 64 + ".example"])
def test_index_that_is_not_there_is_an_error(host: str) -> None:
    with pytest.raises(RemoteError):
        newest_release(f"https://{host}/simple/")
