import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from minismtp.mailqueue.database import Arrival, Batch, QueueDatabase
from minismtp.mailqueue.queries import Filter
from minismtp.mailqueue.recipient import RecipientStatus, State

NOW = 1000.0


@pytest.fixture
def database(tmp_path: Path) -> Iterator[QueueDatabase]:
    with contextlib.closing(QueueDatabase(tmp_path / "queue.db")) as database:
        add(database, Arrival("m1", "a@one.test", 900.0, 10), "x@b.test", "y@c.test")
        add(database, Arrival("m2", "b@two.test", 950.0, 20), "z@b.test")
        yield database


def batch(arrival: Arrival, *addresses: str) -> Batch:
    statuses = {
        number: RecipientStatus(arrival.id, number, address, address.rpartition("@")[2])
        for number, address in enumerate(addresses)
    }
    return Batch({arrival.id: arrival}, {arrival.id: statuses})


def add(database: QueueDatabase, arrival: Arrival, *addresses: str) -> None:
    database.write(batch(arrival, *addresses))


def record(database: QueueDatabase, *statuses: RecipientStatus) -> None:
    batch = Batch()
    batch.record(statuses)
    database.write(batch)


def tried(
    database: QueueDatabase,
    name: str,
    number: int = 0,
    *,
    state: State = "deferred",
    reply: str = "451 no",
    host: str = "",
    again: float = 0.0,
) -> RecipientStatus:
    """Return the status of a recipient after one more attempt."""
    status = database.statuses(name)[number]
    return status.attempted(state, reply, host, at=NOW, again=again)


def addresses(database: QueueDatabase, which: Filter) -> list[str]:
    return [each.address for each in database.select(which, NOW)]


def test_a_message_is_recorded_once(database: QueueDatabase) -> None:
    record(database, tried(database, "m1"))
    add(database, Arrival("m1", "other", 1.0, 1), "q@q.test")
    first, second = database.statuses("m1")
    assert (first.address, first.attempts, first.reply) == ("x@b.test", 1, "451 no")
    assert second.address == "y@c.test"
    assert [each.sender for each in database.select(Filter(ids=("m1",)), NOW)] == ["a@one.test"] * 2


def test_messages_come_with_their_recipients_and_the_oldest_first(
    database: QueueDatabase,
) -> None:
    database.write(Batch(warned={"m2"}))
    found = [
        (arrived, warned, [each.address for each in statuses])
        for arrived, warned, statuses in database.messages()
    ]
    assert found == [(900.0, False, ["x@b.test", "y@c.test"]), (950.0, True, ["z@b.test"])]


def test_statuses_are_kept_for_each_recipient(database: QueueDatabase, tmp_path: Path) -> None:
    statuses = [
        tried(database, "m1", state="delivered", reply="250 ok", host="mx"),
        tried(database, "m1", 1, again=1060.0),
    ]
    record(database, *statuses)
    database.close()
    with contextlib.closing(QueueDatabase(tmp_path / "queue.db")) as later:
        assert later.statuses("m1") == statuses


def test_a_batch_may_have_a_message_with_its_first_attempt(database: QueueDatabase) -> None:
    new = batch(Arrival("m3", "", 1.0, 1), "x@b.test")
    new.record([new.statuses["m3"][0].attempted("deferred", "451 no", at=NOW)])
    database.write(new)
    assert database.statuses("m3")[0].reply == "451 no"


def test_the_last_status_of_a_batch_counts(database: QueueDatabase) -> None:
    first = tried(database, "m2")
    record(database, first, first.attempted("deferred", "452 nor now", at=NOW))
    [status] = database.statuses("m2")
    assert (status.attempts, status.reply) == (2, "452 nor now")


def test_a_status_of_fewer_attempts_is_too_late(database: QueueDatabase) -> None:
    first = tried(database, "m2")
    record(database, first.attempted("deferred", "452 nor now", at=NOW))
    record(database, first)
    assert database.statuses("m2")[0].reply == "452 nor now"


def test_a_status_of_a_message_that_is_gone_is_ignored(database: QueueDatabase) -> None:
    late = tried(database, "m2")
    database.write(Batch(gone={"m2"}))
    record(database, late)
    assert database.statuses("m2") == []


