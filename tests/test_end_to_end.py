"""The whole server with its users: mail programs, people at a terminal, plugins in files."""

from __future__ import annotations

import os
import re
import shlex
import signal
import smtplib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from snippets import MAILBOXES, SPAM_FLAG, listener

from minismtp.config import DEFAULT_FILE

if TYPE_CHECKING:
    from conftest import Configure, Launch, Running, Start, TlsFiles

    Require = Callable[[str], str]

DEADLINE: Final = 60.0  # seconds; only a failing test waits this long
SENDER: Final = "sender@client.example"
# Complete mail, so that submission adds nothing, with content that is easily changed.
CONTENT: Final = (
    b"Date: Fri, 21 Nov 1997 09:55:06 -0600\r\n"
    b"Message-ID: <1234@client.example>\r\n"
    b"From: <sender@client.example>\r\n"
    b"Subject: =?UTF-8?Q?Gr=C3=BC=C3=9Fe?=\r\n"
    b"\r\n"
    b".\r\n"
    b"..\r\n"
    b".one dot, blanks at the end \t\r\n"
    b"\r\n"
    b"8-bit: \xc3\xa4 in UTF-8, \xe4 in Latin-1, \xff nowhere\r\n"
    b"From here on nothing is quoted\r\n"
    b"\r\n"
)


def run(*command: str | Path, text: bytes = b"") -> str:
    """Run a program to its end with `text` on its standard input, and return its output."""
    done = subprocess.run(
        command,
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=DEADLINE,
        check=False,
    )
    said = done.stdout.decode(errors="replace")
    assert done.returncode == 0, said
    return said


@pytest.fixture
def mail_file(tmp_path: Path) -> Path:
    """Write the content for swaks, which adds a final line end."""
    path = tmp_path / "mail.eml"
    path.write_bytes(CONTENT.removesuffix(b"\r\n"))
    return path


def transport(message: bytes) -> str:
    """Return the protocol that the trace field names (RFC 3848)."""
    found = re.search(rb"\r\n\tby \S+(?:\s\([^)]*\))?\s+with (\w+)", message)
    assert found is not None, message
    return found[1].decode()


# smtplib


def test_smtplib_delivers_to_several_recipients_byte_for_byte(server: Running) -> None:
    recipients = [f"smtplib-{number}@example.org" for number in range(3)]
    with smtplib.SMTP("127.0.0.1", server.port(), timeout=DEADLINE) as client:
        assert client.sendmail(SENDER, recipients, CONTENT) == {}
    for number, recipient in enumerate(recipients):
        assert server.stored(f"smtplib-{number}") == CONTENT
        [message] = server.mail(f"smtplib-{number}")
        assert f"\r\nDelivered-To: {recipient}\r\n".encode() in message


def test_recipient_that_nobody_routes_is_refused_alone(server: Running) -> None:
    recipients = ["stranger@elsewhere.example", "routed@example.org"]
    with smtplib.SMTP("127.0.0.1", server.port(), timeout=DEADLINE) as client:
        refused = client.sendmail(SENDER, recipients, CONTENT)
    [(stranger, (code, text))] = refused.items()
    assert (stranger, code) == ("stranger@elsewhere.example", 550)
    assert text.startswith(b"5.7.1 relaying denied (id ")
    assert server.stored("routed") == CONTENT


@pytest.mark.parametrize("mechanism", ["plain", "login"])
def test_smtplib_submits_over_starttls(
    server: Running, tls_files: TlsFiles, mechanism: str
) -> None:
    with smtplib.SMTP("127.0.0.1", server.port("submission"), timeout=DEADLINE) as client:
        client.starttls(context=tls_files.client())
        client.ehlo()
        client.user, client.password = "alice", "secret"
        code, _ = client.auth(mechanism.upper(), getattr(client, f"auth_{mechanism}"))
        assert code == 235
        client.sendmail(SENDER, [f"starttls-{mechanism}@example.org"], CONTENT)
    assert server.stored(f"starttls-{mechanism}") == CONTENT
    [message] = server.mail(f"starttls-{mechanism}")
    assert transport(message) == "ESMTPSA"


def test_smtplib_submits_over_implicit_tls(server: Running, tls_files: TlsFiles) -> None:
    port, context = server.port("submissions"), tls_files.client()
    with smtplib.SMTP_SSL("127.0.0.1", port, timeout=DEADLINE, context=context) as client:
        client.login("alice", "secret")
        client.sendmail(SENDER, ["implicit@example.org"], CONTENT)
    assert server.stored("implicit") == CONTENT


