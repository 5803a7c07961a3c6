"""ARC chains: the public cases, own seals verified by dkimpy, and the consequences for dmarc."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import dkim
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from minismtp_plugins._authres import written
from minismtp_plugins._signing import Signer
from minismtp_plugins.arc import ARC, Arc, ArcResult
from minismtp_plugins.dmarc import DMARC, Dmarc
from zones import DictionaryResolver, published

from minismtp import (
    Address,
    AuthResult,
    Content,
    Delivery,
    Envelope,
    Message,
    ServerInfo,
    Session,
    UnansweredError,
    results_of,
)
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build

SUITE: Final = Path(__file__).parents[1] / "data" / "arc" / "arc-draft-validation-tests.yml"
#: The suite has no result for ended chains; RFC 8617 section 5.2 says fail.
ENDED: Final = {"cv_fail_i1_as_cv_fail", "cv_fail_i2_as2_fail", "cv_fail_i2_as1_fail"}
KEY: Final = rsa.generate_private_key(65537, 2048)
NAMES: Final[dict[str, list[str] | UnansweredError]] = {
    **{f"arc._domainkey.{name}.test": [published(KEY)] for name in ("one", "two", "three")},
    "_dmarc.victim.test": ["v=DMARC1; p=reject"],
}
MESSAGE: Final = (
    b"From: Alice <alice@victim.test>\r\nTo: list@one.test\r\nSubject: Hello\r\n\r\nHello, Bob.\r\n"
)
DMARC_PASS: Final = AuthResult("dmarc", "pass", properties={"header.from": "victim.test"})


def cases() -> Iterator[Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for scenario in yaml.load_all(SUITE.read_bytes(), loader):
        names = {name.lower(): [text] for name, text in (scenario["txt-records"] or {}).items()}
        for name, case in scenario["tests"].items():
            content = (case["message"] or "").encode().replace(b"\n", b"\r\n")
            expected = "fail" if name in ENDED else case["cv"].lower()
            yield pytest.param(content, names, expected, id=name)


def server(plugin: Arc | Dmarc, names: dict[str, list[str] | UnansweredError]) -> None:
    resolver = DictionaryResolver(names)
    plugin.on_start(ServerInfo("mx.example.org", Path(), "worker", 0, resolver))


def envelope_of(login: str | None = None, peer: str = "192.0.2.1", **values: Any) -> Envelope:  # noqa: ANN401 - any field
    return Envelope(
        id="e", reverse_path=Address("list", "one.test"), listener="smtp", peer=peer,
        helo="x", login=login, arrived=0.0, **values,
    )  # fmt: skip


def session_of(login: str | None = None) -> Session:
    return Session(id="s", listener="x", kind="mx", hostname="mx", peer="192.0.2.1", login=login)


def verify(
    content: bytes, names: dict[str, list[str] | UnansweredError] | None = None
) -> tuple[ArcResult, str]:
    """Return the result, as a value and as other readers see it."""
    plugin = Arc()
    server(plugin, NAMES if names is None else names)
    envelope = envelope_of()
    plugin.on_message(session_of(), envelope, Message("e", Content.of(content)))
    [told] = results_of(envelope)
    return envelope.stash[ARC], str(told)


@pytest.mark.parametrize(("content", "names", "expected"), [*cases()])
def test_public_case_has_its_result(
    content: bytes, names: dict[str, list[str] | UnansweredError], expected: str
) -> None:
    assert verify(content, names)[0].result == expected


# Sealing


@functools.cache
def key_file() -> bytes:
    return KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "arc.pem"
    path.write_bytes(key_file())
    return path


def sealed(
    key: Path,
    content: bytes,
    host: str = "one",
    results: tuple[AuthResult, ...] = (DMARC_PASS,),
    envelope: Envelope | None = None,
) -> bytes:
    """Return a message as a host sends it that verified it."""
    found = verify(content)[0]
    own = written("mx.example.org", [AuthResult("arc", found.result), *results])
    prefix = f"Authentication-Results: {own}\r\nReceived: from x by {host}; now\r\n"
    return sealed_as(key, content, prefix.encode(), host, envelope)


@functools.cache
def sealing(key: Path, host: str) -> Arc:
    plugin = Arc(domain=f"{host}.test", selector="arc", key=key)
    server(plugin, NAMES)
    return plugin


def sealed_as(
    key: Path,
    content: bytes,
    prefix: bytes,
    host: str = "one",
    envelope: Envelope | None = None,
) -> bytes:
    plugin = sealing(key, host)
    message = Message("e", Content.of(content), prefix)
    plugin.on_send(Delivery(envelope or envelope_of(), (), "example.net"), message)
    with message.open() as reader:
        return reader.read()


def dkimpy(content: bytes) -> str:
    """Return the opinion of dkimpy."""

    def txt(name: bytes, timeout: int = 5) -> bytes:
        del timeout
        texts = NAMES[name.decode().removesuffix(".")]
        assert isinstance(texts, list)
        return texts[0].encode()

    result = dkim.arc_verify(content, dnsfunc=txt)[0]
    return "ended" if result is None else str(result.decode())


def test_chain_that_grows_holds_for_us_and_for_dkimpy(key: Path) -> None:
    content = MESSAGE
    for number, host in enumerate(("one", "two", "three"), 1):
        content = sealed(key, content, host)
        assert dkimpy(content) == "pass"
        found, told = verify(content)
        assert told == "arc=pass smtp.remote-ip=192.0.2.1 header.oldest-pass=0"
        assert [each.sealer for each in found.reports] == ["one.test", "two.test", "three.test"][
            :number
        ]
        assert found.reports[-1].authserv_id == "mx.example.org"
        assert found.reports[-1].results[1] == DMARC_PASS
    assert re.findall(rb"cv=(\w+)", content) == [b"pass", b"pass", b"none"]
    assert max(map(len, content.split(b"\r\n"))) <= 100


def test_change_on_the_way_is_told_by_the_oldest_pass(key: Path) -> None:
    content = sealed(key, MESSAGE).replace(b"Hello, Bob", b"Hello, all")
    assert verify(content)[0] == ArcResult("fail", "the body is not what was signed")
    changed = sealed_as(
        key, content, b"Authentication-Results: mx.example.org; arc=pass\r\nReceived: x\r\n", "two"
    )
    assert verify(changed)[1] == "arc=pass smtp.remote-ip=192.0.2.1 header.oldest-pass=2"
    assert dkimpy(changed) == "pass"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Hello, Bob", b"Hullo, Bob"),
        (b"Subject: Hello", b"Subject: Hullo"),
        (b"dmarc=pass", b"dmarc=fail"),
        (b"i=1;", b"i=2;"),
        (b"From: Alice", b"From: eve@x.test\r\nFrom: Alice"),
    ],
)
def test_no_change_that_matters_goes_unnoticed(key: Path, old: bytes, new: bytes) -> None:
    content = sealed(key, MESSAGE)
    top = content.index(b"Authentication-Results: mx")  # what is not sealed itself
    assert old in content[: content.index(b"\r\nReceived:")] or old in MESSAGE
    changed = content[:top].replace(old, new) + content[top:].replace(old, new)
    assert verify(changed)[0].result == "fail"


def test_broken_chain_is_sealed_as_broken_and_then_no_more(key: Path) -> None:
    """RFC 8617 section 5.1, step 2, and section 5.1.2."""
    broken = sealed(key, sealed(key, MESSAGE), "two").replace(b"Hello, Bob", b"Hello, all")
    content = sealed(key, broken, "three")
    assert content.startswith(b"ARC-Seal: i=3; ")
    assert b"cv=fail" in content
    assert verify(content)[0] == ArcResult("fail", "seal 3 says cv=fail")
    assert dkimpy(content) == "ended"
    assert sealed(key, content, "one").count(b"ARC-Seal") == 3


def test_seal_names_no_fields(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 8617 section 4.1.3; the seal itself is good."""
    make = Signer.signed

    def with_names(signer: Signer, name: str, tags: str, octets: bytes) -> str:
        return make(signer, name, f"{tags} h=from;" if name == "ARC-Seal" else tags, octets)

    monkeypatch.setattr(Signer, "signed", with_names)
    assert verify(sealed(key, MESSAGE))[0].reason == "set 1 signs what it should not"


