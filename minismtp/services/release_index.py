"""The newest release of minismtp in a package index.

The index is asked in JSON, by the simple API (PEP 691) that PyPI and its mirrors have. It is not
trusted: the time and the size of its answer are bounded, and nothing of it is used but versions.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from http import HTTPStatus
from typing import Final

import msgspec

from minismtp.services.http_client import WebService
from minismtp.services.remote import RemoteError
from minismtp.values.version import Version

_PROJECT: Final = "minismtp"
_TIMEOUT: Final = timedelta(seconds=20)
_MOST_OCTETS: Final = 4 * 1024 * 1024  # 10,000 files take that much
_HEADERS: Final = {"Accept": "application/vnd.pypi.simple.v1+json", "User-Agent": _PROJECT}
_ENDS: Final = (".tar.gz", ".zip", ".whl")


class _File(msgspec.Struct):
    filename: str
    yanked: bool | str = False


class _Page(msgspec.Struct):
    files: list[_File]


def newest_release(index: str) -> Version:
    """Ask the index at a URL for its newest stable release that was not yanked (PEP 592).

    Raise RemoteError if the index does not answer, answers with nonsense, or has no such release.
    """
    url = f"{index.rstrip('/')}/{_PROJECT}/"
    try:
        service = WebService(url, timeout=_TIMEOUT)
        answer = service.request("GET", headers=_HEADERS, limit=_MOST_OCTETS)
    except ValueError as error:  # of a host that is no name
        raise RemoteError(f"{url}: {error}") from error
    if answer.status != HTTPStatus.OK:
        raise RemoteError(f"{url} answers {answer.status}")
    try:
        return newest_in(answer.body)
    except ValueError as error:
        raise RemoteError(f"{url} {error}") from error


def newest_in(page: bytes) -> Version:
    """Return the newest stable release on the page of a project. Raise ValueError."""
    try:
        files = msgspec.json.decode(page, type=_Page).files
    except (ValueError, RecursionError) as error:
        raise ValueError(f"answers with something else than PEP 691: {error}") from error
    newest = max(_stable(files), default=None)
    if newest is None:
        raise ValueError("names no release")
    return newest


def _stable(files: list[_File]) -> Iterator[Version]:
    """Yield the stable versions among files of a source or a wheel (PEP 427, PEP 625)."""
    for file in files:
        name, _, rest = file.filename.partition("-")
        if name != _PROJECT or file.yanked is not False or not rest.endswith(_ENDS):
            continue
        text = rest.partition("-")[0] if rest.endswith(".whl") else rest
        for end in _ENDS:
            text = text.removesuffix(end)
        try:
            version = Version.parse(text)
        except ValueError:
            continue
        if version.is_stable:
            yield version
