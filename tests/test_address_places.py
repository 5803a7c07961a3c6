"""Each place that reads an address accepts what MAIL and RCPT accept; names are recorded."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import closing
from email import message_from_bytes, policy
from pathlib import Path
from typing import Final

import pytest
from fakes import Names, serving
from minismtp_plugins import _milter
from minismtp_plugins._directory import read_aliases
from minismtp_plugins._maildir_paths import Template
from minismtp_plugins._srs import Srs
from minismtp_plugins.authentication_results import AuthenticationResults
from minismtp_plugins.dnsbl import Dnsbl, DnsList
from minismtp_plugins.helo import HeloChecks
from minismtp_plugins.lmtp import Lmtp
from minismtp_plugins.mailboxes import Mailboxes
from minismtp_plugins.maildir import Maildir
from minismtp_plugins.relay import Relaying
from minismtp_plugins.spf import Spf
from msgspec.structs import replace
from scripted import Script

from minismtp import Address, Envelope, Message, Recipient, Relay, hookimpl, plugin
from minismtp.cli.dry_run import DryRun, ExampleClient
from minismtp.cli.selection import comparable
from minismtp.cli.stored_mail import envelope_of
from minismtp.config import Config
from minismtp.config.toml_values import build
from minismtp.mail.address_list import mailboxes_of
from minismtp.mail.content import Content
from minismtp.mail.dsn import Report, notification
from minismtp.mail.queue_entry import QueuedRecipient, QueueEntry
from minismtp.mailqueue.database import Arrival, Batch, QueueDatabase
from minismtp.mailqueue.queries import Filter
from minismtp.mailqueue.recipient import RecipientStatus
from minismtp.runtime.log import Log
from minismtp.services.smtp_extensions import Extensions
from minismtp.session.xclient import apply_xclient
from minismtp.smtp.commands import CommandProblem, Mail, Rcpt, parse
from minismtp.storage.spool import Spool
from minismtp.testing import Dialogue, Mailroom

LOCALS: Final = {
    "dot-string": "anna.bob",
    "dots": "anna..bob.",
    "dot-first": ".anna",
    "one-dot": ".",
    "path": "../../etc/passwd",
    "blank": "a b",
    "at": "a@b",
    "comma": "a,b",
    "colon": "mailto:a",
    "quote-and-backslash": 'a"\\b',
    "bracket": "a>b<",
    "percent": "a%b.example",
    "bang": "b.example!a",
    "slash": "/o=org/cn=a",
    "hash": "#a#b",
    "utf-8": "jürgen..",
    "verp": "bounces+1234567-ab12-name=customer.example.com",
    "exchange": "imceaex-_o=first+20organization_ou=exchange+20administrative+20group_cn=anna" * 2,
    "320-octets": "a" * 320,
    "512-octets": "é" * 256,
}
OURS: Final = "example.org"
THEIRS: Final = "my_host.example.net"
_NAME: Final = "m.1"


def entry(sender: str, *recipients: str) -> QueueEntry:
    targets = tuple(
        QueuedRecipient(kind="relay", address=each, recipient=each) for each in recipients
    )
    return QueueEntry(
        id=_NAME, sender=sender, listener="", peer="192.0.2.1", helo="x", login=None, arrived=1.0,
        targets=targets, smtputf8=True,
    )  # fmt: skip


def message() -> Message:
    return Message(_NAME, Content.of(b"Subject: x\r\n\r\nhello\r\n"))


@plugin
class Looking:
    """Keeps the envelope."""

    envelope: Envelope | None = None

    @hookimpl
    def on_data(self, envelope: Envelope) -> None:
        self.envelope = envelope


def conversation(dialogue: Dialogue, looking: Looking, *lines: str) -> Envelope:
    """Send lines that are all accepted."""
    for line in ("EHLO x", *lines, "DATA"):
        assert dialogue.send(line)[:1] in {"2", "3"}
    assert looking.envelope is not None
    return looking.envelope


def in_mail(line: str) -> str:
    command = parse(f"{line} SMTPUTF8".encode())
    assert isinstance(command, Mail)
    return str(command.reverse_path)


def in_rcpt(line: str) -> str:
    try:
        command = parse(line.encode())
    except CommandProblem as problem:
        return str(problem.reply)
    assert isinstance(command, Rcpt)
    return str(command.forward_path)


def of_configuration(address: str, directory: Path) -> str:
    @plugin
    class Named:
        who: Address

    return str(build(Named, {"who": address}, file="", key="", base=directory).who)


def of_alias(address: str, directory: Path) -> str:
    path = directory / "aliases"
    path.write_text(f"all: first, {_quoted(address)}@{THEIRS} , last\n")
    local, domain = read_aliases(path, [OURS])["all"][1]
    return str(Address(local, domain))


def of_alias_of_ours(address: str, directory: Path) -> str:
    """The same local part at a local domain is an alias for it."""
    path = directory / "aliases"
    path.write_text(f"{_quoted(address)}@{OURS}: {_quoted(address)}@{THEIRS}\n")
    mailboxes = Mailboxes(domains=[OURS], users=["nobody"], aliases_file=path)
    recipient = Recipient(Address(Address.parse(address).local, OURS))
    relay = mailboxes.route(
        session=Dialogue().session, envelope=entry("").envelope(), recipient=recipient
    )
    assert isinstance(relay, Relay)
    return str(relay.addresses[0])


def _quoted(address: str) -> str:
    """Return the local part as a quoted string, even if it needs no quotes."""
    escaped = Address.parse(address).local.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def of_queue(address: str, directory: Path) -> str:
    spool = Spool(directory)
    spool.prepare()
    spool.add(entry(address, address), message())
    found, _ = spool.open(_NAME)
    envelope = found.envelope()
    assert str(envelope.reverse_path) == str(envelope.recipients[0].address)
    return envelope.sender


def of_queue_command(address: str, directory: Path) -> str:
    with closing(QueueDatabase(directory / "queue.db")) as database:
        arrivals = {
            "m1": Arrival("m1", str(Address.parse(address)), 1.0, 1),
            "m2": Arrival("m2", "other@example.net", 1.0, 1),
        }
        statuses = {name: {0: RecipientStatus(name, 0, "x@b.test", "b.test")} for name in arrivals}
        database.write(Batch(arrivals, statuses))
        [row] = database.select(Filter(sender=address), 2.0)
        return address if row.message == "m1" else ""


_HOST: Final = Extensions("mx", {"SMTPUTF8": "", "8BITMIME": ""})


def of_next_host_as_sender(address: str, _: Path) -> str:
    return in_mail(_HOST.mail(entry(address, address), message()).removesuffix(" SMTPUTF8"))


def of_next_host(address: str, _: Path) -> str:
    return in_rcpt(_HOST.rcpt(entry("", address).targets[0].address))


def of_lmtp_and_forward(address: str, _: Path) -> str:
    script, mailbox = Script(keywords="8BITMIME,SMTPUTF8"), Address.parse(address)
    with serving(script) as server:
        assert Lmtp(address=server).deliver(
            entry("", "u@example.org").envelope(), message(), mailbox
        )
    [command] = [line for line in script.heard if line.startswith("RCPT")]
    return in_rcpt(command)


def of_milter(address: str, _: Path) -> str:
    return str(_milter.read_address(f"<{address}>\0".encode()))


def of_from_field(address: str, _: Path) -> str:
    [author] = mailboxes_of(f"Anna <{address}>")
    return str(author)


def of_stored_message(address: str, directory: Path) -> str:
    """`replay` takes the envelope from the fields of final delivery."""
    store = Maildir(path=directory / "{domain}" / "{local}")
    mailbox = Address.parse(address)
    envelope = Envelope(
        id=_NAME, reverse_path=mailbox, listener="", peer="192.0.2.1", helo="x", login=None,
        arrived=1.0,
    )  # fmt: skip
    assert store.deliver(envelope=envelope, message=message(), mailbox=mailbox)
    [path] = directory.glob("*/*/new/*")
    with path.open("rb") as stored:
        client = envelope_of(stored, "mx.example.org")
    assert client.recipients == (client.sender,)
    return client.sender


def of_notification(address: str, _: Path) -> str:
    told = notification(
        entry(address, address), message(), "failed",
        [Report(entry("", address).targets[0], "550 5.1.1 no")],
        hostname="mx.example.org", now=2.0, until=3.0,
    )  # fmt: skip
    assert told is not None
    notice, content = told
    with content.open() as reader:
        report = message_from_bytes(reader.read(), policy=policy.SMTPUTF8)
    assert report.get_content_type() == "multipart/report"
    return notice.targets[0].address


def of_submission(address: str, directory: Path) -> str:
    """A user who logged in as an address may send from it."""
    looking = Looking()
    dialogue = Dialogue(
        looking, Mailroom(), kind="submission", login=address, tls=True, spool=directory
    )
    lines = (f"MAIL FROM:<{address}> SMTPUTF8", f"RCPT TO:<{address}>")
    return conversation(dialogue, looking, *lines).sender


def of_rehearsal(address: str, directory: Path) -> str:
    """`try` and `replay` pass it to the filters."""
    listeners = [{"name": "smtp", "address": "127.0.0.1:0", "tls": "none"}]
    table = {"listeners": listeners, "state_directory": str(directory)}
    config = build(Config, table, file="", key="", base=directory)
    dry_run = DryRun(config, [], Log(level="error"))
    try:
        result = dry_run.run(
            ExampleClient(sender=address, recipients=(address,)),
            io.BytesIO(b"Subject: x\r\n\r\nx\r\n"),
        )
    finally:
        dry_run.close()
    assert result.envelope is not None, result
    assert result.accepted
    assert result.envelope.sender == str(result.envelope.recipients[0].address)
    return result.envelope.sender


PLACES: Final[list[Callable[[str, Path], str]]] = [
    of_configuration,
    of_alias,
    of_alias_of_ours,
    of_queue,
    of_queue_command,
    of_next_host,
    of_next_host_as_sender,
    of_lmtp_and_forward,
    of_milter,
    of_from_field,
    of_stored_message,
    of_notification,
    of_submission,
    of_rehearsal,
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("local", LOCALS.values(), ids=LOCALS.keys())
def test_address_is_taken_by_each_place_that_reads_one(
    local: str, place: Callable[[str, Path], str], tmp_path: Path
) -> None:
    address = str(Address(local, THEIRS))
    assert place(address, tmp_path) == address


# Names in EHLO

NAMES: Final = [
    "localhost.(none)",
    "[IPv6:fe80::1%en0]",
    "Anna's PC",
    "Anna's PC.home",
    "HP LaserJet 4/4M.lan",
    "Müller-PC",
    "Müller PC.fritz.box",
    "山田の部屋.local",
    'a"b.x',
    "a\\b.x",
    "a\\",
    "a;b.x",
    "a) by mx.example.org with ESMTPS (b.x",
    "x AUTH PLAIN",
    "x " * 130 + "STARTTLS",
    "%{i}.x",
    "${jndi:ldap://x.y}",
    "a..b",
    "<x@y.z>",
    "x" * 600,
    "字" * 600,
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:20])
@pytest.mark.parametrize("sender", ["", "a@client.example"], ids=["null", "sender"])
def test_name_in_ehlo_is_recorded_safely_in_each_place(
    name: str, sender: str, tmp_path: Path
) -> None:
    mailroom = Mailroom()
    checks = (Spf(temperror="defer"), HeloChecks(), AuthenticationResults())
    lists = Dnsbl(lists=[DnsList(zone="list.example", about=["helo"])])
    dialogue = Dialogue(*checks, lists, mailroom, resolver=Names(), peer="198.51.100.7")
    plain = dialogue.send("EHLO client.example").split("\n")
    assert dialogue.send(f"EHLO {name}").split("\n")[1:] == plain[1:]
    assert dialogue.session.helo == name[:255]
    assert dialogue.send(f"MAIL FROM:<{sender}>")[:3] == "250"
    for line in ("RCPT TO:<user@example.org>", "DATA", "Subject: x\r\n\r\nx\r\n."):
        assert dialogue.send(line)[:1] in {"2", "3"}
    [[stored]] = mailroom.stored.values()
    header = stored.partition(b"\r\n\r\n")[0]
    assert header.isascii()
    assert max(map(len, header.split(b"\r\n"))) < 998
    assert header.lower().count(b"received: ") == 1
    # Our own reader of trace fields finds the name and the address in it.
    client = envelope_of(io.BytesIO(stored), "mx.example.org")
    recorded = name.encode("ascii", "backslashreplace").decode()[:255]
    assert (client.helo, client.peer) == (recorded, "198.51.100.7")
    assert kept(dialogue.session.helo, tmp_path) == name[:255]


def kept(helo: str, directory: Path) -> str:
    """Return the name as a message in the queue has it."""
    spool = Spool(directory)
    spool.prepare()
    spool.add(replace(entry("", "a@b.example"), helo=helo), message())
    return spool.open(_NAME)[0].helo


@pytest.mark.parametrize("charset", ["utf-8", "latin-1", "shift_jis"])
def test_name_that_a_front_end_passes_on_is_taken(charset: str) -> None:
    name = "Büro 1/2" if charset != "shift_jis" else "山"
    octets = name.encode(charset)
    session = Dialogue().session
    apply_xclient(session, "HELO=" + "".join(f"+{octet:02x}" for octet in octets))
    assert session.helo == ("?R" if charset == "shift_jis" else name)


def test_milter_hears_the_name_as_one_text() -> None:
    for name in NAMES:
        assert _milter.texts(name) == name.encode() + b"\0"


@pytest.mark.parametrize(
    "name", [each for each in NAMES if each != "山田の部屋.local"], ids=lambda name: name[:20]
)
def test_name_that_is_no_domain_is_no_question_to_a_dns_that_is_silent(name: str) -> None:
    # RFC 7208 section 4.3; mail from <> would be deferred forever
    dialogue = Dialogue(Spf(temperror="defer"), resolver=Names(silent=True), peer="198.51.100.7")
    dialogue.send(f"EHLO {name}")
    assert dialogue.send("MAIL FROM:<>")[:3] == "250"


@pytest.mark.parametrize("local", LOCALS.values(), ids=LOCALS.keys())
def test_address_leaves_the_root_of_maildirs_by_no_spelling(local: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    path = Path(Template(root / "{domain}" / "{local}").fill(Address(local, THEIRS)))
    assert path.parent.parent == root
    assert ".." not in path.parts
    assert path.resolve() == path
    assert len(path.name.encode()) <= 255


@pytest.mark.parametrize("local", LOCALS.values(), ids=LOCALS.keys())
def test_bounce_of_forwarded_mail_finds_back_to_each_sender(local: str) -> None:
    kept: dict[str, str] = {}
    srs = Srs([b"a secret of sixteen"], OURS, lambda: 20_000, kept=kept.get)
    sender = Address(local, "x.example")
    new = srs.rewrite(sender)
    if key := srs.key_of(sender, new):
        kept[key] = str(sender)
    assert srs.restore(Address.parse(str(new)).local) == sender


def test_recipient_of_another_domain_in_a_local_part_is_relayed_nowhere() -> None:
    mailboxes = Mailboxes(domains=[OURS], users=["anna"])
    dialogue = Dialogue(mailboxes, Relaying(networks=[]))
    dialogue.send("EHLO x")
    dialogue.send("MAIL FROM:<>")
    for path in (
        *("<a%b.example@example.org>", "<b.example!a@example.org>", "<a@b.example@example.org>"),
        *("<b.example!a>", "<a%b.example>", '<"a@b.example">', '<"a@b.example"@example.org>'),
        *("<@example.org:a@b.example>", "<@b.example:a%b.example@example.org>", "a@b.example"),
        *("<anna@example.org <a@b.example>>", "<a@b.example(anna@example.org)>", "<a\\@b.example>"),
    ):
        assert dialogue.send(f"RCPT TO:{path}")[:9] in {"550 5.1.1", "550 5.7.1"}, path


@pytest.mark.parametrize("text", ["anna..bob.@x.example", '"anna..bob."@X.example'])
def test_command_finds_a_quarantined_sender_with_dots(text: str) -> None:
    assert comparable(text) == comparable(str(Address("anna..bob.", "x.example")))
