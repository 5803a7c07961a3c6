"""Which clients have to try again, which need not, and for how long that is remembered."""

from __future__ import annotations

import itertools
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from minismtp_plugins.greylist import Greylist
from minismtp_plugins.mailboxes import Mailboxes
from redis_service import redis_running

from minismtp import (
    Address,
    Defer,
    Envelope,
    Message,
    Recipient,
    Reject,
    ServerInfo,
    Session,
    State,
    hookimpl,
    plugin,
)
from minismtp.cli.check import check
from minismtp.config import Config, PluginConfig
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.hooks.loader import PluginSet
from minismtp.services.state_redis import RedisStore
from minismtp.services.state_sqlite import SqliteStore
from minismtp.testing import Clock, Dialogue, Mailroom

MINUTE = 60
DAY = 24 * 3600
MAIL = "Subject: Hello\n\nHello.\n"
PUT_OFF = "451 4.7.1 greylisted, try again in 300 s"


class World:
    """A server for several clients one after the other, and its clock."""

    def __init__(self, *, store: State | None = None, **options: object) -> None:
        self.now = 1_000_000.0
        self.state = store or State.in_memory(clock=lambda: self.now)
        self.greylist = build(Greylist, options, file="", key="", base=Path())
        self.clock = Clock(wall=lambda: self.now)
        self.mailroom = Mailroom()
        self.after: tuple[object, ...] = ()
        self.before: tuple[object, ...] = ()

    def dialogue(self, peer: str = "192.0.2.1", login: str | None = None) -> Dialogue:
        plugins = (*self.before, self.greylist, *self.after, self.mailroom)
        return Dialogue(*plugins, peer=peer, login=login, state=self.state, clock=self.clock)

    def mail(
        self,
        peer: str = "192.0.2.1",
        sender: str = "a@client.example",
        to: tuple[str, ...] = ("user@example.org",),
        login: str | None = None,
    ) -> str:
        """Return the first refusal or the last reply, shortened if it was accepted."""
        reply = self.dialogue(peer, login).mail(MAIL, sender=sender, to=to)
        return "250" if reply.startswith("250") else reply

    def pass_on(self, peer: str = "192.0.2.1", sender: str = "a@client.example") -> None:
        """Let a client wait and try again."""
        self.mail(peer, sender)
        self.now += 5 * MINUTE
        assert self.mail(peer, sender) == "250"


def test_first_mail_is_put_off_and_passes_after_the_delay() -> None:
    world = World()
    assert world.mail() == PUT_OFF
    world.now += 299.5
    assert world.mail() == "451 4.7.1 greylisted, try again in 1 s"
    world.now += 0.5
    assert world.mail() == "250"
    assert list(world.mailroom.stored) == ["user@example.org"]


@pytest.mark.parametrize(
    ("peer", "sender", "to", "reply"),
    [
        ("192.0.2.255", "a@client.example", "user@example.org", "250"),
        ("192.0.2.1", "A@client.example", "USER@example.org", "250"),
        ("::ffff:192.0.2.9", "a@client.example", "user@example.org", "250"),
        ("192.0.3.1", "a@client.example", "user@example.org", PUT_OFF),
        ("192.0.2.1", "b@client.example", "user@example.org", PUT_OFF),
        ("192.0.2.1", "", "user@example.org", PUT_OFF),
        ("192.0.2.1", "a@client.example", "other@example.org", PUT_OFF),
    ],
)
def test_same_is_who_comes_from_the_network_with_sender_and_recipient(
    peer: str, sender: str, to: str, reply: str
) -> None:
    world = World()
    world.mail()
    world.now += 5 * MINUTE
    assert world.mail(peer, sender, (to,)) == reply


def test_network_of_ipv6_is_a_64() -> None:
    world = World()
    world.mail("2001:db8::1")
    world.now += 5 * MINUTE
    assert world.mail("2001:db8:0:0:ffff::2") == "250"
    assert world.mail("2001:db8:0:1::1") == PUT_OFF


def test_bounces_wait_as_well() -> None:
    world = World()
    assert world.mail(sender="") == PUT_OFF
    world.now += 5 * MINUTE
    assert world.mail(sender="") == "250"


def test_each_recipient_waits_for_itself() -> None:
    world = World()
    world.mail()
    world.now += 5 * MINUTE
    dialogue = world.dialogue()
    dialogue.send("EHLO client.example")
    dialogue.send("MAIL FROM:<a@client.example>")
    assert dialogue.send("RCPT TO:<new@example.org>") == PUT_OFF
    assert dialogue.send("RCPT TO:<user@example.org>")[:3] == "250"