def test_lines_of_a_set_are_folded(key: Path) -> None:
    header = sealed(key, MESSAGE, "a-long-name-of-a-host.of-a-large-organization").partition(
        b"\nTo:"
    )[0]
    lines = header.replace(b"\r", b"").split(b"\n")
    assert lines[0].startswith(b"ARC-Seal: ")
    assert max(map(len, lines)) <= 78


def test_gap_in_a_chain_is_sealed_as_broken(key: Path) -> None:
    content = sealed(key, MESSAGE).replace(b"ARC-Seal:", b"X-Seal:")
    assert verify(content)[0].reason == "ARC-Seal is not there once for each set"
    assert sealed(key, content, "two").startswith(b"ARC-Seal: i=2; ")


OWN: Final = b"Authentication-Results: mx.example.org; arc=none\r\n"
RECEIVED: Final = b"Received: from x by y; now\r\n"


@pytest.mark.parametrize(
    ("prefix", "seals"),
    [
        (OWN + RECEIVED, True),
        (b"X-Spam: no\r\n" + OWN + RECEIVED, True),
        (RECEIVED + OWN, False),
        (RECEIVED, False),
        (OWN.replace(b"mx.example.org", b"mx.example.net") + RECEIVED, False),
        (OWN.replace(b"arc=none", b"none") + RECEIVED, False),
        (OWN.replace(b"none", b"pass") + RECEIVED, False),
        (OWN.replace(b"none", b"none; arc=none") + RECEIVED, False),
    ],
    ids=["own", "below", "sent with it", "missing", "of another", "no arc", "pass without", "two"],
)
def test_only_what_this_server_has_found_is_sealed(key: Path, prefix: bytes, seals: bool) -> None:
    """In particular not fields that came with the message."""
    content = sealed_as(key, MESSAGE, prefix)
    assert content.startswith(b"ARC-Seal:") is seals
    assert content.endswith(prefix + MESSAGE)


