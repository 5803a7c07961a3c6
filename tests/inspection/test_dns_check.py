"""What the DNS says about each record: right, missing or wrong. The DNS is nsd and unbound."""

from __future__ import annotations

import hashlib
import ssl
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Final, NamedTuple

import nameserver
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from fakes import Names
from trustme import CA, LeafCert

from minismtp import Found, SocketAddress
from minismtp.config import Config
from minismtp.hooks.dns_zone import DnsRecord
from minismtp.inspection.dns_check import DnsChecker, Outcome, answered, chains_of
from minismtp.inspection.dns_records import own_addresses, wanted_records
from minismtp.inspection.questions import HurriedResolver
from minismtp.inspection.zone_text import quoted
from minismtp.values.der import public_key_of

KEY: Final = ed25519.Ed25519PrivateKey.generate()
PUBLIC: Final = b64encode(KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()
OTHER: Final = b64encode(bytes(32)).decode()
#: What is right: each owner and type, and the data of each record.
RIGHT: Final[dict[str, list[str]]] = {
    "mx A": ["{ip4}"],
    "mx AAAA": ["2001:db8::25"],
    "mx TXT": ["v=spf1 a -all"],
    "@ MX": ["10 mx"],
    "@ TXT": ["v=spf1 mx -all", "own=1"],
    "_dmarc TXT": ["v=DMARC1; p=none"],
    "mail._domainkey TXT": [f"v=DKIM1; k=ed25519; p={PUBLIC}"],
    "_smtp._tls TXT": ["v=TLSRPTv1; rua=mailto:a@example.org"],
    "_submission._tcp SRV": ["0 1 587 mx"],
    "_imaps._tcp SRV": ["0 1 993 mx"],
    "_mta-sts TXT": ["v=STSv1; id=1;"],
    "mta-sts CNAME": ["mx"],
    "autoconfig CNAME": ["mx"],
    "PTR": ["mx"],
}
CONFIG: Final = """
hostname = "mx.{domain}"
plugin_path = ["plugins"]
[[listeners]]
name = "smtp"
address = "*:25"
tls = "none"
[[listeners]]
name = "submission"
address = "*:587"
kind = "submission"
[tls]
certificate = "cert.pem"
key = "key.pem"
[dns]
nameservers = ["{nameserver}"]
addresses = ["198.51.100.{number}", "2001:db8::25"]
[[plugins]]
use = "mailboxes"
domains = ["{domain}"]
[[plugins]]
use = "dkim_sign"
domains = ["{domain}"]
keys = "key.pem"
[[plugins]]
use = "own"
domain = "{domain}"
"""
PLUGIN: Final = """
from minismtp import DnsRecord, hookimpl, plugin

@plugin
class Own:
    domain: str

    @hookimpl
    def on_dns(self, zone):
        for name, kind, value in (
            ("", "TXT", "own=1"),
            ("_mta-sts.", "TXT", "v=STSv1; id=2"),
            ("mta-sts.", "CNAME", f"{zone.hostname}."),
            ("autoconfig.", "CNAME", f"{zone.hostname}."),
        ):
            zone.add(DnsRecord(f"{name}{self.domain}", kind, value, need="recommended"))
"""


class Case(NamedTuple):
    """Other records of one owner and type, with the state and the note that this leads to.

    `about` is the beginning of the wanted text where there are several, `more` further records.
    """

    owner: str
    records: list[str]
    state: str
    note: str = ""
    about: str = ""
    more: str = ""


def spf(text: str, state: str, note: str = "", more: str = "") -> Case:
    """Return the case of an SPF record of the domain."""
    return Case("@ TXT", ["own=1", text], state, note, "v=spf1", more)


def dkim(*texts: str, state: str = "wrong", note: str = "") -> Case:
    """Return the case of records of a key."""
    return Case("mail._domainkey TXT", [*texts], state, note)


VALID: Final = f"v=DKIM1; k=ed25519; p={PUBLIC}"
CASES: Final = [
    Case("mx A", ["192.0.2.9"], "wrong"),
    Case("mx A", ["192.0.2.9", "{ip4}"], "right"),
    Case("mx A", [], "missing"),
    Case("mx AAAA", [], "missing"),
    Case("mx AAAA", ["2001:db8::9"], "wrong"),
    Case("mx TXT", [], "missing"),
    Case("mx TXT", ["v=spf1 -all"], "wrong", "does not permit {ip4} (-)"),
    Case("@ MX", [], "missing"),
    Case("@ MX", ["10 other", "20 mx"], "right"),
    Case("@ MX", ["10 other.example."], "wrong"),
    Case("@ MX", ["0 ."], "wrong", "no mail"),
    Case("@ TXT", ["own=1"], "missing", about="v=spf1"),
    Case("@ TXT", ["v=spf1 mx -all"], "missing", about="own="),
    Case("@ TXT", ["v=spf1 mx -all", "own=2"], "wrong", about="own="),
    Case("@ TXT", ["own=1", "v=spf1 mx", "v=spf1 a"], "wrong", "one SPF", "v=spf1"),
    spf("v=spf1 include:b.{domain} -all", "right", "", "b TXT 'v=spf1 ip4:{ip4}/24 ip6:2001::/16'"),
    spf("v=spf1 redirect=b.{domain}", "right", "", "b TXT 'v=spf1 a:mx.{domain}/30//64 ~all'"),
    spf("v=spf1 include:b.{domain} ~all", "wrong", "(~)", "b TXT 'v=spf1 ip4:192.0.2.0/24 -all'"),
    spf("v=spf1 include:b.{domain} -all", "wrong", "has no SPF record"),
    spf(
        "v=spf1 redirect=b.{domain}", "wrong", "more than 10", "b TXT 'v=spf1 redirect=b.{domain}'"
    ),
    spf("V=SPF1 +A:mx.{domain} -ALL", "right"),
    spf("v=spf1 mx:{domain} ?all", "right"),
    spf("v=spf1 ip4:{ip4} ip6:2001:db8::25", "right"),
    spf("v=spf1 ip4:{ip4} -all", "wrong", "2001:db8::25 (-)"),
    spf("v=spf1 exists:%{{i}}.b.{domain} -all", "right", "not judged"),
    spf("v=spf1 ptr -all", "right", "not judged"),
    spf("v=spf1 ip4:mx.{domain} -all", "wrong", "is wrong"),
    spf("v=spf1 ip4:1.2.3.4/33 -all", "wrong", "not a network"),
    spf("v=spf1 ip4:2001:db8::25 -all", "wrong", "not a network of ip4"),
    spf("v=spf1 mxx -all", "wrong", "is wrong"),
    spf("v=spf1 x=y a:other.{domain} -all", "wrong", "(-)"),
    spf("v=spf1", "wrong", "(?)"),
    spf(" v=spf1 mx -all", "wrong", "has to begin with 'v=spf1 '"),
    spf("v=spf1mx -all", "wrong", "has to begin with 'v=spf1 '"),
    spf("spf2.0/mfrom mx -all", "missing"),
    Case("_dmarc TXT", [], "missing"),
    Case("_dmarc TXT", ["v=DMARC1; p=reject; rua=mailto:x@y.example"], "right"),
    Case("_dmarc TXT", ["v = DMARC1 ; p = none"], "right"),
    Case("_dmarc TXT", ["v=DMARC1; p=never"], "wrong", "policy"),
    Case("_dmarc TXT", ["v=DMARC12; p=none"], "wrong", "has to begin with 'v=DMARC1;'"),
    Case("_dmarc TXT", ["v=DMARC1\\; p=none"], "wrong", "has to begin with 'v=DMARC1;'"),
    Case("_dmarc TXT", [" v=DMARC1; p=none"], "wrong", "has to begin"),
    Case("_dmarc TXT", ["v=dmarc1; p=none"], "wrong", "has to begin"),
    Case("_dmarc TXT", ["p=none; v=DMARC1"], "wrong", "has to begin"),
    Case("_dmarc TXT", ["of another program"], "missing"),
    Case("_dmarc TXT", ["v=DMARC1; p=none", "v=DMARC1; p=reject"], "wrong", "several"),
    dkim(state="missing"),
    dkim("v=DKIM1; k=ed25519; n=" + "x" * 300 + f"; p={PUBLIC}", state="right"),
    dkim(f"k=ed25519;p= {PUBLIC[:9]} {PUBLIC[9:]}", state="right"),
    dkim(f"v=DKIM1; k=ed25519; p={OTHER}", note="another public"),
    dkim(f"v=DKIM1; p={PUBLIC}", note="key of ed25519"),
    dkim("v=DKIM1; k=ed25519; p=", note="revoked"),
    dkim(VALID, "x", note="several"),
    Case("_smtp._tls TXT", [], "missing"),
    Case("_smtp._tls TXT", ["v=TLSRPTv1;"], "wrong"),
    Case("_submission._tcp SRV", [], "missing"),
    Case("_submission._tcp SRV", ["5 0 587 mx"], "right"),
    Case("_submission._tcp SRV", ["0 1 25 mx"], "wrong"),
    Case("_imaps._tcp SRV", ["0 0 0 ."], "wrong"),
    Case("_mta-sts TXT", [], "missing"),
    Case("_mta-sts TXT", ["V=STSv1; id=1"], "wrong", "has to begin with 'v=STSv1;'"),
    Case("_mta-sts TXT", ["v=spf1 -all"], "missing"),
    Case("_mta-sts TXT", ["v=STSv1; id=9"], "right", "another id; publish 'v=STSv1; id=2'"),
    Case("_mta-sts TXT", ["v=STSv1; id=a-b"], "wrong"),
    Case("_mta-sts TXT", ["v=STSv1; id=1", "v=STSv1; id=2"], "wrong", "several"),
    Case("mta-sts CNAME", [], "missing"),
    Case("mta-sts CNAME", ["other"], "wrong", "another host", more="other A 192.0.2.9"),
    Case("mta-sts CNAME", ["between"], "right", more="between CNAME mx"),
    Case("autoconfig CNAME", [], "right", more="autoconfig A {ip4}"),
    Case("PTR", [], "missing"),
    Case("PTR", ["other"], "wrong", "provider"),
]
NOTHING: Final = Case("", [], "right")
LAST: Final = len(CASES)  # the number of the domain in which all is right


def filled(text: str, number: int) -> str:
    """Return a text with the domain and the address of a case."""
    return text.format(domain=f"case{number}.test", ip4=f"198.51.100.{number}")


def zone_of(number: int, case: Case) -> str:
    """Return the records of a domain in which one thing differs."""
    lines = []
    for owner, texts in {**RIGHT, case.owner: case.records}.items():
        for text in texts if " " in owner else ():
            data = quoted(filled(text, number)) if owner.endswith(" TXT") else filled(text, number)
            lines.append(f"{owner} {data}")
    return "\n".join([*lines, filled(case.more.replace("'", '"'), number)]) + "\n"


def pointers(number: int, case: Case) -> str:
    texts = case.records if case.owner == "PTR" else RIGHT["PTR"]
    return "".join(f"{number} PTR {text}.case{number}.test.\n" for text in texts)


@pytest.fixture(scope="module")
def resolver(
    tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], str]
) -> Iterator[SocketAddress]:
    """Yield the address of a resolver that knows the domains of all cases."""
    cases = dict(enumerate([*CASES, NOTHING]))
    zones = {f"case{number}.test": zone_of(number, case) for number, case in cases.items()}
    zones["100.51.198.in-addr.arpa"] = "".join(pointers(*item) for item in cases.items())
    sixth = ip_address("2001:db8::25").reverse_pointer
    zones[sixth] = "".join(f"@ PTR mx.{name}.\n" for name in zones if name.endswith(".test"))
    zones["list.test"] = f"{LAST}.100.51.198 A 127.0.0.2\n"
    with nameserver.serving(tmp_path_factory.mktemp("dns"), require_program, zones) as address:
        yield address


