"""What a submission server adds to a user's message, and which senders a user may use."""

import re
from dataclasses import field, replace
from typing import Any, Literal

import pytest
from minismtp_plugins.mailboxes import Mailboxes

from minismtp import (
    Address,
    Content,
    Defer,
    Envelope,
    Local,
    Message,
    Recipient,
    Reject,
    Session,
    hookimpl,
    plugin,
)
from minismtp.session.submission import complete
from minismtp.testing import Dialogue, Mailroom

Kind = Literal["mx", "submission", "lmtp"]
USER = "user@example.org"
DATE = "Sun, 09 Sep 2001 01:46:40 +0000"
WHOLE = (
    "Date: Mon, 1 Jan 2024 00:00:00 +0000\nMessage-ID: <1@client.example>\nSender: x@y.example\n"
    "From: alice@elsewhere.example\n"
)


@plugin
class Trusting:
    """Trusts every peer."""

    @hookimpl
    def on_connect(self, session: Session) -> None:
        session.trusted = True


def submitted(
    content: str,
    *plugins: object,
    login: str | None = "alice@example.org",
    kind: Kind = "submission",
    sender: str = "alice@example.org",
    **change: Any,  # noqa: ANN401 - as `replace` takes them
) -> tuple[list[str], str]:
    """Send a message. Return the lines above the Received field, and those below."""
    mailroom = Mailroom()
    change = {"wall": lambda: 1_000_000_000.0, **change}
    service = replace(Dialogue(*plugins, mailroom, kind=kind).service, **change)
    dialogue = Dialogue(service=service, login=login, tls=True)
    assert dialogue.mail(content, sender=sender).startswith("250")
    [stored] = mailroom.stored[USER]
    above, below = re.split(
        r"Received: .*?\+0000\r\n", stored.decode(), maxsplit=1, flags=re.DOTALL
    )
    return above.splitlines(), below.replace("\r\n", "\n")


# Missing fields (RFC 6409 section 8)


def test_missing_fields_are_added() -> None:
    above, below = submitted("Subject: x\nFrom: bob@example.org\n\nbody\n")
    date, identifier = above
    assert date == f"Date: {DATE}"
    assert re.fullmatch(r"Message-ID: <[0-9a-f]{12}\.1@mx\.example\.org>", identifier)
    assert below == "Subject: x\nFrom: bob@example.org\n\nbody\n"


def test_message_id_is_the_one_of_the_log_and_the_reply() -> None:
    mailroom = Mailroom()
    dialogue = Dialogue(mailroom, kind="submission", login="alice", tls=True)
    identifier = dialogue.mail("Subject: x").rpartition(" ")[2]
    assert f"Message-ID: <{identifier}@mx.example.org>".encode() in mailroom.stored[USER][0]


@pytest.mark.parametrize("name", ["Date", "Message-ID", "From", "Sender"])
def test_only_what_is_missing_is_added(name: str) -> None:
    content = "".join(line for line in WHOLE.splitlines(keepends=True) if name not in line)
    above, below = submitted(content, add_sender=True)
    assert [line.partition(":")[0] for line in above] == [name]
    assert below == content


@pytest.mark.parametrize(
    "content",
    [
        WHOLE,
        WHOLE.upper(),
        WHOLE.replace(": ", ":\n "),
        "Date:\nMessage-ID:\nSender:\nFrom:\nSubject: empty is there too\n",
        "Date: never\nMessage-ID: none\nSender: no body\nFrom: @\n\nbody\n",
    ],
    ids=["whole", "upper-case", "folded", "empty", "nonsense"],
)
def test_what_the_user_wrote_is_never_changed(content: str) -> None:
    assert submitted(content, add_sender=True) == ([], content)


def test_fields_of_the_body_are_no_fields() -> None:
    above, below = submitted("Subject: x\n\n" + WHOLE)
    assert [line.partition(":")[0] for line in above] == ["From", "Date", "Message-ID"]
    assert below == "Subject: x\n\n" + WHOLE


