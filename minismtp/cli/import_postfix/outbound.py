"""Mail to other servers: the smarthost, its password, TLS, and times of the queue."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from minismtp.cli.import_postfix.draft import DraftFile, Table
from minismtp.cli.import_postfix.migration import Migration
from minismtp.cli.import_postfix.notation import (
    duration,
    host_and_port,
    number,
    seconds,
    with_port,
)
from minismtp.cli.import_postfix.routes import carry_routes, tls_level
from minismtp.cli.postfix_files.text import PostfixError, words

_SMTP: Final = 25
_SUBMISSIONS: Final = 465
_PASSWORD: Final = "smarthost-password"  # noqa: S105 - the name of a file
_SYSTEM_CAS: Final = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
_TIMES: Final = {  # the key, and the unit that Postfix takes without one
    "maximal_queue_lifetime": ("expire", "d"),
    "delay_warning_time": ("warn_after", "h"),
    "smtp_connect_timeout": ("connect_timeout", "s"),
    "smtp_data_done_timeout": ("end_timeout", "s"),
}


def carry_outbound(migration: Migration) -> None:
    """Set the table [outbound] and its routes."""
    _carry_tls(migration)
    _carry_smarthost(migration)
    carry_routes(migration)
    _carry_times(migration)
    _carry_backoff(migration)
    _carry_concurrency(migration)


def _carry_tls(migration: Migration) -> None:
    table, name = migration.draft.outbound, "smtp_tls_security_level"
    level = migration.value(name)
    if not level and migration.value("smtp_use_tls") == "yes":
        name, level = "smtp_use_tls", "may"
    if not level and migration.value("smtp_enforce_tls") == "yes":
        name, level = "smtp_enforce_tls", "encrypt"
    if level:
        try:
            table.set("tls", tls_level(level), migration.origin(name))
            migration.carried(name, "outbound.tls")
        except PostfixError as error:
            migration.by_hand(name, str(error))
    name = "smtp_tls_CAfile"
    path = migration.value(name)
    if path in _SYSTEM_CAS or not path:
        migration.unneeded(name, "these are the authorities of the system, which are the default")
    elif Path(path).is_file():
        table.set("server_ca", path, migration.origin(name))
        migration.carried(name, "outbound.server_ca")
    else:
        migration.by_hand(name, f"{path} is not here; set `server_ca` of [outbound]")


def _carry_smarthost(migration: Migration) -> None:
    value = migration.value("relayhost")
    if not value:
        migration.unneeded("smtp_sasl_auth_enable", "without a smarthost there is no login")
        return
    first, *others = words(value)
    try:
        host, port, by_mx = host_and_port(first, _SMTP)
    except PostfixError as error:
        migration.by_hand("relayhost", str(error))
        return
    if others:
        text = f"minismtp has one smarthost, here {first}; not carried over: {', '.join(others)}"
        migration.by_hand("relayhost", text)
    table = migration.draft.outbound
    table.set("smarthost", with_port(host, port), migration.origin("relayhost"))
    migration.carried("relayhost", "outbound.smarthost")
    if by_mx:
        text = f"Postfix asks for the MX of {host}, minismtp for its address: name the host itself"
        migration.by_hand("relayhost", text)
    if migration.value("smtp_tls_wrappermode") == "yes" or port == _SUBMISSIONS:
        table.keys["implicit"] = True
        migration.carried("smtp_tls_wrappermode", "outbound.implicit")
        if table.keys.get("tls") == "none":
            table.set("tls", "required")
    if migration.value("smtp_sasl_auth_enable") == "yes":
        _carry_password(migration, [value, first, host, f"[{host}]", f"[{host}]:{port}"])


def _carry_password(migration: Migration, names: list[str]) -> None:
    """Find the login at the smarthost; its password goes into a file, and is never shown."""
    migration.carried("smtp_sasl_auth_enable", "outbound.username")
    name = "smtp_sasl_password_maps"
    table = migration.draft.outbound
    for source in migration.tables(name):
        found = {pair.key: pair for pair in source.pairs}
        pair = next((found[key] for key in names if key in found), None)
        value = pair.value if pair else source.constant
        user, colon, password = value.partition(":")
        if not colon:
            continue
        place = pair.place if pair else migration.main.place(name)
        table.set("username", user, f"{name}, {place}")
        table.set("password_file", _PASSWORD)
        secret = "the password at the smarthost, which is not shown"  # noqa: S105 - a text
        migration.draft.files.append(DraftFile(_PASSWORD, f"{password}\n", secret))
        _require_tls(migration, table)
        migration.carried(name, "outbound.username and outbound.password_file")
        for other in found.values():
            if pair is None or other.key != pair.key:
                text = f"the password for {other.key} is not used: add a route with a password_file"
                migration.by_hand(name, text, other.place)
        return
    migration.by_hand(name, "no password for relayhost can be read; set `username` of [outbound]")


def _require_tls(migration: Migration, table: Table) -> None:
    if table.keys.get("tls") in {"required", "verified"}:
        return
    table.set("tls", "required", "because a password is sent")
    name = "smtp_tls_security_level"
    text = 'minismtp sends a password inside TLS only, so `tls` is "required"; "verified" is better'
    migration.by_hand(name, text)


def _carry_times(migration: Migration) -> None:
    for name, (key, unit) in _TIMES.items():
        if not migration.is_set(name):
            continue
        try:
            time = seconds(migration.value(name), unit)
        except PostfixError as error:
            migration.by_hand(name, str(error))
            continue
        if time == 0 and key != "warn_after":
            migration.by_hand(name, f"0 is no value of outbound.{key}, whose default is kept")
        else:
            migration.draft.outbound.set(key, duration(time), migration.origin(name))
            migration.carried(name, f"outbound.{key}")
    text = "notifications are kept as long as other mail, for `expire`"
    migration.unneeded("bounce_queue_lifetime", text)


def _carry_backoff(migration: Migration) -> None:
    """Write the waits: each is twice the one before, from the minimum to the maximum."""
    names = ("minimal_backoff_time", "maximal_backoff_time")
    if not any(map(migration.is_set, names)):
        return
    try:
        least, most = (seconds(migration.value(name)) for name in names)
    except PostfixError as error:
        migration.by_hand(names[0], str(error))
        return
    waits = [max(least, 1)]
    while waits[-1] * 2 < most:
        waits.append(waits[-1] * 2)
    if most > waits[-1]:
        waits.append(most)
    origin = next(name for name in names if migration.is_set(name))
    migration.draft.outbound.set(
        "retry", [duration(each) for each in waits], migration.origin(origin)
    )
    for name in names:
        migration.carried(name, "outbound.retry")


def _carry_concurrency(migration: Migration) -> None:
    for name in ("smtp_destination_concurrency_limit", "default_destination_concurrency_limit"):
        if not migration.is_set(name):
            continue
        try:
            limit = number(migration.value(name))
        except PostfixError as error:
            migration.by_hand(name, str(error))
            continue
        if "concurrency" not in migration.draft.outbound.keys and limit:
            migration.draft.outbound.set("concurrency", limit, migration.origin(name))
        migration.carried(name, "outbound.concurrency")
