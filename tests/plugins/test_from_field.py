"""The domains in a From field, for signing and for judging, compared with other readers."""

from __future__ import annotations

import email.policy
import re
import time
from collections.abc import Callable
from email.utils import getaddresses
from pathlib import Path
from typing import Final

import pytest
from dovecot import Dovecot
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from minismtp_plugins import _from
from minismtp_plugins._from import TooManyDomainsError, domains_of

from minismtp import Headers

FIELDS: Final[dict[str, list[str]]] = {
    # As RFC 5322 has it
    "a@example.org": ["example.org"],
    "<a@example.org>": ["example.org"],
    "Alice <a@Example.ORG>": ["example.org"],
    '"b@bank.example" <a@example.org>': ["example.org"],
    '"b@bank.example, <c@bank.example>" <a@example.org>': ["example.org"],
    '"a\\"@bank.example" <a@example.org>': ["example.org"],
    "a@example.org (b@bank.example)": ["example.org"],
    "A (at (nested) c@bank.example) <a@example.org>": ["example.org"],
    "a(b)@(c)example(d).(e)org(f)": ["example.org"],
    "<a @ example . org>": ["example.org"],
    "<a@\texample.org >": ["example.org"],
    '"a@bank.example"@example.org': ["example.org"],
    '<"a@bank.example"@example.org>': ["example.org"],
    "<a@example.org>, b@example.com": ["example.org", "example.com"],
    "A <a@example.org>,, B <b@example.org>": ["example.org"],
    "Group: a@example.org, B <b@example.com>;": ["example.com", "example.org"],
    "<@relay.example,@x.example:a@example.org>": ["example.org"],
    "=?utf-8?q?b=40bank.example?= <a@example.org>": ["example.org"],
    "a@b\u00fccher.example": ["xn--bcher-kva.example"],
    "a@stra\u00dfe.example": ["xn--strae-oqa.example"],
    "J\u00f6rg <a@example.org>": ["example.org"],
    # Without a domain
    "": [],
    "MAILER-DAEMON": [],
    "<>": [],
    "<MAILER-DAEMON>": [],
    "Mail Delivery System <MAILER-DAEMON>": [],
    "undisclosed:;": [],
    "a@": [],
    "a@[192.0.2.1]": [],
    "a at example.org": [],
    "a%example.org": [],
    # As real senders write
    "a@example.org.": ["example.org"],
    "Alice <a@example.org.>": ["example.org"],
    "Doe, John <a@example.org>": ["example.org"],
    "b@bank.example <a@example.org>": ["example.org"],
    "<a@example.org> Alice": ["example.org"],
    "a@example.org Alice Smith": ["example.org"],
    "Alice [Sales] <a@example.org>": ["example.org"],
    "Alice: <a@example.org>": ["example.org"],
    "Alice <alice> <a@example.org>": ["example.org"],
    "a@example.org <>": ["example.org"],
    "O'Neil <a@example.org>": ["example.org"],
    'Bob "Nick" Smith <a@example.org>': ["example.org"],
    "a@example.org; b@example.com": ["example.org", "example.com"],
    "'a@example.org'": ["example.org"],
    "<mailto:a@example.org>": ["example.org"],
    "Alice [mailto:a@example.org]": ["example.org"],
    '"a@example.org"': ["example.org"],
    "(a@example.org)": ["example.org"],
    "=?utf-8?q?Alice_=3Ca=40example.org=3E?=": ["example.org"],
    # Never closed
    "Alice <a@example.org": ["example.org"],
    "a@example.org>": ["example.org"],
    "<<a@example.org>>": ["example.org"],
    "(Alice <a@example.org>": ["example.org"],
    "a@example.org (Alice": ["example.org"],
    "Alice ((work) <a@example.org>": ["example.org"],
    "Alice :-( <a@example.org>": ["example.org"],
    '"Alice <a@example.org>': ["example.org"],
    'Alice" <a@example.org>': ["example.org"],
    '"Alice (b@bank.example <a@example.org>': ["example.org"],
    # Where readers differ
    "<b@bank.example> <a@example.org>": ["bank.example", "example.org"],
    "Bob <a@example.org> b@bank.example": ["example.org", "bank.example"],
    "a@bank.example@example.org": ["bank.example", "example.org"],
    "<a @ bank.example @ example.org>": ["bank.example", "example.org"],
    "@relay.example:a@example.org": ["relay.example", "example.org"],
    '"Alice <b@bank.example>, "Bob" <a@example.org>': ["bank.example", "example.org"],
    "a@example.org (Alice, <b@bank.example>": ["example.org", "bank.example"],
    'a@"bank.example"': ["bank.example"],
    'a@"bank.example", b@example.org': ["bank.example", "example.org"],
    "<@example.org>": ["example.org"],
    "a@.example.org": ["example.org"],
    "a@bank..example.org": ["bank.example.org"],
    "a@example.org/b": ["example.org"],
    "a@example.org\u00a0": ["example.org"],
    "a@exam\u00adple.org": ["example.org"],
    "a@example\u3002org": ["example.org"],
    "=?utf-8?q?a=40bank.example?=@example.org": ["bank.example", "example.org"],
    "=?utf-8?b?YUBiYW5rLmV4YW1wbGU=?==?utf-8?q?=00?=@example.org": ["bank.example", "example.org"],
    "a@bank.example\0@example.org": ["bank.example", "example.org"],
    "a\0 <a@example.org>": ["example.org"],
    "<a@bank.example\x0b.example.org>": ["bank.example", "bank.example.example.org"],
}


