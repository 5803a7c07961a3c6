"""Who may log in, and who may relay: smtpd_sasl_*, mynetworks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from minismtp.cli.import_postfix.domains import why_unlisted
from minismtp.cli.import_postfix.draft import DraftFile
from minismtp.cli.import_postfix.migration import Migration
from minismtp.cli.import_postfix.notation import socket
from minismtp.cli.postfix_files.directory import PostfixDirectory
from minismtp.cli.postfix_files.lookup_table import open_table
from minismtp.cli.postfix_files.text import PostfixError
from minismtp.config.types import parse_network

_LOOPBACK: Final = ("127.0.0.0/8", "::1/128")
_DOVECOT: Final = "unix:/run/dovecot/minismtp"
_WIDEST: Final = {4: 8, 6: 16}  # what the plugin relay allows


def carry_relaying(migration: Migration) -> None:
    """Let users who log in, and the trusted networks, send to other servers."""
    relay = migration.draft.plugin("relay", "Who may send to other servers")
    name = "mynetworks" if migration.is_set("mynetworks") else "mynetworks_style"
    networks = trusted_networks(migration)
    relay.add("networks", networks, migration.origin(name))
    migration.carried("mynetworks", "networks of relay")
    if migration.is_set("mynetworks"):
        migration.unneeded("mynetworks_style", "mynetworks is set, which takes precedence")
    else:
        style = migration.value("mynetworks_style")
        if style not in {"host", ""}:
            text = f"the networks of style {style!r} are not looked up; add them to `networks`"
            migration.by_hand("mynetworks_style", f"{text} of relay, or let their users log in")
        migration.carried("mynetworks_style", "networks of relay")


def trusted_networks(migration: Migration) -> list[str]:
    """Return mynetworks; what cannot be written as a network is reported."""
    if migration.networks is None:  # each of many rules asks for them
        migration.networks = list(dict.fromkeys(_trusted_networks(migration)))
    return [*migration.networks]


def _trusted_networks(migration: Migration) -> Iterator[str]:
    if not migration.is_set("mynetworks"):
        yield from _LOOPBACK
        return
    found = []
    for item in migration.items("mynetworks"):
        if item.startswith("!"):
            migration.by_hand("mynetworks", f"{item!r}: a network cannot be excluded")
        elif ":" in item and not item.startswith("[") and "/" in item and _is_table(item):
            table = open_table(item, migration.directory, migration.main.place("mynetworks"))
            found += [pair.key for pair in table.pairs]
            if not table.is_listed:
                migration.by_hand("mynetworks", why_unlisted(table))
        else:
            found.append(item)
    for item in found:
        yield from _network(migration, item)


def _is_table(item: str) -> bool:
    return item.partition(":")[0].isalpha() and "/" in item.partition(":")[2][:1]


def _network(migration: Migration, item: str) -> list[str]:
    try:
        network = parse_network(item.replace("[", "").replace("]", ""))
    except ValueError:
        migration.by_hand("mynetworks", f"{item!r} is no network; names are not looked up")
        return []
    if not network.is_private and network.prefixlen < _WIDEST[network.version]:
        migration.by_hand("mynetworks", f"{network} is so wide that it would be an open relay")
        return []
    return [str(network)]


def carry_logins(migration: Migration) -> None:
    """Set the plugin that checks passwords, if any service has AUTH."""
    if not uses_sasl(migration.directory):
        for name in ("smtpd_sasl_type", "smtpd_sasl_path"):
            migration.unneeded(name, "smtpd_sasl_auth_enable is not set anywhere")
        return
    migration.carried("smtpd_sasl_auth_enable", "the plugin that checks passwords, and `kind`")
    kind = migration.value("smtpd_sasl_type")
    if kind == "dovecot":
        _carry_dovecot(migration)
    else:
        text = f"the passwords of {kind or 'SASL'} cannot be read: `minismtp passwd` sets new ones"
        migration.by_hand("smtpd_sasl_type", f"{text}, or use dovecot_auth, ldap, sql or http_auth")
        migration.draft.plugin("password_file", "Who may log in").set("path", "passwords")
        comment = "# Made for the import from Postfix; `minismtp passwd` adds users\n"
        migration.draft.files.append(DraftFile("passwords", comment))
    if migration.is_set("smtpd_tls_auth_only"):
        migration.unneeded("smtpd_tls_auth_only", "AUTH is offered inside TLS only")
    _carry_senders(migration)


def uses_sasl(directory: PostfixDirectory) -> bool:
    """Return whether main.cf or a service enables AUTH."""
    mains = [directory.main, *(directory.main.with_options(s.options) for s in directory.services)]
    return any("yes" in main.settings.get("smtpd_sasl_auth_enable", ("",)) for main in mains)


def _carry_dovecot(migration: Migration) -> None:
    name = "smtpd_sasl_path"
    migration.carried("smtpd_sasl_type", "the plugin dovecot_auth")
    table = migration.draft.plugin("dovecot_auth", "Who may log in")
    path = migration.value(name)
    table.set("address", _DOVECOT, migration.origin(name))
    if path.startswith("inet:"):
        try:
            table.set("address", socket(path, 0), migration.origin(name))
            migration.carried(name, "address of dovecot_auth")
        except PostfixError as error:
            migration.by_hand(name, str(error))
        return
    text = f"only Postfix may open its socket {path}; give Dovecot the socket"
    advice = f"{_DOVECOT.removeprefix('unix:')}, as docs/plugins/dovecot_auth.md shows"
    migration.by_hand(name, f"{text} {advice}")


def _carry_senders(migration: Migration) -> None:
    name = "smtpd_sender_login_maps"
    if not migration.is_set(name):
        return
    if any(table.keys.get("match_sender") for table in migration.draft.listeners):
        migration.carried(name, "match_sender of listeners: users send from their own addresses")
        migration.by_hand(name, "further addresses of a login have to be aliases to its mailbox")
    else:
        migration.unneeded(name, "no restriction uses it")
