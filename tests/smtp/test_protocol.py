"""The session as a pure machine: every script is fed whole and byte by byte."""

import tracemalloc
from collections.abc import Mapping

import pytest
from examples import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minismtp.smtp.commands import (
    LONGEST_LINE,
    Auth,
    Bdat,
    Data,
    Greeting,
    Mail,
    Noop,
    Other,
    Quit,
    Rcpt,
    Rset,
    StartTls,
)
from minismtp.smtp.protocol import (
    TRANSITIONS,
    ContentChunk,
    EndOfChunk,
    EndOfContent,
    Event,
    Protocol,
    Refused,
    SaslResponse,
    SessionState,
)
from minismtp.values.address import Address
from minismtp.values.reply import Reply

#: The replies unless a test has others; 250 for other commands.
ANSWERS = {
    "CONNECT": 220,
    "DATA": 354,
    "AUTH": 334,
    "RESPONSE": 235,
    "STARTTLS": 220,
    "QUIT": 221,
}
A = Address("a", "x.example")
MAIL = b"MAIL FROM:<>\r\n"
RCPT = b"RCPT TO:<a@x.example>\r\n"
CUTS = [pytest.param(0, id="whole"), pytest.param(1, id="bytewise")]
ONE_CHUNK = ContentChunk(b"hello")


def answer(protocol: Protocol, event: Event | None, answers: Mapping[str, int]) -> None:
    """Send the outstanding reply, if there is one."""
    if isinstance(event, Refused):
        protocol.send(event.reply)
    elif protocol.verb:
        code = answers.get(protocol.verb, ANSWERS.get(protocol.verb, 250))
        protocol.send(Reply(code, "text"))


def say(
    protocol: Protocol, data: bytes, answers: Mapping[str, int] | None = None, *, cut: int = 0
) -> list[Event]:
    """Feed data whole, or in pieces of `cut` octets. Answer, and return the events."""
    events: list[Event] = []
    size = cut or max(len(data), 1)
    for at in range(0, len(data), size):
        protocol.receive(data[at : at + size])
        while (event := protocol.next_event()) is not None:
            answer(protocol, event, answers or {})
            add(events, event)
    return events


def add(events: list[Event], event: Event) -> None:
    """Append an event; content that came in pieces, or with its end, counts as one."""
    if isinstance(event, EndOfContent) and event.data:
        add(events, ContentChunk(event.data))
        event = EndOfContent(event.bare_newline, event.long_line)
    if isinstance(event, ContentChunk):
        assert event.data
        if events and isinstance(last := events[-1], ContentChunk):
            events[-1] = ContentChunk(last.data + event.data)
            return
    events.append(event)


def welcomed(*, lmtp: bool = False, banner: int = 220, line_length: int = 0) -> Protocol:
    """Return a protocol after its banner."""
    protocol = Protocol(lmtp=lmtp, line_length=line_length)
    protocol.send(Reply(banner, "mx.example"))
    return protocol


