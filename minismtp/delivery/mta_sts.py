"""MTA-STS: the TLS that a domain demands of servers that send to it (RFC 8461).

A policy is valid for its `max_age`, even while the DNS or the web server of the domain is down,
because an attacker who can block these must not gain by it. Therefore policies are stored on disk.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

import msgspec

from minismtp.delivery.mx import HostFinder, UnreachableError
from minismtp.delivery.tls_security import Contexts, matches
from minismtp.runtime.log import Log
from minismtp.services.http_client import LineSocket
from minismtp.services.remote import Line
from minismtp.services.resolver import Resolver, UnansweredError
from minismtp.values.address import to_ascii
from minismtp.values.clock import steady_time
from minismtp.values.durable_files import atomic_write, make_directory

_RECORD: Final = "v=STSv1"
_ID: Final = re.compile(r"[A-Za-z0-9]{1,32}")
_FIELD_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_NAME: Final = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_LONGEST: Final = 31_557_600  # seconds: a year (RFC 8461 section 3.2)
_REFRESH: Final = 86_400.0  # a policy is fetched again after a day, even with the same id
_AGAIN: Final = 300.0  # after a failure (RFC 8461 section 3.3)
_MOST_OCTETS: Final = 64 * 1024 * 1024  # of all policies on disk
_MOST_FAILURES: Final = 10_000
_SECONDS: Final = 10.0  # for a fetch, from the first address to the end of the body
_CONNECT: Final = 4.0
_SIZE: Final = 65536  # octets of a policy


@dataclass(frozen=True, slots=True)
class StsPolicy:
    """A policy; `unknown` means that one is published, but could not be fetched."""

    mode: Literal["enforce", "testing", "none", "unknown"]
    mx: tuple[str, ...] = ()
    max_age: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the policy of a domain (RFC 8461 section 3.2). Raise ValueError."""
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
        """Whether hosts are to be checked against the policy."""
        return self.mode in {"enforce", "testing"}

    def allows(self, host: str) -> bool:
        """Return whether mail may go to a host (RFC 8461 section 4.1)."""
        return any(matches(pattern, host) for pattern in self.mx)


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """A policy on disk, with the `id` of its record and the time of the fetch (epoch seconds)."""

    id: str
    fetched: float
    policy: StsPolicy


class FetchError(Exception):
    """The text could not be fetched; the message gives the reason."""


class PolicyFetcher:
    """Fetches policies from web servers, which are not trusted (RFC 8461 section 3.3).

    It uses HTTPS with a valid certificate, by `contexts`, and follows no redirections and no
    proxies. The size and the time of a fetch are bounded.
    """

    def __init__(self, host_finder: HostFinder, contexts: Contexts, port: int) -> None:
        self._host_finder = host_finder
        self._contexts = contexts
        self._port = port

    def get(self, name: str, path: str) -> str:
        """Return the text at a path of a server. Raise FetchError."""
        end = time.monotonic() + _SECONDS
        try:
            hosts = self._host_finder.at(name, self._port)
        except UnreachableError as error:
            raise FetchError(str(error)) from None
        failure = ""
        for host in hosts:
            if time.monotonic() >= end:
                break
            try:
                return self._get(name, host.address, path, end)
            except (OSError, ValueError, http.client.HTTPException) as error:
                failure = f"{host}: {str(error) or type(error).__name__}"
        raise FetchError(failure or f"{name} was not found in time")

    def _get(self, name: str, address: str, path: str, end: float) -> str:
        left = end - time.monotonic()
        sock = socket.create_connection((address, self._port), min(left, _CONNECT))
        line = Line(sock, end, "the web server")
        with contextlib.closing(line):
            line.secure(self._contexts.verified, name)
            connection = http.client.HTTPConnection(name)
            connection.sock = LineSocket(line)
            connection.request("GET", path, headers={"Connection": "close"})
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                raise FetchError(f"{name} says {response.status}")
            kind = response.headers.get_content_type()
            if kind != "text/plain" or "Content-Type" not in response.headers:
                raise FetchError(f"{name} has {kind}, not text/plain")
            body = response.read(_SIZE + 1)
        if len(body) > _SIZE:
            raise FetchError(f"{name} has more than {_SIZE} octets")
        return body.decode("utf-8")