def written(directory: Path, number: int, server: SocketAddress) -> Path:
    """Write the configuration of a case, and return its path."""
    pem = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / "key.pem").write_bytes(pem)
    (directory / "plugins").mkdir(exist_ok=True)
    (directory / "plugins" / "own.py").write_text(PLUGIN)
    file = directory / "minismtp.toml"
    domain = f"case{number}.test"
    file.write_text(CONFIG.format(domain=domain, number=number, nameserver=server))
    return file


def outcomes_of(config: Config, records: Sequence[DnsRecord]) -> list[Outcome]:
    asking = HurriedResolver(config.dns.nameservers, lambda _: None, 60)
    return answered(DnsChecker(asking, own_addresses(config)).asked(records), asking)


def is_about(case: Case, record: DnsRecord, domain: str) -> bool:
    owner, _, kind = case.owner.rpartition(" ")
    if kind == "PTR":
        return record.kind == kind and record.name.endswith(".in-addr.arpa")
    name = f"{owner}.{domain}".removeprefix("@.")
    return (record.name, record.kind) == (name, kind) and record.value.startswith(case.about)


IDS: Final = [f"{number} {each.owner} {each.state}" for number, each in enumerate(CASES)]


@pytest.mark.parametrize(("number", "case"), list(enumerate(CASES)), ids=IDS)
def test_record_is_judged(tmp_path: Path, resolver: SocketAddress, number: int, case: Case) -> None:
    config = Config.load(written(tmp_path, number, resolver))
    about = [each for each in wanted_records(config) if is_about(case, each, f"case{number}.test")]
    [outcome] = outcomes_of(config, about)
    assert outcome.state == case.state
    assert filled(case.note, number) in outcome.note