@pytest.mark.parametrize(
    ("values", "seals"),
    [
        ({}, True),
        ({"login": "alice"}, False),
        ({"peer": ""}, False),
        ({"body": "BINARYMIME"}, False),
    ],
    ids=["forwarded", "user", "notification", "binary"],
)
def test_only_mail_of_others_is_sealed(key: Path, values: dict[str, Any], seals: bool) -> None:
    content = sealed(key, MESSAGE, envelope=envelope_of(**values))
    assert content.startswith(b"ARC-Seal:") is seals


def test_nothing_is_sealed_without_a_key() -> None:
    plugin = Arc()
    server(plugin, NAMES)
    message = Message("e", Content.of(MESSAGE), OWN + RECEIVED)
    plugin.on_send(Delivery(envelope_of(), (), "example.net"), message)
    assert message.headers.get("ARC-Seal") == ""


def test_fiftieth_set_is_the_last(key: Path) -> None:
    """RFC 8617 section 4.2.1."""
    prefix = OWN.replace(b"none", b"pass") + RECEIVED
    content = sealed(key, MESSAGE)
    for _ in range(2, 51):
        content = sealed_as(key, content, prefix)
    assert verify(content)[0].result == "pass"
    assert sealed_as(key, content, prefix).count(b"ARC-Seal") == 50
    assert verify(b"ARC-Seal: i=51\r\n" + content)[0].reason == "it has more than 50 sets"


# Time, memory, and nonsense


def test_silent_dns_is_a_failure(key: Path) -> None:
    """RFC 8617 section 5.2.1."""
    content = sealed(key, MESSAGE)
    found, told = verify(content, {"arc._domainkey.one.test": UnansweredError("no answer")})
    assert found == ArcResult("fail", "no answer")
    assert told == 'arc=fail reason="no answer" smtp.remote-ip=192.0.2.1'


def test_header_beyond_all_bounds_is_not_verified(key: Path) -> None:
    content = sealed(key, MESSAGE).replace(b"From:", b"X: y\r\n" * 11_000 + b"From:", 1)
    assert verify(content)[0].reason == "the header is too large"


