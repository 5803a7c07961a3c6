"""Mistakes that people make in the configuration, and what `minismtp check` says about each.

A row changes a sound configuration, and has what the person reads: where the mistake is, what is
wrong, and what to do. All mistakes of a file are reported at once.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
import trustme

from minismtp.cli.main import main
from minismtp.hooks.loader import available
from minismtp.inspection.questions import HurriedResolver
from minismtp.values.passwords import hash_password

SOUND: Final = """\
hostname = "mx.example.org"
state_directory = "state"
plugin_path = ["plugins"]

[[listeners]]
name = "smtp"
address = "127.0.0.1:0"
tls = "starttls"

[[listeners]]
name = "submission"
address = "127.0.0.1:0"
kind = "submission"
tls = "starttls"

[tls]
certificate = "cert.pem"
key = "key.pem"

[metrics]
address = "127.0.0.1:0"

[dns]
nameservers = ["{dns}"]

[[plugins]]
use = "mailboxes"
domains = ["example.org"]
users = ["alice", "bob"]

[[plugins]]
use = "password_file"
path = "passwords"

[[plugins]]
use = "relay"

[[plugins]]
use = "maildir"
path = "mail/{domain}/{local}"
"""
PUBLIC: Final = "192.0.2.25"  # no address of this machine
RELAY: Final = '[[plugins]]\nuse = "relay"\n\n'
MAILDIR: Final = '[[plugins]]\nuse = "maildir"\npath = "mail/{domain}/{local}"\n'


def use(*names: str) -> str:
    """Return the tables of plugins without options."""
    return "".join(f'[[plugins]]\nuse = "{name}"\n\n' for name in names)


MINE: Final = """
from datetime import timedelta
from minismtp import hookimpl, plugin

@plugin
class Mine:
    timeout: timedelta = timedelta(seconds=5)

    @hookimpl
    def on_mail(self):
        pass
