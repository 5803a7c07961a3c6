"""The configuration that an import writes: tables with the origin of each key, and files beside."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from minismtp.cli.setup.plan import Made
from minismtp.cli.setup.template import quoted

Value: TypeAlias = str | int | float | list[str]


@dataclass(slots=True)
class Table:
    """A table of TOML; `comment` stands above it, and the origin of a key behind it."""

    head: str
    comment: str = ""
    keys: dict[str, Value] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    inner: list[Table] = field(default_factory=list)

    def set(self, key: str, value: Value, origin: str = "") -> None:
        """Set a key, and remember which line of Postfix it is from."""
        self.keys[key] = value
        if origin:
            self.origins[key] = origin

    def add(self, key: str, values: list[str], origin: str = "") -> None:
        """Add to a list what is not in it yet."""
        present = self.keys.setdefault(key, [])
        assert isinstance(present, list)  # noqa: S101 - only lists are added to
        present += [value for value in dict.fromkeys(values) if value not in present]
        if origin:
            before = self.origins.get(key, "")
            self.origins[key] = f"{before}, {origin}" if before else origin

    def lines(self) -> list[str]:
        """Return the lines of the table and of those in it."""
        found = [*(f"# {line}" for line in self.comment.splitlines())]
        if self.head:
            found.append(self.head)
        for key, value in self.keys.items():
            origin = self.origins.get(key, "")
            found.append(f"{key} = {_toml(value)}{f'  # {origin}' if origin else ''}")
        for table in self.inner:
            found += table.lines()
        return found


@dataclass(frozen=True, slots=True)
class DraftFile:
    """A file beside the configuration. The content of a secret one is never shown."""

    name: str
    content: str | Made
    secret: str = ""  # what to show in its place


#: Plugins in the order in which they run.
_ORDER = (
    *("early_talker", "mailboxes", "dovecot_auth", "password_file", "relay", "rate_limit"),
    *("helo", "reverse_dns", "dnsbl", "spf", "dkim_verify", "dmarc", "rules", "rspamd"),
    *("spamassassin", "clamav", "milter", "greylist", "score", "authentication_results"),
    *("quarantine", "lmtp", "maildir", "dkim_sign"),
)


class Draft:
    """Everything that is to be written."""

    def __init__(self) -> None:
        self.top = Table("")
        self.listeners: list[Table] = []
        self.tls = Table("[tls]")
        self.sni: list[Table] = []
        self.limits = Table("[limits]")
        self.outbound = Table("[outbound]")
        self.routes: list[Table] = []
        self.plugins: list[Table] = []
        self.files: list[DraftFile] = []

    def plugin(self, use: str, comment: str = "") -> Table:
        """Return the table of a plugin, which is made if it is missing."""
        for table in self.plugins:
            if table.keys["use"] == use:
                return table
        return self.another(use, comment)

    def another(self, use: str, comment: str = "", name: str = "") -> Table:
        """Return one more table of a plugin; all but one need a name."""
        table = Table("[[plugins]]", comment)
        table.set("use", use)
        if name:
            table.set("name", name)
        self.plugins.append(table)
        return table

    def has(self, use: str) -> bool:
        """Return whether there is a table of a plugin."""
        return any(table.keys["use"] == use for table in self.plugins)

    def text(self, head: str) -> str:
        """Return the configuration; `head` is the comment at its beginning."""
        ordered = sorted(self.plugins, key=lambda table: _ORDER.index(str(table.keys["use"])))
        tables = [
            *([self.top] if self.top.keys else []),
            *self.listeners,
            *(table for table in (self.tls,) if table.keys),
            *self.sni,
            *(table for table in (self.limits, self.outbound) if table.keys),
            *self.routes,
            *ordered,
        ]
        blocks = ["\n".join(f"# {line}".rstrip() for line in head.splitlines())]
        blocks += ["\n".join(table.lines()) for table in tables]
        return "\n\n".join(blocks) + "\n"


def _toml(value: Value) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return quoted(value)
        case list():
            return _list(value)
    return str(value)


def _list(values: list[str]) -> str:
    whole = f"[{', '.join(map(quoted, values))}]"
    if len(whole) <= 80:  # noqa: PLR2004 - the width of a line
        return whole
    return "[\n" + "".join(f"    {quoted(value)},\n" for value in values) + "]"
