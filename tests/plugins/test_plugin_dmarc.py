"""Policies of domains, and the mail that they apply to."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from minismtp_plugins.dmarc import DMARC, Dmarc, DmarcResult
from zones import DictionaryResolver

from minismtp import (
    AuthResult,
    Envelope,
    Message,
    UnansweredError,
    hookimpl,
    plugin,
    results_of,
)
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.runtime.log import Log
from minismtp.testing import Dialogue, Mailroom

RECORD = "v=DMARC1; p=reject"
NONE = "v=DMARC1; p=none"
AT_B = "a@b.example.org"
REFUSED = "550 5.7.1 example.org does not know this message as its own (DMARC)"
Records = dict[str, list[str] | UnansweredError]


def spf(domain: str, result: str = "pass") -> AuthResult:
    return AuthResult("spf", result, properties={"smtp.mailfrom": f"a@{domain}"})


def dkim(domain: str, result: str = "pass") -> AuthResult:
    return AuthResult("dkim", result, properties={"header.d": domain})


NOTHING = (spf("client.example", "none"), AuthResult("dkim", "none"))


@plugin
class Checks:
    """Adds results before, and keeps the findings after."""

    results: list[AuthResult]

    def __post_init__(self) -> None:
        self.found: list[str] = []
        self.result: DmarcResult | None = None
        self.quarantined: str | None = None

    @hookimpl
    def on_mail(self, envelope: Envelope) -> None:
        results_of(envelope).extend(self.results)


@plugin
class After:
    """Keeps the result of dmarc."""

    checks: Checks

    @hookimpl
    def on_message(self, envelope: Envelope, message: Message) -> None:
        self.checks.found = [str(each) for each in results_of(envelope)[len(self.checks.results) :]]
        self.checks.result = envelope.stash.get(DMARC, None)
        self.checks.quarantined = message.quarantined


def judged(
    records: Records | str | None,
    *results: AuthResult,
    sender: str = "alice@example.org",
    header: str | None = None,
    reverse_path: str = "x@client.example",
    options: dict[str, Any] | None = None,
    **dialogue: Any,  # noqa: ANN401 - any option
) -> tuple[str, Checks]:
    """Return the reply to a message, and the results of the plugins."""
    if isinstance(records, str):
        records = {"_dmarc.example.org": [records]}
    checks = Checks(results=[*(results or NOTHING)])
    talk = Dialogue(
        checks, Dmarc(**(options or {})), After(checks=checks), Mailroom(),
        resolver=DictionaryResolver(records or {}), **dialogue,
    )  # fmt: skip
    header = f"From: {sender}\n" if header is None else header
    return talk.mail(f"{header}Subject: x\n\nHello.\n", sender=reverse_path), checks


# Passing


@pytest.mark.parametrize(
    ("result", "record", "passes"),
    [
        (dkim("example.org"), RECORD, True),
        (dkim("Example.ORG"), RECORD, True),
        (dkim("mail.example.org"), RECORD, True),
        (dkim("mail.example.org"), f"{RECORD}; adkim=s", False),
        (dkim("example.org"), f"{RECORD}; adkim=s", True),
        (dkim("example.org"), f"{RECORD}; aspf=s", True),
        (dkim("example.org", "fail"), RECORD, False),
        (dkim("example.org", "policy"), RECORD, False),
        (dkim("example.net"), RECORD, False),
        (dkim("notexample.org"), RECORD, False),
        (dkim("org"), RECORD, False),
        (spf("example.org"), RECORD, True),
        (spf("bounce.example.org"), RECORD, True),
        (spf("bounce.example.org"), f"{RECORD}; aspf=s", False),
        (spf("bounce.example.org"), f"{RECORD}; adkim=s", True),
        (spf("example.org", "softfail"), RECORD, False),
        (AuthResult("spf", "pass", properties={"smtp.helo": "example.org"}), RECORD, False),
        (AuthResult("iprev", "pass", properties={"header.d": "example.org"}), RECORD, False),
        (AuthResult("dkim", "pass"), RECORD, False),
    ],
)
def test_mail_passes_by_what_is_aligned(result: AuthResult, record: str, passes: bool) -> None:
    """RFC 7489 section 3.1."""
    reply, checks = judged(record, *NOTHING, result)
    if passes:
        assert reply.startswith("250 ")
        assert checks.found == ["dmarc=pass header.from=example.org policy.dmarc=reject"]
    else:
        assert reply == REFUSED


def test_name_in_helo_counts_for_the_null_reverse_path() -> None:
    helo = AuthResult("spf", "pass", properties={"smtp.helo": "mx.example.org"})
    assert judged(RECORD, NOTHING[1], helo, reverse_path="")[0].startswith("250 ")


def test_neighbours_below_a_public_suffix_are_strangers() -> None:
    records: Records = {"_dmarc.shop.co.uk": [RECORD]}
    assert judged(records, *NOTHING, dkim("other.co.uk"), sender="a@shop.co.uk")[0][:3] == "550"
    assert judged(records, *NOTHING, dkim("mail.shop.co.uk"), sender="a@shop.co.uk")[0][:3] == "250"


# Policies


@pytest.mark.parametrize(
    ("records", "sender", "disposition"),
    [
        ({"_dmarc.example.org": [RECORD]}, "a@example.org", "reject"),
        ({"_dmarc.example.org": ["v=DMARC1;p=quarantine;"]}, "a@example.org", "quarantine"),
        ({"_dmarc.example.org": ["v = DMARC1 ; P = Reject ; x"]}, "a@example.org", "reject"),
        ({"_dmarc.example.org": ["v=DMARC1; p=none"]}, "a@example.org", "none"),
        ({"_dmarc.example.org": ["V=DMARC1;\tp\t=\treject\t"]}, "a@example.org", "reject"),
        ({"_dmarc.example.org": [" v=DMARC1; p=reject; p=reject "]}, "a@example.org", "reject"),
        ({"_dmarc.example.org": ["v=DMARC1; p=reject; rua=x; rua=y"]}, "a@example.org", "reject"),
        ({"_dmarc.example.org": ["v=DMARC1; p=reject; adkim=x; aspf="]}, "a@example.org", "reject"),
        ({"_dmarc.example.org": ["v=DMARC1; p=reject; sp=QUARANTINE"]}, AT_B, "quarantine"),
        ({"_dmarc.example.org": ["v=DMARC1; p=what; rua=mailto:a@b"]}, "a@example.org", "none"),
        ({"_dmarc.example.org": ["v=DMARC1; rua=mailto:a@b!10m"]}, "a@example.org", "none"),
        ({"_dmarc.example.org": ["v=DMARC1; p=; rua=x, mailto:a@b"]}, "a@example.org", "none"),
        ({"_dmarc.example.org": [f"{RECORD}; sp=x; rua=mailto:a@b"]}, "a@example.org", "none"),
        ({"_dmarc.example.org": [f"{RECORD}; sp=x; rua=mailto:a@b"]}, AT_B, "none"),
        ({"_dmarc.example.org": [f"{RECORD}; np=x; rua=mailto:a@b"]}, "a@example.org", "none"),
        ({"_dmarc.example.org": [f"{RECORD}; p=none; rua=mailto:a@b"]}, "a@example.org", "none"),
        ({"_dmarc.example.org": ["v=DMARC1; sp=none; p=reject"]}, "a@example.org", "reject"),
        ({"_dmarc.example.org": ["v=DMARC1; sp=none; p=reject"]}, "a@b.example.org", "none"),
        ({"_dmarc.example.org": [RECORD]}, "a@a.b.example.org", "reject"),
        ({"_dmarc.example.org": [RECORD], "_dmarc.b.example.org": [NONE]}, AT_B, "none"),
        ({"_dmarc.example.org": ["v=DMARC1; p=none; np=reject"]}, "a@b.example.org", "reject"),
        ({"_dmarc.example.org": [f"{NONE}; np=reject"], "b.example.org": []}, AT_B, "none"),
        ({"_dmarc.example.org": ["v=DMARC1; p=none; np=reject"]}, "a@example.org", "none"),
        ({"_dmarc.example.org": ["v=spf1 -all", RECORD]}, "a@example.org", "reject"),
        ({"_dmarc.xn--bcher-kva.example": [RECORD]}, "a@b\u00fccher.example", "reject"),
    ],
)  # fmt: skip
def test_policy_is_that_of_the_domain_or_its_organization(
    records: Records, sender: str, disposition: str
) -> None:
    """RFC 7489 section 6.6.3; RFC 9989 for np."""
    reply, checks = judged(records, sender=sender)
    assert (reply[:3] == "550") is (disposition == "reject")
    if disposition != "reject":
        assert checks.result is not None
        assert (checks.result.result, checks.result.disposition) == ("fail", disposition)
    assert (checks.quarantined is not None) is (disposition == "quarantine")


ALMOST = "the record of example.org does not begin with v=DMARC1;"


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ({}, "the domain has no policy"),
        ({"_dmarc.example.org": ["something else"]}, "the domain has no policy"),
        ({"_dmarc.org": [RECORD]}, "the domain has no policy"),
        ({"_dmarc.example.org": [RECORD, RECORD]}, "example.org has 2 records"),
        ({"_dmarc.example.org": ["v=DMARC12; p=reject"]}, ALMOST),
        ({"_dmarc.example.org": ["v=dmarc1; p=reject"]}, ALMOST),
        ({"_dmarc.example.org": ["v=DMARC1 p=reject"]}, ALMOST),
        ({"_dmarc.example.org": ["DMARC1; p=reject"]}, ALMOST),
    ],
)
def test_domain_without_a_record_has_no_policy(records: Records, reason: str) -> None:
    """RFC 7489 section 6.6.3."""
    reply, checks = judged(records)
    assert reply.startswith("250 ")
    assert checks.found == [f'dmarc=none reason="{reason}" header.from=example.org']


def test_of_several_records_none_counts_nor_that_of_the_organization() -> None:
    """RFC 7489 section 6.6.3, step 5."""
    records: Records = {"_dmarc.b.example.org": [RECORD, NONE], "_dmarc.example.org": [RECORD]}
    reply, checks = judged(records, sender=AT_B)
    assert reply.startswith("250 ")
    assert checks.found == [
        'dmarc=none reason="b.example.org has 2 records" header.from=b.example.org'
    ]


def test_true_reason_is_told_where_the_organization_has_none() -> None:
    _, checks = judged({"_dmarc.b.example.org": ["v=dmarc1; p=reject"]}, sender=AT_B)
    assert "the record of b.example.org does not begin with v=DMARC1;" in checks.found[0]


@pytest.mark.parametrize(
    "rest", ["p=refuse", "", "p=none; p=reject", "p=reject; sp=x", "p=x; rua=", "rua=a@b"]
)
def test_record_without_a_policy_is_an_error_that_refuses_nothing(rest: str) -> None:
    """RFC 7489 section 6.6.3, step 6."""
    reply, checks = judged(f"v=DMARC1; {rest}")
    assert reply.startswith("250 ")
    reason = "the policy in its record is not valid"
    assert checks.found == [f'dmarc=permerror reason="{reason}" header.from=example.org']


@pytest.mark.parametrize(
    ("record", "disposition"),
    [
        ("v=DMARC1; p=reject; pct=50", "quarantine"),
        ("v=DMARC1; p=reject; pct=51", "reject"),
        ("v=DMARC1; p=quarantine; pct=0", "none"),
        ("v=DMARC1; p=none; pct=0", "none"),
        ("v=DMARC1; p=reject; pct=often", "reject"),
        ("v=DMARC1; p=reject; t=y", "quarantine"),
        ("v=DMARC1; p=reject; t=n", "reject"),
    ],
)
def test_policy_is_weaker_outside_the_sample(
    record: str, disposition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 7489 section 6.6.4."""
    monkeypatch.setattr("minismtp_plugins.dmarc.secrets.randbelow", lambda _: 50)
    reply, checks = judged(record)
    assert (reply == REFUSED) is (disposition == "reject")
    assert (checks.quarantined is not None) is (disposition == "quarantine")


