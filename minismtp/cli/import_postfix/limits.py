"""Sizes, counts and times that smtpd allows: our table [limits], and the plugin rate_limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from minismtp.cli.import_postfix.draft import Table, Value
from minismtp.cli.import_postfix.migration import Migration
from minismtp.cli.import_postfix.notation import duration, number, seconds
from minismtp.cli.postfix_files.text import PostfixError
from minismtp.config.types import Rate

_LARGEST_HEADER: Final = 1 << 20
_RATES: Final = {
    "smtpd_client_message_rate_limit": "messages",
    "smtpd_client_recipient_rate_limit": "recipients",
}


class _Limit(NamedTuple):
    key: str
    convert: Callable[[str], Value]
    without: str = ""  # what 0 means, if our key has no such value


def _duration(text: str) -> Value:
    return duration(seconds(text))


def _header(text: str) -> Value:
    return min(number(text), _LARGEST_HEADER)


_LIMITS: Final = {
    "message_size_limit": _Limit("message_size", number, "any size"),
    "header_size_limit": _Limit("headers", _header, "any size"),
    "hopcount_limit": _Limit("hops", number, "any number"),
    "smtpd_recipient_limit": _Limit("recipients", number, "any number"),
    "smtpd_client_connection_count_limit": _Limit("sessions_per_ip", number, "any number"),
    "smtpd_hard_error_limit": _Limit("errors", number, "any number"),
    "smtpd_junk_command_limit": _Limit("junk_commands", number, "any number"),
    "smtpd_error_sleep_time": _Limit("error_delay", _duration),
    "smtpd_timeout": _Limit("command_timeout", _duration, "no time"),
}


def carry_limits(migration: Migration) -> None:
    """Set the limits that are written down. The defaults stay ours."""
    for name, limit in _LIMITS.items():
        if not migration.is_set(name):
            continue
        try:
            value = limit.convert(migration.value(name))
        except PostfixError as error:
            migration.by_hand(name, str(error))
            continue
        if limit.without and value in {0, "0s"}:
            text = f"0 means {limit.without}; set a large limits.{limit.key} in its place"
            migration.by_hand(name, text)
        else:
            migration.draft.limits.set(limit.key, value, migration.origin(name))
            migration.carried(name, f"limits.{limit.key}")
    _carry_rates(migration)


def _carry_rates(migration: Migration) -> None:
    rates = {name: key for name, key in _RATES.items() if migration.is_set(name)}
    try:
        per = duration(seconds(migration.value("anvil_rate_time_unit")))
        found = {name: number(migration.value(name)) for name in rates}
    except PostfixError as error:
        migration.by_hand("anvil_rate_time_unit", str(error))
        return
    found = {name: limit for name, limit in found.items() if limit}
    try:
        for limit in found.values():
            Rate.parse(f"{limit}/{per}")
    except ValueError as error:
        migration.by_hand("anvil_rate_time_unit", f"{error}; see the plugin rate_limit")
        return
    if found:
        inner = Table("[[plugins.limits]]")
        inner.set("by", "peer")
        for name, limit in found.items():
            inner.set(rates[name], f"{limit}/{per}", migration.origin(name))
        migration.draft.plugin("rate_limit").inner.append(inner)
    for name in rates:
        migration.carried(name, "limits of rate_limit")
    migration.carried("anvil_rate_time_unit", "limits of rate_limit")
    exceptions = "smtpd_client_event_limit_exceptions"
    if migration.is_set(exceptions):
        text = f"{migration.value(exceptions)}: set `networks` of rate_limit"
        migration.by_hand(exceptions, text)
