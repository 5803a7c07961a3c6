"""Read signatures of DKIM and ARC, and verify them with the header and the keys in the DNS.

This uses no DKIM library, so that time and memory are bounded for any message. dkimpy keeps the
message several times in memory, its expressions take quadratic time (six seconds for 40,000 blanks
in a body, during which no other session runs), and it accepts keys of any size.
RFC 6376 (DKIM), 8301 (RSA keys), 8463 (Ed25519), 8617 (ARC).
"""

import hashlib
import re
from base64 import b64decode
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Final, NamedTuple, TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from minismtp import Address, Headers, Message, Resolver, UnansweredError

from ._canonical import FIELD, body_hashes, signed_fields, without_signature
from ._dns import ParsedRecords, Questions, TooManyQuestionsError

_TAG: Final = re.compile(r"[ \t\r\n]*([A-Za-z]\w*)[ \t\r\n]*=[ \t\r\n]*(.*)", re.ASCII | re.DOTALL)
_LENIENT_TAG: Final = re.compile(r"[ \t\r\n]*([^ \t\r\n=]+)[ \t\r\n]*=[ \t\r\n]*(.*)", re.DOTALL)
_NO_LETTER: Final = re.compile(r"[^A-Za-z0-9+/]+")
#: Checks a signature of octets by a key. An invalid signature is an InvalidSignature error.
Verify: TypeAlias = Callable[[bytes, bytes], None]

# The types of keys, as in key records, by the algorithm
_KINDS: Final = {"rsa-sha256": "rsa", "ed25519-sha256": "ed25519"}
_NAME: Final = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_SKEW: Final = 300  # seconds by which the clocks of both sides may differ (RFC 6376 section 3.5)
_SHORTEST, _LONGEST = 1024, 8192  # bits of RSA keys: RFC 8301 section 3.2, and a limit for the time
_LONGEST_EXPONENT = 33  # bits; a check with a larger one takes as long as a signature
_PADDING, _SHA256 = padding.PKCS1v15(), SHA256()
_KEY_SIZE = 4096  # octets that OpenSSL takes for a key, about
_ED25519 = 32  # octets; some publish it in a SubjectPublicKeyInfo as RSA keys are
_QUOTES = str.maketrans("", "", '"\\')
_KEY = re.compile(r"(?:^|[;\s\"])p\s*+=")
_RECORDS = 3  # records of one name that are tried; there should be one


def read_tags(text: str, *, lenient: bool = False) -> dict[str, str]:
    """Read a list of tags (RFC 6376 section 3.2). Raise ValueError.

    If `lenient`, semicolons may be doubled, and unknown tags may have any name.
    """
    specs = text.split(";")
    if lenient:
        specs = [spec for spec in specs if spec.strip()]
    elif not specs[-1].strip():
        specs.pop()
    tags: dict[str, str] = {}
    for spec in specs:
        match = _LENIENT_TAG.fullmatch(spec) if lenient else _TAG.fullmatch(spec)
        if match is None or match[1] in tags:
            raise ValueError(f"{spec.strip()[:40]!r} is no tag, or there twice")
        tags[match[1]] = match[2].rstrip()
    return tags


def without_blanks(text: str) -> str:
    """Return a value without its folding white space (RFC 6376 section 2.8)."""
    return "".join(text.split())


def plain_base64(text: str) -> str:
    """Return base64 with only its letters, as most verifiers read it, and with full padding.

    A text without such letters is returned as it is.
    """
    letters = _NO_LETTER.sub("", text.partition("=")[0])
    return letters + "=" * (-len(letters) % 4) or text


def octets_of(text: str) -> bytes:
    """Decode base64 with blanks in it. Raise ValueError."""
    try:
        return b64decode(without_blanks(text), validate=True)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is no base64") from None


#: How the values of tags are spelled alike, where other verifiers are lenient.
SPELLED: Final[dict[str, Callable[[str], str]]] = {
    **dict.fromkeys("aclqtvx", lambda text: without_blanks(text).lower()),
    **dict.fromkeys(["b", "bh"], plain_base64),
    "d": lambda text: text.removesuffix("."),
}


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


