"""Mail from one server to others, with real sockets and a real DNS."""

from __future__ import annotations

import contextlib
import email
import email.policy
import functools
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ports import free_port

from minismtp.smtp.dot_stuffing import dotted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Configure, Running, Start, TlsFiles

    Hosts = Callable[[bytes, dict[bytes, bytes]], "Host"]

RELAY = """
[[plugins]]
use = "relay"
networks = ["127.0.0.0/8"]
"""
OUT = """
[dns]
nameservers = ["127.0.0.1:{dns}"]

[outbound]
retry = ["{retry}"]
expire = "{expire}"
port = {port}
"""


def route(domain: str, host: str, *more: str) -> str:
    return "\n".join(["[[outbound.routes]]", f'domain = "{domain}"', f'host = "{host}"', *more])


def out(port: int = 25, dns: int = 9, retry: str = "1s", expire: str = "1h") -> str:
    return OUT.format(port=port, dns=dns, retry=retry, expire=expire)


@pytest.fixture
def sender(configure: Configure, start: Start) -> Callable[..., Running]:
    """Start a server that relays for all clients on this machine."""

    def make(*tables: str, top: str = "") -> Running:
        server = start(configure(RELAY, *tables, top=top))
        server.wait_for_log(" queue opened ")
        return server

    return make


@pytest.fixture
def receiver(configure_at: Callable[[str], Configure], start: Start) -> Callable[..., Running]:
    """Start a server for example.net in a directory of its own."""

    def make(name: str = "receiver", listeners: str = "", *tables: str) -> Running:
        plugins = (
            '[[plugins]]\nuse = "mailboxes"\ndomains = ["example.net"]\nusers = ["bob", "carol"]\n'
            '[[plugins]]\nuse = "maildir"\npath = "mail/{local}"\n'
        )
        configure = configure_at(name)
        if listeners:
            return start(configure(*tables, plugins=plugins, listeners=listeners))
        return start(configure(*tables, plugins=plugins))

    return make


def send(
    server: Running,
    *recipients: str,
    sender: str = "me@example.org",
    options: str = "",
    text: str = "Subject: hello\r\n\r\n.dots\r\nand text\r\n",
) -> None:
    with server.connect() as client:
        client.greet()
        assert client.command(f"MAIL FROM:<{sender}>{options}").startswith("250")
        for recipient in recipients:
            assert client.command(f"RCPT TO:{recipient}").startswith("250"), recipient
        client.command("DATA")
        client.send(text.replace("\r\n.", "\r\n..") + ".\r\n")
        assert client.reply().startswith("250 ")
        client.command("QUIT")


def report(server: Running, local: str = "me") -> dict[str, str]:
    """Return the fields of the delivery status in a user's only message."""
    [octets] = server.wait_until(lambda: server.mail(local))
    parsed = email.message_from_bytes(octets, policy=email.policy.default)
    assert parsed["Return-Path"] == "<>"
    assert parsed["Auto-Submitted"] == "auto-replied"
    assert parsed.get_content_type() == "multipart/report"
    _, delivery, _ = parsed.iter_parts()
    fields: dict[str, str] = {}
    for block in delivery.iter_parts():
        fields |= dict(block.items())
    return fields


def lines(server: Running, text: str) -> list[str]:
    return [line for line in server.log.splitlines() if text in line]


def queue(server: Running, *arguments: str) -> str:
    return queue_of(server.config, *arguments)


