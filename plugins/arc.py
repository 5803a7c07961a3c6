"""Verify the ARC chains of incoming mail, and seal forwarded mail (RFC 8617).

A chain is worth as much as the hosts that sealed it. `dmarc` decides which of them are trusted.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa

from minismtp import (
    Address,
    AuthResult,
    Delivery,
    Envelope,
    Headers,
    Message,
    ServerInfo,
    Session,
    StashKey,
    hookimpl,
    plugin,
    results_of,
    warn_of_readers,
)

from ._arc import (
    LONGEST,
    NAMES,
    SEAL,
    ArcSet,
    BrokenChainError,
    Sealer,
    instance_of,
    read_chain,
    verify_chain,
)
from ._authres import read
from ._checks import DnsCheck
from ._dkim_key import Keys
from ._signing import load_key

_FIELD = "Authentication-Results"
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,251}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class ArcReport:
    """The results of an earlier host; the `sealer` is the domain that signed them."""

    sealer: str
    authserv_id: str
    results: tuple[AuthResult, ...]


@dataclass(frozen=True, slots=True)
class ArcResult:
    """The `result` is pass, fail or none; a valid chain has `reports`, the first host's first."""

    result: str
    reason: str = ""
    reports: tuple[ArcReport, ...] = ()


#: On an envelope whose message was checked.
ARC: StashKey[ArcResult] = StashKey()


@plugin
class Arc(DnsCheck):
    """Verify the ARC chain of incoming messages, and seal messages that are forwarded.

    If all seals and the newest message signature are valid, the results of the earlier hosts are
    available to `dmarc` (`trusted_sealers`). Every error makes the chain fail, also an error of the
    DNS (RFC 8617 section 5.2.1). `patience` limits the wait for all keys of a message. Mail of
    users after a login is not checked.

    With `domain`, `selector` and `key` (PEM, RSA) a message from elsewhere is sealed before it
    leaves for another server, so that receivers who trust this server learn its results. These are
    taken from the field that `authentication_results` wrote, so without it no message is sealed.
    `authserv_id` must be the same there; the default is the server's hostname.
    """

    domain: str = ""
    selector: str = ""
    key: Path | None = None
    authserv_id: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._id = Address("", self.authserv_id).ascii_domain
        self._sealer: Sealer | None = None
        if not (self.domain or self.selector or self.key):
            return
        domain = Address("", self.domain).ascii_domain
        for option, name in (("domain", domain), ("selector", self.selector.lower())):
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"{option}: expected a DNS name; give domain, selector and key, or none of them"
                )
        if self.key is None:
            raise ValueError("key: expected a file, because a domain is given")
        key = load_key("key", self.key)
        if not isinstance(key, rsa.RSAPrivateKey):
            raise ValueError(f"key: {self.key}: expected an RSA key, as few receivers know others")  # noqa: TRY004 - a mistake in an option
        self._sealer = Sealer(domain, self.selector, key)

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Take the resolver, and warn about a key that others can read."""
        super().on_start(server)
        self._id = self._id or Address("", server.hostname).ascii_domain
        if self.key is not None and server.role == "check":
            warn_of_readers("key", self.key)

    @hookimpl
    def on_message(self, session: Session, envelope: Envelope, message: Message) -> None:
        """Verify the chain, and store the result."""
        if session.login is not None:
            return
        told = {"smtp.remote-ip": session.peer}
        try:
            chain = read_chain(message.headers)
            if chain:
                keys = Keys(self._resolver, self.patience)
                told["header.oldest-pass"] = str(verify_chain(message, chain, keys))
            reports = tuple(map(_report, chain))
            found = ArcResult("pass" if chain else "none", reports=reports)
        except BrokenChainError as problem:
            found = ArcResult("fail", str(problem))
        envelope.stash[ARC] = found
        results_of(envelope).append(AuthResult("arc", found.result, found.reason, told))

    @hookimpl
    def on_send(self, delivery: Delivery, message: Message) -> None:
        """Seal a message from elsewhere."""
        envelope = delivery.envelope
        ours = envelope.login is not None or not envelope.peer  # a notification has no peer
        if self._sealer is None or ours or envelope.body == "BINARYMIME":
            return
        value = _written_here(message.headers, self._id)
        statuses = [each.result for each in read(value)[1] if each.method == "arc"]
        try:
            chain, last = read_chain(message.headers), 0
        except BrokenChainError:
            chain, last = [], _last_of_broken(message.headers)
        before = b"".join(each.octets for each in chain)
        match statuses:
            case ["none"] if not (chain or last):
                self._sealer.seal(message, value, "none", 1)
            case ["pass"] if 0 < len(chain) < LONGEST:
                self._sealer.seal(message, value, "pass", len(chain) + 1, before)
            case ["fail"] if max(last, len(chain)) < LONGEST:
                self._sealer.seal(message, value, "fail", max(last, len(chain)) + 1)


def _report(each: ArcSet) -> ArcReport:
    name, results = read(each.report)
    return ArcReport(each.seal.domain, name, tuple(results))


def _written_here(headers: Headers, authserv_id: str) -> str:
    """Return the value of this server's Authentication-Results field, "" if there is no field.

    It stands above this server's Received field, where a sender cannot forge one.
    """
    for raw in headers.raw_all():
        name = raw.partition(b":")[0].strip(b" \t").lower()
        if name == b"received":
            break
        field = Headers([raw])
        if _FIELD in field and read(field.get(_FIELD))[0] == authserv_id:
            return raw.partition(b":")[2].decode("utf-8", "replace").removesuffix("\r\n")
    return ""


def _last_of_broken(headers: Headers) -> int:
    """Return the highest instance of a set, the limit if a seal says that the chain failed."""
    if any(re.search(rb"cv\s*=\s*fail\b", raw) for raw in headers.raw_all(SEAL)):
        return LONGEST
    return max((instance_of(raw) for name in NAMES for raw in headers.raw_all(name)), default=0)