def test_smtplib_is_not_let_in_with_a_wrong_password(server: Running, tls_files: TlsFiles) -> None:
    port, context = server.port("submissions"), tls_files.client()
    with smtplib.SMTP_SSL("127.0.0.1", port, timeout=DEADLINE, context=context) as client:
        with pytest.raises(smtplib.SMTPAuthenticationError) as refusal:
            client.login("alice", "guess")
        with pytest.raises(smtplib.SMTPSenderRefused, match="authentication required"):
            client.sendmail(SENDER, ["guess@example.org"], CONTENT)
    assert refusal.value.smtp_code == 535
    assert server.mail("guess") == []


# Programs


def test_curl_uploads_a_large_file_byte_for_byte(
    server: Running, tmp_path: Path, require_program: Require
) -> None:
    curl = require_program("curl")
    # Dots at many places of many buffers; larger than the part that is kept in memory.
    lines = (b"." * (number % 5) + bytes([number % 256]) * 70 for number in range(20_000))
    body = b"".join(re.sub(rb"[\r\n\0]", b"x", line) + b"\r\n" for line in lines)
    path = tmp_path / "large.eml"
    path.write_bytes(CONTENT + body)
    url = f"smtp://127.0.0.1:{server.port()}/client.example"
    sender, recipient = ("--mail-from", SENDER), ("--mail-rcpt", "curl@example.org")
    run(curl, "--silent", "--show-error", "--url", url, *sender, *recipient, "--upload-file", path)
    assert server.stored("curl") == CONTENT + body


LMTP: Final = ('kind = "lmtp"', 'tls = "none"')


@pytest.fixture(scope="module")
def lmtp(launch: Launch) -> Iterator[Running]:
    """Run a server with LMTP on a unix socket and on TCP."""
    listeners = listener("local", *LMTP, address="unix:lmtp.sock") + listener("tcp", *LMTP)
    with launch(listeners=listeners) as server:
        yield server


@pytest.mark.parametrize(
    ("listener", "options"),
    [
        ("submission", ["--tls", "--auth", "PLAIN"]),
        ("submission", ["--tls", "--auth", "LOGIN"]),
        ("submissions", ["--tls-on-connect", "--auth", "PLAIN"]),
    ],
    ids=["starttls-plain", "starttls-login", "implicit-plain"],
)
def test_swaks_submits(
    server: Running,
    mail_file: Path,
    require_program: Require,
    listener: str,
    options: list[str],
) -> None:
    swaks = require_program("swaks")
    local = f"swaks{''.join(options)}".lower()
    run(
        *(swaks, "--server", f"127.0.0.1:{server.port(listener)}", *options),
        *("--auth-user", "alice", "--auth-password", "secret", "--helo", "client.example"),
        *("--from", SENDER, "--to", f"{local}@example.org", "--data", f"@{mail_file}"),
    )
    assert server.stored(local) == CONTENT
    assert transport(server.mail(local)[0]) == "ESMTPSA"


@pytest.mark.parametrize("listener", ["local", "tcp"])
def test_swaks_delivers_over_lmtp(
    lmtp: Running, mail_file: Path, require_program: Require, listener: str
) -> None:
    swaks = require_program("swaks")
    address = lmtp.address(listener)
    where = (
        ("--socket", address.removeprefix("unix:"))
        if address.startswith("unix:")
        else ("--server", address)
    )
    users = [f"lmtp-{listener}-{number}" for number in range(2)]
    recipients = ",".join(f"{user}@example.org" for user in users)
    said = run(
        *(swaks, "--protocol", "LMTP", *where, "--helo", "client.example"),
        *("--from", SENDER, "--to", recipients, "--data", f"@{mail_file}"),
    )
    # RFC 2033 section 4.2: the content has a reply for each recipient.
    assert said.count("250 2.0.0 message accepted") == 2
    assert [lmtp.stored(user) for user in users] == [CONTENT, CONTENT]
    assert transport(lmtp.mail(users[0])[0]) == "LMTP"


def dotted(content: bytes) -> bytes:
    """Return content as it goes over the wire (RFC 5321 section 4.5.2)."""
    return re.sub(rb"(?m)^\.", b"..", content) + b".\r\n"


def test_openssl_speaks_through_starttls(
    server: Running, tls_files: TlsFiles, require_program: Require
) -> None:
    openssl = require_program("openssl")
    dialogue = b"EHLO client.example\r\nMAIL FROM:<>\r\nRCPT TO:<openssl@example.org>\r\nDATA\r\n"
    said = run(
        *(openssl, "s_client", "-quiet", "-starttls", "smtp"),
        *("-connect", f"127.0.0.1:{server.port()}", "-servername", "mx.example.org"),
        *("-CAfile", tls_files.authority, "-verify_hostname", "mx.example.org"),
        "-verify_return_error",
        text=dialogue + dotted(CONTENT) + b"QUIT\r\n",
    )
    assert "221 2.0.0 mx.example.org closing connection" in said
    assert server.stored("openssl") == CONTENT
    assert transport(server.mail("openssl")[0]) == "ESMTPS"


