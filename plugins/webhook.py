"""Post each copy to a web service."""

import base64
import hashlib
import hmac
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, Literal, cast
from urllib.parse import quote

from minismtp import (
    Address,
    Answer,
    Defer,
    Envelope,
    Message,
    Reject,
    RemoteError,
    ServerInfo,
    WebService,
    hookimpl,
    plugin,
    read_file,
    warn_of_readers,
)

from ._login import authorities

_PIECE = 57 * 1024  # octets; a multiple of 3, so base64 has no padding in the middle
_TEXT = 200  # characters of a response in the reply
_ANSWER = 65536
# Statuses about credentials or timing, not about this mail (RFC 9110, 6585, 8470).
_FOR_NOW = frozenset({401, 407, 408, 425, 429})
_TOO_LARGE = 413
_VISIBLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


@plugin
class Webhook:
    """Store each copy by a POST to a web service; a status of 2xx means that it is stored.

    With `format = "raw"` the body is the message, as message/rfc822, and the envelope is in the
    fields Envelope-Id, Envelope-From and Envelope-To, percent-encoded except for visible ASCII.
    With "json" the body is an object with id, sender, recipient, peer, helo, login, arrived and
    message, the latter in base64. Idempotency-Key is the same for each attempt to store the same
    copy.

    `token_file` has a bearer token. `secret_file` has the key of a signature by HMAC-SHA256 as in
    Standard Webhooks: webhook-signature covers webhook-id, webhook-timestamp and the body; a key in
    base64 begins with whsec_. `ca` is a file of authorities to trust, by default the system's. 4xx
    refuses the copy, except that 401, 407, 408, 425 and 429 defer it, as do 5xx and no answer.
    `patience` is for one copy with its response.
    """

    url: str
    format: Literal["raw", "json"] = "raw"
    token_file: Path | None = None
    secret_file: Path | None = None
    ca: Path | None = None
    patience: timedelta = timedelta(seconds=30)

    def __post_init__(self) -> None:
        tls = authorities(self.ca) if self.url.startswith("https:") else None
        try:
            self._service = WebService(self.url, timeout=self.patience, tls=tls)
        except ValueError as error:
            raise ValueError(f"url: {error}") from None
        self._token = _line_of("token_file", self.token_file)
        secret = _line_of("secret_file", self.secret_file)
        self._secret = _key(secret) if secret else b""

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Warn about secrets that others can read."""
        if server.role == "check":
            for name in ("token_file", "secret_file"):
                if path := getattr(self, name):
                    warn_of_readers(name, path)

    @hookimpl
    def deliver(self, envelope: Envelope, message: Message, mailbox: Address) -> bool:
        """Post one copy."""
        key = hashlib.sha256(f"{envelope.id}\0{mailbox}".encode("utf-8", "replace")).hexdigest()
        fields = {"Idempotency-Key": f'"{key}"', "User-Agent": "minismtp"}
        if self._token:
            fields["Authorization"] = f"Bearer {self._token}"
        with self._body(envelope, message, mailbox) as (body, size):
            if self.format == "raw":
                fields |= {
                    "Content-Type": "message/rfc822",
                    "Envelope-Id": _visible(envelope.id),
                    "Envelope-From": _visible(envelope.sender),
                    "Envelope-To": _visible(str(mailbox)),
                }
            else:
                fields["Content-Type"] = "application/json"
            if self._secret:
                fields |= self._signature(key, body)
            answer = self._service.request("POST", body, size=size, headers=fields, limit=_ANSWER)
        _check(answer)
        return True

    @contextmanager
    def _body(
        self, envelope: Envelope, message: Message, mailbox: Address
    ) -> Iterator[tuple[BinaryIO, int]]:
        if self.format == "raw":
            with message.open() as reader:
                yield reader, message.size
            return
        with tempfile.TemporaryFile() as file:
            facts = {
                "id": envelope.id,
                "sender": envelope.sender,
                "recipient": str(mailbox),
                "peer": envelope.peer,
                "helo": envelope.helo,
                "login": envelope.login,
                "arrived": envelope.arrived,
            }
            file.write(json.dumps(facts).removesuffix("}").encode() + b', "message": "')
            with message.open() as reader:
                for piece in iter(lambda: reader.read(_PIECE), b""):
                    file.write(base64.b64encode(piece))
            file.write(b'"}')
            size = file.tell()
            file.seek(0)
            yield cast("BinaryIO", file), size

    def _signature(self, key: str, body: BinaryIO) -> dict[str, str]:
        """Return the fields of a Standard Webhooks signature; rewind the body afterwards."""
        now = str(int(time.time()))
        mac = hmac.new(self._secret, f"{key}.{now}.".encode(), "sha256")
        for piece in iter(lambda: body.read(_PIECE), b""):
            mac.update(piece)
        body.seek(0)
        signature = base64.b64encode(mac.digest()).decode()
        return {
            "webhook-id": key,
            "webhook-timestamp": now,
            "webhook-signature": f"v1,{signature}",
        }


def _visible(value: str) -> str:
    """Return a value in a form that a header can carry; `unquote` restores it."""
    return quote(value, safe=_VISIBLE, errors="replace")


def _check(answer: Answer) -> None:
    """Raise the verdict of a response, RemoteError if it has no verdict."""
    status = answer.status
    if status // 100 == 2:  # noqa: PLR2004
        return
    first = answer.body.decode("utf-8", "replace").strip().partition("\n")[0][:_TEXT]
    plain = answer.headers.get("content-type", "").lower().startswith("text/plain")
    text = first if plain and first else f"refused by the service of the mailbox ({status})"
    if status in _FOR_NOW:
        raise Defer(f"the service of the mailbox answers {status}", enhanced="4.3.0")
    if status == _TOO_LARGE:
        raise Reject(text, code=552, enhanced="5.3.4")
    if status // 100 == 4:  # noqa: PLR2004
        raise Reject(text, enhanced="5.7.1")
    raise RemoteError(f"the service of the mailbox answers {status}")


def _line_of(option: str, path: Path | None) -> str:
    if path is None:
        return ""
    try:
        line = read_file(path).decode("ascii", "replace").strip().partition("\n")[0].strip()
    except OSError as error:
        raise ValueError(f"{option}: {path}: {error.strerror}") from error
    if not line or not line.isascii() or not line.isprintable():
        raise ValueError(f"{option}: {path}: expected a line of ASCII")
    return line


def _key(secret: str) -> bytes:
    if not secret.startswith("whsec_"):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        raise ValueError("secret_file: expected base64 behind whsec_") from None
