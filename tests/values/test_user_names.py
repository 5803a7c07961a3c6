"""Names of users as people type them: same user or different users (RFC 8265)."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from minismtp_plugins.mailboxes import Mailboxes
from minismtp_plugins.password_file import PasswordFile
from scram import scram
from test_plugin_mailboxes import route

from minismtp import Address, Reject
from minismtp.session.submission import is_owner
from minismtp.smtp.sasl import make_key
from minismtp.testing import Dialogue
from minismtp.values.passwords import hash_password
from minismtp.values.user_names import folded_local, folded_name, prepared_password

if TYPE_CHECKING:
    from pathlib import Path

#: The typed name, and the user.
SAME: Final = [
    ("ALICE", "alice"),
    ("aLiCe", "alice"),
    ("\uff21\uff2c\uff29\uff23\uff25", "alice"),
    ("\uff41lice", "alice"),
    ("M\u00dcLLER", "m\u00fcller"),
    ("mu\u0308ller", "m\u00fcller"),
    ("MU\u0308LLER", "m\u00fcller"),
    ("STRA\u1e9eE", "stra\u00dfe"),
    ("\u0391\u0398\u0397\u039d\u0391", "\u03b1\u03b8\u03b7\u03bd\u03b1"),
    ("\u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03a3", "\u03c3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2"),
    ("\u0418\u0432\u0430\u043d", "\u0438\u0432\u0430\u043d"),
    ("\uff8a\uff9e", "\u30d0"),  # half-width katakana with its voiced mark
    ("\u1100\u1161", "\uac00"),  # hangul by letters
    ("\u212bse", "\u00e5se"),
    ("\u1e69", "s\u0323\u0307"),
]
#: Names that look alike, or that are the same by other rules (NFKC, casefold, collations).
OTHERS: Final = [
    ("strasse", "stra\u00dfe"),
    ("alice", "\u0430lice"),  # Cyrillic
    ("alice", "al\u00adice"),
    ("alice", "alice\u200b"),
    ("alice", "alic\u00e9"),
    ("alice", "alice1"),
    ("fi", "\ufb01"),
    ("i", "i\u0307"),
    ("i", "\u0131"),
    ("\u03c3", "\u03c2"),
    ("x2", "x\u00b2"),
    ("1", "\u2460"),
    ("n", "\u207f"),
    ("ss", "\u017fs"),
]


@pytest.mark.parametrize(("typed", "name"), SAME, ids=ascii)
def test_one_name_in_several_spellings(typed: str, name: str) -> None:
    assert folded_local(typed) == folded_local(name)
    assert folded_name(f" {typed}@Stra\u00dfe.Example ") == folded_name(
        f"{name}@xn--strae-oqa.example"
    )


@pytest.mark.parametrize(("one", "other"), OTHERS, ids=ascii)
def test_other_names_stay_others(one: str, other: str) -> None:
    assert folded_local(one) != folded_local(other)
    assert folded_name(f"{one}@example.org") != folded_name(f"{other}@example.org")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("alice", "alice@example.org"),
        ("alice@strasse.example", "alice@stra\u00dfe.example"),
        ("alice@example.org", "alice@example.com"),
        ("a@b@c", "a@c"),
        ("alice", "alice@"),
        ("alice", "ali ce"),
        ("alice", "alice\n"),
        ("alice", "alice\0"),
    ],
    ids=ascii,
)
def test_other_names_with_domains_stay_others(one: str, other: str) -> None:
    assert folded_name(one) != folded_name(other)


@given(st.text())
def test_spelling_is_final(name: str) -> None:
    folded = folded_local(name)
    assert folded_local(folded) == folded
    assert prepared_password(prepared_password(name)) == prepared_password(name)
    assert folded_name(folded_name(name)) == folded_name(name)


@given(st.text(st.characters(codec="ascii")), st.text(st.characters(codec="ascii")))
def test_in_ascii_only_case_makes_no_difference(one: str, other: str) -> None:
    assert (folded_local(one) == folded_local(other)) is (one.lower() == other.lower())


# Mailboxes, and senders that a user may use


@pytest.mark.parametrize(("typed", "name"), SAME, ids=ascii)
def test_mail_reaches_the_mailbox_in_each_spelling(typed: str, name: str, tmp_path: Path) -> None:
    here = [f"{folded_local(name)}@example.org"]
    assert route(Mailboxes(domains=["example.org"], users=[name]), typed) == here
    assert route(Mailboxes(domains=["example.org"], users=[typed]), name) == here
    assert route(Mailboxes(domains=["example.org"]), typed) == here
    (tmp_path / "aliases").write_text(f"{typed}: bob\nlist: {typed}\n", encoding="utf-8")
    aliases = Mailboxes(domains=["example.org"], users=["bob"], aliases_file=tmp_path / "aliases")
    assert route(aliases, name) == ["bob@example.org"]
    assert route(aliases, "list") == ["bob@example.org"]


@pytest.mark.parametrize(("one", "other"), OTHERS, ids=ascii)
def test_mailbox_of_somebody_else_is_no_mailbox(one: str, other: str) -> None:
    with pytest.raises(Reject, match="no such mailbox"):
        route(Mailboxes(domains=["example.org"], users=[one]), other)


@pytest.mark.parametrize(("typed", "name"), SAME, ids=ascii)
def test_login_may_send_as_itself_in_each_spelling(typed: str, name: str) -> None:
    for login, local in ((typed, name), (name, typed)):
        assert is_owner(login, "example.org", Address(local, "example.org"))
        assert is_owner(f"{login}@EXAMPLE.org", "", Address(local, "example.org"))


@pytest.mark.parametrize(("one", "other"), OTHERS, ids=ascii)
def test_login_may_not_send_as_somebody_else(one: str, other: str) -> None:
    for login, local in ((one, other), (other, one)):
        assert not is_owner(login, "example.org", Address(local, "example.org"))
        assert not is_owner(f"{login}@example.org", "", Address(local, "example.org"))


# Logins


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "SCRAM-SHA-256"])
@pytest.mark.parametrize("typed", ["alice", "ALICE", "\uff41LICE"])
def test_login_has_the_name_of_the_store(mechanism: str, typed: str, tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    path.write_text(f"Alice:{hash_password('secret')}:{make_key('secret').text}\n")
    dialogue = Dialogue(PasswordFile(path=path), tls=True)
    dialogue.send("EHLO client.example")
    match mechanism:
        case "PLAIN":
            said = _b64(f"{typed}\0{typed}\0secret")
            reply = dialogue.send(f"AUTH PLAIN {said}")
        case "LOGIN":
            dialogue.send(f"AUTH LOGIN {_b64(typed)}")
            reply = dialogue.send(_b64("secret"))
        case _:
            reply = scram(dialogue, typed, "secret")
    assert reply.startswith("235")
    assert dialogue.session.login == "Alice"


@pytest.mark.parametrize(
    ("identity", "asked", "accepted"),
    [
        ("Alice@Example.org", "", True),
        ("Alice@Example.org", "alice@example.org", True),
        ("alice@stra\u00dfe.example", "ALICE@xn--strae-oqa.example", True),
        ("mx.example.org", "MX.example.org", True),
        ("alice@stra\u00dfe.example", "alice@strasse.example", False),
        ("alice@example.org", "bob@example.org", False),
        ("alice@example.org", "alice", False),
    ],
    ids=ascii,
)
def test_certificate_is_for_its_name_in_each_spelling(
    identity: str, asked: str, *, accepted: bool
) -> None:
    dialogue = Dialogue(tls=True)
    assert dialogue.session.tls is not None
    dialogue.session.tls = replace(dialogue.session.tls, client_identity=identity)
    dialogue.send("EHLO client.example")
    reply = dialogue.send(f"AUTH EXTERNAL {_b64(asked) or '='}")
    assert reply.startswith("235" if accepted else "535")
    assert dialogue.session.login == (identity if accepted else None)


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
