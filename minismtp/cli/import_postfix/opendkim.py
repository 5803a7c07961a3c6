"""OpenDKIM beside Postfix: its keys are copied for the plugin dkim_sign."""

from __future__ import annotations

from collections import defaultdict
from typing import Final, NamedTuple

from minismtp.cli.import_postfix.draft import DraftFile
from minismtp.cli.import_postfix.logins import trusted_networks
from minismtp.cli.import_postfix.migration import Migration
from minismtp.cli.postfix_files.text import PostfixError, Problem, logical_lines, read_text
from minismtp.cli.setup.template import DKIM_KEYS
from minismtp.config.types import parse_domain

_FILE: Final = "/etc/opendkim.conf"
_MOST_KEYS: Final = 1000
_PARTS: Final = 3  # domain:selector:file
_SECRET: Final = "the key that signs mail, which is not shown"  # noqa: S105 - a text


class _Key(NamedTuple):
    domain: str
    selector: str
    file: str
    place: str


def carry_opendkim(migration: Migration, name: str) -> None:
    """Set dkim_sign with the keys of OpenDKIM, and dkim_verify if it verified."""
    place = migration.main.place(name) if migration.is_set(name) else "master.cf"
    path = migration.directory.locate(_FILE)
    try:
        settings = _settings(read_text(path))
    except PostfixError as error:
        text = f"{error}; set `domains`, `keys` and `selectors` of dkim_sign"
        migration.by_hand(name, f"OpenDKIM: {text}", place)
        return
    mode = settings.get("mode", "sv").lower()
    if "v" in mode:
        migration.draft.plugin("dkim_verify")
        migration.draft.plugin("authentication_results")
        migration.carried(name, "the plugin dkim_verify, instead of OpenDKIM", place)
    if "s" not in mode:
        return
    problems: list[Problem] = []
    keys = list(_keys(migration, settings, str(path), problems))
    for problem in problems:
        migration.by_hand(name, f"OpenDKIM: {problem.text}", problem.place)
    copied = [key for key in keys if _copy(migration, name, key)]
    _sign(migration, copied)
    if copied:
        migration.carried(name, "the plugin dkim_sign, with copies of OpenDKIM's keys", place)
    else:
        text = "OpenDKIM: no key can be read; set `domains`, `keys` and `selectors` of dkim_sign"
        migration.by_hand(name, text, place)


def _settings(text: str) -> dict[str, str]:
    """Return the settings of opendkim.conf(5), whose names have no case."""
    found = {}
    for line in text.splitlines():
        words = line.partition("#")[0].split(None, 1)
        if len(words) == 2:  # noqa: PLR2004 - a name and a value
            found[words[0].lower()] = words[1].strip()
    return found


def _keys(
    migration: Migration, settings: dict[str, str], file: str, problems: list[Problem]
) -> list[_Key]:
    """Return the keys: those of KeyTable, or the one of Domain, Selector and KeyFile."""
    table = settings.get("keytable", "")
    if not table:
        domain, key = settings.get("domain", ""), settings.get("keyfile", "")
        names = [each.strip() for each in domain.split(",") if each.strip()]
        selector = settings.get("selector", "")
        return [_Key(each, selector, key, file) for each in names if selector and key]
    path = table.removeprefix("refile:").removeprefix("file:")
    if not path.startswith("/"):
        problems.append(Problem(file, f"KeyTable {table!r} is no file; its keys are not copied"))
        return []
    found: list[_Key] = []
    try:
        text = read_text(migration.directory.locate(path))
    except PostfixError as error:
        problems.append(Problem(file, str(error)))
        return []
    for number, line in logical_lines(text):
        words = line.split()
        parts = words[1].split(":") if len(words) > 1 else []
        if len(parts) == _PARTS and len(found) < _MOST_KEYS:
            found.append(_Key(parts[0], parts[1], parts[2], f"{path}:{number}"))
        else:
            problems.append(Problem(f"{path}:{number}", "expected `name domain:selector:file`"))
    return found


def _copy(migration: Migration, name: str, key: _Key) -> bool:
    """Copy a private key. Return whether that worked."""
    try:
        domain = parse_domain(key.domain)
        parse_domain(key.selector)
        content = read_text(migration.directory.locate(key.file))
    except (PostfixError, ValueError) as error:
        migration.by_hand(name, f"OpenDKIM: {key.domain}: {error}", key.place)
        return False
    if "PRIVATE KEY-----" not in content or not content.isascii():
        migration.by_hand(name, f"OpenDKIM: {key.file} is no key in PEM", key.place)
        return False
    path = DKIM_KEYS.format(domain=domain, selector=key.selector)
    if any(file.name == path for file in migration.draft.files):
        return False
    migration.draft.files.append(DraftFile(path, content, _SECRET))
    return True


def _sign(migration: Migration, keys: list[_Key]) -> None:
    """Write a table for the domains that have the same selectors."""
    selectors = defaultdict(list)
    for key in keys:
        selectors[parse_domain(key.domain)].append(key)
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for domain, found in selectors.items():
        groups[tuple(key.selector for key in found)].append(domain)
    for number, (names, domains) in enumerate(groups.items(), 1):
        table = migration.draft.another("dkim_sign", name=f"dkim-{number}" if number > 1 else "")
        table.set("domains", domains, selectors[domains[0]][0].place)
        table.set("keys", DKIM_KEYS)
        table.set("selectors", list(names))
        table.set("networks", trusted_networks(migration))