def test_with_report_only_nothing_is_done() -> None:
    reply, checks = judged(RECORD, options={"action": "report_only"})
    assert reply.startswith("250 ")
    reason = "example.org does not know this message as its own"
    told = f'dmarc=fail reason="{reason}" header.from=example.org policy.dmarc=reject'
    assert checks.found == [told]
    assert checks.result is not None
    assert checks.result.disposition == "reject"


# From fields


@pytest.mark.parametrize(
    "header",
    [
        "",
        "From: undisclosed:;\n",
        "From: MAILER-DAEMON\n",
        "From: Mail Delivery System <MAILER-DAEMON>\n",
        "From: <>\n",
        "From:\n",
        "From: a@[192.0.2.1\n",
        f"From: a@{'x' * 64}.example.org\n",
    ],
    ids=["no field", "no address", "bare", "name", "null", "empty", "literal", "label"],
)
def test_message_without_a_domain_to_ask_has_no_policy(header: str) -> None:
    """RFC 7489 section 6.6.1 leaves that open; no domain asks for a refusal."""
    reply, checks = judged(RECORD, header=header)
    assert reply.startswith("250 ")
    assert checks.found == ['dmarc=permerror reason="no From field has a domain"']


@pytest.mark.parametrize(
    "header",
    [
        "From: alice@example.net\nFrom: alice@example.org\n",
        "From: a@example.org@example.net\n",
        "From: <@example.net:a@example.org>\n",
        "From: a\0 <a@example.org>\n",
        "From: Alice <a@example.org\n",
        "From: (Alice <a@example.org>\n",
        "From: "
        + ",\n ".join(f"a@x{number}.example" for number in range(15))
        + ", a@example.org\n",
    ],
    ids=["two fields", "two @", "route", "NUL", "bracket", "comment", "domains"],
)
def test_broken_from_field_is_judged_by_all_domains_that_it_shows(header: str) -> None:
    assert judged(RECORD, header=header)[0] == REFUSED
    assert judged(NONE, header=header)[0].startswith("250 ")
    assert judged(RECORD, *NOTHING, dkim("example.org"), header=header)[0].startswith("250 ")


