"""Mail to and from Postfix, as Debian has it, each on a host with addresses of its own."""

from __future__ import annotations

import contextlib
import email
import json
import os
import re
import shutil
import signal
import subprocess
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from network import (
    DEADLINE,
    Host,
    MailServer,
    Network,
    client,
    hops,
    network,
    report,
    send,
    wait_for,
)
from settled import POSTFIX

if TYPE_CHECKING:
    from conftest import Run

MESSAGES: Final = 200  # each way
SIGNERS: Final = ("here", "news")
#: A sender of a newsletter, longer than an address that holds it could be (RFC 5321 4.5.3.1.1).
VERP: Final = "bounces+1234567-ab12-Customer=a-domain.here.test-list-of-offers"
FIVE: Final = tuple(f"one-of-five-{number}" for number in range(5))
LONG: Final = b"<td>" + b"cell " * 600 + b"</td>"
RECORDS: Final = ("here MX 10 mx.here", "postfix MX 10 mx.postfix")
PLUGINS: Final = """
[[outbound.routes]]
domain = "old.test"
host = "mx.postfix.test:26"

[[outbound.routes]]
domain = "signed.test"
host = "mx.postfix.test:27"

[[plugins]]
use = "note"

[[plugins]]
use = "mailboxes"
domains = ["here.test"]
users_file = "users"
aliases_file = "aliases"
srs_secret_file = "secret"

[[plugins]]
use = "relay"
networks = ["192.0.2.1", "192.0.2.11", "fd00:25::11"]  # Postfix too: NOTIFY=SUCCESS counts for it

[[plugins]]
use = "dkim_sign"
domains = ["here.test"]
keys = "dkim.pem"
networks = ["192.0.2.1"]
"""
NOTE: Final = '''
"""Write down with each message how it was sent."""

import json

from minismtp import Envelope, Message, hookimpl, plugin


@plugin
class Note:
    @hookimpl
    def on_message(self, envelope: Envelope, message: Message) -> None:
        [recipient] = envelope.recipients
        note = {
            "body": envelope.body,
            "smtputf8": envelope.smtputf8,
            "ret": envelope.dsn_return,
            "envid": envelope.dsn_id,
            "notify": sorted(recipient.notify),
            "orcpt": recipient.original,
        }
        message.prepend("X-Note", json.dumps(note))
'''
MAIN_CF: Final = """
compatibility_level = 3.6
maillog_file = /dev/stdout
myhostname = mx.postfix.test
mydestination =
mynetworks = 192.0.2.1/32
smtpd_peername_lookup = no
inet_protocols = all
virtual_mailbox_domains = postfix.test, old.test, signed.test
virtual_mailbox_base = /var/mail
virtual_mailbox_maps = texthash:/etc/postfix/mailboxes
virtual_uid_maps = static:65534
virtual_gid_maps = static:65534
virtual_minimum_uid = 1
virtual_transport = virtual
virtual_alias_maps = inline:{{ left@postfix.test=nobody@no-such-domain.test }}
smtpd_recipient_limit = 2
smtpd_tls_chain_files = {certificate}
smtpd_tls_security_level = may
smtpd_tls_received_header = yes
smtp_tls_CAfile = {authority}
smtp_tls_security_level = may
smtp_tls_loglevel = 1
in_flow_delay = 0
smtp_line_length_limit = 0
"""
OPENDKIM: Final = """
Mode v
Socket inet:8891@127.0.0.1
ResolverConfiguration {directory}/resolver.conf
AuthservID mx.postfix.test
Syslog no
"""
RESOLVER: Final = """
server:
  local-zone: "test." nodefault
forward-zone:
  name: "."
  forward-addr: 192.0.2.53
"""
# opendkim ends with SIGSEGV when many messages come at once, so it gets only those it must.
FILTER: Final = "inet:127.0.0.1:8891"
MASTER_CF: Final = f"""
smtp inet n - n - - smtpd
26 inet n - n - - smtpd
  -o smtpd_milters={FILTER} -o smtpd_discard_ehlo_keywords=8bitmime,chunking,smtputf8
27 inet n - n - - smtpd -o smtpd_milters={FILTER}
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
smtp unix - - n - - smtp
virtual unix - n n - - virtual
error unix - - n - - error
retry unix - - n - - error
postlog unix-dgram n - n - 1 postlogd
"""
USERS: Final = [
    *("me", "plain", "eight", "j\u00fcrgen", "told", "many"),
    *("unknown-there", "unknown-here", "asks-there", "asks-here", "reported", "hears"),
    *("news", VERP, *FIVE),
    *(f"settled-{number}" for number in range(len(POSTFIX))),
]


