"""The effect of DNS lists on a client, with a real DNS."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Final

import nameserver
import pytest
from minismtp_plugins.dnsbl import LISTINGS, Dnsbl, DnsList, Listing

from minismtp import (
    Envelope,
    Found,
    Resolver,
    SocketAddress,
    UnansweredError,
    findings_of,
    hookimpl,
    plugin,
)
from minismtp.cli.check import check
from minismtp.config import Config, PluginConfig
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.hooks.loader import PluginSet
from minismtp.testing import Dialogue, Mailroom

if TYPE_CHECKING:
    from conftest import Launch

NIBBLES: Final = "1" + ".0" * 23 + ".8.b.d.0.1.0.0.2"
# bl, strict: lists of addresses; white: of good ones; domains: of domains. empty is no list at all,
# all lists every client, err only says that there are too many questions, parked has a new owner.
ZONE: Final = f"""
2.0.0.127.bl A 127.0.0.2
1.2.0.192.bl A 127.0.0.2
1.2.0.192.bl A 127.0.0.4
1.2.0.192.bl TXT "seen sending " "spam"
2.2.0.192.bl A 127.0.0.10
{NIBBLES}.bl A 127.0.0.2
1.2.0.192.other A 127.0.0.2
1.2.0.192.white A 127.0.5.3
test.domains A 127.0.1.2
spam.example.domains A 127.0.1.2
xn--bcher-kva.example.domains A 127.0.1.2
1.2.0.192.domains A 127.0.1.255
empty TXT "nothing"
*.all A 127.0.0.2
*.err A 127.255.255.254
*.parked A 198.51.100.1
"""


@pytest.fixture(scope="module")
def dns(
    require_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SocketAddress]:
    directory = tmp_path_factory.mktemp("dns")
    with nameserver.serving(directory, require_program, {"test": ZONE}) as address:
        yield address


@pytest.fixture(scope="module")
def resolver(dns: SocketAddress) -> Resolver:
    return Resolver([dns])


@plugin
class Looking:
    """Shows the results of the filter."""

    @hookimpl
    def on_data(self, envelope: Envelope) -> None:
        self.listings = envelope.stash.get(LISTINGS, [])
        self.findings = [(each.name, each.points, each.text) for each in findings_of(envelope)]


def asked(
    dnsbl: Dnsbl | tuple[PluginConfig, Dnsbl],
    resolver: Resolver,
    *,
    peer: str = "192.0.2.1",
    helo: str = "client.example",
    sender: str = "a@sender.example",
    login: str | None = None,
) -> tuple[str, Looking]:
    """Return the reply to MAIL, and the findings if it was accepted."""
    looking = Looking()
    dialogue = Dialogue(dnsbl, looking, Mailroom(), resolver=resolver, peer=peer, login=login)
    dialogue.send(f"EHLO {helo}")
    utf8 = "" if sender.isascii() else " SMTPUTF8"
    reply = dialogue.send(f"MAIL FROM:<{sender}>{utf8}")
    dialogue.send("RCPT TO:<user@example.org>")
    dialogue.send("DATA")
    return reply, looking


def lists(*texts: str) -> list[DnsList]:
    """Make lists of "zone points code ..."."""
    found = []
    for text in texts:
        zone, *rest = text.split()
        points = float(rest[0]) if rest else 1.0
        found.append(DnsList(zone=zone, points=points, codes=rest[1:]))
    return found


TAKEN: Final = "250 2.1.0 sender ok"
BY_BL: Final = "550 5.7.1 192.0.2.1 is listed by bl.test"
FAILED: Final = "451 4.3.0 temporary failure, try again later"


@pytest.mark.parametrize(
    ("peer", "reply"),
    [
        ("192.0.2.1", BY_BL),
        ("::ffff:192.0.2.1", BY_BL),
        ("192.0.2.3", TAKEN),
        ("2001:db8::1", "550 5.7.1 2001:db8::1 is listed by bl.test"),
        ("2001:db8::2", TAKEN),
    ],
)
def test_client_that_is_listed_is_refused(peer: str, reply: str, resolver: Resolver) -> None:
    assert asked(Dnsbl(lists=lists("bl.test")), resolver, peer=peer)[0] == reply


@pytest.mark.parametrize(
    ("code", "peer", "reply"),
    [
        ("127.0.0.2", "192.0.2.1", BY_BL),
        ("127.0.0.3-4", "192.0.2.1", BY_BL),
        ("127.0.0.10-11", "192.0.2.1", TAKEN),
        ("127.0.0.10-11", "192.0.2.2", "550 5.7.1 192.0.2.2 is listed by bl.test"),
        ("127.0.0.2-9", "192.0.2.2", TAKEN),
        ("127.0-255.0.10", "192.0.2.2", "550 5.7.1 192.0.2.2 is listed by bl.test"),
        ("127.1-255.0.10", "192.0.2.2", TAKEN),
    ],
)
def test_only_the_codes_that_are_named_count(
    code: str, peer: str, reply: str, resolver: Resolver
) -> None:
    assert asked(Dnsbl(lists=lists(f"bl.test 1 {code}")), resolver, peer=peer)[0] == reply


@pytest.mark.parametrize(
    ("names", "reject_at", "reply"),
    [
        ("bl.test 1, other.test 1", 2.0, f"{BY_BL}; 192.0.2.1 is listed by other.test"),
        ("bl.test 1, other.test 1", 2.5, TAKEN),
        ("bl.test 2, white.test -1", 2.0, TAKEN),
        ("bl.test 3, white.test -1", 2.0, BY_BL),
        ("bl.test 3, other.test 3", 2.0, BY_BL),
        ("bl.test 3", 0.0, TAKEN),
    ],
)
def test_points_of_all_lists_decide(
    names: str, reject_at: float, reply: str, resolver: Resolver
) -> None:
    dnsbl = Dnsbl(lists=lists(*names.split(",")), reject_at=reject_at)
    assert asked(dnsbl, resolver)[0] == reply


def test_what_was_found_is_left_for_other_filters(resolver: Resolver) -> None:
    dnsbl = Dnsbl(lists=lists("bl.test 2.5", "white.test -1 127.0.0-255.1-3"), reject_at=0)
    _, looking = asked(dnsbl, resolver)
    codes = tuple(sorted(looking.listings[1].codes))
    assert looking.listings[0] == Listing("white.test", "192.0.2.1", -1.0, ("127.0.5.3",))
    assert (looking.listings[1].zone, codes) == ("bl.test", ("127.0.0.2", "127.0.0.4"))
    assert [finding[:2] for finding in looking.findings] == [("white.test", -1), ("bl.test", 2.5)]
    assert looking.findings[0][2] == "192.0.2.1 is 127.0.5.3"


def test_reason_of_the_list_is_told_where_it_is_wanted(resolver: Resolver) -> None:
    dnsbl = Dnsbl(lists=lists("bl.test"), reasons=True)
    assert asked(dnsbl, resolver)[0] == f"{BY_BL} (seen sending spam)"
    assert asked(Dnsbl(lists=lists("other.test"), reasons=True), resolver)[0].endswith("other.test")


def test_reason_that_the_dns_does_not_tell_is_left_out(resolver: Resolver) -> None:
    class Wordless(Resolver):
        def lookup(self, name: str, kind: str, *, seconds: float = 10.0) -> Found:
            if kind == "TXT":
                raise UnansweredError("nothing")
            return resolver.lookup(name, kind, seconds=seconds)

    assert asked(Dnsbl(lists=lists("bl.test"), reasons=True), Wordless())[0] == BY_BL


@pytest.mark.parametrize(
    ("sender", "helo", "reply"),
    [
        ("a@Spam.example", "client.example", "550 5.7.1 spam.example is listed by domains.test"),
        ("a@good.example", "SPAM.example", "550 5.7.1 spam.example is listed by domains.test"),
        ("a@spam.example", "spam.example", "550 5.7.1 spam.example is listed by domains.test"),
        (
            "a@b\u00fccher.example",
            "client.example",
            "550 5.7.1 xn--bcher-kva.example is listed by domains.test",
        ),
        ("", "client.example", TAKEN),
        ("a@good.example", "client.example", TAKEN),
        ("a@[192.0.2.1]", "[192.0.2.1]", TAKEN),
        ("a@good.example", "192.0.2.1", TAKEN),
        ("a@good.example", "spam", TAKEN),
    ],
)
def test_domains_are_looked_up_in_lists_of_domains(
    sender: str, helo: str, reply: str, resolver: Resolver
) -> None:
    domains = DnsList(zone="domains.test", about=["sender", "helo"])
    assert asked(Dnsbl(lists=[domains]), resolver, sender=sender, helo=helo)[0] == reply


def test_domain_that_is_sender_and_helo_counts_once(resolver: Resolver) -> None:
    domains = DnsList(zone="domains.test", about=["sender", "helo"])
    dnsbl = Dnsbl(lists=[domains], reject_at=2)
    assert asked(dnsbl, resolver, sender="a@spam.example", helo="spam.example")[0] == TAKEN


@pytest.mark.parametrize("zone", ["err.test", "parked.test", "bl.broken.test"])
def test_list_in_trouble_lists_nobody(zone: str, resolver: Resolver) -> None:
    """127.255.255.254 and answers that are not codes of a list; then SERVFAIL."""
    dnsbl = Dnsbl(lists=lists(zone))
    ignored = PluginConfig(use="dnsbl", on_error="ignore")
    reply, looking = asked((ignored, dnsbl), resolver)
    assert (reply, looking.listings) == (TAKEN, [])
    assert asked(Dnsbl(lists=lists(zone)), resolver)[0] == FAILED


def test_list_in_trouble_is_counted_and_does_not_hide_the_others(resolver: Resolver) -> None:
    names = ("err.test", "bl.broken.test", "bl.test")
    assert asked(Dnsbl(lists=lists(*names)), resolver)[0] == BY_BL
    dialogue = Dialogue(Dnsbl(lists=lists(*names)), resolver=resolver, peer="192.0.2.3")
    dialogue.send("EHLO client.example")
    assert dialogue.send("MAIL FROM:<a@b.example>") == FAILED
    assert dialogue.count("hook_errors_total", plugin="dnsbl", hook="on_mail") == 1


def test_silent_list_leaves_time_for_the_others_and_is_left_alone_in_the_end(
    resolver: Resolver,
) -> None:
    waited: list[float] = []

    class HalfDeaf(Resolver):
        def lookup(self, name: str, kind: str, *, seconds: float = 10.0) -> Found:
            if name.endswith(".dead.test"):
                waited.append(seconds)
                raise UnansweredError("nothing")
            return resolver.lookup(name, kind, seconds=seconds)

    dnsbl = Dnsbl(lists=lists("dead.test", "bl.test"), patience=timedelta(seconds=60))
    for _ in range(7):
        assert asked(dnsbl, HalfDeaf())[0] == BY_BL
    assert len(waited) == 5
    assert max(waited) <= 30


def test_silence_of_a_resolver_is_a_failure_within_the_patience() -> None:
    with nameserver.silent() as address:
        dnsbl = Dnsbl(lists=lists("bl.test", "other.test"), patience=timedelta(milliseconds=200))
        assert asked(dnsbl, Resolver([address]))[0] == FAILED


def test_no_more_lists_are_asked_than_it_takes_to_refuse(resolver: Resolver) -> None:
    names: list[str] = []

    class Noting(Resolver):
        def lookup(self, name: str, kind: str, *, seconds: float = 10.0) -> Found:
            names.append(name)
            return resolver.lookup(name, kind, seconds=seconds)

    dnsbl = Dnsbl(lists=lists("bl.test", "other.test", "white.test -0.1"), reject_at=0.5)
    asked(dnsbl, Noting([SocketAddress("127.0.0.1", 9)]))
    assert names == ["1.2.0.192.white.test", "1.2.0.192.bl.test"]


@pytest.mark.parametrize(
    ("peer", "login", "networks"),
    [
        ("192.0.2.1", "alice", None),
        ("unix", None, None),
        ("127.0.0.2", None, None),
        ("192.168.1.1", None, None),
        ("fd00::1", None, None),
        ("192.0.2.1", None, ["192.0.2.0/24"]),
    ],
)
def test_users_and_named_networks_are_left_alone(
    peer: str, login: str | None, networks: list[str] | None, resolver: Resolver
) -> None:
    dnsbl = Dnsbl(lists=lists("all.test"))
    if networks is not None:
        dnsbl = Dnsbl(lists=lists("all.test"), networks=[ip_network(each) for each in networks])
    assert asked(dnsbl, resolver, peer=peer, login=login)[0] == TAKEN


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ({"lists": []}, "lists: expected at least one"),
        ({"lists": [{"zone": "localhost"}]}, "lists[0].zone: expected the domain of a list"),
        ({"lists": [{"zone": "a..b"}]}, "lists[0].zone: expected the domain of a list"),
        ({"lists": [{"zone": "a.b", "points": 0.0}]}, "lists[0].points: expected more or less"),
        ({"lists": [{"zone": "a.b", "about": []}]}, "lists[0].about: expected some of"),
        ({"lists": [{"zone": "a.b", "about": ["ip"]}]}, "lists[0].about[0]: expected one of"),
        ({"lists": [{"zone": "a.b"}], "reject_at": -1.0}, "reject_at: expected points above 0"),
        ({"lists": [{"zone": "a.b"}], "patience": "0s"}, 'patience: expected more than "0s"'),
        *(
            (
                {"lists": [{"zone": "a.b", "codes": [code]}]},
                f"lists[0].codes: expected answers such as 127.0.0.2-11, not '{code}'",
            )
            for code in ("", "127.0.0", "127.0.0.256", "127.0.0.9-2", "128.0.0.1", "127.0.0.*")
        ),
    ],
)
def test_option_that_makes_no_sense_is_a_mistake(table: dict[str, object], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Dnsbl, table, file="c.toml", key="plugins[0]", base=Path())
    assert str(caught.value).startswith(f"c.toml: plugins[0].{fault}")


LISTENER: Final = '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\ntls = "none"\n'


UNANSWERED: Final = "the DNS does not answer for 2.0.0.127.bl.broken.test A (NoNameservers)"


def test_command_check_tries_the_lists(dns: SocketAddress, tmp_path: Path) -> None:
    """RFC 5782 section 5."""
    names = ("bl", "domains", "empty", "all", "err", "bl.broken")
    tables = "".join(f'[[plugins.lists]]\nzone = "{name}.test"\n' for name in names)
    tables = tables.replace('"domains.test"', '"domains.test"\nabout = ["sender"]')
    text = f'{LISTENER}[dns]\nnameservers = ["{dns}"]\n[[plugins]]\nuse = "dnsbl"\n{tables}'
    found = [str(each) for each in check(Config.parse(text, tmp_path / "c.toml"))]
    told = [match[1] for each in found if (match := re.search(r"lists\[\d\]: (.*)", each))]
    assert told == [
        "empty.test does not list 2.0.0.127, as every list does: is it one?",
        "all.test lists 1.0.0.127, as no list does, so it may list every client",
        "err.test cannot be asked: err.test answers 127.255.255.254, which is an error",
        f"bl.broken.test cannot be asked: {UNANSWERED}",
    ]


def test_whole_server_asks_the_lists_and_spf(launch: Launch, dns: SocketAddress) -> None:
    listener = LISTENER + 'proxy_protocol = ["127.0.0.0/8"]\n'
    table = (
        f'[dns]\nnameservers = ["{dns}"]\n[[plugins]]\nuse = "spf"\n'
        '[[plugins]]\nuse = "dnsbl"\n[[plugins.lists]]\nzone = "bl.test"\n'
    )
    with launch(table, listeners=listener) as server:
        for peer, reply in (
            ("TCP4 192.0.2.1 192.0.2.25", BY_BL),
            ("TCP4 192.0.2.3 192.0.2.25", TAKEN),
            ("TCP6 2001:db8::1 2001:db8::25", "550 5.7.1 2001:db8::1 is listed by bl.test"),
        ):
            with server.connect() as client:
                client.send(f"PROXY {peer} 40000 25\r\n")
                client.greet()
                assert client.command("MAIL FROM:<a@client.example>").startswith(reply)
        labels = {"plugin": "dnsbl", "hook": "on_mail", "verdict": "reject"}
        assert server.metric("hook_verdicts_total", **labels) == 2


def test_configuration_of_its_page_is_valid(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "plugins" / "dnsbl.md"
    found = re.search(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    assert found is not None
    PluginSet.load(Config.parse(found[1] + LISTENER, tmp_path / "minismtp.toml"))
