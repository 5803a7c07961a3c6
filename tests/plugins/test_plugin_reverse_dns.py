"""The reply to clients whose name in the DNS is missing or wrong, with a real DNS."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Final

import nameserver
import pytest
from minismtp_plugins.reverse_dns import CLIENT_NAME, ClientName, ReverseDns

from minismtp import Envelope, Found, Resolver, Session, findings_of, hookimpl, plugin, results_of
from minismtp.config import Config, PluginConfig
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.hooks.loader import PluginSet
from minismtp.testing import Dialogue, Mailroom

ZONE: Final = """
mail A 192.0.2.1
mail AAAA 2001:db8::1
second A 192.0.2.3
"""
REVERSE: Final = """
1 PTR Mail.test.
2 PTR mail.test.
3 PTR absent.test.
3 PTR second.test.
4 PTR x.broken.test.
5 PTR absent.test.
""" + "".join(f"9 PTR host{number}.test.\n" for number in range(30))
REVERSE_6: Final = f"{'1' + '.0' * 23} PTR mail.test.\n"


@pytest.fixture(scope="module")
def resolver(
    require_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Resolver]:
    zones = {
        "test": ZONE,
        "2.0.192.in-addr.arpa": REVERSE,
        "8.b.d.0.1.0.0.2.ip6.arpa": REVERSE_6,
    }
    with nameserver.serving(tmp_path_factory.mktemp("dns"), require_program, zones) as address:
        yield Resolver([address])


@plugin
class Looking:
    """Shows the results of the filter."""

    @hookimpl
    def on_data(self, session: Session, envelope: Envelope) -> None:
        self.name = session.stash.get(CLIENT_NAME, None)
        self.results = [str(result) for result in results_of(envelope)]
        self.findings = [(each.name, each.points) for each in findings_of(envelope)]


def asked(
    reverse_dns: ReverseDns | tuple[PluginConfig, ReverseDns],
    resolver: Resolver,
    peer: str,
    *,
    login: str | None = None,
) -> tuple[str, Looking]:
    """Return the reply to MAIL, and the findings if it was accepted."""
    looking = Looking()
    dialogue = Dialogue(reverse_dns, looking, Mailroom(), resolver=resolver, peer=peer, login=login)
    dialogue.send("EHLO client.example")
    reply = dialogue.send("MAIL FROM:<a@sender.example>")
    dialogue.send("RCPT TO:<user@example.org>")
    dialogue.send("DATA")
    return reply, looking


TAKEN: Final = "250 2.1.0 sender ok"
FAILED: Final = "451 4.3.0 temporary failure, try again later"
WRONG: Final = "is not an address of the name that the DNS has for it"


@pytest.mark.parametrize(
    ("peer", "name", "result", "findings"),
    [
        ("192.0.2.1", ClientName("mail.test", confirmed=True), "pass", []),
        ("::ffff:192.0.2.1", ClientName("mail.test", confirmed=True), "pass", []),
        ("2001:db8::1", ClientName("mail.test", confirmed=True), "pass", []),
        (
            "192.0.2.2",
            ClientName("mail.test", confirmed=False),
            "fail",
            [("unconfirmed", 1.0)],
        ),
        ("192.0.2.3", ClientName("second.test", confirmed=True), "pass", []),
        ("192.0.2.4", None, "temperror", []),
        ("192.0.2.5", ClientName("absent.test", confirmed=False), "fail", [("unconfirmed", 1.0)]),
        ("192.0.2.6", ClientName("", confirmed=False), "permerror", [("missing", 2.0)]),
        ("2001:db8::2", ClientName("", confirmed=False), "permerror", [("missing", 2.0)]),
    ],
)
def test_name_of_a_client_is_left_for_other_filters(
    peer: str,
    name: ClientName | None,
    result: str,
    findings: list[tuple[str, float]],
    resolver: Resolver,
) -> None:
    reply, looking = asked(ReverseDns(), resolver, peer)
    assert (reply, looking.name, looking.findings) == (TAKEN, name, findings)
    plain = peer.removeprefix("::ffff:")
    shown = f'"{plain}"' if ":" in plain else plain
    assert looking.results == [f"iprev={result} policy.iprev={shown}"]


@pytest.mark.parametrize(
    ("options", "peer", "reply"),
    [
        ({"missing": "reject"}, "192.0.2.6", "550 5.7.25 192.0.2.6 has no name in the DNS"),
        ({"missing": "defer"}, "192.0.2.6", "451 4.7.25 192.0.2.6 has no name in the DNS"),
        ({"missing": "reject"}, "192.0.2.2", TAKEN),
        ({"unconfirmed": "reject"}, "192.0.2.2", f"550 5.7.25 192.0.2.2 {WRONG}"),
        ({"unconfirmed": "defer"}, "192.0.2.5", f"451 4.7.25 192.0.2.5 {WRONG}"),
        ({"unconfirmed": "reject"}, "192.0.2.6", TAKEN),
        ({"unconfirmed": "reject", "missing": "reject"}, "192.0.2.1", TAKEN),
        ({"unconfirmed": "reject"}, "192.0.2.4", FAILED),
    ],
)
def test_options_say_what_becomes_of_a_client(
    options: dict[str, object], peer: str, reply: str, resolver: Resolver
) -> None:
    reverse_dns = build(ReverseDns, options, file="c.toml", key="plugins[0]", base=Path())
    assert asked(reverse_dns, resolver, peer)[0] == reply


class Noting(Resolver):
    """Records the names in its questions."""

    def __init__(self, resolver: Resolver) -> None:
        self._asked = resolver
        self.names: list[str] = []

    def lookup(self, name: str, kind: str, *, seconds: float = 10.0) -> Found:
        self.names.append(name)
        return self._asked.lookup(name, kind, seconds=seconds)


def test_client_is_looked_up_once_in_a_session(resolver: Resolver) -> None:
    noting = Noting(resolver)
    dialogue = Dialogue(ReverseDns(), Mailroom(), resolver=noting, peer="192.0.2.1")
    dialogue.send("EHLO client.example")
    for _ in range(2):
        assert dialogue.send("MAIL FROM:<a@sender.example>") == TAKEN
        dialogue.send("RSET")
    assert [name.lower() for name in noting.names] == ["1.2.0.192.in-addr.arpa", "mail.test"]


@pytest.mark.parametrize(
    ("missing", "on_error", "reply"),
    [("tag", "defer", TAKEN), ("reject", "defer", FAILED), ("reject", "ignore", TAKEN)],
)
def test_silence_of_the_dns_counts_where_clients_may_be_refused(
    missing: str, on_error: str, reply: str
) -> None:
    table = {"missing": missing, "patience": "100ms"}
    reverse_dns = build(ReverseDns, table, file="c.toml", key="plugins[0]", base=Path())
    common = build(
        PluginConfig,
        {"use": "reverse_dns", "on_error": on_error},
        file="c.toml",
        key="plugins[0]",
        base=Path(),
    )
    with nameserver.silent() as address:
        assert asked((common, reverse_dns), Resolver([address]), "192.0.2.1")[0] == reply


@pytest.mark.parametrize(
    ("peer", "login", "networks"),
    [
        ("192.0.2.6", "alice", None),
        ("unix", None, None),
        ("127.0.0.1", None, None),
        ("172.16.5.4", None, None),
        ("192.0.2.6", None, ["192.0.2.0/28"]),
    ],
)
def test_users_and_named_networks_are_left_alone(
    peer: str, login: str | None, networks: list[str] | None, resolver: Resolver
) -> None:
    reverse_dns = ReverseDns(missing="reject")
    if networks is not None:
        reverse_dns = ReverseDns(missing="reject", networks=[ip_network(each) for each in networks])
    reply, looking = asked(reverse_dns, resolver, peer, login=login)
    assert (reply, looking.name, looking.results) == (TAKEN, None, [])


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ({"points": {"mising": 3.0}}, "points: expected some of missing, unconfirmed, not"),
        ({"patience": "0s"}, 'patience: expected more than "0s"'),
    ],
)
def test_option_that_makes_no_sense_is_a_mistake(table: dict[str, object], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(ReverseDns, table, file="c.toml", key="plugins[0]", base=Path())
    assert str(caught.value).startswith(f"c.toml: plugins[0].{fault}")


def test_configuration_of_its_page_is_valid(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "plugins" / "reverse_dns.md"
    found = re.search(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    assert found is not None
    listener = '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\ntls = "none"\n'
    PluginSet.load(Config.parse(found[1] + listener, tmp_path / "minismtp.toml"))


def test_no_more_than_ten_names_of_an_address_are_looked_up(resolver: Resolver) -> None:
    noting = Noting(resolver)
    _, looking = asked(ReverseDns(), noting, "192.0.2.9")
    assert looking.results == ["iprev=fail policy.iprev=192.0.2.9"]
    assert len(noting.names) == 11
