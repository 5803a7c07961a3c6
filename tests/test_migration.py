"""An imported configuration decides about recipients as the Postfix from which it is.

And a mail host of Debian changes over from Postfix, by the commands of docs/migration.md.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import smtplib
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import packages
import pages
import pytest
from conftest import wait_until
from machine import Machine, booted
from ports import free_port
from source import ROOT

from minismtp.cli.main import main

if TYPE_CHECKING:
    from conftest import Run, Running, TlsFiles

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
    return free_port()


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


# A whole mail host

PAGE: Final = (ROOT / "docs" / "migration.md").read_text()
LIVE: Final = "/etc/letsencrypt/live/mx.example.org"
OLD_MAIN_CF: Final = f"""
compatibility_level = 3.6
myhostname = mx.example.org
myorigin = /etc/mailname
mydestination = $myhostname, localhost
alias_maps = hash:/etc/aliases
mynetworks = 127.0.0.0/8 [::ffff:127.0.0.0]/104 [::1]/128
recipient_delimiter = +
message_size_limit = 52428800
smtpd_tls_cert_file = {LIVE}/fullchain.pem
smtpd_tls_key_file = {LIVE}/privkey.pem
smtpd_tls_security_level = may
smtpd_tls_auth_only = yes
smtpd_relay_restrictions = permit_mynetworks permit_sasl_authenticated defer_unauth_destination
smtpd_sasl_type = dovecot
smtpd_sasl_path = private/auth
relayhost = [127.0.0.1]:9
smtp_tls_security_level = encrypt
smtp_sasl_auth_enable = yes
smtp_sasl_password_maps = hash:/etc/postfix/sasl_passwd
virtual_mailbox_domains = example.org, example.net
virtual_mailbox_base = /var/vmail
virtual_mailbox_maps = hash:$config_directory/vmailbox
virtual_mailbox_limit = 0
virtual_alias_maps = hash:$config_directory/virtual
virtual_uid_maps = static:5000
virtual_gid_maps = static:5000
smtpd_milters = local:opendkim/opendkim.sock
non_smtpd_milters = $smtpd_milters
milter_default_action = accept
"""
USERS_ONLY: Final = """
  -o smtpd_sasl_auth_enable=yes
  -o smtpd_relay_restrictions=permit_sasl_authenticated,reject
"""
OLD_MASTER_CF: Final = f"""
smtp inet n - y - - smtpd
submission inet n - y - - smtpd
  -o {{ smtpd_tls_security_level = encrypt }}{USERS_ONLY}
submissions inet n - y - - smtpd
  -o smtpd_tls_wrappermode=yes{USERS_ONLY}
pickup unix n - y 60 1 pickup
cleanup unix n - y - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - y 1000? 1 tlsmgr
rewrite unix - - y - - trivial-rewrite
bounce unix - - y - 0 bounce
defer unix - - y - 0 bounce
trace unix - - y - 0 bounce
flush unix n - y 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - y - - smtp
showq unix n - y - - showq
error unix - - y - - error
retry unix - - y - - error
local unix - n n - - local
virtual unix - n n - - virtual
anvil unix - - y - 1 anvil
scache unix - - y - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""
OLD_DOVECOT: Final = f"""
protocols = imap lmtp
ssl = yes
ssl_cert = <{LIVE}/fullchain.pem
ssl_key = <{LIVE}/privkey.pem
first_valid_uid = 100
mail_location = maildir:/var/vmail/%d/%n
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u /etc/dovecot/users
}}
userdb {{
  driver = static
  args = uid=vmail gid=vmail home=/var/vmail/%d/%n
}}
service auth {{
  unix_listener /var/spool/postfix/private/auth {{
    mode = 0660
    user = postfix
    group = postfix
  }}
}}
"""
OLD_FILES: Final = {
    "/etc/postfix/main.cf": OLD_MAIN_CF,
    "/etc/postfix/master.cf": OLD_MASTER_CF,
    "/etc/postfix/sasl_passwd": "[127.0.0.1]:9 customer:of the provider\n",
    "/etc/postfix/vmailbox": "alice@example.org example.org/alice/\ndave@example.net dave/\n",
    "/etc/postfix/virtual": "info@example.org alice@example.org\n",
    "/etc/aliases": "postmaster: root\nroot: alice@example.org\n",
    "/etc/mailname": "mx.example.org\n",
    "/etc/dovecot/dovecot.conf": OLD_DOVECOT,
    "/etc/dovecot/users": "alice@example.org:{PLAIN}secret\ndave@example.net:{PLAIN}secret\n",
    "/etc/opendkim.conf": "Mode sv\nKeyTable refile:/etc/opendkim/KeyTable\n",
    "/etc/opendkim/KeyTable": "x example.org:mail:/etc/opendkim/mail.private\n",
    "/var/vmail/example.org/alice/cur/1700000000.M1P1.mx,S=23:2,S": "Subject: old\n\nmail\n",
}
OLD_HOST: Final = """
useradd --system --user-group --home-dir /var/vmail --shell /usr/sbin/nologin vmail
mkdir -p /var/vmail/example.org/alice/new /var/vmail/example.org/alice/tmp
chown -R vmail:vmail /var/vmail
chmod -R u=rwX,go= /var/vmail /etc/letsencrypt/live /etc/postfix/sasl_passwd
openssl genrsa -traditional -out /etc/opendkim/mail.private 2048
chmod 600 /etc/opendkim/mail.private
chgrp dovecot /etc/dovecot/users
postmap /etc/postfix/vmailbox /etc/postfix/virtual /etc/postfix/sasl_passwd
newaliases
systemctl restart dovecot
systemctl start postfix
dpkg --no-triggers --install /wheels/*.deb
"""


