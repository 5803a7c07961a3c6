"""Which new messages stay open for the delivery that follows."""

from collections.abc import Callable
from unittest.mock import Mock

import pytest
from fakes import Clock

from minismtp.mail.content import Content
from minismtp.mail.message import Message
from minismtp.mail.queue_entry import QueueEntry
from minismtp.mailqueue import manager as module
from minismtp.mailqueue.manager import QueueManager

Keep = Callable[[int, int], None]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(0.0)
    monkeypatch.setattr(module, "time", Mock(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def spool() -> Mock:
    return Mock(open=Mock(return_value="read again"))


@pytest.fixture
def manager(spool: Mock, clock: Clock) -> QueueManager:
    del clock
    return QueueManager(spool, Mock(), Mock(), Mock(), Mock(), Mock(), Mock())


@pytest.fixture
def keep(manager: QueueManager) -> Keep:
    def keep(number: int, size: int) -> None:
        name = f"m.{number}"
        entry = QueueEntry(
            id=name, sender="", listener="", peer="", helo="", login=None, arrived=0.0, targets=()
        )
        manager.keep_open(entry, Message(name, Content.of(bytes(size))))

    return keep


def still_open(manager: QueueManager, spool: Mock, numbers: range) -> int:
    """Open messages, and return how many of them are not read again."""
    for number in numbers:
        assert manager.open(f"m.{number}")
    return len(numbers) - int(spool.open.call_count)


@pytest.mark.parametrize(("size", "number"), [(8192, 2000), (8193, 50)], ids=["small", "large"])
def test_a_number_of_messages_stays_open(
    manager: QueueManager, spool: Mock, keep: Keep, size: int, number: int
) -> None:
    for each in range(2100):
        keep(each, size)
    assert still_open(manager, spool, range(2100)) == number


def test_messages_that_nobody_delivers_make_room(
    manager: QueueManager, spool: Mock, keep: Keep, clock: Clock
) -> None:
    for each in range(2000):
        keep(each, 10)
    clock.now = 9.0
    keep(2000, 10)
    clock.now = 11.0
    for each in range(2001, 2401):
        keep(each, 10)
    assert still_open(manager, spool, range(2001)) == 0
    spool.open.reset_mock()
    assert still_open(manager, spool, range(2001, 2401)) == 400


def test_a_message_that_was_delivered_makes_room(
    manager: QueueManager, spool: Mock, keep: Keep
) -> None:
    for each in range(3000):
        keep(each, 10)
        assert still_open(manager, spool, range(each, each + 1)) == 1