def test_all_is_right(tmp_path: Path, resolver: SocketAddress) -> None:
    config = Config.load(written(tmp_path, LAST, resolver))
    outcomes = outcomes_of(config, wanted_records(config))
    assert {each.state for each in outcomes} == {"right"}
    assert len(outcomes) == len(RIGHT) + 2  # two of "@ TXT" and PTR each


# What the local DNS cannot be made to say


class Signed(Names):
    """A DNS whose answers DNSSEC validated."""

    def lookup(self, name: str, kind: str, *, seconds: float = 10.0) -> Found:
        return replace(super().lookup(name, kind, seconds=seconds), secure=True)


def checked(record: DnsRecord, names: Names, chain: Sequence[bytes] = ()) -> Outcome:
    return DnsChecker(names, [ip_address("192.0.2.25")], {"mx.test": chain}).check(record)


def test_tlsa_of_another_name_is_compared_with_its_own_certificate() -> None:
    one, two = (der_of(CA().issue_cert(name)) for name in ("mx.test", "mx2.test"))
    records = {"mx.test A": ["192.0.2.25"], "mx2.test A": ["192.0.2.25"]}
    record = DnsRecord("_25._tcp.mx2.test", "TLSA", key_record(two), need="signed")
    for value, state in ((key_record(two), "right"), (key_record(one), "wrong")):
        names = Signed({**records, "_25._tcp.mx2.test TLSA": [value]})
        checker = DnsChecker(names, chains={"mx.test": [one], "mx2.test": [two]})
        assert checker.check(record).state == state


