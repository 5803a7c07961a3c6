"""The Authentication-Results field: written, read, and forged."""

from __future__ import annotations

import email.policy
import re
from pathlib import Path
from typing import Any

import pytest
from examples import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from minismtp_plugins._authres import read, written
from minismtp_plugins.authentication_results import AuthenticationResults

from minismtp import AuthResult, Envelope, Message, hookimpl, plugin, results_of
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.mail.headers import format_field
from minismtp.testing import Dialogue, Mailroom

SPF = AuthResult("spf", "pass", properties={"smtp.mailfrom": "alice@example.org"})
DKIM = AuthResult(
    "dkim", "fail", "the body is not what was signed",
    {"header.d": "example.org", "header.s": "mail", "header.b": "ab/+c=dd"},
)  # fmt: skip


@plugin
class Checks:
    """Adds results, as the plugins that check do."""

    results: list[AuthResult]

    @hookimpl
    def on_message(self, envelope: Envelope) -> None:
        results_of(envelope).extend(self.results)


def stored(
    content: str = "Subject: x\n\nHello.\n",
    *results: AuthResult,
    authserv_id: str = "mx.example.org",
    **dialogue: Any,  # noqa: ANN401 - any option
) -> bytes:
    """Return a message as it is stored, from its first Authentication-Results field on."""
    mailroom = Mailroom()
    writing = AuthenticationResults(authserv_id=authserv_id)
    talk = Dialogue(Checks(results=[*results]), writing, mailroom, **dialogue)
    assert talk.mail(content).startswith("250 ")
    [[message]] = mailroom.stored.values()
    return message[message.index(b"Authentication-Results") :]


def test_field_has_a_line_for_each_result() -> None:
    assert stored("Subject: x\n\nHello.\n", SPF, DKIM).startswith(
        b"Authentication-Results: mx.example.org;\r\n"
        b"\tspf=pass smtp.mfrom=alice@example.org;\r\n".replace(b"mfrom", b"mailfrom")
        + b'\tdkim=fail reason="the body is not what was signed" header.d=example.org\r\n'
        b' header.s=mail header.b="ab/+c=dd"\r\n'
        b"Received: "
    )


def test_field_says_none_when_nothing_was_checked() -> None:
    message = stored()
    assert message.startswith(b"Authentication-Results: mx.example.org; none\r\nReceived: ")


def test_login_of_a_user_comes_first() -> None:
    message = stored("Subject: x\n\nHello.\n", SPF, login="alice")
    assert message.startswith(
        b"Authentication-Results: mx.example.org;\r\n\tauth=pass smtp.auth=alice;\r\n\tspf=pass "
    )


def test_name_is_that_of_the_server_by_default() -> None:
    mailroom = Mailroom()
    assert Dialogue(AuthenticationResults(), mailroom).mail("A: b\n\nHello.\n").startswith("250 ")
    assert (
        b"Authentication-Results: mx.example.org; none\r\n"
        in mailroom.stored["user@example.org"][0]
    )