class Policies:
    """Finds the policy of a domain; threads may share one."""

    def __init__(
        self, resolver: Resolver, fetcher: PolicyFetcher, directory: Path, log: Log
    ) -> None:
        """Keep policies in `directory`, and remove expired ones. Raise OSError."""
        self._resolver = resolver
        self._fetcher = fetcher
        self._directory = directory
        self._log = log
        self._failed: dict[str, float] = {}
        self._octets = _MOST_OCTETS  # on disk; writing the first policy counts them
        self._lock = threading.Lock()
        make_directory(directory, within=directory.parent)
        for path in list(directory.iterdir()):
            self._read(path.name)

    def of(self, domain: str) -> StsPolicy | None:
        """Return the policy of a domain (A-labels), None if the domain has no policy.

        Block while the policy is fetched, at most as long as `PolicyFetcher` allows.
        """
        stored, published = self._read(domain), self._published(domain)
        age = steady_time() - stored.fetched if stored else _REFRESH
        if published and not (stored and stored.id == published and 0 <= age < _REFRESH):
            stored = self._fetch(domain, published) or stored
        if stored:
            return stored.policy
        return StsPolicy("unknown") if published else None

    def _published(self, domain: str) -> str:
        """Return the id of a domain's policy from the DNS, empty if there is no policy."""
        with contextlib.suppress(UnansweredError):
            records = self._resolver.lookup(f"_mta-sts.{domain}", "TXT").records
            texts = [b"".join(record.strings).decode("ascii", "replace") for record in records]
            found = [fields for fields in map(_fields, texts) if fields[0] == _RECORD]
            if len(found) == 1:  # RFC 8461 section 3.1: with several records there is no policy
                ids = [field[3:] for field in found[0] if field.startswith("id=")]
                if len(ids) == 1 and _ID.fullmatch(ids[0]):
                    return ids[0]
        return ""

    def _fetch(self, domain: str, published: str) -> StoredPolicy | None:
        with self._lock:
            if time.monotonic() < self._failed.get(domain, 0.0):
                return None
            if len(self._failed) >= _MOST_FAILURES:
                self._failed.clear()
            self._failed[domain] = time.monotonic() + _AGAIN  # also while another thread fetches it
        try:
            text = self._fetcher.get(f"mta-sts.{domain}", "/.well-known/mta-sts.txt")
            policy = StsPolicy.parse(text)
        except (FetchError, ValueError) as error:
            self._log.warning("MTA-STS policy not fetched", domain=domain, error=str(error))
            return None
        with self._lock:
            self._failed.pop(domain, None)
        stored = StoredPolicy(published, steady_time(), policy)
        self._log.info("MTA-STS policy", domain=domain, mode=policy.mode, mx=" ".join(policy.mx))
        try:
            octets = msgspec.json.encode(stored)
            atomic_write(self._directory / domain, octets)
            self._make_room(len(octets))
        except OSError as error:
            self._log.error("MTA-STS policy not kept", domain=domain, error=str(error))
        return stored

    def _make_room(self, octets: int) -> None:
        """Count the octets written, and remove the oldest policies if there are too many."""
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

    def _read(self, domain: str) -> StoredPolicy | None:
        """Return the policy on disk, None if there is no valid one."""
        path = self._directory / domain
        if not path.is_file():  # reading from a pipe would block
            return None
        try:
            stored = msgspec.json.decode(path.read_bytes(), type=StoredPolicy)
        except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
            return None
        # A policy from the future was fetched while the clock was wrong. It is valid, and `of`
        # fetches it again.
        if steady_time() < stored.fetched + stored.policy.max_age:
            return stored
        path.unlink(missing_ok=True)
        return None


def _fields(text: str) -> list[str]:
    return [field.strip(" \t") for field in text.split(";")]
