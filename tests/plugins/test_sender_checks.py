"""The checks of a sender together, as configured on their pages, with a zone of nsd."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from minismtp_plugins._authres import read
from zones import Key, nsd, published

from minismtp import Headers
from minismtp.config import Config
from minismtp.hooks.loader import PluginSet

if TYPE_CHECKING:
    from conftest import Configure, Launch, Running, Start

PAGES: Final = Path(__file__).parents[2] / "docs" / "plugins"
LISTENER: Final = '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\ntls = "none"\n'


@pytest.mark.parametrize("name", ["arc", "authentication_results", "dkim_verify", "dmarc"])
def test_example_of_the_page_is_a_configuration(name: str, tmp_path: Path) -> None:
    page = (PAGES / f"{name}.md").read_text()
    assert page.startswith(f"# {name}\n")
    examples = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert examples
    for example in examples:
        PluginSet.load(Config.parse(LISTENER + example, tmp_path / "minismtp.toml"))


# From one server to another, with a zone of nsd

KEYS: Final[dict[str, Key]] = {
    "rsa": rsa.generate_private_key(65537, 2048),
    "ed": ed25519.Ed25519PrivateKey.generate(),
}
NAMES: Final = {
    **{f"{name}._domainkey.good.test": published(key) for name, key in KEYS.items()},
    "rsa._domainkey.list.test": published(KEYS["rsa"]),
    "good.test": "v=spf1 ip4:127.0.0.1 -all",
    "_dmarc.good.test": "v=DMARC1; p=reject; adkim=s",
    "eve.test": "v=spf1 ip4:127.0.0.1 -all",
    "_dmarc.careful.test": "v=DMARC1; p=quarantine",
}
CHECKS: Final = """
[dns]
nameservers = ["{dns}"]

[[plugins]]
use = "spf"
networks = []
helo_fail = "off"

[[plugins]]
use = "dkim_verify"

[[plugins]]
use = "arc"

[[plugins]]
use = "dmarc"
networks = []
trusted_sealers = ["list.test"]

[[plugins]]
use = "authentication_results"
"""
LIST: Final = """
[[plugins]]
use = "arc"
domain = "list.test"
selector = "rsa"
key = "rsa.pem"

[[plugins]]
use = "relay"
domains = ["example.org"]
"""
FOOTER: Final = '''
"""Add a line to each message, as lists do."""

from minismtp import Message, hookimpl, plugin


@plugin
class Footer:
    @hookimpl
    def on_message(self, message: Message) -> None:
        with message.content.open() as reader:
            message.replace(reader.read() + b"-- The list\\r\\n")
'''
SIGNS: Final = """
[[plugins]]
use = "relay"
networks = ["127.0.0.1"]

[[plugins]]
use = "dkim_sign"
domains = ["good.test"]
selectors = ["rsa", "ed"]
keys = "{{selector}}.pem"
networks = ["127.0.0.1"]

