"""The records that a configuration needs, and the zone file made from them."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import dns.zone
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from pumps import grows_too_fast
from trustme import CA

from minismtp.config import Config, PluginConfig
from minismtp.config.mistakes import ConfigError
from minismtp.delivery.dane import Tlsa
from minismtp.hooks.dns_zone import DnsRecord, DnsZone
from minismtp.inspection.dns_records import own_addresses, wanted_records
from minismtp.inspection.zone_text import quoted, zone_text
from minismtp.services.certificate_file import der_certificates
from minismtp.values.der import public_key_of

HOST: Final = [ip_address("192.0.2.25"), ip_address("2001:db8::25")]
HEAD: Final = """
hostname = "mx.example.org"
plugin_path = ["plugins"]
[tls]
certificate = "cert.pem"
key = "key.pem"
[[listeners]]
name = "smtp"
address = "*:25"
[[listeners]]
name = "submission"
address = "*:587"
kind = "submission"
[[listeners]]
name = "submissions"
address = "*:465"
kind = "submission"
tls = "implicit"
"""
MAILBOXES: Final = """
[[plugins]]
use = "mailboxes"
domains = ["example.org", "bücher.example"]
"""
RELAY: Final = """
[[plugins]]
use = "relay"
domains = ["backup.example"]
"""
SIGN: Final = """
[[plugins]]
use = "dkim_sign"
domains = ["example.org"]
keys = "{selector}.pem"
selectors = ["mail", "ed"]
"""


def configured(directory: Path, text: str) -> Config:
    return Config.parse(HEAD + text, directory / "minismtp.toml")


def wanted(directory: Path, text: str = MAILBOXES, domain: str = "") -> list[str]:
    records = wanted_records(configured(directory, text), domain, addresses=HOST)
    return [line for line in zone_text(records).split("\n") if " IN " in line]


def test_host_and_domain_get_their_records(tmp_path: Path) -> None:
    assert wanted(tmp_path, domain="example.org") == [
        "mx.example.org. IN A 192.0.2.25",
        "mx.example.org. IN AAAA 2001:db8::25",
        'mx.example.org. IN TXT "v=spf1 a -all"',
        "example.org. IN MX 10 mx.example.org.",
        'example.org. IN TXT "v=spf1 mx -all"',
        '_dmarc.example.org. IN TXT "v=DMARC1; p=none; rua=mailto:postmaster@example.org"',
        '_smtp._tls.example.org. IN TXT "v=TLSRPTv1; rua=mailto:postmaster@example.org"',
        "_submission._tcp.example.org. IN SRV 0 1 587 mx.example.org.",
        "_submissions._tcp.example.org. IN SRV 0 1 465 mx.example.org.",
        "_imaps._tcp.example.org. IN SRV 0 1 993 mx.example.org.",
        "; 25.2.0.192.in-addr.arpa. IN PTR mx.example.org.",
        f"; {HOST[1].reverse_pointer}. IN PTR mx.example.org.",
    ]


def test_load_balancer_has_the_usual_ports(tmp_path: Path) -> None:
    text = HEAD.replace('"*:587"\n', '"127.0.0.1:10587"\nproxy_protocol = ["192.0.2.1"]\n')
    config = Config.parse(text.replace('"*:465"', '"127.0.0.1:465"') + MAILBOXES, tmp_path / "x")
    found = [each.value for each in wanted_records(config, addresses=HOST) if each.kind == "SRV"]
    assert found[:2] == ["0 1 587 mx.example.org.", "0 1 993 mx.example.org."]


def test_international_domain_has_a_labels(tmp_path: Path) -> None:
    lines = wanted(tmp_path, domain="BÜCHER.example")
    assert "xn--bcher-kva.example. IN MX 10 mx.example.org." in lines
    assert not any(line.startswith("example.org") for line in lines)
    assert "".join(wanted(tmp_path)).isascii()


def test_domain_whose_users_are_elsewhere_gets_mx_only(tmp_path: Path) -> None:
    lines = [each for each in wanted(tmp_path, RELAY) if "backup.example" in each]
    assert lines == ["backup.example. IN MX 10 mx.example.org."]


def test_smarthost_is_not_forbidden(tmp_path: Path) -> None:
    text = '[outbound]\nsmarthost = "smtp.example.net:587"\n' + MAILBOXES
    assert 'example.org. IN TXT "v=spf1 mx ~all"' in wanted(tmp_path, text)
    records = wanted_records(configured(tmp_path, text), addresses=HOST)
    assert {each.need for each in records if each.kind == "PTR"} == {"recommended"}


def test_domain_that_is_the_host_has_one_spf_record(tmp_path: Path) -> None:
    text = MAILBOXES.replace("example.org", "mx.example.org")
    found = [line for line in wanted(tmp_path, text) if 'TXT "v=spf1' in line]
    assert found[0] == 'mx.example.org. IN TXT "v=spf1 mx -all"'
    assert len(found) == 2  # the other one is that of the other domain


def test_unknown_address_is_a_comment(tmp_path: Path) -> None:
    records = wanted_records(configured(tmp_path, MAILBOXES), addresses=())
    assert "; mx.example.org. IN A <the public IPv4 address>\n" in zone_text(records)
    assert not any(each.kind == "PTR" for each in records)


@pytest.mark.parametrize("size", [255, 256])
def test_record_of_several_strings_says_what_a_form_takes(size: int) -> None:
    text = zone_text([DnsRecord("example.org", "TXT", "x" * size, "")])
    assert ("without quotes and the blank inside:\nexample.org. IN TXT" in text) == (size > 255)


def test_keys_of_all_selectors_are_published(tmp_path: Path) -> None:
    keys: dict[str, rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey] = {
        "mail": rsa.generate_private_key(65537, 2048),
        "ed": ed25519.Ed25519PrivateKey.generate(),
    }
    for name, key in keys.items():
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (tmp_path / f"{name}.pem").write_bytes(pem)
    records = {each.name: each for each in wanted_records(configured(tmp_path, MAILBOXES + SIGN))}
    der = keys["mail"].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    raw = keys["ed"].public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    first, second = (f"{name}._domainkey.example.org" for name in keys)
    assert records[first].value == f"v=DKIM1; k=rsa; p={b64encode(der).decode()}"
    assert records[second].value == f"v=DKIM1; k=ed25519; p={b64encode(raw).decode()}"


def test_certificate_has_a_tlsa_record_for_dnssec(tmp_path: Path) -> None:
    issued = CA().issue_cert("mx.example.org")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    [record] = [
        each for each in wanted_records(configured(tmp_path, MAILBOXES)) if each.kind == "TLSA"
    ]
    assert (record.name, record.need) == ("_25._tcp.mx.example.org", "signed")
    usage, selector, matching, data = record.value.split()
    from cryptography.x509 import load_pem_x509_certificate  # noqa: PLC0415

    der = load_pem_x509_certificate(issued.cert_chain_pems[0].bytes()).public_bytes(Encoding.DER)
    assert Tlsa(int(usage), int(selector), int(matching), bytes.fromhex(data)).names(der)
    assert "\n; _25._tcp.mx.example.org. IN TLSA 3 1 1 " in zone_text([record])


SNI: Final = """
[[tls.sni]]
name = "MX.example.net"
certificate = "net.pem"
key = "net.pem"