def der_of(issued: LeafCert) -> bytes:
    return ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())


def key_record(der: bytes) -> str:
    return f"3 1 1 {hashlib.sha256(public_key_of(der)).hexdigest()}"


def test_tlsa_is_not_needed_without_dnssec() -> None:
    record = DnsRecord("_25._tcp.mx.test", "TLSA", "3 1 1 00", need="signed")
    assert checked(record, Names({"mx.test A": ["192.0.2.25"]})).state == "right"


@pytest.mark.parametrize(
    ("texts", "state"),
    [
        ([], "missing"),
        (["3 1 1 {key}"], "right"),
        (["3 1 1 " + "00" * 32, "3 0 1 {certificate}"], "right"),
        (["2 0 1 {authority}"], "right"),
        (["2 0 1 {certificate}"], "wrong"),
        (["3 1 1 " + "00" * 32], "wrong"),
        (["9 9 9 00"], "wrong"),
    ],
)
def test_tlsa_has_to_name_the_certificate(texts: Sequence[str], state: str) -> None:
    authority = CA()
    pems = [authority.issue_cert("mx.test").cert_chain_pems[0], authority.cert_pem]
    chain = [ssl.PEM_cert_to_DER_cert(pem.bytes().decode()) for pem in pems]
    own, other = (hashlib.sha256(each).hexdigest() for each in chain)
    key = hashlib.sha256(public_key_of(chain[0])).hexdigest()
    found = [text.format(key=key, certificate=own, authority=other) for text in texts]
    names = Signed({"mx.test A": ["192.0.2.25"], "_25._tcp.mx.test TLSA": found})
    record = DnsRecord("_25._tcp.mx.test", "TLSA", f"3 1 1 {key}", need="signed")
    outcome = checked(record, names, chain)
    assert (outcome.state, outcome.fails) == (state, state == "wrong")


