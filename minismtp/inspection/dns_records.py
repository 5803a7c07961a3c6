"""The records that a configuration needs in the DNS.

The plugins tell which domains receive and send mail here; the rest follows from the host name and
the listeners.
"""

from __future__ import annotations

import hashlib
import inspect
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final, TypeAlias

from minismtp.config import Config, Listener, PluginConfig
from minismtp.config.mistakes import ConfigError, did_you_mean
from minismtp.config.types import parse_domain, parse_host_address
from minismtp.hooks.dns_zone import DnsRecord, DnsZone, Kind, Need
from minismtp.hooks.loader import instances
from minismtp.inspection.certificates import files_by_name
from minismtp.runtime.log import describe
from minismtp.services.certificate_file import der_certificates
from minismtp.services.resolver import Resolver, UnansweredError
from minismtp.values.der import public_key_of

Address: TypeAlias = IPv4Address | IPv6Address
Plugins: TypeAlias = Iterable[tuple[PluginConfig, object]]

_SMTP: Final = 25
#: Addresses of public networks, to which no packet is sent: the kernel says whence it would go.
_FAR: Final = ((socket.AF_INET, "198.41.0.4"), (socket.AF_INET6, "2001:503:ba3e::2:30"))
_USUAL_PORTS: Final = {"implicit": ("_submissions", 465), "starttls": ("_submission", 587)}
_MOST_NAMED: Final = 10  # domains in an error
_WEB_NAMES: Final = ("autoconfig", "autodiscover")
#: Under these names in a domain, web listeners serve what others look up about it.
WEB_LABELS: Final = ("mta-sts", *_WEB_NAMES)


def wanted_records(
    configuration: Config,
    domain: str = "",
    *,
    addresses: Iterable[Address] | None = None,
    plugins: Plugins | None = None,
) -> tuple[DnsRecord, ...]:
    """Return the records, those of the host first and PTR records last. Raise ConfigError.

    With a `domain`, only the host's and those of this domain are returned. `addresses` are the
    host's public ones; by default those of `own_addresses`. `plugins` are those of the
    configuration if they are loaded already.
    """
    zone = dns_zone(configuration, plugins)
    domains = _domains(zone)
    if domain:
        domains = [_known(configuration, domain, domains)]
    own = tuple(own_addresses(configuration) if addresses is None else addresses)
    records = dict.fromkeys(_of_host(configuration, own, domains))
    added = _added(zone, domains)
    for each in domains:
        records.update(dict.fromkeys(_of_domain(configuration, zone, each)))
        records.update(dict.fromkeys(added.get(each, ())))
    if not domain:
        records.update(zone.records)
    records.update(dict.fromkeys(_pointers(configuration, own)))
    return tuple(records)


def dns_zone(configuration: Config, plugins: Plugins | None = None) -> DnsZone:
    """Return what the plugins need in the DNS. Raise ConfigError."""
    _check_hostname(configuration)
    zone = DnsZone(configuration.hostname)
    for table, instance in instances(configuration, "on_dns") if plugins is None else plugins:
        method: Any = getattr(type(instance), "on_dns", None)
        if method is None or table.mode == "shadow":
            continue
        arguments = (zone,) if "zone" in inspect.signature(method).parameters else ()
        try:
            method(instance, *arguments)
        except (Exception, SystemExit) as error:
            text = f"plugin {table.name!r}: on_dns failed: {describe(error)}"
            raise configuration.locate(ConfigError(text, key=table.key)) from error
    return zone


def own_addresses(configuration: Config) -> tuple[Address, ...]:
    """Return the public addresses of this host, without asking the DNS.

    They are those in `[dns]`, else those of listeners, else those from which packets leave.
    """
    if configuration.dns.addresses:
        return tuple(dict.fromkeys(map(parse_host_address, configuration.dns.addresses)))
    listening = list(_listening(configuration.listeners))
    return tuple(dict.fromkeys(listening or _leaving()))


def addresses_in_dns(resolver: Resolver, hostname: str) -> tuple[Address, ...]:
    """Return the addresses that the DNS has for a host, () if it does not answer."""
    found: list[Address] = []
    for kind in ("A", "AAAA"):
        with suppress(UnansweredError):
            found += [ip_address(each.address) for each in resolver.lookup(hostname, kind).records]
    return tuple(found)


