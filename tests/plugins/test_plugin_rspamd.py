"""The plugin does what rspamd decides: refuse, defer, mark, change the header."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any, Final

import pytest
from fakes import Names, envelope, http, running_daemon, saying, serving
from minismtp_plugins.rspamd import RSPAMD, Rspamd, RspamdResult
from ports import free_port

from minismtp import (
    ByteSize,
    Content,
    Envelope,
    Finding,
    Headers,
    Message,
    Resolver,
    SocketAddress,
    findings_of,
    hookimpl,
    plugin,
)
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.testing import Dialogue, Mailroom

# The test line of SpamAssassin and rspamd, in halves, because a filter could remove this file.
GTUBE: Final = "XJS*C4JDBQADN1.NSBN3*2IDNEN*" + "GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"
SPAM: Final = f"From: a@client.example\nSubject: Offer\n\n{GTUBE}\n"
HAM: Final = (
    "From: A Person <sender@client.example>\nTo: user@example.org\nSubject: Lunch on Thursday\n"
    f"Date: {formatdate()}\nMessage-ID: <2026.11.26.8a1f0c5d7e21@client.example>\n\nAt one?\n"
)
DEFERRED: Final = "451 4.3.0 temporary failure, try again later"
# The parts of rspamd that would ask the network, or remember.
MODULES: Final = (
    *("asn", "fuzzy_check", "greylist", "mx_check", "neural", "phishing", "rbl", "surbl"),
    *("hfilter", "spf", "dkim", "dmarc", "arc"),
)
OPTIONS: Final = """
disable_hyperscan = true;
dns { nameserver = ["127.0.0.1:1"]; timeout = 0.1s; retransmits = 1; }
"""
CONFIGURATION: Final = {
    "logging.inc": 'type = "console"; level = "notice";',
    "worker-controller.inc": "enabled = false;",
    "worker-proxy.inc": "enabled = false;",
    "milter_headers.conf": 'use = ["x-spamd-bar", "x-spam-status"]; skip_local = false;',
    **{f"{module}.conf": "enabled = false;" for module in MODULES},
}


@pytest.fixture(scope="module")
def url(
    require_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Run rspamd without a network, and return its URL."""
    program, directory, port = (
        require_program("rspamd"),
        tmp_path_factory.mktemp("rspamd"),
        free_port(),
    )
    local = directory / "conf" / "local.d"
    local.mkdir(parents=True)
    # A short list of public suffixes: the long one takes half a minute to compile.
    (directory / "suffixes").write_text("com\nexample\norg\n")
    files = {
        "worker-normal.inc": f'bind_socket = "127.0.0.1:{port}"; count = 1;',
        "options.inc": f'{OPTIONS} url_tld = "{directory}/suffixes";',
    }
    for name, text in {**CONFIGURATION, **files}.items():
        (local / name).write_text(text)
    places = {"DBDIR": directory, "RUNDIR": directory, "LOGDIR": directory}
    options = [f"--var={name}={path}" for name, path in places.items()]
    options.append(f"--var=LOCAL_CONFDIR={directory / 'conf'}")
    command = [program, "--no-fork", "--insecure", *options, "--config=/etc/rspamd/rspamd.conf"]
    with running_daemon(*command, port=port, log=directory / "log"):
        yield f"http://127.0.0.1:{port}"


def said(action: str = "no action", score: float = 1.0, **more: object) -> dict[str, object]:
    return {"action": action, "score": score, "required_score": 15.0, **more}


def milter(action: str = "no action", **changes: object) -> dict[str, object]:
    return said(action, milter=changes)


def talk(*plugins: object, resolver: Resolver | None = None, **scene: Any) -> Dialogue:  # noqa: ANN401 - as Dialogue has them
    return Dialogue(*plugins, resolver=resolver or Names(), **scene)


def judged(answer: object, content: str = HAM, **options: Any) -> tuple[str, Mailroom]:  # noqa: ANN401 - those of the plugin
    """Return the reply to a message, and the stored message, if rspamd answers this."""
    mailroom = Mailroom()
    with serving(saying(http(answer))) as address:
        reply = talk(Rspamd(url=f"http://{address}", **options), mailroom).mail(content)
    return reply, mailroom


def header(mailroom: Mailroom) -> list[tuple[str, str]]:
    """Return the fields of the one message that was stored, except the trace field on top."""
    [message] = mailroom.stored["user@example.org"]
    return [field for field in Headers.parse(message) if field[0] != "Received"]


@plugin
class Notes:
    """Keep the result of the plugin on the last envelope."""

    @hookimpl
    def on_message(self, envelope: Envelope) -> None:
        self.result = envelope.stash.get(RSPAMD, None)
        self.findings = list(findings_of(envelope))


