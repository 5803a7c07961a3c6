"""SASL mechanisms as dialogues without a socket (RFC 4422, 4616, 5802, 7628).

A mechanism is a generator. It yields challenges and is sent responses. In the end it returns what
the client offered (`Credentials`, still to be checked) or proved (`Proof`). It raises `SaslProblem`
if the client does not follow the mechanism.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import stringprep
import unicodedata
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Final, TypeAlias


class SaslProblem(Exception):  # noqa: N818 - the client is at fault, not this program
    """The response does not follow the mechanism, or proves nothing."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client proved or offered in AUTH; the repr and the log never show secrets."""

    mechanism: str
    """The SASL mechanism, such as `PLAIN`."""
    username: str
    """The authentication identity."""
    password: str = field(default="", repr=False)
    """The password of PLAIN and LOGIN, else ""."""
    authorization: str = ""
    """The identity to act as, "" for the same."""
    token: str = field(default="", repr=False)
    """The token of OAUTHBEARER and XOAUTH2, else ""."""
    known: bool = False
    """Whether an earlier login from this address, or of this user from a nearby address,
    succeeded. Under load such clients come before strangers.
    """


@dataclass(frozen=True, slots=True)
class Proof:
    """The client has proved to be `username`."""

    username: str
    authorization: str = ""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """What a server keeps for SCRAM-SHA-256 instead of a password (RFC 5802 section 3)."""

    salt: bytes = field(repr=False)
    iterations: int
    stored: bytes = field(repr=False)
    server: bytes = field(repr=False)
    username: str = ""  #: the user whose key it is, if names have several spellings

    @classmethod
    def parse(cls, text: str) -> StoredKey:
        """Read what `text` returned. Raise ValueError, whose message shows no secret."""
        match = _STORED_KEY.fullmatch(text)
        if match is None:
            raise ValueError(f"expected {_STORED_KEY_FORM}")
        salt, stored, server = (_unpadded(match[number]) for number in (2, 3, 4))
        if not len(stored) == len(server) == hashlib.sha256().digest_size:
            raise ValueError("a SCRAM-SHA-256 key has 32 octets")
        if not FEWEST_ITERATIONS <= int(match[1]) <= _MOST_ITERATIONS:
            raise ValueError(f"{match[1]} SCRAM iterations are out of bounds")
        return cls(salt, int(match[1]), stored, server)

    @property
    def text(self) -> str:
        """The self-describing form for a file, base64 without padding."""
        parts = (_encoded(part).rstrip("=") for part in (self.salt, self.stored, self.server))
        return f"$scram-sha-256$i={self.iterations}${'$'.join(parts)}"

    @property
    def ordinary(self) -> bool:
        """Whether a client cannot tell this key from one that is made up for an unknown user."""
        return (len(self.salt), self.iterations) == (SALT_LENGTH, SCRAM_ITERATIONS)


Exchange: TypeAlias = Generator[bytes, bytes, Credentials | Proof]
KeyLookup: TypeAlias = Callable[[str], StoredKey | None]

FEWEST_ITERATIONS: Final = 4096  # RFC 7677 section 4
# A thief of the password file can try passwords at this cost, even if the hash beside the key is
# more expensive. Cyrus SASL does not accept more.
SCRAM_ITERATIONS: Final = 65536
_MOST_ITERATIONS: Final = 10_000_000
SALT_LENGTH: Final = 16  # octets
_STORED_KEY_FORM: Final = f"$scram-sha-256$i={SCRAM_ITERATIONS}$SALT$STOREDKEY$SERVERKEY"
_STORED_KEY: Final = re.compile(r"\$scram-sha-256\$i=([0-9]{1,8})" + r"\$([A-Za-z0-9+/]+)=*" * 3)