def refusals(events: list[Event]) -> list[str]:
    """Return the refusals among events as verb, code and enhanced code."""
    return [
        f"{event.verb} {event.reply.code} {event.reply.enhanced}".rstrip()
        for event in events
        if isinstance(event, Refused)
    ]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    ("script", "answers", "events", "state"),
    [
        pytest.param(
            b"HELO c\r\n" + MAIL + RCPT + b"DATA\r\nHi\r\n..\r\n.\r\nQUIT\r\n",
            {},
            [
                *(Greeting("HELO", "c"), Mail(None), Rcpt(A), Data(), ContentChunk(b"Hi\r\n.\r\n")),
                *(EndOfContent(bare_newline=False, long_line=False), Quit()),
            ],
            SessionState.CLOSED,
            id="one-message",
        ),
        pytest.param(
            b"EHLO c\r\n" + (MAIL + RCPT + b"DATA\r\n.\r\n") * 2,
            {},
            [
                Greeting("EHLO", "c"),
                *(Mail(None), Rcpt(A), Data(), EndOfContent(False, False)) * 2,
            ],
            SessionState.READY,
            id="two-messages",
        ),
        pytest.param(
            b"EHLO c\r\n" + MAIL + RCPT + b"DATA\r\na\nb\r\n.\r\n",
            {"CONTENT": 550},
            [
                *(Greeting("EHLO", "c"), Mail(None), Rcpt(A), Data(), ContentChunk(b"a\nb\r\n")),
                EndOfContent(bare_newline=True, long_line=False),
            ],
            SessionState.READY,
            id="bare-line-feed",
        ),
        pytest.param(  # RFC 3030 section 2
            b"EHLO c\r\n" + MAIL + RCPT + b"BDAT 3\r\nhelBDAT 2\r\nloBDAT 0 LAST\r\nNOOP\r\n",
            {},
            [
                *(Greeting("EHLO", "c"), Mail(None), Rcpt(A)),
                *(Bdat(3, last=False), ContentChunk(b"hel"), EndOfChunk(last=False)),
                *(Bdat(2, last=False), ContentChunk(b"lo"), EndOfChunk(last=False)),
                *(Bdat(0, last=True), EndOfChunk(last=True), Noop()),
            ],
            SessionState.READY,
            id="chunks-and-last-of-zero-octets",
        ),
        pytest.param(  # RFC 3030 section 2: octets, not lines
            b"EHLO c\r\n" + MAIL + RCPT + b"BDAT 12 LAST\r\n.\r\nQUIT\r\n\0\xff\nNOOP\r\n",
            {},
            [
                *(Greeting("EHLO", "c"), Mail(None), Rcpt(A)),
                *(Bdat(12, last=True), ContentChunk(b".\r\nQUIT\r\n\0\xff\n")),
                *(EndOfChunk(last=True), Noop()),
            ],
            SessionState.READY,
            id="chunk-of-anything",
        ),
        pytest.param(
            b"EHLO c\r\nAUTH LOGIN\r\nYQ==\r\nYg==\r\nRSET\r\n",
            {"RESPONSE": 334},
            [
                *(Greeting("EHLO", "c"), Auth("LOGIN", None), SaslResponse(b"YQ==")),
                *(SaslResponse(b"Yg=="), SaslResponse(b"RSET")),
            ],
            SessionState.AUTH,
            id="all-lines-are-responses",
        ),
        pytest.param(
            b"EHLO c\r\nAUTH PLAIN YQ==\r\n" + MAIL,
            {"AUTH": 235},
            [Greeting("EHLO", "c"), Auth("PLAIN", b"YQ=="), Mail(None)],
            SessionState.MAIL,
            id="initial-response",
        ),
        pytest.param(
            b"EHLO c\r\nAUTH PLAIN\r\n*\r\nNOOP\r\n",
            {"RESPONSE": 501},
            [Greeting("EHLO", "c"), Auth("PLAIN", None), SaslResponse(b"*"), Noop()],
            SessionState.READY,
            id="cancelled",
        ),
        pytest.param(
            b"EHLO c\r\nSTARTTLS\r\n",
            {},
            [Greeting("EHLO", "c"), StartTls()],
            SessionState.TLS,
            id="starttls",
        ),
        pytest.param(  # RFC 5321 section 4.1.4: EHLO in the middle is a RSET too
            b"EHLO c\r\n" + MAIL + RCPT + b"EHLO d\r\n" + MAIL,
            {},
            [Greeting("EHLO", "c"), Mail(None), Rcpt(A), Greeting("EHLO", "d"), Mail(None)],
            SessionState.MAIL,
            id="ehlo-in-the-middle",
        ),
        pytest.param(  # RFC 5321 section 4.1.4
            b"NOOP\r\nHELP\r\nVRFY a\r\nEXPN a\r\nRSET\r\nXYZZY 1\r\n",
            {},
            [
                *(Noop(), Other("HELP", ""), Other("VRFY", "a"), Other("EXPN", "a")),
                *(Rset(), Other("XYZZY", "1")),
            ],
            SessionState.START,
            id="before-the-greeting",
        ),
        pytest.param(b"", {}, [], SessionState.START, id="nothing"),
    ],
)
def test_script(
    script: bytes, answers: dict[str, int], events: list[Event], state: SessionState, cut: int
) -> None:
    protocol = welcomed()
    assert say(protocol, script, answers, cut=cut) == events
    assert protocol.state is state
    assert not protocol.verb


