"""The status page, and `minismtp top`, which shows the same in a terminal."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from minismtp.cli.main import main
from minismtp.mailqueue.database import Waiting
from minismtp.mailqueue.reasons import WaitingGroup, reasons
from minismtp.server.figures import HookFigures, Overview, overview
from minismtp.server.history import History
from minismtp.server.open_sessions import Survey
from minismtp.server.status_page import Status, render

if TYPE_CHECKING:
    from conftest import Configure, Running, Start

SPAM_FLAG = """\
from minismtp import Reject, hookimpl, plugin

@plugin
class SpamFlag:
    @hookimpl
    def on_message(self, message):
        if message.headers.get("X-Spam"):
            raise Reject("message refused as spam")
"""


RELAY = """\
[[plugins]]
use = "relay"
networks = ["127.0.0.0/8"]
"""


@pytest.fixture
def busy(configure: Configure, start: Start) -> Running:
    """Start a server that has stored a message and refused another."""
    config = configure('[[plugins]]\nuse = "spam_flag"\n')
    (config.parent / "local_plugins" / "spam_flag.py").write_text(SPAM_FLAG)
    server = start(config)
    for content in ("Subject: x\r\n\r\nx", "X-Spam: yes\r\n\r\nx"):
        with server.connect() as client:
            client.begin_data("user@example.org")
            client.command(f"{content}\r\n.")
            client.command("QUIT")

    def counted() -> bool:
        """Return whether the workers and the process that delivers reported their figures."""
        text = server.http("/metrics")[1]
        return server.metric("messages_total") == 2 and 'state="held"' in text

    server.wait_until(counted)
    return server


def shown(
    figures: Overview, history: History, found: Survey | None = None, now: float = 0.0
) -> str:
    """Return the page of a server."""
    return render(
        Status(
            hostname="mx.example",
            figures=figures,
            history=history,
            found=found or Survey([], []),
            now=now,
        )
    )


def text_of(page: str) -> str:
    """Return the text between the tags, with a blank for each tag."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


def test_page_shows_sessions_queue_verdicts_and_hooks(busy: Running) -> None:
    with busy.connect() as client:
        client.greet()
        client.command("MAIL FROM:<a@client.example>")

        busy.wait_until(lambda: "Sessions (1 open)" in busy.http("/")[1])
        status, page = busy.http("/")
    assert status == 200
    text = text_of(page)
    assert re.search(r" stored 1 ", text)
    assert re.search(r" rejected 1 ", text)
    assert re.search(r" Plugin none answer reject errors last hour ", text)
    assert re.search(r" spam_flag 1 0 1 0 0 ", text)
    assert re.search(r" maildir\.deliver 1 [\d.]+ [\d.,]+ ≤ [\d.,]+ ", text)
    assert re.search(r" 0 held ", text)
    assert re.search(r" content policy spam_flag 1 ", text)
    assert re.search(r" up \d", text)
    assert " All is well: " in text
    assert " no message waits for delivery " in text
    assert " 127.0.0.1 mail waits for the client " in text
    assert page.count('<section class="flow">') == 4


def test_page_loads_nothing_and_runs_nothing(busy: Running) -> None:
    page = busy.http("/")[1]
    assert not re.search(r"<script|<link|<img|<iframe|src=|href=|url\(|@import|https?:", page)


def test_page_escapes_what_peers_chose(busy: Running) -> None:
    with busy.connect() as client:
        client.reply()
        client.command("EHLO [<script>alert(1)</script>]")
        client.command("HELO <img/src=x>&amp;\"'")
        page = busy.wait_until(lambda: "Sessions (1 open)" in (p := busy.http("/")[1]) and p)
    assert page
    assert "<script" not in page
    assert "<img" not in page


def test_text_of_a_session_is_escaped() -> None:
    session = {
        "id": "1",
        "peer": "<peer>",
        "listener": "<l>",
        "state": "ready",
        "age": 1.0,
        "login": "<u>&",
        "helo": "<h>",
        "plugin": "<x>",
        "hook": "x",
        "seconds": 1.0,
    }
    page = shown(Overview(), History(Overview), Survey([session], ["<problem>"]))
    assert "&lt;u&gt;&amp;" in page
    assert not re.search(r"<peer>|<l>|<u>|<h>|<x>|<problem>", page)


