"""Access tables: what they refuse becomes rules of the plugin rules."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Final

from minismtp.cli.import_postfix.domains import why_unlisted
from minismtp.cli.import_postfix.draft import Table
from minismtp.cli.import_postfix.logins import trusted_networks
from minismtp.cli.import_postfix.migration import Migration
from minismtp.cli.postfix_files.lookup_table import Pair, open_table
from minismtp.cli.postfix_files.text import PostfixError

_MOST_RULES: Final = 1000
_MOST_NETWORKS: Final = 100  # in each rule
_PLACES: Final = {
    "check_client_access": "peer",
    "check_sender_access": "sender",
    "check_recipient_access": "recipient",
    "check_helo_access": "helo",
}
_IGNORED: Final = frozenset({"OK", "DUNNO", "WARN", "INFO", "RELAY", "PERMIT"})
_ACTIONS: Final = {
    "REJECT": "reject",
    "DEFER": "defer",
    "DEFER_IF_PERMIT": "defer",
    "DEFER_IF_REJECT": "defer",
    "DISCARD": "discard",
    "HOLD": "quarantine",
}
_CODE: Final = re.compile(r"([45])[0-9]{2}(?:[ \t]+([245]\.[0-9]{1,3}\.[0-9]{1,3}))?")
_STATUS: Final = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}[ \t]*")


def carry_access(migration: Migration, name: str, word: str, source: str, place: str) -> None:
    """Carry over a table. Raise PostfixError if that is not possible at all."""
    if word not in _PLACES:
        raise PostfixError("rules have no such condition")
    table = open_table(source, migration.directory, place)
    if not table.is_listed:
        raise PostfixError(f"{why_unlisted(table)}; see the plugin rules")
    for done, pair in enumerate(table.pairs):
        if why := _full(migration):
            left = len(table.pairs) - done
            migration.by_hand(
                name, f"{word}: {left} entries are not carried over: {why}", pair.place
            )
            break
        action, text = action_of(pair.value)
        if action in _IGNORED:
            if action in {"OK", "RELAY", "PERMIT"}:
                advice = f"{pair.key} {action}: exceptions belong into `networks` of the filters"
                migration.by_hand(name, f"{word}: {advice}", pair.place)
            continue
        try:
            _carry_pair(migration, _PLACES[word], pair, action, text)
        except (PostfixError, ValueError) as error:
            migration.by_hand(name, f"{word}: {pair.key} {pair.value}: {error}", pair.place)
    migration.carried(name, f"rules of rules, from {table.name}", place)


def _full(migration: Migration) -> str:
    """Return why there can be no more rules, or ""."""
    if len(trusted_networks(migration)) > _MOST_NETWORKS:
        return f"each rule would have more than {_MOST_NETWORKS} networks of mynetworks in it"
    if migration.draft.has("rules") and len(migration.draft.plugin("rules").inner) >= _MOST_RULES:
        return f"there are {_MOST_RULES} rules; see docs/plugins/rules.md"
    return ""


def action_of(value: str) -> tuple[str, str]:
    """Return an action of Postfix in capitals, or ours for a code such as 550, and the text."""
    first, _, rest = value.partition(" ")
    if code := _CODE.match(value):
        return ("REJECT" if code[1] == "5" else "DEFER"), value[code.end() :].strip()
    return first.upper(), _STATUS.sub("", rest.strip(), count=1)


def _carry_pair(migration: Migration, option: str, pair: Pair, action: str, text: str) -> None:
    """Add a rule. Raise PostfixError or ValueError if it cannot be expressed."""
    if action not in _ACTIONS:
        raise PostfixError(f"rules have no action {action}")
    condition = Table("[[plugins.rules.all]]")
    if option == "peer":
        condition.set("peer", [str(ip_network(_network(pair.key), strict=False))])
    else:
        condition.set(option, _pattern(option, pair.key))
    add_rule(migration, f"{option} {pair.key}", (_ACTIONS[action], text), condition, pair.place)


def add_rule(
    migration: Migration, name: str, does: tuple[str, str], condition: Table, place: str
) -> None:
    """Add a rule that does not apply to users and trusted networks, if its name is new.

    `does` is the action with its text.
    """
    action, text = does
    if why := _full(migration):
        raise PostfixError(why)
    plugin = migration.draft.plugin("rules")
    if any(inner.keys["name"] == name for inner in plugin.inner):
        return
    rule = Table("[[plugins.rules]]")
    rule.set("name", name, place)
    rule.set("action", action)
    if text:
        rule.set("text", text)
    rule.inner.append(condition)
    user = Table("[[plugins.rules.none]]")
    user.keys["login"] = True
    rule.inner.append(user)
    if networks := trusted_networks(migration):
        trusted = Table("[[plugins.rules.none]]")
        trusted.set("peer", networks)
        rule.inner.append(trusted)
    plugin.inner.append(rule)


def _network(key: str) -> str:
    """Return a network for a key such as 192.0.2.1, 192.0.2 or 192.0.2.0/24. Raise PostfixError."""
    plain = key.strip("[]")
    if "/" in plain or ":" in plain or plain.count(".") == 3:  # noqa: PLR2004 - dots of IPv4
        return plain
    octets = plain.split(".")
    if all(octet.isdigit() for octet in octets):
        return f"{'.'.join([*octets, '0', '0', '0'][:4])}/{8 * len(octets)}"
    raise PostfixError("rules know addresses of clients, not their names")


def _pattern(option: str, key: str) -> str:
    """Return the pattern for an address, `user@`, a domain, or a name in HELO."""
    if key == "<>":
        return r"^$"
    local, at, domain = key.rpartition("@")
    plain = re.escape(key.lower())
    if option == "helo":
        return f"^{plain}$" if not key.startswith(".") else f"{plain}$"
    if at and local and domain:
        return f"^{plain}$"
    if at and local:  # user@ is the user in every domain
        return f"^{re.escape(local.lower())}@"
    bare = re.escape((domain or key).lower().lstrip("."))
    return rf"\.{bare}$" if key.startswith(".") else f"[@.]{bare}$"