"""
AUTHORITY: Final = trustme.CA()


def pem(
    name: str = "mx.example.org", *, begin: float = -1, end: float = 365, chain: bool = False
) -> tuple[bytes, bytes]:
    """Return a certificate that is valid from and until some days from now, and its key.

    With `chain`, the certificate of an authority follows that did not sign it.
    """
    now = datetime.now(UTC)
    first, last = now + timedelta(days=begin), now + timedelta(days=end)
    issued = AUTHORITY.issue_cert(name, not_before=first, not_after=last)
    more = trustme.CA().cert_pem.bytes() if chain else b""
    return issued.cert_chain_pems[0].bytes() + more, issued.private_key_pem.bytes()


def certificate(
    name: str = "mx.example.org",
    *,
    begin: float = -1,
    end: float = 365,
    chain: bool = False,
    keep_key: bool = False,
) -> Callable[[Path], object]:
    """Return what writes another certificate."""

    def write(place: Path) -> None:
        public, private = pem(name, begin=begin, end=end, chain=chain)
        (place / "cert.pem").write_bytes(public)
        if not keep_key:
            (place / "key.pem").write_bytes(private)

    return write


def content(name: str, text: str) -> Callable[[Path], object]:
    """Return what writes a file, in the place of a directory too."""

    def write(place: Path) -> None:
        file = place / name
        if file.is_dir():
            file.rmdir()
        file.write_text(text)
        file.chmod(0o600)

    return write


def without(name: str) -> Callable[[Path], object]:
    """Return what removes a file."""
    return lambda place: (place / name).unlink()


def open_to_all(name: str) -> Callable[[Path], object]:
    """Return what lets everybody read a file."""
    return lambda place: (place / name).chmod(0o644)


class Row(NamedTuple):
    """A mistake: `old` of the sound configuration becomes `new`.

    `prepare` changes the files, and `smtp` is the address of the first listener. The output has all
    of `told`, in which {dir} is the directory of the file.
    """

    old: str
    new: str
    told: tuple[str, ...]
    prepare: Callable[[Path], object]
    smtp: str


def row(
    old: str,
    new: str,
    *told: str,
    prepare: Callable[[Path], object] = lambda _: None,
    smtp: str = "127.0.0.1:0",
) -> Row:
    """Return a row."""
    return Row(old, new, told, prepare, smtp)


# Keys, tables and values
ROWS: Final = {
    "a key is misspelt": row(
        "hostname", "hostnam", "hostnam, line 1: unknown key; did you mean 'hostname'?"
    ),
    "a table is misspelt": row(
        "[metrics]", "[metric]", "metric, line 20: unknown key; did you mean 'metrics'?"
    ),
    "a key of the top stands in a table": row(
        "[metrics]\n",
        "[metrics]\nworkers = 2\n",
        "metrics.workers, line 21: unknown key; workers belongs above the first [table]",
    ),
    "a key of a table stands at the top": row(
        "hostname",
        'message_size = "25MiB"\nhostname',
        "message_size, line 1: unknown key; message_size belongs into [limits]",
    ),
    "the port is a key": row(
        'kind = "submission"',
        'kind = "submission"\nport = 587',
        "listeners[1] submission, line 14: port: unknown key; address has host and port, such as",
    ),
    "an address lacks its host": row(
        '"127.0.0.1:0"\ntls = "starttls"\n\n[[listeners]]',
        '":25"\ntls = "starttls"\n\n[[listeners]]',
        'listeners[0] smtp, line 7: address: expected an address such as "*:25"',
    ),
    "a port is a number alone": row(
        '"127.0.0.1:0"\ntls = "starttls"\n\n[[listeners]]',
        '25\ntls = "starttls"\n\n[[listeners]]',
        'listeners[0] smtp, line 7: address: expected an address such as "*:25"',
    ),
    "a number stands in quotes": row(
        "[metrics]",
        '[limits]\nrecipients = "100"\n[metrics]',
        "limits.recipients, line 21: expected integer, got string; write 100, without quotes",
    ),
    "a size has an unknown unit": row(
        "[metrics]",
        '[limits]\nmessage_size = "25 megabytes"\n[metrics]',
        'limits.message_size, line 21: expected a size such as 26214400, "25MiB" or "10kB"',
    ),
    "a duration has no unit": row(
        "[metrics]",
        "[limits]\ncommand_timeout = 300\n[metrics]",
        'limits.command_timeout, line 21: expected a duration such as "30s", "5m", "1h30m" or "2d"',
    ),
    "a boolean stands in quotes": row(
        "[metrics]",
        '[outbound]\ndane = "no"\n[metrics]',
        "outbound.dane, line 21: expected boolean, got string; write true or false, without quotes",
    ),
    "a list is a single text": row(
        'domains = ["example.org"]',
        'domains = "example.org"',
        'plugins[0] mailboxes, line 28: domains: expected array, got string; write ["example.org"]',
    ),
    "a choice is misspelt": row(
        'kind = "submission"',
        'kind = "submision"',
        'listeners[1] submission, line 13: kind: expected one of "mx", "submission", "lmtp",'
        ' "web",'
        " not 'submision'; did you mean 'submission'?",
    ),
    "an array of tables has single brackets": row(
        '[[plugins]]\nuse = "mailboxes"',
        '[plugins]\nuse = "mailboxes"',
        "line 31: the table [[plugins]] has single brackets above; write two there too",
    ),
    "the host name is an address": row(
        "mx.example.org", "192.0.2.1", "hostname, line 1: expected a domain such as mx.example.org"
    ),
    "the user does not exist": row(
        "hostname", 'user = "minismpt"\nhostname', "user, line 1: no user is called 'minismpt'; "
    ),
    # Text that is no TOML
    "text lacks its quotes": row(
        '"mx.example.org"',
        "mx.example.org",
        'line 1: invalid value: text stands in quotes; write hostname = "mx.example.org"',
    ),
    "a quote is missing": row(
        'hostname = "mx.example.org"',
        'hostname = "mx.example.org',
        "line 1: illegal character '\\n': a closing quote is missing, here or on a line above",
    ),
    "quotes are typographic": row(
        '"mx.example.org"',
        "“mx.example.org”",
        "line 1: invalid value: the quotes are typographic ones",
    ),
    "a boolean has a capital": row(
        "hostname",
        "cpu_affinity = False\nhostname",
        "line 1: invalid value: write cpu_affinity = false",
    ),
    "a colon stands for the equals sign": row(
        'hostname = "', 'hostname: "', "line 1: expected '=' after a key", "write hostname = "
    ),
    "a key stands twice": row(
        "hostname",
        'hostname = "a.example.org"\nhostname',
        "line 2: hostname is set a second time in its table; remove one of the two",
    ),
    "a table stands twice": row(
        "[metrics]",
        "[tls]\n[metrics]",
        "line 20: the table [tls] stands here a second time; join the two",
    ),
    "an array has no end": row(
        '["example.org"]',
        '["example.org"',
        "line 28: the array that begins here has no end; expected ]",
    ),
    # Listeners and addresses
    "two listeners have one address": row(
        '"127.0.0.1:0"\nkind',
        '"127.0.0.1:2525"\nkind',
        "listeners[1] submission, line 12: address: '127.0.0.1:2525' is taken by listeners[0]",
        smtp="127.0.0.1:2525",
    ),
    "a listener is part of another": row(
        '"127.0.0.1:0"\nkind',
        '"0.0.0.0:2526"\nkind',
        "listeners[1] submission, line 12: address: 0.0.0.0:2526 is taken by listeners[0].address"
        " (127.0.0.1:2526) already; expected another port or address",
        smtp="127.0.0.1:2526",
    ),
    "metrics take the port of a listener": row(
        '[metrics]\naddress = "127.0.0.1:0"',
        '[metrics]\naddress = "127.0.0.1:2527"',
        "metrics.address, line 21: 127.0.0.1:2527 is taken by listeners[0].address",
        smtp="127.0.0.1:2527",
    ),
    "port 465 has STARTTLS": row(
        '"127.0.0.1:0"\nkind',
        '"127.0.0.1:465"\nkind',
        "warning: ",
        "listeners[1] submission, line 14: tls: mail programs begin TLS at once on port 465;"
        ' expected tls = "implicit", or port 587 for starttls',
    ),
    "port 587 is for other servers": row(
        '"127.0.0.1:0"\nkind = "submission"',
        '"127.0.0.1:587"\nkind = "mx"',
        "listeners[1] submission, line 13: kind: port 587 is for mail of users, who log in;"
        ' expected kind = "submission"',
    ),
    "port 25 is for users": row(
        '"127.0.0.1:0"\nkind',
        f'"{PUBLIC}:25"\nkind',
        "listeners[1] submission, line 13: kind: other servers send mail to port 25, and cannot"
        ' log in; expected kind = "mx", or port 587 for users',
    ),
    "port 25 begins with TLS": row(
        '"127.0.0.1:0"\ntls = "starttls"',
        '"127.0.0.1:25"\ntls = "implicit"',
        "listeners[0] smtp, line 8: tls: clients begin in clear text on port 25",
    ),
    "passwords go in clear text": row(
        '"127.0.0.1:0"\nkind = "submission"\ntls = "starttls"',
        f'"{PUBLIC}:587"\nkind = "submission"\ntls = "none"',
        "listeners[1] submission, line 14: tls: a submission listener outside loopback must not",
    ),
    "metrics are for everybody": row(
        '[metrics]\naddress = "127.0.0.1:0"',
        '[metrics]\naddress = "0.0.0.0:9926"',
        "metrics.address, line 21: 0.0.0.0:9926 is not loopback, and the endpoint has neither TLS",
    ),
    "the host name has no address": row(
        'mx.example.org"',
        'nx.example.org"',
        "hostname, line 1: nx.example.org has no address in the DNS, so other servers may refuse",
        smtp=f"{PUBLIC}:2528",
        prepare=certificate("nx.example.org"),
    ),
    "the smarthost has no address": row(
        "[metrics]",
        '[outbound]\nsmarthost = "smpt.example.org:587"\n[metrics]',
        "outbound.smarthost, line 21: smpt.example.org has no address in the DNS, so mail for it"
        " waits; is it spelt right?",
    ),
    # Certificates
    "there is no certificate": row(
        "[metrics]",
        "[metrics]",
        "tls.certificate, line 17: {dir}/cert.pem: No such file or directory; make it, or correct",
        prepare=without("cert.pem"),
    ),
    "certificate and key are swapped": row(
        'certificate = "cert.pem"\nkey = "key.pem"',
        'certificate = "key.pem"\nkey = "cert.pem"',
        "tls.certificate, line 17: {dir}/key.pem has the key, and {dir}/cert.pem the certificate:"
        " swap the two",
    ),
    "the key is of another certificate": row(
        "[metrics]",
        "[metrics]",
        "tls.certificate, line 17: {dir}/cert.pem and {dir}/key.pem are not a pair",
        prepare=certificate(keep_key=True),
    ),
    "the certificate is for another name": row(
        "[metrics]",
        "[metrics]",
        "tls.certificate, line 17: {dir}/cert.pem is for www.example.net, not for the hostname"
        " mx.example.org; get one for it",
        prepare=certificate("www.example.net"),
        smtp=f"{PUBLIC}:2529",
    ),
    "the certificate has expired": row(
        "[metrics]",
        "[metrics]",
        "tls.certificate, line 17: {dir}/cert.pem expired on",
        "renew it",
        prepare=certificate(begin=-90, end=-1),
    ),
    "the certificate is not valid yet": row(
        "[metrics]",
        "[metrics]",
        "tls.certificate, line 17: {dir}/cert.pem is not valid before",
        "is the clock right?",
        prepare=certificate(begin=10),
    ),
    "the chain has the wrong order": row(
        "[metrics]",
        "[metrics]",
        "tls.certificate, line 17: {dir}/cert.pem has a certificate 2 that did not sign"
        " certificate 1; expected the server's own first, then each one's issuer",
        prepare=certificate(chain=True),
    ),
    "everybody can read the key": row(
        "[metrics]",
        "[metrics]",
        "tls.key, line 18: {dir}/key.pem can be read by everybody (chmod o-r)",
        prepare=open_to_all("key.pem"),
    ),
    # Files and directories
    "the state directory is a file": row(
        "[metrics]",
        "[metrics]",
        "state_directory, line 2: {dir}/state is a file; expected a directory",
        prepare=content("state", ""),
    ),
    "the directory of plugins is a file": row(
        "[metrics]",
        "[metrics]",
        "plugin_path[0], line 3: {dir}/plugins is a file; expected a directory with a file for",
        prepare=content("plugins", ""),
    ),
    "a directory of mail cannot be written": row(
        '"mail/{domain}/{local}"',
        '"cert.pem/{domain}/{local}"',
        "plugins[3] maildir, line 40: path: {dir}/cert.pem is a file; expected a directory",
    ),
    "the password file is missing": row(
        '"passwords"',
        '"paswords"',
        "plugins[1] password_file, line 33: path: {dir}/paswords: No such file or directory; make",
    ),
    "the password file is empty": row(
        "[metrics]",
        "[metrics]",
        "plugins[1] password_file, line 33: path: {dir}/passwords is empty, so no user can log in",
        prepare=content("passwords", ""),
    ),
    "no user has a password": row(
        "[metrics]",
        "[metrics]",
        "plugins[1] password_file, line 33: path: {dir}/passwords has no users, so no user can log",
        "`minismtp passwd {dir}/passwords NAME` adds one",
        prepare=content("passwords", "# none yet\n"),
    ),
    "a password is not a hash": row(
        "[metrics]",
        "[metrics]",
        "plugins[1] password_file, line 33: path: {dir}/passwords:1: ",
        prepare=content("passwords", "alice:secret\n"),
    ),
    "the password of the smarthost is missing": row(
        "[metrics]",
        '[outbound]\nsmarthost = "mx.example.org:587"\nusername = "me"\ntls = "verified"\n'
        'password_file = "secret"\n[metrics]',
        "outbound.password_file, line 24: {dir}/secret: No such file or directory; make it, with"
        " the password in its first line",
    ),
    # Plugins
    "a plugin is misspelt": row(
        'use = "maildir"',
        'use = "mialdir"',
        "plugins[3] mialdir, line 39: use: no plugin is called 'mialdir'; did you mean 'maildir'?",
    ),
    "an option is misspelt": row(
        'path = "mail',
        'pth = "mail',
        "plugins[3] maildir, line 40: pth: unknown key; did you mean 'path'?",
    ),
    "an option is missing": row(
        'path = "passwords"\n',
        "",
        "plugins[1] password_file, line 31: path: this key is required",
    ),
    "a plugin stands twice": row(
        MAILDIR,
        MAILDIR + MAILDIR,
        "plugins[4] maildir, line 41: name: 'maildir' is taken by plugins[3] already; expected",
    ),
    "a plugin is for no listener": row(
        'use = "relay"\n',
        'use = "relay"\nlisteners = ["submision"]\n',
        "plugins[2] relay, line 37: listeners[0]: no listener is called 'submision'; did you mean",
    ),
    "a user is an address elsewhere": row(
        '"alice"',
        '"alice@example.net"',
        "plugins[0] mailboxes, line 29: users: 'alice@example.net' is not an address at one of"
        " `domains`",
    ),
    "a domain is an address": row(
        '["example.org"]',
        '["info@example.org"]',
        "plugins[0] mailboxes, line 28: domains: 'info@example.org' is not a domain",
    ),
    "mail for all others goes to a mailbox of nobody": row(
        'users = ["alice", "bob"]',
        'users = ["alice", "bob"]\ncatch_all = "alise"',
        "plugins[0] mailboxes, line 30: catch_all: 'alise' is neither a user nor an alias",
    ),
    "relay stands above the mailboxes": row(
        SOUND[SOUND.index("[[plugins]]") : SOUND.index(MAILDIR)],
        RELAY + SOUND[SOUND.index("[[plugins]]") : SOUND.index(MAILDIR)].replace(RELAY, ""),
        "plugins[0] relay, line 26: takes every recipient of users who logged in before mailboxes"
        " is asked, so mail between your own users is not delivered: put this table below"
        " mailboxes",
    ),
    "dmarc stands above its checks": row(
        RELAY,
        RELAY + use("dmarc", "spf", "dkim_verify"),
        "error: plugins[3] dmarc, line 38: plugin 'dmarc': it has to come after 'spf'"
        " (plugins[4]) and 'dkim_verify' (plugins[5]): move this table below them",
    ),
    "dmarc lacks its checks": row(
        RELAY,
        RELAY + use("spf", "dmarc"),
        "error: plugins[4] dmarc, line 41: plugin 'dmarc': it needs the plugin 'dkim_verify':"
        ' add a table with `use = "dkim_verify"` above this one',
    ),
    "the score stands above filters": row(
        RELAY,
        RELAY + use("score", "spf"),
        "plugins[3] score, line 38: adds up the findings of the filters above it only: put its"
        " table below spf",
    ),
    "results are written before the checks": row(
        RELAY,
        RELAY + use("spf", "authentication_results", "dkim_verify"),
        "plugins[4] authentication_results, line 41: writes the results of the checks above it"
        " only: put its table below dkim_verify",
    ),
    "quarantine stands below the storage": row(
        MAILDIR,
        MAILDIR + "\n" + use("quarantine"),
        "plugins[4] quarantine, line 42: maildir stores quarantined mail first: put this table"
        " above maildir",
    ),
    "all users share one Maildir": row(
        "mail/{domain}/{local}",
        "mail/{domain}",
        "plugins[3] maildir, line 40: path: {dir}/mail/{domain} has no {local}, so all users"
        " share one Maildir",
    ),
    "timeout is taken for patience": row(
        RELAY,
        RELAY + use("spf").strip() + '\ntimeout = "5s"\n\n',
        "plugins[3] spf, line 40: timeout: only logs a slow call and ends none; this plugin gives"
        " up after `patience` (20 s): expected patience here, or a longer timeout",
    ),
    "a pattern has no anchor": row(
        RELAY,
        RELAY + use("rules").strip() + '\n[[plugins.rules]]\nname = "r"\naction = "reject"\n'
        'all = [{ sender = "example.net" }]\n\n',
        "plugins[3] rules, line 43: rules[0].all[0].sender: 'example.net' matches anywhere, also"
        " in example.net.example; write '(^|[@.])example\\.net$'",
    ),
    "a pattern cannot be read": row(
        RELAY,
        RELAY + use("rules").strip() + '\n[[plugins.rules]]\nname = "r"\naction = "reject"\n'
        'all = [{ sender = "(" }]\n\n',
        "plugins[3] rules, line 43: rules[0].all[0].sender: ",
    ),
    "nobody can log in": row(
        '[[plugins]]\nuse = "password_file"\npath = "passwords"\n\n',
        "",
        "listeners[1] submission, line 10: no plugin checks passwords here (hook authenticate),"
        " so no user can log in; expected such as password_file",
    ),
    "nothing stores the mail": row(
        MAILDIR,
        "",
        "plugins, line 26: no plugin stores mail (hook deliver); expected such as maildir or lmtp",
    ),
    "a plugin's own option has a taken name": row(
        'use = "relay"',
        'use = "mine"',
        "plugins[2] mine, line 35: timeout: Mine has an option of this name, which means something"
        " else here",
        prepare=content("plugins/mine.py", MINE),
    ),
}


@pytest.fixture(scope="module")
def nameserver() -> Iterator[str]:
    """Yield the address of a server that knows mx.example.org only."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))

        def answer() -> None:
            while True:
                data, peer = sock.recvfrom(4096)
                if not data:
                    return
                question = dns.message.from_wire(data)
                reply = dns.message.make_response(question)
                asked = question.question[0]
                if asked.name.to_text() != "mx.example.org.":
                    reply.set_rcode(dns.rcode.NXDOMAIN)
                elif asked.rdtype == dns.rdatatype.A:
                    reply.answer.append(dns.rrset.from_text(asked.name, 60, "IN", "A", PUBLIC))
                sock.sendto(reply.to_wire(), peer)

        thread = threading.Thread(target=answer)
        thread.start()
        yield "{}:{}".format(*sock.getsockname())
        sock.sendto(b"", sock.getsockname())
        thread.join()


