"""SASL mechanisms as dialogues without a socket (layer 1; RFC 4422, 4616, 5802, 7628).

A mechanism is a generator: it yields challenges, is sent responses, and returns what the client
offered (`Credentials`, still to be checked) or proved (`Proof`). It raises `SaslProblem` when the
client does not follow the mechanism.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Final, TypeAlias


class SaslProblem(Exception):  # noqa: N818 - an answer of the peer, not a fault of ours
    """The response does not follow the mechanism, or proves nothing."""


@dataclass(frozen=True, slots=True)
class Offer:
    """Unchecked credentials: `password` or `token`, and the identity to act as ("" = the same)."""

    username: str
    password: str = field(default="", repr=False)
    authorization: str = ""
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Proof:
    """The client has proved to be `username`."""

    username: str
    authorization: str = ""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """What a server keeps for SCRAM instead of a password (RFC 5802 section 3)."""

    salt: bytes = field(repr=False)
    iterations: int
    stored: bytes = field(repr=False)
    server: bytes = field(repr=False)


Exchange: TypeAlias = Generator[bytes, bytes, Offer | Proof]
KeyLookup: TypeAlias = Callable[[str], StoredKey | None]

SCRAM_ITERATIONS: Final = 4096  # RFC 7677 section 4: at least
_SECRET: Final = secrets.token_bytes(32)  # makes up salts for users that do not exist


def plain() -> Exchange:
    """PLAIN: authorization identity, NUL, user name, NUL, password (RFC 4616 section 2)."""
    parts = _text((yield b"")).split("\0")
    if len(parts) != 3 or not parts[1] or not parts[2]:  # noqa: PLR2004
        raise SaslProblem("malformed PLAIN message")
    return Offer(parts[1], parts[2], authorization=parts[0])


def login() -> Exchange:
    """LOGIN: user name, then password (draft-murchison-sasl-login)."""
    username = _text((yield b"Username:"))
    password = _text((yield b"Password:"))
    if not username or not password or "\0" in username + password:
        raise SaslProblem("malformed LOGIN message")
    return Offer(username, password)


def oauthbearer() -> Exchange:
    """OAUTHBEARER: a GS2 header and key=value pairs parted by 0x01 (RFC 7628 section 3.1)."""
    header, _, rest = _text((yield b"")).partition("\x01")
    fields = dict(pair.partition("=")[::2] for pair in rest.split("\x01") if pair)
    flag, _, identity = header.rstrip(",").partition(",")
    if flag not in {"n", "y"} or (identity and not identity.startswith("a=")):
        raise SaslProblem("malformed GS2 header")
    user = _unescaped(identity[2:])
    return Offer(user, token=_bearer(fields.get("auth", "")))


def xoauth2() -> Exchange:
    """XOAUTH2: `user=` and `auth=` parted by 0x01, as large providers ask for."""
    message = _text((yield b""))
    fields = dict(pair.partition("=")[::2] for pair in message.split("\x01") if pair)
    return Offer(fields.get("user", ""), token=_bearer(fields.get("auth", "")))


#: The challenge that tells an OAuth client why it failed (RFC 7628 section 3.2.2).
OAUTH_FAILURE: Final = json.dumps({"status": "invalid_token", "scope": ""}).encode()


def scram_sha_256(lookup: KeyLookup) -> Exchange:
    """SCRAM-SHA-256 without channel binding (RFC 5802 section 5, RFC 7677).

    A user that `lookup` does not know gets a salt of its own, always the same, and fails at the
    end, so nobody learns which users exist.
    """
    gs2, username, authorization, first = _scram_first(_text((yield b"")))
    nonce = _attribute(first, "r") + secrets.token_urlsafe(18)
    key = lookup(username)
    known = key or _made_up(username)
    salt = base64.b64encode(known.salt).decode()
    server_first = f"r={nonce},s={salt},i={known.iterations}"
    final = _text((yield server_first.encode()))
    without_proof, _, proof = final.rpartition(",p=")
    if _attribute(without_proof, "r") != nonce or _attribute(without_proof, "c") != gs2:
        raise SaslProblem("SCRAM nonce or channel binding does not match")
    message = f"{first},{server_first},{without_proof}".encode()
    signature = hmac.digest(known.stored, message, "sha256")
    client_key = bytes(a ^ b for a, b in zip(signature, _decoded(proof), strict=False))
    matches = hmac.compare_digest(hashlib.sha256(client_key).digest(), known.stored)
    if not matches or key is None:
        raise SaslProblem("wrong proof")
    server_signature = base64.b64encode(hmac.digest(known.server, message, "sha256"))
    yield b"v=" + server_signature
    return Proof(username, authorization)


def derive_key(password: str, salt: bytes, iterations: int = SCRAM_ITERATIONS) -> StoredKey:
    """Make the stored key of a password for SCRAM-SHA-256 (RFC 5802 section 3)."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    return StoredKey(
        salt,
        iterations,
        hashlib.sha256(client_key).digest(),
        hmac.digest(salted, b"Server Key", "sha256"),
    )


def _scram_first(message: str) -> tuple[str, str, str, str]:
    """Split client-first-message: base64 of the GS2 header, user, authorization, bare message."""
    parts = message.split(",", 2)
    if len(parts) != 3 or parts[0] not in {"n", "y"}:  # noqa: PLR2004
        raise SaslProblem("SCRAM without channel binding expected")
    header = f"{parts[0]},{parts[1]},"
    authorization = parts[1].removeprefix("a=")
    username = _unescaped(_attribute(parts[2], "n"))
    if not username:
        raise SaslProblem("SCRAM without a user name")
    encoded = base64.b64encode(header.encode()).decode()
    return encoded, username, _unescaped(authorization), parts[2]


def _made_up(username: str) -> StoredKey:
    digest = hmac.digest(_SECRET, username.encode(), "sha256")
    return StoredKey(digest[:16], SCRAM_ITERATIONS, digest, digest)


def _attribute(message: str, name: str) -> str:
    for part in message.split(","):
        if part.startswith(f"{name}="):
            return part[2:]
    raise SaslProblem(f"SCRAM message without {name}=")


def _unescaped(name: str) -> str:
    return name.replace("=2C", ",").replace("=3D", "=")


def _bearer(value: str) -> str:
    scheme, _, token = value.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise SaslProblem("expected a bearer token")
    return token.strip()


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise SaslProblem("malformed base64 in SCRAM message") from None


def _text(message: bytes) -> str:
    try:
        return message.decode("utf-8")
    except UnicodeDecodeError:
        raise SaslProblem("SASL message is not UTF-8") from None


def external(identity: str) -> Exchange:
    """EXTERNAL: the identity that TLS has already proved (RFC 4422 appendix A)."""
    asked = _text((yield b""))
    return Proof(identity, asked)


def oauth_failure() -> Exchange:
    """Tell an OAuth client why its token was refused, and wait for its dummy answer."""
    yield OAUTH_FAILURE
    raise SaslProblem("invalid token")
