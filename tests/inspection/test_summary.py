"""The lines of the summary about users, their passwords and their mailboxes."""

from __future__ import annotations

import itertools

import pytest

from minismtp.config import Config
from minismtp.hooks.plugin_check import Facts
from minismtp.inspection.summary import summary
from minismtp.values.user_names import folded_name

NOBODY = "users with a password: none"


def of_users(
    users: str, logins: str, domains: str = "example.org stra\u00dfe.example"
) -> list[str]:
    """Return the lines about users; the arguments are names with blanks between them."""
    facts = Facts(
        domains=dict.fromkeys(domains.split()),
        users=dict.fromkeys(users.split()),
        logins=dict.fromkeys(logins.split()),
    )
    lines = summary(Config(lenient=True), facts)
    return [line for line in lines if line.startswith(("users", "passwords"))]


@pytest.mark.parametrize(
    ("user", "login"),
    [
        ("alice", "alice"),
        ("alice", "Alice@Example.ORG"),
        ("alice", "alice@xn--strae-oqa.example"),
        ("\uff21lice", "alice@stra\u00dfe.example"),
        ("alice@example.org", "alice@example.org"),
        ("alice@example.org", "ALICE@example.org"),
    ],
)
def test_user_has_the_password_of_the_login_that_means_him(user: str, login: str) -> None:
    assert of_users(user, login) == [f"users with a password: {user}"]


@pytest.mark.parametrize(
    ("user", "login"),
    [
        ("alice", "alice@example.net"),
        ("alice", "bob@example.org"),
        ("alice@example.org", "alice"),
        ("alice@example.org", "alice@stra\u00dfe.example"),
    ],
)
def test_login_of_somebody_else_is_no_password(user: str, login: str) -> None:
    assert of_users(user, login) == [
        NOBODY,
        f"users without a password: {user}",
        f"passwords without a mailbox: {login}",
    ]


def test_many_users_in_many_domains_cost_their_sum_and_not_their_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = itertools.count()

    def counted(name: str) -> str:
        next(calls)
        return folded_name(name)

    monkeypatch.setattr("minismtp.inspection.summary.folded_name", counted)
    users = " ".join(f"u{number}" for number in range(100))
    logins = " ".join(f"u{number}@d99.example" for number in range(100))
    domains = " ".join(f"d{number}.example" for number in range(100))
    assert of_users(users, logins, domains)[0].startswith("users with a password: u0, u1, ")
    assert next(calls) < 1000