@pytest.mark.parametrize("cut", CUTS)
def test_lmtp_script(cut: int) -> None:
    # RFC 2033 section 4
    protocol = welcomed(lmtp=True)
    events = say(protocol, b"LHLO c\r\n" + MAIL + RCPT + b"DATA\r\n.\r\nQUIT\r\n", cut=cut)
    assert [type(event) for event in events] == [Greeting, Mail, Rcpt, Data, EndOfContent, Quit]


# Every row of the table, and every pair that is in no row -------------------------------------

LINES = {
    "EHLO": b"EHLO c\r\n",
    "HELO": b"HELO c\r\n",
    "LHLO": b"LHLO c\r\n",
    "MAIL": MAIL,
    "RCPT": RCPT,
    "DATA": b"DATA\r\n",
    "BDAT": b"BDAT 5\r\nhello",
    "LAST": b"BDAT 5 LAST\r\nhello",
    "RSET": b"RSET\r\n",
    "NOOP": b"NOOP\r\n",
    "QUIT": b"QUIT\r\n",
    "STARTTLS": b"STARTTLS\r\n",
    "AUTH": b"AUTH LOGIN\r\n",
    "VRFY": b"VRFY a\r\n",
    "EXPN": b"EXPN a\r\n",
    "HELP": b"HELP\r\n",
    "XCLIENT": b"XCLIENT NAME=x\r\n",
    "OTHER": b"XYZZY\r\n",
}
INPUT = {**LINES, "CONNECT": b"", "RESPONSE": b"YQ==\r\n", "CONTENT": b"a\r\n.\r\n"}
WAY = {
    SessionState.START: b"",
    SessionState.READY: b"EHLO c\r\n",
    SessionState.MAIL: b"EHLO c\r\n" + MAIL,
    SessionState.REFUSED: b"EHLO c\r\n" + MAIL + RCPT,
    SessionState.RCPT: b"EHLO c\r\n" + MAIL + RCPT,
    SessionState.DATA: b"EHLO c\r\n" + MAIL + RCPT + b"DATA\r\n",
    SessionState.CHUNKS: b"EHLO c\r\n" + MAIL + RCPT + b"BDAT 0\r\n",
    SessionState.AUTH: b"EHLO c\r\nAUTH LOGIN\r\n",
}
COMMAND_STATES = [SessionState.UNWELCOME, *(set(WAY) - {SessionState.DATA, SessionState.AUTH})]
CODES = {2: 250, 3: 334, 4: 450, 5: 550}


def brought_to(state: SessionState, *, lmtp: bool = False) -> Protocol:
    """Return a protocol in this state."""
    if state is SessionState.CONNECTED:
        return Protocol(lmtp=lmtp)
    if state is SessionState.UNWELCOME:
        return welcomed(lmtp=lmtp, banner=554)
    protocol = welcomed(lmtp=lmtp)
    script = WAY[state].replace(b"EHLO", b"LHLO" if lmtp else b"EHLO")
    say(protocol, script, {"RCPT": 550 if state is SessionState.REFUSED else 250})
    assert protocol.state is state
    return protocol


def name(value: object) -> str:
    return value.name.lower() if isinstance(value, SessionState) else str(value)


