"""The public keys of DKIM and ARC in the DNS."""

import hashlib
import re
from collections.abc import Sequence
from datetime import timedelta
from functools import partial

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from minismtp import Resolver, UnansweredError

from ._dkim import Signature, UnverifiedError, Verify
from ._dns import ParsedRecords, Questions, TooManyQuestionsError
from ._tags import octets_of, plain_base64, read_tags, without_blanks

_SHORTEST, _LONGEST = 1024, 8192  # bits of RSA keys: RFC 8301 section 3.2, and a limit for the time
_LONGEST_EXPONENT = 33  # bits; a check with a larger one takes as long as a signature
_PADDING, _SHA256 = padding.PKCS1v15(), SHA256()
_KEY_SIZE = 4096  # octets that OpenSSL takes for a key, about
_ED25519 = 32  # octets; some publish it in a SubjectPublicKeyInfo as RSA keys are
_QUOTES = str.maketrans("", "", '"\\')
_KEY = re.compile(r"(?:^|[;\s\"])p\s*+=")
_RECORDS = 3  # records of one name that are tried; there should be one


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
        except TooManyQuestionsError as error:
            raise UnverifiedError("policy", str(error)) from None
        except UnansweredError as error:
            raise UnverifiedError("temperror", str(error)) from None
        self._found[name] = texts
        problem = UnverifiedError("permerror", "there is no key")
        keys = [text for text in texts if _KEY.search(text)]
        for text in (keys or texts)[:_RECORDS]:
            try:
                return _KEYS[signature.kind].get(text)
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