@pytest.mark.parametrize(
    "content",
    [
        b"ARC-Seal:\r\n" * 9000 + MESSAGE,
        b"ARC-Seal: i=1; cv=none\r\nARC-Message-Signature: i=1\r\n"
        b"ARC-Authentication-Results: i=1;\r\n" + MESSAGE,
        b"ARC-Seal: \xff\xfe\r\n" + MESSAGE,
        b"ARC-Authentication-Results: i=1; x\r\n" + MESSAGE,
        b"ARC-Seal: i=99999999999999999999\r\n" + MESSAGE,
    ],
    ids=["many", "empty", "octets", "alone", "number"],
)
def test_nonsense_is_a_chain_that_fails(content: bytes) -> None:
    assert verify(content)[0].result == "fail"


def test_mail_of_users_is_not_looked_at() -> None:
    plugin, envelope = Arc(), envelope_of("alice")
    plugin.on_message(session_of("alice"), envelope, Message("e", Content.of(MESSAGE)))
    assert results_of(envelope) == []


# The effect on dmarc


def judged(content: bytes, *trusted: str) -> tuple[str, str]:
    """Return result and disposition of a message that fails SPF and DKIM."""
    envelope, message, session = envelope_of(), Message("e", Content.of(content)), session_of()
    results_of(envelope).extend([AuthResult("spf", "none"), AuthResult("dkim", "fail")])
    arc, dmarc = Arc(), Dmarc(trusted_sealers=[*trusted], action="report_only")
    for plugin in (arc, dmarc):
        server(plugin, NAMES)
        plugin.on_message(session, envelope, message)
    return envelope.stash[DMARC].disposition, envelope.stash[DMARC].reason


FORGIVEN = ("none", "it passed at one.test, which is trusted")
FORGED = ("reject", "victim.test does not know this message as its own")


def test_failure_that_a_trusted_sealer_explains_has_no_consequence(key: Path) -> None:
    """RFC 8617 section 7.2."""
    content = sealed(key, MESSAGE)
    assert judged(content, "ONE.test") == FORGIVEN
    assert judged(content) == FORGED
    assert judged(content, "two.test") == FORGED
    assert judged(content.replace(b"Bob", b"all"), "one.test") == FORGED


def test_everybody_after_the_one_that_is_believed_has_to_be_trusted(key: Path) -> None:
    content = sealed(key, sealed(key, MESSAGE), "two", (AuthResult("dmarc", "fail"),))
    assert judged(content, "one.test", "two.test") == FORGIVEN
    assert judged(content, "one.test") == FORGED
    assert judged(content, "two.test") == FORGED


@pytest.mark.parametrize(
    "result",
    [
        AuthResult("dmarc", "fail", properties={"header.from": "victim.test"}),
        AuthResult("dmarc", "pass", properties={"header.from": "other.test"}),
        AuthResult("dmarc", "pass"),
        AuthResult("dkim", "pass", properties={"header.from": "victim.test"}),
    ],
)
def test_sealer_has_to_have_found_the_message_good(key: Path, result: AuthResult) -> None:
    assert judged(sealed(key, MESSAGE, results=(result,)), "one.test") == FORGED


# Options


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"patience": "0s"}, 'patience: expected more than "0s"'),
        ({"domain": "one.test", "selector": "arc"}, "key: expected a file, because"),
        ({"domain": "one.test", "key": "arc.pem"}, "selector: expected a DNS name"),
        ({"selector": "arc", "key": "arc.pem"}, "domain: expected a DNS name"),
        ({"domain": "x", "selector": "arc", "key": "no.pem"}, "no.pem: No such file or directory"),
        ({"domain": "x", "selector": "arc", "key": "ed.pem"}, "ed.pem: expected an RSA key"),
    ],
)
def test_fault_is_named(table: dict[str, Any], problem: str, tmp_path: Path, key: Path) -> None:
    del key
    octets = ed25519.Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    (tmp_path / "ed.pem").write_bytes(octets)
    with pytest.raises(ConfigError) as fault:
        build(Arc, table, file="c.toml", key="plugins[0]", base=tmp_path)
    assert problem in str(fault.value)