@pytest.mark.parametrize("content", ["\nbody\n", " body\n"], ids=repr)
def test_message_without_a_header_gets_one(content: str) -> None:
    above, below = submitted(content)
    assert [line.partition(":")[0] for line in above] == ["From", "Date", "Message-ID"]
    assert below == f"\n{content}".replace("\n\n", "\n")


@pytest.mark.parametrize("kind", ["mx", "lmtp"])
def test_nothing_is_added_to_mail_of_others(kind: Kind) -> None:
    # RFC 5321 section 6.4: not in mail that is relayed or delivered
    content = "Bcc: b@example.org\nContent-Length: 1\nTo: root\nSubject: x\n"
    trusting = [Trusting()] if kind == "lmtp" else []
    assert submitted(content, *trusting, kind=kind, login=None, add_sender=True) == ([], content)


@pytest.mark.parametrize(
    ("sender", "added"),
    [
        ("alice@example.org", False),
        ("Alice <alice@example.org>", False),
        ("Alice <ALICE@Example.ORG>", False),
        ('"Doe, Alice" <alice@example.org>', False),
        ("alice@example.org (Alice)", False),
        ("Bob <bob@example.org>", True),
        ("malice@example.org", True),
        ("alice@example.org.attacker.example", True),
        ("x-alice@example.org", True),
        ("", True),
    ],
)
@pytest.mark.parametrize("login", ["alice@example.org", "Alice@example.org"])
def test_sender_is_added_by_an_option_where_from_names_somebody_else(
    login: str, sender: str, added: bool
) -> None:
    # RFC 5322 section 3.6.2, RFC 6409 section 8.1
    content = f"From: {sender}\nDate: x\nMessage-ID: x\n"
    above, _ = submitted(content, login=login, add_sender=True)
    assert above == ([f"Sender: {login}"] if added else [])
    assert submitted(content, login=login) == ([], content)


def test_sender_needs_a_login_that_is_an_address() -> None:
    content = "From: bob@example.org\nDate: x\nMessage-ID: x\n"
    above, _ = submitted(content, login="alice", add_sender=True)
    assert above == []


@pytest.mark.parametrize(
    ("sender", "login", "author"),
    [
        ("bob@example.org", "alice@example.org", "bob@example.org"),
        ("bob@example.org", "alice", "bob@example.org"),
        ("", "alice@example.org", "alice@example.org"),
        ("", "alice", "MAILER-DAEMON@mx.example.org"),
        ("", None, "MAILER-DAEMON@mx.example.org"),
        ('"b o b"@example.org', None, '"b o b"@example.org'),
    ],
)
def test_author_that_is_missing_is_the_sender(sender: str, login: str | None, author: str) -> None:
    # RFC 5322 section 3.6.2; so does Postfix, for the null reverse-path too
    kind: Kind = "submission" if login else "mx"
    above, _ = submitted("Subject: x\n", Trusting(), login=login, kind=kind, sender=sender)
    assert above[0] == f"From: {author}"


def test_author_that_is_missing_has_a_domain_in_ascii() -> None:
    message = Message("m", Content.of(b"\r\n"))
    envelope = Envelope(
        id="e",
        reverse_path=Address("bob", "b\u00fccher.example"),
        listener="smtp",
        peer="192.0.2.1",
        helo="x",
        login=None,
        arrived=0.0,
        smtputf8=True,
    )
    complete(envelope, message, b"\r\n", "mx.example.org")
    assert message.headers.get("From") == "bob@xn--bcher-kva.example"


def test_mail_of_a_trusted_network_is_completed_too() -> None:
    above, below = submitted("Subject: x\n", Trusting(), login=None, kind="mx")
    assert [line.partition(":")[0] for line in above] == ["From", "Date", "Message-ID"]
    assert below == "Subject: x\n"


