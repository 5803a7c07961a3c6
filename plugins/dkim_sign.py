"""Sign outgoing mail with DKIM, so that receivers know its domain.

The body is hashed while it is read, so memory is bounded for messages of any size, and RSA is that
of OpenSSL. DKIM libraries do neither, so this uses none. dkimpy verifies the signatures in the
tests. RFC 6376 (DKIM), 8301 (RSA keys), 8463 (Ed25519).
"""

import logging
import re
from dataclasses import field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa

from minismtp import (
    Address,
    Delivery,
    DnsZone,
    Envelope,
    Message,
    ServerInfo,
    hookimpl,
    in_networks,
    plugin,
    steady_time,
    warn_of_readers,
)

from ._from import TooManyDomainsError, domains_of
from ._options import check_placeholders
from ._signing import SHORT, Signer, content_tags, load_key

_log = logging.getLogger(__name__)
_SELECTOR = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,61}[A-Za-z0-9])?")


@plugin
class DkimSign:
    """Sign mail of local users and hosts for the domain of its From field.

    `domains` are the signing domains. Mail of their subdomains is signed for them too, which DMARC
    accepts as aligned. `keys` is the path of the private keys, in which {domain} and {selector} are
    filled in; each is a PEM file with RSA of 2048 bits or Ed25519. A message gets a signature for
    each of the `selectors`, such as RSA, and Ed25519 for receivers that know it. Only mail is
    signed that a user sent after a login, that comes from `networks`, or that this server sends to
    one of these. Mail of strangers through an alias, and notifications to senders whom strangers
    name, must not carry the domain's name. The signature covers the whole body and the important
    header fields, so that nobody can add one, both relaxed. BINARYMIME is not signed.
    """

    domains: list[str]
    keys: Path
    selectors: list[str] = field(default_factory=lambda: ["mail"])
    networks: list[IPv4Network | IPv6Network] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.domains or not self.selectors:
            raise ValueError("domains: expected at least one domain, and at least one of selectors")
        for selector in self.selectors:
            if not _SELECTOR.fullmatch(selector):
                raise ValueError(f"selectors: {selector!r} cannot stand in the DNS")
        check_placeholders("keys", str(self.keys), ["domain", "selector"])
        for name, count in (("domain", len(self.domains)), ("selector", len(self.selectors))):
            if count > 1 and f"{{{name}}}" not in str(self.keys):
                raise ValueError(f"keys: {self.keys}: expected {{{name}}}, as there are several")
        self._clock = steady_time
        self._signers = {
            domain: [
                Signer(domain, selector, load_key("keys", self._path(domain, selector)))
                for selector in self.selectors
            ]
            for domain in (Address("", each).ascii_domain for each in self.domains)
        }

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Take the clock, and warn about keys that are weak, or that others can read."""
        self._clock = server.wall
        if server.role != "check":
            return
        for signer in [each for signers in self._signers.values() for each in signers]:
            path = self._path(signer.domain, signer.selector)
            warn_of_readers("keys", path)
            if isinstance(signer.key, rsa.RSAPrivateKey) and signer.key.key_size < SHORT:
                _log.warning("keys: %s has %d bits only", path, signer.key.key_size)

    @hookimpl
    def on_dns(self, zone: DnsZone) -> None:
        """Publish the keys."""
        for domain, signers in self._signers.items():
            zone.send(domain)
            for signer in signers:
                zone.add(signer.record())

    @hookimpl
    def on_send(self, delivery: Delivery, message: Message) -> None:
        """Put the signatures on top of the message."""
        signers = self._signers_of(message)
        if not signers or delivery.envelope.body == "BINARYMIME":
            return
        if not self._is_own(delivery.envelope):
            return
        tags, fields = content_tags(message)
        now = self._clock()
        for signer in signers:
            whole = f"v=1; {signer.tags(now)} {tags}"
            message.prepend("DKIM-Signature", signer.signed("DKIM-Signature", whole, fields))

    def _is_own(self, envelope: Envelope) -> bool:
        if envelope.login is not None:
            return True
        if not envelope.peer:  # a notification, which repeats text of the sender and of hosts
            return envelope.trusted
        return in_networks(envelope.peer, self.networks)

    def _signers_of(self, message: Message) -> list[Signer]:
        """Return the keys for the domain in From, as `dmarc` reads it; none for several domains."""
        senders = message.headers.get_all("From")
        try:
            domains = domains_of(senders) if len(senders) == 1 else []
        except TooManyDomainsError:
            return []
        own = dict.fromkeys(filter(None, map(self._signing_domain, domains)))
        return [signer for domain in own for signer in self._signers[domain]]

    def _signing_domain(self, domain: str) -> str:
        while domain and domain not in self._signers:
            domain = domain.partition(".")[2]
        return domain

    def _path(self, domain: str, selector: str) -> Path:
        return Path(str(self.keys).format(domain=domain, selector=selector))