@pytest.mark.parametrize(
    ("state", "verb", "category", "target"),
    [(*key, target) for key, target in TRANSITIONS.items()],
    ids=name,
)
def test_reply_moves_the_session(
    state: SessionState, verb: str, category: int, target: SessionState
) -> None:
    protocol = brought_to(state, lmtp=verb == "LHLO")
    say(protocol, INPUT[verb], {verb: CODES[category]})
    if verb == "CONNECT":
        protocol.send(Reply(CODES[category], "text"))
    assert protocol.state is target


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    ("state", "verb"),
    [
        (state, verb)
        for state in sorted(COMMAND_STATES, key=name)
        for verb in LINES
        if (state, verb) not in {(row[0], row[1]) for row in TRANSITIONS}
    ],
    ids=name,
)
def test_what_is_in_no_row_is_out_of_sequence(state: SessionState, verb: str, cut: int) -> None:
    # RFC 5321 section 4.1.4: 503, and the state stays; section 3.3 for the recipients
    protocol = brought_to(state, lmtp=verb == "LHLO")
    events = say(protocol, LINES[verb], cut=cut)
    no_recipients = state is SessionState.REFUSED and verb in {"DATA", "BDAT", "LAST"}
    word = "BDAT" if verb == "LAST" else "XYZZY" if verb == "OTHER" else verb
    enhanced = "" if verb in {"EHLO", "HELO", "LHLO"} else " 5.5.1"  # RFC 2034 section 4
    assert refusals(events) == [f"{word} {554 if no_recipients else 503}{enhanced}"]
    assert len(events) == 1
    assert protocol.state is state
    assert not protocol.buffered


@pytest.mark.parametrize("verb", ["DATA", "BDAT"])
def test_lmtp_without_recipients_is_out_of_sequence(verb: str) -> None:
    # RFC 2033 section 4.2: 503, not 554
    events = say(brought_to(SessionState.REFUSED, lmtp=True), LINES[verb])
    assert refusals(events) == [f"{verb} 503 5.5.1"]


@pytest.mark.parametrize(
    ("state", "verb", "code"),
    [
        (SessionState.READY, "EHLO", 550),
        (SessionState.READY, "MAIL", 550),
        (SessionState.READY, "AUTH", 535),
        (SessionState.READY, "STARTTLS", 454),
        (SessionState.REFUSED, "RCPT", 450),
        (SessionState.RCPT, "RCPT", 550),
        (SessionState.RCPT, "DATA", 451),
        (SessionState.RCPT, "OTHER", 500),
        (SessionState.MAIL, "RSET", 450),
    ],
    ids=name,
)
def test_reply_of_a_class_without_a_row_changes_nothing(
    state: SessionState, verb: str, code: int
) -> None:
    # RFC 5321 section 4.1.4
    protocol = brought_to(state)
    say(protocol, LINES[verb], {verb: code})
    assert protocol.state is state


@pytest.mark.parametrize(
    ("state", "verb"),
    [
        *((state, "NOOP") for state in sorted(COMMAND_STATES, key=name)),
        *(
            (SessionState.AUTH, "RESPONSE"),
            (SessionState.DATA, "CONTENT"),
            (SessionState.RCPT, "LAST"),
        ),
        (SessionState.CONNECTED, "CONNECT"),
    ],
    ids=name,
)
def test_421_closes_from_everywhere(state: SessionState, verb: str) -> None:
    # RFC 5321 section 3.8
    protocol = brought_to(state)
    protocol.receive(INPUT[verb])
    while not protocol.verb:
        protocol.next_event()
    assert protocol.send(Reply(421, "text", "4.3.2")) == b"421 4.3.2 text\r\n"
    assert protocol.state is SessionState.CLOSED
    assert say(protocol, b"NOOP\r\n") == []


# Greetings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lmtp", "line"), [(True, b"EHLO c\r\n"), (True, b"HELO c\r\n"), (False, b"LHLO c\r\n")]
)
def test_greeting_of_the_other_protocol_is_refused(lmtp: bool, line: bytes) -> None:
    # RFC 2033 section 4.1
    protocol = welcomed(lmtp=lmtp)
    assert refusals(say(protocol, line)) == [f"{line[:4].decode()} 500"]
    assert protocol.state is SessionState.START


@pytest.mark.parametrize("line", [b"EHLO\r\n", b"HELO  \r\n", b"EHLO \0\r\n"], ids=repr)
def test_refused_greeting_has_no_enhanced_code(line: bytes) -> None:
    # RFC 2034 section 4
    assert refusals(say(welcomed(), line)) == [f"{line[:4].decode()} 501"]