def test_who_comes_too_late_begins_anew() -> None:
    world = World(window="1h")
    world.mail()
    world.now += 61 * MINUTE
    assert world.mail() == PUT_OFF


def test_who_has_delivered_need_not_wait_while_it_goes_on() -> None:
    world = World(deliveries=0)
    world.pass_on()
    for _ in range(4):
        world.now += 35 * DAY
        assert world.mail() == "250"
    world.now += 39 * DAY
    assert world.mail() == PUT_OFF


@pytest.mark.parametrize("deliveries", [0, 1])
def test_who_is_known_has_no_turn_to_wait_for(deliveries: int, tmp_path: Path) -> None:
    """Only one process writes at a time, so recent entries are not stored again."""
    world = World(store=State(SqliteStore(tmp_path / "db")), deliveries=deliveries)
    world.pass_on()
    writer = sqlite3.connect(tmp_path / "db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    assert world.mail() == "250"
    writer.close()
    world.state.close()


def test_who_only_asks_is_not_remembered_for_long() -> None:
    world = World()
    world.mail()
    world.now += 5 * MINUTE
    dialogue = world.dialogue()
    dialogue.send("EHLO client.example")
    dialogue.send("MAIL FROM:<a@client.example>")
    assert dialogue.send("RCPT TO:<user@example.org>")[:3] == "250"
    world.now += 3 * DAY
    assert world.mail() == PUT_OFF


def test_network_that_has_delivered_often_need_not_wait() -> None:
    world = World(deliveries=3)
    for sender in ("a@x.example", "b@x.example", "c@x.example"):
        assert world.mail(sender=sender) == PUT_OFF
        world.now += 5 * MINUTE
        assert world.mail("192.0.2.77", sender) == "250"
    assert world.mail("192.0.2.2", "new@y.example", ("new@example.org",)) == "250"
    assert world.mail("192.0.3.2", "new@y.example") == PUT_OFF
    for days, reply in ((35, "250"), (35, "250"), (39, PUT_OFF)):
        world.now += days * DAY
        assert world.mail("192.0.2.2", "another@y.example") == reply


def test_with_no_deliveries_no_network_is_let_off() -> None:
    world = World(deliveries=0)
    for sender in "abcdefgh":
        world.pass_on(sender=f"{sender}@x.example")


def test_message_that_was_refused_before_us_is_no_delivery() -> None:
    @plugin
    class Scanner:
        @hookimpl
        def on_message(self, message: Message) -> None:
            raise Reject(f"{message.size} octets of spam")

    world = World(deliveries=1)
    world.mail()
    world.now += 5 * MINUTE
    world.before = (Scanner(),)
    assert world.mail()[:3] == "550"
    world.before = ()
    world.now += 2 * DAY
    assert world.mail() == PUT_OFF


def test_unknown_recipient_is_refused_at_once() -> None:
    world = World()
    world.after = (Mailboxes(domains=["example.org"], users=["user"]),)
    assert world.mail(to=("nobody@example.org",)) == "550 5.1.1 no such mailbox"
    assert world.mail() == PUT_OFF


@pytest.mark.parametrize("peer", ["127.0.0.1", "10.1.2.3", "fe80::1", "unix", "::ffff:10.0.0.1"])
def test_own_networks_need_not_wait(peer: str) -> None:
    assert World().mail(peer) == "250"


def test_networks_that_are_named_need_not_wait() -> None:
    world = World(networks=["192.0.2.0/28"])
    assert [world.mail(f"192.0.2.{last}") for last in (15, 16)] == ["250", PUT_OFF]
    assert world.mail("127.0.0.1") == PUT_OFF


def test_users_need_not_wait() -> None:
    assert World().mail(login="alice") == "250"


SESSION: Final = Session(id="s", listener="", kind="mx", hostname="", peer="192.0.2.1")
USER: Final = Recipient(Address("user", "example.org"))


def comes_again(greylist: Greylist) -> bool:
    """Return whether the plugin alone accepts a message."""
    envelope = Envelope(
        id="s.1", reverse_path=None, listener="", peer="", helo="", login=None, arrived=0
    )
    try:
        greylist.on_routed(SESSION, envelope, USER)
    except Defer:
        return False
    greylist.on_message(SESSION, envelope)
    return True


@given(st.lists(st.integers(1, 70), max_size=30))
def test_passing_depends_on_the_first_time_and_the_last_message(pauses: list[int]) -> None:
    world = World(delay="10m", window="1h", remember="100m", deliveries=0)
    server = ServerInfo("mx", Path(), "worker", 0, state=world.state, wall=world.clock.wall)
    world.greylist.on_start(server)
    first, until, noted = 0, 0, 0
    for now in itertools.accumulate(pauses):  # minutes
        world.now = 1_000_000.0 + now * MINUTE
        if now >= until:
            first, until, noted = now, now + 60, 0
        passes = bool(noted) or now - first >= 10
        assert comes_again(world.greylist) == passes
        if passes and (not noted or now - noted > 10):
            noted, until = now, now + 110
    world.state.close()


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "store with the same clock"])
@pytest.mark.parametrize("ahead", [DAY, 3650 * DAY], ids=["a day", "ten years"])
def test_clock_that_was_ahead_for_a_while_keeps_nobody_waiting(ahead: float, kept: bool) -> None:
    world = World(store=State.in_memory() if kept else None, deliveries=1)
    world.now += ahead
    assert world.mail() == PUT_OFF
    world.pass_on("198.51.100.1")
    world.now -= ahead
    assert world.mail() == PUT_OFF
    world.now += 5 * MINUTE
    assert world.mail() == "250"
    world.now += 40 * DAY  # an entry from the future is written again, and counts
    world.mail("198.51.100.1")
    world.now += 5 * MINUTE
    assert world.mail("198.51.100.1") == "250"
    assert world.mail("198.51.100.1", sender="new@client.example") == "250"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"delay": "0s"}, 'delay: expected more than "0s"'),
        ({"window": "5m"}, "window: expected more than delay, else no client could retry in time"),
        ({"remember": "1d"}, "remember: expected at least as long as window"),
        ({"deliveries": -1}, "deliveries: expected a number of messages, or 0 for never"),
    ],
)
def test_times_that_make_no_sense_are_a_mistake(options: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError) as fault:
        build(Greylist, options, file="c.toml", key="plugins[0]", base=Path())
    assert str(fault.value) == f"c.toml: plugins[0].{problem}"