def mta_sts_id(configuration: Config, domain: str) -> str:
    """Return the id of the MTA-STS policy of a domain, which changes with the policy."""
    policy = configuration.mta_sts.policy(configuration.hostname)
    return hashlib.sha256(f"{domain} {policy}".encode()).hexdigest()[:20]


def _check_hostname(configuration: Config) -> None:
    if "." not in configuration.hostname:
        text = f"{configuration.hostname!r} is not in the DNS; expected such as mx.example.org"
        raise configuration.locate(ConfigError(text, key="hostname"))


def _domains(zone: DnsZone) -> list[str]:
    """Return the domains that can be in the DNS: no literals, and not `localhost`."""
    found = []
    for name in dict.fromkeys((*zone.receiving, *zone.sending)):
        with suppress(ValueError):
            if "." in parse_domain(name):
                found.append(name)
    return found


def _known(configuration: Config, domain: str, domains: Sequence[str]) -> str:
    try:
        name = parse_domain(domain)
    except ValueError as error:
        raise ConfigError(f"domain: {error}") from None
    if name not in domains:
        known = ", ".join(domains[:_MOST_NAMED]) or "no domain"
        more = f" and {len(domains) - _MOST_NAMED} more" if len(domains) > _MOST_NAMED else ""
        hint = did_you_mean(name, domains) or f"; it has {known}{more}"
        text = f"no plugin receives or sends mail for the domain {domain!r}{hint}"
        raise ConfigError(text, file=configuration.file, key="plugins")
    return name


def _listening(listeners: Iterable[Listener]) -> Iterator[Address]:
    for listener in listeners:
        with suppress(ValueError):
            address = ip_address(listener.address.host)
            if address.is_global and not address.is_multicast:
                yield address


def _leaving() -> Iterator[Address]:
    for family, target in _FAR:
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((target, _SMTP))  # UDP: this sends nothing
            address = ip_address(sock.getsockname()[0])
            if address.is_global:
                yield address


# The host


def _of_host(
    configuration: Config, addresses: Sequence[Address], domains: Sequence[str]
) -> Iterator[DnsRecord]:
    host = configuration.hostname
    purpose = "the host: where it is"
    for address in addresses:
        yield DnsRecord(host, _kind(address), str(address), purpose)
    if not addresses:
        yield DnsRecord(host, "A", "", purpose)
    if host not in domains:
        purpose = "the host: it may send notifications in its own name (RFC 7208 2.3)"
        yield DnsRecord(host, "TXT", "v=spf1 a -all", purpose, "recommended")
    yield from _tlsa(configuration)


def _tlsa(configuration: Config) -> Iterator[DnsRecord]:
    """Yield a record of each certificate's key, which stays valid if the key is used again."""
    mx = [each for each in configuration.listeners if each.kind == "mx" and each.tls == "starttls"]
    if not mx:
        return
    for name, certificate in files_by_name(configuration).items():
        who = "the host" if name == configuration.hostname.lower() else f"{name}, if it is an MX"
        with suppress(OSError, ValueError):
            key = public_key_of(der_certificates(certificate)[0])
            purpose = f"{who}: its key, only if DNSSEC signs the zone, and if renewals keep the key"
            value = f"3 1 1 {hashlib.sha256(key).hexdigest()}"
            yield DnsRecord(f"_{_SMTP}._tcp.{name}", "TLSA", value, purpose, "signed")


def _pointers(configuration: Config, addresses: Iterable[Address]) -> Iterator[DnsRecord]:
    purpose = "ask the provider of the addresses for these names"
    need: Need = "recommended" if configuration.outbound.smarthost else "required"
    for address in addresses:
        name = address.reverse_pointer
        yield DnsRecord(name, "PTR", f"{configuration.hostname}.", purpose, need)


def _kind(address: Address) -> Kind:
    return "A" if isinstance(address, IPv4Address) else "AAAA"


# A domain


