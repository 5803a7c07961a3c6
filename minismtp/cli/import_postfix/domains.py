"""The domains whose mail Postfix takes: its own, virtual ones, and those that it relays."""

from __future__ import annotations

from collections.abc import Iterator

from minismtp.cli.import_postfix.migration import Migration
from minismtp.cli.postfix_files.lookup_table import LookupTable, open_table

_QUERY = ("query", "select_field", "table", "where_field", "search_base", "query_filter")


def carry_domains(migration: Migration) -> None:
    """Find the domains, and set those of the plugin relay."""
    if not _is_disabled(migration):
        migration.local = _domains(migration, "mydestination")
    virtual = [*_domains(migration, "virtual_mailbox_domains")]
    virtual += _domains(migration, "virtual_alias_domains")
    virtual += migration.as_domains("--domain", migration.more_domains)
    migration.virtual = list(dict.fromkeys(virtual))
    own = {*migration.domains}
    relayed = [domain for domain in _domains(migration, "relay_domains") if domain not in own]
    if relayed:
        relay = migration.draft.plugin("relay")
        relay.add("domains", relayed, migration.origin("relay_domains"))
        migration.carried("relay_domains", "domains of relay, without their subdomains")


def _is_disabled(migration: Migration) -> bool:
    """Return whether no mail is stored for the domains of mydestination."""
    transport = migration.value("local_transport").partition(":")[0]
    if transport not in {"error", "discard", "retry"}:
        return False
    text = f"the transport {transport} takes no mail, so there are no local domains"
    for name in ("local_transport", "mydestination"):
        migration.unneeded(name, text)
    return True


def _domains(migration: Migration, name: str) -> list[str]:
    found: list[str] = []
    trouble = False
    for item in migration.items(name):
        if item.startswith("!") or item in {"*", "static:all"}:
            migration.by_hand(name, f"{item!r} cannot be written as a list of domains")
        elif ":" in item and not item.startswith("["):
            table = open_table(item, migration.directory, migration.main.place(name))
            found += _keys(table)
            trouble |= _is_unlisted(migration, name, table)
        elif item.startswith("["):
            continue  # an address of the host itself, which `mailboxes` knows
        elif item.startswith("."):
            migration.by_hand(name, f"{item!r}: name each subdomain in `domains`")
        else:
            found.append(item)
    domains = migration.as_domains(name, found)
    if name != "relay_domains":
        migration.carried(name, f"domains of mailboxes{', as far as listed' if trouble else ''}")
    return domains


def _keys(table: LookupTable) -> Iterator[str]:
    """Yield the keys that are domains; other keys of such a table are addresses."""
    for pair in table.pairs:
        if "@" not in pair.key and "." in pair.key:
            yield pair.key


def _is_unlisted(migration: Migration, name: str, table: LookupTable) -> bool:
    """Report a table whose keys are not known."""
    if table.is_listed:
        return False
    if not migration.is_set(name) and not migration.is_set(_source(name)):
        return False
    if not (migration.more_domains and table.outside):
        text = f"{why_unlisted(table)}; run this again with --domain for each domain in it"
        migration.by_hand(name, text)
    return True


def _source(name: str) -> str:
    """Return the parameter whose tables have the domains by default."""
    return {
        "virtual_mailbox_domains": "virtual_mailbox_maps",
        "virtual_alias_domains": "virtual_alias_maps",
    }.get(name, name)


def why_unlisted(table: LookupTable) -> str:
    """Return why the keys of a table are not known; with its query, but never its password."""
    if table.outside:
        query = "; ".join(f"{key} = {table.outside[key]}" for key in _QUERY if key in table.outside)
        return f"{table.name} is a database ({query or 'no query'})"
    if table.patterns:
        return f"{table.name} has patterns, which cannot be listed"
    return f"{table.name}: {table.trouble or 'any key is in it'}"