@pytest.mark.parametrize(
    ("addresses", "text"),
    [
        ([f"a@x{number}.example" for number in range(17)], "From has more than 16 domains"),
        (["a@example.net"] * 1001, "From has more than 1000 addresses"),
    ],
)
def test_more_domains_than_anybody_sends_for_are_refused(addresses: list[str], text: str) -> None:
    value = ",\n ".join(addresses)
    reply, _ = judged(RECORD, header=f"From: {value}\n")
    assert reply == f"550 5.7.1 {text} (DMARC)"


def test_each_of_several_domains_has_to_pass() -> None:
    several = "alice@example.net, eve@example.org"
    assert judged(RECORD, *NOTHING, dkim("example.net"), sender=several)[0] == REFUSED
    both = (*NOTHING, dkim("example.net"), dkim("example.org"))
    reply, checks = judged(RECORD, *both, sender=several)
    assert reply.startswith("250 ")
    assert checks.result is not None
    assert checks.result.result == "none"  # of example.net


@settings(max_examples=examples(50))
@given(st.text(st.sampled_from('"\\()<>@.,:; ab\u00fc\u3002'), max_size=60))
def test_nothing_in_a_from_field_is_a_failure(value: str) -> None:
    reply, _ = judged(RECORD, header=f"From: {value}\n")
    assert reply[:3] in ("250", "550")


