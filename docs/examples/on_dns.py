"""Receive mail for a domain, and name the records that it needs in the DNS."""

from pathlib import Path

from minismtp import DnsZone, Local, Recipient, hookimpl, plugin
from minismtp.config import Config
from minismtp.inspection.dns_records import wanted_records
from minismtp.inspection.zone_text import zone_text


@plugin
class Lists:
    domain: str

    @hookimpl
    def on_dns(self, zone: DnsZone) -> None:
        zone.receive(self.domain)
        zone.send(self.domain)

    @hookimpl
    def route(self, recipient: Recipient) -> Local | None:
        return Local() if recipient.address.ascii_domain == self.domain else None


CONFIGURATION = """
hostname = "mx.example.org"
plugin_path = ["{plugins}"]
[[listeners]]
name = "smtp"
address = "*:25"
tls = "none"
[[plugins]]
use = "on_dns"
domain = "lists.example.org"
"""


def test_domain_gets_its_records(tmp_path: Path) -> None:
    text = CONFIGURATION.format(plugins=Path(__file__).parent)
    records = wanted_records(Config.parse(text, tmp_path / "minismtp.toml"))
    assert "lists.example.org. IN MX 10 mx.example.org.\n" in zone_text(records)
    assert 'lists.example.org. IN TXT "v=spf1 mx -all"\n' in zone_text(records)
