"""The public keys of DKIM and ARC, as the DNS has them."""

from datetime import timedelta

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from minismtp import Found, Resolver, UnansweredError

from ._dkim import PublicKey, Signature, UnverifiedError, octets_of, read_tags, without_blanks
from ._dns import Questions, TooManyQuestionsError

_SHORTEST, _LONGEST = 1024, 8192  # bits of RSA keys: RFC 8301 section 3.2, and what time allows
_LONGEST_EXPONENT = 33  # bits; a larger one makes a check as dear as a signature
_RECORDS = 3  # of one name are tried; there should be one


class Keys:
    """The public keys of a message's signatures, all within so many seconds."""

    def __init__(self, resolver: Resolver, seconds: float) -> None:
        self._questions = Questions(resolver, timedelta(seconds=seconds))
        self._found: dict[str, Found] = {}

    def find(self, signature: Signature) -> tuple[PublicKey, frozenset[str]]:
        """Give the key of a signature and its flags; raises UnverifiedError."""
        name = f"{signature.selector}._domainkey.{signature.domain}"
        try:
            found = self._found.get(name) or self._questions.lookup(name, "TXT")
        except TooManyQuestionsError as error:
            raise UnverifiedError("policy", str(error)) from None
        except UnansweredError as error:
            raise UnverifiedError("temperror", str(error)) from None
        self._found[name] = found
        problem = UnverifiedError("permerror", "there is no key")
        for record in found.records[:_RECORDS]:
            try:
                return _read_key(b"".join(record.strings).decode("latin-1"), signature)
            except UnverifiedError as error:
                problem = error
        raise problem


def _read_key(record: str, signature: Signature) -> tuple[PublicKey, frozenset[str]]:
    """Read a record of RFC 6376 section 3.6.1."""
    try:
        tags = read_tags(record)
        octets = octets_of(tags["p"])
    except (ValueError, KeyError):
        raise UnverifiedError("permerror", "the key cannot be read") from None
    if not octets:
        raise UnverifiedError("permerror", "the key has been revoked")
    services, hashes, flags = (
        frozenset(without_blanks(tags.get(name, default)).split(":"))
        for name, default in (("s", "*"), ("h", "sha256"), ("t", ""))
    )
    fits = tags.get("v", "DKIM1") == "DKIM1" and tags.get("k", "rsa") == signature.kind
    if not (fits and services & {"*", "email"} and "sha256" in hashes):
        raise UnverifiedError("permerror", "the key is not for such a signature")
    try:
        key = _load_key(signature.kind, octets)
    except (ValueError, UnsupportedAlgorithm):
        raise UnverifiedError("permerror", "the key cannot be read") from None
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < _SHORTEST:
            raise UnverifiedError("policy", f"the key has {key.key_size} bits only")
        if key.key_size > _LONGEST or key.public_numbers().e.bit_length() > _LONGEST_EXPONENT:
            raise UnverifiedError("policy", "the key is too large")
    return key, flags


def _load_key(kind: str, octets: bytes) -> PublicKey:
    if kind == "ed25519":
        return ed25519.Ed25519PublicKey.from_public_bytes(octets)
    key = load_der_public_key(octets)
    if not isinstance(key, rsa.RSAPublicKey):
        raise ValueError("not RSA")  # noqa: TRY004 - as from the line above
    return key
