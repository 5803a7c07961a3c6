"""Read signatures of DKIM and ARC, and verify them with the header and the keys in the DNS.

This uses no DKIM library, so that time and memory are bounded for any message. dkimpy keeps the
message several times in memory, its expressions take quadratic time (six seconds for 40,000 blanks
in a body, during which no other session runs), and it accepts keys of any size.
RFC 6376 (DKIM), 8301 (RSA keys), 8463 (Ed25519), 8617 (ARC).
"""

import re
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, TypeAlias

from cryptography.exceptions import InvalidSignature

from minismtp import Address, Headers, Message

from ._canonical import FIELD, body_hashes, signed_fields, without_signature
from ._tags import SPELLED, octets_of, read_tags, without_blanks

#: Checks a signature of octets by a key. An invalid signature is an InvalidSignature error.
Verify: TypeAlias = Callable[[bytes, bytes], None]

_KINDS: Final = {"rsa-sha256": "rsa", "ed25519-sha256": "ed25519"}
_NAME: Final = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_SKEW: Final = 300  # seconds by which the clocks of both sides may differ (RFC 6376 section 3.5)


class UnverifiedError(Exception):
    """A signature is not valid; `result` is one of RFC 8601 section 2.7.1, `reason` for people."""

    def __init__(self, result: str, reason: str) -> None:
        super().__init__(reason)
        self.result = result
        self.reason = reason


class Signature(NamedTuple):
    """A field of tags; `names` are the fields that it signs, in their order."""

    raw: bytes
    tags: dict[str, str]
    domain: str
    selector: str
    names: tuple[str, ...]
    header_form: str
    body_form: str
    signature: bytes
    body_hash: bytes

    @classmethod
    def read(cls, raw: bytes, *required: str, lenient: bool = False) -> "Signature":
        """Read a field that must have these tags. Raise UnverifiedError.

        If `lenient`, spellings that other verifiers accept are valid too.
        """
        value = Headers([raw], [b"tags"]).get("tags")
        try:
            tags = read_tags(value, lenient=lenient)
            if lenient:
                tags |= {name: SPELLED[name](tags[name]) for name in tags if name in SPELLED}
            if missing := set(required).difference(tags):
                raise ValueError(f"there is no tag {min(missing)}")  # noqa: TRY301 - as from read_tags
            signature, body_hash = octets_of(tags.get("b", "")), octets_of(tags.get("bh", ""))
            domain, selector = _name(tags["d"]), _name(tags["s"])
        except ValueError as error:
            raise UnverifiedError("neutral", str(error)) from None
        names = tuple(without_blanks(tags.get("h", "")).lower().split(":"))
        # Fields of ARC, which have no version, are relaxed.
        forms = tags.get("c", "simple/simple" if "v" in tags else "relaxed/relaxed")
        header, _, body = forms.partition("/")
        body = body or "simple"
        return cls(raw, tags, domain, selector, names, header, body, signature, body_hash)

    @property
    def extent(self) -> tuple[str, int | None]:
        """The form of the body, and the number of octets that are signed."""
        return self.body_form, int(self.tags["l"]) if "l" in self.tags else None

    @property
    def kind(self) -> str:
        """The type of key that it needs, as in key records: rsa or ed25519."""
        return _KINDS[self.tags["a"]]

    def check_tags(self, now: float) -> None:
        """Raise UnverifiedError for tags that no key could verify (RFC 6376 section 6.1.1)."""
        tags = self.tags
        if tags["a"] not in _KINDS:
            known = "policy" if tags["a"] == "rsa-sha1" else "neutral"
            raise UnverifiedError(known, f"the algorithm is {tags['a'][:40]}")
        if not {self.header_form, self.body_form} <= FIELD.keys():
            raise UnverifiedError("neutral", "its forms are not known")
        if not {"dns/txt", "dns"} & {*without_blanks(tags.get("q", "dns/txt")).split(":")}:
            raise UnverifiedError("neutral", "its key is not in the DNS")
        for name in {"l", "x", "t"}.intersection(tags):
            if not _NUMBER.fullmatch(tags[name]):
                raise UnverifiedError("neutral", f"the tag {name} is no number")
        if "x" in tags and int(tags["x"]) + _SKEW < now:
            raise UnverifiedError("policy", "the signature has expired")

    def check_identity(self) -> str:
        """Return the domain of the tag i of DKIM, which must belong to `domain` (section 3.5)."""
        if "i" not in self.tags:
            return self.domain
        named = without_blanks(self.tags["i"]).rpartition("@")[2]
        identity = Address("", named.removesuffix("."))
        domain = identity.ascii_domain
        if domain != self.domain and not domain.endswith(f".{self.domain}"):
            raise UnverifiedError("neutral", "the tag i is not of the domain")
        return domain

    def check(self, octets: bytes, key: Verify) -> None:
        """Raise UnverifiedError if the signature is not for these octets and this field."""
        field = FIELD[self.header_form](without_signature(self.raw)).removesuffix(b"\r\n")
        try:
            key(self.signature, octets + field)
        except InvalidSignature:
            raise UnverifiedError("fail", "the header is not what was signed") from None

    def signed_fields(self, headers: Headers) -> bytes:
        """Return the octets of the signed fields."""
        return signed_fields(headers, self.names, self.header_form)


def check_bodies(message: Message, signatures: Iterable[Signature]) -> list[UnverifiedError | None]:
    """Return the error of the body for each signature; the body is read at most twice."""
    wanted = list(signatures)
    if not wanted:
        return []
    with message.open() as reader:
        hashes = body_hashes(reader, [each.extent for each in wanted])
    return [_body_problem(each, *hashes[each.extent]) for each in wanted]


def _body_problem(signature: Signature, digest: bytes, size: int) -> UnverifiedError | None:
    length = signature.extent[1]
    if signature.body_hash != digest or (length or 0) > size:
        return UnverifiedError("fail", "the body is not what was signed")
    if length is not None and length < size:
        # RFC 6376 section 8.2: text added to the body could change all that is shown.
        return UnverifiedError("policy", "only a part of the body is signed")
    return None


def _name(text: str) -> str:
    name = without_blanks(text)
    if not _NAME.fullmatch(name):
        name = Address("", name).ascii_domain
    if not _NAME.fullmatch(name):
        raise ValueError(f"{text[:40]!r} is no name in the DNS")
    return name