def test_a_large_batch_takes_no_more_statements_than_a_small_one(database: QueueDatabase) -> None:
    """Each statement takes the interpreter lock from the threads that deliver, and waits for it."""

    def statements(names: list[str]) -> int:
        told: list[str] = []
        new = Batch(warned={*names}, changed={*names})
        for name in names:
            new.update(batch(Arrival(name, "a@b.test", 1.0, 1), "x@b.test"))
        steps = [new, Batch(gone={*names})]
        database._database.set_trace_callback(told.append)  # noqa: SLF001
        for step in steps:
            database.write(step)
        database._database.set_trace_callback(None)  # noqa: SLF001
        return len({*told})  # a cascading one is reported again for each row

    assert statements([f"n{number}" for number in range(500)]) == statements(["o"])


def test_a_message_that_is_gone_leaves_no_rows(database: QueueDatabase) -> None:
    database.write(Batch(gone={"m1"}))
    assert database.statuses("m1") == []
    assert addresses(database, Filter()) == ["z@b.test"]


@pytest.mark.parametrize("state", ["held", "bounced", "failed"])
def test_what_is_decided_during_an_attempt_stands(database: QueueDatabase, state: State) -> None:
    deferred = tried(database, "m2", again=1060.0)
    delivered = tried(database, "m2", state="delivered", reply="250 ok")
    database.change(Filter(ids=("m2",)), NOW, state)
    record(database, deferred)
    assert database.statuses("m2")[0].state == state
    record(database, delivered)
    assert database.statuses("m2")[0].state == "delivered"


def test_a_batch_that_fails_changes_nothing(database: QueueDatabase) -> None:
    wrong = tried(database, "m2", reply=None)  # type: ignore[arg-type]
    with pytest.raises(sqlite3.Error):
        database.write(Batch(warned={"m1"}, statuses={"m2": {0: wrong}}))
    assert not any(warned for _, warned, _ in database.messages())


def test_two_batches_become_one() -> None:
    first, second = (RecipientStatus("m3", number, "x@y.test", "y.test") for number in range(2))
    later = first.attempted("deferred", "451 no", at=NOW)
    one = Batch(statuses={"m3": {0: first}}, closed={"d": (1.0, "no")}, gone={"m1"})
    two = Batch(statuses={"m3": {0: later, 1: second}}, closed={"d": None}, warned={"m2"})
    one.update(two)
    assert (one.closed, one.gone, one.warned) == ({"d": None}, {"m1"}, {"m2"})
    assert one.statuses == {"m3": {0: later, 1: second}}
    assert one
    assert not Batch()


@pytest.mark.parametrize(
    ("which", "found"),
    [
        (Filter(), ["x@b.test", "y@c.test", "z@b.test"]),
        (Filter(ids=("m2",)), ["z@b.test"]),
        (Filter(to_domain="B.test"), ["x@b.test", "z@b.test"]),
        (Filter(to_domain="%"), []),
        (Filter(sender="B@two.test"), ["z@b.test"]),
        (Filter(sender="@one.test"), ["x@b.test", "y@c.test"]),
        (Filter(sender=""), []),
        (Filter(older_than=60.0), ["x@b.test", "y@c.test"]),
        (Filter(state="deferred"), ["y@c.test"]),
        (Filter(state="queued"), ["x@b.test", "z@b.test"]),
        (Filter(state="held"), []),
        (Filter(reason="greylist"), ["y@c.test"]),
        (Filter(reason="_"), []),
        (Filter(to_domain="b.test", sender="@one.test"), ["x@b.test"]),
    ],
    ids=str,
)
def test_filters_choose_recipients(
    database: QueueDatabase, which: Filter, found: list[str]
) -> None:
    record(database, tried(database, "m1", 1, reply="451 Greylisted", again=1060.0))
    assert addresses(database, which) == found


def test_a_destination_that_does_not_answer_is_a_reason(database: QueueDatabase) -> None:
    database.write(Batch(closed={"b.test": (1234.0, "451 cannot connect")}))
    assert addresses(database, Filter(state="deferred")) == ["x@b.test", "z@b.test"]
    assert addresses(database, Filter(reason="connect")) == ["x@b.test", "z@b.test"]
    assert database.select(Filter(), NOW)[0].closed_until == 1234.0
    assert database.select(Filter(), NOW)[0].closed_reply == "451 cannot connect"
    database.write(Batch(closed={"b.test": None}))
    assert addresses(database, Filter(state="deferred")) == []


