"""Say which recipients are ours, and which mailbox takes each one's copy."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from minismtp import (
    Address,
    Local,
    Recipient,
    Reject,
    Session,
    WatchedFiles,
    hookimpl,
    plugin,
)


@plugin
class Mailboxes:
    """Route our domains' recipients to local mailboxes; other domains are left to other plugins.

    `domains` are ours. The local parts that exist there are those in `users`, in `users_file` (one
    a line) and in `aliases_file` (lines `alias: target, target`); with none of `users`,
    `users_file` and `catch_all` every local part exists. A target is a local part or an address of
    ours, and may be an alias again; an alias that names itself keeps its own mailbox. In both files
    `#` starts a comment, and changes are taken on within a second.

    `user+tag` is delivered to `user` (`separator`; "" = off). `catch_all` is the mailbox or alias
    for what no user or alias matches. Mail for postmaster is always accepted (RFC 5321 section
    4.5.1): by the user or alias of that name, else by `catch_all`, else by the mailbox or alias
    that `postmaster` names. Local parts are compared without regard to case.
    """

    domains: list[str]
    users: list[str] = field(default_factory=list)
    users_file: Path | None = None
    aliases_file: Path | None = None
    separator: str = "+"
    catch_all: str = ""
    postmaster: str = "postmaster"

    def __post_init__(self) -> None:
        if not self.domains:
            raise ValueError("domains: expected at least one domain, such as example.org")
        for domain in self.domains:
            if not domain or "@" in domain or any(char.isspace() for char in domain):
                raise ValueError(f"domains: {domain!r} is not a domain")
        if not self.postmaster:
            raise ValueError("postmaster: expected the local part of a mailbox")
        self._domains = [Address("", domain).ascii_domain for domain in self.domains]
        files = [path for path in (self.users_file, self.aliases_file) if path]
        self._directory = WatchedFiles(self._read, *files)

    @hookimpl
    def route(self, session: Session, recipient: Recipient) -> Local | None:
        """Give the mailboxes of a recipient at one of our domains; refuse one that has none."""
        address = recipient.address
        domain = address.ascii_domain
        if domain not in self._domains:
            if str(address).lower() != f"postmaster@{session.hostname.lower()}":
                return None
            domain = self._domains[0]
        found = self._directory.get().find(address.local.lower())
        if not found:
            raise Reject("no such mailbox", code=550, enhanced="5.1.1")
        return Local(*(Address(local, at or domain) for local, at in found))

    def _read(self) -> "_Directory":
        users = None
        if self.users or self.users_file or self.catch_all:
            listed = _lines(self.users_file) if self.users_file else []
            users = {name.lower() for name in (*self.users, *(line for _, line in listed))}
        catch_all, postmaster = self.catch_all.lower(), self.postmaster.lower()
        directory = _Directory(users, self.separator, catch_all, postmaster)
        if self.aliases_file:
            directory.aliases = self._read_aliases(self.aliases_file)
            try:
                directory.check_aliases()
            except ValueError as error:
                raise ValueError(f"aliases_file: {self.aliases_file}: {error}") from error
        return directory

    def _read_aliases(self, path: Path) -> dict[str, list["_Mailbox"]]:
        aliases: dict[str, list[_Mailbox]] = {}
        for number, line in _lines(path):
            name, colon, rest = line.partition(":")
            alias = name.strip().lower()
            targets = [text.strip().lower() for text in rest.split(",")]
            problem = ""
            if not (colon and alias and all(targets)):
                problem = "expected `alias: target, target`"
            elif alias in aliases:
                problem = f"{alias} stands here twice"
            if problem:
                raise ValueError(f"aliases_file: {path}:{number}: {problem}")
            aliases[alias] = [self._target(text, f"{path}:{number}") for text in targets]
        return aliases

    def _target(self, text: str, place: str) -> "_Mailbox":
        if "@" not in text:
            return text, ""
        local, _, domain = text.rpartition("@")
        at = Address("", domain).ascii_domain
        if not local or at not in self._domains:
            raise ValueError(f"aliases_file: {place}: {text} is not an address at our domains")
        return local, at


# A local part, and its domain; an empty one stands for the domain of the recipient.
_Mailbox = tuple[str, str]


@dataclass
class _Directory:
    """Who exists, as the options and files say; `users` is None when everybody does."""

    users: set[str] | None
    separator: str
    catch_all: str
    postmaster: str
    aliases: dict[str, list[_Mailbox]] = field(default_factory=dict)

    def find(self, local: str) -> list[_Mailbox]:
        """Give the mailboxes that take a local part, none when nobody has it."""
        spellings = [local]
        if self.separator:
            spellings.append(local.partition(self.separator)[0])
        for name in spellings:
            if name in self.aliases:
                return self.expand((name, ""))
            if self.users is not None and name in self.users:
                return [(name, "")]
        if local == "postmaster":
            return self.expand((self.catch_all or self.postmaster, ""))
        if self.users is None and spellings[-1]:
            return [(spellings[-1], "")]
        return self.expand((self.catch_all, "")) if self.catch_all else []

    def expand(self, start: _Mailbox) -> list[_Mailbox]:
        """Follow aliases to the mailboxes at their ends; each alias is followed once."""
        mailboxes: dict[_Mailbox, None] = {}
        seen = {start}
        waiting = [start]
        while waiting:
            name, domain = waiting.pop(0)
            if name not in self.aliases:
                mailboxes[name, domain] = None
                continue
            for target, own_domain in self.aliases[name]:
                step = (target, own_domain or domain)
                if target == name:
                    mailboxes[step] = None
                elif step not in seen:
                    seen.add(step)
                    waiting.append(step)
        return list(mailboxes)

    def check_aliases(self) -> None:
        """Raise ValueError for an alias that leads to nobody; all of them must end at mailboxes."""
        special = {self.catch_all, self.postmaster}
        for alias in self.aliases:
            ends = self.expand((alias, ""))
            if not ends:
                raise ValueError(f"{alias} leads only back to itself")
            for name, _ in ends:
                if self.users is not None and name not in self.users | special:
                    raise ValueError(f"{alias} leads to {name}, which is no user and no alias")


def _lines(path: Path) -> list[tuple[int, str]]:
    """Give the lines of a file that say something, with their numbers, without comments."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
    return [(number, line) for number, line in enumerate(lines, 1) if line]