[[outbound.routes]]
domain = "*"
host = "{there}"
"""


def pem(name: str) -> str:
    octets: bytes = KEYS[name].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return octets.decode()


@pytest.fixture(scope="module")
def names(
    tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], str]
) -> Iterator[str]:
    with nsd(tmp_path_factory.mktemp("nsd"), NAMES, require_program) as address:
        yield address


@pytest.fixture(scope="module")
def checking(launch: Launch, names: str) -> Iterator[Running]:
    with launch(CHECKS.format(dns=names)) as server:
        yield server


def send(server: Running, recipient: str, sender: str, *lines: str) -> str:
    with server.connect() as client:
        client.begin_data(recipient, sender)
        client.send("\r\n".join([*lines, "Subject: hello", "", "It works.", ".", ""]))
        return client.reply()


def test_signed_mail_of_another_server_passes_all_checks(
    configure_at: Callable[[str], Configure], start: Start, checking: Running
) -> None:
    config = configure_at("there")(plugins=SIGNS.format(there=checking.address()))
    for name in KEYS:
        (config.parent / f"{name}.pem").write_text(pem(name))
    server = start(config)
    server.wait_for_log(" queue opened ")
    forged = "Authentication-Results: MX.example.org 1; dmarc=pass"
    reply = send(server, "good@example.org", "alice@good.test", "From: alice@good.test", forged)
    assert reply.startswith("250 ")
    [message] = checking.wait_until(lambda: checking.mail("good"))
    assert message.count(b"Authentication-Results:") == 1
    value = read(Headers.parse(message).get("Authentication-Results"))
    assert value[0] == "mx.example.org"
    told = [(each.method, each.result, *each.properties.values()) for each in value[1]]
    assert [each[:5] for each in told] == [
        ("spf", "pass", "alice@good.test"),
        ("dkim", "pass", "good.test", "ed", "ed25519-sha256"),
        ("dkim", "pass", "good.test", "rsa", "rsa-sha256"),
        ("arc", "none", "127.0.0.1"),
        ("dmarc", "pass", "good.test", "reject"),
    ]


@pytest.mark.parametrize("sender", ["eve@eve.test", ""])
def test_forged_mail_is_refused_where_the_domain_wants_that(checking: Running, sender: str) -> None:
    reply = send(checking, "forged@example.org", sender, "From: alice@good.test")
    expected = "550 5.7.1 good.test does not know this message as its own (DMARC)"
    assert reply.startswith(expected)
    assert checking.mail("forged") == []


def test_forged_mail_is_set_aside_where_the_domain_wants_that(checking: Running) -> None:
    reply = send(checking, "aside@example.org", "eve@eve.test", "From: a@news.careful.test")
    assert reply.startswith("250 ")
    checking.wait_for_log(r" quarantined .*to=aside@example\.org")


def test_mail_of_domains_without_a_policy_is_let_through(checking: Running) -> None:
    assert send(checking, "eve@example.org", "eve@eve.test", "From: eve@eve.test")[:3] == "250"
    [message] = checking.mail("eve")
    assert b"dmarc=none" in message


def test_mail_of_a_list_that_is_trusted_passes_by_its_seal(
    configure_at: Callable[[str], Configure], start: Start, checking: Running, names: str
) -> None:
    """The list changes the text, so the signature is valid there and not here."""
    checks = CHECKS.format(dns=names).replace('[[plugins]]\nuse = "arc"\n', "")
    last = '[[plugins]]\nuse = "footer"\n'
    route = f'[[outbound.routes]]\ndomain = "*"\nhost = "{checking.address()}"\n'
    config = configure_at("list")(checks, last, route, plugins=LIST)
    (config.parent / "local_plugins" / "footer.py").write_text(FOOTER)
    (config.parent / "rsa.pem").write_text(pem("rsa"))
    server = start(config)
    server.wait_for_log(" queue opened ")
    content = b"From: alice@good.test\r\nSubject: hello\r\n\r\nIt works.\r\n"
    signature = dkim.sign(content, b"rsa", b"good.test", pem("rsa").encode()).decode()
    lines = [*signature.rstrip().split("\r\n"), "From: alice@good.test"]
    assert send(server, "member@example.org", "owner@eve.test", *lines).startswith("250 ")
    [message] = checking.wait_until(lambda: checking.mail("member"))
    assert message.endswith(b"It works.\r\n-- The list\r\n")
    headers = Headers.parse(message)
    sealed = headers.get("ARC-Authentication-Results").partition(";")[2]
    here, there = (
        [(each.method, each.result) for each in read(value)[1]]
        for value in (headers.get("Authentication-Results"), sealed)
    )
    assert here == [("spf", "pass"), ("dkim", "fail"), ("arc", "pass"), ("dmarc", "fail")]
    assert there == [("spf", "pass"), ("arc", "none"), ("dkim", "pass"), ("dmarc", "pass")]