@pytest.mark.parametrize("more", ["", "x" * 3000], ids=["short", "long-line"])
def test_spam_is_refused_with_the_words_of_rspamd(url: str, more: str) -> None:
    mailroom = Mailroom()
    assert talk(Rspamd(url=url), mailroom).mail(SPAM + more) == "550 5.7.1 Gtube pattern"
    assert mailroom.stored == {}


def test_ham_is_taken_with_the_fields_that_rspamd_adds(url: str) -> None:
    mailroom, notes = Mailroom(), Notes()
    dialogue = talk(Rspamd(url=url), notes, mailroom)
    assert dialogue.mail(f"X-Spam-Status: forged\nX-Spam: Yes\n{HAM}").startswith("250 ")
    fields = dict(header(mailroom))
    assert fields["X-Spam-Status"].startswith("No, score=")
    assert "X-Spamd-Bar" in fields
    assert "X-Spam" not in fields
    assert notes.result is not None
    assert notes.result.action == "no action"
    assert notes.result.score < 4
    assert "MIME_GOOD" in notes.result.symbols


def test_spam_behind_a_large_part_is_refused(url: str) -> None:
    parts = ["Content-Type: application/x-a\n\n" + f"{'x' * 70}\n" * 6000, f"\n{GTUBE}\n"]
    body = "".join(f"--b\n{part}" for part in parts) + "--b--\n"
    content = f"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n{body}"
    assert talk(Rspamd(url=url), Mailroom()).mail(content) == "550 5.7.1 Gtube pattern"


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        (said("reject", 20), "550 5.7.1 message refused as spam"),
        (
            said("reject", messages={"smtp_message": "no\r\nthanks"}),
            "550-5.7.1 no\n550 5.7.1 thanks",
        ),
        (said("soft reject"), "451 4.7.1 try again later"),
        (said("soft reject", messages={"smtp_message": "wait"}), "451 4.7.1 wait"),
        (milter("reject", no_action=True), "250"),
        (said("greylist"), "250"),
        (said("no action"), "250"),
        (said("add header"), "250"),
        (said("rewrite subject"), "250"),
        (said("my own action"), DEFERRED),
    ],
)
def test_action_is_the_reply(answer: object, reply: str) -> None:
    assert judged(answer)[0].startswith(reply)


def test_greylisting_defers_where_rspamd_leaves_that_to_us() -> None:
    assert judged(said("greylist"), greylist="defer")[0] == "451 4.7.1 try again later"


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (said("quarantine"), "quarantined"),
        (said("discard"), "discarded"),
        (milter("reject", reject="quarantine"), "quarantined"),
        (milter("reject", reject="discard"), "discarded"),
    ],
)
def test_message_is_taken_aside_when_rspamd_says_so(answer: object, outcome: str) -> None:
    with serving(saying(http(answer))) as address:
        dialogue = talk(Rspamd(url=f"http://{address}"), Mailroom())
        assert dialogue.mail(HAM).startswith("250 ")
    assert dialogue.count("messages_total", listener="test", outcome=outcome) == 1


