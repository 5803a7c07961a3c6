"""Read signatures of DKIM and ARC, and verify them with the header and the keys in the DNS.

This uses no DKIM library, so that time and memory are bounded for any message. dkimpy keeps the
message several times in memory, its expressions take quadratic time (six seconds for 40,000 blanks
in a body, during which no other session runs), and it accepts keys of any size.
RFC 6376 (DKIM), 8301 (RSA keys), 8463 (Ed25519), 8617 (ARC).
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from minismtp import Address, Headers, Message

from ._canonical import FIELD, body_hashes, signed_fields, without_signature
from ._tags import SPELLED, octets_of, read_tags, without_blanks

PublicKey = rsa.RSAPublicKey | ed25519.Ed25519PublicKey

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


@dataclass(frozen=True, slots=True)
class Signature:
    """A field of tags; `names` are the fields that it signs, in their order."""

    raw: bytes
    tags: dict[str, str]
    domain: str
    selector: str
    names: tuple[str, ...]

    @classmethod
    def read(cls, raw: bytes, *required: str, lenient: bool = False) -> "Signature":
        """Read a field that must have these tags. Raise UnverifiedError.

        If `lenient`, spellings that other verifiers accept are valid too.
        """
        value = Headers([raw]).get(raw.partition(b":")[0].strip(b" \t").decode("ascii"))
        try:
            tags = read_tags(value, lenient=lenient)
            if lenient:
                tags |= {name: SPELLED[name](tags[name]) for name in SPELLED.keys() & tags}
            if missing := set(required).difference(tags):
                raise ValueError(f"there is no tag {min(missing)}")  # noqa: TRY301 - as from read_tags
            for name in {"b", "bh"}.intersection(tags):
                octets_of(tags[name])
            domain, selector = _name(tags["d"]), _name(tags["s"])
        except ValueError as error:
            raise UnverifiedError("neutral", str(error)) from None
        names = tuple(without_blanks(tags.get("h", "")).lower().split(":"))
        return cls(raw, tags, domain, selector, names)

    @property
    def extent(self) -> tuple[str, int | None]:
        """The form of the body, and the number of octets that are signed."""
        kind = self._forms[1]
        return kind, int(self.tags["l"]) if "l" in self.tags else None

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
        if not {*self._forms} <= {*FIELD}:
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
        named = without_blanks(self.tags.get("i", f"@{self.domain}")).rpartition("@")[2]
        identity = Address("", named.removesuffix("."))
        domain = identity.ascii_domain
        if domain != self.domain and not domain.endswith(f".{self.domain}"):
            raise UnverifiedError("neutral", "the tag i is not of the domain")
        return domain

    def check(self, octets: bytes, key: PublicKey) -> None:
        """Raise UnverifiedError if the signature is not for these octets and this field."""
        field = FIELD[self._forms[0]](without_signature(self.raw)).removesuffix(b"\r\n")
        signature = octets_of(self.tags["b"])
        try:
            if isinstance(key, rsa.RSAPublicKey):
                key.verify(signature, octets + field, padding.PKCS1v15(), SHA256())
            else:  # RFC 8463 section 3
                key.verify(signature, hashlib.sha256(octets + field).digest())
        except InvalidSignature:
            raise UnverifiedError("fail", "the header is not what was signed") from None

    def signed_fields(self, headers: Headers) -> bytes:
        """Return the octets of the signed fields."""
        return signed_fields(headers, self.names, self._forms[0])

    @property
    def _forms(self) -> tuple[str, str]:
        """The forms of header and body; fields of ARC, which have no version, are relaxed."""
        default = "simple/simple" if "v" in self.tags else "relaxed/relaxed"
        header, _, body = self.tags.get("c", default).partition("/")
        return header, body or "simple"


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
    if octets_of(signature.tags["bh"]) != digest or (length or 0) > size:
        return UnverifiedError("fail", "the body is not what was signed")
    if length is not None and length < size:
        # RFC 6376 section 8.2: text added to the body could change all that is shown.
        return UnverifiedError("policy", "only a part of the body is signed")
    return None


def _name(text: str) -> str:
    name = Address("", without_blanks(text)).ascii_domain
    if not _NAME.fullmatch(name):
        raise ValueError(f"{text[:40]!r} is no name in the DNS")
    return name
