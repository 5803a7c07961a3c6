"""RFC 4954 and 7628: AUTH."""

from __future__ import annotations

import pytest
from client_script import (
    DATA,
    MAIL,
    NOOP,
    OK,
    RCPT,
    SENDER,
    TAKEN,
    b64,
    greeted,
    hear,
    plain,
    said,
)
from stub_plugins import Passwords, passwords_and_tokens

from minismtp.testing import Dialogue, Mailroom

GOOD = b"AUTH PLAIN " + b64("\0alice\0secret") + b"\r\n"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        pytest.param(GOOD, ["235 2.7.0"], id="initial-response"),
        pytest.param(
            b"AUTH plain\r\n" + b64("\0alice\0secret") + b"\r\n",
            ["334", "235 2.7.0"],
            id="challenge",
        ),
        pytest.param(
            b"AUTH LOGIN\r\n" + b64("alice") + b"\r\n" + b64("secret") + b"\r\n",
            ["334", "334", "235 2.7.0"],
            id="login",
        ),
        # Input outside the grammar: blanks around words and responses.
        pytest.param(
            b"auth   plain   " + b64("\0alice\0secret") + b"  \r\n", ["235 2.7.0"], id="blanks"
        ),
        pytest.param(
            b"AUTH PLAIN \r\n " + b64("\0alice\0secret") + b" \t\r\n",
            ["334", "235 2.7.0"],
            id="blanks-around-a-response",
        ),
        pytest.param(
            b"AUTH login " + b64("alice") + b" \r\n" + b64("secret") + b" \r\n",
            ["334", "235 2.7.0"],
            id="login-with-initial-response",
        ),
        pytest.param(
            b"AUTH LOGIN\r\n" + b64("alice") + b" \r\n" + b64("secret") + b"\t\r\n",
            ["334", "334", "235 2.7.0"],
            id="blanks-behind-responses",
        ),
        pytest.param(
            b"AUTH LOGIN =\r\n" + b64("secret") + b"\r\n" + NOOP,
            ["334", "535 5.7.8", OK],
            id="login-without-a-name",
        ),
        pytest.param(
            b"AUTH PLAIN\r\n *  \r\n" + NOOP, ["334", "501 5.7.0", OK], id="cancelled-with-blanks"
        ),
        pytest.param(
            b"AUTH PLAIN * \r\n" + NOOP, ["501 5.7.0", OK], id="cancelled-where-it-begins"
        ),
        pytest.param(
            b"AUTH PLAIN\r\n\r\n" + NOOP, ["334", "535 5.7.8", OK], id="response-of-nothing"
        ),
        pytest.param(
            b"AUTH PLAIN\r\n" + b64("\0alice\0secret")[:8] + b" AAAA\r\n" + NOOP,
            ["334", "501 5.5.2", OK],
            id="blank-within-a-response",
        ),
        pytest.param(
            b"AUTH PLAIN\r\n" + b64("\0alice\0secret") + b"\r\r\n" + NOOP,
            ["334", "501 5.5.2", OK],
            id="bare-cr-in-a-response",
        ),
        pytest.param(GOOD * 2, ["235 2.7.0", "503 5.5.1"], id="once-in-a-session"),
        pytest.param(b"AUTH PLAIN\r\n*\r\n" + NOOP, ["334", "501 5.7.0", OK], id="cancelled"),
        pytest.param(b"AUTH PLAIN\r\n!\r\n" + NOOP, ["334", "501 5.5.2", OK], id="no-base64"),
        pytest.param(b"AUTH PLAIN =\r\n" + GOOD, ["535 5.7.8", "235 2.7.0"], id="empty-initial"),
        pytest.param(
            b"AUTH PLAIN " + b64("\0alice\0wrong") + b"\r\n" + NOOP, ["535 5.7.8", OK], id="wrong"
        ),
        pytest.param(b"AUTH X-WIZ\r\n", ["504 5.5.4"], id="unknown-mechanism"),
        pytest.param(b"AUTH\r\n", ["501 5.5.4"], id="no-mechanism"),
        pytest.param(MAIL + GOOD, [SENDER, "503 5.5.1"], id="in-a-transaction"),
        pytest.param(
            b"AUTH PLAIN\r\n" + b"A" * 12287 + b"\r\n" + NOOP,
            ["334", "500 5.5.6", OK],
            id="response-of-12289",
        ),
        pytest.param(
            b"AUTH PLAIN ".ljust(12287, b"A") + b"\r\n" + NOOP,
            ["500 5.5.6", OK],
            id="command-of-12289",
        ),
        pytest.param(
            b"AUTH PLAIN ".ljust(13_000, b"A") + b"\r\n" + NOOP,
            ["500 5.5.6", OK],
            id="command-of-13002",
        ),
        # RFC 7628 section 3.2.3: the error is a challenge, then the 535
        pytest.param(
            b"AUTH OAUTHBEARER " + b64("n,a=al,\1auth=Bearer no\1\1") + b"\r\nAQ==\r\n",
            ["334", "535 5.7.8"],
            id="wrong-token",
        ),
        pytest.param(
            b"AUTH OAUTHBEARER " + b64("n,a=al,\1auth=Bearer t0ken\1\1") + b"\r\n",
            ["235 2.7.0"],
            id="token",
        ),
    ],
)
def test_auth_is_answered_as_its_rfc_says(script: bytes, expected: list[str]) -> None:
    # RFC 4954 sections 4 and 6
    assert said(script, passwords_and_tokens()) == expected


def test_auth_in_clear_is_538_where_others_could_read_it() -> None:
    # RFC 4954 section 6
    assert said(GOOD, passwords_and_tokens(), change={"clear_auth": False}) == ["538 5.7.11"]
    assert said(GOOD, passwords_and_tokens(), change={"clear_auth": False}, tls=True) == [
        "235 2.7.0"
    ]


@pytest.mark.parametrize(
    ("login", "parameter", "submitter"),
    [
        ("relay", b"AUTH=e+3Dmc2@x.example", "e=mc2@x.example"),
        ("relay", b"AUTH=<>", ""),
        (None, b"AUTH=e+3Dmc2@x.example", ""),
        (None, b"AUTH=<>", ""),
    ],
)
def test_submitter_is_believed_only_after_a_login(
    login: str | None, parameter: bytes, submitter: str
) -> None:
    # RFC 4954 section 5: accepted from everybody, but else as AUTH=<>
    script = MAIL.replace(b"\r\n", b" " + parameter + b"\r\n") + RCPT + DATA + b".\r\n"
    heard = hear(script, login=login)
    assert heard.codes == TAKEN
    assert heard.envelope.submitter == submitter


def test_mechanisms_are_offered_only_where_a_plugin_checks_logins() -> None:
    assert "AUTH" not in Dialogue(Mailroom()).send("EHLO client.example")


def test_login_hides_auth_from_the_next_ehlo() -> None:
    dialogue = greeted(Dialogue(Passwords()))
    assert dialogue.send(plain("secret")).startswith("235")
    assert "AUTH" not in dialogue.send("EHLO client.example")
