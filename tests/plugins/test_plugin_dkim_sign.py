"""Signatures of outgoing mail, verified by dkimpy."""

from __future__ import annotations

import email
import email.message
import hashlib
import io
import json
import re
import subprocess
import time
from base64 import b64encode, encodebytes
from dataclasses import replace
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import dkim
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from dkim.canonicalization import Relaxed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from minismtp_plugins import _canonical
from minismtp_plugins._canonical import body_hash
from minismtp_plugins.dkim_sign import DkimSign
from snippets import CLEAR, MAILBOXES, listener
from test_from_field import FIELDS

from minismtp import Address, Content, Delivery, Envelope, Message
from minismtp.cli.check import check
from minismtp.cli.main import main
from minismtp.config import Config
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.delivery.client import Original
from minismtp.mail.queue_entry import QueueEntry
from minismtp.smtp.dot_stuffing import dotted

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Configure, Start

MESSAGE = (
    b"Received: from x by y; now\r\nFrom: Alice <alice@example.org>\r\nTo: bob@example.net\r\n"
    b"Subject: Hello  there\r\n\tfolded \r\nX-Free: yes\r\n\r\nHello,\t  Bob. \r\n\r\n"
    b"\xc3\xa9 8 bit\r\n.\r\n\r\n\r\n"
)
RSA = rsa.generate_private_key(65537, 2048)
ED25519 = ed25519.Ed25519PrivateKey.generate()
# OpenSSL no longer makes keys of this size, but still reads them.
SHORT = b"""\
-----BEGIN PRIVATE KEY-----
MIICcwIBADANBgkqhkiG9w0BAQEFAASCAl0wggJZAgEAAoGAV9QggqPY8WXeIPw7
R43+T1fEMB20ZlvqZUcM2/rf3Tc0lWOh8TXXHQYBOTnf+yRsqbUHYkiL+QZ5q11Z
FEgVfZM38CBivJQSjnJQt1mK+lDXpvVjptZJe+GfOgDjsf3axRzkqctrLh/7pROp
Crkv3ZvDxXn+G0PeKWiLGsdbh8sCAwEAAQKBgCkgo2ypjzBTVHY7xwKV4m2DGtKx
RkXcauGsKMBmNShg7pW6Bx5t6OKlajNC/7iZ8OxzYhbLBAjD2Hu/hbQyoSUPNjg9
2Y2mYugmLiztsnzbHnjOBL+QH6fzXC7dyXSBEZIV2QcL5Z3mRiWvt+SWxj0CkgUN
E3Yja3bOlyZJp985AkEAyLXn4grLQ9hl/DWBAJMm0NRUcTaol9VoPi7UaKsE+4ze
Ap4Qyi116JH3VR/nfxol6QhJSViPT/t9mSUadYVxjwJAcAXLcsGnSghvzsBaYGnt
qb54W9a56vE8WJZf/TzApCAUiWMPhEjS/G2Kj1VOyC3+bfIvZSMUdUTxg2wRFHKw
BQJAR5GdutuQeYPLcfB+LH9MQwDDj48m9OUzA6FdOmlpIG2tqI9Ge2FUfva1lBQJ
Tyg6xmqe/1ll2OZbdeVmFuvbfwJAHC34/cclNARnS9UrZvF+raKSWFftsOI6UfaR
8vwjYaYIRH882gQPvxw3LNNC3CxlwnaX4ZMvhEhxkKPQsBohmQJAJzI9eJSKLEth
eQ7a51mpDWJwsw+JHASvsVY8b0V6rAhX2HzfZjpqstbTtMrUUn88q2NfyBpZnF2c
nc8OkeY6zg==
-----END PRIVATE KEY-----
"""
ENVELOPE = Envelope(
    id="e", reverse_path=Address("alice", "example.org"), listener="submission",
    peer="192.0.2.1", helo="x", login="alice", arrived=0.0,
)  # fmt: skip


def pem(key: Any) -> bytes:  # noqa: ANN401 - any private key
    octets: bytes = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return octets