@pytest.mark.parametrize("name", ["Resent-To", "RESENT-FROM", "Resent-Sender", "resent-cc"])
def test_message_that_is_sent_again_gets_what_says_so(name: str) -> None:
    # RFC 5322 section 3.6.6
    above, below = submitted(f"{name}: a@b.example\nFrom: c@d.example\nDate: x\nMessage-ID: x\n")
    added = ["Resent-From", "Resent-Date", "Resent-Message-ID"]
    assert [line.partition(":")[0] for line in above] == [
        each for each in added if each.lower() != name.lower()
    ]
    assert below.startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("came", "kept"),
    [
        ("From: root", "From: root@mx.example.org"),
        ("From: root (Cron Daemon)", "From: root@mx.example.org (Cron Daemon)"),
        ('From: "Cron, Daemon" <root>', 'From: "Cron, Daemon" <root@mx.example.org>'),
        ("from:root", "from:root@mx.example.org"),
        ("From: a.b+c", "From: a.b+c@mx.example.org"),
        ("To: alice,\n bob@x.example,\n\tcarol", None),
        ("To: friends: alice, Bob <bob>;", None),
        ("Cc: a, b\nCc: c", "Cc: a@mx.example.org, b@mx.example.org\nCc: c@mx.example.org"),
        ("Sender: =?utf-8?q?B=C3=B6b?= <bob>", "Sender: =?utf-8?q?B=C3=B6b?= <bob@mx.example.org>"),
        ("Reply-To: MAILER-DAEMON", "Reply-To: MAILER-DAEMON@mx.example.org"),
        ("To: undisclosed-recipients:;",) * 2,
        ("To: alice@x.example, Bob <bob@y.example>",) * 2,
        ('To: "root" <a@x.example>, <>',) * 2,
        ("To: John Doe, =?utf-8?q?x?=",) * 2,
        ('To: "never closed <root>',) * 2,
        ("To: root (never (closed)",) * 2,
        ("To: <@a,@b:root>, root",) * 2,
        ("Subject: root",) * 2,
    ],
    ids=repr,
)
def test_bare_names_get_our_domain(came: str, kept: str | None) -> None:
    # what Postfix does for its own machine (local_header_rewrite_clients)
    if kept is None:
        kept = re.sub(r"\b(alice|carol|bob(?!@))(?=[,>;]|$)", r"\1@mx.example.org", came)
    more = "Date: x\nMessage-ID: x\nResent-From: a@b\nResent-Date: x\nResent-Message-ID: x\n"
    content = f"{{}}\n{more}\nFrom: root\n"
    above, below = submitted(content.format(came))
    assert above == []
    assert below == content.format(kept)
    assert submitted(content.format(came), kind="mx", login=None)[1] == content.format(came)


@pytest.mark.parametrize("field", [b"From: root", b"To: alice", b"Cc:  `  "])
def test_bare_name_without_a_line_end_gets_our_domain(field: bytes) -> None:
    # RFC 3030: the content of BDAT may end anywhere
    content = b"Date: x\r\nMessage-ID: x\r\nResent-From: a@b\r\n" + field
    mailroom = Mailroom()
    dialogue = Dialogue(mailroom, kind="submission", login="alice@example.org", tls=True)
    for line in ("EHLO client.example", "MAIL FROM:<alice@example.org>", f"RCPT TO:<{USER}>"):
        dialogue.send(line)
    reply = dialogue.send_raw(b"BDAT %d LAST\r\n%b" % (len(content), content))
    assert reply.startswith(b"250 2.0.0 ")
    [stored] = mailroom.stored[USER]
    assert stored.endswith(
        b"\r\n" + field.rstrip() + b"@mx.example.org" + field[len(field.rstrip()) :] + b"\r\n"
    )


def test_header_does_not_grow_beyond_what_filters_read() -> None:
    few, many = "To: a\n" * 2000, "To: " + "a,\n " * 100_000 + "a\n"
    kept = "From: a@b\nDate: x\nMessage-ID: x\n\n"
    assert submitted(few + kept)[1] == few.replace("a", "a@mx.example.org") + kept
    assert submitted(many + kept) == ([], many + kept)


# What goes