Told = Callable[[Row], str]


@pytest.fixture
def told(tmp_path: Path, nameserver: str, capfd: pytest.CaptureFixture[str]) -> Told:
    """Return a function that prepares a row, runs the command, and returns what it prints."""

    def run(row: Row) -> str:
        (tmp_path / "plugins").mkdir()
        (tmp_path / "state").mkdir(mode=0o700)
        content("passwords", f"alice:{HASH}\n")(tmp_path)
        certificate()(tmp_path)
        (tmp_path / "key.pem").chmod(0o600)
        (tmp_path / "cert.pem").chmod(0o600)
        row.prepare(tmp_path)
        assert row.old in SOUND
        text = SOUND.replace(row.old, row.new, 1).replace("{dns}", nameserver)
        text = text.replace('"127.0.0.1:0"', f'"{row.smtp}"', 1)
        file = tmp_path / "minismtp.toml"
        content("minismtp.toml", text)(tmp_path)
        status = main(["check", "--config", str(file)])
        output = capfd.readouterr()
        assert status == (78 if "error: " in output.err else 0)
        return f"{output.err}{output.out}".replace(f"{file}: ", "")

    return run


HASH: Final = hash_password("secret")


@pytest.mark.parametrize("mistake", ROWS)
def test_check_reports_that(mistake: str, told: Told, tmp_path: Path) -> None:
    row = ROWS[mistake]
    output = told(row)
    for text in row.told:
        assert text.replace("{dir}", str(tmp_path)) in output
    # Another server may have a port of a row; `tests/inspection` checks what is said of that.
    assert len(re.findall("^(?:error|warning): (?!.* is in use by )", output, re.MULTILINE)) == 1
    assert "Traceback" not in output