def test_mail_before_the_greeting_says_what_is_missing() -> None:
    events = say(welcomed(), MAIL) + say(welcomed(lmtp=True), MAIL)
    assert [event.reply.text for event in events if isinstance(event, Refused)] == [
        "say EHLO first",
        "say LHLO first",
    ]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("hello", [b"\x16\x03\x01\x02\x00\x01", b"\x16\x03\x01\r\nNOOP\r\n"])
def test_tls_record_ends_the_session(hello: bytes, cut: int) -> None:
    protocol = welcomed()
    assert refusals(say(protocol, b"NOOP\r\n" + hello, cut=cut)) == ["OTHER 421 4.7.0"]
    assert protocol.state is SessionState.CLOSED


def test_http_request_ends_the_session() -> None:
    protocol = welcomed()
    assert refusals(say(protocol, b"POST / HTTP/1.1\r\nHost: x\r\n\r\n" + MAIL)) == [
        "OTHER 421 4.7.0"
    ]


# STARTTLS ------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [b"NOOP\r\n", b"\r\n", b"N"], ids=repr)
def test_input_behind_starttls_ends_the_session(more: bytes) -> None:
    # RFC 3207 section 6, CVE-2011-0411
    protocol = brought_to(SessionState.READY)
    assert refusals(say(protocol, b"STARTTLS\r\n" + more)) == ["STARTTLS 421 4.7.0"]
    assert protocol.state is SessionState.CLOSED
    assert not protocol.buffered


def test_session_starts_again_inside_tls() -> None:
    # RFC 3207 section 4.2
    protocol = brought_to(SessionState.READY)
    say(protocol, b"STARTTLS\r\n")
    assert say(protocol, b"NOOP\r\n") == []  # came in clear
    protocol.restart()
    assert refusals(say(protocol, MAIL)) == ["MAIL 503 5.5.1"]
    assert say(protocol, b"EHLO c\r\n") == [Greeting("EHLO", "c")]


# Lines that are too long ---------------------------------------------------------------------


@pytest.mark.parametrize("cut", [pytest.param(0, id="whole"), 1, 4096])
@pytest.mark.parametrize("size", [LONGEST_LINE - 2, LONGEST_LINE - 1, LONGEST_LINE, 20_000])
def test_session_stays_in_step_after_a_line_that_is_too_long(size: int, cut: int) -> None:
    # RFC 5321 section 4.5.3.1.4
    protocol = welcomed()
    long_line = b"NOOP ".ljust(size, b"x") + b"\r\n"
    events = say(protocol, b"NOOP\r\n" + long_line + b"HELP\r\n", cut=cut)
    assert refusals(events) == ["NOOP 500 5.5.2"]
    assert (events[0], events[-1]) == (Noop(), Other("HELP", ""))


@pytest.mark.parametrize("cut", CUTS)
def test_line_that_ends_in_the_middle_of_a_packet_pair(cut: int) -> None:
    protocol = welcomed()
    protocol.receive(b"x" * 20_000 + b"\r")
    assert protocol.next_event() is None
    assert refusals(say(protocol, b"\nNOOP\r\n", cut=cut)) == ["OTHER 500 5.5.2"]


def test_middle_of_a_long_line_is_no_tls_record() -> None:
    protocol = welcomed()
    protocol.receive(b"x" * 20_000)
    assert protocol.next_event() is None
    assert refusals(say(protocol, b"\x16\x03\r\n")) == ["OTHER 500 5.5.2"]


def test_memory_stays_bounded_in_an_endless_line() -> None:
    protocol = welcomed()
    piece = b"x" * 8192
    tracemalloc.start()
    for _ in range(100):
        protocol.receive(piece)
        assert protocol.next_event() is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 65536


