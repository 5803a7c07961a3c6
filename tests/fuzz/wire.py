"""The input of clients, and of load balancers in front of us."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

from fuzz.peers import decoded, message_of, pieces_of, session, text_of
from fuzz.target import target
from minismtp import Address
from minismtp.mail.cleanup import clean
from minismtp.mail.trace_fields import hops
from minismtp.services.acme_tls_challenges import PROTOCOL, TlsChallenges
from minismtp.session.xclient import apply_xclient
from minismtp.smtp import sasl
from minismtp.smtp.commands import LONGEST_LINE, CommandProblem, parse
from minismtp.smtp.dot_stuffing import ChunkLines, dotted
from minismtp.smtp.grammar import SyntaxProblem, decode_base64, decode_xtext, parse_helo
from minismtp.smtp.preamble import ProxyProblem, read_header, read_hello
from minismtp.smtp.protocol import (
    ContentChunk,
    EndOfContent,
    Event,
    Protocol,
    Refused,
    SessionState,
)
from minismtp.values.reply import Reply

_NO_CHALLENGES = TlsChallenges(Path("/nonexistent"))
_ERRORS = 10  # after which a server ends a session
_REPLIES = {"DATA": 354, "AUTH": 334, "CONTENT": 250, "RESPONSE": 235, "STARTTLS": 220, "QUIT": 221}


@target("smtp.commands", "smtp.grammar", "values.reply", raises=(CommandProblem,))
def command_line(data: bytes) -> None:
    try:
        str(parse(data))
    except CommandProblem as problem:
        problem.reply.encode().decode()
        raise


@target("smtp.grammar", "values.address", raises=(ValueError,), most=LONGEST_LINE)
def address(data: bytes) -> None:
    found = Address.parse(text_of(data))
    str(found).encode()
    assert found.ascii_domain.isprintable()


@target("smtp.grammar", raises=(SyntaxProblem,), most=LONGEST_LINE)
def words_of_commands(data: bytes) -> None:
    kind, rest = data[:1], data[1:]
    if kind == b"x":
        decode_xtext(text_of(rest))
    elif kind == b"b":
        decode_base64(rest)
    else:
        parse_helo(text_of(rest))


@target("smtp.protocol", "smtp.commands", "smtp.dot_stuffing")
def dialogue(data: bytes) -> None:
    _events(data[1:], lmtp=data[:1] == b"L")


@target("smtp.protocol", "smtp.commands", "smtp.dot_stuffing")
def dialogue_in_pieces(data: bytes) -> None:
    lmtp, data = data[:1] == b"L", data[1:4097]
    whole = _events(data, lmtp=lmtp)
    if b"STARTTLS" in data.upper():
        return  # input that follows it in one packet is refused
    assert _events(data, lmtp=lmtp, pieces=pieces_of(data)) == whole


@target("smtp.protocol")
def bdat(data: bytes) -> None:
    before = b"EHLO x\r\nMAIL FROM:<> BODY=BINARYMIME\r\nRCPT TO:<u@example.org>\r\n"
    _events(before + data)


def _events(
    data: bytes, *, lmtp: bool = False, pieces: Iterable[bytes] | None = None
) -> list[object]:
    """Run a session in which every command that is in sequence succeeds."""
    protocol = Protocol(lmtp=lmtp, line_length=998)
    protocol.send(Reply(220, "ready"))
    found: list[object] = []
    errors = 0
    for piece in pieces or [data]:
        protocol.receive(piece)
        while (event := protocol.next_event()) is not None:
            errors += isinstance(event, Refused)
            _note(found, event)
            if protocol.verb:
                protocol.send(_answer(protocol.verb, event, final=errors > _ERRORS))
    if protocol.state is not SessionState.TLS:
        found.append(protocol.state)
    return found


def _note(found: list[object], event: Event) -> None:
    """Keep an event; octets of content count as one, however they arrive."""
    if isinstance(event, EndOfContent) and event.data:
        _note(found, ContentChunk(event.data))
        event = EndOfContent(event.bare_newline, event.long_line)
    if isinstance(event, ContentChunk):
        if found and isinstance(found[-1], bytearray):
            found[-1] += event.data
        else:
            found.append(bytearray(event.data))
    elif isinstance(event, EndOfContent) or len(found) < 1000:
        found.append(event)


def _answer(verb: str, event: Event, *, final: bool) -> Reply:
    if final:
        return Reply(421, "too many errors")
    if isinstance(event, Refused):
        return event.reply
    return Reply(_REPLIES.get(verb, 250), "ok")


@target("smtp.dot_stuffing")
def dots(data: bytes) -> None:
    whole, decoder = decoded(iter([data]))
    again, other = decoded(pieces_of(data))
    assert (whole, decoder.done, decoder.rest) == (again, other.done, other.rest)
    assert (decoder.bare_newline, decoder.long_line) == (other.bare_newline, other.long_line)


@target("smtp.dot_stuffing")
def stuffing(data: bytes) -> None:
    stuffed = b"".join(dotted(io.BytesIO(data)))
    content, decoder = decoded(iter([stuffed]))
    assert decoder.done
    assert not decoder.rest
    wanted = data.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"?")
    wanted += b"\n" * data.endswith(b"\r")  # a last CR ends a line
    assert content.replace(b"\r\n", b"\n").removesuffix(b"\n") == wanted.removesuffix(b"\n")


@target("smtp.dot_stuffing")
def newlines_of_chunks(data: bytes) -> None:
    for fix in (True, False):
        whole, pieces = ChunkLines(fix=fix), ChunkLines(fix=fix)
        content = whole.take(data, last=True)
        again = b"".join([pieces.take(piece) for piece in pieces_of(data)])
        assert again + pieces.take(b"", last=True) == content
        assert pieces.bare_newline == whole.bare_newline


@target("smtp.sasl", raises=(sasl.SaslProblem,), most=2 * LONGEST_LINE)
def sasl_responses(data: bytes) -> None:
    number, *responses = data.split(b"\n") if data else [b""]
    key = sasl.StoredKey(b"salt", sasl.FEWEST_ITERATIONS, bytes(32), bytes(32))
    exchanges = (
        *(sasl.plain, sasl.login, sasl.oauthbearer, sasl.xoauth2, sasl.oauth_failure),
        *(lambda: sasl.external("me"), lambda: sasl.scram_sha_256({"u": key}.get)),
    )
    exchange = exchanges[len(number) % len(exchanges)]()
    challenge = next(exchange)
    try:
        for response in responses:
            # A client that proves nothing may still repeat our nonce.
            challenge = exchange.send(response.replace(b"NONCE", challenge))
    except StopIteration as done:
        str(done.value)


@target("smtp.sasl", raises=(ValueError,))
def stored_key(data: bytes) -> None:
    key = sasl.StoredKey.parse(text_of(data))
    assert sasl.StoredKey.parse(key.text) == key


@target("smtp.preamble", raises=(ProxyProblem, EOFError))
def proxy_header(data: bytes) -> None:
    stream = io.BytesIO(data)

    def receive(size: int) -> bytes:
        found = stream.read(size)
        if len(found) < size:
            raise EOFError
        return found

    read_header(receive)


@target("smtp.preamble", "services.acme_tls_challenges")
def client_hello(data: bytes) -> None:
    found = read_hello(lambda count: data[:count])
    assert len(found.name) + sum(map(len, found.protocols)) <= len(data)
    for protocols in (found.protocols, (PROTOCOL.encode(),)):
        assert _NO_CHALLENGES.context(found.name, protocols) is None


@target("session.xclient", raises=(SyntaxProblem,), most=LONGEST_LINE)
def xclient(data: bytes) -> None:
    apply_xclient(session(), text_of(data))


@target("mail.trace_fields", "mail.cleanup")
def trace_fields(data: bytes) -> None:
    cleaned = clean(message_of(data).content, 1 << 16, frozenset({"bcc", "return-path"}))
    if cleaned is not None:
        section, content = cleaned
        hops(section)
        again = clean(content, 1 << 18)
        if again != (section, content):
            raise AssertionError("a settled header is settled differently the second time")
