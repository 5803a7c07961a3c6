"""What counts towards a limit, for which client, and that it is exact on all listeners."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal

import pytest
from minismtp_plugins.mailboxes import Mailboxes
from minismtp_plugins.rate_limit import RateLimit
from redis_service import RedisServer, eventually, redis_running

from minismtp import Reject, State, hookimpl, plugin
from minismtp.config import Config, PluginConfig
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.hooks.loader import PluginSet
from minismtp.services.state_redis import RedisStore
from minismtp.testing import Dialogue, Mailroom

if TYPE_CHECKING:
    from conftest import Launch, Running

ROOT: Final = Path(__file__).parents[2]
MAIL: Final = "Subject: Hello\n\nHello.\n"


class World:
    """A server for several clients one after the other, and its clock."""

    def __init__(self, *limits: dict[str, object], **options: object) -> None:
        self.now = 1_000_000.0
        self.state = State.in_memory(clock=lambda: self.now)
        table = {"limits": list(limits), **options}
        self.plugin = build(RateLimit, table, file="c.toml", key="plugins[0]", base=Path())
        self.others: tuple[object, ...] = (Mailroom(),)

    def dialogue(self, peer: str = "192.0.2.1", login: str | None = None) -> Dialogue:
        dialogue = Dialogue(
            self.plugin, *self.others, peer=peer, login=login, tls=True, state=self.state
        )
        dialogue.send("EHLO client.example")
        return dialogue

    def mail(
        self,
        peer: str = "192.0.2.1",
        login: str | None = None,
        sender: str = "a@client.example",
        recipients: int = 1,
        size: int = 100,
        *,
        declared: int | None = None,
    ) -> str:
        """Return the first refusal or the last reply, only its code if the message was accepted."""
        dialogue = self.dialogue(peer, login)
        stated = "" if declared is None else f" SIZE={declared}"
        commands = [f"MAIL FROM:<{sender}>{stated}"]
        commands += [f"RCPT TO:<user{number}@example.org>" for number in range(recipients)]
        for command in [*commands, "DATA"]:
            reply = dialogue.send(command)
            if reply[0] not in "23":
                return reply
        content = "Subject: Hello\r\n\r\n".ljust(size - 2, "x") + "\r\n"
        reply = dialogue.send_raw(f"{content}.\r\n".encode()).decode()
        return re.sub(r" \(id .*", "", reply).strip() if reply[0] != "2" else reply[:3]


def put_off(reply: str) -> str:
    """Return the reply without its seconds, which are within an hour."""
    match = re.fullmatch(r"451 4\.7\.1 (.*), try again in (\d+) s", reply)
    assert match is not None, reply
    assert 3600 <= int(match[2]) <= 3780
    return match[1]


def test_peer_may_send_so_many_messages_an_hour() -> None:
    world = World({"by": "peer", "messages": "2/1h"})
    assert [world.mail() for _ in range(2)] == ["250", "250"]
    assert put_off(world.mail()) == "too many messages from 192.0.2.1"
    assert world.mail("192.0.2.2") == "250"
    world.now += 3600 + 180
    assert [world.mail() for _ in range(2)] == ["250", "250"]


@pytest.mark.parametrize(
    ("by", "first", "same", "other", "name"),
    [
        ("peer", {}, {"sender": "b@x.example"}, {"peer": "192.0.2.2"}, "192.0.2.1"),
        ("peer", {"peer": "::ffff:192.0.2.1"}, {}, {"peer": "192.0.2.2"}, "192.0.2.1"),
        ("network", {}, {"peer": "192.0.2.2"}, {"peer": "192.0.3.1"}, "192.0.2.0/24"),
        (
            *("network", {"peer": "2001:db8::1"}, {"peer": "2001:db8::1:2:3:4"}),
            *({"peer": "2001:db8:0:1::1"}, "2001:db8::/64"),
        ),
        ("login", {"login": "al"}, {"login": "al", "peer": "::2"}, {"login": "bo"}, "al"),
        (
            *("sender_domain", {}, {"sender": "b@CLIENT.example", "peer": "192.0.9.1"}),
            *({"sender": "a@sub.client.example"}, "client.example"),
        ),
        ("sender_domain", {}, {"login": "alice"}, {"sender": "a@x.example"}, "client.example"),
    ],
)
def test_limit_is_for_each(
    by: str, first: dict[str, Any], same: dict[str, Any], other: dict[str, Any], name: str
) -> None:
    world = World({"by": by, "messages": "1/1h"})
    assert world.mail(**first) == "250"
    assert put_off(world.mail(**{**first, **same})) == f"too many messages from {name}"
    assert world.mail(**{**first, **other}) == "250"


@pytest.mark.parametrize(
    ("by", "whose"),
    [
        ("peer", {"login": "alice"}),
        ("network", {"login": "alice"}),
        ("login", {}),
        ("sender_domain", {"sender": ""}),
        ("peer", {"peer": "unix"}),
        ("peer", {"peer": "127.0.0.1"}),
        ("network", {"peer": "10.0.0.1"}),
        ("sender_domain", {"peer": "::1"}),
    ],
)
def test_limit_is_not_for(by: str, whose: dict[str, Any]) -> None:
    world = World({"by": by, "messages": "1/1h"})
    assert [world.mail(**whose) for _ in range(3)] == ["250"] * 3


def test_networks_that_are_named_are_not_counted() -> None:
    world = World({"by": "peer", "messages": "1/1h"}, networks=["192.0.2.0/28"])
    assert [world.mail("192.0.2.15") for _ in range(2)] == ["250", "250"]
    assert [world.mail("192.0.2.16")[:3] for _ in range(2)] == ["250", "451"]
    assert [world.mail("127.0.0.1")[:3] for _ in range(2)] == ["250", "451"]


def test_user_from_a_network_that_is_not_counted_is_counted() -> None:
    """A stolen password has the same limit through a webmail program on this host."""
    world = World({"by": "login", "messages": "1/1h"})
    assert [world.mail("127.0.0.1", "alice")[:3] for _ in range(2)] == ["250", "451"]


def test_accepted_recipients_count_and_what_is_refused_takes_none() -> None:
    world = World({"by": "login", "recipients": "10/1h"})
    assert world.mail(login="alice", recipients=6) == "250"
    assert put_off(world.mail(login="alice", recipients=5)) == "too many recipients from alice"
    assert world.mail(login="alice", recipients=4) == "250"


def test_recipients_that_never_fit_go_with_another_copy() -> None:
    world = World({"by": "login", "recipients": "3/1h"})
    assert world.mail(login="alice", recipients=4) == (
        "452 4.5.3 too many recipients for one message"
    )
    assert world.mail(login="alice", recipients=3) == "250"


def test_octets_count_as_they_come() -> None:
    world = World({"by": "peer", "bytes": "1000/1h"})
    assert world.mail(size=600) == "250"
    assert put_off(world.mail(size=401)) == "too many bytes from 192.0.2.1"
    assert world.mail(size=400) == "250"
    assert world.mail(size=100)[:3] == "451"


def test_octets_that_are_declared_are_charged_before_they_come() -> None:
    world = World({"by": "peer", "bytes": "1000/1h"})
    assert world.mail(size=600, declared=600) == "250"
    dialogue = world.dialogue()
    dialogue.send("MAIL FROM:<a@b.example> SIZE=401")
    dialogue.send("RCPT TO:<user@example.org>")
    assert put_off(dialogue.send("DATA")) == "too many bytes from 192.0.2.1"


@pytest.mark.parametrize("declared", [0, 100, 600])
def test_who_declares_less_is_charged_the_rest(declared: int) -> None:
    world = World({"by": "peer", "bytes": "1000/1h"})
    assert world.mail(size=600, declared=declared) == "250"
    assert world.mail(size=401)[:3] == "451"
    assert world.mail(size=400) == "250"


@pytest.mark.parametrize("declared", [None, 1001])
def test_message_that_never_fits_is_refused_for_good(declared: int | None) -> None:
    world = World({"by": "peer", "bytes": "1000/1h"})
    assert world.mail(size=1001, declared=declared) == "552 5.3.4 bytes are more than 1000/1h"
    assert world.mail(size=1000) == "250"


def test_limits_are_charged_together_or_not_at_all() -> None:
    world = World(
        {"by": "peer", "messages": "2/1h", "recipients": "9/1h"},
        {"by": "network", "messages": "3/1h"},
    )
    assert [world.mail() for _ in range(2)] == ["250", "250"]
    assert put_off(world.mail()) == "too many messages from 192.0.2.1"
    assert world.mail("192.0.2.2") == "250"
    assert put_off(world.mail("192.0.2.3")) == "too many messages from 192.0.2.0/24"
    world.now += 3600 + 180
    assert world.mail("192.0.2.3", recipients=9) == "250"


def test_one_thing_may_have_limits_for_several_spans() -> None:
    world = World({"by": "peer", "messages": "1/1m"}, {"by": "peer", "messages": "2/1h"})
    assert world.mail() == "250"
    assert re.search(r"again in 6[0-3] s", world.mail())
    world.now += 63
    assert world.mail() == "250"
    world.now += 63
    assert re.search(r"again in 3[456][0-9]{2} s", world.mail())


def test_what_ends_before_data_costs_nothing() -> None:
    world = World({"by": "peer", "messages": "1/1h", "recipients": "1/1h"})
    world.others = (Mailboxes(domains=["example.org"], users=["user"]), Mailroom())
    dialogue = world.dialogue()
    for _ in range(3):
        dialogue.send("MAIL FROM:<a@b.example>")
        assert dialogue.send("RCPT TO:<guess@example.org>")[:3] == "550"
        assert dialogue.send("RCPT TO:<user@example.org>")[:3] == "250"
        dialogue.send("RSET")
    assert dialogue.mail(MAIL, to=("user@example.org",))[:3] == "250"


def test_what_is_refused_for_its_content_costs() -> None:
    @plugin
    class Scanner:
        @hookimpl
        def on_message(self) -> None:
            raise Reject("spam")

    world = World({"by": "peer", "messages": "1/1h"})
    world.others = (Scanner(), Mailroom())
    assert world.mail() == "550 5.7.1 spam"
    assert put_off(world.mail()) == "too many messages from 192.0.2.1"


def test_two_plugins_count_for_themselves() -> None:
    state = State.in_memory()
    limits = {"limits": [{"by": "peer", "messages": "1/1h"}]}
    both = [
        (PluginConfig(use="rate_limit", name=name), build(RateLimit, limits, **PLACE))
        for name in ("one", "two")
    ]
    assert Dialogue(*both, Mailroom(), state=state).mail(MAIL)[:3] == "250"


PLACE: Final[dict[str, Any]] = {"file": "c.toml", "key": "plugins[0]", "base": Path()}


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ([], "limits: expected at least one"),
        ([{"by": "peer"}], "limits[0].by: expected some of messages, recipients and bytes"),
        ([{"by": "peer", "messages": "100"}], 'limits[0].messages: expected a rate such as "100/'),
        ([{"by": "peer", "messages": 100}], 'limits[0].messages: expected a rate such as "100/1h"'),
        ([{"by": "peer", "bytes": "0/1h"}], 'limits[0].bytes: expected a rate such as "100/1h"'),
        ([{"by": "peer", "bytes": "1/0s"}], 'limits[0].bytes: expected a rate such as "100/1h"'),
        ([{"by": "host", "messages": "1/1h"}], "limits[0].by: "),
        (
            [{"by": "peer", "messages": "9/1h"}, {"by": "peer", "messages": "5/60m"}],
            "limits: messages by peer has two limits for one span",
        ),
    ],
)
def test_limit_that_makes_no_sense_is_a_mistake(
    limits: list[dict[str, object]], problem: str
) -> None:
    with pytest.raises(ConfigError) as fault:
        build(RateLimit, {"limits": limits}, **PLACE)
    assert str(fault.value).startswith(f"c.toml: plugins[0].{problem}")


def test_configuration_of_the_page_is_sound(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "plugins" / "rate_limit.md").read_text()
    tables = re.findall(r"^```toml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    listeners = [
        f'[[listeners]]\nname = "{name}"\naddress = "127.0.0.1:0"\ntls = "none"\n'
        for name in ("smtp", "submission")
    ]
    config = Config.parse("\n".join([*tables, *listeners]), tmp_path / "c.toml")
    assert PluginSet.load(config).order()["on_data"] == ["users", "strangers"]


# Whole servers


@pytest.mark.parametrize(("policy", "code"), [("defer", "451 4.3.0"), ("ignore", "250")])
@pytest.mark.usefixtures("capfd")
def test_without_its_store_it_follows_its_policy(
    policy: Literal["defer", "ignore"],
    code: str,
    require_program: Callable[[str], str],
    tmp_path: Path,
) -> None:
    with redis_running(require_program("redis-server"), tmp_path) as server:
        state = State(RedisStore(server.url))
        table = PluginConfig(use="rate_limit", on_error=policy)
        limited = build(RateLimit, {"limits": [{"by": "peer", "messages": "1/1h"}]}, **PLACE)
        replies: list[str] = []
        for _ in range(3):
            if len(replies) == 2:
                server.kill()
            dialogue = Dialogue((table, limited), Mailroom(), state=state)
            replies.append(dialogue.mail(MAIL))
        assert [reply[:3] for reply in replies[:2]] == ["250", "451"]
        assert replies[2].startswith(code)
        state.close()


TABLES: Final = """
[[plugins]]
use = "rate_limit"
networks = []

