"""The reply to senders that SPF forbids, with a real DNS."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Final

import nameserver
import pytest
from minismtp_plugins.spf import SPF, Spf, SpfResult

from minismtp import (
    Envelope,
    Found,
    Resolver,
    SocketAddress,
    findings_of,
    hookimpl,
    plugin,
    results_of,
)
from minismtp.config import Config
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.hooks.loader import PluginSet
from minismtp.testing import Dialogue, Mailroom

if TYPE_CHECKING:
    from conftest import Launch

ZONE: Final = """
ok TXT "v=spf1 ip4:192.0.2.1 ip6:2001:db8::/64 -all"
split TXT "v=spf1 ip4:192.0" ".2.1 -all"
split TXT "something else"
fail TXT "v=spf1 -all exp=why.fail.test"
why.fail TXT "%{i} is unknown here; see https://%{d}/%{L}"
soft TXT "v=spf1 ~all"
neutral TXT "v=spf1 ?all"
wrong TXT "v=spf1 ip4:192.0.2.999 -all"
loop TXT "v=spf1 include:loop.test -all"
breaks TXT "v=spf1 include:x.broken.test -all"
hosts TXT "v=spf1 mx -all"
hosts MX 10 a.hosts
hosts MX 20 b.hosts
a.hosts A 198.51.100.1
b.hosts A 192.0.2.1
named TXT "v=spf1 ptr -all"
mail.named A 192.0.2.1
exact TXT "v=spf1 exists:%{l}.%{ir}.exact.test -all"
a.b.1.2.0.192.exact A 127.0.0.2
xn--bcher-kva TXT "v=spf1 ip4:192.0.2.1 -all"
mailhost TXT "v=spf1 a -all"
mailhost A 192.0.2.1
"""
REVERSE: Final = "1 PTR mail.named.test.\n"


@pytest.fixture(scope="module")
def dns(
    require_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SocketAddress]:
    zones = {"test": ZONE, "2.0.192.in-addr.arpa": REVERSE}
    with nameserver.serving(tmp_path_factory.mktemp("dns"), require_program, zones) as address:
        yield address


@pytest.fixture(scope="module")
def resolver(dns: SocketAddress) -> Resolver:
    return Resolver([dns])


@plugin
class Looking:
    """Shows the results of the filters before it."""

    @hookimpl
    def on_data(self, envelope: Envelope) -> None:
        self.results = [str(result) for result in results_of(envelope)]
        self.spf = envelope.stash.get(SPF, None)
        self.findings = [(each.name, each.points, each.text) for each in findings_of(envelope)]


class Scene:
    """A client that sends one message through the filter."""

    def __init__(
        self,
        spf: Spf,
        resolver: Resolver,
        sender: str,
        *,
        peer: str = "192.0.2.1",
        helo: str = "client.invalid",
        login: str | None = None,
    ) -> None:
        self.looking, self.mailroom = Looking(), Mailroom()
        self.dialogue = Dialogue(
            spf, self.looking, self.mailroom, resolver=resolver, peer=peer, login=login, tls=True
        )
        self.dialogue.send(f"EHLO {helo}")
        utf8 = "" if sender.isascii() else " SMTPUTF8"
        self.reply = self.dialogue.send(f"MAIL FROM:<{sender}>{utf8}")

    def finish(self) -> bytes:
        """Send the rest, and return the stored message."""
        self.dialogue.send("RCPT TO:<user@example.org>")
        assert self.dialogue.send("DATA")[:3] == "354"
        assert self.dialogue.send_raw(b"Subject: hello\r\n\r\nIt works.\r\n.\r\n")[:3] == b"250"
        [stored] = self.mailroom.stored["user@example.org"]
        return stored


TAG: Final = {"fail": "tag", "temperror": "tag"}


@pytest.mark.parametrize(
    ("sender", "peer", "result"),
    [
        ("a@ok.test", "192.0.2.1", "pass"),
        ("a@ok.test", "2001:db8::1", "pass"),
        ("a@ok.test", "2001:db9::1", "fail"),
        ("a@OK.test", "::ffff:192.0.2.1", "pass"),
        ("a@split.test", "192.0.2.1", "pass"),
        ("a@fail.test", "192.0.2.1", "fail"),
        ("a@soft.test", "192.0.2.1", "softfail"),
        ("a@neutral.test", "192.0.2.1", "neutral"),
        ("a@why.fail.test", "192.0.2.1", "none"),
        ("a@absent.test", "192.0.2.1", "none"),
        ("a@wrong.test", "192.0.2.1", "permerror"),
        ("a@loop.test", "192.0.2.1", "permerror"),
        ("a@breaks.test", "192.0.2.1", "temperror"),
        ("a@x.broken.test", "192.0.2.1", "temperror"),
        ("a@hosts.test", "192.0.2.1", "pass"),
        ("a@hosts.test", "192.0.2.2", "fail"),
        ("a@named.test", "192.0.2.1", "pass"),
        ("a@named.test", "192.0.2.2", "fail"),
        ("a.b@exact.test", "192.0.2.1", "pass"),
        ('"a.b\\\\"@exact.test', "192.0.2.1", "fail"),
        ("a.\u00e9@exact.test", "192.0.2.1", "fail"),
        ("a@b\u00fccher.test", "192.0.2.1", "pass"),
        ("a@[192.0.2.1]", "192.0.2.1", "none"),
    ],
)
def test_result_of_a_sender_is_left_for_other_filters(
    sender: str, peer: str, result: str, resolver: Resolver
) -> None:
    scene = Scene(Spf(fail="tag", temperror="tag"), resolver, sender, peer=peer)
    assert scene.reply == "250 2.1.0 sender ok"
    scene.finish()
    assert scene.looking.spf is not None
    assert scene.looking.spf.result == result
    assert scene.looking.results[0].startswith(f"spf={result} reason=")


def test_result_says_whose_it_is_and_why(resolver: Resolver) -> None:
    scene = Scene(Spf(), resolver, "a@ok.test", helo="absent.test")
    scene.finish()
    assert scene.looking.spf == SpfResult("ok.test", "pass", "ok.test: ip4:192.0.2.1")
    assert scene.looking.results == [
        'spf=pass reason="ok.test: ip4:192.0.2.1" smtp.mailfrom=a@ok.test',
        'spf=none reason="absent.test has no SPF record" smtp.helo=absent.test',
    ]


REFUSED: Final = "192.0.2.1 may not send for"
EXPLANATION: Final = "192.0.2.1 is unknown here; see https://fail.test/%26"


@pytest.mark.parametrize(
    ("options", "sender", "reply"),
    [
        ({}, "a@soft.test", "250 2.1.0 sender ok"),
        ({}, "a@wrong.test", "250 2.1.0 sender ok"),
        ({}, "a@breaks.test", "451 4.7.24 SPF of breaks.test is not known now"),
        ({}, "a@exact.test", f"550 5.7.23 {REFUSED} exact.test (SPF)"),
        (
            {},
            "&@fail.test",
            f"550 5.7.23 {REFUSED} fail.test (SPF); fail.test explains: {EXPLANATION}",
        ),
        ({"softfail": "reject"}, "a@soft.test", f"550 5.7.23 {REFUSED} soft.test (SPF)"),
        (
            {"permerror": "reject"},
            "a@wrong.test",
            "550 5.7.24 SPF is broken: record of wrong.test: 'ip4:192.0.2.999' is no network",
        ),
        ({"temperror": "tag"}, "a@breaks.test", "250 2.1.0 sender ok"),
        ({"fail": "tag"}, "a@fail.test", "250 2.1.0 sender ok"),
    ],
)
def test_options_say_what_becomes_of_a_result(
    options: dict[str, object], sender: str, reply: str, resolver: Resolver
) -> None:
    spf = build(Spf, options, file="c.toml", key="plugins[0]", base=Path())
    assert Scene(spf, resolver, sender).reply == reply


def test_name_in_helo_stands_in_for_the_null_reverse_path(resolver: Resolver) -> None:
    scene = Scene(Spf(), resolver, "", helo="MailHost.test")
    scene.finish()
    assert scene.looking.spf == SpfResult("mailhost.test", "pass", "mailhost.test: a")
    assert scene.looking.results == ['spf=pass reason="mailhost.test: a" smtp.helo=mailhost.test']
    refused = Scene(Spf(), resolver, "", helo="mailhost.test", peer="192.0.2.2")
    assert refused.reply == "550 5.7.23 192.0.2.2 may not send for mailhost.test (SPF)"


@pytest.mark.parametrize(
    ("action", "reply", "results"),
    [
        ("reject", "550 5.7.23 192.0.2.2 may not call itself mailhost.test (SPF)", 1),
        ("tag", "250 2.1.0 sender ok", 2),
        ("off", "250 2.1.0 sender ok", 1),
    ],
)
def test_name_in_helo_may_be_forbidden(
    action: str, reply: str, results: int, resolver: Resolver
) -> None:
    table = {"helo_fail": action}
    spf = build(Spf, table, file="c.toml", key="plugins[0]", base=Path())
    scene = Scene(spf, resolver, "a@soft.test", helo="mailhost.test", peer="192.0.2.2")
    assert scene.reply == reply
    if reply[:3] == "250":
        scene.finish()
        assert len(scene.looking.results) == results


def test_name_in_helo_is_judged_once_in_a_session_and_counts_for_each_message(
    resolver: Resolver,
) -> None:
    names: list[str] = []

    class Noting(Resolver):
        def lookup(self, name: str, kind: str, *, seconds: float = 10.0) -> Found:
            names.append(name)
            return resolver.lookup(name, kind, seconds=seconds)

    scene = Scene(Spf(), Noting(), "a@ok.test", helo="mailhost.test")
    scene.finish()
    assert scene.dialogue.send("MAIL FROM:<a@soft.test>") == "250 2.1.0 sender ok"
    assert names == ["ok.test", "mailhost.test", "mailhost.test", "soft.test"]
    scene.dialogue.send("RCPT TO:<user@example.org>")
    scene.dialogue.send("DATA")
    assert scene.looking.results[-1] == 'spf=pass reason="mailhost.test: a" smtp.helo=mailhost.test'


def test_address_literal_in_helo_has_no_policy(resolver: Resolver) -> None:
    assert Scene(Spf(), resolver, "", helo="[192.0.2.1]").reply == "250 2.1.0 sender ok"


def test_findings_have_the_points_of_the_options(resolver: Resolver) -> None:
    spf = Spf(fail="tag", helo_fail="tag", points={"fail": 2.5, "helo_fail": 1.5, "pass": -0.5})
    scene = Scene(spf, resolver, "a@exact.test", helo="fail.test")
    scene.finish()
    assert scene.looking.findings == [
        ("fail", 2.5, "exact.test: -all"),
        ("helo_fail", 1.5, "fail.test: -all"),
    ]
    scene = Scene(spf, resolver, "a@ok.test")
    scene.finish()
    assert scene.looking.findings == [("pass", -0.5, "ok.test: ip4:192.0.2.1")]


@pytest.mark.parametrize(
    ("peer", "login", "networks"),
    [
        ("192.0.2.2", "alice", None),
        ("unix", None, None),
        ("127.0.0.1", None, None),
        ("::1", None, None),
        ("10.1.2.3", None, None),
        ("fe80::1", None, None),
        ("192.0.2.2", None, ["192.0.2.0/30"]),
        ("::ffff:192.0.2.2", None, ["192.0.2.0/30"]),
    ],
)
def test_users_and_named_networks_are_left_alone(
    peer: str, login: str | None, networks: list[str] | None, resolver: Resolver
) -> None:
    spf = Spf() if networks is None else Spf(networks=[ip_network(each) for each in networks])
    scene = Scene(spf, resolver, "a@fail.test", helo="fail.test", peer=peer, login=login)
    assert scene.reply == "250 2.1.0 sender ok"
    scene.finish()
    assert (scene.looking.spf, scene.looking.results) == (None, [])


def test_named_networks_take_the_place_of_the_default(resolver: Resolver) -> None:
    scene = Scene(Spf(networks=[]), resolver, "a@fail.test", peer="127.0.0.1")
    assert scene.reply.startswith("550 5.7.23 127.0.0.1 may not send for fail.test (SPF)")


def test_received_spf_field_is_put_on_top_where_it_is_wanted(resolver: Resolver) -> None:
    stored = Scene(Spf(received_spf=True), resolver, "a@soft.test").finish()
    field = re.search(rb"^Received-SPF: (.*\r\n(?:[ \t].*\r\n)*)", stored, re.MULTILINE)
    assert field is not None
    assert field[1].replace(b"\r\n", b"").decode() == (
        'softfail client-ip="192.0.2.1"; envelope-from="a@soft.test"; helo="client.invalid";'
        ' receiver="mx.example.org"; identity="mailfrom"'
    )
    assert b"Received-SPF" not in Scene(Spf(), resolver, "a@soft.test").finish()


def test_resolver_that_is_silent_defers_within_the_patience() -> None:
    with nameserver.silent() as address:
        spf = Spf(patience=timedelta(milliseconds=200))
        reply = Scene(spf, Resolver([address]), "a@ok.test").reply
    assert reply == "451 4.7.24 SPF of ok.test is not known now"


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ({"points": {"fial": 3.0}}, "points: expected some of pass, fail, softfail, permerror,"),
        ({"patience": "0s"}, 'patience: expected more than "0s"'),
        ({"fail": "defer"}, 'fail: expected one of "reject", "tag", not \'defer\''),
    ],
)
def test_option_that_makes_no_sense_is_a_mistake(table: dict[str, object], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Spf, table, file="c.toml", key="plugins[0]", base=Path())
    assert str(caught.value).startswith(f"c.toml: plugins[0].{fault}")


def test_whole_server_asks_the_resolver_of_its_configuration(
    launch: Launch, dns: SocketAddress
) -> None:
    listener = (
        '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\ntls = "none"\n'
        'proxy_protocol = ["127.0.0.0/8"]\n'
    )
    table = f'[dns]\nnameservers = ["{dns}"]\n[[plugins]]\nuse = "spf"\nreceived_spf = true\n'
    with launch(table, listeners=listener) as server:
        for host, code in (("192.0.2.1", "250"), ("192.0.2.2", "550")):
            with server.connect() as client:
                client.send(f"PROXY TCP4 {host} 192.0.2.25 40000 25\r\n")
                client.greet()
                assert client.command("MAIL FROM:<a@ok.test>")[:3] == code
                if code == "250":
                    client.command("RCPT TO:<alice@example.org>")
                    client.command("DATA")
                    assert client.command("Subject: hello\r\n\r\nIt works.\r\n.")[:3] == "250"
        [message] = server.mail("alice")
        assert b'\r\nReceived-SPF: pass client-ip="192.0.2.1";' in message
        labels = {"plugin": "spf", "hook": "on_mail", "verdict": "reject"}
        assert server.metric("hook_verdicts_total", **labels) == 1


def test_configuration_of_its_page_is_valid(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "plugins" / "spf.md"
    found = re.search(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    assert found is not None
    listener = '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\ntls = "none"\n'
    PluginSet.load(Config.parse(found[1] + listener, tmp_path / "minismtp.toml"))


def test_message_is_looked_at_only_to_add_the_field() -> None:
    assert Spf().unused_hooks == ("on_message",)
    assert Spf(received_spf=True).unused_hooks == ()