# saslname = 1*(value-safe-char / "=2C" / "=3D"), RFC 5802 section 7
_NAME = r"(?:[^\0,=]++|=2C|=3D)++"
# gs2-header = ("n" / "y") "," [ "a=" saslname ] "," without channel binding, RFC 5801 section 4
_GS2 = rf"[ny],(?:a=({_NAME}))?,"
# nonce = "r=" 1*( any printable ASCII but "," ) ; unknown extensions are ignored
_NONCE = r"r=([!-+\--~]+)"
_EXTENSIONS = r"(?:,[A-Za-z]=[^\0,]+)*"
_BASE64 = r"[A-Za-z0-9+/]+={0,2}"
_OAUTH_HEADER = re.compile(_GS2)
# client-first-message = gs2-header client-first-message-bare
_CLIENT_FIRST = re.compile(rf"({_GS2})(n=({_NAME}),{_NONCE}{_EXTENSIONS})")
# client-final-message = "c=" base64 "," nonce ["," extensions] "," "p=" base64
_CLIENT_FINAL = re.compile(rf"(c=({_BASE64}),{_NONCE}{_EXTENSIONS}),p=({_BASE64})")


def plain() -> Exchange:
    """PLAIN: authorization identity, NUL, user name, NUL, password (RFC 4616 section 2)."""
    parts = _text((yield b"")).split("\0")
    if len(parts) != 3 or not parts[1] or not parts[2]:  # noqa: PLR2004
        raise SaslProblem("malformed PLAIN message")
    return Credentials("PLAIN", parts[1], parts[2], authorization=parts[0])


def login() -> Exchange:
    """LOGIN: user name, then password (draft-murchison-sasl-login)."""
    username = _text((yield b"Username:"))
    password = _text((yield b"Password:"))
    if not username or not password or "\0" in username + password:
        raise SaslProblem("malformed LOGIN message")
    return Credentials("LOGIN", username, password)


def oauthbearer() -> Exchange:
    """OAUTHBEARER: a GS2 header and key=value pairs separated by 0x01 (RFC 7628 section 3.1)."""
    header, _, rest = _text((yield b"")).partition("\x01")
    match = _OAUTH_HEADER.fullmatch(header)
    if match is None:
        raise SaslProblem("malformed GS2 header")
    return Credentials("OAUTHBEARER", _unescaped(match[1] or ""), token=_bearer(_pairs(rest)))


def xoauth2() -> Exchange:
    """XOAUTH2: `user=` and `auth=` separated by 0x01, as large providers ask for."""
    pairs = _pairs(_text((yield b"")))
    username = pairs.get("user", "")
    if not username:
        raise SaslProblem("XOAUTH2 without a user name")
    return Credentials("XOAUTH2", username, token=_bearer(pairs))


def external(identity: str) -> Exchange:
    """EXTERNAL: the identity that TLS has already proved (RFC 4422 appendix A)."""
    asked = _text((yield b""))
    return Proof(identity, asked)


#: The challenge that tells an OAuth client why it failed (RFC 7628 section 3.2.2).
OAUTH_FAILURE: Final = json.dumps({"status": "invalid_token", "scope": ""}).encode()


def oauth_failure() -> Exchange:
    """Tell an OAuth client why its token was refused, and await its dummy response."""
    yield OAUTH_FAILURE
    raise SaslProblem("invalid token")


class MadeUpKeys:
    """Makes up keys for users that do not exist, always the same for a name and a `secret`.

    Their length and their iterations are those of the last real key that was seen, and before that
    those of `make_key`.
    """

    def __init__(self, secret: bytes = b"") -> None:
        self._secret = secret or secrets.token_bytes(32)
        self._form = SALT_LENGTH, SCRAM_ITERATIONS

    def resemble(self, key: StoredKey) -> None:
        """Make up keys that look like this real one from now on."""
        self._form = len(key.salt), key.iterations

    def key(self, username: str) -> StoredKey:
        """Return the key for a name. No password fits it."""
        length, iterations = self._form
        octets = hashlib.shake_256(self._secret + username.encode()).digest(length + 64)
        return StoredKey(octets[64:], iterations, octets[:32], octets[32:64])


_PASSING: Final = MadeUpKeys()


