"""Chains of ARC: read, verified, and continued (RFC 8617)."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from minismtp import Headers, Message, steady_time

from ._canonical import relaxed_field
from ._dkim import Signature, UnverifiedError, check_bodies
from ._dkim_key import Keys
from ._signing import PrivateKey, content_tags, signed
from ._tags import read_tags

RESULTS, MESSAGE, SEAL = NAMES = (
    "ARC-Authentication-Results",
    "ARC-Message-Signature",
    "ARC-Seal",
)
LONGEST: Final = 50  # sets of one chain, RFC 8617 section 4.2.1
_INSTANCE: Final = re.compile(r"\s*i\s*=\s*([0-9]{1,3})\s*;")
_TAGS: Final = ("i", "a", "b", "d", "s")


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
    def report(self) -> str:
        """The host's results, as the value of an Authentication-Results field."""
        return Headers([self.results]).get(RESULTS).partition(";")[2]

    @property
    def octets(self) -> bytes:
        """The three fields in the form that seals cover."""
        return b"".join(map(relaxed_field, (self.results, self.message.raw, self.seal.raw)))


def read_chain(headers: Headers) -> list[ArcSet]:
    """Return the sets from the first to the last; empty without a chain. Raise BrokenChainError.

    RFC 8617 section 5.2, steps 1 to 3.
    """
    fields = {name: headers.raw_all(name) for name in NAMES}
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
        match = _INSTANCE.match(value)
        return int(match[1]) if match else 0
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


def verify_chain(message: Message, chain: Sequence[ArcSet], keys: Keys) -> int:
    """Return the oldest instance since which the message did not change, 0 for the whole chain.

    RFC 8617 section 5.2, steps 4 to 6. Raise BrokenChainError.
    """
    good = list(_good_headers(message, chain, keys))
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
        _check_seal(each, before, keys)
        before += each.octets
    return 0 if oldest == 1 else oldest


def _good_headers(message: Message, chain: Sequence[ArcSet], keys: Keys) -> Iterator[ArcSet]:
    """Yield the sets with a valid signature of the header, the last first; it must be valid."""
    for each in reversed(chain):
        signature = each.message
        try:
            signature.check_tags(steady_time())
            key, _ = keys.find(signature)
            signature.check(signature.signed_fields(message.headers), key)
        except UnverifiedError as problem:
            if each is chain[-1]:
                raise BrokenChainError(problem.reason) from None
            return
        yield each


def _check_seal(last: ArcSet, before: bytes, keys: Keys) -> None:
    octets = before + relaxed_field(last.results) + relaxed_field(last.message.raw)
    try:
        last.seal.check_tags(steady_time())
        key, _ = keys.find(last.seal)
        last.seal.check(octets, key)
    except UnverifiedError as problem:
        raise BrokenChainError(f"seal {last.instance}: {problem.reason}") from None


@dataclass(frozen=True, slots=True)
class Sealer:
    """A key with its domain and selector in the DNS."""

    domain: str
    selector: str
    key: PrivateKey

    def seal(
        self, message: Message, report: str, status: str, instance: int, before: bytes = b""
    ) -> None:
        """Put a set on top (RFC 8617 section 5.1); `status` is the result of the chain so far.

        `before` are the octets of that chain, empty if it is broken (section 5.1.2).
        """
        message.prepend(RESULTS, f"i={instance};{report}")
        content, fields = content_tags(message, "DKIM-Signature")
        tags = (
            f"i={instance}; a=rsa-sha256; d={self.domain};"
            f" s={self.selector}; t={int(steady_time())};"
        )
        message.prepend(MESSAGE, signed(MESSAGE, f"{tags}\r\n\t{content}", fields, self.key))
        own = b"".join(relaxed_field(message.headers.raw(name)) for name in (RESULTS, MESSAGE))
        sealed = f"{tags}\r\n\tcv={status};"
        message.prepend(SEAL, signed(SEAL, sealed, before + own, self.key))
