"""Shared state of plugins: in a file, in memory, in Redis, and while that is down."""

from __future__ import annotations

import contextlib
import math
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import pytest
from fakes import Clock
from hypothesis import given
from hypothesis import strategies as st
from redis_service import RedisServer, eventually, redis_running

from minismtp import Claim, Defer, RemoteError, ServerInfo, Session, State, hookimpl, plugin
from minismtp.cli.check import check
from minismtp.config import Config, PluginConfig
from minismtp.config.mistakes import ConfigError
from minismtp.config.schema import schema
from minismtp.config.tables import StateConfig
from minismtp.services.remote import Breaker
from minismtp.services.state_redis import RedisStore
from minismtp.services.state_sqlite import SqliteStore
from minismtp.services.state_window import MICROSECONDS, PARTS, Window
from minismtp.testing import Dialogue, Dialogues
from minismtp.values.installation import how_to_install

if TYPE_CHECKING:
    from conftest import Launch, TlsFiles

HOUR: Final = timedelta(hours=1)
SOON: Final = timedelta(milliseconds=60)
KINDS: Final = ("file", "memory", "redis")


@pytest.fixture(scope="module")
def redis(
    require_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    """Run one server for all tests that do not kill it."""
    program = require_program("redis-server")
    with redis_running(program, tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=KINDS)
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[State]:
    """Yield one of each kind, with keys of the test's own."""
    if request.param == "redis":
        url = request.getfixturevalue("redis").url
        given = State.of(StateConfig(url=url, prefix=f"{request.node.name}:"), tmp_path)
    elif request.param == "file":
        given = State.of(StateConfig(), tmp_path)
    else:
        given = State.in_memory()
    with contextlib.closing(given):
        yield given


# Each kind does the same


def test_value_is_there_until_it_is_deleted(state: State) -> None:
    assert state.get("colour") is None
    state.put("colour", "blue", HOUR)
    state.put("colour", "gr\u00fcn", HOUR)
    assert state.get("colour") == "gr\u00fcn"
    state.delete("colour")
    state.delete("colour")
    assert state.get("colour") is None


def test_first_value_stays(state: State) -> None:
    assert state.setdefault("first", "a", HOUR) == "a"
    assert state.setdefault("first", "b", HOUR) == "a"
    assert state.get("first") == "a"


def test_counter_adds_up(state: State) -> None:
    assert [state.add("n", amount, HOUR) for amount in (1, 1, 10, -2)] == [1, 2, 12, 10]
    assert state.get("n") == "10"


@pytest.mark.parametrize("kind", ["put", "setdefault", "add"])
def test_what_has_expired_is_gone(kind: str, state: State) -> None:
    value: str | int = 5 if kind == "add" else "5"
    getattr(state, kind)("k", value, SOON)
    eventually(lambda: state.get("k") is None)
    if kind == "add":
        assert state.add("k", 1, HOUR) == 1
    else:
        assert state.setdefault("k", "6", HOUR) == "6"


def test_counter_expires_after_its_first_addition(state: State) -> None:
    state.add("window", 1, SOON)
    eventually(lambda: state.add("window", 1, HOUR) == 1)


def test_limit_gives_what_there_is_and_says_when_there_is_more(state: State) -> None:
    assert [state.take("mail", 3, HOUR) for _ in range(3)] == [0, 0, 0]
    assert 3600 - 180 < state.take("mail", 3, HOUR) <= 3600 * (1 + 1 / PARTS)
    assert state.take("mail", 3, HOUR, amount=4) == math.inf
    assert state.take("bytes", 100, HOUR, amount=60) == 0
    assert state.take("bytes", 100, HOUR, amount=60) > 0
    assert state.take("bytes", 100, HOUR, amount=40) == 0


def test_limit_allows_as_much_again_after_its_time(state: State) -> None:
    assert state.take("mail", 2, SOON, amount=2) == 0
    eventually(lambda: state.take("mail", 2, SOON, amount=2) == 0)


def test_several_limits_give_all_or_nothing(state: State) -> None:
    wide, narrow = Claim("wide", 10, HOUR, 4), Claim("narrow", 5, HOUR, 4)
    assert state.take_all([wide, narrow]) == [0, 0]
    refused = state.take_all([wide, narrow])
    assert refused[0] == 0
    assert refused[1] > 0
    assert state.take("wide", 10, HOUR, amount=6) == 0
    assert state.take_all([]) == []


def test_views_have_keys_of_their_own(state: State) -> None:
    state.at("a").put("k", "1", HOUR)
    state.at("a").at("b").put("k", "2", HOUR)
    assert [state.at("a").get("k"), state.at("b").get("k"), state.get("k")] == ["1", None, None]
    assert state.at("a").at("b").get("k") == "2"


@pytest.mark.parametrize("key", ["", " \r\n\0*", "\udcff", "x" * 5000])
def test_any_text_is_a_key(key: str, state: State) -> None:
    assert state.add(key, 1, HOUR) == 1
    assert state.add(f"{key}.", 1, HOUR) == 1


@pytest.mark.parametrize("time", [timedelta(0), timedelta(seconds=-1)])
def test_nothing_is_kept_for_no_time(time: timedelta, state: State) -> None:
    calls: list[Callable[[], object]] = [
        lambda: state.put("k", "v", time),
        lambda: state.setdefault("k", "v", time),
        lambda: state.add("k", 1, time),
        lambda: state.take("k", 1, time),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="expected a time above 0"):
            call()


def test_closed_store_opens_again(tmp_path: Path) -> None:
    state = State.of(StateConfig(), tmp_path)
    state.put("k", "v", HOUR)
    state.close()
    assert state.get("k") == "v"
    state.close()
    state.close()


HAMMER: Final = """
import sys
from datetime import timedelta
from pathlib import Path
from minismtp import State
from minismtp.config.tables import StateConfig

state = State.of(StateConfig(url=sys.argv[1]), Path(sys.argv[2]))
hour = timedelta(hours=1)
sums = [state.add("count", 1, hour) for _ in range(150)]
taken = [state.take("limit", 100, hour) for _ in range(60)].count(0)
first = state.setdefault("first", sys.argv[3], hour)
print(first, taken, *sums)
"""


@pytest.mark.parametrize("kind", ["file", "redis"])
def test_processes_count_exactly(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Each addition has a sum of its own, and exactly 100 of 240 pass a limit of 100."""
    url = request.getfixturevalue("redis").url if kind == "redis" else ""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", HAMMER, url, str(tmp_path), str(number)], stdout=subprocess.PIPE
        )
        for number in range(4)
    ]
    lines = [worker.communicate()[0].decode().split() for worker in workers]
    assert len({line[0] for line in lines}) == 1
    assert sum(int(line[1]) for line in lines) == 100
    assert sorted(int(word) for line in lines for word in line[2:]) == list(range(1, 601))


def test_threads_count_exactly(state: State) -> None:
    with ThreadPoolExecutor(8) as pool:
        sums = list(pool.map(lambda _: state.add("count", 1, HOUR), range(400)))
        waits = list(pool.map(lambda _: state.take("limit", 50, HOUR), range(100)))
    assert sorted(sums) == list(range(1, 401))
    assert waits.count(0) == 50


# How a limit counts


@given(
    st.integers(1, 30),
    st.lists(st.tuples(st.integers(0, 900), st.integers(1, 12)), min_size=1, max_size=60),
)
def test_no_span_has_more_than_the_limit_allows(
    capacity: int, steps: list[tuple[int, int]]
) -> None:
    clock, per = Clock(1e6), timedelta(seconds=1000)
    state = State.in_memory(clock=clock)
    taken: list[tuple[float, int]] = []

    def since(start: float) -> int:
        return sum(amount for at, amount in taken if at > start)

    for pause, amount in steps:
        clock.now += pause
        wait = state.take("k", capacity, per, amount)
        if amount > capacity:
            assert wait == math.inf
            continue
        # Never too much within 1000 seconds, and refused only because of the last 1050.
        assert (wait == 0) <= (since(clock.now - 1000) + amount <= capacity)
        assert (wait == 0) >= (since(clock.now - 1050) + amount <= capacity)
        if wait:
            clock.now += wait
            assert state.take("k", capacity, per, amount) == 0
        taken.append((clock.now, amount))
    state.close()


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.dictionaries(st.integers(-30, 1), st.integers(1, 9), max_size=30),
)
def test_redis_counts_as_the_file_does(
    redis: RedisServer, capacity: int, amount: int, parts: dict[int, int]
) -> None:
    """The parts have ten days, so the next one hardly ever begins in the middle."""
    window = Window.of(capacity, timedelta(days=10 * PARTS).total_seconds())
    [seconds, _] = [int(line) for line in redis.say("TIME").split() if line.isdigit()]
    number = seconds * 10**6 // window.length
    taken = {number + part: count for part, count in parts.items()}
    redis.say("DEL", "same")
    for part, count in taken.items():
        redis.say("HSET", "same", str(part), str(count))
    store = RedisStore(redis.url)
    [wait] = store.take([(b"same", window, amount)])
    store.close()
    now = seconds * 10**6
    expected = window.wait(window.current(taken, now), now, amount)
    assert wait == pytest.approx(expected, abs=60)


# The file


def test_file_is_made_with_the_first_call_and_for_us_alone(tmp_path: Path) -> None:
    state = State.of(StateConfig(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    state.put("k", "v", HOUR)
    assert stat.S_IMODE((tmp_path / "state.db").stat().st_mode) == 0o600
    state.close()


def rows(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        count: int = connection.execute("SELECT count(*) FROM entries").fetchone()[0]
    return count


def test_rows_that_have_expired_are_removed(tmp_path: Path) -> None:
    clock = Clock(1e6)
    store = SqliteStore(tmp_path / "db", clock=clock)
    for number in range(2000):
        store.put(b"%d" % number, "v", 60)
        clock.now += 1
    assert rows(tmp_path / "db") < 60 + 512
    store.put(b"last", "v", 10_000)
    for number in range(1000):
        store.add(b"count", number, 10_000)
    assert store.get(b"last") == "v"
    store.close()


def test_file_that_is_full_loses_what_would_expire_next(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "db", largest=256 * 1024)
    for number in range(6000):
        store.put(b"%d" % number, "v" * 100, 1000 + number)
    assert rows(tmp_path / "db") < 4000
    assert store.get(b"5999") is not None
    assert store.get(b"0") is None
    store.close()


def test_directory_that_is_gone_is_an_error_until_it_is_back(tmp_path: Path) -> None:
    state = State.of(StateConfig(), tmp_path / "state")
    with pytest.raises(RemoteError, match=r"state/state\.db: .*No such file"):
        state.get("k")
    (tmp_path / "state").mkdir()
    assert state.get("k") is None
    state.close()


@pytest.mark.parametrize("size", [200, 10_000, 1_000_000])
def test_long_key_takes_little_room_and_is_told_from_others(size: int, state: State) -> None:
    one, other = "k" * size + "1", "k" * size + "2"
    state.put(one, "1", HOUR)
    state.put(other, "2", HOUR)
    assert (state.get(one), state.get(other)) == ("1", "2")
    view = state.of_plugin("plugin")
    assert len(view._key(one)) <= 256  # noqa: SLF001 - what the store is given
    assert view.get(one) is None


def test_failed_transaction_leaves_nothing_behind(tmp_path: Path) -> None:
    state = State.of(StateConfig(), tmp_path)
    state.put("b", "no limit", HOUR)
    with pytest.raises(ValueError, match="invalid literal"):
        state.take_all([Claim("a", 1, HOUR), Claim("b", 1, HOUR)])
    assert state.take("a", 1, HOUR) == 0
    state.close()


def test_file_that_somebody_keeps_to_himself_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minismtp.services.state_sqlite._BUSY", 0.05)
    state = State.of(StateConfig(), tmp_path)
    state.put("k", "v", HOUR)
    with contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RemoteError, match="locked"):
            state.put("k", "w", HOUR)
        assert state.get("k") == "v"
    state.put("k", "w", HOUR)
    state.close()


COUNTER: Final = '''
"""Count HELP over all workers."""

import os
from datetime import timedelta

from minismtp import Reply, ServerInfo, hookimpl, plugin


@plugin
class Counter:
    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        self._state = server.state

    @hookimpl
    def command(self, verb: str) -> Reply | None:
        count = self._state.add("n", 1, timedelta(hours=1))
        return Reply(214, f"{count} {os.getpid()}")
'''
COUNTER_TABLE: Final = '[[plugins]]\nuse = "counter"\n'


def test_workers_of_a_server_count_together(launch: Launch) -> None:
    """An idle worker gets the next connection, so several at once reach both workers."""
    counts: list[int] = []
    pids: set[str] = set()
    with launch(COUNTER_TABLE, files={"local_plugins/counter.py": COUNTER}, workers=2) as server:

        def ask(_: int) -> None:
            with server.connect() as client:
                client.greet()
                for _each in range(5):
                    [_code, count, pid] = client.command("HELP").split()
                    counts.append(int(count))
                    pids.add(pid)

        with ThreadPoolExecutor(8) as pool:
            while len(pids) < 2:
                list(pool.map(ask, range(16)))
        assert sorted(counts) == list(range(1, len(counts) + 1))
        assert (server.directory / "state" / "state.db").exists()


# Redis and Valkey


@pytest.mark.parametrize("scheme", ["redis", "unix"])
def test_redis_is_reached_by_its_url(scheme: str, redis: RedisServer, tmp_path: Path) -> None:
    url = redis.url if scheme == "redis" else f"unix://{redis.socket}"
    state = State.of(StateConfig(url=url, prefix="here:"), tmp_path)
    assert state.at(scheme).add("k", 1, HOUR) == 1
    assert redis.say("GET", f"here:{scheme}:k") == b"$1\r\n1\r\n"
    assert 3_590_000 < int(redis.say("PTTL", f"here:{scheme}:k")[1:]) <= 3_600_000
    state.close()


def test_redis_is_reached_by_tls_and_only_with_a_certificate_that_we_trust(
    require_program: Callable[[str], str], tls_files: TlsFiles, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = (
        *("--tls-port", str(port), "--tls-auth-clients", "no"),
        *("--tls-cert-file", str(tls_files.certificate), "--tls-key-file", str(tls_files.key)),
        *("--tls-ca-cert-file", str(tls_files.authority)),
    )
    with redis_running(require_program("redis-server"), tmp_path, *options):
        url = f"rediss://127.0.0.1:{port}/0"
        trusting = State(RedisStore(f"{url}?ssl_ca_certs={tls_files.authority}"))
        assert trusting.add("k", 1, HOUR) == 1
        trusting.close()
        with pytest.raises(RemoteError, match="certificate verify failed"):
            State(RedisStore(url)).get("k")


@pytest.mark.parametrize("parameter", ["colour=blue", "db=three"])
def test_parameter_of_the_url_that_is_unknown_is_a_mistake(parameter: str, tmp_path: Path) -> None:
    [found] = told(configuration(f"redis://127.0.0.1?{parameter}", tmp_path))
    assert found.startswith(f"error: {tmp_path / 'c.toml'}: state.url: ")


def test_limit_in_redis_has_parts_in_the_future_dropped(redis: RedisServer) -> None:
    day = timedelta(days=1)
    future = round(time.time() + 86_400) * MICROSECONDS // Window.of(1, 86_400).length
    redis.say("HSET", "future", str(future), "1")
    state = State(RedisStore(redis.url))
    assert state.take("future", 1, day) == 0
    assert state.take("future", 1, day) > 0
    assert redis.say("HLEN", "future") == b":1\r\n"
    state.close()


def test_limit_in_redis_expires(redis: RedisServer) -> None:
    state = State(RedisStore(redis.url))
    state.take("expiring", 5, HOUR)
    assert 3_600_000 <= int(redis.say("PTTL", "expiring")[1:]) <= 3_600_000 * 1.06
    state.close()


def test_password_is_used_and_not_shown(
    require_program: Callable[[str], str], tmp_path: Path
) -> None:
    program = require_program("redis-server")
    with redis_running(program, tmp_path, "--requirepass", "hush") as server:
        right = server.url.replace("//", "//:hush@")
        state = State(RedisStore(right))
        state.put("k", "v", HOUR)
        assert state.get("k") == "v"
        state.close()
        wrong = State(RedisStore(server.url.replace("//", "//:wrong@")))
        with pytest.raises(RemoteError, match=f"^redis://127.0.0.1:{server.port}/0: ") as error:
            wrong.get("k")
        assert "wrong@" not in str(error.value)


def test_killed_redis_is_an_error_left_alone_and_found_again(
    require_program: Callable[[str], str], tmp_path: Path
) -> None:
    with redis_running(require_program("redis-server"), tmp_path) as server:
        clock = Clock(1e6)
        breaker = Breaker("redis", failures=3, pause=10, clock=clock)
        state = State(RedisStore(server.url), breaker=breaker)
        assert state.take("k", 5, HOUR) == 0
        server.kill()
        calls: list[Callable[[], object]] = [
            lambda: state.take("k", 5, HOUR),
            lambda: state.add("n", 1, HOUR),
            lambda: state.get("n"),
        ]
        for call in calls:
            with pytest.raises(RemoteError, match=f"{server.port}/0: "):
                call()
        with pytest.raises(RemoteError, match="failed 3 times in a row and is not asked for"):
            state.get("n")
        server.start()
        clock.now += 11
        assert state.take("k", 5, HOUR) == 0  # with scripts that the new server does not know yet
        assert state.add("n", 1, HOUR) == 1
        state.close()


@contextlib.contextmanager
def pretending(talk: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """Run a service at a URL that is not Redis, until the block ends."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while not over.is_set():
                with contextlib.suppress(OSError):
                    sock, _ = listener.accept()
                    with sock:
                        talk(sock, over)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"redis://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def silent(sock: socket.socket, over: threading.Event) -> None:
    del sock
    over.wait()


def dripping(sock: socket.socket, over: threading.Event) -> None:
    sock.recv(65536)
    sock.sendall(b"$1000000\r\n")
    while not over.wait(0.01):
        sock.sendall(b".")


def chatting(sock: socket.socket, over: threading.Event) -> None:
    del over
    sock.recv(65536)
    sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def hanging_up(sock: socket.socket, over: threading.Event) -> None:
    del over
    sock.recv(65536)
    sock.sendall(b"$100\r\nhalf of it")


@pytest.mark.parametrize("talk", [silent, dripping, chatting, hanging_up])
def test_redis_that_is_none_is_an_error_in_time(
    talk: Callable[[socket.socket, threading.Event], None],
) -> None:
    with pretending(talk) as url:
        state = State(RedisStore(url, seconds=0.3))
        with pytest.raises(RemoteError, match=r"^redis://"):
            state.get("k")
        state.close()


@plugin
class Limited:
    """Allows one message an hour."""

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        self._state = server.state

    @hookimpl
    def on_mail(self, session: Session) -> None:
        if self._state.take(session.peer, 1, HOUR):
            raise Defer("enough")


@pytest.mark.parametrize(
    ("policy", "reply"),
    [
        ("defer", "451 4.3.0 temporary failure, try again later"),
        ("ignore", "250 2.1.0 sender ok"),
    ],
)
@pytest.mark.usefixtures("capfd")
def test_plugin_without_its_store_follows_its_policy(
    policy: Literal["defer", "ignore"],
    reply: str,
    require_program: Callable[[str], str],
    tmp_path: Path,
) -> None:
    with redis_running(require_program("redis-server"), tmp_path) as server:
        state = State(RedisStore(server.url))
        table = PluginConfig(use="limited", on_error=policy)
        dialogue = Dialogue((table, Limited()), state=state)
        dialogue.send("EHLO client.example")
        assert dialogue.send("MAIL FROM:<a@b.example>")[:3] == "250"
        dialogue.send("RSET")
        assert dialogue.send("MAIL FROM:<a@b.example>") == "451 4.7.1 enough"
        server.kill()
        for _ in range(7):  # the breaker opens meanwhile
            assert dialogue.send("MAIL FROM:<a@b.example>") == reply
            dialogue.send("RSET")
        assert dialogue.count("hook_errors_total", plugin="limited", hook="on_mail") == 7
        dialogue.close()


# What plugins and operators see


def test_plugins_have_keys_of_their_own_by_the_names_in_their_tables() -> None:
    state = State.in_memory()
    tables = [PluginConfig(use="limited", name=name) for name in ("one", "two")]
    dialogue = Dialogue(*[(table, Limited()) for table in tables], state=state)
    dialogue.send("EHLO client.example")
    assert dialogue.send("MAIL FROM:<a@b.example>")[:3] == "250"
    assert state.at("one").take("192.0.2.1", 1, HOUR) > 0
    assert state.at("two").take("192.0.2.1", 1, HOUR) > 0
    assert state.at("three").take("192.0.2.1", 1, HOUR) == 0


def test_dialogues_share_what_they_are_given_and_nothing_else() -> None:
    def answer(state: State | None) -> str:
        dialogue = Dialogue(Limited(), state=state)
        dialogue.send("EHLO client.example")
        return dialogue.send("MAIL FROM:<a@b.example>")[:3]

    shared = State.in_memory()
    assert [answer(shared), answer(shared), answer(None), answer(None)] == [
        *("250", "451", "250", "250")
    ]


def test_sessions_of_the_fixture_share_theirs(dialogue: Dialogues) -> None:
    plugin = Limited()
    for reply in ("250", "451"):
        session = dialogue(plugin)
        session.send("EHLO client.example")
        assert session.send("MAIL FROM:<a@b.example>")[:3] == reply


LISTENER: Final = '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\ntls = "none"\n'


def configuration(url: str, directory: Path) -> Config:
    text = f'hostname = "mx.example.org"\nstate_directory = "."\n{LISTENER}[state]\nurl = "{url}"\n'
    path = directory / "c.toml"
    path.write_text(text)
    path.chmod(0o644)
    return Config.load(path)


@pytest.mark.parametrize(
    "url",
    [
        "redis:",
        "redis://[",
        "redis:///0",
        "http://127.0.0.1",
        "127.0.0.1:6379",
        "unix://",
        "state.db",
    ],
)
def test_url_of_no_store_is_a_mistake(url: str, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"c\.toml: state.*, line [78]: (expected a|Invalid IPv6) URL"
    ):
        configuration(url, tmp_path)


def told(config: Config) -> list[str]:
    found = [each for each in check(config) if each.mistake.key.startswith("state.")]
    return [str(each).replace(", line 8:", ":") for each in found]


def test_check_asks_the_store_and_leaves_nothing_there(redis: RedisServer, tmp_path: Path) -> None:
    redis.say("FLUSHALL")
    assert told(configuration(redis.url, tmp_path)) == []
    assert redis.say("DBSIZE") == b":0\r\n"


def test_check_warns_of_a_store_that_is_away_and_of_a_password_for_everybody(
    tmp_path: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    [secret, away] = told(configuration(f"redis://:hush@127.0.0.1:{port}", tmp_path))
    assert "state.url" in secret
    assert secret.endswith("c.toml can be read by everybody (chmod o-r)")
    assert f"state.url: redis://127.0.0.1:{port}: " in away
    assert away.startswith("warning: ")
    assert "hush" not in away


def test_missing_library_is_a_mistake_in_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "minismtp.services.state_redis", raising=False)
    monkeypatch.setitem(sys.modules, "redis", None)
    config = configuration("redis://127.0.0.1", tmp_path)
    problem = f"state.url: needs the module 'redis'; {how_to_install('redis')}"
    assert told(config) == [f"error: {tmp_path / 'c.toml'}: {problem}"]
    with pytest.raises(ConfigError, match="needs the module"):
        ServerInfo.of(config, "worker")


def test_schema_knows_the_table() -> None:
    assert set(schema({})["properties"]["state"]["properties"]) == {"url", "prefix"}


def test_nothing_is_opened_for_those_who_do_not_ask(tmp_path: Path) -> None:
    before = len([*Path("/proc/self/fd").iterdir()])
    server = ServerInfo.of(configuration("redis://127.0.0.1:1", tmp_path), "worker")
    server.state.at("x")
    assert len([*Path("/proc/self/fd").iterdir()]) == before