def damaged() -> bytes:
    """Return a key in PEM with another bit in its modulus."""
    octets = RSA.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    modulus = RSA.private_numbers().public_numbers.n
    changed = octets.replace(modulus.to_bytes(256, "big"), (modulus ^ 2).to_bytes(256, "big"))
    text = encodebytes(changed).decode()
    return f"-----BEGIN RSA PRIVATE KEY-----\n{text}-----END RSA PRIVATE KEY-----\n".encode()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Write a key of each kind for example.org, and return the option `keys`."""
    for domain in ("example.org", "example.com"):
        (tmp_path / f"{domain}.pem").write_bytes(pem(RSA))
    for selector, key in (("rsa", RSA), ("ed", ED25519)):
        path = tmp_path / f"example.org.{selector}.pem"
        path.write_bytes(pem(key))
        path.chmod(0o640)
    return tmp_path / "{domain}.{selector}.pem"


def plugin(keys: Path, *selectors: str, **options: Any) -> DkimSign:  # noqa: ANN401 - any option
    options.setdefault("domains", ["example.org"])
    return DkimSign(keys=keys, selectors=list(selectors) or ["rsa", "ed"], **options)


def txt(name: bytes, timeout: int = 5) -> bytes:
    """Answer as the DNS of example.org does."""
    del timeout
    public = {
        b"rsa._domainkey.example.org.": b"v=DKIM1; k=rsa; p="
        + b64encode(
            RSA.public_key().public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        ),
        b"ed._domainkey.example.org.": b"v=DKIM1; k=ed25519; p="
        + b64encode(ED25519.public_key().public_bytes_raw()),
    }
    return public.get(name, b"")


def verified(message: bytes) -> list[bool]:
    """Return dkimpy's judgement of each signature."""
    count = message.lower().count(b"dkim-signature:")
    return [_verified(message, number) for number in range(count)]


def _verified(message: bytes, number: int) -> bool:
    try:
        return bool(dkim.DKIM(message).verify(idx=number, dnsfunc=txt))
    except dkim.ValidationError:  # of the body
        return False


def sent(plugin: DkimSign, content: bytes = MESSAGE, **values: Any) -> bytes:  # noqa: ANN401 - any field
    """Return a message as it leaves."""
    envelope = replace(ENVELOPE, **values)
    message = Message("e", Content.of(content))
    plugin.on_send(Delivery(envelope, (Address("bob", "example.net"),), "example.net"), message)
    with message.open() as reader:
        return reader.read()


def test_both_kinds_of_signatures_hold(keys: Path) -> None:
    message = sent(plugin(keys))
    assert message.endswith(MESSAGE)
    assert verified(message) == [True, True]
    for kind, selector in ((b"rsa", b"rsa"), (b"ed25519", b"ed")):
        named = rb"a=%s-sha256; t=[0-9]+;\r\n\td=example.org;\r\n\ts=%s;" % (kind, selector)
        assert re.search(named, message)
    assert max(map(len, message.split(b"\r\n"))) <= 78


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Hello,\t", b"Hullo,\t"),
        (b".\r\n\r\n\r\n", b".\r\nmore\r\n"),
        (b"Subject: Hello", b"Subject: Hullo"),
        (b"To: bob", b"Cc: eve@example.net\r\nTo: bob"),
        (b"From: Alice", b"From: eve@example.com\r\nFrom: Alice"),
        (b"X-Free: yes", b"Reply-To: eve@example.com\r\nX-Free: yes"),
    ],
    ids=["word", "end", "subject", "cc", "from", "reply-to"],
)
def test_no_change_that_matters_goes_unnoticed(keys: Path, old: bytes, new: bytes) -> None:
    """RFC 6376 section 8.15: no field can be added."""
    message = sent(plugin(keys))
    assert message.count(old) == 1
    assert verified(message.replace(old, new)) == [False, False]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"X-Free: yes", b"X-Free: no"),
        (b"Hello  there\r\n\tfolded ", b"Hello there folded"),
        (b"Hello,\t  Bob. ", b"Hello, Bob."),
        (b".\r\n\r\n\r\n", b".\r\n"),
        (b"Received:", b"Received: from a by b; now\r\nReceived:"),
    ],
    ids=["other field", "folding", "blanks", "empty lines", "trace"],
)
def test_changes_on_the_way_that_are_common_are_borne(keys: Path, old: bytes, new: bytes) -> None:
    assert verified(sent(plugin(keys)).replace(old, new)) == [True, True]


