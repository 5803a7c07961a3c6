"""Verify the ARC chains of incoming mail, and seal forwarded mail (RFC 8617).

A chain is worth as much as the hosts that sealed it. `dmarc` decides which of them are trusted.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import rsa

from minismtp import (
    Address,
    AuthResult,
    Delivery,
    DnsZone,
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

from ._authres import read
from ._canonical import relaxed_field
from ._checks import DnsCheck
from ._dkim import Keys, Signature, UnverifiedError, check_bodies, read_tags
from ._signing import ARC_FIELDS, Signer, load_key

RESULTS, MESSAGE, SEAL = ARC_FIELDS
LONGEST: Final = 50  # sets of one chain, RFC 8617 section 4.2.1
_TAGS: Final = ("i", "a", "b", "d", "s")
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
        self._signer: Signer | None = None
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
        self._signer = Signer(domain, self.selector, key)

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Take the resolver, and warn about a key that others can read."""
        super().on_start(server)
        self._id = self._id or Address("", server.hostname).ascii_domain
        if self.key is not None and server.role == "check":
            warn_of_readers("key", self.key)

    @hookimpl
    def on_dns(self, zone: DnsZone) -> None:
        """Publish the key."""
        if self._signer is not None:
            zone.add(self._signer.record())

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
                told["header.oldest-pass"] = str(verify_chain(message, chain, keys, self._clock()))
            reports = tuple(each.report for each in chain)
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
        if self._signer is None or ours or envelope.body == "BINARYMIME":
            return
        value = _written_here(message.headers, self._id)
        statuses = [each.result for each in read(value)[1] if each.method == "arc"]
        try:
            chain = read_chain(message.headers)
            last = len(chain)
        except BrokenChainError:
            chain, last = [], _last_of_broken(message.headers)
        fits = {"none": not last, "pass": bool(chain), "fail": True}
        if last < LONGEST and len(statuses) == 1 and fits.get(statuses[0]):
            # RFC 8617 section 5.1.2: a seal of a broken chain does not cover it.
            covered = chain if statuses == ["pass"] else []
            before = b"".join(each.octets for each in covered)
            now = self._clock()
            self._signer.seal(message, value, statuses[0], last + 1, before, now=now)


def _written_here(headers: Headers, authserv_id: str) -> str:
    """Return the value of this server's Authentication-Results field, "" if there is no field.

    It stands above this server's Received field, where a sender cannot forge one.
    """
    for name, value in headers:
        if name.lower() == "received":
            break
        if name.lower() == _FIELD.lower() and read(value)[0] == authserv_id:
            return value
    return ""


def _last_of_broken(headers: Headers) -> int:
    """Return the highest instance of a set, the limit if a seal says that the chain failed."""
    if any(re.search(rb"cv\s*=\s*fail\b", raw) for raw in headers.raw_all(SEAL)):
        return LONGEST
    return max(
        (instance_of(raw) for name in ARC_FIELDS for raw in headers.raw_all(name)), default=0
    )


class BrokenChainError(Exception):
    """A chain is not valid; the text says why."""


@dataclass(frozen=True, slots=True)
class ArcSet:
    """The three fields that one host added."""

    instance: int
    results: bytes
    message: Signature
    seal: Signature

    @property
    def report(self) -> ArcReport:
        """The host's results; their field is an Authentication-Results field after the instance."""
        name, results = read(Headers([self.results]).get(RESULTS).partition(";")[2])
        return ArcReport(self.seal.domain, name, tuple(results))

    @property
    def octets(self) -> bytes:
        """The three fields in the form that seals cover."""
        return b"".join(map(relaxed_field, (self.results, self.message.raw, self.seal.raw)))


def read_chain(headers: Headers) -> list[ArcSet]:
    """Return the sets from the first to the last; empty without a chain. Raise BrokenChainError.

    RFC 8617 section 5.2, steps 1 to 3.
    """
    fields = {name: headers.raw_all(name) for name in ARC_FIELDS}
    length = max(map(len, fields.values()))
    if length and headers.truncated:
        raise BrokenChainError("the header is too large")
    if length > LONGEST:
        raise BrokenChainError(f"it has more than {LONGEST} sets")
    found: dict[str, dict[int, bytes]] = {}
    for name, raws in fields.items():
        found[name] = {instance_of(raw): raw for raw in raws}
        if sorted(found[name]) != [*range(1, length + 1)] or len(raws) != length:
            raise BrokenChainError(f"{name} is not there once for each set")
    try:
        return [_read_set(number, found) for number in range(1, length + 1)]
    except UnverifiedError as error:
        raise BrokenChainError(error.reason) from None


def instance_of(raw: bytes) -> int:
    """Return the instance of a field, the number of its set, 0 if it has no instance."""
    name = raw.partition(b":")[0].strip(b" \t").decode("ascii")
    value = Headers([raw]).get(name)
    if name.lower() == RESULTS.lower():
        value = value.partition(";")[0]
    try:
        text = read_tags(value).get("i", "")
    except ValueError:
        return 0
    return int(text) if re.fullmatch("[0-9]{1,3}", text) else 0


def _read_set(number: int, found: dict[str, dict[int, bytes]]) -> ArcSet:
    message = Signature.read(found[MESSAGE][number], *_TAGS, "bh", "h")
    seal = Signature.read(found[SEAL][number], *_TAGS, "cv")
    expected = "none" if number == 1 else "pass"
    if seal.tags["cv"] != expected:
        raise BrokenChainError(f"seal {number} says cv={seal.tags['cv'][:20]}")
    if "h" in seal.tags or "arc-seal" in message.names:
        raise BrokenChainError(f"set {number} signs what it should not")
    return ArcSet(number, found[RESULTS][number], message, seal)


def verify_chain(message: Message, chain: Sequence[ArcSet], keys: Keys, now: float) -> int:
    """Return the oldest instance since which the message did not change, 0 for the whole chain.

    RFC 8617 section 5.2, steps 4 to 6. `now` is in epoch seconds. Raise BrokenChainError.
    """
    good = list(_good_headers(message, chain, keys, now))
    problems = check_bodies(message, [each.message for each in good])
    oldest = chain[-1].instance
    for each, problem in zip(good, problems, strict=True):
        if problem is not None:
            if each is chain[-1]:
                raise BrokenChainError(problem.reason)
            break
        oldest = each.instance
    before = b""
    for each in chain:
        _check_seal(each, before, keys, now)
        before += each.octets
    return 0 if oldest == 1 else oldest


def _good_headers(
    message: Message, chain: Sequence[ArcSet], keys: Keys, now: float
) -> Iterator[ArcSet]:
    """Yield the sets with a valid signature of the header, the last first; it must be valid."""
    for each in reversed(chain):
        signature = each.message
        try:
            signature.check_tags(now)
            key, _ = keys.find(signature)
            signature.check(signature.signed_fields(message.headers), key)
        except UnverifiedError as problem:
            if each is chain[-1]:
                raise BrokenChainError(problem.reason) from None
            return
        yield each


def _check_seal(last: ArcSet, before: bytes, keys: Keys, now: float) -> None:
    octets = before + relaxed_field(last.results) + relaxed_field(last.message.raw)
    try:
        last.seal.check_tags(now)
        key, _ = keys.find(last.seal)
        last.seal.check(octets, key)
    except UnverifiedError as problem:
        raise BrokenChainError(f"seal {last.instance}: {problem.reason}") from None