def commands(heading: str, number: int) -> str:
    """Return a block of commands below a heading of the page."""
    _, found, below = PAGE.partition(f"\n## {heading}\n")
    assert found
    text = below.partition("\n## ")[0]
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    return "\n".join(pages.commands(blocks[number]))


def fenced(language: str) -> str:
    """Return the only block of the page in a language."""
    [found] = re.findall(rf"^ *```{language}\n(.*?)^ *```$", PAGE, re.DOTALL | re.MULTILINE)
    return textwrap.dedent(found)


@pytest.fixture
def host(
    tmp_path: Path, require_program: Callable[[str], str], tls_files: TlsFiles
) -> Iterator[Machine]:
    """Yield a Debian 12 that runs Postfix and Dovecot, with the package of minismtp installed."""
    nspawn = require_program("systemd-nspawn")
    for program in ("postfix", "dovecot", "swaks"):
        require_program(program)
    if os.geteuid() != 0:
        pytest.skip("booting systemd needs root")
    debs = tmp_path / "debs"
    debs.mkdir()
    (debs / "minismtp.deb").write_bytes(packages.built().file("*.deb").read_bytes())
    with booted(nspawn, tmp_path, debs) as leader:
        machine = Machine(leader, tls_files.client(), login="alice@example.org")
        up = {"running", "degraded"}
        machine.wait_until(lambda: machine.run("systemctl", "is-system-running", check=False) in up)
        for path, text in OLD_FILES.items():
            machine.write(path, text)
        machine.write(f"{LIVE}/fullchain.pem", tls_files.certificate.read_text())
        machine.write(f"{LIVE}/privkey.pem", tls_files.key.read_text())
        machine.shell(OLD_HOST)
        yield machine


def port_holder(machine: Machine) -> str:
    """Return which program listens on port 25."""
    found = machine.run("ss", "-ltnpH", "sport = :25")
    return min(re.findall(r'"(\S+?)"', found), default="")


def inbox(machine: Machine) -> list[str]:
    """Return the subjects of the mail of alice, as Dovecot shows them."""
    query = ("-u", "alice@example.org", "hdr.subject", "mailbox", "INBOX")
    found = machine.run("doveadm", "-f", "flow", "fetch", *query)
    return sorted(re.findall(r"hdr\.subject=(.*)", found))


def test_host_of_debian_changes_over_and_back(host: Machine, tls_files: TlsFiles) -> None:
    assert port_holder(host) == "master"
    said = host.run("minismtp", "import", "postfix", "/etc/postfix")
    assert "configuration ok" in said
    assert "permissions: tried as minismtp, the server's user" in said
    assert "of the provider" not in said
    etc = "/etc/minismtp"
    listed = host.shell(f"stat --format='%U:%G %a %n' {etc}/*.* {etc}/tls/* {etc}/dkim/*")
    assert {line.rpartition(" ")[0] for line in listed.splitlines()} == {"root:minismtp 640"}
    assert host.run("cat", f"{etc}/tls/key.pem") == tls_files.key.read_text().strip()
    assert f"cannot read {LIVE}/privkey.pem, so the server has copies" in said

    text = host.run("cat", f"{etc}/minismtp.toml")
    maildir = re.compile(r'\[\[plugins\]\]\nuse = "maildir"\npath = .*\n')
    assert maildir.search(text)
    host.write(f"{etc}/minismtp.toml", maildir.sub(fenced("toml"), text) + "\n")
    host.write("/etc/dovecot/dovecot.conf", OLD_DOVECOT + fenced("dovecot"))
    host.run("systemctl", "reload", "dovecot")

    said = host.shell(commands("Changing over", 0))
    assert "configuration" not in said
    assert port_holder(host) == "master"
    assert host.run("cat", f"{etc}/minismtp.toml") == maildir.sub(fenced("toml"), text).strip()
    host.shell(commands("Changing over", 1))
    assert port_holder(host) == "minismtp"
    host.shell(commands("Changing over", 2))

    host.send("info+tag@example.org", sender="stranger@elsewhere.example")
    host.send("root@mx.example.org", sender="stranger@elsewhere.example")
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        host.send("nobody@example.org", sender="stranger@elsewhere.example")
    for port in (587, 465):
        host.send("friend@elsewhere.example", port)
    before, tried, *others = inbox(host)
    assert (before, tried[:5]) == ("old", "test ")
    assert others == ["to info+tag@example.org", "to root@mx.example.org"]
    host.wait_until(lambda: "cannot connect to [127.0.0.1]:9" in " ".join(host.journal()))
    host.run("minismtp", "queue", "remove", "--all")

    host.shell(commands("Changing over", 3))
    assert port_holder(host) == "master"
