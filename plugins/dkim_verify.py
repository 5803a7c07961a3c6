"""Verify the DKIM signatures of incoming mail.

RFC 6376, with the limits of RFC 8301 and Ed25519 (RFC 8463); the results are those of RFC 8601.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from minismtp import (
    AuthResult,
    Envelope,
    Message,
    Session,
    StashKey,
    hookimpl,
    plugin,
    results_of,
)

from ._checks import DnsCheck
from ._dkim import Keys, Signature, UnverifiedError, check_bodies

# The range for the number of characters of a signature that are shown (RFC 6008 section 4)
_SHOWN = range(8, 200)
_TAGS = ("v", "a", "b", "bh", "d", "h", "s")


@dataclass(frozen=True, slots=True)
class DkimResult:
    """One signature: its `result` as in RFC 8601 section 2.7.1, and its tags.

    Unreadable tags are "". `signature` is the base64 of the tag b, and `domain` has A-labels.
    """

    result: str
    reason: str = ""
    domain: str = ""
    selector: str = ""
    algorithm: str = ""
    signature: str = ""


#: The results of a message, in the order of the fields from the top; empty without a signature.
DKIM_RESULTS: StashKey[tuple[DkimResult, ...]] = StashKey()


@plugin
class DkimVerify(DnsCheck):
    """Verify the DKIM signatures of incoming mail and store the results; no mail is refused.

    `dmarc`, `score` or `rules` decide what follows from a result, and `authentication_results`
    writes it into the header. A message may have any number of signatures, and each costs a
    question to the DNS and a calculation. So only the topmost `signatures` are verified, and all
    others have one result, policy. `patience` limits the wait for all keys; a key that is not there
    by then is a temperror. The body is read in pieces, so messages may have any size.

    A signature is valid if it covers the From field and the whole body. The result is policy if a
    tag l excludes a part of the body, for rsa-sha1, for RSA keys below 1024 or above 8192 bits, and
    for expired signatures. A failure of a domain that tests (t=y) is neutral. Mail of users after a
    login is not checked.
    """

    signatures: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.signatures < 1:
            raise ValueError("signatures: expected at least 1")

    @hookimpl
    def on_message(self, session: Session, envelope: Envelope, message: Message) -> None:
        """Store a result for each signature."""
        if session.login is not None:
            return
        found = self._results(message)
        envelope.stash[DKIM_RESULTS] = found
        results_of(envelope).extend(_published(found))

    def _results(self, message: Message) -> tuple[DkimResult, ...]:
        fields = message.headers.raw_all("DKIM-Signature")
        if fields and message.headers.truncated:
            return (DkimResult("policy", "the header is too large"),)
        keys = Keys(self._resolver, self.patience)
        found = _verified(message, fields[: self.signatures], keys, self._clock())
        if surplus := len(fields[self.signatures :]):
            found.append(DkimResult("policy", f"{surplus} more signatures were not verified"))
        return tuple(found)


def _verified(
    message: Message, fields: Sequence[bytes], keys: Keys, now: float
) -> list[DkimResult]:
    """Return the results of these fields; the body is read only after a valid header."""
    found: dict[int, DkimResult] = {}
    good: dict[int, tuple[Signature, frozenset[str]]] = {}
    for number, raw in enumerate(fields):
        signature = None
        try:
            signature = Signature.read(raw, *_TAGS, lenient=True)
            good[number] = signature, _check_header(message, signature, keys, now)
        except UnverifiedError as error:
            found[number] = _result(signature, error)
    problems = check_bodies(message, [signature for signature, _ in good.values()])
    for (number, (signature, flags)), problem in zip(good.items(), problems, strict=True):
        if problem is not None and "y" in flags:
            problem = UnverifiedError("neutral", f"the domain only tests; {problem.reason}")  # noqa: PLW2901
        found[number] = _result(signature, problem)
    return [found[number] for number in range(len(fields))]


def _check_header(message: Message, signature: Signature, keys: Keys, now: float) -> frozenset[str]:
    """Verify the header, and return the flags of its key. Raise UnverifiedError."""
    if signature.tags["v"] != "1":
        raise UnverifiedError("neutral", "its version is not known")
    signature.check_tags(now)
    if "from" not in signature.names:
        raise UnverifiedError("permerror", "the From field is not signed")
    identity = signature.check_identity()
    key, flags = keys.find(signature)
    if "s" in flags and identity != signature.domain:
        raise UnverifiedError("permerror", "the key is not for subdomains")
    try:
        signature.check(signature.signed_fields(message.headers), key)
    except UnverifiedError as problem:
        if "y" in flags:
            raise UnverifiedError("neutral", f"the domain only tests; {problem.reason}") from None
        raise
    return flags


def _result(signature: Signature | None, problem: UnverifiedError | None = None) -> DkimResult:
    result, reason = ("pass", "") if problem is None else (problem.result, problem.reason)
    if signature is None:
        return DkimResult(result, reason)
    domain, selector = signature.domain, signature.selector
    tags = signature.tags
    return DkimResult(result, reason, domain, selector, tags["a"], "".join(tags["b"].split()))


def _published(found: Sequence[DkimResult]) -> Iterator[AuthResult]:
    if not found:
        yield AuthResult("dkim", "none", "the message has no signature")
    length = _telling_length({each.signature for each in found})
    for each in found:
        properties = {
            "header.d": each.domain,
            "header.s": each.selector,
            "header.a": each.algorithm,
            "header.b": each.signature[:length],
        }
        told = {name: value for name, value in properties.items() if value}
        yield AuthResult("dkim", each.result, each.reason, told)


def _telling_length(signatures: Collection[str]) -> int:
    """Return the number of characters by which these signatures differ."""
    for length in _SHOWN:
        if len({each[:length] for each in signatures}) == len(signatures):
            return length
    return _SHOWN.stop  # all are invalid, else they would have the same key and digest
