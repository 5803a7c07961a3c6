"""postscreen: its lists, weights and tests before the greeting."""

from __future__ import annotations

from typing import Final

from minismtp.cli.import_postfix.migration import Migration
from minismtp.cli.import_postfix.notation import duration, number, seconds
from minismtp.cli.import_postfix.restrictions import add_list, filter_plugin
from minismtp.cli.postfix_files.text import PostfixError, words

_ACTIONS: Final = {"enforce", "drop"}


def carry_postscreen(migration: Migration) -> None:
    """Carry over postscreen, if a service runs it."""
    if all(service.command != "postscreen" for service in migration.directory.services):
        for name in migration.main.settings:
            if name.startswith("postscreen_"):
                migration.unneeded(name, "no service of master.cf runs postscreen")
        return
    _carry_lists(migration)
    _carry_greeting(migration)
    name = "postscreen_access_list"
    if migration.is_set(name):
        lists = migration.value(name)
        if words(lists) == ["permit_mynetworks"]:
            migration.carried(name, "networks of the filters")
        else:
            text = f"{lists}: exceptions belong into `networks` of dnsbl and early_talker"
            migration.by_hand(name, text)


def _carry_lists(migration: Migration) -> None:
    name, threshold = "postscreen_dnsbl_sites", "postscreen_dnsbl_threshold"
    if not migration.value(name):
        return
    for site in words(migration.value(name)):
        zone, _, weight = site.partition("*")
        try:
            points = number(weight.lstrip("-") or "1") * (-1 if weight.startswith("-") else 1)
            add_list(migration, zone, float(points), "address", migration.origin(name))
        except PostfixError as error:
            migration.by_hand(name, f"{site}: {error}")
    if not migration.draft.has("dnsbl"):
        return
    table = filter_plugin(migration, "dnsbl")
    action = migration.value("postscreen_dnsbl_action")
    if action in _ACTIONS:
        try:
            points = number(migration.value(threshold))
            table.set("reject_at", float(points), migration.origin(threshold))
        except PostfixError as error:
            migration.by_hand(threshold, f"{error}; set `reject_at` of dnsbl")
    else:
        table.keys["mode"] = "shadow"
        text = f'the action {action!r} only logs, so dnsbl has mode = "shadow"'
        migration.by_hand("postscreen_dnsbl_action", text)
    migration.carried(name, "lists of dnsbl")
    migration.carried(threshold, "reject_at of dnsbl")
    migration.carried("postscreen_dnsbl_action", "dnsbl")
    for other in ("postscreen_dnsbl_reply_map", "postscreen_dnsbl_whitelist_threshold"):
        migration.unneeded(other, "dnsbl names its lists, and adds up their points")


def _carry_greeting(migration: Migration) -> None:
    action, wait = "postscreen_greet_action", "postscreen_greet_wait"
    migration.carried(action, "the plugin early_talker")
    if migration.value(action) not in _ACTIONS:
        return
    table = filter_plugin(migration, "early_talker")
    try:
        time = migration.main.value(wait)
        table.set("delay", duration(seconds("6s" if "stress" in _raw(migration, wait) else time)))
    except PostfixError as error:
        migration.by_hand(wait, str(error))
    table.set("listeners", _public(migration), migration.origin(action))
    migration.carried(wait, "delay of early_talker")
    ttl = "postscreen_greet_ttl"
    if migration.is_set(ttl):
        try:
            table.set("remember", duration(seconds(migration.value(ttl))), migration.origin(ttl))
            migration.carried(ttl, "remember of early_talker")
        except PostfixError as error:
            migration.by_hand(ttl, str(error))


def _raw(migration: Migration, name: str) -> str:
    return migration.main.raw(name) or ""


def _public(migration: Migration) -> list[str]:
    """Return the listeners for mail of other servers."""
    return [str(t.keys["name"]) for t in migration.draft.listeners if t.keys["kind"] == "mx"]