[[tls.sni]]
name = "*.example.org"
certificate = "wild.pem"
key = "wild.pem"

[[tls.sni]]
name = "missing.example.net"
certificate = "missing.pem"
key = "missing.pem"
"""


def test_each_name_has_the_tlsa_record_of_the_certificate_that_its_clients_get(
    tmp_path: Path,
) -> None:
    for name in ("cert", "net", "wild"):
        issued = CA().issue_cert(f"{name}.example")
        issued.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    config = configured(tmp_path, MAILBOXES + SNI)
    values = {each.name: each.value for each in wanted_records(config) if each.kind == "TLSA"}
    assert values == {
        "_25._tcp.mx.example.org": key_record(tmp_path / "wild.pem"),
        "_25._tcp.mx.example.net": key_record(tmp_path / "net.pem"),
    }


def key_record(path: Path) -> str:
    return f"3 1 1 {hashlib.sha256(public_key_of(der_certificates(path)[0])).hexdigest()}"


def test_mistakes_of_other_plugins_do_not_matter(tmp_path: Path) -> None:
    text = MAILBOXES + '[[plugins]]\nuse = "password_file"\npath = "missing"\n'
    assert wanted(tmp_path, text) == wanted(tmp_path)


PLUGIN: Final = """
from minismtp import DnsRecord, hookimpl, plugin

@plugin
class Own:
    record: str
    value: str = "v=spf1 -all"

    @hookimpl
    def on_dns(self, zone):
        zone.add(DnsRecord(self.record, "TXT", self.value))
