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
from minismtp.values.durable_files import atomic_write, make_directory

PORTS: Final = {"http-01": 80, "tls-alpn-01": 443}  # where the authority asks
_OWN_MODE, _SHARED_MODE = 0o600, 0o644


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
    tls = TlsChallenges(config.state_directory)
    own = Challenges(config.state_directory).directory
    for leftover in (*_files(own), *_files(tls.directory)):
        leftover.unlink(missing_ok=True)
    found = []
    for kind in config.acme_challenges:
        if kind == HTTP:
            found.append(Answers(kind, _http(config, own)))
        else:
            found.append(Answers(kind, lambda name, _, authorization: tls.put(name, authorization)))
    return found


def _files(directory: Path) -> Iterator[Path]:
    yield from directory.iterdir() if directory.is_dir() else ()


def _http(config: Config, own: Path) -> Callable[[str, str, str], Path]:
    place = config.tls.acme.challenges if config.tls.acme is not None else None
    if place is not None:
        return partial(_put, place, _SHARED_MODE)
    make_directory(own, within=config.state_directory)
    return partial(_put, own, _OWN_MODE)


def _put(place: Path, mode: int, _: str, token: str, authorization: str) -> Path:
    path = place / token
    atomic_write(path, authorization.encode("ascii"), mode)
    try:
        path.chmod(mode)  # despite the umask
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path
