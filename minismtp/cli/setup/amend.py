"""Adds a domain to the text of a configuration. Comments, order and spelling stay as they are.

The text gets whole tables, and no line of it changes. What the TOML library reads afterwards is
compared with what it read before, so a text that is written in an unusual way is refused instead of
damaged.
"""

from __future__ import annotations

import contextlib
import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tomli

from minismtp.cli.common import CommandError
from minismtp.cli.setup import template
from minismtp.cli.setup.plan import Existing, Plan, PlannedFile, keys, password
from minismtp.config.toml_document import parse_document
from minismtp.config.toml_places import key_lines
from minismtp.config.types import parse_domain

_MAILBOXES: Final = "mailboxes"
_DKIM_SIGN: Final = "dkim_sign"
_NAME_LINE: Final = re.compile(r'([ \t]*+)"[^"\\]*+",(?:[ \t]*+#[^\r]*+)?+(\r?)')


@dataclass(frozen=True, slots=True)
class Present:
    """A configuration that exists: its path, its text, and the tables of its plugins."""

    path: Path
    text: str
    plugins: list[dict[str, Any]]

    @classmethod
    def of(cls, path: Path, text: str) -> Present:
        """Read a text. Raise ConfigError if it is not TOML."""
        found = parse_document(text, str(path)).get("plugins", [])
        tables = found if isinstance(found, list) else []
        return cls(path, text, [each if isinstance(each, dict) else {} for each in tables])

    def of_kind(self, use: str) -> list[int]:
        """Return the numbers of the tables of a plugin."""
        return [number for number, each in enumerate(self.plugins) if each.get("use") == use]

    def option(self, use: str, key: str) -> str:
        """Return an option of the first table of a plugin that has it, or ""."""
        values = (self.plugins[number].get(key) for number in self.of_kind(use))
        return next((value for value in values if isinstance(value, str)), "")

    @property
    def password_file(self) -> Path | None:
        """The file that gets the password of a new user, if it is beside the configuration."""
        option = self.option("password_file", "path")
        path = self.path.parent / option
        return path if option and path.parent == self.path.parent else None


def added_plan(present: Present, domain: str, user: str, existing: Existing) -> Plan:
    """Return the plan for one more domain. Raise CommandError if it cannot be added."""
    text = with_domain(present, domain)
    base = present.path.parent
    wanted = [
        PlannedFile(base / f"users.{domain}", template.users(domain, user)),
        PlannedFile(base / f"aliases.{domain}", template.aliases(domain, user)),
    ]
    if taken := [file.path for file in wanted if file.path in existing]:
        raise CommandError(f"{taken[0]} exists, but {present.path} has no {domain}; move it away")
    signing = keys(base, _keys(present), domain)
    kept = tuple(file.path for file in signing if file.path in existing)
    path = present.password_file
    secrets = password(path, f"{user}@{domain}", existing) if path else []
    configuration = PlannedFile(present.path, text, before=present.text)
    made = [file for file in signing if file.path not in kept]
    return Plan((*made, *wanted, *secrets, configuration), kept)


def files_of(present: Present, domain: str) -> list[Path]:
    """Return the files besides the configuration that decide about the plan for a domain."""
    signing = [file.path for file in keys(present.path.parent, _keys(present), domain)]
    return [*signing, present.password_file] if present.password_file else signing


def with_domain(present: Present, domain: str) -> str:
    """Return the text with the tables of one more domain. Raise CommandError."""
    _check(present, domain)
    boxes = template.mailboxes(
        domain,
        f"users.{domain}",
        f"aliases.{domain}",
        srs=present.option(_MAILBOXES, "srs_secret_file"),
        name=_free_name(present, _MAILBOXES),
    )
    signing = template.dkim_sign(domain, keys=_keys(present), name=_free_name(present, _DKIM_SIGN))
    # Before `relay`, because it would send mail for the domain of a later table elsewhere.
    places = [(present.of_kind(_MAILBOXES)[-1], boxes)]
    places.append(((present.of_kind(_DKIM_SIGN) or [len(present.plugins) - 1])[-1], signing))
    text, plugins = present.text, copy.deepcopy(present.plugins)
    for number, table in sorted(places, reverse=True):
        text = _with_table(text, number, f"# {domain}, by `minismtp setup --add-domain`\n{table}")
        plugins.insert(number + 1, tomli.loads(table)["plugins"][0])
    _check_result(present, text, plugins)
    return _with_names(text, template.web_names(domain))