class Alias(Names):
    """A DNS in which each name is an alias for mx.test."""

    def lookup(self, name: str, kind: str, *, seconds: float = 10.0) -> Found:
        del name
        return replace(super().lookup("mx.test", kind, seconds=seconds), name="mx.test")


def test_host_must_not_be_an_alias() -> None:
    outcome = checked(
        DnsRecord("mail.test", "A", "192.0.2.25"), Alias({"mx.test A": ["192.0.2.25"]})
    )
    assert outcome.state == "wrong"
    assert "an alias (CNAME) for mx.test" in outcome.note


def test_policy_may_be_that_of_the_domain_above() -> None:
    record = DnsRecord("_dmarc.mail.example.org", "TXT", "v=DMARC1; p=none")
    names = Names({"_dmarc.example.org TXT": ['"v=DMARC1; p=reject"']})
    outcome = checked(record, names)
    assert (outcome.state, outcome.note) == ("right", "the policy is that of example.org")


@pytest.mark.parametrize(
    ("names", "state"),
    [
        ({"mx.test A": ["192.0.2.1"]}, "right"),
        ({"mx.test AAAA": ["::1"]}, "right"),
        ({}, "missing"),
    ],
)
def test_unknown_address_may_be_any(names: dict[str, list[str]], state: str) -> None:
    assert checked(DnsRecord("mx.test", "A", ""), Names(names)).state == state


def test_smarthost_is_not_looked_for_in_spf() -> None:
    names = Names({"test TXT": ['"v=spf1 include:spf.test -all"'], "spf.test TXT": ['"v=spf1"']})
    record = DnsRecord("test", "TXT", "v=spf1 mx ~all")
    address = [ip_address("192.0.2.25")]
    assert DnsChecker(names, address).check(record).state == "wrong"
    assert DnsChecker(names, address, smarthost=True).check(record).state == "right"


def test_long_answers_are_shortened() -> None:
    text = "v=spf1 " + "x" * 50_000
    names = Names({"mx.test TXT": [quoted(text)]})
    outcome = checked(DnsRecord("mx.test", "TXT", "v=spf1 mx -all"), names)
    assert outcome.state == "wrong"
    assert [len(each) for each in outcome.found] == [2001]


def test_silent_dns_says_nothing() -> None:
    for kind, value in (("A", "192.0.2.1"), ("MX", "10 mx.test."), ("TXT", "v=spf1 -all")):
        outcome = checked(DnsRecord("mx.test", kind, value), Names(silent=True))  # type: ignore[arg-type]
        assert (outcome.state, outcome.fails) == ("unanswered", False)


def test_certificates_that_cannot_be_read_are_none(tmp_path: Path) -> None:
    config = Config.load(written(tmp_path, 0, SocketAddress("127.0.0.1", 53)))
    [name] = chains_of(config)
    assert chains_of(config) == {name: []}
    (tmp_path / "cert.pem").write_text("no certificate")
    assert chains_of(config) == {name: []}
    (tmp_path / "cert.pem").write_bytes(CA().cert_pem.bytes())
    assert len(chains_of(config)[name]) == 1