@given(
    st.lists(st.sampled_from([b"\r\n", b" ", b"\t", b"a", b".", b"\xff", b"b" * 9])),
    st.integers(1, 12),
)
def test_body_is_hashed_as_dkimpy_does_it(words: list[bytes], piece: int) -> None:
    body = b"".join(words)
    if body and not body.endswith(b"\r\n"):
        body += b"\r\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_canonical, "_PIECE", piece)
        found = body_hash(io.BytesIO(b"A: b\r\n\r\n" + body))
    assert found == hashlib.sha256(Relaxed.canonicalize_body(body)).digest()


@given(st.lists(st.sampled_from([b"\r\n", b"\n", b"\r", b" ", b"a"])))
def test_body_is_hashed_as_it_will_be_sent(words: list[bytes]) -> None:
    """A message by BDAT may have other line ends; DATA turns them into CRLF."""
    body = b"".join(words)
    wire = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
    header = b"A: b\r\n\r\n"
    expected = body_hash(io.BytesIO(header + wire))
    assert body_hash(io.BytesIO(header + body)) == expected


@pytest.mark.parametrize(
    "content",
    [
        b"From: a@example.org\r\n\r\n",
        b"From: a@example.org\r\n",
        b"From: a@example.org\r\n\r\n \r\n",
    ],
    ids=["empty", "no empty line", "blank"],
)
def test_message_without_text_is_signed(keys: Path, content: bytes) -> None:
    assert verified(sent(plugin(keys, "rsa"), content)) == [True]


# Whose mail


@pytest.mark.parametrize(
    ("values", "signed"),
    [
        ({}, True),
        ({"login": None}, False),
        ({"login": None, "peer": "198.51.100.7"}, True),
        ({"login": None, "peer": "unix"}, False),
        ({"login": None, "peer": "", "reverse_path": None, "trusted": True}, True),
        ({"login": None, "peer": "", "reverse_path": None}, False),
        ({"body": "BINARYMIME"}, False),
    ],
    ids=[
        "user",
        "stranger",
        "network",
        "unix",
        "notification",
        "notification to a stranger",
        "binary",
    ],
)
def test_only_our_own_mail_is_signed(keys: Path, values: dict[str, Any], signed: bool) -> None:
    """In particular not mail that a stranger sends in our name through an alias."""
    signing = plugin(keys, "rsa", networks=[ip_network("198.51.100.0/24")])
    assert (b"DKIM-Signature:" in sent(signing, **values)) is signed


@pytest.mark.parametrize(
    ("sender", "signed"),
    [
        (b"From: alice@news.example.org", True),
        (b"From: alice@EXAMPLE.org", True),
        (b"From: alice@example.com", False),
        (b"From: alice@notexample.org", False),
        (b"From: alice", False),
        (b"From: alice@example.org\r\nFrom: bob@example.org", False),
        (b"Sender: alice@example.org", False),
    ],
)
def test_domain_of_the_from_field_signs(keys: Path, sender: bytes, signed: bool) -> None:
    message = sent(plugin(keys, "rsa"), sender + b"\r\n\r\nHello.\r\n")
    assert verified(message) == [True] * signed


@pytest.mark.parametrize(("value", "domains"), FIELDS.items())
def test_domain_is_that_which_dmarc_judges(keys: Path, value: str, domains: list[str]) -> None:
    message = sent(plugin(keys, "rsa"), f"From: {value}\r\n\r\nHello.\r\n".encode())
    own = any(domain.endswith("example.org") for domain in domains)
    assert message.count(b"DKIM-Signature:") == own


def test_each_domain_of_ours_in_the_from_field_signs(keys: Path) -> None:
    content = (
        b"From: a@example.org, b@example.net, c@example.com, d@x.example.org\r\n\r\nHello.\r\n"
    )
    signing = DkimSign(domains=["example.org", "example.com"], keys=keys.with_name("{domain}.pem"))
    found = re.findall(rb"\sd=([a-z.]+);", sent(signing, content))
    assert sorted(found) == [b"example.com", b"example.org"]