def _with_names(text: str, names: list[str]) -> str:
    """Return a text with more names in `[tls.acme]`, if there is a name on a line of its own."""
    table: Any = tomli.loads(text)
    try:
        last = key_lines(text)[f"tls.acme.names[{len(table['tls']['acme']['names']) - 1}]"]
    except (KeyError, TypeError):
        return text
    lines = text.split("\n")
    found = _NAME_LINE.fullmatch(lines[last - 1])
    if not found:
        return text
    lines[last:last] = [f'{found[1]}"{name}",{found[2]}' for name in names]
    table["tls"]["acme"]["names"] += names
    new = "\n".join(lines)
    return new if _is(new, table) else text


def _is(text: str, table: object) -> bool:
    try:
        return tomli.loads(text) == table
    except tomli.TOMLDecodeError:
        return False


def _check(present: Present, domain: str) -> None:
    for number in (*present.of_kind(_MAILBOXES), *present.of_kind("relay")):
        names = present.plugins[number].get("domains", [])
        if domain in map(_folded, names if isinstance(names, list) else []):
            line = key_lines(present.text).get(f"plugins[{number}].domains", 0)
            use = present.plugins[number]["use"]
            raise CommandError(
                f"{present.path}: {domain} stands already in the plugin {use}, line {line};"
                " nothing was changed"
            )
    if not present.of_kind(_MAILBOXES):
        raise CommandError(f"{present.path} has no plugin mailboxes; add one by hand")
    for number in present.of_kind("maildir"):
        path = present.plugins[number].get("path", "")
        if "{domain}" not in str(path):
            line = key_lines(present.text).get(f"plugins[{number}].path", 0)
            raise CommandError(
                f"{present.path}: line {line}: path: {path!r} is the same for all domains;"
                " expected {domain} in it, because alice at both would share a mailbox"
            )


def _folded(name: object) -> str:
    try:
        return parse_domain(str(name))
    except ValueError:
        return ""


def _keys(present: Present) -> str:
    """Return the path of the keys, which new ones join if their names differ by domain."""
    path = present.option(_DKIM_SIGN, "keys")
    parts = Path(path)
    fits = all(name in path for name in ("{domain}", "{selector}"))
    inside = not parts.is_absolute() or parts.is_relative_to(present.path.parent)
    with contextlib.suppress(KeyError, IndexError, ValueError):  # of other placeholders
        path.format(domain="", selector="")
        if fits and inside and ".." not in parts.parts:
            return path
    return template.DKIM_KEYS


def _free_name(present: Present, use: str) -> str:
    """Return a label for metrics, in which a domain would stand for as long as they are kept."""
    taken = {each.get("name", each.get("use")) for each in present.plugins}
    return next(name for n in range(2, len(taken) + 3) if (name := f"{use}-{n}") not in taken)


def _with_table(text: str, number: int, table: str) -> str:
    """Return a text with a table below that of a plugin, and below the comments at its end."""
    end = "\r\n" if "\r\n" in text else "\n"
    lines = text.removesuffix("\n").removesuffix("\r").split("\n")
    place = _last_line(lines, text, number)
    new = ["", *table.removesuffix("\n").split("\n")]
    lines[place:place] = [line + end.removesuffix("\n") for line in new]
    if end == "\r\n" and place and not lines[place - 1].endswith("\r"):
        lines[place - 1] += "\r"  # the last line of the file, whose end was removed above
    return "\n".join(lines).removesuffix("\r") + end


def _last_line(lines: list[str], text: str, number: int) -> int:
    """Return the number of the last line of a table, counted from 1."""
    places = key_lines(text)
    own, start = f"plugins[{number}]", places.get(f"plugins[{number}]", 0)
    later = [
        line
        for key, line in places.items()
        if line > start and key != own and not key.startswith((f"{own}.", f"{own}["))
    ]
    following = min(later, default=len(lines) + 1)
    last = following - 1
    while last > start and lines[last - 1].strip()[:1] in {"", "#"}:
        last -= 1
    below = last
    while below < following - 1 and lines[below].strip()[:1] == "#":
        below += 1
    touches = below == following - 1 and following <= len(lines)
    return last if touches else below


def _check_result(present: Present, text: str, plugins: list[dict[str, Any]]) -> None:
    try:
        before, after = tomli.loads(present.text), tomli.loads(text)
    except tomli.TOMLDecodeError:
        after = before = {}
    if not after or after != {**before, "plugins": plugins}:
        raise CommandError(
            f"{present.path}: the tables of plugins are written in a way that this command cannot"
            " add to; expected [[plugins]] tables"
        )