def test_changes_concern_only_what_was_chosen(database: QueueDatabase) -> None:
    assert database.change(Filter(to_domain="b.test"), NOW, "held", held=False) == 2
    assert database.change(Filter(), NOW, "held", held=False) == 1
    assert database.change(Filter(ids=("m1",)), NOW, "queued", held=True) == 2
    assert addresses(database, Filter(state="held")) == ["z@b.test"]
    assert [each.next for each in database.statuses("m1")] == [NOW, NOW]


def test_another_process_s_change_is_seen_once(database: QueueDatabase, tmp_path: Path) -> None:
    assert database.changed() == []
    with contextlib.closing(QueueDatabase(tmp_path / "queue.db")) as other:
        other.change(Filter(ids=("m2",)), NOW, "failed")
    assert database.changed() == ["m2"]
    assert database.changed() == []


WORDS: list[tuple[str, int, State]] = [
    # as the file has it, attempts, as it is known here
    ("queued", 0, "queued"),
    ("queued", 2, "deferred"),
    ("held", 1, "held"),
    ("returning", 1, "bounced"),
    ("removed", 0, "failed"),
    ("delivered", 1, "delivered"),
    ("failed", 1, "failed"),
]
FIRST_TABLES = """
CREATE TABLE messages (
    id TEXT PRIMARY KEY, sender TEXT NOT NULL, arrived REAL NOT NULL, size INTEGER NOT NULL,
    warned INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE recipients (
    message TEXT NOT NULL REFERENCES messages ON DELETE CASCADE, number INTEGER NOT NULL,
    address TEXT NOT NULL, destination TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'queued',
    attempts INTEGER NOT NULL DEFAULT 0, next REAL NOT NULL, tried REAL NOT NULL DEFAULT 0,
    reply TEXT NOT NULL DEFAULT '', host TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (message, number)
) WITHOUT ROWID;
CREATE TABLE closed (
    destination TEXT PRIMARY KEY, until REAL NOT NULL, reply TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE changes (message TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE INDEX arrivals ON messages (arrived);
CREATE INDEX unwarned ON messages (arrived) WHERE warned = 0;
INSERT INTO messages VALUES ('m1', 'a@b.test', 900.0, 10, 1);
"""


@pytest.fixture
def first(tmp_path: Path) -> sqlite3.Connection:
    """Return a file as the first version with this database wrote it, still open."""
    database = sqlite3.connect(tmp_path / "queue.db", isolation_level=None)
    database.executescript(FIRST_TABLES)
    database.executemany(
        "INSERT INTO recipients VALUES ('m1', ?, 'x@y.test', 'y.test', ?, ?, 7.0, 5.0, '', '')",
        [(number, word, attempts) for number, (word, attempts, _) in enumerate(WORDS)],
    )
    return database


def test_a_file_of_an_earlier_version_is_read(first: sqlite3.Connection, tmp_path: Path) -> None:
    with contextlib.closing(first), contextlib.closing(QueueDatabase(tmp_path / "queue.db")) as now:
        [(arrived, warned, statuses)] = now.messages()
        assert (arrived, warned) == (900.0, True)
        assert statuses == now.statuses("m1")
        assert [each.state for each in statuses] == [state for _, _, state in WORDS]
        assert [each.state for each in now.select(Filter(), NOW)] == ["queued", "deferred", "held"]


def test_an_earlier_version_can_read_the_file(first: sqlite3.Connection, tmp_path: Path) -> None:
    with contextlib.closing(first), contextlib.closing(QueueDatabase(tmp_path / "queue.db")) as now:
        statuses = now.statuses("m1")
        record(now, *(each._replace(attempts=each.attempts + 1) for each in statuses))
        known = {word for word, _, _ in WORDS}
        assert {word for (word,) in first.execute("SELECT state FROM recipients")} <= known
        decided: list[tuple[State, str]] = [("held", "held"), ("queued", "queued")]
        for state, word in [*decided, ("bounced", "returning")]:
            count = now.change(Filter(ids=("m1",)), NOW, state)
            found = first.execute("SELECT count(*) FROM recipients WHERE state = ?", (word,))
            assert found.fetchone()[0] >= count == 3


@pytest.mark.parametrize("octets", [b"no database" * 100, b""], ids=["rubbish", "cut"])
def test_a_damaged_file_is_an_error(database: QueueDatabase, tmp_path: Path, octets: bytes) -> None:
    database.close()
    path = tmp_path / "queue.db"
    path.write_bytes(octets or path.read_bytes()[:6000])
    with pytest.raises(sqlite3.DatabaseError):
        QueueDatabase(path, check=True)