def _of_domain(configuration: Config, zone: DnsZone, domain: str) -> Iterator[DnsRecord]:
    if domain in zone.receiving:
        value = f"10 {configuration.hostname}."
        yield DnsRecord(domain, "MX", value, f"{domain}: brings its mail here")
    if domain in zone.sending:
        yield from _of_sender(configuration, domain, by_mx=domain in zone.receiving)
    if zone.receiving.get(domain):
        purpose = f"{domain}: where others report trouble with TLS (RFC 8460)"
        value = f"v=TLSRPTv1; rua=mailto:postmaster@{domain}"
        yield DnsRecord(f"_smtp._tls.{domain}", "TXT", value, purpose, "recommended")
        yield from _services(configuration, domain)
        if configuration.web_listeners:
            yield from _of_web(configuration, domain)


def _of_sender(configuration: Config, domain: str, *, by_mx: bool) -> Iterator[DnsRecord]:
    permitted = "mx" if by_mx else f"a:{configuration.hostname}"
    purpose, rest = f"{domain}: only this host sends its mail (SPF)", "-all"
    if configuration.outbound.smarthost:
        purpose = f"{domain}: who sends its mail (SPF); add the include: that the smarthost tells"
        rest = "~all"
    yield DnsRecord(domain, "TXT", f"v=spf1 {permitted} {rest}", purpose)
    value = f"v=DMARC1; p=none; rua=mailto:postmaster@{domain}"
    purpose = f"{domain}: what to do with forged mail (DMARC); p=quarantine later"
    yield DnsRecord(f"_dmarc.{domain}", "TXT", value, purpose)


def _services(configuration: Config, domain: str) -> Iterator[DnsRecord]:
    """Yield what mail programs look for (RFC 6186, RFC 8314 section 5.1)."""
    host = configuration.hostname
    purpose = f"{domain}: where mail programs find their server"
    found: dict[str, int] = {}
    for listener in configuration.listeners:
        if listener.kind == "submission" and listener.is_public:
            usual = _USUAL_PORTS.get(listener.tls)
            if usual is not None:  # a load balancer has the port that others see
                name, port = usual
                found.setdefault(name, port if listener.proxy_protocol else listener.address.port)
    if not found:
        return
    for name, port in found.items():
        value = f"0 1 {port} {configuration.autoconfig.smtp_host or host}."
        yield DnsRecord(f"{name}._tcp.{domain}", "SRV", value, purpose, "recommended")
    purpose += ", if an IMAP server such as Dovecot runs here"
    imap = configuration.autoconfig
    name = "_imaps" if imap.imap_tls == "implicit" else "_imap"
    value = f"0 1 {imap.imap_port} {imap.imap_host or host}."
    yield DnsRecord(f"{name}._tcp.{domain}", "SRV", value, purpose, "recommended")


def _has_https(configuration: Config) -> bool:
    """Return whether a web listener speaks TLS, or may be behind a web server that does."""
    web = configuration.web_listeners
    return any(each.tls == "implicit" or each.address.is_local for each in web)


def _of_web(configuration: Config, domain: str) -> Iterator[DnsRecord]:
    host = f"{configuration.hostname}."
    if not _has_https(configuration):  # such as one for challenges alone; Thunderbird asks it too
        purpose = f"{domain}: mail programs set themselves up"
        yield DnsRecord(f"autoconfig.{domain}", "CNAME", host, purpose, "recommended")
        return
    purpose = f"{domain}: other servers use TLS only, with a valid certificate (MTA-STS, RFC 8461)"
    value = f"v=STSv1; id={mta_sts_id(configuration, domain)}"
    yield DnsRecord(f"_mta-sts.{domain}", "TXT", value, purpose, "recommended")
    yield DnsRecord(f"mta-sts.{domain}", "CNAME", host, purpose, "recommended")
    purpose = f"{domain}: mail programs set themselves up"
    for name in _WEB_NAMES:
        yield DnsRecord(f"{name}.{domain}", "CNAME", host, purpose, "recommended")
    value = f"0 1 443 {host}"
    yield DnsRecord(f"_autodiscover._tcp.{domain}", "SRV", value, purpose, "recommended")


def _added(zone: DnsZone, domains: Iterable[str]) -> dict[str, list[DnsRecord]]:
    """Return the further records by the nearest of the domains that their names are in."""
    known = frozenset(domains)
    found: dict[str, list[DnsRecord]] = {}
    for record in zone.records:
        name = record.name
        while name and name not in known:
            name = name.partition(".")[2]
        found.setdefault(name, []).append(record)
    return found