def scram_sha_256(
    lookup: KeyLookup, made_up: MadeUpKeys = _PASSING, spelled: Callable[[str], str] = str
) -> Exchange:
    """SCRAM-SHA-256 without channel binding (RFC 5802 section 5, RFC 7677).

    The exchange with a user that `lookup` does not know has a salt of its own, always the same for
    all spellings of the name that `spelled` folds, and fails at the end. So clients cannot learn
    which users exist.
    """
    first = _CLIENT_FIRST.fullmatch(_text((yield b"")))
    if first is None:
        raise SaslProblem("malformed first SCRAM message, or one with channel binding")
    username, nonce = _unescaped(first[4]), first[5] + secrets.token_urlsafe(18)
    key = lookup(username)
    stand_in = made_up.key(spelled(username))  # for known users too, because time would tell
    if key is not None:
        made_up.resemble(key)
    known = key or stand_in
    server_first = f"r={nonce},s={_encoded(known.salt)},i={known.iterations}"
    final = _CLIENT_FINAL.fullmatch(_text((yield server_first.encode())))
    if final is None:
        raise SaslProblem("malformed final SCRAM message")
    if final[2] != _encoded(first[1].encode()) or final[3] != nonce:
        raise SaslProblem("SCRAM nonce or channel binding does not match")
    message = f"{first[3]},{server_first},{final[1]}".encode()
    if not _proves(known, message, _decoded(final[4])) or key is None:
        raise SaslProblem("wrong proof")
    yield f"v={_encoded(hmac.digest(known.server, message, 'sha256'))}".encode()
    return Proof(key.username or username, _unescaped(first[2] or ""))


def make_key(password: str) -> StoredKey:
    """Make a stored key with a new salt. Raise ValueError for an empty password."""
    return derive_key(password, secrets.token_bytes(SALT_LENGTH))


def derive_key(password: str, salt: bytes, iterations: int = SCRAM_ITERATIONS) -> StoredKey:
    """Make the stored key of a password for SCRAM-SHA-256 (RFC 5802 section 3).

    Raise ValueError for a password of which SASLprep leaves nothing.
    """
    prepared = _prepared(password).encode("utf-8", "surrogatepass")
    if not prepared:
        raise ValueError("the password is empty")
    salted = hashlib.pbkdf2_hmac("sha256", prepared, salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    return StoredKey(
        salt,
        iterations,
        hashlib.sha256(client_key).digest(),
        hmac.digest(salted, b"Server Key", "sha256"),
    )


def _prepared(password: str) -> str:
    """Return the form of a password that both sides hash: SASLprep (RFC 4013 section 2).

    Forbidden characters pass, because a password that clients do not send cannot match anyway.
    """
    if password.isascii():
        return password
    kept = (c for c in password if not stringprep.in_table_b1(c))
    spaced = (" " if stringprep.in_table_c12(c) else c for c in kept)
    return unicodedata.normalize("NFKC", "".join(spaced))


def _proves(key: StoredKey, message: bytes, proof: bytes) -> bool:
    """Return whether `proof` is ClientKey XOR ClientSignature (RFC 5802 section 3)."""
    signature = hmac.digest(key.stored, message, "sha256")
    client_key = bytes(a ^ b for a, b in zip(signature, proof, strict=False))
    right = hmac.compare_digest(hashlib.sha256(client_key).digest(), key.stored)
    return right and len(proof) == len(signature)


def _unescaped(name: str) -> str:
    return name.replace("=2C", ",").replace("=3D", "=")


def _pairs(text: str) -> dict[str, str]:
    return dict(pair.partition("=")[::2] for pair in text.split("\x01"))


def _bearer(pairs: dict[str, str]) -> str:
    scheme, _, token = pairs.get("auth", "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise SaslProblem("expected a bearer token")
    return token


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unpadded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise SaslProblem("malformed base64 in SCRAM message") from None


def _text(message: bytes) -> str:
    try:
        return message.decode("utf-8")
    except UnicodeDecodeError:
        raise SaslProblem("SASL message is not UTF-8") from None
