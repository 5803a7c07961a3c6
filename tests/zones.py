"""Names for tests: a resolver with a dictionary, and a zone of nsd."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import dns.rdata
import dns.rdataclass
import dns.rdatatype
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from nameserver import NSD
from ports import free_port

from minismtp import Found, Resolver, UnansweredError

Key = rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

_ROOT: Final = "zone:\n  name: .\n  zonefile: root.zone\n"


class DictionaryResolver(Resolver):
    """Answers TXT and A from `{"name": ["text", ...]}`; other names do not exist.

    An exception as the value is raised. `asked` has the questions.
    """

    def __init__(self, names: Mapping[str, list[str] | UnansweredError]) -> None:
        super().__init__()
        self.names = {**names}
        self.asked: list[tuple[str, str]] = []

    def lookup(self, name: str, kind: str, *, seconds: float = 10.0) -> Found:
        assert seconds > 0
        self.asked.append((name, kind))
        texts = self.names.get(name.lower())
        if isinstance(texts, UnansweredError):
            raise texts
        if texts is None:
            below = any(each.endswith(f".{name}") for each in self.names)
            return Found((), name, exists=below)
        return Found(tuple(txt(text) for text in texts) if kind == "TXT" else (), name)


def txt(text: str) -> Any:  # noqa: ANN401 - as dnspython has it
    """Return a TXT record in strings that are short enough."""
    return dns.rdata.from_text(dns.rdataclass.IN, dns.rdatatype.TXT, strings(text))


def strings(text: str) -> str:
    """Return a text in the format of a zone."""
    pieces = [text[start : start + 200] for start in range(0, len(text), 200)] or [""]
    escaped = (piece.replace("\\", "\\\\").replace('"', '\\"') for piece in pieces)
    return " ".join(f'"{piece}"' for piece in escaped)


def published(key: Key) -> str:
    """Return the DKIM record of a key (RFC 6376 section 3.6.1, RFC 8463 section 4)."""
    public = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        octets = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return f"v=DKIM1; k=rsa; p={b64encode(octets).decode()}"
    return f"v=DKIM1; k=ed25519; p={b64encode(public.public_bytes_raw()).decode()}"


@contextlib.contextmanager
def nsd(
    directory: Path, names: Mapping[str, str], require_program: Callable[[str], str]
) -> Iterator[str]:
    """Serve TXT records from the root zone, and return the address, host:port."""
    program = require_program("nsd")
    port = free_port()
    lines = ["$TTL 60", ". SOA ns. root. 1 3600 600 86400 60", ". NS ns.", "ns. A 127.0.0.1"]
    lines += [f"{name}. TXT {strings(text)}" for name, text in names.items()]
    (directory / "root.zone").write_text("\n".join(lines) + "\n")
    (directory / "nsd.conf").write_text(NSD.format(directory=directory, port=port) + _ROOT)
    with (directory / "nsd.log").open("wb") as log:
        command = [program, "-d", "-c", str(directory / "nsd.conf")]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _wait_for(port, directory / "nsd.log")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def _wait_for(port: int, log: Path) -> None:
    """Return when it listens, which TCP shows without a question."""
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 60).close()
        except OSError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        else:
            return