@pytest.mark.parametrize("cut", [pytest.param(0, id="whole"), 1, 4096])
@pytest.mark.parametrize(("size", "is_refused"), [(12286, False), (12287, True)])
def test_authentication_line_that_is_too_long_ends_the_exchange(
    size: int, is_refused: bool, cut: int
) -> None:
    # RFC 4954 section 4: 12288 octets with CRLF; 500 5.5.6
    protocol = brought_to(SessionState.AUTH)
    events = say(protocol, b"A" * size + b"\r\n", cut=cut)
    assert refusals(events) == (["AUTH 500 5.5.6"] if is_refused else [])
    assert protocol.state is SessionState.READY


def test_line_of_content_that_is_too_long_is_flagged() -> None:
    protocol = welcomed(line_length=10)
    say(protocol, WAY[SessionState.DATA])
    assert say(protocol, b"123456789\r\n.\r\n")[-1] == EndOfContent(
        bare_newline=False, long_line=True
    )


# Content -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    "state",
    [SessionState.START, SessionState.READY, SessionState.MAIL, SessionState.REFUSED],
    ids=name,
)
def test_refused_chunk_is_consumed(state: SessionState, cut: int) -> None:
    # RFC 3030 section 2: the octets are accepted and discarded, then the reply
    protocol = brought_to(state)
    events = say(protocol, b"BDAT 6 LAST\r\nQUIT\r\nNOOP\r\n", cut=cut)
    assert [type(event) for event in events] == [Refused, Noop]
    assert protocol.state is state


UNREADABLE_CHUNKS = [
    *(b"BDAT", b"BDAT ", b"BDAT x", b"BDAT 124 FIRST", b"BDAT 124LAST", b"BDAT +124", b"BDAT -1"),
    *(
        b"bdat 0x10",
        b"BDAT 1 LAST LAST",
        b"BDAT 1.5",
        b"BDAT 1e3",
        b"BDAT 1,0",
        b"BDAT\t1",
        b"BDAT1",
    ),
    *(b" BDAT 1", b"\tBDAT 1 LAST", b"BDAT 1\0", b"BDAT 1\nLAST", b"BDAT 1\x7f", b"BDAT \xff"),
    *(b"BDAT " + b"9" * 21, b"BDAT 1" + b" " * 512 + b"LAST", b"BDAT " + b"1" * LONGEST_LINE),
    *("BDAT ٣".encode(), b"BDAT-1", b"BDAT\0 1", b"BDAT=5", b"BDAT:5", b"BDATA 5", b"BDAT <5>"),
    *(b"BDAT 5;LAST", b"BDAT 5 LAST=1", b"BDAT LAST", b"BDAT LAST 5", b"BDAT 5 SIZE=5", b"BDAT\r5"),
    *(b"BDAT 5\r", b"BDAT 5 LAST\x1b[A", b"BDAT\xc2\xa05", b"BDAT 5\xe2\x80\xa8", b"BDAT 5 \x85"),
]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("lmtp", [False, True])
@pytest.mark.parametrize("line", UNREADABLE_CHUNKS, ids=lambda line: repr(line[:30]))
def test_chunk_that_cannot_be_read_ends_the_session(line: bytes, lmtp: bool, cut: int) -> None:
    # RFC 3030 section 2: an unknown number of octets follows that are not commands
    for state in COMMAND_STATES:
        protocol = brought_to(state, lmtp=lmtp)
        events = say(protocol, line + b"\r\nQUIT\r\nMAIL FROM:<>\r\n", {"OTHER": 500}, cut=cut)
        assert len(events) == 1, state
        assert protocol.state is SessionState.CLOSED


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    "line",
    # a `BDAT1` may be base64
    [b"BDAT 5", b"BDAT 5 LAST", *(line for line in UNREADABLE_CHUNKS if len(line.strip()) > 5)],
    ids=lambda line: repr(line[:30]),
)
def test_chunk_instead_of_a_response_ends_the_session(line: bytes, cut: int) -> None:
    protocol = brought_to(SessionState.AUTH)
    assert len(say(protocol, line + b"\r\nNOOP\r\n", {"RESPONSE": 501}, cut=cut)) == 1
    assert protocol.state is SessionState.CLOSED