[[plugins.limits]]
by = "peer"
messages = "100/1h"
recipients = "1000/1h"
"""
BEHIND_HAPROXY: Final = """
[[listeners]]
name = "smtp"
address = "127.0.0.1:0"
tls = "none"
proxy_protocol = ["127.0.0.0/8"]
"""
GREYLIST: Final = '[[plugins]]\nuse = "greylist"\ndelay = "1s"\nnetworks = []\n'
HAPROXY: Final = """
defaults
    mode tcp
    timeout connect 10s
    timeout client 1m
    timeout server 1m
frontend mail
    bind 127.0.0.1:{port}
    default_backend both
backend both
    balance roundrobin
    server one 127.0.0.1:{one} send-proxy-v2
    server two 127.0.0.1:{two} send-proxy-v2
"""


def send(port: int, source: str = "127.0.0.1", sender: str = "a@client.example") -> str:
    """Send a message and return the first refusal or the last reply."""
    with (
        socket.create_connection(("127.0.0.1", port), 60, (source, 0)) as sock,
        sock.makefile("rb") as replies,
    ):
        commands = ["EHLO x", f"MAIL FROM:<{sender}>", "RCPT TO:<user@example.org>", "DATA"]
        for command in [*commands, "Subject: Hello\r\n\r\nHello.\r\n."]:
            reply = _reply(replies)
            if reply[0] not in "23":
                return reply
            sock.sendall(f"{command}\r\n".encode())
        return _reply(replies)


def _reply(replies: BinaryIO) -> str:
    line = replies.readline()
    while line[3:4] == b"-":
        line = replies.readline()
    return line.decode()


def test_workers_let_just_so_many_messages_through(launch: Launch) -> None:
    with launch(TABLES, workers=2) as server, ThreadPoolExecutor(8) as pool:
        ports = [server.port()] * 140
        assert Counter(reply[:3] for reply in pool.map(send, ports)) == {"250": 100, "451": 40}
        assert len(server.mail("user")) == 100


@pytest.fixture(scope="module")
def two_hosts(
    launch: Launch, require_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[int, list[Running], RedisServer]]:
    """Run two servers with one Redis behind HAProxy. Return its port and all of them."""
    program, haproxy = require_program("redis-server"), require_program("haproxy")
    directory = tmp_path_factory.mktemp("balancer")
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(redis_running(program, directory))
        state = f'[state]\nurl = "{redis.url}"\n'
        tables = (state, GREYLIST, TABLES)
        servers = [stack.enter_context(launch(*tables, listeners=BEHIND_HAPROXY)) for _ in range(2)]
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        one, two = (server.port() for server in servers)
        (directory / "haproxy.cfg").write_text(HAPROXY.format(port=port, one=one, two=two))
        process = subprocess.Popen([haproxy, "-db", "-f", directory / "haproxy.cfg"])
        stack.callback(process.wait)
        stack.callback(process.kill)
        eventually(lambda: _listens(port))
        yield port, servers, redis


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 10):
        return True
    return False


def test_two_hosts_share_greylist_and_limit_exactly(
    two_hosts: tuple[int, list[Running], RedisServer],
) -> None:
    """Strangers at 127.0.1.x: the other host knows whom one deferred, and 100 pass."""
    port, servers, redis = two_hosts
    assert send(port, "127.0.1.1").startswith("451 4.7.1 greylisted")
    assert send(port, "127.0.1.1").startswith("451 4.7.1 greylisted")  # by the other host
    assert redis.say("KEYS", "minismtp:greylist:*").startswith(b"*1\r\n")
    eventually(lambda: send(port, "127.0.1.1").startswith("250"))
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: send(port, "127.0.1.1"), range(150)))
    assert Counter(reply[:3] for reply in replies) == {"250": 99, "451": 51}
    stored = [len(server.mail("user")) for server in servers]
    assert sum(stored) == 100
    assert min(stored) > 0
    greylisted = [server.metric("hook_verdicts_total", plugin="greylist") for server in servers]
    assert min(greylisted) > 0


@pytest.mark.parametrize(
    "spelling", ["ALICE", " alice ", "\uff21\uff4cice", "Al\u00adice", "\uff41lice\u3000"]
)
def test_login_is_one_however_spelled(spelling: str) -> None:
    world = World({"by": "login", "messages": "1/1h"})
    assert world.mail(login="alice") == "250"
    assert put_off(world.mail(login=spelling)) == "too many messages from alice"
    assert world.mail(login="alice2") == "250"
