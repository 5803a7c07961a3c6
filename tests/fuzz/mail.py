"""The content of messages: header fields, parts, archives."""

from __future__ import annotations

import io
import tempfile
from contextlib import suppress
from pathlib import Path

from fakes import envelope
from minismtp_plugins._archives import files_in
from minismtp_plugins._authres import claims, read, without_comments, written
from minismtp_plugins._budget import BrokenError, Budget, TooMuchError
from minismtp_plugins._from import TooManyDomainsError, domains_of
from minismtp_plugins._maildir_paths import Folder
from minismtp_plugins._mime import boundaries_of, encodings_of, kinds_of, names_of, values_of
from minismtp_plugins._parts import parts_of
from minismtp_plugins.attachments import Attachments
from minismtp_plugins.authentication_results import AuthenticationResults
from minismtp_plugins.rules import Condition, Evaluation, Rule
from minismtp_plugins.score import mark, remove_marks

from fuzz.peers import message_of, session, text_of
from fuzz.target import target
from minismtp import AuthResult, Headers, Reject
from minismtp.cli.stored_mail import envelope_of
from minismtp.mail.address_list import mailboxes_of
from minismtp.mail.cleanup import clean
from minismtp.mail.content import Content, ContentWriter
from minismtp.mail.headers import SIZE_LIMIT, format_field
from minismtp.mail.links import links_in, visible_text
from minismtp.mail.message import Message
from minismtp.mail.mime_conversion import Form, converted
from minismtp.mail.text_parts import texts_of
from minismtp.services.public_suffix import registrable_domain
from minismtp.session.submission import complete
from minismtp.smtp.dot_stuffing import fix_newlines


@target("mail.headers")
def header_fields(data: bytes) -> None:
    headers = Headers.parse(data)
    for name, value in headers:
        assert "\n" not in value
        headers.raw(name)
    for name in ("Subject", "From", "a"):
        assert "\n" not in headers.decoded(name)
        headers.get_all(name)
    assert data.startswith(b"".join(headers.raw_all()))


@target("mail.headers", "mail.encoded_words")
def encoded_words(data: bytes) -> None:
    headers = Headers([b"Subject: " + data])
    headers.decoded("Subject").encode()


@target("mail.headers", raises=(ValueError,))
def field_to_write(data: bytes) -> None:
    name, _, value = text_of(data).partition(":")
    raw = format_field(name, value)
    assert len(Headers.parse(raw + b"\r\n").raw_all()) == 1
    assert max(map(len, raw.split(b"\r\n"))) <= 998


@target("mail.message", "mail.content", raises=(ValueError,))
def message_to_edit(data: bytes) -> None:
    message = message_of(data)
    message.prepend("X-One", "1")
    message.remove("Subject")
    message.edit([b"X-Two: 2\r\n", *message.headers.raw_all()])
    message.copy().replace(data)
    with message.open() as reader:
        assert reader.read().startswith(b"X-Two: 2\r\nX-One: 1\r\n")


@target("mail.mime_conversion", "mail.mime_source", "mail.transfer_encoding", most=1 << 15)
def message_to_convert(data: bytes) -> None:
    eight_bit = len(data) % 2 == 0
    made = converted(
        message_of(data), eight_bit=eight_bit, binary=not eight_bit, ascii_fields=not eight_bit
    )
    form = Form.of(made)
    assert not form.long
    assert eight_bit or not form.wide


@target("mail.email_parser", most=1 << 14, memory=1 << 24)
def message_for_the_library(data: bytes) -> None:
    """Parse by the standard library, which makes an object of each word of a field."""
    message = message_of(data)
    for part in message.email().walk():
        part.get_content_type()
        part.get_filename()
        str(part["Subject"])


@target("mail.content", "smtp.dot_stuffing")
def content_of_chunks(data: bytes) -> None:
    writer = ContentWriter(Path(tempfile.gettempdir()))
    writer.write(fix_newlines(data))
    content = writer.finish()
    with content.behind(b"x", min(3, content.size)).open() as reader:
        reader.read()


@target("mail.results", "_authres")
def authentication_results(data: bytes) -> None:
    value = Headers([b"A: " + data]).get("A")
    name, results = read(value)
    assert claims(value, "mx.example.org") or name != "mx.example.org"
    for line in written("mx.example.org", results).split("\r\n")[1:]:
        assert line[0] in "\t "
        assert line[1:].isprintable()
    name.encode()