BLIND = (
    "Bcc: b@example.org,\n c@example.org\nSubject: x\nresent-bcc :d@example.org\nBCC:\n"
    "Content-Length: 5\nContent-length-x: 5\nDate: x\nMessage-ID: x\nFrom: a@example.org\n\n"
    "Bcc: of the body\n"
)


def test_blind_copies_stay_blind() -> None:
    # RFC 5322 section 3.6.3
    kept = "Subject: x\nContent-length-x: 5\nDate: x\nMessage-ID: x\nFrom: a@example.org\n\n"
    assert submitted(BLIND) == ([], kept + "Bcc: of the body\n")
    assert submitted(BLIND, Trusting(), login=None, kind="mx")[1] == kept + "Bcc: of the body\n"


def test_what_goes_can_be_chosen() -> None:
    above, below = submitted(BLIND, dropped=frozenset({"return-path", "subject"}))
    assert above == []
    assert below == BLIND.replace("Subject: x\n", "").replace("bcc :", "bcc:")


def test_filters_see_the_added_fields() -> None:
    seen: list[bool] = []

    @plugin
    class Looking:
        @hookimpl
        def on_message(self, message: object) -> None:
            headers = getattr(message, "headers", ())
            seen.append({"Date", "Message-ID", "Received"} <= {name for name, _ in headers})

    Dialogue(Looking(), Mailroom(), kind="submission", login="alice", tls=True).mail("Subject: x")
    assert seen == [True]


# Senders that a user may use


@plugin
class Aliases:
    """Routes addresses to mailboxes, and no other address."""

    routes: dict[str, Local]
    asked: list[str] = field(default_factory=list)

    @hookimpl
    def route(self, envelope: Envelope, recipient: Recipient) -> Local | None:
        assert envelope.recipients == []
        self.asked.append(str(recipient.address))
        match recipient.address.local:
            case "unknown":
                raise Reject("no such user", enhanced="5.1.1")
            case "later":
                raise Defer("directory is away")
        return self.routes.get(str(recipient.address))


ALICE = Address("alice", "example.org")
BOB = Address("bob", "example.org")


def sending(sender: str, login: str | None, *plugins: object, match: bool = True) -> str:
    service = replace(Dialogue(*plugins, kind="submission").service, match_sender=match)
    dialogue = Dialogue(service=service, login=login, tls=True)
    dialogue.send("EHLO client.example")
    return dialogue.send(f"MAIL FROM:<{sender}>")


def aliases() -> Aliases:
    return Aliases(
        routes={
            "alice@example.org": Local(),
            "bob@example.org": Local(),
            "info@example.org": Local(ALICE),
            "team@example.org": Local(BOB, ALICE),
            "boss@example.org": Local(BOB),
        }
    )


NOT_YOURS = "553 5.7.1 sender address does not belong to your login"
OK = "250 2.1.0 sender ok"


@pytest.mark.parametrize("login", ["alice@example.org", "Alice@Example.org", "alice"])
@pytest.mark.parametrize(
    ("sender", "reply"),
    [
        ("alice@example.org", OK),
        ("ALICE@EXAMPLE.ORG", OK),
        ("info@example.org", OK),
        ("team@example.org", OK),
        ("", OK),
        ("bob@example.org", NOT_YOURS),
        ("boss@example.org", NOT_YOURS),
        ("alice@elsewhere.example", NOT_YOURS),
        ("malice@example.org", NOT_YOURS),
        ("unknown@example.org", NOT_YOURS),
        ("later@example.org", "451 4.7.1 directory is away"),
    ],
)
def test_sender_must_belong_to_the_login(login: str, sender: str, reply: str) -> None:
    # RFC 6409 section 6.1
    routes = aliases()
    routes.routes["ALICE@example.org"] = Local()
    assert sending(sender, login, routes) == reply


def test_sender_that_is_the_login_needs_no_route() -> None:
    routes = Aliases(routes={})
    assert sending("alice@example.org", "alice@example.org", routes) == OK
    assert routes.asked == []