def test_plots_show_rates() -> None:
    totals = iter([0.0, 30.0, 90.0])
    history = History(lambda: Overview(connections=next(totals)))
    for at in (0.0, 15.0, 30.0):
        history.look(at)
    assert history.rates("connections") == [2.0, 4.0]
    page = shown(Overview(connections=90.0), history, Survey([], []), now=3630.0)
    assert " 4.0 per second 90 since the start 4.0 " in text_of(page)
    assert " 01:00 01:00 UTC " in text_of(page)
    assert '<polyline points="0.0,24.0 240.0,2.0"/>' in page


def test_rates_are_read_while_points_are_added() -> None:
    """Without the interpreter lock, a deque can change while a list is made from it."""
    history = History(Overview)
    over = threading.Event()

    def add() -> None:
        for at in range(1, 20_000):
            history.look(float(at))
        over.set()

    thread = threading.Thread(target=add)
    thread.start()
    while not over.is_set():
        assert set(history.rates("connections")) <= {0.0}
    thread.join()
    assert len(history.rates("connections")) == 240


def test_figures_are_zero_where_nothing_is_counted() -> None:
    found = overview(CollectorRegistry().collect())
    assert found == Overview()
    assert found.slowest() == []


def test_top_shows_the_same_once(busy: Running, capsys: pytest.CaptureFixture[str]) -> None:
    port = busy.wait_for_log(r" serving metrics address=127\.0\.0\.1:(\d+)")[1]
    with busy.connect() as client:
        client.greet()
        command = ["top", "--once", "--interval", "0.1", "--config", str(busy.config)]
        assert main([*command, "--url", f"http://127.0.0.1:{port}"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^connections \d+\.\d/s  messages 0\.0/s  refused 0\.0/s", text, re.MULTILINE)
    assert re.search(r"^queue: .*held 0", text, re.MULTILINE)
    assert re.search(r"^spam_flag +-$", text, re.MULTILINE)
    assert re.search(r"^[0-9a-f]{12}  127\.0\.0\.1  smtp ", text, re.MULTILINE)
    assert "\x1b" not in text


def test_top_of_a_server_that_does_not_run_is_a_failure(
    configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "http://127.0.0.1:9"
    assert main(["top", "--once", "--url", url, "--config", str(configure())]) == 1
    assert "Connection refused" in capsys.readouterr().err


def test_top_needs_an_address(configure: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    config = configure(metrics='[metrics]\naddress = ""\n')
    assert main(["top", "--once", "--config", str(config)]) == 1
    assert "there is no [metrics] address in the configuration" in capsys.readouterr().err


def test_empty_page_says_so_in_words() -> None:
    text = text_of(shown(Overview(), History(Overview)))
    for words in (
        "All is well: ",
        "the plot begins in a minute",
        "no message waits for delivery",
        "no message came yet",
        "nothing was refused",
        "no plugin was called",
        "no hook was called",
        "nobody logged in",
        "no client is connected",
    ):
        assert f" {words}" in text


def test_page_shows_what_is_wrong_first() -> None:
    figures = Overview(problems={"disk"}, reload_ok=False, certificates={"smtp": -3600.0})
    figures.errors["spam"] = 3.0
    text = text_of(shown(figures, History(Overview)))
    assert "All is well" not in text
    for words in ("disk: see /readyz", "the certificate of smtp expired 1h ago"):
        assert text.index(words) < text.index("the last reload failed")
    assert "the plugin spam failed 3 times in the last hour" in text


def test_head_of_the_queue_is_shown_with_reasons() -> None:
    held = Waiting(
        "m1", "a@b.example", 0.0, 9, "x@dead.example", "dead.example", "held", 1,
        0.0, 0.0, "451 4.4.1 cannot connect", "", 0.0, "",
    )  # fmt: skip
    fresh = held._replace(message="m2", state="queued", reply="", next=90.0)
    status = Status(
        hostname="mx.example",
        figures=Overview(queue={"queued": 1.0, "held": 1.0, "active": 0.0}, oldest=60.0),
        history=History(Overview),
        found=Survey([], []),
        now=60.0,
        waiting=[held, fresh],
    )
    page = render(status)
    text = text_of(page)
    assert " 1 queued &middot; 1 held &middot; 0 active &middot; the oldest waits for 1m " in text
    assert " x@dead.example held 1m when released 451 4.4.1 cannot connect m1 " in text
    assert " x@dead.example queued 1m in 30s not tried yet m2 " in text
    assert '<td class="warn short" data-name="State">held</td>' in page


def test_reasons_of_the_queue_are_grouped_and_bounded() -> None:
    groups = [WaitingGroup(False, f"451 4.4.1 {'x' * n}", "a.test", 9 - n, 50.0) for n in range(9)]
    groups += [
        WaitingGroup(False, f"450 4.2.0 <u{n}@d{n}.test>: try <later>", f"d{n}.test", 20, n)
        for n in range(5)
    ]
    waiting = Waiting(
        "m1", "a@b.example", 0.0, 9, "x@d.test", "d.test", "queued", 0, 0.0, 0.0, "", "", 0.0, ""
    )
    status = Status(
        hostname="mx.example",
        figures=Overview(),
        history=History(Overview),
        found=Survey([], []),
        now=60.0,
        waiting=[waiting],
        reasons=reasons(groups),
    )
    page = render(status)
    text = text_of(page)
    assert (
        " Why mail waits Reason Destinations Recipients Oldest 450 4.2.0 &lt;\u2026&gt;: " in text
    )
    assert (
        " try &lt;later&gt; d0.test, d1.test, d2.test and 2 more 100 1m 451 4.4.1 a.test 9 10s"
        in text
    )
    assert " and 2 rarer reasons The oldest recipients " in text
    assert "are counted" not in text
    many = replace(status, reasons=reasons([WaitingGroup(True, "", "a.test", 10_000, 0.0)]))
    text = text_of(render(many))
    assert " held a.test 10,000 1m only the oldest 10,000 recipients are counted " in text


def test_reason_of_mail_that_waits_is_read_from_the_queue(
    configure: Configure, start: Start
) -> None:
    server = start(configure('[outbound]\nsmarthost = "127.0.0.1:9"\n' + RELAY))
    for domain in ("one.example", "two.example"):
        with server.connect() as client:
            client.begin_data(f"user@{domain}")
            client.command("Subject: x\r\n\r\nx\r\n.")

    def grouped() -> bool:
        text = text_of(server.http("/")[1])
        why = r"Why mail waits .* 451 4\.4\.1 cannot connect to \S+ Connection refused"
        return bool(re.search(rf"{why} via \S+ 2 \S+ The oldest", text))

    server.wait_until(grouped)


def test_commands_in_sentences_look_like_commands() -> None:
    page = shown(Overview(reload_ok=False), History(Overview))
    assert "goes on: run <code>minismtp check</code></li>" in page


def test_errors_of_plugins_have_a_colour() -> None:
    figures = Overview(verdicts={"spam": {"reject": 1.0}, "good": {"reject": 1.0}})
    figures.errors["spam"] = 2.0
    page = shown(figures, History(Overview))
    assert '<td class="n bad short" data-name="errors">2</td>' in page
    assert '<td class="n short" data-name="errors">0</td>' in page


def test_hooks_are_sorted_by_the_sum_and_show_the_slow_calls() -> None:
    figures = Overview()
    figures.hooks["often", "on_rcpt"] = HookFigures(1000.0, 2.0, {0.005: 1000.0, inf: 1000.0})
    figures.hooks["rare", "on_rcpt"] = HookFigures(2.0, 1.0, {0.005: 1.0, inf: 2.0})
    text = text_of(shown(figures, History(Overview)))
    assert (
        " Hook Calls Sum, s Mean, ms 99 %, ms"
        " often.on_rcpt 1,000 2.0 2.0 \u2264 5.0 rare.on_rcpt 2 1.0 500.0 &gt; 30,000 " in text
    )


def test_server_without_a_queue_or_a_disk_says_so() -> None:
    text = text_of(shown(Overview(), History(Overview)))
    assert " the process that delivers has not reported yet " in text
    assert " the state directory is not there " in text


def test_errors_of_the_last_hour_are_those_since_its_first_point() -> None:
    history = History(lambda: Overview(errors={"spam": 5.0}))
    history.look(0.0)
    assert history.errors(Overview(errors={"spam": 7.0, "new": 1.0})) == {"spam": 2.0, "new": 1.0}


def test_cells_of_wide_tables_name_their_columns_on_a_narrow_screen() -> None:
    figures = Overview(verdicts={"spam": {"reject": 1.0}})
    page = shown(figures, History(Overview))
    for name in ("reject", "errors", "last hour"):
        assert f'data-name="{name}"' in page
    assert '<table class="brief">' in page