@pytest.mark.parametrize("line", [b"BDATBDAT", b"BDATBDAT ", b"bdatQQ=="])
def test_response_that_begins_like_a_chunk_is_one(line: bytes) -> None:
    protocol = brought_to(SessionState.AUTH)
    assert len(say(protocol, line + b"\r\nNOOP\r\n", {"RESPONSE": 535})) == 2


def test_reply_to_a_refused_chunk_waits_for_its_octets() -> None:
    protocol = brought_to(SessionState.READY)
    assert say(protocol, b"BDAT 6\r\nQUIT\r") == []
    assert protocol.in_content
    assert refusals(say(protocol, b"\n")) == ["BDAT 503 5.5.1"]
    assert not protocol.in_content


def test_chunk_after_a_failed_one_is_out_of_sequence() -> None:
    # RFC 3030 section 2: pipelined chunks are consumed, whatever the reply to the first
    protocol = brought_to(SessionState.RCPT)
    script = b"BDAT 2\r\nab" + b"BDAT 6 LAST\r\nQUIT\r\n" + b"NOOP\r\n"
    events = say(protocol, script, {"BDAT": 552})
    assert [type(event) for event in events] == [Bdat, ContentChunk, EndOfChunk, Refused, Noop]
    assert protocol.state is SessionState.READY


def test_data_between_chunks_says_why_not() -> None:
    # RFC 3030 section 2
    events = say(brought_to(SessionState.CHUNKS), b"DATA\r\n")
    assert isinstance(events[0], Refused)
    assert events[0].reply == Reply(503, "DATA cannot be mixed with BDAT", "5.5.1")


def test_chunk_of_any_size_is_passed_on_as_it_comes() -> None:
    protocol = brought_to(SessionState.RCPT)
    size = 2**63
    assert say(protocol, b"BDAT %d\r\nhello" % size) == [Bdat(size, last=False), ONE_CHUNK]
    assert say(protocol, b"hello") == [ONE_CHUNK]
    assert protocol.in_content
    assert not protocol.buffered


@pytest.mark.parametrize(
    ("state", "more", "in_content"),
    [
        (SessionState.START, b"", False),
        (SessionState.RCPT, b"", False),
        (SessionState.CHUNKS, b"", False),
        (SessionState.RCPT, b"BDAT 1\r\n", True),
        (SessionState.RCPT, b"BDAT 1\r\nx", False),
        (SessionState.DATA, b"", True),
        (SessionState.DATA, b".\r\n", False),
    ],
)
def test_protocol_knows_whether_content_follows(
    state: SessionState, more: bytes, in_content: bool
) -> None:
    protocol = brought_to(state)
    say(protocol, more)
    assert protocol.in_content is in_content


# Its contract with the caller ----------------------------------------------------------------


def test_next_event_before_the_reply_is_a_mistake() -> None:
    protocol = welcomed()
    protocol.receive(b"NOOP\r\nNOOP\r\n")
    assert protocol.next_event() == Noop()
    with pytest.raises(RuntimeError, match="NOOP awaits its reply"):
        protocol.next_event()


def test_reply_to_nothing_is_a_mistake() -> None:
    with pytest.raises(RuntimeError, match="nothing to answer"):
        welcomed().send(Reply(250, "ok"))


def test_lmtp_content_is_answered_for_each_recipient() -> None:
    # RFC 2033 section 4.2
    protocol = brought_to(SessionState.DATA, lmtp=True)
    protocol.receive(b".\r\n")
    protocol.next_event()
    assert protocol.send_each([Reply(250, "ok"), Reply(550, "no")]) == b"250 ok\r\n550 no\r\n"
    assert protocol.state is SessionState.READY


def test_any_421_among_the_replies_closes() -> None:
    protocol = brought_to(SessionState.DATA, lmtp=True)
    protocol.receive(b".\r\n")
    protocol.next_event()
    protocol.send_each([Reply(421, "bye"), Reply(250, "ok")])
    assert protocol.state is SessionState.CLOSED


