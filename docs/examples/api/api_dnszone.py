"""Ask for a record that proves to a service who owns a domain."""

from minismtp import DnsRecord, DnsZone, Envelope, StashKey, hookimpl, plugin

CODE: StashKey[str] = StashKey()


@plugin
class Verified:
    domains: list[str]
    code: str

    @hookimpl
    def on_dns(self, zone: DnsZone) -> None:
        for domain in self.domains:
            text = f"example-verification={self.code}"
            zone.add(DnsRecord(domain, "TXT", text, f"{domain}: proof for the mail counter"))

    @hookimpl
    def on_mail(self, envelope: Envelope) -> None:
        envelope.stash[CODE] = self.code


def test_each_domain_gets_the_code() -> None:
    zone = DnsZone("mx.example.org")
    Verified(domains=["example.org", "example.net"], code="abc").on_dns(zone)
    assert [each.name for each in zone.records] == ["example.org", "example.net"]
    assert {each.value for each in zone.records} == {"example-verification=abc"}