def read(value: str) -> list[str]:
    """Return the domains in a field as it arrives."""
    return domains_of(Headers([f"From: {value}\r\n".encode()]).get_all("From"))


@pytest.mark.parametrize(("value", "domains"), FIELDS.items())
def test_domains_are_those_that_are_shown(value: str, domains: list[str]) -> None:
    """RFC 5322 sections 3.4 and 4.4."""
    assert sorted(read(value)) == sorted(domains)


def test_latin_1_and_folding_hide_no_domain() -> None:
    raw = b"From: J\xf6rg\r\n <a@\r\n\texample.org>\r\n"
    assert domains_of(Headers([raw]).get_all("From")) == ["example.org"]


def test_domains_of_all_fields_count() -> None:
    assert domains_of(["a@example.org", "", "b@bank.example"]) == ["example.org", "bank.example"]


def test_so_many_domains_or_addresses_are_nobodys() -> None:
    domains_of([",".join(f"a@x{number}.example" for number in range(16))])
    with pytest.raises(TooManyDomainsError, match="more than 16 domains"):
        domains_of([",".join(f"a@x{number}.example" for number in range(17))])
    domains_of([",".join(["a@example.org"] * 1000)])
    with pytest.raises(TooManyDomainsError, match="more than 1000 addresses"):
        domains_of([",".join(["a@example.org"] * 1001)])


def of_python(value: str) -> set[str]:
    """Return the domains that the parsers of Python find where a name is no address."""
    message = email.message_from_string(f"From: {value}\n\n", policy=email.policy.default)
    try:
        found = [each.domain for each in message["From"].addresses]
    except (AttributeError, IndexError, ValueError):  # it fails with some messages
        found = []
    found += [address.rpartition("@")[2] for _, address in getaddresses([value]) if "@" in address]
    return {each.strip(".").lower() for each in found if each}


_NAMES: Final = ("Alice", '"Smith, Bob"', '"x@y.example"', "(who)", "=?utf-8?q?a=40b?=", "", "A B")
_ADDRESSES: Final = (
    *("a@one.example", "b@two.example", "c @ three.example", '"d e"@four.example', "MAILER-DAEMON"),
    *("e@(f)five.example", "g@six.example.", "<h@seven.example>", "<@r.example:i@eight.example>"),
)
_ENDS: Final = ("", " ", ", ", "; ", "(never closed", "(closed)", ">", "\t")


