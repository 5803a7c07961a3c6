"""An imported configuration decides about recipients as the Postfix from which it is."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import smtplib
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from conftest import wait_until

from minismtp.cli.main import main

if TYPE_CHECKING:
    from conftest import Run, Running

MAIN_CF: Final = """
compatibility_level = 3.6
maillog_file = /dev/stdout
queue_directory = {base}/spool
data_directory = {base}/lib
myhostname = mx.example.org
mydestination = local.example, localhost
local_recipient_maps = inline:{{ {{ alice = x }}, {{ bob = x }} }} $alias_maps
alias_maps = inline:{{ {{ staff = alice@local.example, bob@local.example }},
    {{ boss = friend@elsewhere.example }} }}
virtual_mailbox_domains = example.org, example.net catch.example
virtual_mailbox_maps = texthash:{base}/vmailbox
virtual_alias_domains = example.info
virtual_alias_maps = texthash:{base}/virtual
relay_domains = relayed.example
recipient_delimiter = +
mynetworks = 127.0.0.2/32
inet_interfaces = 127.0.0.1
smtpd_peername_lookup = no
smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination
relayhost = [127.0.0.1]:9
"""
MASTER_CF: Final = """
127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
anvil unix - - n - 1 anvil
error unix - - n - - error
retry unix - - n - - error
postlog unix-dgram n - n - 1 postlogd
"""
VMAILBOX: Final = """
alice@example.org example.org/alice/
bob@example.org example.org/bob/
carol@example.net example.net/carol/
@catch.example catch.example/rest/
"""
VIRTUAL: Final = """
example.info anything
info@example.info alice@example.org
all@example.org alice@example.org, carol@example.net,
  friend@elsewhere.example
chain@example.net info@example.info
bob@example.org bob@example.org, friend@elsewhere.example
@example.info carol@example.net
help bob@example.org
"""
STRANGER: Final = "127.0.0.1"
TRUSTED: Final = "127.0.0.2"
RECIPIENTS: Final = (
    *("alice@example.org", "ALICE@Example.ORG", "alice+tag@example.org", "nobody@example.org"),
    *("bob@example.org", "bob@example.net", "carol@example.net", "carol@example.org"),
    *("all@example.org", "all+tag@example.org", "chain@example.net", "info@example.info"),
    *("whatever@example.info", "anybody@catch.example", "alice@local.example"),
    *("staff@local.example", "boss@localhost", "root@local.example", "help@local.example"),
    *("help@example.org", "somebody@relayed.example", "somebody@elsewhere.example"),
    *("alice@mx.elsewhere.example", '"al ice"@example.org', "alice%example.org@elsewhere.example"),
)


@pytest.fixture(scope="module")
def port() -> int:
    """Return a port that is free."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def postfix(
    tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], str], port: int
) -> Iterator[Path]:
    """Run a Postfix with directories of its own, and return that of its configuration."""
    program = require_program("postfix")
    if os.geteuid() != 0:
        pytest.skip("only root can run a Postfix")
    base = tmp_path_factory.mktemp("postfix")
    for directory in (base, *base.parents):
        if directory.stat().st_uid == os.geteuid() and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o055)
    etc = base / "etc"
    shutil.copytree("/etc/postfix", etc)
    (etc / "main.cf").write_text(MAIN_CF.format(base=base))
    (etc / "master.cf").write_text(MASTER_CF.format(port=port))
    (base / "vmailbox").write_text(VMAILBOX)
    (base / "virtual").write_text(VIRTUAL)
    for name in ("spool", "lib"):
        (base / name).mkdir()
    shutil.chown(base / "lib", "postfix")
    log = base / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "-c", str(etc), "start-fg"], stdout=output, stderr=output
        )
        try:
            wait_until(lambda: "daemon started" in log.read_text(errors="replace"), log.read_text)
            yield etc
        finally:
            subprocess.run([program, "-c", str(etc), "stop"], check=False, capture_output=True)
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            process.wait(60)


@pytest.fixture(scope="module")
def imported(
    postfix: Path, tmp_path_factory: pytest.TempPathFactory, run: Run, port: int
) -> Iterator[Running]:
    """Run the server with the configuration that is imported from the directory."""
    base = tmp_path_factory.mktemp("imported")
    config = base / "new" / "minismtp.toml"
    options = ["--config", str(config), "--state-directory", str(base / "var")]
    assert main(["import", "postfix", str(postfix), *options]) == 0
    text = config.read_text().replace(f"127.0.0.1:{port}", "127.0.0.1:0")
    config.write_text(f'{text}\n[metrics]\naddress = ""\n')
    with run(config) as server:
        yield server


def accepted(address: tuple[str, int], source: str) -> dict[str, bool]:
    """Return for each recipient whether a server takes its mail from a client."""
    found = {}
    with smtplib.SMTP(*address, "client.example", 60, source_address=(source, 0)) as client:
        client.ehlo()
        for recipient in RECIPIENTS:
            assert client.docmd("MAIL", "FROM:<me@client.example>")[0] == 250
            code, text = client.docmd("RCPT", f"TO:<{recipient}>")
            assert code // 100 in {2, 5}, (recipient, code, text)
            found[recipient] = code // 100 == 2
            client.rset()
    return found


@pytest.mark.parametrize("source", [STRANGER, TRUSTED])
def test_recipients_are_decided_as_by_postfix(
    postfix: Path, imported: Running, port: int, source: str
) -> None:
    assert postfix.is_dir()
    theirs = accepted(("127.0.0.1", port), source)
    ours = accepted(("127.0.0.1", imported.port("port-" + str(port))), source)
    assert ours == theirs
    assert theirs["chain@example.net"]
    assert not theirs["nobody@example.org"]
    assert theirs["somebody@elsewhere.example"] == (source == TRUSTED)


def test_mail_for_an_alias_is_stored_and_sent_on(imported: Running, port: int) -> None:
    address = ("127.0.0.1", imported.port(f"port-{port}"))
    with smtplib.SMTP(*address, "client.example", 60, source_address=(STRANGER, 0)) as client:
        message = "Subject: x\r\n\r\nx\r\n"
        refused = client.sendmail("me@client.example", ["all@example.org"], message)
    assert refused == {}
    imported.wait_for_log(
        r"delivery deferred .*to=friend@elsewhere\.example .*cannot connect to \[127\.0\.0\.1\]:9"
    )
    mail = imported.directory.parent / "var" / "mail"
    for place in ("example.org/alice", "example.net/carol"):
        assert len(list((mail / place / "new").iterdir())) == 1