def test_a_field_of_too_many_domains_is_not_signed(keys: Path) -> None:
    domains = ", ".join(f"a@x{number}.example.org" for number in range(17))
    content = f"From: {domains}\r\n\r\nHello.\r\n".encode()
    assert b"DKIM-Signature" not in sent(plugin(keys, "rsa"), content)


# Options


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"domains": []}, "domains: expected at least one"),
        ({"selectors": []}, "domains: expected at least one"),
        ({"selectors": ["a b"]}, "selectors: 'a b' cannot stand in the DNS"),
        ({"keys": "{name}.pem"}, "known placeholders are {domain}, {selector}"),
        ({"keys": "x.pem", "selectors": ["rsa", "ed"]}, "expected {selector}, as there are"),
        ({"selectors": ["none"]}, "example.org.none.pem: No such file or directory"),
        ({"selectors": ["text"]}, "example.org.text.pem: no private key in PEM"),
        ({"selectors": ["short"]}, "example.org.short.pem: 1023 bits; receivers want 2048"),
        ({"selectors": ["curve"]}, "example.org.curve.pem: expected an RSA or Ed25519 key"),
        ({"selectors": ["damaged"]}, "example.org.damaged.pem: the RSA key is damaged"),
    ],
)
def test_fault_is_named(keys: Path, tmp_path: Path, options: dict[str, Any], problem: str) -> None:
    (tmp_path / "example.org.text.pem").write_text("no key")
    (tmp_path / "example.org.curve.pem").write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    (tmp_path / "example.org.short.pem").write_bytes(SHORT)
    (tmp_path / "example.org.damaged.pem").write_bytes(damaged())
    table = {"domains": ["example.org"], "selectors": ["rsa"], "keys": str(keys), **options}
    with pytest.raises(ConfigError) as fault:
        build(DkimSign, table, file="c.toml", key="plugins[0]", base=tmp_path)
    assert problem in str(fault.value)


def test_key_is_read_fast_enough_for_thousands(keys: Path) -> None:
    begun = time.thread_time()
    for _ in range(30):
        plugin(keys, "rsa")
    assert time.thread_time() - begun < 0.5


def test_check_warns_of_weak_keys_and_of_readers(keys: Path, tmp_path: Path) -> None:
    weak = tmp_path / "example.org.weak.pem"
    weak.write_bytes(pem(rsa.generate_private_key(65537, 1024)))  # noqa: S505 - is the subject
    weak.chmod(0o644)
    text = f"""
state_directory = "state"
[[plugins]]
use = "dkim_sign"
domains = ["example.org"]
selectors = ["rsa", "weak"]
keys = "{keys}"
{MAILBOXES}{listener("smtp", CLEAR)}"""
    file = tmp_path / "x.toml"
    found = [str(each).replace(f"{file}: ", "") for each in check(Config.parse(text, file))]
    place = "warning: plugins[0] dkim_sign, line 7: keys"
    assert found == [
        f"{place}: {weak} can be read by everybody (chmod o-r)",
        f"{place}: {weak} has 1024 bits only",
    ]


CONFIGURATION: Final = f"""
hostname = "mx.example.org"

[[plugins]]
use = "dkim_sign"
domains = ["example.org"]
selectors = ["mail", "ed"]
keys = "dkim/{{domain}}.{{selector}}.pem"
{listener("smtp", CLEAR)}"""


