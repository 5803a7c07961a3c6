"""smtpd_milters and content_filter: rspamd, OpenDKIM, OpenDMARC and other filters."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from minismtp.cli.import_postfix.draft import Table
from minismtp.cli.import_postfix.listeners import smtpd_services
from minismtp.cli.import_postfix.migration import Migration
from minismtp.cli.import_postfix.notation import socket
from minismtp.cli.import_postfix.opendkim import carry_opendkim
from minismtp.cli.import_postfix.restrictions import filter_plugin
from minismtp.cli.postfix_files.text import PostfixError, unbraced, words

_NAME: Final = "smtpd_milters"
#: What is in the address of each filter, by name or by its usual port.
_KNOWN: Final = {
    "rspamd": ("rspamd", ":11332"),
    "opendkim": ("opendkim", ":8891", ":12301"),
    "opendmarc": ("opendmarc", ":8893", ":54321"),
}


def carry_milters(migration: Migration) -> None:
    """Make a table for each filter, with the listeners that have it."""
    users: dict[str, list[str]] = defaultdict(list)
    names = [name for each in migration.listeners.values() for name in each]
    for service, main in smtpd_services(migration):
        try:
            for milter in words(main.value(_NAME)):
                users[milter] += migration.listeners.get(service.label, [])
        except PostfixError as error:
            migration.by_hand(_NAME, str(error), main.place(_NAME))
    for milter, listeners in users.items():
        only = [] if len(set(listeners)) == len(names) else listeners
        try:
            _carry_milter(migration, milter, only)
        except PostfixError as error:
            migration.by_hand(_NAME, f"{milter}: {error}")
    name = "non_smtpd_milters"
    if set(words(migration.value(name))) <= users.keys():
        migration.unneeded(name, "all mail comes by SMTP, and has the filters of smtpd_milters")
    else:
        migration.by_hand(name, "mail comes by SMTP only: these filters are not carried over")
    _carry_content_filter(migration)


def _carry_milter(migration: Migration, milter: str, listeners: list[str]) -> None:
    """Replace a filter by a plugin. Raise PostfixError for a malformed address."""
    text, *settings = words(unbraced(milter)) if milter.startswith("{") else [milter]
    kind = next((n for n, signs in _KNOWN.items() if any(s in text for s in signs)), "milter")
    place = migration.main.place(_NAME) if migration.is_set(_NAME) else "master.cf"
    if kind == "opendkim":
        carry_opendkim(migration, _NAME)
        return
    if kind == "opendmarc":
        spf = filter_plugin(migration, "spf")
        spf.keys.setdefault("fail", "tag")  # OpenDMARC decides about it
        migration.draft.plugin("dkim_verify")
        migration.draft.plugin("dmarc")
        migration.draft.plugin("authentication_results")
        migration.carried(_NAME, "the plugins dkim_verify and dmarc, instead of OpenDMARC", place)
        return
    table = _rspamd(migration, text, place) if kind == "rspamd" else _any(migration, text, place)
    action = _default_action(migration, settings)
    if action == "accept":
        table.set("on_error", "ignore", "milter_default_action")
    elif action not in {"tempfail", "shutdown"}:
        advice = f"{action!r}: a filter that fails defers mail, or is ignored (on_error)"
        migration.by_hand("milter_default_action", advice)
    if listeners:
        table.set("listeners", listeners)
    migration.carried("milter_default_action", "on_error of the plugins")


def _rspamd(migration: Migration, text: str, place: str) -> Table:
    table = migration.draft.plugin("rspamd")
    table.keys["users"] = True
    table.origins["use"] = f"{text}, {place}"
    migration.carried(_NAME, "the plugin rspamd", place)
    advice = "the plugin asks the normal worker of rspamd on port 11333; set `url` if it differs"
    migration.by_hand(_NAME, advice, place)
    return table


def _any(migration: Migration, text: str, place: str) -> Table:
    address = socket(text, 0, migration.value("queue_directory"))
    name = f"milter-{len(migration.draft.plugins)}" if migration.draft.has("milter") else ""
    table = migration.draft.another("milter", name=name)
    table.set("address", address, f"{_NAME}, {place}")
    migration.carried(_NAME, "address of milter", place)
    return table


def _default_action(migration: Migration, settings: list[str]) -> str:
    for setting in settings:
        name, _, value = setting.partition("=")
        if name == "default_action":
            return value
    return migration.value("milter_default_action")


def _carry_content_filter(migration: Migration) -> None:
    name = "content_filter"
    value = migration.value(name)
    if not value:
        return
    kind = value.partition(":")[0]
    text = f"mail went through {value!r}; there is no such step: see the plugins"
    if "amavis" in value or value.endswith(":10024"):
        migration.by_hand(name, f"{text} clamav and spamassassin, in place of Amavis")
    elif "spamassassin" in kind or "spamd" in kind:
        migration.by_hand(name, f"{text} spamassassin, which asks spamd itself")
    else:
        migration.by_hand(name, f"{text} milter, pipe and forward")