class Postfix:
    """A Postfix on a host, with its own directories in place of the installed ones."""

    def __init__(self, host: Host, directory: Path, net: Network) -> None:
        self.host = host
        self._directory = directory
        self.path = directory / "log"
        etc, mail = directory / "etc", directory / "mail"
        shutil.copytree("/etc/postfix", etc)
        values = {"certificate": net.certificate(host), "authority": net.authority}
        (etc / "main.cf").write_text(MAIN_CF.format(**values))
        (etc / "master.cf").write_text(MASTER_CF)
        mailboxes = [f"{user.lower()}@postfix.test {user}/\n" for user in USERS]
        mailboxes += [f"{user}@old.test {user}/\n" for user in ("old", "older")]
        mailboxes += [f"{user}@signed.test {user}/\n" for user in ("long", "news", "signed")]
        (etc / "mailboxes").write_text("".join(mailboxes))
        (directory / "opendkim.conf").write_text(OPENDKIM.format(directory=directory))
        (directory / "resolver.conf").write_text(RESOLVER)
        for path in (mail, directory / "spool", directory / "lib"):
            path.mkdir()
        os.chown(mail, 65534, 65534)
        shutil.chown(directory / "lib", "postfix")
        host.cover("/etc/postfix", etc)
        host.cover("/var/mail", mail)
        host.cover("/var/spool/postfix", directory / "spool")
        host.cover("/var/lib/postfix", directory / "lib")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run it while the block runs, with the filter that checks signatures."""
        conf = str(self._directory / "opendkim.conf")
        with contextlib.ExitStack() as stack, self.path.open("wb") as log:
            for command, stop in (
                (["opendkim", "-f", "-x", conf], ["true"]),
                (["postfix", "start-fg"], ["postfix", "stop"]),  # TERM ends but its shell
            ):
                process = subprocess.Popen(
                    [*self.host.prefix, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
                stack.callback(process.wait, DEADLINE)
                stack.callback(process.send_signal, signal.SIGTERM)
                stack.callback(self.host.run, *stop, check=False)
            wait_for(lambda: "daemon started" in self.log, self.path)
            listening = ("ss", "--no-header", "--listening", "--tcp", "sport = :8891")
            wait_for(lambda: self.host.run(*listening) != "", self.path)
            yield

    @property
    def log(self) -> str:
        """Its whole output."""
        return self.path.read_text(errors="replace")

    def wait_for_log(self, pattern: str) -> None:
        """Return when a line of the log matches."""
        wait_for(lambda: re.search(pattern, self.log) is not None, self.path)

    def stored(self, user: str) -> list[bytes]:
        """Return the messages of a mailbox."""
        directory = self._directory / "mail" / user / "new"
        return [path.read_bytes() for path in directory.glob("*")]

    def mail(self, user: str) -> bytes:
        """Return the only message of a mailbox, once it is there."""
        wait_for(lambda: bool(self.stored(user)), self.path)
        [message] = self.stored(user)
        return message


@dataclass(frozen=True)
class Place:
    """What the tests find."""

    client: Host
    ours: MailServer
    postfix: Postfix
    key: Path  # of each of the SIGNERS


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], str], run: Run
) -> Iterator[Place]:
    for program in ("nsd", "unbound", "unshare", "ip", "postfix", "opendkim"):
        require_program(program)
    directory = tmp_path_factory.mktemp("postfix")
    with network(tmp_path_factory.mktemp("network")) as net, contextlib.ExitStack() as stack:
        client, here, there = (
            net.host(name, number)
            for name, number in (("client", 1), ("mx.here", 10), ("mx.postfix", 11))
        )
        ours = net.minismtp(here, run, PLUGINS)
        key = rsa.generate_private_key(65537, 2048)
        (ours.directory / "dkim.pem").write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        net.publish(*RECORDS, *(f"mail._domainkey.{name} TXT {published(key)}" for name in SIGNERS))
        (ours.directory / "local_plugins" / "note.py").write_text(NOTE)
        (ours.directory / "users").write_text("\n".join(USERS))
        (ours.directory / "aliases").write_text(
            "news: news, news@signed.test\nleft: left@postfix.test\n"
            f"five: {', '.join(f'{name}@postfix.test' for name in FIVE)}\n"
        )
        (ours.directory / "secret").write_text("a secret of sixteen\n")
        stack.callback(ours.close)
        ours.start()
        postfix = Postfix(there, directory, net)
        stack.enter_context(postfix.running())
        yield Place(client, ours, postfix, ours.directory / "dkim.pem")


def published(key: rsa.RSAPrivateKey) -> str:
    """Return the DNS record of a key, in strings that are short enough."""
    octets = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    text = f"v=DKIM1; k=rsa; p={b64encode(octets).decode()}"
    return " ".join(f'"{text[start : start + 200]}"' for start in range(0, len(text), 200))


def results(message: bytes) -> list[bytes]:
    """Return the results of the filter of Postfix."""
    return re.findall(rb"^Authentication-Results: (.*(?:\n[ \t].*)*)", message, re.MULTILINE)


def note(message: bytes) -> dict[str, object]:
    """Return how a message was sent to the server."""
    found = re.search(rb"^X-Note: (.*(?:\n[ \t].*)*)", message, re.MULTILINE)
    assert found is not None, message
    read: dict[str, object] = json.loads(found[1])
    return read


EIGHT_BIT: Final = "Subject: 8 bits\r\n\r\nGr\u00fc\u00dfe, \u4f60\u597d\r\n".encode()
RET: Final = ["RET=HDRS", "ENVID=QQ+2B1"]
NOTIFY: Final = ["NOTIFY=FAILURE,SUCCESS", "ORCPT=rfc822;Told+2Bme@example.org"]


# To Postfix


def test_postfix_takes_our_mail_over_tls(place: Place) -> None:
    send(place.client, place.ours.host, "plain@postfix.test")
    message = place.postfix.mail("plain")
    assert message.endswith(b"\nSubject: hello\n\nIt works.\n")
    hop = hops(message)[0]
    assert hop.startswith("from mx.here.test (unknown [IPv6:fd00:25::10]) (using TLSv1.3 ")
    assert " by mx.postfix.test (Postfix) with ESMTPS id " in hop
    place.ours.running.wait_for_log(
        r" delivery delivered .*to=plain@postfix\.test host=mx\.postfix\.test tls=encrypted "
    )


def test_what_postfix_refuses_goes_back(place: Place) -> None:
    send(
        place.client,
        place.ours.host,
        "nobody@postfix.test",
        sender="unknown-there@here.test",
        mail=["ENVID=1"],
    )
    parsed, fields = report(place.ours.mail("unknown-there"))
    assert fields["Reporting-MTA"] == "dns; mx.here.test"
    assert fields["Remote-MTA"] == "dns; mx.postfix.test"
    assert fields["Action"] == "failed"
    assert fields["Status"] == "5.1.1"
    assert fields["Final-Recipient"] == "rfc822; nobody@postfix.test"
    assert fields["Original-Envelope-Id"] == "1"
    assert "nobody@postfix.test" in fields["Diagnostic-Code"]
    [original] = [part for part in parsed.walk() if part.get_content_type() == "message/rfc822"]
    assert "It works." in str(original)


def test_8_bit_content_reaches_postfix_as_it_is(place: Place) -> None:
    send(
        place.client,
        place.ours.host,
        "eight@postfix.test",
        content=EIGHT_BIT,
        mail=["BODY=8BITMIME"],
    )
    assert place.postfix.mail("eight").endswith(EIGHT_BIT.replace(b"\r\n", b"\n"))


def test_international_mail_reaches_postfix(place: Place) -> None:
    send(
        place.client,
        place.ours.host,
        "j\u00fcrgen@postfix.test",
        sender="j\u00fcrgen@here.test",
        content=EIGHT_BIT.replace(b"8 bits", "\u00fc".encode()),
        mail=["SMTPUTF8", "BODY=8BITMIME"],
    )
    message = place.postfix.mail("j\u00fcrgen").decode()
    assert "Return-Path: <j\u00fcrgen@here.test>" in message
    assert "Delivered-To: j\u00fcrgen@postfix.test" in message
    assert "\nSubject: \u00fc\n" in message


def test_postfix_hears_of_whom_to_tell(place: Place) -> None:
    """RFC 3461: it reports the delivery, because we pass on the wish and do not report it."""
    send(
        place.client,
        place.ours.host,
        "told@postfix.test",
        sender="asks-there@here.test",
        mail=RET,
        rcpt=NOTIFY,
    )
    _, fields = report(place.ours.mail("asks-there"))
    assert fields["Reporting-MTA"] == "dns; mx.postfix.test"
    assert fields["Original-Envelope-Id"] == "QQ+1"
    assert fields["Original-Recipient"] == "rfc822;Told+me@example.org"
    assert fields["Action"] == "delivered"


def test_our_signature_is_good_for_a_filter_of_postfix(place: Place) -> None:
    content = "From: me@here.test\r\nSubject: signed\r\n\r\n.\r\n\r\nIt works. \r\n\r\n"
    send(place.client, place.ours.host, "signed@signed.test", content=content)
    [result] = results(place.postfix.mail("signed"))
    assert b"dkim=pass " in result
    assert b" header.d=here.test " in result


def test_long_lines_reach_postfix_signed_by_us(place: Place) -> None:
    content = b"From: me@here.test\r\nMIME-Version: 1.0\r\nContent-Type: text/html\r\n\r\n" + LONG
    send(place.client, place.ours.host, "long@signed.test", content=content + b"\r\n")
    message = place.postfix.mail("long")
    [result] = results(message)
    assert b"dkim=pass " in result
    assert max(map(len, message.split(b"\n"))) <= 998
    assert email.message_from_bytes(message).get_payload(decode=True) == LONG + b"\n"


def test_8_bit_content_reaches_an_old_postfix_signed_by_us(place: Place) -> None:
    """It offers no 8BITMIME; its filter and a reader get the content that was sent."""
    text = "Gr\u00fc\u00dfe, \u4f60\u597d\r\n".encode()
    content = (
        b"From: me@here.test\r\nMIME-Version: 1.0\r\nContent-Transfer-Encoding: 8bit\r\n"
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
        + text
        + b"\r\n--b\r\nContent-Type: message/rfc822\r\n\r\nMIME-Version: 1.0\r\n"
        b"Content-Type: text/html; charset=utf-8\r\n\r\n" + LONG + text + b"\r\n--b--\r\n"
    )
    send(place.client, place.ours.host, "old@old.test", content=content, mail=["BODY=8BITMIME"])
    message = place.postfix.mail("old")
    assert message.isascii()
    [result] = results(message)
    assert b"dkim=pass " in result
    leaves = [part for part in email.message_from_bytes(message).walk() if not part.is_multipart()]
    decoded = [part.get_payload(decode=True) for part in leaves]
    unix = text.replace(b"\r\n", b"\n")
    assert decoded == [unix, LONG + unix]


def test_international_domain_reaches_an_old_postfix(place: Place) -> None:
    sender = "me@b\u00fccher.here.test"
    send(place.client, place.ours.host, "older@old.test", sender=sender, mail=["SMTPUTF8"])
    message = place.postfix.mail("older")
    assert message.startswith(b"Return-Path: <me@xn--bcher-kva.here.test>\n")
    assert message.isascii()


def test_bounce_of_a_forwarded_newsletter_finds_its_sender(place: Place) -> None:
    """Postfix accepts it, cannot deliver it, and returns it to the rewritten sender."""
    send(place.client, place.postfix.host, "left@here.test", sender=f"{VERP}@postfix.test")
    rewritten = r"SRS0=\w{6}=\w\w==\w{16}@here\.test"
    place.postfix.wait_for_log(rf"from=<{rewritten}>")
    bounce = place.postfix.mail(VERP)
    _, fields = report(bounce)
    assert fields["Action"] == "failed"
    assert fields["Final-Recipient"] == "rfc822; nobody@no-such-domain.test"
    assert bounce.startswith(f"Return-Path: <>\nX-Original-To: {VERP}@postfix.test\n".encode())


def test_postfix_that_takes_two_recipients_at_a_time_gets_all(place: Place) -> None:
    begun = len(place.postfix.log)
    before = {name: len(place.postfix.stored(name)) for name in FIVE}
    send(place.client, place.ours.host, "five@here.test")
    for name in FIVE:
        wait_for(
            lambda: len(place.postfix.stored(name)) == before[name] + 1,  # noqa: B023
            place.postfix.path,
        )
    queued = place.postfix.log[begun:]
    assert re.findall(r"from=<me@here\.test>.* nrcpt=(\d)", queued) == ["2", "2", "1"]


def test_signature_of_a_newsletter_survives_that_it_is_forwarded(place: Place) -> None:
    """Postfix sends it, we store it, and send it on with SRS to a Postfix that verifies it."""
    newsletter = (
        b"From: News <news@news.test>\r\nSubject: All the news\r\nTo: news@here.test\r\n"
        b"MIME-Version: 1.0\r\nContent-Type: text/html\r\n\r\n" + LONG + b"\r\n" + LONG + b"\r\n"
    )
    signature = dkim.sign(
        *(newsletter, b"mail", b"news.test", place.key.read_bytes()),
        canonicalize=(b"simple", b"simple"),
    )
    verp = "bounces+1234567-ab12cd34-the-news-of-the-week=customer.of.here.test@em.news.test"
    signed = signature + newsletter
    send(place.client, place.postfix.host, "news@here.test", sender=verp, content=signed)
    stored = place.ours.mail("news")
    assert stored.startswith(b"Return-Path: <%s>\r\n" % verp.encode())
    assert stored.endswith(signed)
    forwarded = place.postfix.mail("news")
    assert re.match(rb"Return-Path: <SRS0=\w{6}=\w\w==\w{16}@here\.test>\n", forwarded)
    assert forwarded.endswith(signed.replace(b"\r\n", b"\n"))
    [result] = results(forwarded)  # of the second time: it removes fields with its name
    assert b"dkim=pass " in result
    assert b" header.d=news.test " in result


def test_postfix_takes_many_messages(place: Place) -> None:
    send_many(place.client, place.ours.host, "many@postfix.test")
    wait_for(lambda: len(place.postfix.stored("many")) >= MESSAGES, place.postfix.path)
    assert numbers(place.postfix.stored("many")) == list(range(MESSAGES))


# From Postfix


def test_postfix_sends_to_us_over_tls(place: Place) -> None:
    send(place.client, place.postfix.host, "plain@here.test")
    message = place.ours.mail("plain")
    assert message.endswith(b"\r\nSubject: hello\r\n\r\nIt works.\r\n")
    hop = hops(message)[0]
    # Postfix chooses between the versions of IP by chance.
    assert re.match(r"from mx\.postfix\.test \(\[.*\]\) by mx\.here\.test with ESMTPS id ", hop)
    place.postfix.wait_for_log(
        r"Trusted TLS connection established to mx\.here\.test\[.*\]:25: TLSv1\.3"
    )


def test_postfix_returns_what_we_refuse(place: Place) -> None:
    send(place.client, place.postfix.host, "nobody@here.test", sender="unknown-here@here.test")
    _, fields = report(place.ours.mail("unknown-here"))
    assert fields["Reporting-MTA"] == "dns; mx.postfix.test"
    assert fields["Remote-MTA"] == "dns; mx.here.test"
    assert fields["Status"] == "5.1.1"
    assert fields["Diagnostic-Code"].startswith("smtp; 550 5.1.1 no such mailbox")


def test_8_bit_content_from_postfix_arrives_as_it_is(place: Place) -> None:
    send(
        place.client,
        place.postfix.host,
        "eight@here.test",
        content=EIGHT_BIT,
        mail=["BODY=8BITMIME"],
    )
    message = place.ours.mail("eight")
    assert message.endswith(EIGHT_BIT)
    assert note(message)["body"] == "8BITMIME"


def test_international_mail_from_postfix_arrives(place: Place) -> None:
    send(
        place.client,
        place.postfix.host,
        "j\u00fcrgen@here.test",
        sender="j\u00fcrgen@postfix.test",
        content=EIGHT_BIT.replace(b"8 bits", "\u00fc".encode()),
        mail=["SMTPUTF8", "BODY=8BITMIME"],
    )
    message = place.ours.mail("j%C3%BCrgen")
    assert note(message)["smtputf8"] is True
    assert note(message)["orcpt"] == r"utf-8;j\x{FC}rgen@here.test"
    assert message.startswith("Return-Path: <j\u00fcrgen@postfix.test>\r\n".encode())
    assert " with UTF8SMTPS id " in hops(message)[0]


def test_we_hear_from_postfix_whom_to_tell(place: Place) -> None:
    send(
        place.client,
        place.postfix.host,
        "told@here.test",
        sender="asks-here@postfix.test",
        mail=RET,
        rcpt=NOTIFY,
    )
    assert note(place.ours.mail("told")) == {
        "body": "7BIT",
        "smtputf8": False,
        "ret": "HDRS",
        "envid": "QQ+1",
        "notify": ["FAILURE", "SUCCESS"],
        "orcpt": "rfc822;Told+2Bme@example.org",
    }


def test_postfix_users_hear_of_a_delivery_here(place: Place) -> None:
    send(
        place.client,
        place.postfix.host,
        "reported@here.test",
        sender="hears@postfix.test",
        mail=RET,
        rcpt=NOTIFY,
    )
    _, fields = report(place.postfix.mail("hears"))
    assert fields["Reporting-MTA"] == "dns; mx.here.test"
    assert fields["Original-Envelope-Id"] == "QQ+1"
    assert fields["Original-Recipient"] == "rfc822; Told+me@example.org"
    assert fields["Final-Recipient"] == "rfc822; reported@here.test"
    assert fields["Action"] == "delivered"


def test_many_messages_from_postfix_arrive(place: Place) -> None:
    send_many(place.client, place.postfix.host, "many@here.test")
    stored = place.ours.running.wait_until(
        lambda: len(found := place.ours.running.mail("many")) >= MESSAGES and found
    )
    assert numbers(stored or []) == list(range(MESSAGES))


def send_many(origin: Host, server: Host, recipient: str) -> None:
    with client(origin, server) as smtp:
        for number in range(MESSAGES):
            smtp.sendmail("me@here.test", recipient, f"Subject: {number}\r\n\r\n")


def numbers(messages: list[bytes]) -> list[int]:
    found = [re.search(rb"^Subject: ([0-9]+)\r?$", each, re.MULTILINE) for each in messages]
    return sorted(int(each[1]) for each in found if each)


# How it settles headers


def test_postfix_and_we_store_the_same_of_each_odd_header(place: Place) -> None:
    for number, (came, _) in enumerate(POSTFIX.values()):
        for host, domain in ((place.postfix.host, "postfix.test"), (place.ours.host, "here.test")):
            with client(place.client, host) as smtp:
                smtp.ehlo_or_helo_if_needed()
                smtp.mail("a@client.test")
                smtp.rcpt(f"settled-{number}@{domain}")
                assert smtp.data(came or b".")[0] == 250
    for number, name in enumerate(POSTFIX):
        theirs = below_trace_fields(place.postfix.mail(f"settled-{number}"))
        ours = below_trace_fields(place.ours.mail(f"settled-{number}").replace(b"\r\n", b"\n"))
        assert (name, ours) == (name, theirs)


def below_trace_fields(message: bytes) -> bytes:
    """Return a message without the fields that the server put on top."""
    return re.sub(rb"(?s)\A.*?\nReceived: [^\n]*\n(?:[ \t][^\n]*\n)*", b"", message, count=1)