@pytest.mark.parametrize(
    ("listener", "starttls"), [("submission", "on"), ("submissions", "off")], ids=["587", "465"]
)
def test_msmtp_submits(
    server: Running, tls_files: TlsFiles, require_program: Require, listener: str, starttls: str
) -> None:
    msmtp = require_program("msmtp")
    run(
        *(msmtp, "--host=127.0.0.1", f"--port={server.port(listener)}", f"--from={SENDER}"),
        *("--tls=on", f"--tls-starttls={starttls}", f"--tls-trust-file={tls_files.authority}"),
        *("--auth=plain", "--user=alice", "--passwordeval=echo secret", "--domain=client.example"),
        f"msmtp-{listener}@example.org",
        text=CONTENT.replace(b"\r\n", b"\n"),
    )
    assert server.stored(f"msmtp-{listener}") == CONTENT


# People, and attacks that must fail


def test_dialogue_of_the_rfc_typed_by_hand(configure: Configure, start: Start) -> None:
    # RFC 5321 appendix D.1, with HELO, an octet at a time.
    listeners = '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\ntls = "none"\n'
    plugins = """
[[plugins]]
use = "mailboxes"
domains = ["foo.com"]
users = ["Jones", "Brown"]

[[plugins]]
use = "maildir"
path = "mail/{local}"
"""
    server = start(configure(listeners=listeners, plugins=plugins))
    script = [
        ("HELO bar.com\r\n", "250 mx.example.org"),
        ("MAIL FROM:<Smith@bar.com>\r\n", "250 2.1.0 sender ok"),
        ("RCPT TO:<Jones@foo.com>\r\n", "250 2.1.5 recipient ok"),
        ("RCPT TO:<Green@foo.com>\r\n", "550 5.1.1 no such mailbox"),
        ("RCPT TO:<Brown@foo.com>\r\n", "250 2.1.5 recipient ok"),
        ("DATA\r\n", "354 end data with <CR><LF>.<CR><LF>"),
        ("Blah blah blah...\r\n...etc. etc. etc.\r\n.\r\n", "250 2.0.0 message accepted as "),
        ("QUIT\r\n", "221 2.0.0 mx.example.org closing connection"),
    ]
    with server.connect() as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert client.reply().startswith("220 mx.example.org ")
        for text, reply in script:
            for octet in text:
                client.send(octet)
                time.sleep(0.002)  # this makes it a separate packet
            assert client.reply().startswith(reply)
        assert client.rest() == ""
    for user in ("jones", "brown"):
        assert server.stored(user) == b"\r\nBlah blah blah...\r\n..etc. etc. etc.\r\n"
        assert server.mail(user)[0].startswith(b"Return-Path: <Smith@bar.com>\r\n")
    assert server.mail("green") == []


def test_plaintext_injected_behind_starttls_ends_the_session(server: Running) -> None:
    # RFC 3207 section 4.2 and CVE-2011-0411: input in clear must not count inside TLS.
    with server.connect() as client:
        client.greet()
        client.send("STARTTLS\r\nEHLO x\r\n")
        assert re.fullmatch(r"421 4\.7\.0 [^\r\n]+\r\n", client.rest())


def test_auth_is_offered_only_inside_tls(server: Running, tls_files: TlsFiles) -> None:
    with server.connect("submission") as client:
        clear = client.greet().splitlines()
        assert [line for line in clear if "AUTH" in line] == []
        assert client.command("AUTH PLAIN AGFsaWNlAHNlY3JldA==").startswith("538 5.7.11 ")
        client.command("STARTTLS")
        client.secure(tls_files.client())
        assert re.search(r"^250.AUTH .*\bPLAIN\b", client.command("EHLO x.example"), re.MULTILINE)


def test_submission_without_login_is_refused(server: Running, tls_files: TlsFiles) -> None:
    with server.connect("submissions") as client:
        client.secure(tls_files.client())
        client.greet()
        # RFC 4954 section 6.
        reply = client.command(f"MAIL FROM:<{SENDER}>")
        assert reply.startswith("530 5.7.0 authentication required (id ")


# Plugins in files, with the policies of their tables

BROKEN: Final = SPAM_FLAG.replace(".upper()", ".uper()")
SPAM: Final = b"X-Spam-Flag: yes\r\n" + CONTENT


class Filtered:
    """A server with a plugin from a file of its own, `spam_flag`."""

    def __init__(self, configure: Configure, start: Start) -> None:
        self._configure = configure
        self._start = start

    def __call__(self, source: str, keys: str = "") -> Running:
        """Start it with further keys in the plugin's table."""
        config = self._configure(plugins=f'{MAILBOXES}[[plugins]]\nuse = "spam_flag"\n{keys}\n')
        (config.parent / "local_plugins" / "spam_flag.py").write_text(source)
        return self._start(config)


