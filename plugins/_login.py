"""Helpers of the plugins that check passwords in other services."""

import hashlib
import hmac
import secrets
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from minismtp import (
    Breaker,
    Credentials,
    Defer,
    RemoteError,
    folded_name,
    start_thread,
    verify_password,
)

T = TypeVar("T")

_PATIENCE = 5.0  # seconds that a login waits for its turn; after that mail programs try again
_LONGEST = 1000  # octets of a name or a password, a little less than services accept


def may_be_asked(credentials: Credentials) -> bool:
    """Return whether a service can be asked about these credentials without harm.

    A directory would take an empty password for an anonymous login (RFC 4513 section 5.1.2). A text
    that is too long, or has a NUL, could make a service close the connection and look dead.
    """
    texts = (credentials.username, credentials.password, credentials.authorization)
    try:
        octets = [text.encode() for text in texts]
    except UnicodeEncodeError:
        return False
    sound = all(len(text) <= _LONGEST and b"\0" not in text for text in octets)
    return sound and bool(credentials.username and credentials.password)


def acts_as_itself(credentials: Credentials) -> bool:
    """Return whether the user acts as itself, in any spelling (RFC 4616 section 2)."""
    asked = folded_name(credentials.authorization)
    return asked in ("", folded_name(credentials.username))


def authorities(ca: Path | None) -> ssl.SSLContext:
    """Return a context with the authorities in a file, or the system's. Raise ValueError."""
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise ValueError(f"ca: {ca}: {error.strerror or 'no certificates'}") from error


class PasswordCheck:
    """Checks passwords against stored hashes, and recognizes right ones for a while.

    Hashes are slow on purpose, which delays mail programs that log in for each message. So a keyed
    digest of a right password is kept in memory. Threads may share a check.
    """

    def __init__(self, remember: timedelta) -> None:
        self._seconds = remember.total_seconds()
        self._lock = PriorityLock()
        self._secret = secrets.token_bytes(32)
        self._recent: dict[str, tuple[bytes, float]] = {}  # user: digest, until when

    def passes(
        self, credentials: Credentials, stored: str | None, decoy: str | None = None
    ) -> bool:
        """Return whether the password is right for the `stored` hash, None for an unknown user.

        An unknown user takes as long as the `decoy`, another user's hash. Raise Defer if too many
        logins are waiting; known users come before strangers.
        """
        if self._is_recent(credentials, stored):
            return True
        if not (self._verify(credentials, stored, decoy) and stored):
            return False
        if self._seconds:
            until = time.monotonic() + self._seconds
            self._recent[credentials.username] = self._digest(credentials, stored), until
        return True

    def _verify(self, credentials: Credentials, stored: str | None, decoy: str | None) -> bool:
        # One at a time in each worker, because more would share the same cores and take 32 MiB
        # each. A login that waited for one with the same password need not repeat the work.
        if not self._lock.acquire(_PATIENCE, first=credentials.known):
            raise Defer("too many logins are waiting", enhanced="4.7.0")
        try:
            return self._is_recent(credentials, stored) or verify_password(
                credentials.password, stored or decoy
            )
        finally:
            self._lock.release()

    def _is_recent(self, credentials: Credentials, stored: str | None) -> bool:
        digest, until = self._recent.get(credentials.username, (b"", 0.0))
        same = hmac.compare_digest(digest, self._digest(credentials, stored or ""))
        return same and stored is not None and time.monotonic() < until

    def _digest(self, credentials: Credentials, stored: str) -> bytes:
        """Return a digest of a password and its user's hash, so a new hash makes it unknown."""
        text = f"{stored}\0{credentials.password}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, key=self._secret, digest_size=32).digest()


class PriorityLock:
    """A lock for which some threads wait in front of all others, each group in its order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = False
        self._first: deque[threading.Event] = deque()
        self._others: deque[threading.Event] = deque()

    @property
    def waiting(self) -> int:
        """The number of waiting threads."""
        return len(self._first) + len(self._others)

    def acquire(self, timeout: float, *, first: bool) -> bool:
        """Return whether the thread got the lock within `timeout` seconds."""
        turn = threading.Event()
        waiting = self._first if first else self._others
        with self._lock:
            if not self._taken:
                self._taken = True
                return True
            waiting.append(turn)
        if turn.wait(timeout):
            return True
        with self._lock:
            if not turn.is_set():
                waiting.remove(turn)
            return turn.is_set()

    def release(self) -> None:
        """Pass the lock to the next thread."""
        with self._lock:
            for waiting in (self._first, self._others):
                if waiting:
                    waiting.popleft().set()
                    return
            self._taken = False


class BoundedCalls:
    """Runs calls that have no deadline of their own in threads, and abandons those that are late.

    At most `most` calls run at once, including those that hang forever; others wait
    within the same time. A breaker stops calls to a service that lets all of them hang.
    """

    def __init__(self, breaker: Breaker, patience: timedelta, most: int) -> None:
        self._breaker = breaker
        self._seconds = patience.total_seconds()
        self._places = threading.BoundedSemaphore(most)

    def run(self, call: Callable[[], T]) -> T:
        """Return the result of the call. Raise RemoteError if it takes too long."""
        due = time.monotonic() + self._seconds
        with self._breaker.watch():
            if not self._places.acquire(timeout=self._seconds):
                raise RemoteError("too many calls are under way")
            future: Future[T] = Future()
            try:
                start_thread("login", lambda: self._work(call, future), once=True)
            except BaseException:
                self._places.release()
                raise
            wait([future], max(0.0, due - time.monotonic()))
            if not future.done():
                raise RemoteError(f"no answer within {self._seconds:g} s")
            return future.result()

    def _work(self, call: Callable[[], T], future: Future[T]) -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - `run` raises it
            future.set_exception(error)
        finally:
            self._places.release()