@settings(max_examples=examples(300))
@given(
    st.lists(
        st.tuples(
            st.sampled_from(_NAMES), st.sampled_from(_ADDRESSES), st.sampled_from([", ", "; "])
        ),
        max_size=4,
    ),
    st.sampled_from(_ENDS),
)
def test_no_domain_that_python_finds_escapes(pieces: list[tuple[str, str, str]], end: str) -> None:
    texts = (
        f"{name} {address if address[0] == '<' else f'<{address}>'}{between}"
        for name, address, between in pieces
    )
    value = "".join(texts) + end
    assert of_python(value) <= set(read(value))


@settings(max_examples=examples(300))
@given(st.from_regex(_from._PLAIN, fullmatch=True))  # noqa: SLF001 - what is to be compared
def test_plain_field_is_read_as_any_other(value: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_from, "_PLAIN", re.compile("(?!)"))
        expected = domains_of([value])
    assert domains_of([value]) == expected


@settings(max_examples=examples(300))
@given(st.text(st.sampled_from('"\\()<>@.,:; ab\u00fc\u3002'), max_size=60))
def test_nothing_that_is_left_open_hides_the_address_behind_it(value: str) -> None:
    found = read(f"{value}, a@bank.example")
    assert all(re.fullmatch(r"[a-z0-9_.-]+", name) for name in found)
    assert "bank.example" in found


@pytest.mark.parametrize(
    "unit", ["(", '"', "<", "a,", ":;", " ", "\\", '"a"', "=?utf-8?q?", "\0", "."]
)
def test_field_made_to_be_slow_takes_linear_time(unit: str) -> None:
    """A quadratic algorithm would need hours."""
    assert domains_of([f"{unit * 300_000}@example.org"]) in (["example.org"], [])


def envelope_domains(dovecot: Dovecot, mail: Path, values: list[str]) -> dict[str, set[str]]:
    """Return the domains of From in the ENVELOPE that Dovecot has for each field."""
    new = mail / "reader" / "new"
    for folder in ("new", "cur", "tmp"):
        (mail / "reader" / folder).mkdir(parents=True, exist_ok=True)
    for number, value in enumerate(values):
        content = f"From: {value}\r\nSubject: n{number}\r\n\r\nx\r\n".encode()
        (new / f"{int(time.time())}.{number}.host").write_bytes(content)
    with dovecot.log_in("reader") as client:
        client.select()
        text = b"".join(_inline(item) for item in client.fetch("1:*", "(ENVELOPE)")[1])
    found: dict[str, set[str]] = {}
    for line in text.split(b"ENVELOPE (NIL ")[1:]:
        match = re.match(rb'"n(\d+)" (NIL|\(\(.*?\)\)) (?:NIL|\(\()', line)
        assert match, line
        hosts = re.findall(rb'(?:"(?:[^"\\]|\\.)*"|NIL) "((?:[^"\\]|\\.)*)"\)', match[2])
        found[values[int(match[1])]] = {host.decode().lower() for host in hosts}
    return found


def _beginning(host: str) -> str:
    """Return the domain that can be looked up; Dovecot has a name of its own for none."""
    match = re.match(r"[a-z0-9_.-]*", host)
    assert match is not None
    return match[0].strip(".") if "." in host else ""


def _inline(item: object) -> bytes:
    """Return a piece of a response, with the literal at its end as a quoted string."""
    if isinstance(item, tuple):
        return bytes(item[0].rpartition(b"{")[0] + b'"' + item[1].replace(b'"', b"'") + b'"')
    assert isinstance(item, bytes)
    return item


def test_no_domain_that_dovecot_shows_escapes(
    tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], str]
) -> None:
    directory = tmp_path_factory.mktemp("dovecot")  # with a short name, for its sockets
    mail = directory / "mail"
    values = [value for value in FIELDS if value.isprintable() and value.isascii()]
    program, unshare = require_program("dovecot"), require_program("unshare")
    dovecot = Dovecot(program, unshare, directory, mail)
    try:
        shown = envelope_domains(dovecot, mail, values)
    finally:
        dovecot.stop()
    assert len(shown) == len(values)
    missing = {
        value: hosts
        for value, hosts in shown.items()
        if not {_beginning(host) for host in hosts} <= {"", *read(value)}
    }
    # All mail programs that we know show the address in brackets, and the other as a name.
    assert missing == {"b@bank.example <a@example.org>": {"bank.example"}}
