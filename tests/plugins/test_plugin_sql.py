"""Logins by hashes in a database: SQLite, PostgreSQL, and modules that fail."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import psycopg
import pytest
from fakes import listen, nobody_there, running_daemon, saying, serving
from minismtp_plugins._login import BoundedCalls
from minismtp_plugins._user_names import spellings
from minismtp_plugins.sql import Sql
from ports import free_port

from minismtp import Breaker, Credentials, RemoteError, ServerInfo
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.testing import Dialogue
from minismtp.values.passwords import hash_password

if TYPE_CHECKING:
    from conftest import Launch

QUERY: Final = "SELECT hash FROM users WHERE name = :user"
INJECTIONS: Final = (
    "' OR '1'='1",
    "alice' --",
    "alice'; DROP TABLE users; --",
    "x' UNION SELECT hash FROM users WHERE name='alice",
    "%",
    "ali%",
    "\\' OR 1=1 --",
    "%(user)s",
    ":user",
    "?",
    "alice\n",
)


def cheap(password: str) -> str:
    """Return a stored string that costs nothing to check."""
    key = hashlib.scrypt(password.encode(), salt=b"salt", n=2, r=1, p=1, dklen=32)
    return f"$scrypt$ln=1,r=1,p=1$c2FsdA${b64encode(key).decode()}"


ROWS: Final = [
    ("alice", cheap("apple"), "alice@example.org"),
    ("\u00fcber", cheap("plum"), None),
    ("disabled", None, None),
    ("clear", "apple", None),
    ("twice", cheap("one"), None),
    ("twice", cheap("two"), None),
]


def fill(connection: sqlite3.Connection | psycopg.Connection[Any], marker: str) -> None:
    """Make the table of users."""
    cursor = connection.cursor()
    cursor.execute("CREATE TABLE users (name TEXT, hash TEXT, address TEXT)")
    for row in ROWS:
        cursor.execute(f"INSERT INTO users VALUES ({marker}, {marker}, {marker})", row)  # noqa: S608
    connection.commit()
    connection.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "users of #1.sqlite"
    fill(sqlite3.connect(path), "?")
    return path


def log_in(plugin: Sql, user: str = "alice", password: str = "apple") -> str | None:  # noqa: S107
    return plugin.authenticate(Credentials("PLAIN", user, password))


# SQLite


@pytest.mark.parametrize(
    ("user", "password", "name"),
    [
        ("alice", "apple", "alice"),
        ("\u00fcber", "plum", "\u00fcber"),
        ("alice", "plum", None),
        ("alice", "", None),
        ("Alice", "apple", "alice"),
        (" ALICE ", "apple", "alice"),
        ("\uff21lice", "apple", "alice"),
        ("U\u0308BER", "plum", "\u00fcber"),
        ("ALICE", "plum", None),
        ("nobody", "apple", None),
        ("disabled", "None", None),
        ("clear", "apple", None),
        ("", "apple", None),
        ("a" * 1001, "apple", None),
        ("\udc80", "apple", None),
    ],
)
def test_hash_of_the_database_decides(
    path: Path, user: str, password: str, name: str | None
) -> None:
    assert log_in(Sql(path=path, query=QUERY), user, password) == name


@pytest.mark.parametrize("user", INJECTIONS)
def test_name_is_never_part_of_the_query(path: Path, user: str) -> None:
    assert log_in(Sql(path=path, query=QUERY), user) is None
    assert log_in(Sql(path=path, query=QUERY)) == "alice"


def test_second_column_is_the_name_after_the_login(path: Path) -> None:
    query = "SELECT hash, address FROM users WHERE lower(name) = lower(:user)"
    plugin = Sql(path=path, query=query)
    assert log_in(plugin, "ALICE") == "alice@example.org"
    assert log_in(plugin, "\u00fcber", "plum") == "\u00fcber"


def test_nobody_may_act_as_somebody_else(path: Path) -> None:
    plugin = Sql(path=path, query=QUERY)
    assert plugin.authenticate(Credentials("PLAIN", "alice", "apple", "alice")) == "alice"
    assert plugin.authenticate(Credentials("PLAIN", "alice", "apple", "bob")) is None


@pytest.mark.parametrize("query", [QUERY, QUERY.replace("=", "LIKE")])
def test_several_rows_are_a_failure(path: Path, query: str) -> None:
    user = "twice" if query == QUERY else "%"
    plugin = Sql(path=path, query=query)
    for _ in range(7):  # this is not a failure of the database, so others can still log in
        with pytest.raises(ValueError, match="several rows"):
            log_in(plugin, user)
    assert log_in(plugin) == "alice"


def test_hash_of_no_known_scheme_is_told_without_showing_it(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert log_in(Sql(path=path, query=QUERY), "clear") is None
    assert "the hash of 'clear' in the database: not a password hash" in caplog.text
    assert "apple" not in caplog.text


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the cost of every scrypt that runs from now on."""
    found: list[int] = []
    real: Callable[..., bytes] = hashlib.scrypt

    def scrypt(password: bytes, **options: int) -> bytes:
        found.append(options["n"])
        return real(password, **options)

    monkeypatch.setattr(hashlib, "scrypt", scrypt)
    return found


