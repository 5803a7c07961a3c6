"""Who gets mail here: virtual mailboxes, accounts and aliases become the plugin mailboxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from minismtp.cli.import_postfix.alias_graph import Addresses, Alias, Place
from minismtp.cli.import_postfix.alias_targets import origin_domain, targets_of
from minismtp.cli.import_postfix.domains import why_unlisted
from minismtp.cli.import_postfix.draft import DraftFile
from minismtp.cli.import_postfix.migration import Migration
from minismtp.cli.postfix_files.lookup_table import LookupTable, Pair
from minismtp.cli.postfix_files.text import PostfixError, read_text
from minismtp.values.address import Address

_SHELLS: Final = ("/nologin", "/false", "/sync")
_MOST_TOLD: Final = 20


def carry_recipients(migration: Migration, *, storage_knows: bool) -> None:
    """Write the plugin mailboxes with its files.

    `storage_knows` says that the storage refuses mail for users that it does not know.
    """
    for name in (
        "virtual_mailbox_maps",
        "virtual_alias_maps",
        "alias_maps",
        "local_recipient_maps",
    ):
        migration.carried(name, "users_file and aliases_file of mailboxes")
    migration.carried("recipient_delimiter", "separator of mailboxes")
    migration.carried("virtual_maps", "aliases_file of mailboxes")
    migration.unneeded("alias_database", "the server reads the text of aliases_file itself")
    if not migration.domains:
        return
    delimiter = migration.value("recipient_delimiter")
    if len(delimiter) > 1:
        migration.by_hand("recipient_delimiter", f"only {delimiter[0]!r} is carried over")
    found = Addresses(dict.fromkeys(migration.domains), delimiter[:1])
    unknown = _virtual_users(migration, found, storage_knows=storage_knows)
    unknown |= _local_users(migration, found, storage_knows=storage_knows)
    _virtual_aliases(migration, found)
    _local_aliases(migration, found)
    _catch_local(migration, found)
    found.spread()
    for domain in unknown if storage_knows else ():
        everybody = Place("", domain)  # an alias that names itself: every local part exists
        found.add_alias(everybody, [everybody], "the users are not listed, and the storage knows")
    _tell(migration, found.without_ends())
    _write(migration, found)


def _write(migration: Migration, found: Addresses) -> None:
    table = migration.draft.plugin("mailboxes", "Which recipients are ours")
    names = ("virtual_mailbox_domains", "virtual_alias_domains", "mydestination")
    origins = [migration.origin(name) for name in names if migration.is_set(name)]
    table.set("domains", migration.domains, "; ".join(origins))
    table.set("users_file", "users")
    table.set("aliases_file", "aliases")
    table.set("separator", found.separator, migration.origin("recipient_delimiter"))
    count = Counter(place.local for place in found.users)
    users = [
        "# Imported from Postfix. Each line is a user: an address, or a local part in all domains",
        *dict.fromkeys(
            _shown(place, bare=count[place.local] == len(found.domains)) for place in found.users
        ),
    ]
    migration.draft.files.append(DraftFile("users", "\n".join(users) + "\n"))
    migration.draft.files.append(DraftFile("aliases", "\n".join(_alias_lines(found)) + "\n"))


def _alias_lines(found: Addresses) -> list[str]:
    lines = ["# Imported from Postfix. Lines `alias: target, target`"]
    file = ""
    common, written = _common(found), set[str]()
    for place, alias in found.aliases.items():
        if place.local in written:
            continue
        if (source := alias.origin.rpartition(":")[0] or alias.origin) != file:
            lines += ["", f"# {source}"]
            file = source
        bare = place.local in common
        if bare:
            written.add(place.local)
        targets = ", ".join(_shown(target, bare=False) for target in alias.targets)
        lines.append(f"{_shown(place, bare=bare)}: {targets}")
    return lines


def _common(found: Addresses) -> set[str]:
    """Return the local parts of the aliases that are the same in every domain."""
    count = Counter(place.local for place in found.aliases)
    first: dict[str, Alias] = {}
    different = {""}
    for place, alias in found.aliases.items():
        if first.setdefault(place.local, alias).targets != alias.targets:
            different.add(place.local)
    return {local for local in count if count[local] == len(found.domains)} - different


def _shown(place: Place, *, bare: bool) -> str:
    """Return an address as our files have it, or its local part."""
    if not place.local:
        return f"@{place.domain}"
    return str(Address(place.local, "" if bare else place.domain)).removesuffix("@")


def _tell(migration: Migration, found: list[tuple[Place, Place, str]]) -> None:
    domains: dict[tuple[str, Place, str], list[str]] = {}  # one line for all domains of an alias
    for key, target, origin in found:
        domains.setdefault((key.local, target, origin), []).append(key.domain)
    removed = list(domains)
    own = origin_domain(migration)
    for local, target, origin in removed[:_MOST_TOLD]:
        first, *others = domains[local, target, origin]
        at = f" (and at {len(others)} more domains)" if others else ""
        text = f"{local}@{first}{at} leads to {target.local}@{target.domain}, which gets no mail"
        cause = " (a target without a domain gets that of myorigin)" if target.domain == own else ""
        migration.by_hand("aliases", f"{text}{cause}; left out", origin or "-")
    if more := len(removed[_MOST_TOLD:]):
        migration.by_hand("aliases", f"{more} more aliases lead to no user; left out", "-")


def _virtual_users(migration: Migration, found: Addresses, *, storage_knows: bool) -> set[str]:
    """Add virtual mailboxes. Return the domains whose mailboxes are not listed."""
    tables = migration.tables("virtual_mailbox_maps")
    unknown: set[str] = set()
    for table in tables:
        if not table.is_listed:
            unknown.update(migration.virtual)
            _ask_for_users(migration, "virtual_mailbox_maps", table, storage_knows=storage_knows)
        for pair in table.pairs:
            _virtual_user(found, pair)
    return unknown


def _virtual_user(found: Addresses, pair: Pair) -> None:
    local, at, domain = pair.key.rpartition("@")
    if not at or domain.lower() not in found.domains:
        return  # a domain, or a mailbox of a domain that Postfix does not serve
    domain = domain.lower()
    if local:
        found.users[Place.of(local, domain)] = pair.place
        return
    caught = pair.value.rstrip("/").rpartition("/")[2] or "catchall"
    found.users[Place.of(caught, domain)] = pair.place
    found.add_alias(Place("", domain), [Place.of(caught, domain)], pair.place)


def _ask_for_users(
    migration: Migration, name: str, table: LookupTable, *, storage_knows: bool
) -> None:
    advice = "write its addresses into the file `users`, one on each line"
    if storage_knows:
        advice = (
            "all addresses of its domains are accepted, and the LMTP server refuses unknown ones"
            f" when it gets the mail; to refuse them earlier, {advice}, and remove @domain from"
            " `aliases`"
        )
    migration.by_hand(name, f"{why_unlisted(table)}; {advice}")


def _local_users(migration: Migration, found: Addresses, *, storage_knows: bool) -> set[str]:
    """Add the accounts of the machine. Return the domains whose users are not listed."""
    if not migration.local:
        return set()
    name = "local_recipient_maps"
    if not migration.value(name):
        migration.by_hand(name, "every local part was accepted; `users` has the accounts only")
    for table in migration.tables(name):
        if table.kind == "unix":
            _accounts(migration, found)
        elif table.is_listed and table.name not in migration.items("alias_maps"):
            for pair in table.pairs:
                local, at, domain = pair.key.rpartition("@")
                only = domain if at else ""
                _add_everywhere(migration, found, local if at else pair.key, pair.place, only)
        elif not table.is_listed and table.name not in migration.items("alias_maps"):
            _ask_for_users(migration, name, table, storage_knows=storage_knows)
            return set(migration.local)
    return set()


def _add_everywhere(
    migration: Migration, found: Addresses, local: str, place: str, only: str = ""
) -> None:
    for domain in [only.lower()] if only else migration.local:
        if domain in found.domains:
            found.users[Place.of(local, domain)] = place


def _accounts(migration: Migration, found: Addresses) -> None:
    path = migration.directory.locate("/etc/passwd")
    try:
        lines = read_text(path).splitlines()
    except PostfixError as error:
        migration.by_hand("local_recipient_maps", f"{error}; write the users into `users`")
        return
    without = []
    for number, line in enumerate(lines, 1):
        name, *rest = line.split(":")
        if not name or not name.isprintable() or not rest:
            continue
        if rest[-1].endswith(_SHELLS):
            without.append(name)
        else:
            _add_everywhere(migration, found, name, f"/etc/passwd:{number}")
    if without:
        text = f"accounts without a shell get no mailbox: {', '.join(without)}"
        migration.by_hand("local_recipient_maps", text)


def _listed_pairs(migration: Migration, name: str, *, aliases: bool = False) -> Iterator[Pair]:
    for table in migration.tables(name, aliases=aliases):
        yield from table.pairs
        if not table.is_listed and (migration.is_set(name) or not table.trouble):
            text = f"{why_unlisted(table)}; write its aliases into the file `aliases`"
            migration.by_hand(name, text)


def _virtual_aliases(migration: Migration, found: Addresses) -> None:
    name = "virtual_alias_maps"
    # A local part alone is for the domains of mydestination, and that of myorigin.
    origin = [domain for domain in [origin_domain(migration)] if domain in found.domains]
    at_site = list(dict.fromkeys([*migration.local, *origin]))
    for pair in _listed_pairs(migration, name):
        local, at, domain = pair.key.rpartition("@")
        domains = [domain.lower()] if at else at_site
        if not at and "." in pair.key and pair.key.lower() in found.domains:
            continue  # the line that makes a domain virtual
        targets = list(targets_of(migration, name, pair))
        if at and domain.lower() not in found.domains:
            text = f"{pair.key} is at no domain that is stored here; the plugin mailboxes leaves it"
            migration.by_hand(name, text, pair.place)
            continue
        for each in domains if targets else ():
            key = Place.of(local if at else pair.key, each)
            found.add_alias(key, targets, pair.place)


def _local_aliases(migration: Migration, found: Addresses) -> None:
    for pair in _listed_pairs(migration, "alias_maps", aliases=True) if migration.local else ():
        targets = list(targets_of(migration, "alias_maps", pair))
        name = _unquoted(pair.key)
        for domain in migration.local if targets and name else ():
            found.add_alias(Place.of(name, domain), targets, pair.place)


def _unquoted(key: str) -> str:
    try:
        return Address.parse(f"{key}@example.org").local
    except ValueError:
        return ""


def _catch_local(migration: Migration, found: Addresses) -> None:
    """Carry over luser_relay, which gets mail for all unknown local parts."""
    if not migration.is_set("luser_relay") or not migration.local:
        return
    value = migration.value("luser_relay")
    pair = Pair("", value, migration.main.place("luser_relay"))
    targets = [] if "$" in value else list(targets_of(migration, "luser_relay", pair))
    if migration.value("local_recipient_maps"):
        migration.unneeded("luser_relay", "Postfix refuses unknown recipients before it counts")
    elif targets:
        for domain in migration.local:
            found.add_alias(Place("", domain), targets, pair.place)
        migration.carried("luser_relay", "an alias @domain in aliases_file of mailboxes")
    elif value:
        migration.by_hand("luser_relay", f"{value!r} is no address; add an alias @domain")
