"""A client of SCRAM-SHA-256, for dialogues."""

import base64
import hashlib
import hmac

from minismtp.testing import Dialogue


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def scram(dialogue: Dialogue, username: str, password: str) -> str:
    """Log in by SCRAM-SHA-256 (RFC 7677 section 3) and return the last reply."""
    dialogue.send("EHLO client.example")
    first = f"n={username},r=clientnonce"
    challenge = dialogue.send(f"AUTH SCRAM-SHA-256 {b64('n,,' + first)}")
    server_first = base64.b64decode(challenge.removeprefix("334 ")).decode()
    values = dict(part.split("=", 1) for part in server_first.split(","))
    salt, iterations = base64.b64decode(values["s"]), int(values["i"])
    final = f"c=biws,r={values['r']}"
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    client = hmac.digest(salted, b"Client Key", "sha256")
    message = f"{first},{server_first},{final}".encode()
    signature = hmac.digest(hashlib.sha256(client).digest(), message, "sha256")
    proof = base64.b64encode(bytes(a ^ b for a, b in zip(client, signature, strict=True))).decode()
    reply = dialogue.send(b64(f"{final},p={proof}"))
    if not reply.startswith("334"):
        return reply
    server = hmac.digest(salted, b"Server Key", "sha256")
    verifier = base64.b64encode(hmac.digest(server, message, "sha256")).decode()
    assert base64.b64decode(reply.removeprefix("334 ")).decode() == f"v={verifier}"
    return dialogue.send("")