def test_sound_configuration_has_a_summary_and_no_mistake(told: Told, tmp_path: Path) -> None:
    output = told(row("hostname", "hostname"))
    day = (datetime.now(UTC) + timedelta(days=365)).date()
    assert output == (
        f"checked: {tmp_path / 'minismtp.toml'}\n"
        "listener smtp: 127.0.0.1:0, mail of other servers, STARTTLS\n"
        "listener submission: 127.0.0.1:0, mail of users, STARTTLS\n"
        "domains: example.org\n"
        "users with a password: alice\n"
        "users without a password: bob\n"
        f"certificate: mx.example.org, until {day} (364 days)\n"
        "plugins: mailboxes, password_file, relay, maildir\n"
        "mail to others: to the hosts of each domain (MX)\n"
        "metrics: http://127.0.0.1:0/metrics\n"
        "permissions: not tried, because root may do everything; run this as the server's user\n"
        "configuration ok\n"
    )


def test_all_mistakes_are_reported_at_once(told: Told) -> None:
    """Of keys, of tables, of plugins, and of files."""
    text = (
        SOUND.replace("hostname", "hostnam", 1)
        .replace('use = "relay"', 'use = "relay"\nnetworks = ["10.0.0.0/8", "10.1"]')
        .replace('"alice"', '"alice@example.net"')
        .replace('path = "mail', 'pth = "mail')
        .replace('kind = "submission"', 'kind = "user"\nport = 587')
    )
    output = told(row(SOUND, text, prepare=without("cert.pem")))
    places = re.findall(r"^error: (.*?): ", output, re.MULTILINE)
    assert places == [
        "hostnam, line 1",
        "listeners[1] submission, line 13",
        "listeners[1] submission, line 14",
        "tls.certificate, line 18",
        "plugins[0] mailboxes, line 30",
        "plugins[2] relay, line 38",
        "plugins[3] maildir, line 42",
    ]
    assert output.endswith("configuration refused: 7 errors\n")