"""


def with_own(directory: Path, *lines: str) -> str:
    (directory / "plugins").mkdir()
    (directory / "plugins" / "own.py").write_text(PLUGIN)
    return MAILBOXES + '[[plugins]]\nuse = "own"\n' + "\n".join(lines)


def test_plugin_of_others_adds_records(tmp_path: Path) -> None:
    text = with_own(tmp_path, 'record = "list.example.org"', r'value = "a \"b\" \\ ü"')
    assert r'list.example.org. IN TXT "a \"b\" \\ \195\188"' in wanted(tmp_path, text)
    assert any("list." in line for line in wanted(tmp_path, text, "example.org"))
    assert not any("list." in line for line in wanted(tmp_path, text, "bücher.example"))


@pytest.mark.parametrize("name", ["-x.example.org", "a..b", "", "a b.org", "x" * 64 + ".org"])
def test_name_that_is_no_name_names_the_plugin(tmp_path: Path, name: str) -> None:
    text = with_own(tmp_path, f'record = "{name}"')
    with pytest.raises(ConfigError, match=r"plugin 'own': on_dns failed: .*cannot be a name"):
        wanted(tmp_path, text)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("TXT", "a\nb"),
        ("TXT", "x" * 4001),
        ("MX", "10 mx.example.org.\nx IN A 192.0.2.1"),
        ("MX", "mx.example.org."),
        ("MX", "10 mx"),
        ("SRV", "1 587 mx.example.org."),
        ("TLSA", "3 1 1"),
        ("PTR", ""),
        ("A", "2001:db8::1"),
        ("AAAA", "fe80::1%eth0"),
        ("A", "192.0.2.1 ; x"),
        ("CNAME", '"x"'),
        ("NS", "ns.example.org."),
    ],
)
def test_value_that_no_zone_can_contain_is_refused(kind: str, value: str) -> None:
    with pytest.raises(ValueError, match=r"example\.org: "):
        DnsRecord("example.org", kind, value)  # type: ignore[arg-type]


def test_purpose_cannot_end_its_comment() -> None:
    with pytest.raises(ValueError, match=r"purpose .* has control characters"):
        DnsRecord("example.org", "A", "192.0.2.1", "x\ny")


@pytest.mark.parametrize("domain", ["example.net", "exampel.org", "no name", "[192.0.2.1]"])
def test_domain_of_others_is_refused(tmp_path: Path, domain: str) -> None:
    with pytest.raises(ConfigError, match="domain"):
        wanted(tmp_path, domain=domain)


def test_refusal_names_some_of_many_domains(tmp_path: Path) -> None:
    table = MAILBOXES.replace('"example.org"', ", ".join(f'"d{n}.example"' for n in range(99)), 1)
    with pytest.raises(ConfigError, match=r"it has d0\.example.*, d9\.example and 90 more$"):
        wanted(tmp_path, table, "nothing.alike")


def test_host_without_a_name_is_refused(tmp_path: Path) -> None:
    text = (HEAD + MAILBOXES).replace("mx.example.org", "localhost")
    with pytest.raises(ConfigError, match="'localhost' is not in the DNS"):
        wanted_records(Config.parse(text, tmp_path / "minismtp.toml"))


def test_local_domains_are_left_out(tmp_path: Path) -> None:
    text = MAILBOXES.replace('"example.org"', '"localhost"')
    assert not any("localhost" in line for line in wanted(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ('[dns]\naddresses = ["192.0.2.7", "2001:db8::7"]\n', ["192.0.2.7", "2001:db8::7"]),
        ('[dns]\naddresses = ["::ffff:192.0.2.7", "192.0.2.7"]\n', ["192.0.2.7"]),
        ('[[listeners]]\nname = "x"\naddress = "198.41.0.4:25"\n', ["198.41.0.4"]),
    ],
)
def test_addresses_are_those_of_the_configuration(
    tmp_path: Path, text: str, addresses: list[str]
) -> None:
    assert own_addresses(configured(tmp_path, text)) == tuple(map(ip_address, addresses))


@pytest.mark.parametrize("text", ["mx.example.org", "", "fe80::1%eth0", "::", "224.0.0.1"])
def test_address_that_no_host_has_in_the_dns_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"addresses\[0\].*: expected an address such as"):
        configured(tmp_path, f'[dns]\naddresses = ["{text}"]\n')


def test_zone_is_read_by_another_program(tmp_path: Path) -> None:
    text = wanted_records(configured(tmp_path, MAILBOXES), addresses=HOST)
    long = DnsRecord("k.example.org", "TXT", "p=" + 'ü\\"' * 200)
    zone = dns.zone.from_text(
        zone_text([*text, long]), origin=".", relativize=False, check_origin=False
    )
    assert zone.get_rdataset("example.org.", "MX") is not None
    found = zone.find_rdataset("k.example.org.", "TXT")[0]
    assert b"".join(found.strings).decode() == long.value
    assert max(map(len, found.strings)) == 255


def test_empty_text_is_one_empty_string() -> None:
    assert quoted("") == '""'


def test_many_domains_take_linear_time(tmp_path: Path) -> None:
    config = configured(tmp_path, "")

    class Many:
        def __init__(self, count: int) -> None:
            self.count = count

        def on_dns(self, zone: DnsZone) -> None:
            for number in range(self.count):
                zone.send(f"d{number}.example")
                zone.add(DnsRecord(f"mail._domainkey.d{number}.example", "TXT", "v=DKIM1; p="))

    def work(count: int) -> Callable[[], object]:
        plugins = [(PluginConfig(use="many"), Many(count))]
        return lambda: wanted_records(config, addresses=HOST, plugins=plugins)

    assert not grows_too_fast(work, 2_000)


def test_record_is_among_those_of_the_nearest_domain(tmp_path: Path) -> None:
    config = configured(tmp_path, "")

    class Nested:
        def on_dns(self, zone: DnsZone) -> None:
            for domain in ("example.org", "a.example.org"):
                zone.send(domain)
                zone.add(DnsRecord(f"x.{domain}", "TXT", domain))
            zone.add(DnsRecord("x.example.com", "TXT", "elsewhere"))

    plugins = [(PluginConfig(use="nested"), Nested())]
    records = wanted_records(config, addresses=(), plugins=plugins)
    names = [each.name for each in records if each.name.startswith(("x.", "_dmarc"))]
    first, second = "_dmarc.example.org", "_dmarc.a.example.org"
    assert names == [first, "x.example.org", second, "x.a.example.org", "x.example.com"]
