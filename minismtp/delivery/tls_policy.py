"""The TLS that a connection to a host must have: configuration, DANE, MTA-STS and REQUIRETLS.

DANE goes before MTA-STS (RFC 8461 section 2), and neither weakens what is configured.
"""

from __future__ import annotations

from minismtp.delivery.dane import look_up
from minismtp.delivery.mta_sts import Policies, StsPolicy
from minismtp.delivery.mx import Host, UnreachableError
from minismtp.delivery.tls_security import Security
from minismtp.mail.envelope import Destination
from minismtp.runtime.log import Log
from minismtp.services.resolver import Resolver


class TlsPolicies:
    """Decides what a connection must prove; `policies` is None if MTA-STS is switched off."""

    def __init__(
        self, resolver: Resolver, policies: Policies | None, log: Log, *, dane: bool
    ) -> None:
        self._resolver = resolver
        self._policies = policies
        self._log = log
        self._dane = dane

    def policy(self, domain: str, destination: Destination) -> StsPolicy | None:
        """Return the MTA-STS policy of a domain, None if a route or a plugin chose the host."""
        by_mx = not destination.host and not domain.startswith("[")
        if self._policies is None or destination.tls == "none" or not by_mx:
            return None
        return self._policies.of(domain)

    def demand(
        self, host: Host, domain: str, destination: Destination, policy: StsPolicy | None
    ) -> Security:
        """Return what a connection to a host must prove. Raise UnreachableError if none can."""
        plain = _configured(destination)
        if plain.level == "none":
            return plain
        dane = look_up(self._resolver, host) if self._dane else None
        if dane is not None and dane.records:
            names = (dane.base, host.name) if destination.host else (dane.base, host.name, domain)
            return Security("verified", "dane", dane, names)
        if dane is not None and plain.level == "opportunistic":
            plain = Security("required")  # RFC 7672 section 2.2: unusable records
        if policy is None or not policy.applies:
            return plain
        if not policy.allows(host.name):
            problem = f"451 4.7.5 {host} is none of the hosts in the MTA-STS policy of {domain}"
            if policy.mode == "enforce":
                raise UnreachableError(problem)
            self.report(domain, problem)
            return plain
        if policy.mode == "enforce":
            return Security("verified", "mta-sts")
        return Security("verified", "testing", fallback=plain)

    def report(self, domain: str, problem: str) -> None:
        """Log what a policy in the mode "testing" would have deferred."""
        self._log.warning("MTA-STS testing", domain=domain, would_fail=problem)

    @staticmethod
    def vouch(host: Host, domain: str, policy: StsPolicy | None) -> None:
        """Raise UnreachableError unless DNSSEC or MTA-STS proves that a host belongs to a domain.

        REQUIRETLS demands it (RFC 8689 section 4.2.1).
        """
        if host.authentic or (policy is not None and policy.applies and policy.allows(host.name)):
            return
        if policy is not None and policy.mode == "unknown":
            raise UnreachableError(f"451 4.7.5 the MTA-STS policy of {domain} could not be fetched")
        raise UnreachableError(
            f"550 5.7.30 REQUIRETLS: neither DNSSEC nor MTA-STS vouches for {host}", final=True
        )


def _configured(destination: Destination) -> Security:
    """Return what the configuration or a plugin demands."""
    if destination.tls == "opportunistic" and not destination.implicit:
        # RFC 7435: mail may go in the clear, as it would if the host did not offer TLS.
        return Security("opportunistic", fallback=Security("none"))
    return Security(destination.tls)