def test_commands_of_the_guide_make_keys_and_their_records(
    tmp_path: Path, require_program: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    require_program("openssl")
    page = (Path(__file__).parents[2] / "docs" / "sending.md").read_text()
    make, *_ = re.findall(r"```sh\n(.*?)```", page.partition("## DKIM")[2], re.DOTALL)
    make = make.replace("chgrp -R minismtp", "chgrp -R $(id -g)")
    make = make.replace("/etc/minismtp", str(tmp_path))
    subprocess.run(["bash", "-ec", make], check=True)
    config = tmp_path / "minismtp.toml"
    config.write_text(CONFIGURATION)
    assert main(["dns", "--domain", "example.org", "--json", "--config", str(config)]) == 0
    printed = {each["name"]: each["value"] for each in json.loads(capsys.readouterr().out)}
    signing = plugin(tmp_path / "dkim/{domain}.{selector}.pem", "mail", "ed")
    message = sent(signing)
    for number, selector in enumerate(("ed", "mail")):
        answer = partial(_constant, printed[f"{selector}._domainkey.example.org"].encode())
        assert dkim.DKIM(message).verify(idx=number, dnsfunc=answer)


def _constant(record: bytes, name: bytes, timeout: int = 5) -> bytes:
    del name, timeout
    return record


# What a host cannot take as it is

LINES: Final = [
    b"a",
    b" ",
    b"\r\n",
    b"\r\n.\r\n",
    b"x" * 999,
    b"word " * 300,
    "\u00fc".encode(),
    b"=",
]


@pytest.mark.parametrize("body", ["8BITMIME", "BINARYMIME"])
@given(st.lists(st.sampled_from(LINES), max_size=8), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_conversion_is_signed_and_decodes_to_what_was_sent(
    keys: Path, body: str, pieces: list[bytes], eight_bit: bool
) -> None:
    signing = plugin(keys, "rsa")
    text = b"".join(pieces)
    content = (
        b"From: alice@example.org\r\nMIME-Version: 1.0\r\n"
        b"Content-Type: multipart/damaged; boundary=b\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
        b"--b\r\nContent-Type: text/html\r\n\r\n" + text + b"\r\n--b--\r\n"
    )
    delivery = Delivery(replace(ENVELOPE, body=body), (), "example.net")

    def edit(entry: QueueEntry, message: Message) -> None:
        signing.on_send(replace(delivery, envelope=replace(ENVELOPE, body=entry.body)), message)

    original = Original(Message("e", Content.of(content)), edit)
    waiting = QueueEntry.of(delivery.envelope, Message("e", Content.of(b"")), [])
    _, message, _ = original.converted(waiting, eight_bit=eight_bit)
    with message.open() as reader:
        octets = b"".join(dotted(reader))
    octets = octets.removesuffix(b".\r\n").replace(b"\r\n..", b"\r\n.")
    assert verified(octets) == [True]
    assert max(map(len, octets.split(b"\r\n"))) <= 998
    assert eight_bit or octets.isascii()
    part = email.message_from_bytes(octets).get_payload(0)
    assert isinstance(part, email.message.Message)
    assert part.get_payload(decode=True) == text


# From one server to another

SIGNING = """
[[plugins]]
use = "relay"
networks = ["127.0.0.1"]

[[plugins]]
use = "dkim_sign"
domains = ["example.org"]
selectors = ["rsa", "ed"]
keys = "{keys}"
networks = ["127.0.0.1"]

[[outbound.routes]]
domain = "*"
host = "{address}"
"""


def test_signed_mail_arrives_and_so_do_signed_notifications(
    keys: Path, configure_at: Callable[[str], Configure], start: Start
) -> None:
    boxes = MAILBOXES.replace("example.org", "example.net")
    there = start(configure_at("there")(plugins=boxes))
    here = start(configure_at("here")(SIGNING.format(keys=keys, address=there.address())))
    here.wait_for_log(" queue opened ")
    with here.connect() as client:
        client.greet()
        client.command("MAIL FROM:<jo@example.net> BODY=8BITMIME")
        client.command("RCPT TO:<bob@example.net>")
        client.command("RCPT TO:<me@example.org> NOTIFY=SUCCESS")
        client.command("DATA")
        client.send(MESSAGE.replace(b"\r\n.", b"\r\n..") + b".\r\n")
        assert client.reply().startswith("250 ")
    [message] = there.wait_until(lambda: there.mail("bob"))
    [notice] = there.wait_until(lambda: there.mail("jo"))
    assert b"From: Mail Delivery System <MAILER-DAEMON@mx.example.org>" in notice
    for each in (message, notice):
        assert verified(each) == [True, True]