@pytest.mark.parametrize(
    ("state", "data"),
    [
        (SessionState.START, b"NOOP\r\n"),
        (SessionState.DATA, b"a\r\n.\r\n"),
        (SessionState.RCPT, b"BDAT 9\r\nx"),
    ],
    ids=name,
)
def test_no_event_follows_close(state: SessionState, data: bytes) -> None:
    protocol = brought_to(state)
    protocol.receive(data)
    protocol.next_event()
    protocol.close()
    assert protocol.next_event() is None
    assert protocol.state is SessionState.CLOSED


# Whatever a peer sends -----------------------------------------------------------------------

LEGAL = {
    "CONNECT": (220, 554),
    "DATA": (354, 354, 354, 451, 554),
    "AUTH": (334, 334, 235, 535),
    "RESPONSE": (334, 235, 535),
    "STARTTLS": (220, 454),
    "QUIT": (221,),
}
OTHERS = (250, 250, 250, 250, 250, 450, 550, 421)
FRAGMENTS = st.sampled_from(
    [
        *LINES.values(),
        *(LINES["EHLO"] + MAIL + RCPT, MAIL + RCPT, WAY[SessionState.DATA]),
        *(b"\r\n", b"\r", b"\n", b".", b".\r\n", b"\r\n.\r\n", b"\n.\n", b"a", b"\0", b"\xff"),
        *(b"BDAT 3\r\n", b"BDAT 7 LAST\r\n", b"BDAT 0\r\n", b"BDAT x\r\n", b"*\r\n", b"=\r\n"),
        *(b"\x16\x03", b"GET / HTTP/1.1\r\n", b"x" * 600, b"LHLO c\r\n"),
    ]
)


def played(script: bytes, choices: list[int], cut: int, *, lmtp: bool) -> list[Event]:
    """Feed a script; the n-th event gets the legal reply that n chooses."""
    protocol = Protocol(lmtp=lmtp)
    answered = 0
    events: list[Event] = []

    def reply() -> None:
        nonlocal answered
        legal = LEGAL.get(protocol.verb, OTHERS)
        choice = choices[answered % len(choices)]
        protocol.send(Reply(legal[choice % len(legal)], "text"))
        answered += 1

    reply()
    size = cut or max(len(script), 1)
    for at in range(0, len(script), size):
        protocol.receive(script[at : at + size])
        while (event := protocol.next_event()) is not None:
            if isinstance(event, Refused):
                protocol.send(event.reply)
            elif protocol.verb:
                reply()
            add(events, event)
    return events


@settings(max_examples=examples(200))
@given(
    st.lists(FRAGMENTS, max_size=14).map(b"".join) | st.binary(max_size=60),
    st.lists(st.integers(0, 7), min_size=1, max_size=6),
    st.integers(1, 9),
    st.booleans(),
)
@example(WAY[SessionState.RCPT] + LINES["BDAT"] + LINES["LAST"] + LINES["DATA"], [0], 5, False)
@example(b"\x16" + b"\x03\r\n", [0], 2, False)
@example(b"x" * LONGEST_LINE + b"\x16\x03\r\nNOOP\r\n", [0], 3, False)
def test_any_input_gives_the_same_events_in_any_pieces(
    script: bytes, choices: list[int], cut: int, lmtp: bool
) -> None:
    whole = played(script, choices, 0, lmtp=lmtp)
    pieces = played(script, choices, cut, lmtp=lmtp)
    if b"STARTTLS" not in script.upper():  # which must not be followed by anything
        assert pieces == whole


def test_strict_pipelining_refuses_what_follows_ehlo_without_waiting() -> None:
    # RFC 2920 section 3.1
    protocol = Protocol(strict_pipelining=True)
    protocol.send(Reply(220, "hello"))
    protocol.receive(b"EHLO c\r\nNOOP\r\n")
    refused = protocol.next_event()
    assert refused == Refused("EHLO", Reply(503, "wait for the reply before you go on"))
    protocol.send(refused.reply)
    assert protocol.next_event() == Noop()
    protocol.send(Reply(250, "ok"))
    protocol.receive(b"EHLO c\r\n")
    assert protocol.next_event() == Greeting("EHLO", "c")
