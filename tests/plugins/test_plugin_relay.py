"""Only users and trusted networks may send mail to other hosts."""

from __future__ import annotations

from dataclasses import field, replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from minismtp_plugins.mailboxes import Mailboxes
from minismtp_plugins.relay import Relaying

from minismtp import Envelope, Local, hookimpl, plugin
from minismtp.cli.check import check
from minismtp.config import Config
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.testing import Dialogue, Mailroom

# Without a queue, this is the reply to clients that may relay.
WOULD_RELAY = "451 4.3.5 mail for other hosts is not taken now"
REFUSED = "550 5.7.1 relaying denied"


@plugin
class Keeping:
    """Route nothing, and keep the envelopes of messages."""

    envelopes: list[Envelope] = field(default_factory=list)

    @hookimpl
    def route(self) -> Local:
        return Local()

    @hookimpl
    def on_message(self, envelope: Envelope) -> None:
        self.envelopes.append(envelope)


def asked(
    *networks: str, peer: str = "192.0.2.1", login: str | None = None, to: str = "b@example.net"
) -> str:
    """Return the reply to RCPT of a server for example.org."""
    dialogue = Dialogue(
        Mailboxes(domains=["example.org"], users=["alice"]),
        Relaying(networks=[ip_network(each) for each in networks]),
        peer=peer,
        login=login,
        tls=True,
    )
    dialogue.send("EHLO client.example")
    dialogue.send("MAIL FROM:<a@example.com>")
    return dialogue.send(f"RCPT TO:<{to}>")


def test_user_who_has_logged_in_may_send_anywhere() -> None:
    assert asked(login="alice") == WOULD_RELAY


@pytest.mark.parametrize(
    ("peer", "reply"),
    [
        ("192.0.2.1", WOULD_RELAY),
        ("192.0.2.255", WOULD_RELAY),
        ("192.0.3.1", REFUSED),
        ("2001:db8::1", WOULD_RELAY),
        ("2001:db9::1", REFUSED),
        ("::ffff:192.0.2.1", REFUSED),
        ("unix", REFUSED),
    ],
)
def test_host_may_send_anywhere_from_a_trusted_network_only(peer: str, reply: str) -> None:
    assert asked("192.0.2.0/24", "2001:db8::/32", peer=peer) == reply


@pytest.mark.parametrize(
    ("peer", "login", "trusted"),
    [
        ("192.0.3.1", "alice", True),
        ("192.0.2.1", None, True),
        ("192.0.3.1", None, False),
        ("unix", None, False),
    ],
    ids=["user", "network", "stranger", "unix"],
)
def test_success_is_told_to_users_and_trusted_networks_only(
    peer: str, login: str | None, trusted: bool
) -> None:
    """A forged sender is not notified of the delivery."""
    keeping = Keeping()
    relaying = Relaying(networks=[ip_network("192.0.2.0/24")])
    dialogue = Dialogue(keeping, relaying, Mailroom(), peer=peer, login=login)
    dialogue.send("EHLO client.example")
    dialogue.send("MAIL FROM:<a@example.com>")
    dialogue.send("RCPT TO:<b@example.org> NOTIFY=SUCCESS,FAILURE")
    dialogue.send("RCPT TO:<c@example.org> NOTIFY=SUCCESS")
    dialogue.send("DATA")
    dialogue.send_raw(b"Subject: x\r\n\r\n.\r\n")
    [envelope] = keeping.envelopes
    assert envelope.trusted is trusted
    assert [set(each.notify) for each in envelope.recipients] == (
        [{"SUCCESS", "FAILURE"}, {"SUCCESS"}] if trusted else [{"FAILURE"}, {"NEVER"}]
    )


def test_trust_is_not_kept_when_a_front_end_speaks_for_another_peer() -> None:
    dialogue = Dialogue(Relaying(networks=[ip_network("192.0.2.0/24")]))
    front_end = replace(dialogue.service, xclient=(ip_network("192.0.2.0/24"),))
    dialogue = Dialogue(service=front_end)
    assert dialogue.session.trusted
    dialogue.send("EHLO client.example")
    assert dialogue.send("XCLIENT ADDR=198.51.100.1").startswith("220 ")
    assert not dialogue.session.trusted


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "10.0.0.1", "192.0.2.1"])
def test_nobody_is_trusted_by_default(peer: str) -> None:
    assert asked(peer=peer) == REFUSED


