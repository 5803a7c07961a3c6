import json

import pytest

from minismtp.cli.queue import details, listed, listed_as_json, summary
from minismtp.mailqueue.database import Waiting
from minismtp.mailqueue.recipient import State
from minismtp.values.units import octets, span

NOW = 1_700_000_000.0
DEFERRED = Waiting(
    "m1", "me@example.org", NOW - 7500, 4900, "bob@example.net", "example.net", "deferred", 2,
    NOW + 90, NOW - 60, "451 4.7.1 greylisted", "mx.example.net", 0.0, "",
)  # fmt: skip
BEHIND = DEFERRED._replace(
    message="m2", attempts=0, tried=0.0, next=NOW - 5, reply="", host="",
    closed_until=NOW + 600, closed_reply="451 4.4.1 cannot connect",
)  # fmt: skip
HELD = BEHIND._replace(message="m3", sender="", state="held", closed_until=0.0, closed_reply="")


def test_a_list_has_a_line_for_each_recipient_and_a_summary() -> None:
    lines = listed([DEFERRED, BEHIND, HELD], NOW)
    message = "2h5m 4.8 KiB <me@example.org> bob@example.net deferred"
    assert [" ".join(line.split()) for line in lines] == [
        "ID AGE SIZE FROM TO STATE NEXT REASON",
        f"m1 {message} in 1m30s mx.example.net: 451 4.7.1 greylisted",
        f"m2 {message} in 10m 451 4.4.1 cannot connect",
        "m3 2h5m 4.8 KiB <> bob@example.net held -",
        "",
        "3 messages: 2 deferred, 1 held; 3 recipients",
    ]
    assert lines[0].index("STATE") == lines[1].index("deferred") == lines[3].index("held")


def test_details_say_when_and_why() -> None:
    text = "\n".join(details([DEFERRED, BEHIND, HELD], {"m1": {"subject": "hello"}}, NOW))
    assert "\n  subject    hello\n" in text
    assert "\n    attempts   2, the last 1m ago, 2023-11-14T22:12:20Z\n" in text
    assert "\n    reply      mx.example.net: 451 4.7.1 greylisted\n" in text
    assert "\n    next       in 1m30s, 2023-11-14T22:14:50Z\n" in text
    assert "example.net, which could not be reached: 451 4.4.1 cannot connect" in text
    assert "not before `minismtp queue release`" in text


def test_json_has_the_same() -> None:
    first, second, third = json.loads("\n".join(listed_as_json([DEFERRED, BEHIND, HELD], {}, NOW)))
    assert (first["id"], first["age"], first["size"]) == ("m1", 7500, 4900)
    [recipient] = first["recipients"]
    assert recipient["reply"] == "451 4.7.1 greylisted"
    assert recipient["next_attempt"] == "2023-11-14T22:14:50Z"
    assert second["recipients"][0]["reply"] == "451 4.4.1 cannot connect"
    assert third["recipients"][0]["next_attempt"] is None


def test_an_empty_queue_says_so() -> None:
    assert listed([], NOW) == ["the queue is empty"]
    assert listed_as_json([], {}, NOW) == ["[]"]


def test_a_filter_that_fits_nothing_does_not_call_the_queue_empty() -> None:
    assert listed([], NOW, chosen=True) == ["nothing in the queue fits"]


@pytest.mark.parametrize(
    ("states", "text"),
    [
        ([["queued"], ["queued"]], "2 messages: 2 queued; 2 recipients"),
        ([["queued", "deferred", "held"]], "1 message: 1 deferred; 3 recipients"),
        ([["held", "queued"], ["held"]], "2 messages: 1 queued, 1 held; 3 recipients"),
    ],
)
def test_a_message_is_counted_once_whatever_its_recipients_wait_for(
    states: list[list[State]], text: str
) -> None:
    found = [
        DEFERRED._replace(message=f"m{number}", state=state)
        for number, each in enumerate(states)
        for state in each
    ]
    assert summary(found) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0s"), (59.6, "1m"), (61, "1m1s"), (3600, "1h"), (90000, "1d1h"), (432000, "5d")],
)
def test_spans_have_two_units(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KiB"), (15000, "15 KiB"), (25 << 20, "25 MiB")],
)
def test_sizes_are_short(count: int, text: str) -> None:
    assert octets(count) == text
