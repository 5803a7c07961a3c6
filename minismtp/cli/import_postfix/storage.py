"""Where mail is stored: the transports of Postfix become the plugin lmtp or maildir."""

from __future__ import annotations

from typing import Final

from minismtp.cli.import_postfix.migration import Migration
from minismtp.cli.import_postfix.notation import host_and_port, number, socket, with_port
from minismtp.cli.postfix_files.text import PostfixError

_LMTP_PORT: Final = 24
_DOVECOT_LMTP: Final = "unix:/run/dovecot/lmtp-minismtp"
_TRANSPORTS: Final = ("virtual_transport", "mailbox_transport", "local_transport")
_MAILDIRS: Final = ("virtual_mailbox_base", "home_mailbox", "mail_spool_directory")
_PROGRAMS: Final = ("mailbox_command", "mailbox_command_maps", "fallback_transport")
_ACCOUNTS: Final = ("virtual_uid_maps", "virtual_gid_maps", "virtual_minimum_uid")
_QUOTAS: Final = ("virtual_mailbox_limit", "mailbox_size_limit")


def carry_storage(migration: Migration) -> bool:
    """Set the plugin that stores mail. Return whether it knows which users exist."""
    if not migration.domains:
        return False
    address = ""
    for name in _TRANSPORTS:
        found = _lmtp_address(migration, name)
        if found and address and found != address:
            text = f"{found} is a second store; one plugin stores all mail, here {address}"
            migration.by_hand(name, text)
        elif found:
            address = found
            migration.carried(name, "address of lmtp")
            table = migration.draft.plugin("lmtp", "Where mail is stored")
            table.set("address", address, migration.origin(name))
            table.set("timeout", "90s")  # more than `patience`
    if address:
        _unneeded_with_lmtp(migration)
    else:
        _carry_maildir(migration)
    return bool(address)


def _lmtp_address(migration: Migration, name: str) -> str:
    """Return the address of an LMTP server, or "" for another transport."""
    value = migration.value(name)
    kind, _, rest = value.partition(":")
    used = migration.virtual if name == "virtual_transport" else migration.local
    if not used or not value:
        migration.unneeded(name, "no domain uses it")
        return ""
    if kind in {"local", "virtual"}:
        migration.carried(name, "path of maildir")
        return ""
    if kind == "lmtp":
        return _socket(migration, name, rest)
    service = next((s for s in migration.directory.services if s.name == kind), None)
    if service is not None and service.command == "lmtp":
        return _socket(migration, name, rest)
    if service is not None and any("dovecot" in word for word in service.arguments):
        migration.by_hand(name, f"{kind} is a program; {_advice_for(_DOVECOT_LMTP)}")
        return _DOVECOT_LMTP
    text = f"mail went to {value!r}; see the plugins lmtp, pipe and forward"
    migration.by_hand(name, text)
    return ""


def _socket(migration: Migration, name: str, text: str) -> str:
    try:
        if not text.startswith("unix:"):
            host, port, _ = host_and_port(text.removeprefix("inet:"), _LMTP_PORT)
            return with_port(host, port)
        address = socket(text, _LMTP_PORT, migration.value("queue_directory"))
    except PostfixError as error:
        migration.by_hand(name, str(error))
        return ""
    if not address.startswith(f"unix:{migration.value('queue_directory')}/"):
        return address
    migration.by_hand(name, f"only Postfix may open {text}; {_advice_for(_DOVECOT_LMTP)}")
    return _DOVECOT_LMTP


def _advice_for(address: str) -> str:
    path = address.removeprefix("unix:")
    return f"give Dovecot the socket {path}, as docs/plugins/lmtp.md shows"


def _unneeded_with_lmtp(migration: Migration) -> None:
    for name in (*_MAILDIRS, *_PROGRAMS, *_ACCOUNTS, *_QUOTAS):
        migration.unneeded(name, "the LMTP server stores the mail")


def _carry_maildir(migration: Migration) -> None:
    base = str(migration.state_directory).replace("{", "{{").replace("}", "}}")
    table = migration.draft.plugin("maildir", "Where mail is stored")
    table.set("path", f"{base}/mail/{{domain}}/{{local}}")
    old = [migration.value(name) for name in _MAILDIRS if migration.is_set(name)]
    where = ", ".join(filter(None, old)) or migration.value("mail_spool_directory")
    text = (
        f"mail that is stored already ({where}) stays there: copy the Maildirs to the new place, or"
        " let Dovecot's LMTP server store new mail beside it (docs/migration.md, Stored mail)"
    )
    migration.by_hand("mailboxes", text, "-")
    for name in _MAILDIRS:
        migration.carried(name, "path of maildir, which is a new place")
    for name in _ACCOUNTS:
        migration.unneeded(name, "all mail belongs to the server's user")
    for name in _PROGRAMS:
        if migration.is_set(name) and migration.value(name):
            text = f"{migration.value(name)!r}: the plugin pipe runs a program for each copy"
            migration.by_hand(name, text)
    _carry_quota(migration)


def _carry_quota(migration: Migration) -> None:
    for name in _QUOTAS:
        if not migration.is_set(name):
            continue
        try:
            limit = number(migration.value(name))
        except PostfixError as error:
            migration.by_hand(name, str(error))
            continue
        kept = f"a file to {limit} octets" if limit else "no file"
        text = f"it limits {kept}; the limit of a mailbox is `quota` of maildir"
        migration.unneeded(name, text)