def test_our_recipients_are_the_mailboxes_for_everybody() -> None:
    assert asked(login="alice", to="alice@example.org") == "250 2.1.5 recipient ok"
    assert asked(login="alice", to="x@example.org") == "550 5.1.1 no such mailbox"
    assert asked("192.0.2.0/24", to="alice@example.org") == "250 2.1.5 recipient ok"


@pytest.mark.parametrize("network", ["0.0.0.0/0", "::/0", "0.0.0.0/1", "128.0.0.0/7", "2000::/3"])
def test_network_of_half_the_world_is_a_mistake(network: str) -> None:
    table = {"networks": ["192.0.2.0/24", network]}
    with pytest.raises(ConfigError) as fault:
        build(Relaying, table, file="c.toml", key="plugins[1]", base=Path())
    assert str(fault.value).startswith(f"c.toml: plugins[1].networks: {network} is too wide: ")


@pytest.mark.parametrize("network", ["10.0.0.0/8", "127.0.0.0/8", "fc00::/7", "2001:db8::/32"])
def test_private_network_may_be_wide(network: str) -> None:
    assert Relaying(networks=[ip_network(network)]).networks


@pytest.mark.parametrize(
    ("recipient", "reply"),
    [
        ("bob@Example.NET", WOULD_RELAY),
        ("bob@xn--mnchen-3ya.example", WOULD_RELAY),
        ("bob@sub.example.net", REFUSED),
        ("bob%example.net@example.com", REFUSED),
        ("alice@example.org", "250 2.1.5 recipient ok"),
    ],
)
def test_mail_for_our_domains_is_taken_from_everybody(recipient: str, reply: str) -> None:
    dialogue = Dialogue(
        Mailboxes(domains=["example.org"], users=["alice"]),
        Relaying(domains=["example.net", "M\u00fcnchen.example", "example.org"]),
        peer="192.0.2.1",
    )
    dialogue.send("EHLO client.example")
    dialogue.send("MAIL FROM:<a@example.com>")
    assert dialogue.send(f"RCPT TO:<{recipient}>") == reply


@pytest.mark.parametrize("domain", ["", "bob@example.net", "two words"])
def test_what_is_no_domain_is_a_mistake(domain: str) -> None:
    with pytest.raises(ConfigError) as fault:
        build(Relaying, {"domains": [domain]}, file="c.toml", key="plugins[1]", base=Path())
    assert f"c.toml: plugins[1].domains: {domain!r} is not a domain; " in str(fault.value)


def findings(networks: str, tmp_path: Path) -> list[str]:
    text = f"""
state_directory = "state"
[[listeners]]
name = "smtp"
address = "127.0.0.1:0"
tls = "none"
[[plugins]]
use = "mailboxes"
domains = ["example.org"]
[[plugins]]
use = "relay"
networks = {networks}
[[plugins]]
use = "maildir"
path = "mail/{{local}}"
"""
    file = tmp_path / "x.toml"
    return [str(found).replace(f"{file}: ", "") for found in check(Config.parse(text, file))]


@pytest.mark.parametrize(
    ("networks", "found"),
    [
        ("[]", []),
        ('["10.0.0.0/8"]', []),
        ('["192.0.0.0/8"]', ["error: listeners[0] smtp, line 3: open relay: 192.0.2.1 may send"]),
        ('["2001::/16"]', ["error: listeners[0] smtp, line 3: open relay: 2001:db8::1 may send"]),
        ('["0.0.0.0/0"]', ["error: plugins[1] relay, line 12: networks: 0.0.0.0/0 is too wide:"]),
    ],
)
def test_check_refuses_an_open_relay(networks: str, found: list[str], tmp_path: Path) -> None:
    lines = findings(networks, tmp_path)
    assert len(lines) == len(found)
    assert all(map(str.startswith, lines, found))
