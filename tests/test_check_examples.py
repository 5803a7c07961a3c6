"""`minismtp check` passes each configuration that the documentation and `etc/` show.

The files in an example exist, as its administrator would make them. No server that
it names is reached, because the names lead to loopback.
"""

from __future__ import annotations

import contextlib
import re
import socket
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import dns.message
import dns.rcode
import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from minismtp.cli.main import main
from minismtp.values.passwords import hash_password

if TYPE_CHECKING:
    from _pytest.capture import CaptureFixture

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = (
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "etc").glob("*.toml")),
)
_FENCE: Final = re.compile(r"^```(\w+) ?(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
_LISTENERS: Final = """
[[listeners]]
name = "smtp"
address = "127.0.0.1:0"
tls = "none"

[[listeners]]
name = "submission"
address = "127.0.0.1:0"
kind = "submission"
tls = "none"
"""
_AS_PEM: Final = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
_DNS: Final = '\n[dns]\nnameservers = ["127.0.0.1:{}"]\n'
#: Blocks that are not a configuration, and one whose plugin is a separate package.
_ELSEWHERE: Final = re.compile(r'\[project\]|no_lottery|use = "new_links"\n\Z')
#: Names of other machines -> names of this machine.
_REMOTE: Final = {
    "redis://:password@192.0.2.9:6379/0": "redis://127.0.0.1:9/0",
    "@db.example.org": "@127.0.0.1:9",
    "host=db.example.org": "host=127.0.0.1 port=9",
    "directory.example.org": "127.0.0.1:9",
}


def fenced(page: Path, language: str) -> list[tuple[str, str]]:
    """Return the name and the text of each block of code in a language."""
    found = _FENCE.finditer(page.read_text())
    return [(match[2], match[3]) for match in found if match[1] == language]


def examples() -> dict[str, tuple[Path, str]]:
    """Return each configuration with its page, by a name."""
    found: dict[str, tuple[Path, str]] = {}
    for page in PAGES:
        texts = (
            [page.read_text()]
            if page.suffix == ".toml"
            else [text for _, text in fenced(page, "toml") if not _ELSEWHERE.search(text)]
        )
        found |= {f"{page.name}-{number}": (page, text) for number, text in enumerate(texts)}
    return found


EXAMPLES: Final = examples()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Run a DNS without any name, and return its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))

        def answer() -> None:
            while True:
                question, client = sock.recvfrom(4096)
                if not question:
                    return
                reply = dns.message.make_response(dns.message.from_wire(question))
                reply.set_rcode(dns.rcode.NXDOMAIN)
                sock.sendto(reply.to_wire(), client)

        thread = threading.Thread(target=answer)
        thread.start()
        yield sock.getsockname()[1]
        sock.sendto(b"", sock.getsockname())
        thread.join()


def make_files(directory: Path) -> None:
    """Make the files that the examples name."""
    for folder in ("dkim", "tls", "plugins"):
        (directory / folder).mkdir()
    authority = trustme.CA()
    issued = authority.issue_cert("mx.example.org")
    authority.cert_pem.write_to_path(directory / "directory-ca.pem")
    for pem in issued.cert_chain_pems:
        pem.write_to_path(directory / "tls/fullchain.pem", append=True)
    key = rsa.generate_private_key(65537, 2048)
    pem_key = key.private_bytes(*_AS_PEM)
    secrets = {
        "tls/key.pem": issued.private_key_pem.bytes(),
        "dkim/example.org.mail.pem": pem_key,
        "dkim/example.org.ed.pem": ed25519.Ed25519PrivateKey.generate().private_bytes(*_AS_PEM),
        "smarthost-password": b"secret\n",
        "directory-password": b"secret\n",
        "srs-secret": b"0123456789abcdef0123456789abcdef\n",
        "passwords": f"alice:{hash_password('secret')}\n".encode(),
        "users": b"alice\n",
        "aliases": b"info: alice\n",
        "words": b"money: invoice payment\n",
    }
    for name, data in secrets.items():
        (directory / name).write_bytes(data)
        (directory / name).chmod(0o600)
    with contextlib.closing(sqlite3.connect(directory / "company.db")) as database:
        database.execute("CREATE TABLE partners (domain TEXT PRIMARY KEY)")


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_passes_the_check(
    name: str, port: int, tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    page, text = EXAMPLES[name]
    make_files(tmp_path)
    text = text.replace("/etc/minismtp/", f"{tmp_path}/").replace("/var/lib/", f"{tmp_path}/lib/")
    for remote, here in _REMOTE.items():
        text = text.replace(remote, here)
    for file, code in fenced(page, "python"):
        target = tmp_path / (file or "spam_flag.py")
        target = tmp_path / "plugins" / target.name
        target.write_text(code)
    head = "" if "state_directory" in text else 'state_directory = "state"\n'
    head += "" if "plugin_path" in text else 'plugin_path = ["plugins"]\n'
    text = head + text + ("" if "[[listeners]]" in text else _LISTENERS)
    named = "[dns]" in text
    text = text.replace("127.0.0.1:53", f"127.0.0.1:{port}") if named else text + _DNS.format(port)
    path = tmp_path / "minismtp.toml"
    path.write_text(text)
    status = main(["check", "--config", str(path)])
    said = capsys.readouterr()
    assert status == 0, said.out + said.err
    assert "error: " not in said.out + said.err