def test_silent_dns_ends_within_one_deadline_with_one_line(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HurriedResolver.__init__, "__defaults__", (0.5,))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        lists = "".join(f'[[plugins.lists]]\nzone = "list{n}.test"\n' for n in range(9))
        text = SOUND.replace("{dns}", "{}:{}".format(*silent.getsockname()))
        text = text.replace(RELAY, f'{RELAY}[[plugins]]\nuse = "dnsbl"\n{lists}\n')
        begun = time.monotonic()
        output = told(row(SOUND, text, smtp=f"{PUBLIC}:2530"))
    assert time.monotonic() - begun < 15
    assert output.count("asking the DNS, for 0.5 s at most ...") == 1
    assert "hostname, line 1: the DNS does not answer for mx.example.org; look at [dns]" in output
    assert output.count("no time was left to ask the DNS for") == 9


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_root_tries_the_permissions_as_the_servers_user(told: Told, tmp_path: Path) -> None:
    def give(place: Path) -> None:
        for directory in (place, *place.parents):
            if directory.stat().st_mode & 0o077 == 0:
                directory.chmod(0o711)
        os.chown(place / "state", 65534, 65534)

    available([])  # loads the modules of plugins, because perhaps only root can read Python's
    output = told(row("hostname", "hostname", prepare=give))
    denied = "Permission denied; let the server's user read it"
    assert f"error: tls.certificate, line 17: {tmp_path}/cert.pem: {denied}" in output
    place = "plugins[1] password_file, line 33: path"
    assert f"error: {place}: {tmp_path}/passwords: {denied}" in output
    assert os.geteuid() == 0


def test_missing_file_is_told_from_a_sound_one(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINISMTP_CONFIG", raising=False)
    assert main(["check"]) == 0
    output = capfd.readouterr()
    assert "configuration ok" not in output.out
    assert "does not exist, so `minismtp serve` would run the built-in demo" in output.err