@pytest.mark.parametrize("login", ["anna..bob.@example.org", '"anna..bob."@example.org'])
@pytest.mark.parametrize(
    ("sender", "reply"),
    [
        ('"anna..bob."@example.org', OK),
        ("anna..bob.@example.org", OK),
        ("anna..bob@example.org", NOT_YOURS),
    ],
)
def test_sender_with_dots_belongs_to_the_login_with_the_same(
    login: str, sender: str, reply: str
) -> None:
    assert sending(sender, login, Aliases(routes={})) == reply


def test_sender_is_free_where_nothing_else_is_configured() -> None:
    routes = aliases()
    assert sending("bob@example.org", "alice@example.org", routes, match=False) == OK
    assert routes.asked == []


def test_filters_are_not_asked_about_a_sender_that_is_not_yours() -> None:
    asked: list[str] = []

    @plugin
    class Looking:
        @hookimpl
        def on_mail(self, envelope: Envelope) -> None:
            asked.append(envelope.sender)

    for sender in ("bob@example.org", "info@example.org"):
        sending(sender, "alice@example.org", Looking(), aliases())
    assert asked == ["info@example.org"]


def test_peer_without_a_login_is_not_held_to_one() -> None:
    service = replace(Dialogue(aliases()).service, match_sender=True)
    dialogue = Dialogue(service=service)
    dialogue.send("EHLO client.example")
    assert dialogue.send("MAIL FROM:<bob@example.org>") == OK


def two_domains() -> Mailboxes:
    return Mailboxes(domains=["a.example", "b.example"], users=["alice", "bob"])


@pytest.mark.parametrize(
    ("login", "sender", "reply"),
    [
        ("alice@a.example", "alice@a.example", OK),
        ("alice@a.example", "alice@b.example", NOT_YOURS),
        ("alice@b.example", "alice@b.example", OK),
        ("alice@b.example", "alice@a.example", NOT_YOURS),
        ("alice", "alice@a.example", OK),  # a user of the first domain
        ("alice", "Alice+tag@A.example", OK),
        ("alice", "alice@b.example", NOT_YOURS),
        ("alice", "bob@a.example", NOT_YOURS),
    ],
)
def test_whole_addresses_count_where_there_are_several_domains(
    login: str, sender: str, reply: str
) -> None:
    assert sending(sender, login, two_domains()) == reply


def writing(header: str, login: str | None = "alice@a.example", *, match: bool = True) -> str:
    plugins = (two_domains(), Mailroom())
    service = replace(Dialogue(*plugins, kind="submission").service, match_from=match)
    dialogue = Dialogue(service=service, login=login, tls=True)
    content = f"{header}Subject: x\r\n\r\nx"
    return dialogue.mail(content, sender="x@y.example", to=("bob@a.example",))


NOT_FROM = "550 5.7.1 From or Sender does not belong to your login"


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("From: alice@a.example\r\n", True),
        ('From: "Bob" <ALICE+x@a.example> (bob@a.example)\r\n', True),
        ("From: alice@a.example\r\nSender: <alice@a.example>\r\n", True),
        ("", False),
        ("From: \r\n", False),
        ("From: bob@a.example\r\n", False),
        ("From: alice@b.example\r\n", False),
        ("From: alice@a.example, bob@a.example\r\n", False),
        ("From: alice@a.example\r\nFrom: bob@a.example\r\n", False),
        ("From: alice@a.example\r\nSender: bob@a.example\r\n", False),
        ("From: alice@a.example <bob@a.example>\r\n", False),
        ("From: alice@a.example\r\n <bob@a.example>\r\n", False),
        ("From: alice@elsewhere.example\r\n", False),
        ("From: nobody\r\n", False),
        ("From: " + ",".join(f"alice+{number}@a.example" for number in range(21)) + "\r\n", False),
    ],
)
def test_from_must_belong_to_the_login(header: str, *, accepted: bool) -> None:
    """RFC 6409 section 6.1, for what readers see."""
    reply = writing(header)
    assert reply.startswith("250 " if accepted else NOT_FROM), reply


def test_from_is_free_where_nothing_else_is_configured() -> None:
    assert writing("From: bob@a.example\r\n", match=False).startswith("250 ")