def queue_of(config: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "minismtp", "queue", *arguments, "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{done.returncode} {done.stdout}{done.stderr}".strip()


def waiting(server: Running) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(queue(server, "list", "--json")[2:])
    return found


# Delivery


def test_a_message_arrives_as_it_was_sent(
    sender: Callable[..., Running], receiver: Callable[..., Running]
) -> None:
    there = receiver()
    here = sender(out(), route("example.net", there.address("smtp")))
    send(here, "<bob@example.net>", "<carol@example.net>")
    for name in ("bob", "carol"):
        [stored] = there.wait_until(functools.partial(there.mail, name))
        assert stored.endswith(b"Subject: hello\r\n\r\n.dots\r\nand text\r\n")
        assert b"Return-Path: <me@example.org>\r\n" in stored
        assert stored.count(b"\r\nReceived: ") == 2
    here.wait_until(lambda: here.metric("delivery_attempts_total", result="delivered") == 2)
    here.wait_until(lambda: not list((here.directory / "state/spool/queue").iterdir()))
    assert here.metric("messages_total", outcome="queued") == 1
    there.wait_for_log(" session closed ")
    assert len(lines(there, " session closed ")) == 1


def test_many_messages_share_connections(
    sender: Callable[..., Running], receiver: Callable[..., Running]
) -> None:
    there = receiver()
    here = sender(out(), route("example.net", there.address("smtp")))
    for _ in range(30):
        send(here, "<bob@example.net>")
    there.wait_until(lambda: len(there.mail("bob")) == 30)
    there.wait_until(lambda: lines(there, " session closed "))
    assert len(lines(there, " session closed ")) < 30


def test_a_large_message_with_8_bit_octets_arrives(
    sender: Callable[..., Running], receiver: Callable[..., Running]
) -> None:
    there = receiver()
    here = sender(out(), route("example.net", there.address("smtp")))
    text = "Subject: big\r\n\r\n" + "\u00e9" * 100 + "\r\n" + ("x" * 70 + "\r\n") * 20_000
    send(here, "<bob@example.net>", options=" BODY=8BITMIME", text=text)
    [stored] = there.wait_until(lambda: there.mail("bob"))
    assert stored.endswith(text.encode())


def test_a_host_that_comes_back_gets_its_mail(
    sender: Callable[..., Running], receiver: Callable[..., Running]
) -> None:
    port = free_port()
    here = sender(out(), route("example.net", f"127.0.0.1:{port}"))
    send(here, "<bob@example.net>")
    here.wait_for_log(r" delivery deferred .*4\.4\.1 cannot connect")
    there = receiver(
        "receiver", f'[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:{port}"\ntls = "none"\n'
    )
    there.wait_until(lambda: there.mail("bob"))


def test_mail_survives_the_death_of_all_processes(
    sender: Callable[..., Running], receiver: Callable[..., Running], start: Start
) -> None:
    port = free_port()
    here = sender(out(), route("example.net", f"127.0.0.1:{port}"))
    send(here, "<bob@example.net>")
    here.wait_for_log(" delivery deferred ")
    here.kill()
    there = receiver(
        "receiver", f'[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:{port}"\ntls = "none"\n'
    )
    start(here.directory / "minismtp.toml")
    there.wait_until(lambda: there.mail("bob"))


def test_a_killed_runner_is_replaced(
    sender: Callable[..., Running], receiver: Callable[..., Running]
) -> None:
    there = receiver()
    here = sender(out(), route("example.net", there.address("smtp")))
    lock = (here.directory / "state/spool/lock").stat().st_ino
    [holder] = {
        int(line.split()[4])
        for line in Path("/proc/locks").read_text().splitlines()
        if line.split()[5].rpartition(":")[2] == str(lock)
    }
    os.kill(holder, signal.SIGKILL)
    here.wait_for_log(" outbound runner died ")
    send(here, "<bob@example.net>")
    there.wait_until(lambda: there.mail("bob"))


def test_a_reload_takes_the_new_way(
    sender: Callable[..., Running], receiver: Callable[..., Running], configure: Configure
) -> None:
    there = receiver()
    here = sender(out(), route("example.net", f"127.0.0.1:{free_port()}"))
    send(here, "<bob@example.net>")
    here.wait_for_log(" delivery deferred ")
    configure(RELAY, out(), route("example.net", there.address("smtp")))
    here.signal(signal.SIGHUP)
    there.wait_until(lambda: there.mail("bob"))


def test_a_schedule_that_is_lost_is_made_from_the_spool(
    sender: Callable[..., Running], receiver: Callable[..., Running], start: Start
) -> None:
    here = sender(out(retry="1h"), route("example.net", f"127.0.0.1:{free_port()}"))
    send(here, "<bob@example.net>")
    here.wait_for_log(" delivery deferred ")
    here.kill()
    spool = here.directory / "state/spool"
    for path in spool.glob("queue.db*"):
        path.unlink()
    (spool / "queue.db").write_bytes(b"rubbish " * 1000)
    there = receiver()
    text = (here.directory / "minismtp.toml").read_text()
    start_again = text.replace(text.split('host = "')[1].split('"')[0], there.address("smtp"))
    (here.directory / "minismtp.toml").write_text(start_again)
    again = start(here.directory / "minismtp.toml")
    again.wait_for_log(r"queue\.db is damaged")
    there.wait_until(lambda: there.mail("bob"))


def test_a_damaged_message_is_set_aside_and_blocks_nothing(
    sender: Callable[..., Running], receiver: Callable[..., Running], start: Start
) -> None:
    here = sender(out(), route("example.net", f"127.0.0.1:{free_port()}"))
    here.kill()
    spool = here.directory / "state/spool"
    (spool / "queue" / "broken.1").write_bytes(b"no message")
    there = receiver()
    text = (here.directory / "minismtp.toml").read_text()
    old = text.split('host = "')[1].split('"')[0]
    (here.directory / "minismtp.toml").write_text(text.replace(old, there.address("smtp")))
    (here.directory / "log").unlink()  # has the port of before
    again = start(here.directory / "minismtp.toml")
    again.wait_for_log(r" error damaged message set aside .*broken\.1")
    assert (spool / "damaged" / "broken.1").exists()
    send(again, "<bob@example.net>")
    there.wait_until(lambda: there.mail("bob"))


# Who may relay


def test_strangers_cannot_relay(configure: Configure, start: Start) -> None:
    server = start(configure('[[plugins]]\nuse = "relay"\nnetworks = ["192.0.2.0/24"]\n'))
    with server.connect() as client:
        client.greet()
        client.command("MAIL FROM:<me@example.org>")
        assert client.command("RCPT TO:<bob@example.net>").startswith("550 5.7.1 ")


def test_a_full_disk_is_told_before_the_message(sender: Callable[..., Running]) -> None:
    here = sender(f'{out()}free_space = "999999GiB"\n')
    with here.connect() as client:
        client.greet()
        assert client.command("MAIL FROM:<me@example.org>").startswith("452 4.3.1 ")


# Refusals and reports


def test_each_recipient_has_its_own_fate(
    sender: Callable[..., Running], receiver: Callable[..., Running]
) -> None:
    there = receiver()
    here = sender(out(), route("example.net", there.address("smtp")))
    send(
        here,
        "<bob@example.net>",
        "<nobody@example.net> ORCPT=rfc822;No+2Bbody@example.net",
        options=" RET=HDRS ENVID=QQ314159",
    )
    there.wait_until(lambda: there.mail("bob"))
    fields = report(here)
    assert fields["Action"] == "failed"
    assert fields["Final-Recipient"] == "rfc822; nobody@example.net"
    assert fields["Original-Recipient"] == "rfc822; No+body@example.net"
    assert fields["Original-Envelope-Id"] == "QQ314159"
    assert fields["Status"].startswith("5.1.")
    assert fields["Diagnostic-Code"].startswith("smtp; 550 5.1.")
    assert b"text/rfc822-headers" in here.mail("me")[0]
    assert b"and text" not in here.mail("me")[0]


def test_nobody_is_told_when_nobody_wants_it(
    sender: Callable[..., Running], receiver: Callable[..., Running]
) -> None:
    there = receiver()
    here = sender(out(), route("example.net", there.address("smtp")))
    send(here, "<nobody@example.net> NOTIFY=NEVER")
    send(here, "<nobody@example.net>", sender="")
    here.wait_until(lambda: here.metric("delivery_attempts_total", result="failed") == 2)
    here.wait_until(lambda: not list((here.directory / "state/spool/queue").iterdir()))
    assert here.mail("me") == []
    assert lines(here, " notification ") == []


def test_a_message_that_is_too_old_comes_back(sender: Callable[..., Running]) -> None:
    here = sender(out(expire="2s"), route("example.net", f"127.0.0.1:{free_port()}"))
    send(here, "<bob@example.net>")
    fields = report(here)
    assert fields["Action"] == "failed"
    assert "cannot connect" in fields["Diagnostic-Code"]


def test_the_sender_hears_of_a_delay_once(sender: Callable[..., Running]) -> None:
    here = sender(f'{out(retry="1h")}warn_after = "1s"\n', route("example.net", "127.0.0.1:9"))
    send(here, "<bob@example.net>")
    here.wait_for_log(" delivery deferred ")
    fields = report(here)
    assert fields["Action"] == "delayed"
    assert fields["Status"].startswith("4.")
    assert "Will-Retry-Until" in fields


def test_success_is_told_where_it_was_asked_for(
    sender: Callable[..., Running], hosts: Hosts
) -> None:
    there = hosts(b"250-there\r\n250 8BITMIME\r\n", {})
    here = sender(out(), route("example.net", there.address))
    send(here, "<bob@example.net> NOTIFY=SUCCESS")
    assert report(here)["Action"] == "relayed"


@pytest.mark.parametrize(
    ("domain", "recipient"),
    [
        ("example.org", "<bob@example.net> ORCPT=utf-8;" + "😀" * 123),
        ("example.org", "<" + "é" * 32 + "@" + ".".join(["é" * 30] * 3) + ">"),
        ("\u0130XAMPLE.org", "<bob@example.net>"),
    ],
    ids=["long original recipient", "long address", "domain longer in lower case"],
)
def test_whatever_was_acknowledged_its_sender_hears_of(
    configure: Configure, start: Start, hosts: Hosts, domain: str, recipient: str
) -> None:
    there = hosts(b"250-there\r\n250 SMTPUTF8\r\n", {b"RCPT": b"550 5.1.1 no\r\n"})
    plugins = f"""
[[plugins]]
use = "mailboxes"
domains = ["{domain}"]

[[plugins]]
use = "maildir"
path = "mail/{{local}}"
"""
    here = start(configure(RELAY, out(), route("*", there.address), plugins=plugins))
    send(here, recipient, sender=f"me@{domain}", options=" SMTPUTF8")
    assert report(here)["Action"] == "failed"


def test_success_of_a_recipient_that_is_hard_to_say_is_told(
    sender: Callable[..., Running], hosts: Hosts
) -> None:
    here = sender(out(), route("example.net", hosts(b"250 there\r\n", {}).address))
    wishes = " NOTIFY=SUCCESS ORCPT=utf-8;" + "😀" * 123
    send(here, f"<bob@example.org>{wishes}", options=" SMTPUTF8")
    assert report(here)["Action"] == "delivered"


def test_what_could_not_be_read_again_is_not_acknowledged(
    configure: Configure, start: Start
) -> None:
    """A plugin may route to an invalid address, and then no mailbox gets a copy either."""
    path = configure(out(), plugins='[[plugins]]\nuse = "astray"\n')
    (path.parent / "local_plugins" / "astray.py").write_text(
        "from minismtp import Address, Local, Relay, Several, hookimpl, plugin\n\n\n"
        "@plugin\nclass Astray:\n"
        "    @hookimpl\n    def route(self, recipient):\n"
        "        return Several(Local(), Relay(Address('a' * 513, 'example.net')))\n\n"
        "    @hookimpl\n    def deliver(self, mailbox):\n"
        "        raise AssertionError(mailbox)\n"
    )
    server = start(path)
    with server.connect() as client:
        client.begin_data("bob@example.net")
        client.send("Subject: x\r\n\r\n.\r\n")
        assert client.reply().startswith("451 4.3.0 the message cannot be queued")
    assert not list((server.directory / "state/spool/queue").iterdir())
    assert not list((server.directory / "state/spool/tmp").iterdir())
    server.wait_for_log("local part longer than 512 octets")
    assert "AssertionError" not in server.log


# Hosts that do not behave


class Host:
    """A host that sends given replies, and 250 to all other commands."""

    def __init__(
        self, hello: bytes, replies: dict[bytes, bytes], at: tuple[str, int] = ("127.0.0.1", 0)
    ) -> None:
        self.hello = hello
        self.replies = replies
        self.heard: list[bytes] = []
        self.listening = socket.create_server(at)
        self.address = f"{at[0]}:{self.listening.getsockname()[1]}"
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listening.accept()
                threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock, sock.makefile("rb") as lines:
            if not self.answer(sock, self.replies.get(b"CONNECT", b"220 there\r\n")):
                return
            for line in lines:
                verb = line.split(b":")[0].split()[0].upper() if line.strip() else b""
                self.heard.append(line)
                usual = {b"EHLO": self.hello, b"DATA": b"354 go\r\n"}.get(verb, b"250 ok\r\n")
                if not self.answer(sock, self.replies.get(verb, usual)):
                    return
                if verb == b"DATA" and self.replies.get(verb, usual).startswith(b"354"):
                    while (line := lines.readline()) not in {b".\r\n", b""}:
                        self.heard.append(line)
                    if not self.answer(sock, self.replies.get(b".", b"250 taken\r\n")):
                        return

    def answer(self, sock: socket.socket, reply: bytes) -> bool:
        """Send a reply; an empty one closes the connection."""
        sock.sendall(reply)
        return bool(reply)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    made: list[Host] = []

    def make(hello: bytes, replies: dict[bytes, bytes]) -> Host:
        made.append(Host(hello, replies))
        return made[-1]

    yield make
    for host in made:
        host.listening.close()


PLAIN = b"250-there\r\n250-8BITMIME\r\n250-SIZE 1000000\r\n250 PIPELINING\r\n"


@pytest.mark.parametrize(
    ("replies", "outcome"),
    [
        ({b"CONNECT": b"421 4.3.2 not now\r\n"}, r"deferred .*421 4\.3\.2 not now"),
        ({b"MAIL": b"550 5.7.1 no\r\n"}, r"failed .*550 5\.7\.1 no"),
        ({b"RCPT": b"450 4.2.0 busy\r\n"}, r"deferred .*450 4\.2\.0 busy"),
        ({b".": b"452 4.3.1 full\r\n"}, r"deferred .*452 4\.3\.1 full"),
        ({b".": b""}, r"deferred .*hung up during the reply to the content"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_misbehaving_hosts_get_the_right_outcome(
    sender: Callable[..., Running], hosts: Hosts, replies: dict[bytes, bytes], outcome: str
) -> None:
    here = sender(out(retry="1h"), route("example.net", hosts(PLAIN, replies).address))
    send(here, "<bob@example.net>")
    here.wait_for_log(f" delivery {outcome}")


def test_content_that_a_host_cannot_take_is_converted(
    sender: Callable[..., Running], hosts: Hosts
) -> None:
    host = hosts(b"250 there\r\n", {})
    here = sender(out(), route("example.net", host.address))
    send(here, "<bob@example.net>", options=" BODY=8BITMIME", text="\r\nGr\u00fc\u00dfe\r\n")
    here.wait_for_log(" delivery delivered ")
    assert b"MAIL FROM:<me@example.org>\r\n" in host.heard
    assert b"Content-Transfer-Encoding: quoted-printable\r\n" in host.heard
    assert b"Gr=C3=BC=C3=9Fe\r\n" in host.heard


@pytest.mark.parametrize(
    ("recipient", "sender_address", "named"),
    [
        ("bob@b\u00fccher.example", "me@example.org", "bob@xn--bcher-kva.example"),
        ("bob@xn--bcher-kva.example", "me@\u00fcber.example", "bob@xn--bcher-kva.example"),
    ],
)
def test_domain_outside_ascii_asks_nothing_of_a_host(
    sender: Callable[..., Running],
    hosts: Hosts,
    recipient: str,
    sender_address: str,
    named: str,
) -> None:
    """Its A-label serves, in the envelope and in our Received field."""
    host = hosts(b"250 there\r\n", {})
    here = sender(out(), route("xn--bcher-kva.example", host.address))
    send(here, f"<{recipient}>", sender=sender_address, options=" SMTPUTF8")
    here.wait_for_log(" delivery delivered ")
    assert f"RCPT TO:<{named}>\r\n".encode() in host.heard
    assert all(line.isascii() for line in host.heard)


def test_recipient_outside_ascii_whose_mail_goes_on_asks_nothing_of_a_host(
    configure: Configure, start: Start, hosts: Hosts
) -> None:
    host = hosts(b"250 there\r\n", {})
    alias = '[[plugins]]\nuse = "mailboxes"\nname = "more"\ndomains = ["forward.example"]\n'
    path = configure(
        f'{alias}aliases_file = "aliases"\n', out(), route("example.net", host.address)
    )
    (path.parent / "aliases").write_text("j\u00fcrgen: bob@example.net\n")
    here = start(path)
    here.wait_for_log(" queue opened ")
    send(here, "<j\u00fcrgen@forward.example>", options=" SMTPUTF8")
    here.wait_for_log(" delivery delivered ")
    assert b"RCPT TO:<bob@example.net>\r\n" in host.heard


def test_mailbox_outside_ascii_goes_back_where_a_host_does_not_know_it(
    sender: Callable[..., Running], hosts: Hosts
) -> None:
    here = sender(out(), route("example.net", hosts(b"250 there\r\n", {}).address))
    send(here, "<j\u00fcrgen@example.net>", options=" SMTPUTF8")
    assert report(here)["Status"] == "5.6.7"


def test_a_host_has_the_time_that_is_configured(
    sender: Callable[..., Running], hosts: Hosts
) -> None:
    host = hosts(b"250-there\r\n250-ne", {})
    here = sender(out() + 'command_timeout = "100ms"\n', route("example.net", host.address))
    send(here, "<bob@example.net>")
    here.wait_for_log(r" delivery deferred .*451 4\.4\.2 .* timed out in the greeting")


def test_a_message_declared_8bit_but_ascii_may_go_anywhere(
    sender: Callable[..., Running], hosts: Hosts
) -> None:
    here = sender(out(), route("example.net", hosts(b"250 there\r\n", {}).address))
    send(here, "<bob@example.net>", options=" BODY=8BITMIME")
    here.wait_for_log(" delivery delivered ")


def test_helo_serves_where_ehlo_is_unknown(sender: Callable[..., Running], hosts: Hosts) -> None:
    host = hosts(b"502 5.5.1 what\r\n", {})
    here = sender(out(), route("example.net", host.address))
    send(here, "<bob@example.net>")
    here.wait_for_log(" delivery delivered ")
    assert b"MAIL FROM:<me@example.org>\r\n" in host.heard


# TLS


def test_tls_is_used_where_it_is_offered(
    sender: Callable[..., Running], receiver: Callable[..., Running], tls_files: TlsFiles
) -> None:
    listeners = '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\ntls = "starttls"\n'
    there = receiver("receiver", listeners, tls_files.table)
    here = sender(out(), route("example.net", there.address("smtp")))
    send(here, "<bob@example.net>")
    here.wait_for_log(" delivery delivered .*tls=encrypted")
    [stored] = there.mail("bob")
    assert b"with ESMTPS " in stored


def test_required_tls_waits_when_there_is_none(
    sender: Callable[..., Running], hosts: Hosts
) -> None:
    host = hosts(PLAIN, {})
    here = sender(out(), route("example.net", host.address, 'tls = "required"'))
    send(here, "<bob@example.net>")
    here.wait_for_log(r" delivery deferred .*4\.7\.4 .* does not offer STARTTLS")
    assert not any(line.startswith(b"MAIL") for line in host.heard)


def test_verified_tls_wants_a_valid_certificate(
    sender: Callable[..., Running], receiver: Callable[..., Running], tls_files: TlsFiles
) -> None:
    listeners = '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\ntls = "starttls"\n'
    there = receiver("receiver", listeners, tls_files.table)
    here = sender(out(), route("example.net", there.address("smtp"), 'tls = "verified"'))
    send(here, "<bob@example.net>")
    here.wait_for_log(r" delivery deferred .*4\.7\.5 .* failed in the TLS handshake: .*certificate")
    assert there.mail("bob") == []


def test_broken_tls_is_left_out_when_it_is_only_opportunistic(
    sender: Callable[..., Running], hosts: Hosts
) -> None:
    host = hosts(b"250-there\r\n250 STARTTLS\r\n", {b"STARTTLS": b"220 go\r\nrubbish\r\n"})
    here = sender(out(), route("example.net", host.address))
    send(here, "<bob@example.net>")
    here.wait_for_log(" delivery delivered .*tls=none")


# The DNS


@pytest.fixture
def dns(require_program: Callable[[str], str]) -> Iterator[Callable[..., int]]:
    """Yield a function that runs a DNS server with these options and returns its port."""
    program = require_program("dnsmasq")
    with contextlib.ExitStack() as stack:

        def run(*options: str) -> int:
            port = free_port()
            process = subprocess.Popen(
                [program, "-k", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
                 "--listen-address=127.0.0.1", "--bind-interfaces", "--pid-file=",
                 "--local=/test/", f"--port={port}", *options],
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.terminate)

            def answers() -> bool:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    return True
                return False

            deadline = time.monotonic() + 30
            while not answers():
                assert time.monotonic() < deadline
            return port

        yield run


def listener(address: str, port: int) -> str:
    return f'[[listeners]]\nname = "smtp"\naddress = "{address}:{port}"\ntls = "none"\n'


MAILBOX = """
[[plugins]]
use = "mailboxes"
name = "more"
domains = ["there.test"]
"""


def test_the_backup_takes_mail_while_the_primary_is_down(
    sender: Callable[..., Running], receiver: Callable[..., Running], dns: Callable[..., int]
) -> None:
    port = free_port()
    server = dns(
        *("--mx-host=there.test,one.test,10", "--mx-host=there.test,two.test,20"),
        *("--host-record=one.test,127.0.0.2", "--host-record=two.test,127.0.0.3"),
    )
    backup = receiver("backup", listener("127.0.0.3", port), MAILBOX)
    here = sender(out(port, server))
    send(here, "<bob@there.test>")
    backup.wait_until(lambda: backup.mail("bob"))
    backup.wait_for_log(" session closed ")  # before, the next message may use it too
    primary = receiver("primary", listener("127.0.0.2", port), MAILBOX)
    send(here, "<carol@there.test>")
    primary.wait_until(lambda: primary.mail("carol"))
    assert backup.mail("carol") == []


@pytest.mark.parametrize(
    "replies",
    [
        {b"CONNECT": b"554 5.3.2 no mail here\r\n"},
        {b"MAIL": b"451 4.7.1 greylisted\r\n"},
        {b"RCPT": b"450 4.2.0 busy\r\n"},
        {b".": b"452 4.3.1 no space\r\n"},
    ],
    ids=lambda replies: next(iter(replies)).decode(),
)
def test_the_backup_takes_mail_that_the_primary_puts_off(
    sender: Callable[..., Running],
    receiver: Callable[..., Running],
    dns: Callable[..., int],
    replies: dict[bytes, bytes],
) -> None:
    port = free_port()
    server = dns(
        *("--mx-host=there.test,one.test,10", "--mx-host=there.test,two.test,20"),
        *("--host-record=one.test,127.0.0.2", "--host-record=two.test,127.0.0.3"),
    )
    primary = Host(PLAIN, replies, ("127.0.0.2", port))
    backup = receiver("backup", listener("127.0.0.3", port), MAILBOX)
    here = sender(out(port, server, retry="1h"))
    send(here, "<bob@there.test>")
    backup.wait_until(lambda: backup.mail("bob"))
    said = re.escape(next(iter(replies.values())).decode().strip())
    here.wait_for_log(rf' another host tried .*host="?one\.test.* recipients=1 reply="{said}"')
    here.wait_for_log(r" delivery delivered .*host=two\.test ")
    here.wait_until(lambda: here.metric("delivery_next_hosts_total") == 1)
    primary.listening.close()


def test_a_domain_without_mx_is_its_own_host(
    sender: Callable[..., Running], receiver: Callable[..., Running], dns: Callable[..., int]
) -> None:
    port = free_port()
    server = dns("--host-record=there.test,127.0.0.2")
    there = receiver("there", listener("127.0.0.2", port), MAILBOX)
    here = sender(out(port, server))
    send(here, "<bob@there.test>")
    there.wait_until(lambda: there.mail("bob"))


def test_another_server_may_have_the_same_port_of_another_address(
    receiver: Callable[..., Running],
    dns: Callable[..., int],
    configure: Configure,
    start: Start,
) -> None:
    port = free_port()
    server = dns("--host-record=there.test,127.0.0.2")
    there = receiver("there", listener("127.0.0.2", port), MAILBOX)
    here = start(configure(RELAY, out(port, server), listeners=listener("127.0.0.1", port)))
    send(here, "<bob@there.test>")
    there.wait_until(lambda: there.mail("bob"))


@pytest.mark.parametrize(
    ("domain", "outcome"),
    [
        ("nowhere.test", r"failed .*550 5\.1\.2 domain nowhere\.test does not exist"),
        ("null.test", r"failed .*556 5\.1\.10 domain null\.test accepts no mail"),
        ("dangling.test", r"failed .*550 5\.4\.4 host gone\.test has no address"),
        ("loop.test", r"failed .*550 5\.4\.6 mail for loop\.test loops back"),
    ],
)
def test_what_the_dns_says_decides(
    sender: Callable[..., Running], dns: Callable[..., int], domain: str, outcome: str
) -> None:
    server = dns(
        "--mx-host=null.test,.,0",
        "--mx-host=dangling.test,gone.test,10",
        "--mx-host=loop.test,mx.example.org,10",
        "--mx-host=loop.test,gone.test,20",
    )
    here = sender(out(25, server))
    send(here, f"<bob@{domain}>")
    here.wait_for_log(f" delivery {outcome}")


def test_a_dns_that_is_away_is_no_reason_to_give_up(sender: Callable[..., Running]) -> None:
    here = sender(out(25, free_port()) + "mta_sts = false\n")  # which would send a query too
    send(here, "<bob@there.test>")
    here.wait_for_log(r" delivery deferred .*451 4\.4\.3 the DNS does not answer")


# The operator


def test_the_operator_sees_and_steers_the_queue(
    sender: Callable[..., Running], receiver: Callable[..., Running]
) -> None:
    port = free_port()
    here = sender(out(retry="1h"), route("example.net", f"127.0.0.1:{port}"))
    assert queue(here, "list") == "0 the queue is empty"
    send(here, "<bob@example.net>")
    here.wait_until(lambda: "cannot connect" in queue(here, "list"))
    [message] = waiting(here)
    name = str(message["id"])
    assert message["sender"] == "me@example.org"
    assert "cannot connect" in queue(here, "list")
    shown = queue(here, "show", name)
    assert "  subject    hello\n" in shown
    assert "    attempts   1, the last " in shown
    assert "    next       in " in shown
    assert "which could not be reached: 451 4.4.1 cannot connect" in shown
    assert queue(here, "hold", "--to-domain", "example.net") == "0 1 recipient held"
    assert queue(here, "list", "--state", "deferred") == "0 nothing in the queue fits"
    here.wait_until(lambda: here.metric("queue_messages", state="held") == 1)
    there = receiver("receiver", listener("127.0.0.1", port))
    assert queue(here, "retry", name) == "0 0 recipients tried now"
    assert queue(here, "release", name) == "0 1 recipient released"
    there.wait_until(lambda: there.mail("bob"))
    here.wait_until(lambda: queue(here, "list") == "0 the queue is empty")


def test_list_and_metrics_count_the_queue_alike(sender: Callable[..., Running]) -> None:
    dead, silent = (route(name, f"127.0.0.1:{free_port()}") for name in ("a.test", "b.test"))
    here = sender(out(retry="1h"), dead, silent)
    for recipients in (["x@a.test"], ["y@a.test", "x@b.test"], ["z@b.test"], ["v@a.test"]):
        send(here, *(f"<{each}>" for each in recipients))
    here.wait_until(lambda: here.metric("queue_messages", state="deferred") == 4)
    assert queue(here, "list").endswith("4 messages: 4 deferred; 5 recipients")
    queue(here, "hold", "--to-domain", "b.test")
    here.wait_until(lambda: here.metric("queue_messages", state="held") == 1)
    assert queue(here, "list").endswith("4 messages: 3 deferred, 1 held; 5 recipients")
    metrics = {each: here.metric("queue_messages", state=each) for each in ("queued", "deferred")}
    assert metrics == {"queued": 0, "deferred": 3}


def test_the_operator_returns_and_removes_messages(sender: Callable[..., Running]) -> None:
    here = sender(out(retry="1h"), route("example.net", f"127.0.0.1:{free_port()}"))
    for local in ("bob", "carol"):
        send(here, f"<{local}@example.net>")
    here.wait_for_log(" delivery deferred .*bob")
    names = {each["recipients"][0]["address"]: each["id"] for each in waiting(here)}  # type: ignore[index]
    assert queue(here, "remove", str(names["carol@example.net"])) == "0 1 recipient removed"
    assert queue(here, "bounce", "--to-domain", "example.net") == "0 1 recipient returned"
    fields = report(here)
    assert fields["Final-Recipient"] == "rfc822; bob@example.net"
    assert "returned by the postmaster" in fields["Diagnostic-Code"]
    here.wait_until(lambda: not list((here.directory / "state/spool/queue").iterdir()))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("remove",), "2 minismtp: queue remove: expected IDs, a filter such as"),
        (("show",), "2 minismtp: queue show: expected the ID of a message"),
        (
            ("list", "--older-than", "soon"),
            "2 minismtp: queue: argument --older-than: expected a duration",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(
    configure: Configure, arguments: tuple[str, ...], said: str
) -> None:
    assert queue_of(configure(), *arguments).startswith(said)


# Plugins


def test_plugins_choose_the_way_and_edit_what_leaves(
    configure: Configure, receiver: Callable[..., Running], start: Start
) -> None:
    there = receiver()
    host, _, port = there.address("smtp").partition(":")
    path = configure(RELAY, out(), '[[plugins]]\nuse = "way"\n')
    (path.parent / "local_plugins" / "way.py").write_text(
        "from minismtp import Destination, hookimpl, plugin\n\n\n"
        "@plugin\nclass Way:\n"
        "    @hookimpl\n    def destination(self, delivery):\n"
        f"        return Destination({host!r}, {port})\n\n"
        "    @hookimpl\n    def on_send(self, delivery, message):\n"
        "        message.prepend('X-Domain', delivery.domain)\n"
    )
    send(start(path), "<bob@example.net>")
    [stored] = there.wait_until(lambda: there.mail("bob"))
    assert b"\r\nX-Domain: example.net\r\n" in stored


# Pieces


@given(st.lists(st.sampled_from([b".", b"\r\n", b"\n", b"\r", b"a", b".."])), st.integers(1, 9))
def test_content_for_data_is_what_the_other_side_reads(pieces: list[bytes], size: int) -> None:
    content = b"".join(pieces)
    wire = b"".join(dotted(io.BytesIO(content), size))
    assert wire.endswith(b".\r\n")
    # A bare CR does not end a line, as in `Headers`, so the host sees the same fields as filters.
    wanted = content.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"?")
    wanted = wanted.replace(b"\n", b"\r\n")
    if content and not content.endswith(b"\n"):
        wanted += b"\r\n"
    lines = wire.split(b"\r\n")
    assert lines[-2:] == [b".", b""]
    assert b"".join(line.removeprefix(b".") + b"\r\n" for line in lines[:-2]) == wanted
    assert b"." not in lines[:-2]


def test_small_content_goes_out_together_with_its_end() -> None:
    assert [*dotted(io.BytesIO(b".a\r\n.b"))] == [b"..a\r\n..b\r\n.\r\n"]
