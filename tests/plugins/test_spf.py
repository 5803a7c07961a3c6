"""The evaluation of SPF records: the test suite of RFC 7208, and more cases.

tests/data/spf has the suite, as published by its authors, with its license.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from minismtp_plugins._dns import (
    DnsBudget,
    Questions,
    TooManyQuestionsError,
    can_be_asked,
    unmapped,
)
from minismtp_plugins._spf import Outcome, Sender, check_host
from minismtp_plugins._spf_record import RecordError, expand, parse_macros, parse_record

from minismtp import Found, Resolver, UnansweredError

SUITE: Final = Path(__file__).parents[1] / "data" / "spf" / "rfc7208-tests.yml"
SCENARIOS: Final[list[dict[str, Any]]] = list(yaml.safe_load_all(SUITE.read_text()))
CASES: Final = {
    f"{scenario['description']}: {name}": (scenario["zonedata"], case)
    for scenario in SCENARIOS
    for name, case in scenario["tests"].items()
}


class Zone:
    """Answers from a zone of the suite. A name whose records say TIMEOUT has no others."""

    def __init__(self, data: dict[str, list[Any]]) -> None:
        self.asked: list[tuple[str, str]] = []
        self._records: dict[tuple[str, str], list[str]] = {}
        self._silent: set[str] = set()
        for name, records in data.items():
            self._add(name.lower(), records)

    def _add(self, name: str, records: list[Any]) -> None:
        of_type_txt = [item["TXT"] for item in records if "TXT" in item]
        for item in records:
            if item == "TIMEOUT":
                self._silent.add(name)
                continue
            for kind, value in item.items():
                text = "".join(value) if kind in ("TXT", "SPF") else value
                if kind == "MX":
                    text = value[1]
                if kind == "SPF":  # the suite wants it as TXT too, where there is no other
                    if not of_type_txt:
                        self._records.setdefault((name, "TXT"), []).append(text)
                elif text != "NONE":
                    self._records.setdefault((name, kind), []).append(text)

    def __call__(self, name: str, kind: str) -> Sequence[str]:
        self.asked.append((name, kind))
        name = name.lower().removesuffix(".")
        if not can_be_asked(name):
            return ()
        for _ in range(8):
            if (name, kind) in self._records:
                return self._records[name, kind]
            if name in self._silent:
                break
            if (name, "CNAME") not in self._records:
                return ()
            name = self._records[name, "CNAME"][0].lower().removesuffix(".")
        raise UnansweredError(f"no answer for {name}")


def checked(zone: Zone, *, host: str, mailfrom: str, helo: str) -> Outcome:
    local, _, domain = mailfrom.rpartition("@")
    return check_host(
        Sender(
            unmapped(ip_address(host)),
            local or "postmaster",
            domain or helo,
            helo,
        ),
        zone,
    )


@pytest.mark.parametrize("name", CASES)
def test_case_of_the_rfcs_own_suite(name: str) -> None:
    data, case = CASES[name]
    outcome = checked(
        Zone(data), host=case["host"], mailfrom=case["mailfrom"], helo=str(case["helo"])
    )
    results = case["result"] if isinstance(case["result"], list) else [case["result"]]
    assert outcome.result in results, outcome
    if "explanation" in case:
        assert (outcome.explanation or "DEFAULT") == case["explanation"]


def outcome(record: str, *, local: str = "user", **zone: list[Any]) -> Outcome:
    """Check a sender at a domain with this record, and at names below it with others."""
    data = {f"{name}.a.example": records for name, records in zone.items()}
    asked = Zone({"a.example": [{"TXT": record}], **data})
    return checked(asked, host="192.0.2.1", mailfrom=f"{local}@a.example", helo="b.example")


@pytest.mark.parametrize(
    ("macro", "value"),
    [
        ("%{s}", "strong-bad@email.example.com"),
        ("%{o}", "email.example.com"),
        ("%{d}", "email.example.com"),
        ("%{d4}", "email.example.com"),
        ("%{d3}", "email.example.com"),
        ("%{d2}", "example.com"),
        ("%{d1}", "com"),
        ("%{dr}", "com.example.email"),
        ("%{d2r}", "example.email"),
        ("%{l}", "strong-bad"),
        ("%{l-}", "strong.bad"),
        ("%{lr}", "strong-bad"),
        ("%{lr-}", "bad.strong"),
        ("%{l1r-}", "strong"),
        ("%{ir}.%{v}._spf.%{d2}", "3.2.0.192.in-addr._spf.example.com"),
        ("%{lr-}.lp._spf.%{d2}", "bad.strong.lp._spf.example.com"),
        ("%{L}%%%_%-", "strong-bad% %20"),
    ],
)
def test_macros_of_the_rfcs_examples_are_expanded(macro: str, value: str) -> None:
    """RFC 7208 section 7.4."""
    values = {
        "s": "strong-bad@email.example.com",
        "o": "email.example.com",
        "d": "email.example.com",
        "l": "strong-bad",
        "i": "192.0.2.3",
        "v": "in-addr",
    }
    assert expand(parse_macros(macro), values.__getitem__) == value


@pytest.mark.parametrize(
    "macro", ["%{d0}", "%{d00r}", "%", "%a", "%{", "%{d", "%{z}", "a b", "%{t}"]
)
def test_what_is_no_macro_is_an_error_of_the_record(macro: str) -> None:
    with pytest.raises(RecordError):
        parse_macros(macro)


def test_explanation_may_tell_the_time_and_our_name() -> None:
    found = outcome("v=spf1 -all exp=why.%{d}", why=[{"TXT": "%{r} at %{t}"}])
    assert found.explanation.startswith("unknown at 1")


@pytest.mark.parametrize("end", ["a:b%%", "a:b%_", "a:b%-", "a:b.%{d}", "a:b.c-d", "a:%{d}.x1."])
def test_domain_ends_in_a_macro_or_a_name(end: str) -> None:
    assert parse_record(f"v=spf1 {end}").mechanisms[0].text == end


@pytest.mark.parametrize(
    "end", ["a:b%%_", "a:%{d}com", "a:b.1", "a:b.c-", "a:b.-c", "a:b..", "a:b"]
)
def test_domain_that_ends_in_something_else_is_an_error(end: str) -> None:
    with pytest.raises(RecordError):
        parse_record(f"v=spf1 {end}")


def test_hosts_of_an_mx_without_such_an_address_are_not_asked_in_vain() -> None:
    """RFC 7208 section 4.6.4 counts terms; otherwise IPv4 hosts would affect senders with IPv6."""
    hosts = {f"h{number}": [{"A": "198.51.100.1"}] for number in range(5)}
    mx = [{"MX": [number, f"h{number}.a.example"]} for number in range(5)]
    zone = Zone(
        {
            "a.example": [{"TXT": "v=spf1 mx ip6:2001:db8::1 -all"}, *mx],
            **{f"{name}.a.example": records for name, records in hosts.items()},
        }
    )
    found = checked(zone, host="2001:db8::1", mailfrom="u@a.example", helo="b.example")
    assert found.result == "pass"
    assert len(zone.asked) == 7


def test_local_part_outside_ascii_matches_no_name() -> None:
    """RFC 8616 section 4."""
    record = "v=spf1 exists:%{l}.a.example -all"
    assert outcome(record, local="user", user=[{"A": "127.0.0.2"}]).result == "pass"
    assert outcome(record, local="us\u00e9r", user=[{"A": "127.0.0.2"}]).result == "fail"


@pytest.mark.parametrize(("helo", "result"), [("a.example", "pass"), ("", "fail")])
def test_ptr_whose_macros_leave_no_domain_matches_no_name(helo: str, result: str) -> None:
    zone = Zone(
        {
            "a.example": [{"TXT": "v=spf1 ptr:%{h} -all"}],
            "1.2.0.192.in-addr.arpa": [{"PTR": "b.a.example"}],
            "b.a.example": [{"A": "192.0.2.1"}],
        }
    )
    assert checked(zone, host="192.0.2.1", mailfrom="u@a.example", helo=helo).result == result


@pytest.mark.parametrize(
    ("pointers", "result"),
    [
        (["TIMEOUT"], "fail"),
        ([{"PTR": "silent.a.example"}], "fail"),
        ([{"PTR": "silent.a.example"}, {"PTR": "b.a.example"}], "pass"),
    ],
)
def test_names_of_the_address_that_the_dns_is_silent_about_do_not_match(
    pointers: list[Any], result: str
) -> None:
    """RFC 7208 section 5.5."""
    zone = Zone(
        {
            "a.example": [{"TXT": "v=spf1 ptr exists:%{p}.gone.example ptr -all"}],
            "1.2.0.192.in-addr.arpa": pointers,
            "silent.a.example": ["TIMEOUT"],
            "b.a.example": [{"A": "192.0.2.1"}],
        }
    )
    found = checked(zone, host="192.0.2.1", mailfrom="u@a.example", helo="b.example")
    assert found.result == result
    assert zone.asked.count(("1.2.0.192.in-addr.arpa", "PTR")) == 1


def test_no_question_is_asked_when_the_time_is_over() -> None:
    with pytest.raises(UnansweredError, match="no time is left"):
        Questions(Resolver(), timedelta()).ask("a.example", "A")


def test_questions_about_one_sender_are_bounded() -> None:
    """Ten terms, each with ten hosts: the most questions that a record can cause."""
    mx = [{"MX": [number, f"h{number}.a.example"]} for number in range(10)]
    names = {f"h{number}.a.example": [{"A": "198.51.100.1"}] for number in range(10)}
    zone = Zone({"a.example": [{"TXT": "v=spf1" + " mx" * 30}, *mx], **names})
    found = checked(zone, host="192.0.2.1", mailfrom="u@a.example", helo="b.example")
    assert found == Outcome("permerror", "more than 40 questions to the DNS")
    assert len(zone.asked) == 40


@pytest.mark.parametrize("kind", ["mx", "include", "ptr", "a", "exists", "redirect"])
def test_no_tree_of_records_makes_us_ask_more(kind: str) -> None:
    """Each name has every kind of record, so each answer leads to more questions."""
    zone = Endless(kind)
    found = checked(zone, host="192.0.2.1", mailfrom="u@a.example", helo="b.example")
    assert found.result in {"permerror", "pass"}
    assert len(zone.asked) <= 40


class Endless(Zone):
    """Every name has a record that causes the most questions, and all the answers."""

    def __init__(self, kind: str) -> None:
        super().__init__({})
        self._kind = kind

    def __call__(self, name: str, kind: str) -> Sequence[str]:
        self.asked.append((name, kind))
        domain = f"d{len(self.asked)}.example"
        terms = {"mx": "mx:{0}", "include": "include:{0}", "ptr": "ptr:{0}", "a": "a:{0}"}
        terms |= {"exists": "exists:%{{p}}.{0}", "redirect": "redirect={0}"}
        match kind:
            case "TXT":
                term = terms[self._kind]
                count = 1 if self._kind == "redirect" else 100
                return ["v=spf1 " + " ".join(term.format(f"{n}.{domain}") for n in range(count))]
            case "MX" | "PTR":
                return [f"h{n}.{domain}" for n in range(10)]
            case _:
                return ["198.51.100.1"]


@pytest.mark.parametrize(
    ("record", "result"),
    [
        ("v=spf1 " + "ip4:198.51.100.1 " * 200 + "+all", "pass"),
        ("v=spf1 " + "?ip4:198.51.100.1 " * 299 + "+all", "permerror"),
        ("v=spf1 " + "a " * 299 + "+all", "permerror"),
        ("v=spf1 " + " " * 400 + "+all", "permerror"),
        ("v=spf1 +all " + "x" * 5000 + "=y", "permerror"),
        ("v=spf1 +all " + "ip4:192.0.2.1 " * 4000, "permerror"),
        ("v=spf1 +all x=" + "%{l}" * 15_000, "permerror"),
    ],
    ids=["some hundred", "long", "terms", "blanks", "word", "60 KB", "60 KB of macros"],
)
def test_record_of_more_than_some_hundred_terms_is_in_error(record: str, result: str) -> None:
    zone = Zone({"a.example": [{"TXT": record}, {"A": "198.51.100.1"}]})
    assert checked(zone, host="192.0.2.1", mailfrom="u@a.example", helo="b.x").result == result


def test_reading_a_record_costs_little_whatever_is_published() -> None:
    """The longest record that is read, at each of the ten names that it may lead to."""
    longest = "v=spf1 " + " ".join(f"ip4:10.0.{n}.0/24" for n in range(200))
    names = {f"{n}.example": [{"TXT": longest + f" include:{n + 1}.example"}] for n in range(12)}
    zone = Zone(names)
    begun = time.thread_time()
    found = checked(zone, host="192.0.2.1", mailfrom="u@0.example", helo="b.example")
    assert found == Outcome("permerror", "more than 10 terms ask the DNS")
    assert time.thread_time() - begun < 1.0


def test_plugins_have_one_budget_for_a_mail() -> None:
    class Generous(Resolver):
        def lookup(self, name: str, kind: str, *, seconds: float = 0.0) -> Found:
            assert kind == "A"
            assert 0 < seconds <= 30
            return Found((), name, size=1000)

    budget = DnsBudget(questions=5, octets=4000)
    one, other = (Questions(Generous(), timedelta(minutes=5), budget) for _ in range(2))
    for questions in (one, other, one, other):
        assert questions.ask("a.example", "A") == []
    with pytest.raises(TooManyQuestionsError, match=r"a\.example A is more than will be asked"):
        one.ask("a.example", "A")
    assert Questions(Generous(), timedelta(minutes=5)).ask("a.example", "A") == []
    few = Questions(Generous(), timedelta(minutes=5), DnsBudget(questions=1))
    few.ask("a.example", "A")
    with pytest.raises(TooManyQuestionsError):
        few.ask("a.example", "A")


@pytest.mark.parametrize(
    "term",
    [
        "a:" + "." * 65_000,
        "a:" + "a" * 65_000,
        "a:" + "a-" * 32_000,
        "a" + "/1" * 32_000,
        "x=" + "%{" * 32_000,
        "x=" + "%{d" * 21_000,
        "exists:" + "%{d}." * 13_000 + "example",
        "?" * 65_000,
    ],
    ids=lambda term: term[:8],
)
def test_record_as_long_as_the_dns_has_them_is_read_at_once(term: str) -> None:
    """A quadratic algorithm would need minutes."""
    assert outcome(f"v=spf1 {term} -all").result in ("fail", "permerror")


TERMS: Final = (
    *("all", "-all", "a", "mx", "ptr", "include:b.a.example", "exists:%{ir}.%{l1r+}.a.example"),
    *("redirect=b.a.example", "exp=b.a.example", "ip4:192.0.2.0/24", "ip6:::/0", "a:%{p}.x//64"),
)


@settings(max_examples=examples(50))
@given(
    st.lists(st.sampled_from(TERMS) | st.text(max_size=9), max_size=9),
    st.text(max_size=9),
    st.text(max_size=20),
)
def test_nothing_that_a_stranger_publishes_raises(
    terms: list[str], local: str, explanation: str
) -> None:
    other: list[Any] = [{"TXT": explanation}, {"MX": [0, explanation]}, {"A": "192.0.2.1"}]
    found = outcome("v=spf1 " + " ".join(terms), local=local, b=other)
    assert found.result in ("pass", "fail", "softfail", "neutral", "permerror", "temperror")


SPELLINGS: Final[dict[str, tuple[str, str]]] = {
    "v=spf1 ip4:192.0.2.1 -all": ("pass", "a.example: ip4:192.0.2.1"),
    "V=SPF1 IP4:192.0.2.1 -ALL": ("pass", "a.example: IP4:192.0.2.1"),
    "v=spf1  ip4:192.0.2.1   -all  ": ("pass", "a.example: ip4:192.0.2.1"),
    "v=spf1 x-unknown=1 ip4:192.0.2.1 -all": ("pass", "a.example: ip4:192.0.2.1"),
    "v=spf1": ("neutral", "a.example: no match"),
    "v=spf1;ip4:192.0.2.1 -all": ("none", "does not begin with 'v=spf1 '"),
    "v=spf1, ip4:192.0.2.1 -all": ("none", "does not begin with 'v=spf1 '"),
    "v=spf1include:b.example -all": ("none", "has no SPF record"),
    " v=spf1 -all": ("none", "does not begin with 'v=spf1 '"),
    '"v=spf1 -all"': ("none", "does not begin with 'v=spf1 '"),
    "v=spf1\t-all": ("none", "does not begin with 'v=spf1 '"),
    "v = spf1 -all": ("none", "does not begin with 'v=spf1 '"),
    "spf1 -all": ("none", "does not begin with 'v=spf1 '"),
    "v=spf -all": ("none", "does not begin with 'v=spf1 '"),
    "google-site-verification=spf": ("none", "has no SPF record"),
    "v=spf1 ipv4:192.0.2.1 -all": ("permerror", "'ipv4:192.0.2.1' is no mechanism"),
    "v=spf1 ip4: 192.0.2.1 -all": ("permerror", "'ip4:' is no network"),
    "v=spf1 ip4:192.0.2.1/33 -all": ("permerror", "'ip4:192.0.2.1/33' is no network"),
    "v=spf1 ip4:192.0.2.1,192.0.2.2 -all": ("permerror", "is no network"),
    "v=spf1 192.0.2.1 -all": ("permerror", "'192.0.2.1' is no mechanism"),
    "v=spf1 ip4:192.0.2.9 -all.": ("permerror", "'-all.' is no mechanism"),
    "v=spf1 ip4:192.0.2.9; -all": ("permerror", "'ip4:192.0.2.9;' is no network"),
    "v=spf1 ip4:192.0.2.9 - all": ("permerror", "'-' is no mechanism"),
    "v=spf1 include: b.example -all": ("permerror", "'include:' has no whole domain"),
    "v=spf1 redirect:b.example": ("permerror", "'redirect:b.example' is no mechanism"),
    "v=spf1 a:192.0.2.1 -all": ("permerror", "'a:192.0.2.1' has no whole domain"),
    "v=spf1 include:absent.example -all": ("permerror", "which has no SPF record"),
    "v=spf1 include:typo.example -all": ("permerror", "which has a record that does not begin"),
}


@pytest.mark.parametrize(("record", "expected"), SPELLINGS.items())
def test_true_reason_is_told_for_what_is_misspelt(record: str, expected: tuple[str, str]) -> None:
    """RFC 7208 sections 4.5 and 4.6: tolerance would allow senders that the domain does not."""
    names = {"a.example": [record], "typo.example": ["v=spf1,-all"]}
    sender = Sender(ip_address("192.0.2.1"), "a", "a.example", "h.example")
    found = check_host(sender, lambda name, kind: names.get(name, []) if kind == "TXT" else [])
    assert found.result == expected[0]
    assert expected[1] in found.reason


def test_several_records_are_an_error() -> None:
    sender = Sender(ip_address("192.0.2.1"), "a", "a.example", "h.example")
    found = check_host(sender, lambda _, __: ["v=spf1 +all", "v=spf1 -all"])
    assert (found.result, found.reason) == ("permerror", "a.example has 2 SPF records")
