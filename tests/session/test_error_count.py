"""The price of errors and useless commands, which an honest client does not notice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import pytest

from minismtp import Address, Defer, Envelope, Recipient, Reject, hookimpl, plugin
from minismtp.config import Limits
from minismtp.session.error_count import PeerErrors
from minismtp.testing import Dialogue, Mailroom

if TYPE_CHECKING:
    from conftest import Launch, Running

TOO_MANY: Final = "421 too many bad commands, closing connection"
GOOD: Final = "RCPT TO:<user@example.org>"


@plugin
class Picky:
    """Refuses recipients and senders by their names."""

    @hookimpl
    def on_mail(self, envelope: Envelope) -> None:
        self._judge(envelope.reverse_path)

    @hookimpl
    def on_rcpt(self, recipient: Recipient) -> None:
        self._judge(recipient.address)

    def _judge(self, address: Address | None) -> None:
        if address is not None and address.local.startswith("bad"):
            raise Reject("no such user", enhanced="5.1.1")
        if address is not None and address.local.startswith("late"):
            raise Defer("come again")


def begun(junk_commands: int = 100) -> Dialogue:
    limits = Limits(errors=10, junk_commands=junk_commands)
    dialogue = Dialogue(Picky(), Mailroom(), limits=limits)
    dialogue.send("EHLO client.example")
    return dialogue


def count_until_421(dialogue: Dialogue, *lines: str, most: int = 5000) -> int:
    """Send the lines repeatedly, and return the number of replies before the 421."""
    for number in range(most):
        if dialogue.send(lines[number % len(lines)]).replace(" 4.7.0", "") == TOO_MANY:
            assert dialogue.receiver.closing
            assert dialogue.receiver.reason == "errors"
            return number
    return most


@pytest.mark.parametrize(
    ("line", "answered"),
    [
        ("RCPT TO:<bad@example.org>", 50),
        ("RCPT TO:<bad@@example.org>", 50),  # malformed: no sender knows before it tries
        ("RCPT TO:<late@example.org>", 1000),
        ("TURN", 10),
        ("DATA", 10),
    ],
)
def test_refused_recipients_cost_less_than_other_errors(line: str, answered: int) -> None:
    dialogue = begun()
    dialogue.send("MAIL FROM:<a@client.example>")
    assert count_until_421(dialogue, line) == answered


@pytest.mark.parametrize(
    "lines",
    [
        ("NOOP",),
        ("NOOP x",),
        ("RSET",),
        ("HELP",),
        ("VRFY user",),
        ("EHLO client.example",),
        ("HELO client.example",),
        ("MAIL FROM:<a@client.example>", "RSET"),
        ("MAIL FROM:<a@client.example>", "EHLO client.example"),
        ("NOOP", "VRFY x", "RSET", "HELP"),
    ],
    ids="+".join,
)
def test_commands_that_lead_to_no_message_are_junk_and_then_errors(lines: tuple[str, ...]) -> None:
    # 100 of them, the greeting among them, then ten errors
    assert count_until_421(begun(), *lines) == 109
    assert count_until_421(begun(junk_commands=7), *lines) == 16


def test_recipients_that_lead_to_no_message_are_bounded_by_their_mail_commands() -> None:
    lines = ("MAIL FROM:<a@client.example>", GOOD, "RSET")
    assert count_until_421(begun(), *lines) < 3 * 110


def test_senders_that_are_refused_are_errors() -> None:
    assert count_until_421(begun(), "MAIL FROM:<bad@client.example>") == 50


def test_empty_chunks_are_junk() -> None:
    dialogue = begun()
    for line in ("MAIL FROM:<a@client.example>", GOOD):
        dialogue.send(line)
    assert count_until_421(dialogue, "BDAT 0") == 108


def test_message_that_is_accepted_clears_the_account() -> None:
    dialogue = begun(junk_commands=5)
    for _ in range(40):
        for line in ("TURN", "TURN", "TURN", "RSET", "MAIL FROM:<a@client.example>"):
            assert not dialogue.send(line).startswith("421")
        for number in range(20):
            assert dialogue.send(f"RCPT TO:<bad{number}@example.org>").startswith("550 5.1.1")
        for line in (GOOD, "DATA", "\r\nhi\r\n."):
            assert dialogue.send(line)[0] in "23"


def test_message_that_is_refused_clears_nothing() -> None:
    @plugin
    class Refusing:
        @hookimpl
        def on_message(self) -> None:
            raise Reject("spam")

    dialogue = Dialogue(Refusing(), Mailroom())
    dialogue.send("EHLO client.example")
    lines = ("MAIL FROM:<a@client.example>", GOOD, "DATA", "\r\nhi\r\n.")
    assert count_until_421(dialogue, *lines) == 4 * 109


def test_honest_client_with_one_bad_address_in_each_message_sends_all_at_once() -> None:
    dialogue = begun()
    for _ in range(25):
        for line in ("MAIL FROM:<a@client.example>", "RCPT TO:<bad@@x>", "RCPT TO:<bad@x.org>"):
            dialogue.send(line)
            assert dialogue.receiver.take_delay() == 0
        for line in (GOOD, "DATA", "\r\nhi\r\n."):
            assert dialogue.send(line)[0] in "23"


MISTAKES: Final = (
    "RCPT TO:<unknown@nowhere.example>",
    "RCPT TO:<bad@@example.org>",
    "RCPT TO:<@example.org>",
    "RCPT TO:<bad@>",
    "RCPT TO:<bad@exa mple.org>",
    "RCPT TO:<bad@example.org",
    "RCPT TO:<>",
    "RCPT TO:",
    "RCPT TO",
    "RCPT <bad@example.org>",
    "RCPT TO:<bad@-example-.org>",
    "RCPT TO:<bad@example..org>",
    "RCPT TO:<bad(comment)@example.org>",
    "RCPT TO:<b\u00e4d@example.org>",
    "RCPT TO:<bad\x01@example.org>",
    f"RCPT TO:<{'b' * 400}@example.org>",
    f"RCPT TO:<bad@{'e' * 300}.org>",
    f"RCPT TO:<bad@example.org> {'x' * 2000}",
    "RCPT TO:<bad@[300.1.1.1]>",
    "RCPT TO:<bad@[IPv6:::::]>",
    "RCPT TO:<bad@example.org> NOTIFY=PERHAPS",
    "RCPT TO:<bad@example.org> ORCPT=x",
    "RCPT TO:<bad@example.org> COLOUR=RED",
    'RCPT TO:<"bad@example.org>',
    "RCPT TO:Bad Name <bad@example.org>",
)


@pytest.mark.parametrize("same", [True, False], ids=["same-mistake", "different-mistakes"])
def test_sender_with_one_bad_address_in_each_of_25_messages_sends_all(
    launch: Launch, *, same: bool
) -> None:
    with launch() as server, server.connect() as client:
        client.greet()
        for mistake in MISTAKES:
            assert client.command("MAIL FROM:<a@client.example>").startswith("250")
            assert not client.command(MISTAKES[1] if same else mistake).startswith("421")
            assert client.command("RCPT TO:<user@example.org>").startswith("250")
            assert client.command("DATA").startswith("354")
            assert client.command("\r\nhi\r\n.").startswith("250")
        assert client.command("QUIT").startswith("221")
        assert len(server.mail("user")) == len(MISTAKES) == 25


def test_mail_server_of_ours_hands_over_what_it_has() -> None:
    dialogue = Dialogue(Picky(), Mailroom(), kind="lmtp")
    dialogue.send("LHLO client.example")
    dialogue.send("MAIL FROM:<a@client.example>")
    assert count_until_421(dialogue, "RCPT TO:<bad@example.org>", most=500) == 500


# Delays


def delays(dialogue: Dialogue, line: str, count: int) -> list[float]:
    found = []
    for _ in range(count):
        dialogue.send(line)
        found.append(dialogue.receiver.take_delay())
    return found


def about(values: list[float]) -> object:
    """Allow for what the peer is forgiven while the test runs."""
    return pytest.approx(values, abs=0.15)


def test_delay_grows_from_half_of_the_limit_on() -> None:
    assert delays(begun(), "TURN", 10) == about([0, 0, 0, 0, 0, 1, 2, 3, 4, 5])
    dialogue = begun()
    dialogue.send("MAIL FROM:<a@client.example>")
    found = delays(dialogue, "RCPT TO:<bad@example.org>", 50)
    assert found == about([0.0] * 25 + [0.2 * number for number in range(1, 26)])


def test_replies_to_what_is_no_error_are_not_held_back() -> None:
    dialogue = begun()
    delays(dialogue, "TURN", 9)
    dialogue.send("NOOP")
    assert dialogue.receiver.take_delay() == 0


def test_there_is_no_delay_without_the_option() -> None:
    limits = Limits(error_delay=timedelta(0))
    dialogue = Dialogue(Mailroom(), limits=limits)
    assert delays(dialogue, "TURN", 10) == [0] * 10


def test_delay_does_not_outlast_the_deadline() -> None:
    limits = Limits(error_delay=timedelta(hours=1), command_timeout=timedelta(seconds=7))
    dialogue = Dialogue(Mailroom(), limits=limits)
    assert 0 < delays(dialogue, "TURN", 6)[-1] <= 7


def test_new_session_of_the_peer_gains_nothing_but_time_and_messages_do() -> None:
    first = begun()
    service = first.service

    def again(peer: str) -> list[float]:
        return delays(Dialogue(service=service, peer=peer), "TURN", 1)

    delays(first, "TURN", 8)
    assert again("192.0.2.1") == about([4.0])
    assert again("::ffff:192.0.2.1") == about([5.0])
    assert again("192.0.2.2") == [0]
    assert Dialogue(service=service).mail("hi").startswith("250")
    assert again("192.0.2.1") == [0]


def test_account_of_a_peer_ages() -> None:
    peers = PeerErrors()
    assert peers.add(b"a", 600, 0.0) == 600
    assert peers.add(b"a", 20, 100.0) == 320
    assert peers.add(b"a", 20, 10_000.0) == 20


def test_accounts_are_bounded() -> None:
    peers = PeerErrors()
    for number in range(20_000):
        peers.add(b"%d" % number, 100, 0.0)
        peers.add(b"busy", 1, 0.0)
    assert peers.add(b"19999", 1, 0.0) == 101
    assert peers.add(b"0", 1, 0.0) == 1
    assert peers.add(b"busy", 1, 0.0) == 20_001


LIMITS: Final = """
[limits]
errors = 4
error_delay = "200ms"
command_timeout = "2s"
"""


@pytest.fixture(scope="module")
def slow(launch: Launch) -> Iterator[Running]:
    """Run a server that delays replies to errors."""
    with launch(LIMITS) as server:
        yield server


def test_reply_to_an_error_comes_late_even_in_a_group_and_the_session_ends(slow: Running) -> None:
    with slow.connect() as client:
        client.greet()
        begun_at = time.monotonic()
        client.send("TURN\r\n" * 5 + "NOOP\r\n")
        rest = client.rest()
        took = time.monotonic() - begun_at
    assert [line[:9] for line in rest.splitlines()] == ["500 5.5.2"] * 4 + ["421 4.7.0"]
    assert took >= 0.2 + 0.4  # and 0.6 for the last one, whose reply is not awaited


def test_drain_does_not_wait_for_a_delay(launch: Launch) -> None:
    limits = '[limits]\nerrors = 4\nerror_delay = "10m"\ndrain = "50s"\n'
    with launch(limits) as server, server.connect() as client:
        client.greet()
        client.send("TURN\r\n" * 3)
        server.wait_until(lambda: server.metric("commands_total", command="OTHER") == 3)
        server.process.terminate()
        rest = client.rest()
        assert rest.count("500 5.5.2") == 3
        assert "421 4.3.2" in rest
        assert server.wait() == 0