@pytest.mark.parametrize(
    ("answer", "before", "after"),
    [
        (said("add header"), ["A: 1", "X-Spam: No"], ["X-Spam: Yes", "A: 1"]),
        (milter("add header", spam_header="100%"), ["A: 1"], ["X-Spam: 100%", "A: 1"]),
        (milter("add header", spam_header={"X-Bad": "b"}), ["X-Bad: a"], ["X-Bad: b"]),
        (said("rewrite subject", subject="[spam] x"), ["Subject: x", "A: 1"],
         ["Subject: [spam] x", "A: 1"]),
        (said("rewrite subject", subject="[spam]"), ["A: 1"], ["Subject: [spam]", "A: 1"]),
        (said("rewrite subject", subject="\u00e4"), ["Subject: x"], ["Subject: =?utf-8?b?w6Q=?="]),
        (said("reject", subject="[spam]", milter={"no_action": True}), ["Subject: x"],
         ["Subject: x"]),
        (milter(add_headers={"X": "1"}), ["A: 1", "B: 2"], ["A: 1", "B: 2", "X: 1"]),
        (milter(add_headers={"X": ["1", "2"]}), ["A: 1"], ["A: 1", "X: 1", "X: 2"]),
        (milter(add_headers={"X": {"value": "1", "order": 1}}), ["A: 1", "B: 2"],
         ["X: 1", "A: 1", "B: 2"]),
        (milter(add_headers={"X": {"value": "1", "index": 2}}), ["A: 1", "B: 2"],
         ["A: 1", "X: 1", "B: 2"]),
        (milter(add_headers={"X": {"value": "1", "order": 99}}), ["A: 1"], ["A: 1", "X: 1"]),
        (milter(add_headers={"X": {"value": "1", "order": -1}}), ["A: 1"], ["A: 1", "X: 1"]),
        (milter(add_headers={"X": {"value": "1", "order": -3}}), ["A: 1"], ["X: 1", "A: 1"]),
        (milter(add_headers={"X": {"value": "1", "order": -99}}), ["A: 1"], ["X: 1", "A: 1"]),
        (milter(add_headers={"X": "a\r\n\tb\nc\r\n"}), ["A: 1"], ["A: 1", "X: a\tb\tc"]),
        (milter(add_headers={"X": "a\r\nEvil: b\r\n\r\nbody"}), [], ["X: a\tEvil: b\tbody"]),
        (milter(add_headers={"X X": "a", "Y": "x" * 2000, "Z": "\0"}), ["A: 1"], ["A: 1"]),
        (milter(remove_headers={"a": 0}), ["A: 1", "B: 2", "A: 3"], ["B: 2"]),
        (milter(remove_headers={"A": 1}), ["A: 1", "B: 2", "A: 3"], ["B: 2", "A: 3"]),
        (milter(remove_headers={"A": 2}), ["A: 1", "B: 2", "A: 3"], ["A: 1", "B: 2"]),
        (milter(remove_headers={"A": -1}), ["A: 1", "B: 2", "A: 3"], ["A: 1", "B: 2"]),
        (milter(remove_headers={"A": [1, -1]}), ["A: 1", "B: 2", "A: 3"], ["B: 2"]),
        (milter(remove_headers={"A": 3, "C": -1}), ["A: 1"], ["A: 1"]),
        (milter(remove_headers={"A": 0}, add_headers={"A": "new"}), ["A: 1"], ["A: new"]),
    ],
)  # fmt: skip
def test_header_is_changed_as_rspamd_says(
    answer: object, before: list[str], after: list[str]
) -> None:
    content = "\n".join([*before, "M: 0", "", "A: text", ""])
    reply, mailroom = judged(answer, content)
    assert reply.startswith("250 ")
    fields = [f"{name}: {value}" for name, value in header(mailroom)]
    assert [field for field in fields if field != "M: 0"] == after
    [message] = mailroom.stored["user@example.org"]
    assert message.endswith(b"\r\n\r\nA: text\r\n")


def test_field_is_added_above_a_last_line_without_an_end() -> None:
    message = Message("1", Content.of(b"A: 1\r\nB: 2"))
    with serving(saying(http(milter(add_headers={"X": "1"})))) as address:
        dialogue = talk(Rspamd(url=f"http://{address}"), Mailroom())
        dialogue.service.hooks.on_message(dialogue.session, envelope(), message)
    with message.open() as reader:
        assert reader.read() == b"A: 1\r\nX: 1\r\nB: 2"


def test_score_is_left_for_others() -> None:
    notes = Notes()
    symbols = {"BAYES_HAM": {"score": -3.0}, "A": {"score": 1.5}, "B": {"score": 4}}
    answer = http(said("no action", 2.5, symbols=symbols))
    with serving(saying(answer)) as address:
        talk(Rspamd(url=f"http://{address}"), notes, Mailroom()).mail(HAM)
    scores = {"BAYES_HAM": -3.0, "A": 1.5, "B": 4.0}
    assert notes.result == RspamdResult("no action", 2.5, 15.0, scores)
    assert notes.findings == [Finding("rspamd", "score", 2.5, "B, A, BAYES_HAM")]


def heard(
    scanner: Callable[[SocketAddress], Rspamd],
    *,
    to: tuple[str, ...] = (),
    **scene: Any,  # noqa: ANN401 - as Dialogue has them
) -> dict[str, list[str]]:
    """Return the fields of the request that rspamd gets."""
    requests: list[bytes] = []

    def answer(sock: socket.socket) -> None:
        requests.append(sock.recv(65536))
        sock.sendall(http(said()))

    with serving(answer) as address:
        dialogue = talk(scanner(address), Mailroom(), **scene)
        dialogue.mail(HAM, to=to or ("user@example.org",))
        assert dialogue.count("hook_errors_total", plugin="rspamd", hook="on_message") == 0
    head = requests[0].partition(b"\r\n\r\n")[0].decode().split("\r\n")
    assert head[0] == "POST /checkv2 HTTP/1.1"
    found: dict[str, list[str]] = {}
    for line in head[1:]:
        name, _, value = line.partition(": ")
        found.setdefault(name, []).append(value)
    return found


def at(address: SocketAddress) -> Rspamd:
    return Rspamd(url=f"http://{address}/")


