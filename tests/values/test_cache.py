"""Caches that are limited by octets, and the cache of DNS answers."""

from __future__ import annotations

import contextlib
import gc
import re
import socketserver
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from minismtp_plugins import _part_reader

from minismtp import Address, BoundedCache, Reply, Resolver, SocketAddress
from minismtp.values.address import to_ascii

MIB: Final = 1024 * 1024
ROOT: Final = Path(__file__).parents[2]


def test_value_is_there_until_its_time_is_over() -> None:
    now = 100.0
    cache: BoundedCache[str, int] = BoundedCache(10_000, clock=lambda: now)
    cache.put("a", 1, 60, 10)
    now = 159.0
    assert cache.get("a") == 1
    now = 160.0
    assert cache.get("a") is None
    assert cache.get("b") is None


@pytest.mark.parametrize("size", [0, 10, 1000, 100_000])
def test_octets_are_bounded_whatever_the_values_are(size: int) -> None:
    cache: BoundedCache[int, bytes] = BoundedCache(MIB)
    tracemalloc.start()
    try:
        for number in range(20_000):
            cache.put(number, bytes(size), 60, size)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 1.2 * MIB
    assert len(cache) > MIB / (size + 300) / 2
    assert cache.get(19_999) is not None
    assert cache.get(0) is None


def test_value_is_replaced_and_one_that_is_too_large_is_not_kept() -> None:
    cache: BoundedCache[str, int] = BoundedCache(2000)
    for number in range(100):
        cache.put("a", number, 60, 1000)
        assert cache.get("a") == number
    cache.put("b", 1, 60, 100_000)
    assert (cache.get("b"), len(cache)) == (None, 1)
    cache.put("a", 100, 60, 100_000)
    assert len(cache) == 0


# Answers of the DNS


class Answers(socketserver.StreamRequestHandler):
    """Answers each question with records of its type, of the size that its first label says."""

    def handle(self) -> None:
        while head := self.rfile.read(2):
            query = self.rfile.read(*struct.unpack("!H", head))
            question = query[12 : query.index(b"\0", 12) + 5]
            size = int(question[1 : 1 + question[0]])
            kind = question[-4:-2]
            data = b"\xff" + b"x" * 255 if kind == b"\0\x10" else b""
            records = b"".join(
                b"\xc0\x0c" + kind + struct.pack("!HIH", 1, 3600, len(data) or 4)
                + (data or struct.pack("!I", number))
                for number in range(size // (len(data) or 4) // 2)
            )  # fmt: skip
            count = size // (len(data) or 4) // 2
            wire = query[:2] + struct.pack("!5H", 0x8180, 1, count, 0, 0) + question + records
            self.wfile.write(struct.pack("!H", len(wire)) + wire)


class Truncated(socketserver.DatagramRequestHandler):
    """Answers every query with a truncated reply, so that the client repeats it over TCP."""

    def handle(self) -> None:
        query = self.rfile.read()
        question = query[12 : query.index(b"\0", 12) + 5]
        self.wfile.write(query[:2] + struct.pack("!5H", 0x8380, 1, 0, 0, 0) + question)


@pytest.fixture
def generous() -> Iterator[SocketAddress]:
    """The address of a server that answers every question with the requested size."""
    with contextlib.ExitStack() as stack:
        tcp = stack.enter_context(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answers))
        tcp.daemon_threads = True
        port = int(tcp.server_address[1])
        udp = stack.enter_context(socketserver.UDPServer(("127.0.0.1", port), Truncated))
        for server in (tcp, udp):
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            stack.callback(server.shutdown)
        yield SocketAddress("127.0.0.1", port)


@pytest.mark.parametrize("kind", ["TXT", "A"])
def test_large_answers_take_no_more_memory_than_small_ones(
    kind: str, generous: SocketAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minismtp.services.resolver._CACHED", MIB // 4)
    resolver = Resolver([generous])
    resolver.lookup(f"1000.{kind}.first.test", kind)
    tracemalloc.start()
    try:
        for number in range(25):
            assert resolver.lookup(f"4000.{kind}.n{number}.test", kind).records
        gc.collect()  # removed answers refer to themselves
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < MIB


# Caches of text from strangers


def encode(text: str) -> object:
    return Reply(550, text, "5.7.1").encode()


def parse(text: str) -> object:
    return Address.parse(f"{text[:40]}@example.org{' ' * len(text)}")


def delimiters(text: str) -> object:
    return _part_reader._delimiters((text.encode(),))  # noqa: SLF001 - what keeps the patterns


@pytest.mark.parametrize(
    ("function", "texts"),
    [(encode, 100), (parse, 100), (delimiters, 10), (to_ascii, 100)],  # each pattern is 140 KB
)
def test_what_is_remembered_of_long_texts_is_little(
    function: Callable[[str], object], texts: int
) -> None:
    function("first")
    tracemalloc.start()
    try:
        for number in range(texts):
            function(f"é{number}" + "x" * 8000 if function is to_ascii else f"{number:08}" * 1000)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < MIB / 2


def test_each_cache_of_functions_is_known_and_bounded() -> None:
    """Add a new cache here, with the limit on the length of its entries."""
    known = {
        "minismtp/mail/cleanup.py": 1,  # the operator's names
        "minismtp/mail/trace_fields.py": 2,  # names of 255 characters; seconds
        "minismtp/values/address.py": 3,  # 800 characters; mailboxes of 1,300; names of 255 octets
        "minismtp/cli/text.py": 2,  # numbers; cells of a table, in a command that ends
        "minismtp/values/reply.py": 1,  # codes
        "minismtp/smtp/client_reply.py": 1,  # 128 octets
        "minismtp/session/replies.py": 4,  # our names; names of hosts, 255 characters
        "minismtp/runtime/login_backoff.py": 1,  # addresses
        "minismtp/hooks/declaration.py": 1,  # methods of plugins
        "minismtp/services/public_suffix.py": 1,  # domains of 255 octets
        "minismtp/delivery/attempt.py": 3,  # domains of addresses (two caches); listeners
        "minismtp/mailqueue/runner.py": 1,  # the same
        "plugins/_checks.py": 1,  # addresses
        "plugins/_directory.py": 1,  # local parts of 512 octets, domains of 255
        "plugins/_dns.py": 2,  # addresses
        "plugins/relay.py": 1,  # addresses
        "plugins/_maildir_paths.py": 1,  # local parts of 512 octets, domains of 255
        "plugins/_part_reader.py": 1,  # 1000 octets
    }
    found = {
        str(path.relative_to(ROOT)): count
        for folder in ("minismtp", "plugins")
        for path in (ROOT / folder).rglob("*.py")
        if (count := path.read_text().count("lru_cache("))
    }
    assert found == known
    unbounded = [
        path
        for folder in ("minismtp", "plugins")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(
            r"lru_cache\((maxsize=)?None|@(functools\.)?cache$", path.read_text(), re.MULTILINE
        )
    ]
    # The functions of OpenSSL and the public suffix list, once each.
    assert {path.name for path in unbounded} == {"client_certificate.py", "public_suffix.py"}
