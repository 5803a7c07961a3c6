"""header_checks and its relatives: patterns for one field become rules."""

from __future__ import annotations

import re
from typing import Final

from minismtp.cli.import_postfix.access_tables import action_of, add_rule
from minismtp.cli.import_postfix.domains import why_unlisted
from minismtp.cli.import_postfix.draft import Table
from minismtp.cli.import_postfix.migration import Migration
from minismtp.cli.postfix_files.lookup_table import Pattern
from minismtp.cli.postfix_files.text import PostfixError

_ACTIONS: Final = {"REJECT": "reject", "DISCARD": "discard", "HOLD": "quarantine", "DEFER": "defer"}
_IGNORED: Final = frozenset({"OK", "DUNNO", "WARN", "INFO"})
_FIELD: Final = re.compile(r"\^([A-Za-z][A-Za-z0-9-]*):(?:\[\[:space:\]\][*+]?|\\s[*+]?| [*+?]?)?")
_NO_BODY: Final = (
    "no rule looks into the body; see the plugins rspamd, spamassassin and attachments"
)
_NO_SENDING: Final = "mail is not changed or refused when it is sent"
_OTHERS: Final = {
    "body_checks": _NO_BODY,
    "nested_header_checks": _NO_BODY,
    "smtp_header_checks": _NO_SENDING,
    "smtp_body_checks": _NO_SENDING,
    "milter_header_checks": "rules do not see what milters change",
}


def carry_header_checks(migration: Migration) -> None:
    """Carry over the patterns that are for one header field."""
    for name in ("header_checks", "mime_header_checks"):
        if not migration.is_set(name):
            continue
        for table in migration.tables(name):
            if not table.patterns:
                migration.by_hand(name, f"{why_unlisted(table)}; see the plugin rules")
            for pattern in table.patterns:
                _carry(migration, name, pattern)
    for name, text in _OTHERS.items():
        if migration.is_set(name) and migration.value(name):
            migration.by_hand(name, text)


def _carry(migration: Migration, name: str, pattern: Pattern) -> None:
    action, text = action_of(pattern.value)
    if action in _IGNORED:
        migration.unneeded(name, f"{action} changes nothing", pattern.place)
        return
    try:
        if action not in _ACTIONS:
            raise PostfixError(_without(action))  # noqa: TRY301 - as the others
        field, value = _field_and_value(pattern)
        condition = Table("[[plugins.rules.all]]")
        condition.set("header", field)
        if value:
            condition.set("matches", _checked(value))
        title = f"{name} {pattern.place.rpartition('/')[2]}"
        add_rule(migration, title, (_ACTIONS[action], text), condition, pattern.place)
    except PostfixError as error:
        migration.by_hand(name, f"/{pattern.expression}/ {pattern.value}: {error}", pattern.place)
    else:
        migration.carried(name, "rules of rules", pattern.place)


def _checked(pattern: str) -> str:
    """Return a pattern. Raise PostfixError if the plugin rules cannot use it."""
    try:
        import regex  # noqa: PLC0415 - an extra, without which the plugin is left out
    except ImportError:
        return pattern
    try:
        regex.compile(pattern, regex.IGNORECASE)
    except regex.error as error:
        raise PostfixError(f"the plugin rules cannot use the pattern: {error}") from None
    return pattern


def _without(action: str) -> str:
    if action in {"IGNORE", "STRIP"}:
        return "`drop_headers` of a listener removes fields of the mail of users"
    return f"rules have no action {action}"


def _field_and_value(pattern: Pattern) -> tuple[str, str]:
    """Return the name of a field, and the pattern for its value. Raise PostfixError."""
    if not pattern.is_simple or pattern.flags.strip("xmsu"):
        raise PostfixError("a rule is neither negated, nor nested, nor for one case of letters")
    found = _FIELD.match(pattern.expression)
    if found is None:
        raise PostfixError("a rule is for one field, by a pattern such as /^Subject: .../")
    rest = pattern.expression[found.end() :]
    value = rest.removeprefix(".*") if rest.startswith(".*") else f"^{rest}" if rest else ""
    return found[1], value
