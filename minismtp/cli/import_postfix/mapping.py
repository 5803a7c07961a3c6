"""All parts of an import in their order, and what has to fit together at the end."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

from minismtp.cli.import_postfix.domains import carry_domains
from minismtp.cli.import_postfix.header_checks import carry_header_checks
from minismtp.cli.import_postfix.leftovers import carry_leftovers, carry_srs
from minismtp.cli.import_postfix.limits import carry_limits
from minismtp.cli.import_postfix.listeners import carry_host, carry_listeners, main_service
from minismtp.cli.import_postfix.logins import carry_logins, carry_relaying
from minismtp.cli.import_postfix.migration import Migration
from minismtp.cli.import_postfix.milters import carry_milters
from minismtp.cli.import_postfix.outbound import carry_outbound
from minismtp.cli.import_postfix.postscreen import carry_postscreen
from minismtp.cli.import_postfix.recipients import carry_recipients
from minismtp.cli.import_postfix.restrictions import carry_restrictions
from minismtp.cli.import_postfix.server_tls import carry_certificates
from minismtp.cli.import_postfix.storage import carry_storage
from minismtp.cli.postfix_files.directory import PostfixDirectory

#: Plugins that need a package, and the extra that installs it.
_EXTRAS: Final = {
    "rules": ("regex", "rules"),
    "dkim_sign": ("cryptography", "dkim"),
    "dkim_verify": ("cryptography", "dkim"),
    "dmarc": ("publicsuffixlist", "dmarc"),
}


def migrated(
    directory: PostfixDirectory, state_directory: Path, domains: tuple[str, ...] = ()
) -> Migration:
    """Return the draft and the report for a directory. Nothing is written."""
    migration = Migration(directory, state_directory, domains)
    carry_host(migration)
    carry_listeners(migration)
    carry_certificates(migration)
    carry_domains(migration)
    storage_knows = carry_storage(migration)
    carry_recipients(migration, storage_knows=storage_knows)
    carry_logins(migration)
    carry_relaying(migration)
    carry_limits(migration)
    carry_restrictions(migration, main_service(migration))
    carry_postscreen(migration)
    carry_header_checks(migration)
    carry_milters(migration)
    carry_srs(migration)
    carry_outbound(migration)
    _leave_out(migration)
    carry_leftovers(migration)
    return migration


def _leave_out(migration: Migration) -> None:
    """Leave out plugins that cannot run here, because a package is missing."""
    draft = migration.draft
    for use, (package, extra) in _EXTRAS.items():
        if draft.has(use) and importlib.util.find_spec(package) is None:
            draft.plugins = [table for table in draft.plugins if table.keys["use"] != use]
            text = f"needs the extra {extra}; install it, and run this again"
            migration.by_hand(f"plugin {use}", text, "-")