@target("mail.results", "authentication_results", raises=(ValueError,))
def authentication_results_of_others(data: bytes) -> None:
    plugin = AuthenticationResults()
    plugin.authserv_id = "mx.example.org"
    mail = envelope()
    message = message_of(data)
    plugin.on_message(session(), mail, message)


@target("mail.results")
def result_to_write(data: bytes) -> None:
    value = text_of(data)
    result = AuthResult("spf", "fail", value, {"smtp.mailfrom": value, "smtp.helo": value[:9]})
    lines = written("mx.example.org", [result]).split("\r\n")
    assert all(line.isprintable() or line[0] == "\t" for line in lines)
    _, read_again = read("".join(lines))
    assert [each.result for each in read_again] == ["fail"]


@target("_from", "_authres", "mail.address_list", raises=(TooManyDomainsError,), memory=1 << 22)
def from_field(data: bytes) -> None:
    value = text_of(data)
    without_comments(value)
    with suppress(ValueError):
        mailboxes_of(value)
    for domain in domains_of([value]):
        assert domain.isascii()


@target("_parts", "_part_reader", "_mime", "_encodings", raises=(TooMuchError,))
def parts(data: bytes) -> None:
    for part in parts_of(lambda: io.BytesIO(data)):
        for name in part.names:
            assert name
        for _ in part.decoded():
            pass


@target("_mime", raises=(TooMuchError,))
def fields_of_parts(data: bytes) -> None:
    values = values_of({b"content-type": data.split(b"\0")}, b"content-type")
    kinds_of(values, digest=False)
    encodings_of(values)
    boundaries_of(values)
    names_of(values)


@target(
    *(
        "_archives",
        "_rar",
        "_seven_zip",
        "_seven_zip_header",
        "_sequential",
        "_budget",
    ),
    raises=(TooMuchError, BrokenError),
    memory=1 << 27,  # dictionaries, which are asked for and not used
)
def archive(data: bytes) -> None:
    budget = Budget(octets=1 << 20, names=1000, levels=3)
    for inside, _ in files_in(io.BytesIO(data), "archive", budget):
        inside.name.encode("utf-8", "surrogateescape")


@target("attachments", "_parts", "_archives", "_encodings", raises=(Reject,), memory=1 << 27)
def attachments(data: bytes) -> None:
    plugin = Attachments(unpacked=1 << 20)  # type: ignore[arg-type]
    plugin.on_message(session(), envelope(), message_of(data))


@target("_maildir_paths", raises=(ValueError,))
def folders(data: bytes) -> None:
    folder, _, rest = data.partition(b"\n")
    Folder(folder="Junk", header="X-Spam-Score", least=5.0).takes(message_of(rest))
    Folder(folder="News", header="List-Id", value="*.example*").takes(message_of(rest))
    Folder(folder=text_of(folder), header="Subject", value="?").takes(message_of(rest))


@target("mail.text_parts", "mail.links", "mail.mime_source")
def texts_of_parts(data: bytes) -> None:
    texts = texts_of(message_of(data), limit=1 << 15)
    texts.visible.encode("utf-8", "surrogateescape")
    assert all(link.host for link in texts.links)


@target("mail.links", "services.public_suffix")
def links(data: bytes) -> None:
    """Read the input as HTML, and as text that is shown."""
    text = text_of(data)
    for shown in (visible_text(text), text):
        for link in links_in(text, shown, 1000):
            assert len(link.url) <= 2048
            assert registrable_domain(link.host)


@target("score")
def spam_marks(data: bytes) -> None:
    message = message_of(data)
    remove_marks(message)
    mark(message, spam=True, score=5.0, required=4.0, tests=["ONE"])


@target("cli.stored_mail")
def stored_message(data: bytes) -> None:
    envelope_of(io.BytesIO(data), "mx.example.org")


@target("session.submission", "mail.headers")
def submitted_message(data: bytes) -> None:
    mail = envelope()
    mail.login = "alice@example.org"
    cleaned = clean(Content.of(data), SIZE_LIMIT)
    if cleaned is None:
        return
    head, content = cleaned
    message = Message("m", content)
    complete(mail, message, head, "mx.example.org")
    assert "Message-ID" in message.headers or message.headers.truncated


# The module regex keeps about 90 octets for each character that it may go back to.
@target("rules", "mail.headers", raises=(TimeoutError,), memory=1 << 24)
def rules(data: bytes) -> None:
    header = Condition(header="Subject", matches="(a|b)*c")
    rule = Rule(name="x", action="tag", all=[header, Condition(sender="@client")])
    Evaluation(session(), envelope(), message_of(data), 0.02).holds(rule)