def check_bodies(message: Message, signatures: Sequence[Signature]) -> list[UnverifiedError | None]:
    """Return the error of the body for each signature; the body is read at most twice."""
    with message.open() as reader:
        hashes = body_hashes(reader, [each.extent for each in signatures])
    return [_body_problem(each, *hashes[each.extent]) for each in signatures]


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


class Keys:
    """The public keys of a message's signatures, all looked up within `patience`."""

    def __init__(self, resolver: Resolver, patience: timedelta) -> None:
        self._questions = Questions(resolver, patience)
        self._found: dict[str, Sequence[str]] = {}

    def find(self, signature: Signature) -> tuple[Verify, frozenset[str]]:
        """Return the key of a signature and its flags. Raise UnverifiedError."""
        name = f"{signature.selector}._domainkey.{signature.domain}"
        try:
            texts = self._found.get(name) or self._questions.ask(name, "TXT")
        except UnansweredError as error:
            result = "policy" if isinstance(error, TooManyQuestionsError) else "temperror"
            raise UnverifiedError(result, str(error)) from None
        self._found[name] = texts
        problem = UnverifiedError("permerror", "there is no key")
        keys = [text for text in texts if _KEY.search(text)]
        for text in (keys or texts)[:_RECORDS]:
            try:
                return _KEYS[_KINDS[signature.tags["a"]]].get(text)
            except UnverifiedError as error:
                problem = error
        raise problem


def _read_key(record: str, wanted: str) -> tuple[Verify, frozenset[str]]:
    """Read a record of RFC 6376 section 3.6.1 for signatures that need this type of key.

    Some records contain the quotes of a zone file.
    """
    try:
        tags = read_tags(record.translate(_QUOTES), lenient=True)
        octets = octets_of(plain_base64(tags["p"]))
    except KeyError:
        raise UnverifiedError("permerror", "the record has no key (tag p)") from None
    except ValueError as error:
        raise UnverifiedError("permerror", f"the key cannot be read: {error}") from None
    if not octets:
        raise UnverifiedError("permerror", "the key is revoked")
    _check_use(tags, wanted)
    try:
        key = _load_key(wanted, octets)
    except (ValueError, UnsupportedAlgorithm):
        raise UnverifiedError("permerror", "the key cannot be read") from None
    return key, frozenset(without_blanks(tags.get("t", "")).lower().split(":"))


def _check_use(tags: dict[str, str], wanted: str) -> None:
    """Raise UnverifiedError for a key of another type, or that must not be used."""
    services, hashes = (
        frozenset(without_blanks(tags.get(name, default)).lower().split(":"))
        for name, default in (("s", "*"), ("h", "sha256"))
    )
    kind = tags.get("k", "").lower() or "rsa"
    if tags.get("v", "DKIM1") != "DKIM1":
        raise UnverifiedError("permerror", f"the version of the key is {tags['v'][:40]}")
    if kind != wanted:
        raise UnverifiedError("permerror", f"the key is {kind[:40]}, not {wanted}")
    if not services & {"*", "email"}:
        raise UnverifiedError("permerror", "the key is not for mail")
    if "sha256" not in hashes:
        raise UnverifiedError("permerror", "the key is not for sha256")


def _load_key(kind: str, octets: bytes) -> Verify:
    if kind == "ed25519" and len(octets) == _ED25519:
        key: PublicKeyTypes = ed25519.Ed25519PublicKey.from_public_bytes(octets)
    else:
        key = load_der_public_key(octets)
    if kind == "ed25519" and isinstance(key, ed25519.Ed25519PublicKey):
        # RFC 8463 section 3: the hash is signed
        return lambda signature, octets: key.verify(signature, hashlib.sha256(octets).digest())
    if kind != "rsa" or not isinstance(key, rsa.RSAPublicKey):
        raise ValueError("another kind of key")
    if key.key_size < _SHORTEST:
        raise UnverifiedError("policy", f"the key has {key.key_size} bits only")
    if key.key_size > _LONGEST or key.public_numbers().e.bit_length() > _LONGEST_EXPONENT:
        raise UnverifiedError("policy", "the key is too large")
    return lambda signature, octets: key.verify(signature, octets, _PADDING, _SHA256)


_KEYS = {
    kind: ParsedRecords(partial(_read_key, wanted=kind), lambda text: 4 * len(text) + _KEY_SIZE)
    for kind in ("rsa", "ed25519")
}