FORGED = [
    "mx.example.org; spf=pass",
    "MX.Example.ORG; spf=pass",
    "mx.example.org 1; spf=pass",
    "mx.example.org",
    '"mx.example.org"; spf=pass',
    '"mx.e\\xample.org" 1; spf=pass',
    '(a (nested; one) \\) ") mx.example.org (b) 1 (c); spf=pass',
    "\n (folded)\n\tmx.example.org\n ; spf=pass",
    "; mx.example.org; spf=pass",
    "(never closed mx.other.example; spf=pass",
    "",
    "mx.example.org.; spf=pass",
    "mx.example.org..; spf=pass",
    "MX.EXAMPLE.ORG. 2; spf=pass",
    "mx.example.org 1 2; spf=pass",
    "mx.example.org v1; spf=pass",
    "mx.example.org/1; spf=pass",
    "mx.example.org spf=pass",
    "mx.example.org=1; spf=pass",
    "<mx.example.org>; spf=pass",
    "mx.example.org, x; spf=pass",
    "mx.example.org:25; spf=pass",
    "[mx.example.org]; spf=pass",
    "postmaster@mx.example.org; spf=pass",
    "i=1; mx.example.org; spf=pass",
    "spf=pass; dkim=pass",
    '"mx.example.org',
    '"mx.example.org;" spf=pass',
    '" mx.example.org "; spf=pass',
    '"mx.example.org\tx"; spf=pass',
    'mx."example".org; spf=pass',
    "mx . example . org; spf=pass",
    "mx(x).(y)example.org; spf=pass",
    "mx.example.org(; spf=pass",
    "mx.example.net (never closed; spf=pass",
    "(x)mx.example.org(y)1(z); spf=pass",
    "mx.example.org(1);spf=pass",
    "\uff4d\uff58\uff0e\uff25xample\u3002org; spf=pass",
    "mx.exam\u00adple.org; spf=pass",
    "mx\u200b.example.org; spf=pass",
    "mx.ex\u0430mple.org\u202e; spf=pass",
    "=?utf-8?q?mx.example.org?=; spf=pass",
    '"=?utf-8?b?bXguZXhhbXBsZS5vcmc=?="; spf=pass',
    "m\x00x.example.org; spf=pass",
    "mx.example.org\x0b; spf=pass",
    "x y z; spf=pass",
    '"a" "b"; spf=pass',
    "\ud7ff\ufffd; spf=pass",
    ";",
    " ",
    '""; spf=pass',
    "()",
]


@pytest.mark.parametrize("value", FORGED)
@pytest.mark.parametrize("name", ["Authentication-Results", "authentication-results "])
def test_forged_field_is_removed(name: str, value: str) -> None:
    message = stored(f"A: b\n{name}: {value}\nSubject: x\n\nHello.\n")
    assert len(re.findall(rb"(?i)^authentication-results", message, re.MULTILINE)) == 1
    assert message.endswith(b"A: b\r\nSubject: x\r\n\r\nHello.\r\n")


OTHERS = [
    "mx.example.net; spf=pass",
    "mx.example.org.example.net; spf=pass",
    '"(mx.example.org)"; spf=pass',
    "other (mx.example.org); x=y mx.example.org",
]


@pytest.mark.parametrize("value", OTHERS)
def test_field_of_another_host_stays(value: str) -> None:
    line = f"Authentication-Results: {value}"
    assert line.encode() in stored(f"{line}\nSubject: x\n\nHello.\n")


def test_forged_fields_of_ten_thousand_are_all_removed() -> None:
    message = stored("Authentication-Results: mx.example.org; spf=pass\n" * 9000 + "\nHello.\n")
    assert message.count(b"Authentication-Results") == 1


@pytest.mark.parametrize(
    "filling", ["X: y\n" + f" {'x' * 900}\n" * 1500, "X: y\n" * 11_000], ids=["long", "many"]
)
def test_header_in_which_a_field_could_hide_is_refused(filling: str) -> None:
    # The server accepts no such message, but a filter may create one.
    field = "Authentication-Results: mx.example.org; spf=pass\n"

    @plugin
    class Filling:
        @hookimpl
        def on_message(self, message: Message) -> None:
            message.replace(f"A: b\n{filling}{field}\nHello.\n".encode())

    talk = Dialogue(Filling(), AuthenticationResults(), Mailroom())
    assert talk.mail("Hello.") == "550 5.7.1 the header of the message is too large"


# Reading and writing


def test_field_of_another_server_is_read() -> None:
    """As RFC 8601 appendix B has them."""
    name, results = read(
        "example.com 1; spf=pass (says (me)) smtp.mailfrom=a@example.net; none;"
        ' DKIM/1 = Pass reason="it; is \\"good\\"" header.i=@mail.example.net header . d = x;'
    )
    assert name == "example.com"
    assert results == [
        AuthResult("spf", "pass", properties={"smtp.mailfrom": "a@example.net"}),
        AuthResult("dkim", "pass", 'it; is "good"', {"header.i": "@mail.example.net", "d": "x"}),
    ]


