"""Where one attempt puts its answers to challenges, for each way in which the authority may check.

A web listener of this server or another web server on this host serves them; this module imports no
library for ACME.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from minismtp.config import Config
from minismtp.config.acme_table import HTTP
from minismtp.services.acme_challenges import Challenges
from minismtp.services.acme_tls_challenges import TlsChallenges
from minismtp.values.durable_files import atomic_write

PORTS: Final = {"http-01": 80, "tls-alpn-01": 443}  # where the authority asks
_SHARED_MODE: Final = 0o644  # because another web server reads the file


@dataclass(frozen=True, slots=True)
class Answers:
    """A way to check names: `put` has a name, a token and the key authorization.

    It returns the file of the answer, which the caller removes. It raises OSError.
    """

    kind: str
    put: Callable[[str, str, str], Path]

    def __str__(self) -> str:
        return f"{self.kind}, port {PORTS[self.kind]}"


def answers_of(config: Config) -> list[Answers]:
    """Return the ways in their order. Files of an attempt that was interrupted are removed.

    Raise OSError.
    """
    http, tls = Challenges(config.state_directory), TlsChallenges(config.state_directory)
    for leftover in (*_files(http.directory), *_files(tls.directory)):
        leftover.unlink(missing_ok=True)
    place = config.tls.acme.challenges if config.tls.acme is not None else None
    found = []
    for kind in config.acme_challenges:
        if kind == HTTP and place is not None:
            found.append(Answers(kind, partial(_put, place)))
        elif kind == HTTP:
            found.append(Answers(kind, lambda _, *answer: http.put(*answer)))
        else:
            found.append(Answers(kind, lambda name, _, authorization: tls.put(name, authorization)))
    return found


def _files(directory: Path) -> Iterator[Path]:
    yield from directory.iterdir() if directory.is_dir() else ()


def _put(place: Path, _: str, token: str, authorization: str) -> Path:
    """Write an answer into the directory of another web server."""
    path = place / token
    atomic_write(path, authorization.encode("ascii"), _SHARED_MODE)
    try:
        path.chmod(_SHARED_MODE)  # despite the umask
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path