def test_right_password_is_recognized_while_its_hash_stays(path: Path, costs: list[int]) -> None:
    plugin = Sql(path=path, query=QUERY)
    assert [log_in(plugin), log_in(plugin)] == ["alice", "alice"]
    assert len(costs) == 1
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE users SET hash = ? WHERE name = 'alice'", [cheap("pear")])
    connection.close()
    assert [log_in(plugin), log_in(plugin, password="pear")] == [None, "alice"]  # noqa: S106
    always = Sql(path=path, query=QUERY, remember=timedelta())
    costs.clear()
    for _ in range(2):
        assert log_in(always, password="pear") == "alice"  # noqa: S106
    assert len(costs) == 2


@pytest.mark.parametrize(
    "query",
    [
        QUERY,
        "SELECT hash, address FROM users WHERE name=:user;",
        "SELECT hash FROM users WHERE lower(name) = lower(:user) LIMIT 1 -- :user",
        "select u.hash from users u where u.name like :user or u.address = trim(:user)",
    ],
)
def test_first_unknown_user_costs_what_a_known_one_does(
    path: Path, costs: list[int], query: str
) -> None:
    assert log_in(Sql(path=path, query=query), "nobody") is None
    assert costs == [2]


def test_unknown_user_costs_what_the_last_known_one_did(path: Path, costs: list[int]) -> None:
    plugin = Sql(path=path, query="SELECT hash FROM users WHERE :user = name")
    log_in(plugin, "nobody")
    assert costs == [1 << 15]  # no query finds a hash
    log_in(plugin)
    log_in(plugin, "nobody")
    assert costs[1:] == [2, 2]


def test_hash_that_stands_in_is_looked_for_while_there_is_none(
    path: Path, costs: list[int]
) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE later (name, hash)")
        connection.execute("INSERT INTO later VALUES ('disabled', NULL)")
    plugin = Sql(path=path, query=QUERY.replace("users", "later"))
    log_in(plugin, "nobody")
    with connection:
        connection.execute("INSERT INTO later VALUES ('bob', ?)", [ROWS[0][1]])
    connection.close()
    log_in(plugin, "nobody")
    assert costs == [1 << 15, 2]


GENEROUS: Final = "SELECT hash FROM users WHERE name = trim(plain(:user))"