@pytest.fixture
def filtered(configure: Configure, start: Start) -> Filtered:
    return Filtered(configure, start)


def reply_to(server: Running, content: bytes) -> str:
    with server.connect() as client:
        client.begin_data("me@example.org")
        client.send(dotted(content))
        return client.reply()


def test_plugin_in_a_file_refuses_spam_and_nothing_else(filtered: Filtered) -> None:
    server = filtered(SPAM_FLAG)
    assert reply_to(server, SPAM).startswith("550 5.7.1 message refused as spam (id ")
    assert server.mail("me") == []
    assert reply_to(server, CONTENT).startswith("250 ")
    assert server.stored("me") == CONTENT


def test_plugin_in_shadow_mode_only_counts(filtered: Filtered) -> None:
    server = filtered(SPAM_FLAG, 'mode = "shadow"')
    assert reply_to(server, SPAM).startswith("250 ")
    assert server.stored("me") == SPAM
    labels = {"plugin": "spam_flag", "hook": "on_message", "verdict": "reject"}
    server.wait_until(lambda: server.metric("shadow_verdicts_total", **labels) == 1)


def test_broken_plugin_defers_mail_and_leaves_its_traceback(filtered: Filtered) -> None:
    server = filtered(BROKEN)
    assert reply_to(server, SPAM).startswith("451 4.3.0 temporary failure, try again later (")
    assert server.mail("me") == []
    server.wait_until(lambda: server.metric("hook_errors_total", plugin="spam_flag") == 1)
    session = server.wait_for_log(r"session closed session=(\S+)")[1]
    [line] = [line for line in server.log.splitlines() if " plugin failed " in line]
    assert f" session={session} " in line
    assert re.search(r'traceback="Traceback .*spam_flag\.py.*\.uper\(\).*AttributeError', line)


def test_broken_plugin_that_may_fail_lets_mail_through(filtered: Filtered) -> None:
    server = filtered(BROKEN, 'on_error = "ignore"')
    assert reply_to(server, SPAM).startswith("250 ")
    assert server.stored("me") == SPAM
    server.wait_until(lambda: server.metric("hook_errors_total", plugin="spam_flag") == 1)


def test_promtool_has_nothing_to_say_after_traffic(
    filtered: Filtered, require_program: Require
) -> None:
    promtool = require_program("promtool")
    server = filtered(SPAM_FLAG)
    reply_to(server, SPAM)
    reply_to(server, CONTENT)
    server.wait_until(lambda: server.metric("messages_total") == 2)
    metrics = server.http("/metrics")[1]
    assert run(promtool, "check", "metrics", text=metrics.encode()) == ""


# Without any configuration


class ByItself:
    """A server without a configuration file, in an empty directory and its own network."""

    def __init__(self, directory: Path, unshare: str, ip: str) -> None:
        self.directory = directory
        self.output = directory.parent / "output"
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("MINISMTP_CONFIG", "STATE_DIRECTORY", "RUNTIME_DIRECTORY")
        }
        serve = shlex.join([sys.executable, "-m", "minismtp", "serve"])
        script = f"{shlex.quote(ip)} link set lo up && exec {serve}"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [unshare, "--net", "--map-root-user", "sh", "-c", script],
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def wait_for(self, pattern: str) -> str:
        """Wait until a regular expression is in its output, and return the output."""
        deadline = time.monotonic() + DEADLINE
        while not re.search(pattern, said := self.output.read_text()):
            assert time.monotonic() < deadline, said
            assert self.process.poll() is None, said
            time.sleep(0.01)
        return said

    def kill(self) -> None:
        """End it with all its processes."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(DEADLINE)


@pytest.fixture
def by_itself(tmp_path: Path, require_program: Require) -> Iterator[ByItself]:
    if DEFAULT_FILE.exists():
        pytest.skip(f"{DEFAULT_FILE} would be read")
    directory = tmp_path / "empty"
    directory.mkdir()
    server = ByItself(directory, require_program("unshare"), require_program("ip"))
    yield server
    server.kill()


def test_first_mail_is_stored_without_any_configuration(
    by_itself: ByItself, require_program: Require
) -> None:
    require_program("curl")
    said = by_itself.wait_for(r" listening listener=smtp address=127\.0\.0\.1:2525 ")
    [suggestion] = [line for line in said.splitlines() if "curl" in line]
    enter = ("--target", str(by_itself.process.pid), "--net", "--user", "--preserve-credentials")
    run(require_program("nsenter"), *enter, "sh", "-c", suggestion)
    [path] = (by_itself.directory / "minismtp-state" / "mail" / "me" / "new").iterdir()
    assert path.read_bytes().endswith(b"\r\nSubject: Hello\r\n\r\nIt works.\r\n")
    assert path.read_bytes().startswith(b"Return-Path: <me@example.org>\r\n")