def test_host_that_has_seen_a_client_tells_the_others_by_redis(
    require_program: Callable[[str], str], tmp_path: Path
) -> None:
    with redis_running(require_program("redis-server"), tmp_path) as server:
        one = World(store=State(RedisStore(server.url)), deliveries=1)
        other = World(store=State(RedisStore(server.url)), deliveries=1)
        assert one.mail() == PUT_OFF
        other.now += 200
        assert other.mail() == "451 4.7.1 greylisted, try again in 100 s"
        other.now += 100
        assert other.mail() == "250"
        assert one.mail(sender="new@client.example") == "250"
        one.state.close()
        other.state.close()


@pytest.mark.parametrize(
    ("policy", "reply"),
    [("defer", "451 4.3.0 temporary failure, try again later"), ("ignore", "250")],
)
@pytest.mark.usefixtures("capfd")
def test_without_its_store_it_follows_its_policy(
    policy: Literal["defer", "ignore"],
    reply: str,
    require_program: Callable[[str], str],
    tmp_path: Path,
) -> None:
    with redis_running(require_program("redis-server"), tmp_path) as server:
        state = State(RedisStore(server.url))
        table = PluginConfig(use="greylist", on_error=policy)
        greylist = Greylist()
        assert Dialogue((table, greylist), Mailroom(), state=state).mail(MAIL) == PUT_OFF
        server.kill()
        answer = Dialogue((table, greylist), Mailroom(), state=state).mail(MAIL)
        assert answer.startswith(reply)
        state.close()


def test_check_sees_through_it_whether_the_server_is_an_open_relay(tmp_path: Path) -> None:
    text = """
state_directory = "."
hostname = "mx.example.org"
[[listeners]]
name = "smtp"
address = "127.0.0.1:0"
tls = "none"
[[plugins]]
use = "greylist"
[[plugins]]
use = "mailboxes"
domains = ["example.org"]
[[plugins]]
use = "maildir"
path = "mail/{local}"
"""
    assert list(check(Config.parse(text, tmp_path / "c.toml"))) == []
    assert list(tmp_path.iterdir()) == []


def test_configuration_of_the_page_is_sound(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "plugins" / "greylist.md"
    tables = re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    listener = '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\ntls = "none"\n'
    config = Config.parse("\n".join([*tables, listener]), tmp_path / "c.toml")
    [greylist] = PluginSet.load(config).order()["on_routed"]
    assert greylist == "greylist"
    assert config.state.url
