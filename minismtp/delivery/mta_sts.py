"""MTA-STS: what a domain demands of those who send to it (RFC 8461).

A policy that was fetched once holds for its `max_age`, whatever happens to the DNS or to the web
server of the domain: who could take those away must gain nothing. So policies are kept on disk.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

import msgspec

from minismtp.delivery.policy_fetch import FetchError, PolicyFetcher
from minismtp.delivery.tls_security import matches
from minismtp.runtime.log import Log
from minismtp.services.resolver import Resolver, UnansweredError
from minismtp.values.address import to_ascii
from minismtp.values.clock import steady_time
from minismtp.values.durable_files import atomic_write, make_directory

_RECORD: Final = "v=STSv1"
_ID: Final = re.compile(r"[A-Za-z0-9]{1,32}")
_FIELD_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_NAME: Final = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_LONGEST: Final = 31_557_600  # seconds: a year (RFC 8461 section 3.2)
_REFRESH: Final = 86_400.0  # a policy is looked at again after a day, even with the same id
_AGAIN: Final = 300.0  # after a failure (RFC 8461 section 3.3)
_MOST_OCTETS: Final = 64 * 1024 * 1024  # of all policies on disk
_MOST_FAILURES: Final = 10_000


@dataclass(frozen=True, slots=True)
class StsPolicy:
    """A policy; `unknown` stands for one that is published and could not be had."""

    mode: Literal["enforce", "testing", "none", "unknown"]
    mx: tuple[str, ...] = ()
    max_age: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what the web server of a domain has (RFC 8461 section 3.2). Raise ValueError."""
        fields: dict[str, str] = {}
        mx: list[str] = []
        text = text.removeprefix("\ufeff").replace("\r\n", "\n")
        for line in filter(None, text.split("\n")):
            # sts-policy-field = name *WSP ":" *WSP value
            name, colon, value = line.partition(":")
            name, value = name.rstrip(" \t"), value.strip(" \t")
            if not colon or not _FIELD_NAME.fullmatch(name):
                raise ValueError(f"not a field: {line[:80]!r}")
            if name == "mx":
                wildcard = "*." if value.startswith("*.") else ""
                mx.append(wildcard + to_ascii(value.removeprefix("*.")))
            else:
                fields.setdefault(name, value)  # the first one counts
        mode, age = fields.get("mode", ""), fields.get("max_age", "")
        if fields.get("version") != "STSv1":
            raise ValueError("no version: STSv1")
        if mode not in {"enforce", "testing", "none"}:
            raise ValueError(f"unknown mode {mode[:80]!r}")
        if not (age.isascii() and age.isdecimal() and len(age) <= 10):  # noqa: PLR2004
            raise ValueError("no max_age")
        if mode != "none" and not (mx and all(map(_NAME.fullmatch, mx))):
            raise ValueError("no mx, or one that is no host name")
        return cls(mode, tuple(mx), min(int(age), _LONGEST))  # type: ignore[arg-type]

    @property
    def applies(self) -> bool:
        """Whether there is something to comply with."""
        return self.mode in {"enforce", "testing"}

    def allows(self, host: str) -> bool:
        """Whether mail may go to a host (RFC 8461 section 4.1)."""
        return any(matches(pattern, host) for pattern in self.mx)


@dataclass(frozen=True, slots=True)
class Kept:
    """A policy on disk: the `id` of its record, when it was fetched, in seconds of the epoch."""

    id: str
    fetched: float
    policy: StsPolicy


class Policies:
    """Finds the policy of a domain; threads may share one."""

    def __init__(self, resolver: Resolver, web: PolicyFetcher, directory: Path, log: Log) -> None:
        """Keep policies in `directory`; what has expired there goes. Raise OSError."""
        self._resolver = resolver
        self._web = web
        self._directory = directory
        self._log = log
        self._failed: dict[str, float] = {}
        self._octets = _MOST_OCTETS  # on disk; the first that is written has them counted
        self._lock = threading.Lock()
        make_directory(directory)
        for path in list(directory.iterdir()):
            self._read(path.name)

    def of(self, domain: str) -> StsPolicy | None:
        """Return the policy of a domain (A-labels), None when it has none.

        May fetch it, which takes no longer than `PolicyFetcher` allows.
        """
        kept, published = self._read(domain), self._published(domain)
        age = steady_time() - kept.fetched if kept else _REFRESH
        if published and not (kept and kept.id == published and 0 <= age < _REFRESH):
            kept = self._fetch(domain, published) or kept
        if kept:
            return kept.policy
        return StsPolicy("unknown") if published else None

    def _published(self, domain: str) -> str:
        """Return the id that the DNS has of a domain's policy, empty when it has none."""
        with contextlib.suppress(UnansweredError):
            records = self._resolver.lookup(f"_mta-sts.{domain}", "TXT").records
            texts = [b"".join(record.strings).decode("ascii", "replace") for record in records]
            found = [fields for fields in map(_fields, texts) if fields[0] == _RECORD]
            if len(found) == 1:  # RFC 8461 section 3.1: else there is none
                ids = [field[3:] for field in found[0] if field.startswith("id=")]
                if len(ids) == 1 and _ID.fullmatch(ids[0]):
                    return ids[0]
        return ""

    def _fetch(self, domain: str, published: str) -> Kept | None:
        with self._lock:
            if time.monotonic() < self._failed.get(domain, 0.0):
                return None
            if len(self._failed) >= _MOST_FAILURES:
                self._failed.clear()
            self._failed[domain] = time.monotonic() + _AGAIN  # also while somebody is at it
        try:
            text = self._web.get(f"mta-sts.{domain}", "/.well-known/mta-sts.txt")
            policy = StsPolicy.parse(text)
        except (FetchError, ValueError) as error:
            self._log.warning("MTA-STS policy not fetched", domain=domain, error=str(error))
            return None
        with self._lock:
            self._failed.pop(domain, None)
        kept = Kept(published, steady_time(), policy)
        self._log.info("MTA-STS policy", domain=domain, mode=policy.mode, mx=" ".join(policy.mx))
        try:
            octets = msgspec.json.encode(kept)
            atomic_write(self._directory / domain, octets)
            self._make_room(len(octets))
        except OSError as error:
            self._log.error("MTA-STS policy not kept", domain=domain, error=str(error))
        return kept

    def _make_room(self, octets: int) -> None:
        """Count what was written, and remove the oldest policies when all take too much."""
        with self._lock:
            self._octets += octets
            if self._octets <= _MOST_OCTETS:
                return
            files = sorted((path.stat().st_mtime, path) for path in self._directory.iterdir())
            self._octets = sum(path.stat().st_size for _, path in files)
            for _, path in files:
                if self._octets <= _MOST_OCTETS // 2:
                    break
                self._octets -= path.stat().st_size
                path.unlink()

    def _read(self, domain: str) -> Kept | None:
        """Return the policy on disk, if it has not expired."""
        path = self._directory / domain
        if not path.is_file():  # a pipe would hold up whoever reads it
            return None
        try:
            kept = msgspec.json.decode(path.read_bytes(), type=Kept)
        except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
            return None
        # One from the future was fetched while the clock was ahead: it holds, and `of` renews it.
        if steady_time() < kept.fetched + kept.policy.max_age:
            return kept
        path.unlink(missing_ok=True)
        return None


def _fields(text: str) -> list[str]:
    return [field.strip(" \t") for field in text.split(";")]