@settings(max_examples=examples(50))
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60))
def test_nothing_in_a_record_is_a_failure(value: str) -> None:
    clean = value.replace('"', "").replace("\\", "")
    assert judged(f"v=DMARC1; {clean}")[0][:3] in ("250", "550")


# What is not known


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "451 4.7.1 the mail of example.org cannot be checked now (DMARC)"),
        ({"temperror": "tag"}, "250"),
        ({"action": "report_only"}, "250"),
    ],
)
@pytest.mark.parametrize(
    ("records", "result"),
    [
        ({"_dmarc.example.org": UnansweredError("no answer")}, dkim("example.org")),
        ({"_dmarc.example.org": [RECORD]}, dkim("example.org", "temperror")),
        ({"_dmarc.example.org": [RECORD]}, spf("example.org", "temperror")),
    ],
    ids=["record", "dkim", "spf"],
)
def test_mail_waits_for_the_dns_unless_told_otherwise(
    records: Records, result: AuthResult, options: dict[str, Any], expected: str
) -> None:
    reply, checks = judged(records, *NOTHING, result, options=options)
    assert reply.startswith(expected)
    if expected == "250":
        assert checks.found[0].startswith("dmarc=temperror ")


@pytest.mark.parametrize(
    ("record", "results"),
    [
        (RECORD, (dkim("example.org"), spf("example.org", "temperror"))),
        ("v=DMARC1; p=none", (dkim("example.org", "temperror"), NOTHING[0])),
        (RECORD.replace("reject", "none"), (spf("example.org", "temperror"), NOTHING[1])),
    ],
)
def test_answer_that_would_not_decide_is_not_waited_for(
    record: str, results: tuple[AuthResult, ...]
) -> None:
    assert judged(record, *results)[0].startswith("250 ")


def test_time_for_all_questions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 0.0, 9.0, 31.0])
    clock = SimpleNamespace(monotonic=now.__next__)
    monkeypatch.setattr("minismtp_plugins._dns.time", clock)
    reply, _ = judged({"_dmarc.example.org": []}, sender="a@b.example.org")
    assert reply == "451 4.7.1 the mail of b.example.org cannot be checked now (DMARC)"


@pytest.mark.parametrize("missing", ["spf", "dkim"])
def test_check_that_is_missing_is_a_failure(
    missing: str, capfd: pytest.CaptureFixture[str]
) -> None:
    left = [each for each in NOTHING if each.method != missing]
    reply, _ = judged(RECORD, *left, log=Log(level="error"))
    assert reply.startswith("451 4.3.0 ")
    problem = f"there is no result of {missing}: it has to be checked before DMARC"
    assert problem in capfd.readouterr().err


@pytest.mark.parametrize("scene", [{"login": "alice"}, {"peer": "10.1.2.3"}, {"peer": "unix"}])
def test_our_own_are_left_alone(scene: dict[str, Any]) -> None:
    reply, checks = judged(RECORD, AuthResult("x", "pass"), **scene)
    assert reply.startswith("250 ")
    assert (checks.found, checks.result) == ([], None)


def test_fault_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as fault:
        build(Dmarc, {"patience": "0s"}, file="c.toml", key="plugins[0]", base=tmp_path)
    assert 'patience: expected more than "0s"' in str(fault.value)
