"""Records that are parsed once, and what they may take."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final

import pytest
from minismtp_plugins._dkim import _KEYS, UnverifiedError
from minismtp_plugins._dns import ParsedRecords
from minismtp_plugins._spf import Sender, check_host
from minismtp_plugins._spf_record import RECORDS, RecordError
from minismtp_plugins.dmarc import _TAGS
from test_plugin_dkim_verify import RSA
from zones import published

MIB: Final = 1024 * 1024


def test_record_is_parsed_once() -> None:
    parsed: list[str] = []

    def parse(text: str) -> str:
        parsed.append(text)
        return text.upper()

    records = ParsedRecords(parse, len)
    assert [records.get(text) for text in ("a", "b", "a", "b")] == ["A", "B", "A", "B"]
    assert parsed == ["a", "b"]


def test_record_that_is_in_error_is_in_error_again() -> None:
    for _ in range(2):
        with pytest.raises(RecordError):
            RECORDS.get("v=spf1 nonsense:x")
        with pytest.raises(UnverifiedError, match="revoked"):
            _KEYS["rsa"].get("v=DKIM1; p=")


def test_key_is_for_signatures_of_its_kind_only() -> None:
    record = published(RSA)
    for _ in range(2):
        _KEYS["rsa"].get(record)
        with pytest.raises(UnverifiedError, match="the key is rsa, not ed25519"):
            _KEYS["ed25519"].get(record)


def test_record_that_changes_counts_at_once() -> None:
    """As soon as the resolver, which keeps answers for their TTL, has another one."""
    texts = ["v=spf1 ip4:192.0.2.1 -all"]
    sender = Sender(ip_address("192.0.2.1"), "a", "a.example", "h.example")
    assert check_host(sender, lambda _name, _kind: texts).result == "pass"
    texts = ["v=spf1 ip4:192.0.2.2 -all"]
    assert check_host(sender, lambda _name, _kind: texts).result == "fail"


def _spf(number: int) -> str:
    return f"v=spf1 a:{number}.example " + "ip4:1.2.3.0/24 " * 200


def _spf_of_macros(number: int) -> str:
    return f"v=spf1 a:{number}.example " + "a:%{i}%{l}%{i}.x%{d2} " * 150


def _spf_of_one_term(number: int) -> str:
    return f"v=spf1 exists:{number}" + "%{l}" * 1000 + ".example"


def _modifiers(number: int) -> str:
    return f"v=spf1 redirect={number}.example " + "x=a " * 200


def _dmarc(number: int) -> str:
    return f"v=DMARC1; p=none; x{number}=1; " + "".join(f"t{each}=;" for each in range(500))


def _key(number: int) -> str:
    return f"{published(RSA)}; n={number}; " + "".join(f"t{each}=;" for each in range(100))


@pytest.mark.parametrize(
    ("records", "make"),
    [
        *((RECORDS, make) for make in (_spf, _spf_of_macros, _spf_of_one_term, _modifiers)),
        (_TAGS, _dmarc),
        (_KEYS["rsa"], _key),
    ],
)
def test_parsed_records_take_bounded_memory(
    records: ParsedRecords[object], make: Callable[[int], str]
) -> None:
    records.get(make(0))
    tracemalloc.start()
    try:
        for number in range(100):
            records.get(make(number))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 4 * MIB