TEXT = st.text(
    st.characters(exclude_categories=["C", "Zl", "Zp", "Zs"]) | st.just(" "), max_size=200
)


@given(TEXT, TEXT)
@example("0" * 23, "0" * 22 + ")")  # with the semicolon one too long
def test_what_is_written_can_be_read(reason: str, value: str) -> None:
    reason, value = reason.strip(), value.strip()
    result = AuthResult("spf", "pass", reason, {"smtp.helo": value} if value else {})
    field = format_field("Authentication-Results", written("mx.example.org", [result, result]))
    lines = field.decode().removesuffix("\r\n").split("\r\n")
    assert all(len(line) <= 78 for line in lines if " " in line.strip())
    unfolded = "".join(lines).partition(":")[2]
    name, found = read(unfolded)
    assert name == "mx.example.org"
    assert [each.reason for each in found] == [reason] * 2
    assert found[0].properties.get("smtp.helo", "") == value


@pytest.mark.parametrize("text", ["x" * 5000, "é" * 5000, "\\" * 5000, "a b" * 5000])
def test_long_text_is_cut_so_that_its_line_is_short_enough(text: str) -> None:
    result = AuthResult("spf", "pass", text, {"smtp.helo": text})
    field = format_field("Authentication-Results", written("mx.example.org", [result]))
    assert max(map(len, field.split(b"\r\n"))) <= 998
    (found,) = read(field.decode().partition(":")[2].replace("\r\n", ""))[1]
    assert found.reason == found.properties["smtp.helo"] == f"{text[:200]}..."


def test_parser_of_the_standard_library_finds_no_defect() -> None:
    field = format_field("Authentication-Results", written("mx.example.org", [SPF, DKIM]))
    parsed = email.message_from_bytes(field + b"\r\n", policy=email.policy.SMTP)
    assert parsed.defects == []


@settings(max_examples=examples(50))
@given(st.text(st.sampled_from('"\\();= a.1'), max_size=60))
def test_nothing_in_a_field_is_a_failure(value: str) -> None:
    read(value)


@pytest.mark.parametrize("unit", ["(", ")", '"', "\\", "a=", ";", '"a', "(a)", " ", "a.b="])
def test_field_made_to_be_slow_takes_linear_time(unit: str) -> None:
    """A quadratic algorithm would need hours."""
    read(unit * 500_000)


@pytest.mark.parametrize("name", ["mx example", "a;b", "(x)"])
def test_fault_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as fault:
        build(AuthenticationResults, {"authserv_id": name}, file="c", key="p", base=tmp_path)
    assert "expected a name such as mx.example.org" in str(fault.value)


@pytest.mark.parametrize("ours", ["bücher.example", "xn--bcher-kva.example", "BÜCHER.example."])
@pytest.mark.parametrize(
    "value",
    [
        "bücher.example",
        "xn--bcher-kva.example",
        "XN--BCHER-KVA.EXAMPLE.",
        '"BU\u0308CHER。example" 1',
    ],
)
def test_domain_is_ours_in_each_of_its_spellings(ours: str, value: str) -> None:
    line = f"Authentication-Results: {value}; spf=pass"
    message = stored(f"{line}\nSubject: x\n\nx\n", authserv_id=ours)
    assert message.lower().count(b"authentication-results:") == 1


@pytest.mark.parametrize("value", ["bücher.example", "xn--bcher-kva.example 1", "mx; a=b"])
def test_other_domain_stays_in_each_of_its_spellings(value: str) -> None:
    line = f"Authentication-Results: {value}; spf=pass"
    assert line.encode() in stored(f"{line}\nSubject: x\n\nx\n")