@pytest.mark.parametrize(
    "user",
    ["alice", "ALICE", " alice", "Alice ", "\uff21\uff4cice", "al\u00adice", "\u00e1lic\u00e8"],
)
def test_user_has_one_name_in_every_spelling_that_the_database_takes(
    path: Path, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(**options: Any) -> sqlite3.Connection:  # noqa: ANN401
        connection: sqlite3.Connection = real(**options)
        connection.create_function("plain", 1, lambda name: ([*spellings(name), name])[0])
        return connection

    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", connect)
    assert log_in(Sql(path=path, query=GENEROUS), user) == "alice"
    if user != "alice":
        assert log_in(Sql(path=path, query=QUERY, ignore_case=False), user) is None


def test_users_whose_names_differ_in_case_stay_two(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO users VALUES ('Alice', ?, NULL)", [cheap("pear")])
    connection.close()
    plugin = Sql(path=path, query=QUERY)
    assert [log_in(plugin), log_in(plugin, "Alice", "pear")] == ["alice", "Alice"]
    assert log_in(plugin, "Alice", "apple") is None
    assert log_in(plugin, "ALICE", "apple") == "alice"
    assert log_in(plugin, "ALICE", "pear") is None


@pytest.mark.parametrize(("known", "unknown"), [("alice", "nobody"), ("ALICE", "NOBODY")])
def test_unknown_user_costs_as_many_questions_as_a_known_one(
    path: Path, known: str, unknown: str
) -> None:
    asked: list[str] = []
    query = "SELECT hash FROM users WHERE lower(name) = lower(:user)"
    plugin = Sql(path=path, query=query)
    log_in(plugin, "first")
    rows = plugin._database.rows  # noqa: SLF001 - the work that is done
    plugin._database.rows = lambda *question: asked.append("") or rows(*question)  # type: ignore[method-assign, func-returns-value] # noqa: SLF001
    log_in(plugin, known, "wrong")
    count = len(asked)
    log_in(plugin, unknown, "wrong")
    assert len(asked) == 2 * count


def test_new_file_in_the_place_of_the_old_one_counts_at_once(path: Path, tmp_path: Path) -> None:
    plugin = Sql(path=path, query=QUERY)
    assert log_in(plugin) == "alice"
    other = tmp_path / "other"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE users (name TEXT, hash TEXT)")
    connection.close()
    other.replace(path)
    assert log_in(plugin) is None


def test_query_cannot_change_the_file(path: Path) -> None:
    plugin = Sql(path=path, query="DELETE FROM users WHERE name = :user RETURNING hash")
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        log_in(plugin)


def test_locked_file_is_waited_for_no_longer_than_patience(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    plugin = Sql(path=path, query=QUERY, patience=timedelta(milliseconds=50))
    with pytest.raises((RemoteError, sqlite3.OperationalError), match=r"no answer|locked"):
        log_in(plugin)
    connection.close()
    assert log_in(plugin) == "alice"


def test_client_keeps_its_password_while_the_file_is_away(tmp_path: Path) -> None:
    dialogue = Dialogue(Sql(path=tmp_path / "nowhere", query=QUERY), tls=True)
    dialogue.send("EHLO client.example")
    secret = b64encode(b"\0alice\0apple").decode()
    replies = [dialogue.send(f"AUTH PLAIN {secret}")[:9] for _ in range(7)]
    assert set(replies) == {"454 4.7.0"}
    dialogue.close()


def test_server_takes_users_of_a_database(launch: Launch) -> None:
    table = '[[plugins]]\nuse = "sql"\npath = "users.sqlite"\n'
    table += f'query = "{QUERY}"\n'
    with launch(table) as server, server.connect() as client:
        connection = sqlite3.connect(server.directory / "users.sqlite")
        connection.execute("CREATE TABLE users (name, hash)")
        connection.execute("INSERT INTO users VALUES ('bob', ?)", [hash_password("apple")])
        connection.commit()
        connection.close()
        client.greet()
        secret = b64encode(b"\0bob\0apple").decode()
        assert client.command(f"AUTH PLAIN {secret}").startswith("235 2.7.0")


# PostgreSQL


@pytest.fixture(scope="module")
def postgresql(
    tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], str]
) -> Iterator[dict[str, Any]]:
    """Run a PostgreSQL with the table of users, and return the arguments of connect."""
    directory = tmp_path_factory.mktemp("postgresql")
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/nowhere"))
    initdb = shutil.which("initdb", path=programs) or require_program("initdb")
    # It refuses to run as root. In a user namespace the tests run as nobody.
    nobody = (require_program("unshare"), "--user", "--map-user=65534", "--map-group=65534")
    data, port = directory / "data", free_port()
    command = (*nobody, initdb, "-D", data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8")
    subprocess.run([*command, "--locale=C.UTF-8"], check=True, capture_output=True, cwd=directory)
    server = (*nobody, programs / "postgres", "-D", data, "-k", "", "-h", "127.0.0.1")
    settings = ("-p", str(port), "-F", "-c", "max_connections=20")
    with running_daemon(*server, *settings, port=port, log=directory / "log"):
        found = {"host": "127.0.0.1", "port": port, "user": "postgres", "dbname": "postgres"}
        fill(connected(found), "%s")
        yield found


def connected(arguments: dict[str, Any]) -> psycopg.Connection[Any]:
    """Connect, once the server has started up."""
    pause = threading.Event()
    for _ in range(1000):
        try:
            return psycopg.connect(**arguments)
        except psycopg.OperationalError as error:
            if "starting up" not in str(error):
                raise
            pause.wait(0.01)
    pytest.fail("PostgreSQL does not start")


@pytest.fixture
def people(postgresql: dict[str, Any]) -> Iterator[Sql]:
    plugin = Sql(module="psycopg", connect=postgresql, query=QUERY)
    yield plugin
    plugin.on_stop()


def test_hash_of_postgresql_decides(people: Sql) -> None:
    assert log_in(people) == "alice"
    assert log_in(people, "\u00fcber", "plum") == "\u00fcber"
    assert log_in(people, "alice", "plum") is None
    assert [log_in(people, user) for user in INJECTIONS] == [None] * len(INJECTIONS)
    assert log_in(people) == "alice"


def test_query_of_postgresql_may_cast_quote_and_have_percent_signs(
    postgresql: dict[str, Any],
) -> None:
    query = (
        "SELECT hash::text, ':user 100%' || address -- :user\n FROM users /* :user */"
        " WHERE name::text = :user AND name LIKE 'a%' AND name = :user"
    )
    plugin = Sql(module="psycopg", connect=postgresql, query=query)
    assert log_in(plugin) == ":user 100%alice@example.org"
    plugin.on_stop()


def test_connection_that_was_cut_is_replaced(people: Sql, postgresql: dict[str, Any]) -> None:
    assert log_in(people) == "alice"
    with connected(postgresql) as admin:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        admin.execute(f"{others} WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()")
    assert log_in(people) == "alice"


def test_connections_are_kept_and_no_view_of_the_tables_with_them(
    people: Sql, postgresql: dict[str, Any]
) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: log_in(people), range(80))) == ["alice"] * 80
    with connected(postgresql) as admin:
        states = admin.execute(
            "SELECT state FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        ).fetchall()
    assert 1 <= len(states) <= 8
    assert {state for (state,) in states} == {"idle"}


def test_name_that_the_database_cannot_take_does_not_close_it_for_others(
    postgresql: dict[str, Any],
) -> None:
    query = "SELECT hash FROM users WHERE length(name) = :user::int LIMIT 1"
    plugin = Sql(module="psycopg", connect=postgresql, query=query)
    for _ in range(7):
        with pytest.raises(psycopg.DataError):
            log_in(plugin, "bob")
    assert log_in(plugin, "5") == "5"
    plugin.on_stop()


def test_database_that_is_away_is_soon_left_alone() -> None:
    address = nobody_there()
    connect = {"host": address.host, "port": address.port}
    plugin = Sql(module="psycopg", connect=connect, query=QUERY)
    for _ in range(5):
        with pytest.raises(psycopg.OperationalError, match="refused"):
            log_in(plugin)
    with pytest.raises(RemoteError, match="psycopg failed 5 times"):
        log_in(plugin)


def test_database_that_hangs_is_waited_for_no_longer_than_patience() -> None:
    with serving(listen) as address:
        connect = {"host": address.host, "port": address.port}
        patience = timedelta(milliseconds=100)
        plugin = Sql(module="psycopg", connect=connect, query=QUERY, patience=patience)
        with pytest.raises(RemoteError, match=r"no answer within 0\.1 s"):
            log_in(plugin)


@pytest.mark.parametrize("answer", [b"", b"220 mx.example.org ESMTP\r\n"])
def test_database_that_talks_nonsense_is_a_failure(answer: bytes) -> None:
    with serving(saying(answer)) as address:
        connect = {"host": address.host, "port": address.port}
        plugin = Sql(module="psycopg", connect=connect, query=QUERY)
        with pytest.raises(psycopg.OperationalError):
            log_in(plugin)


def test_calls_that_hang_are_no_more_than_so_many() -> None:
    over = threading.Event()
    bounded = BoundedCalls(Breaker("it"), timedelta(milliseconds=50), most=1)
    with pytest.raises(RemoteError, match="no answer"):
        bounded.run(over.wait)
    with pytest.raises(RemoteError, match="too many calls"):
        bounded.run(over.wait)
    over.set()
    patient = BoundedCalls(Breaker("it"), timedelta(seconds=60), most=1)
    assert [patient.run(lambda: True) for _ in range(3)] == [True] * 3


# Any module


class _Cursor:
    def __init__(self, asked: list[object]) -> None:
        self._asked = asked

    def execute(self, text: str, parameters: object) -> None:
        self._asked.append((text, parameters))

    def fetchmany(self, _size: int) -> list[object]:
        return [(cheap("apple").encode() + b"  ", b"al")]

    def close(self) -> None:
        pass


class _Connection:
    def __init__(self, asked: list[object]) -> None:
        self._asked = asked

    def cursor(self) -> _Cursor:
        return _Cursor(self._asked)

    def rollback(self) -> None:
        pass

    def close(self) -> None:
        pass


class OddModule(ModuleType):
    """A module that keeps its queries in `asked`."""

    Error = DataError = ZeroDivisionError
    paramstyle = "qmark"
    threadsafety = 1

    def __init__(self) -> None:
        super().__init__("odd")
        self.asked: list[object] = []

    def connect(self) -> _Connection:
        return _Connection(self.asked)


@pytest.fixture
def odd_module(monkeypatch: pytest.MonkeyPatch) -> OddModule:
    module = OddModule()
    monkeypatch.setitem(sys.modules, "odd", module)
    return module


@pytest.mark.parametrize(
    ("style", "text", "parameters"),
    [
        ("qmark", "a ? b ? '%:user'", ["alice", "alice"]),
        ("numeric", "a :1 b :1 '%:user'", ["alice"]),
        ("named", "a :user b :user '%:user'", {"user": "alice"}),
        ("format", "a %s b %s '%%:user'", ["alice", "alice"]),
        ("pyformat", "a %(user)s b %(user)s '%%:user'", {"user": "alice"}),
    ],
)
def test_parameters_are_in_the_style_of_the_module(
    odd_module: OddModule, style: str, text: str, parameters: object
) -> None:
    odd_module.paramstyle = style
    plugin = Sql(module="odd", query="a :user b :user '%:user'")
    assert log_in(plugin) == "al"
    assert odd_module.asked == [(text, parameters)]
    plugin.on_stop()


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"query": QUERY}, "path: expected either path"),
        ({"query": QUERY, "path": "x", "module": "sqlite3"}, "path: expected either path"),
        ({"query": QUERY, "path": "x", "connect": {"a": 1}}, "connect: expected module with it"),
        ({"query": "SELECT ':user'", "path": "x"}, "query: expected :user"),
        ({"query": "SELECT :username", "path": "x"}, "query: expected :user"),
        ({"query": QUERY, "module": "no_such_module"}, "module: No module named"),
        ({"query": QUERY, "module": "json"}, "module: json is no DB-API module"),
        ({"query": QUERY, "path": "x", "patience": "0s"}, "patience: expected more"),
    ],
)
def test_bad_option_is_named(table: dict[str, object], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"plugins\[0\]\.{problem}"):
        build(Sql, table, file="c", key="plugins[0]", base=tmp_path)


def test_module_that_threads_cannot_use_is_refused(odd_module: OddModule) -> None:
    odd_module.threadsafety = 0
    with pytest.raises(ValueError, match="module: odd cannot be used by threads"):
        Sql(module="odd", query=QUERY)


def test_check_tries_the_query_and_looks_at_who_can_read(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    path.chmod(0o644)
    info = ServerInfo("mx.example.org", path.parent, role="check", slot=0)
    Sql(path=path, query=QUERY).on_start(info)
    assert [record.getMessage() for record in caplog.records] == [
        f"path: {path} can be read by everybody (chmod o-r)"
    ]
    caplog.clear()
    os.chmod(path, 0o600)  # noqa: PTH101
    Sql(path=path, query=QUERY.replace("users", "people")).on_start(info)
    assert caplog.messages == ["query: no such table: people"]
