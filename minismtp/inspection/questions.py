"""Host names that the configuration mentions, and one deadline for all questions to the DNS."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from ipaddress import ip_address
from math import inf
from typing import Final, NamedTuple, TypeAlias, TypeVar

from minismtp.config import Config, PluginConfig
from minismtp.config.types import SocketAddress
from minismtp.inspection.problem import Problem, warning
from minismtp.services.resolver import Found, Resolver, UnansweredError
from minismtp.values.threads import start_thread, surviving

#: Seconds for all questions of one check together.
DEADLINE: Final = 5.0
_MOST_NAMES: Final = 50
_THREADS: Final = 20
_TICK: Final = 0.1  # seconds between two reports of progress
_SCHEMES: Final = ("http://", "https://", "ldap://", "ldaps://", "redis://", "rediss://")

T = TypeVar("T")
Question: TypeAlias = Callable[[], T]


class HurriedResolver(Resolver):
    """A resolver whose questions together take `seconds`; the first one starts the clock.

    `announce` is called with a line for the user before the first question.
    """

    def __init__(
        self,
        nameservers: Iterable[SocketAddress],
        announce: Callable[[str], None],
        seconds: float = DEADLINE,
    ) -> None:
        super().__init__(nameservers)
        self._announce = announce
        self._seconds = seconds
        self._end = inf
        self._lock = threading.Lock()

    @property
    def left(self) -> float:
        """Seconds that are left, from the first call on."""
        with self._lock:
            if self._end == inf:
                self._end = time.monotonic() + self._seconds
                self._announce(f"asking the DNS, for {self._seconds:g} s at most ...")
        return self._end - time.monotonic()

    def lookup(self, name: str, kind: str, *, seconds: float = DEADLINE) -> Found:
        """Return the records of a name, while there is time. Raise UnansweredError."""
        left = self.left
        if left <= 0:
            raise UnansweredError(f"no time was left to ask the DNS for {name} {kind}")
        return super().lookup(name, kind, seconds=min(seconds, left))


class _Name(NamedTuple):
    """A host name, the key where it stands, and what follows if it has no address."""

    host: str
    key: str
    harm: str


def check_names(
    config: Config, instances: Iterable[tuple[PluginConfig, object]], resolver: HurriedResolver
) -> Iterator[Problem]:
    """Yield the host names without an address. All are asked for at once."""
    questions = {name: partial(_in_dns, resolver, name.host) for name in _mail_names(config)}
    questions |= {name: partial(_by_system, name.host) for name in _plugin_names(instances)}
    if not questions:
        return
    asked = list(questions)[:_MOST_NAMES]
    end = time.monotonic() + resolver.left
    answers = ask_all([questions[name] for name in asked], end, threads=_MOST_NAMES)
    found = dict(zip(asked, answers, strict=True))
    for name in asked:
        if found.get(name) is False:
            text = f"{name.host} has no address in the DNS, {name.harm}; is it spelt right?"
            yield warning(config, name.key, text)
    if silent := [name for name in asked if found.get(name) is None]:
        hosts = ", ".join(dict.fromkeys(name.host for name in silent))
        text = f"the DNS does not answer for {hosts}; look at [dns] or /etc/resolv.conf"
        yield warning(config, silent[0].key, text)


def ask_all(
    questions: Sequence[Question[T]],
    end: float,
    *,
    threads: int = _THREADS,
    progress: Callable[[int], None] = lambda _: None,
) -> list[T | None]:
    """Return the answers, None for a question that raises or has no answer in time.

    `end` is in monotonic seconds. At most `threads` questions are asked at once. `progress` is
    called with the number of answers again and again, also while none comes.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    answers: queue.SimpleQueue[tuple[int, T | None]] = queue.SimpleQueue()
    for number in range(len(questions)):
        waiting.put(number)

    def work() -> None:
        with contextlib.suppress(queue.Empty):
            while time.monotonic() < end:
                number = waiting.get_nowait()
                answer: T | None = None
                with surviving("name"):
                    answer = questions[number]()
                answers.put((number, answer))

    for _ in range(min(threads, len(questions))):
        start_thread("name", work, once=True)
    found: list[T | None] = [None] * len(questions)
    count = 0
    while count < len(questions):
        progress(count)
        left = end - time.monotonic()
        try:
            number, answer = answers.get(timeout=min(_TICK, max(left, 0.01)))
        except queue.Empty:
            if left <= 0:
                break
            continue
        found[number] = answer
        count += 1
    return found


def _in_dns(resolver: Resolver, host: str) -> bool | None:
    """Return whether a name has an address, as other servers see it."""
    try:
        return any(resolver.lookup(host, kind).records for kind in ("A", "AAAA"))
    except UnansweredError:
        return None


def _by_system(host: str) -> bool | None:
    """Return whether this machine finds an address, also in /etc/hosts."""
    try:
        return bool(socket.getaddrinfo(host, None))
    except socket.gaierror as error:
        return None if error.errno == socket.EAI_AGAIN else False
    except (OSError, UnicodeError):
        return False


def _mail_names(config: Config) -> Iterator[_Name]:
    public = any(not listener.address.is_local for listener in config.listeners)
    if public and "." in config.hostname:
        harm = "so other servers may refuse mail from it"
        yield _Name(config.hostname, "hostname", harm)
    sending = config.outbound
    hosts = [("outbound.smarthost", sending.smarthost)]
    hosts += [(f"outbound.routes[{n}].host", each.host) for n, each in enumerate(sending.routes)]
    for key, address in hosts:
        if address is not None and _is_name(address.host):
            yield _Name(address.host, key, "so mail for it waits")


def _plugin_names(instances: Iterable[tuple[PluginConfig, object]]) -> Iterator[_Name]:
    """Yield the hosts of services in the options of plugins."""
    for table, instance in instances:
        for option, value in vars(instance).items():
            host = ""
            if isinstance(value, SocketAddress) and value.path is None:
                host = value.host
            elif isinstance(value, str) and value.startswith(_SCHEMES):
                host = _host_of(value)
            if not option.startswith("_") and _is_name(host):
                harm = f"so the plugin cannot reach it (on_error = {table.on_error!r})"
                yield _Name(host, f"{table.key}.{option}", harm)


def _host_of(url: str) -> str:
    try:
        return urllib.parse.urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_name(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return bool(host) and host != "localhost"
    return False
