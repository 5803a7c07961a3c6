"""The reply to clients that greet with a wrong name, with a real DNS."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import fakes
import nameserver
import pytest
from minismtp_plugins.helo import HELO_PROBLEMS, HeloChecks

from minismtp import Envelope, Resolver, findings_of, hookimpl, plugin
from minismtp.config import Config
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.hooks.loader import PluginSet
from minismtp.testing import Dialogue, Mailroom

if TYPE_CHECKING:
    from conftest import Launch

ZONE: Final = """
four A 192.0.2.1
six AAAA 2001:db8::1
exchange MX 10 four
text TXT "no host"
"""


@pytest.fixture(scope="module")
def resolver(
    require_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Resolver]:
    directory = tmp_path_factory.mktemp("dns")
    with nameserver.serving(directory, require_program, {"test": ZONE}) as address:
        yield Resolver([address])


@plugin
class Looking:
    """Shows the results of the filter."""

    @hookimpl
    def on_data(self, envelope: Envelope) -> None:
        self.problems = envelope.stash.get(HELO_PROBLEMS, ())
        self.findings = [(each.name, each.points) for each in findings_of(envelope)]


def asked(
    checks: HeloChecks,
    resolver: Resolver,
    helo: str,
    *,
    peer: str = "192.0.2.1",
    login: str | None = None,
) -> tuple[str, Looking]:
    """Return the reply to MAIL at mx.example.org, and the findings if it was accepted."""
    looking = Looking()
    dialogue = Dialogue(checks, looking, Mailroom(), resolver=resolver, peer=peer, login=login)
    dialogue.session.local = "198.51.100.25"
    dialogue.send(f"EHLO {helo}")
    reply = dialogue.send("MAIL FROM:<a@sender.example>")
    dialogue.send("RCPT TO:<user@example.org>")
    dialogue.send("DATA")
    return reply, looking


TAKEN: Final = "250 2.1.0 sender ok"
FAILED: Final = "451 4.3.0 temporary failure, try again later"


@pytest.mark.parametrize(
    ("helo", "problems"),
    [
        ("four.test", ()),
        ("FOUR.test.", ()),
        ("six.test", ()),
        ("exchange.test", ()),
        ("[192.0.2.1]", ()),
        ("text.test", ("unresolvable",)),
        ("absent.test", ("unresolvable",)),
        ("a..test", ("unresolvable",)),
        ("x" * 70 + ".test", ("unresolvable",)),
        ("x.broken.test", ()),
        ("MX.example.org", ("own", "unresolvable")),
        ("other.example.org", ("own", "unresolvable")),
        ("[198.51.100.25]", ("own", "literal")),
        ("198.51.100.25", ("own", "unqualified")),
        ("[192.0.2.2]", ("literal",)),
        ("[IPv6:2001:db8::1]", ("literal",)),
        ("[nonsense]", ("literal",)),
        ("[", ("literal",)),
        ("localhost", ("unqualified",)),
        ("192.0.2.1", ("unqualified",)),
        ("2001:db8::1", ("unqualified",)),
    ],
)
def test_what_is_wrong_with_a_name_is_left_for_other_filters(
    helo: str, problems: tuple[str, ...], resolver: Resolver
) -> None:
    reply, looking = asked(HeloChecks(names=["Other.example.org"]), resolver, helo)
    assert (reply, looking.problems) == (TAKEN, problems)
    points = {"own": 3.0, "unqualified": 1.0, "literal": 2.0, "unresolvable": 1.0}
    assert looking.findings == [(name, points[name]) for name in problems]


@pytest.mark.parametrize(
    ("helo", "problem"),
    [
        ("localhost.(none)", "unresolvable"),
        ("Anna's PC.home", "unresolvable"),
        ("a\\b.test", "unresolvable"),
        ("Müller PC.test", "unresolvable"),
        ("Anna's PC", "unqualified"),
        ("Müller", "unqualified"),
        ("[IPv6:fe80::1%en0]", "literal"),
    ],
)
def test_name_that_is_no_domain_is_judged_without_the_dns(helo: str, problem: str) -> None:
    # RFC 5321 section 4.1.4: the server takes any name, this filter may refuse it
    names = fakes.Names(silent=True)
    assert asked(HeloChecks(), names, helo)[1].problems == (problem,)
    actions: dict[str, Any] = {problem: "reject"}
    reply, _ = asked(HeloChecks(**actions), names, helo)
    assert reply.startswith("550 5.7.1 HELO: ")


@pytest.mark.parametrize("helo", ["[IPv6:2001:db8::1]", "[IPv6:2001:0DB8:0::1]"])
def test_address_literal_may_be_of_ipv6(helo: str, resolver: Resolver) -> None:
    assert asked(HeloChecks(), resolver, helo, peer="2001:db8::1")[1].problems == ()
    assert asked(HeloChecks(), resolver, helo, peer="2001:db8::2")[1].problems == ("literal",)


@pytest.mark.parametrize(
    ("options", "helo", "reply"),
    [
        (
            {"own": "reject"},
            "mx.example.org",
            "550 5.7.1 HELO: you are not mx.example.org, that is us",
        ),
        (
            {"unqualified": "reject"},
            "localhost",
            "550 5.7.1 HELO: localhost is no full name of a host",
        ),
        (
            {"literal": "reject"},
            "[192.0.2.9]",
            "550 5.7.1 HELO: [192.0.2.9] is not your address",
        ),
        (
            {"unresolvable": "defer"},
            "absent.test",
            "451 4.7.1 HELO: absent.test is not in the DNS",
        ),
        ({"unresolvable": "reject"}, "x.broken.test", FAILED),
        ({"unresolvable": "reject"}, "localhost", TAKEN),
        ({"unresolvable": "off"}, "x.broken.test", TAKEN),
    ],
)
def test_each_check_has_its_action(
    options: dict[str, object], helo: str, reply: str, resolver: Resolver
) -> None:
    checks = build(HeloChecks, options, file="c.toml", key="plugins[0]", base=Path())
    assert asked(checks, resolver, helo)[0] == reply


@pytest.mark.parametrize("helo", ["mx.example.org", "localhost", "[192.0.2.9]", "absent.test"])
def test_check_that_is_off_finds_nothing(helo: str, resolver: Resolver) -> None:
    checks = HeloChecks(own="off", unqualified="off", literal="off", unresolvable="off")
    assert asked(checks, resolver, helo)[1].findings == []


@pytest.mark.parametrize(
    ("peer", "login", "networks"),
    [
        ("192.0.2.1", "alice", None),
        ("unix", None, None),
        ("::1", None, None),
        ("192.0.2.1", None, ["192.0.2.1/32"]),
    ],
)
def test_users_and_named_networks_are_left_alone(
    peer: str, login: str | None, networks: list[str] | None, resolver: Resolver
) -> None:
    checks = HeloChecks(unqualified="reject")
    if networks is not None:
        named = [ip_network(each) for each in networks]
        checks = HeloChecks(unqualified="reject", networks=named)
    assert asked(checks, resolver, "localhost", peer=peer, login=login)[0] == TAKEN


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ({"points": {"name": 3.0}}, "points: expected some of own, unqualified, literal,"),
        ({"patience": "0s"}, 'patience: expected more than "0s"'),
    ],
)
def test_option_that_makes_no_sense_is_a_mistake(table: dict[str, object], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(HeloChecks, table, file="c.toml", key="plugins[0]", base=Path())
    assert str(caught.value).startswith(f"c.toml: plugins[0].{fault}")


def test_whole_server_knows_the_address_that_was_called(launch: Launch) -> None:
    table = '[[plugins]]\nuse = "helo"\nown = "reject"\nliteral = "off"\nnetworks = []\n'
    with launch(table) as server:
        for helo, reply in (
            ("[127.0.0.1]", "550 5.7.1 HELO: you are not [127.0.0.1], that is us"),
            ("[127.0.0.2]", TAKEN),
        ):
            with server.connect(source="127.0.0.2") as client:
                client.reply()
                client.command(f"EHLO {helo}")
                assert client.command("MAIL FROM:<a@client.example>").startswith(reply)


def test_configuration_of_its_page_is_valid(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "plugins" / "helo.md"
    found = re.search(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    assert found is not None
    listener = '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\ntls = "none"\n'
    PluginSet.load(Config.parse(found[1] + listener, tmp_path / "minismtp.toml"))