def test_rspamd_is_told_what_is_known_of_the_message() -> None:
    fields = heard(at, to=("a@example.org", "b@example.org"), tls=True, peer="198.51.100.7")
    assert fields["From"] == ["<sender@client.example>"]
    assert fields["Rcpt"] == ["<a@example.org>", "<b@example.org>"]
    assert fields["IP"] == ["198.51.100.7"]
    assert fields["Helo"] == ["client.example"]
    assert fields["MTA-Name"] == ["mx.example.org"]
    assert fields["MTA-Tag"] == ["minismtp"]
    assert fields["TLS-Cipher"] == ["TLS_AES_256_GCM_SHA384"]
    assert fields["TLS-Version"] == ["TLSv1.3"]
    assert fields["Queue-Id"][0].endswith(".1")
    assert not {"User", "Password", "Hostname"} & set(fields)


def test_rspamd_is_told_the_password() -> None:
    word = "s\u00e9same"
    fields = heard(lambda address: Rspamd(url=f"http://{address}", password=word))
    assert fields["Password"] == [word]
    assert word not in repr(Rspamd(password=word))


@pytest.mark.parametrize(
    ("peer", "records", "name"),
    [
        ("192.0.2.1", {"1.2.0.192.in-addr.arpa PTR": ["a.example."], "a.example A": ["192.0.2.1"]},
         ["a.example"]),
        ("192.0.2.1", {"1.2.0.192.in-addr.arpa PTR": ["a.example."], "a.example A": ["192.0.2.9"]},
         None),
        ("::ffff:192.0.2.1", {"1.2.0.192.in-addr.arpa PTR": ["no.example.", "a.example."],
         "a.example A": ["192.0.2.1"], "no.example A": []}, ["a.example"]),
        ("127.0.0.1", {"1.0.0.127.in-addr.arpa PTR": ["localhost."], "localhost A": ["127.0.0.1"]},
         None),
        ("unix", {}, None),
    ],
)  # fmt: skip
def test_rspamd_is_told_the_name_that_leads_back_to_the_peer(
    peer: str, records: dict[str, list[str]], name: list[str] | None
) -> None:
    fields = heard(at, peer=peer, resolver=Names(records))
    assert fields.get("Hostname") == name
    assert ("IP" in fields) == (peer != "unix")


def test_name_that_the_dns_does_not_tell_is_left_out() -> None:
    assert "Hostname" not in heard(at, resolver=Names(silent=True))


def test_user_who_has_logged_in_is_left_alone_or_named() -> None:
    nobody = Rspamd(url=f"http://127.0.0.1:{free_port()}")
    assert talk(nobody, Mailroom(), login="alice", tls=True).mail(HAM).startswith("250 ")
    fields = heard(
        lambda address: Rspamd(url=f"http://{address}", users=True), login="alice", tls=True
    )
    assert fields["User"] == ["alice"]


def test_message_larger_than_the_largest_is_not_judged_but_loses_its_mark() -> None:
    mailroom = Mailroom()
    scanner = Rspamd(url=f"http://127.0.0.1:{free_port()}", largest=ByteSize(10))
    assert talk(scanner, mailroom).mail(f"X-Spam: No\n{HAM}").startswith("250 ")
    assert "X-Spam" not in dict(header(mailroom))


def test_limit_counts_what_is_sent() -> None:
    size = int(heard(at)["Content-Length"][0])
    assert size > len(HAM) + HAM.count("\n")  # our fields are above it
    same = heard(lambda address: Rspamd(url=f"http://{address}", largest=ByteSize(size)))
    assert same["Content-Length"] == [str(size)]
    scanner = Rspamd(url=f"http://127.0.0.1:{free_port()}", largest=ByteSize(size - 1))
    assert talk(scanner, Mailroom()).mail(HAM).startswith("250 ")


@pytest.mark.parametrize(
    "answer",
    [
        http([]),
        http("reject"),
        http(None),
        http({"error": "invalid command"}),
        http(said() | {"score": "many"}),
        http(said() | {"score": float("nan")}),
        http(said(symbols=[1])),
        http(said(milter=["x"])),
        http(milter(add_headers={"X": {"order": 1}})),
        http(milter(add_headers={"X": {"value": "1", "order": float("inf")}})),
        http(milter(remove_headers={"X": "all"})),
        b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"[" * 200_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\xff\xfe{}",
        b"HTTP/1.1 403 Unauthorized\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_answer_that_is_no_judgement_defers(answer: bytes) -> None:
    with serving(saying(answer)) as address:
        assert talk(Rspamd(url=f"http://{address}"), Mailroom()).mail(HAM) == DEFERRED


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"patience": "0s"}, 'patience: expected more than "0s"'),
        ({"url": "127.0.0.1:11333"}, "url: expected a URL such as"),
        ({"password": "a\r\nb"}, "password: expected printable characters"),
    ],
)
def test_options_that_make_no_sense_are_mistakes(table: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        build(Rspamd, table, file="c.toml", key="plugins[0]", base=Path())
