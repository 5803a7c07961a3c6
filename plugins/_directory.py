"""Who exists at our domains, and where mail for aliases goes."""

import re
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from minismtp import Address

#: A local part and a domain. In the target of an alias, one that is empty is the recipient's.
Mailbox = tuple[str, str]

_LOCAL_PART = 64  # octets, RFC 5321 section 4.5.3.1.1


@dataclass
class Directory:
    """What options and files say; `users` is None when every local part exists.

    The keys of `aliases` are `local@domain`, `local` (at each of our domains) and `@domain` (for
    whom nothing else is said there), all in lower case.
    """

    domains: list[str]
    users: set[str] | None
    separator: str
    catch_all: str
    postmaster: str
    aliases: dict[str, list[Mailbox]] = field(default_factory=dict)

    def find(self, local: str, domain: str) -> list[Mailbox]:
        """Give the mailboxes and outside addresses that take a recipient's mail, or none."""
        key, mailbox = self._resolve(local, domain)
        if not key and not (self.users and mailbox[0] in self.users):
            name = "" if self.users is None else self.catch_all
            if local.lower() == "postmaster":
                name = self.catch_all or self.postmaster
            if name:
                key, mailbox = self._resolve(name, domain)
            elif self.users is not None or not mailbox[0]:
                return []
        return self._expand(key, mailbox) if key else [mailbox]

    def check(self) -> None:
        """Raise ValueError for an alias that leads to nobody."""
        special = {self.catch_all, self.postmaster}
        for key in self.aliases:
            local, _, domain = key.partition("@")
            ends = self._expand(key, (local, domain or self.domains[0]))
            if not ends:
                raise ValueError(f"{key} leads only back to itself")
            for name, at in ends:
                known = self.users is None or name in self.users | special
                if name and at in self.domains and not known:
                    raise ValueError(f"{key} leads to {name}, which is no user and no alias")

    def _resolve(self, local: str, domain: str) -> tuple[str, Mailbox]:
        """Give the key of the alias that a mailbox is, "" if none, and the mailbox without tag."""
        if domain not in self.domains:
            return "", (local, domain)
        names = [_folded(local)]
        if self.separator:
            names.append(names[0].partition(self.separator)[0])
        for name in names:
            for key in (f"{name}@{domain}", name):
                if key in self.aliases:
                    return key, (local, domain)
            if self.users and name in self.users:
                return "", (name, domain)
        whole = f"@{domain}"
        return (whole, (local, domain)) if whole in self.aliases else ("", (names[-1], domain))

    def _expand(self, key: str, mailbox: Mailbox) -> list[Mailbox]:
        """Follow aliases to their ends, each once; one that names itself ends there."""
        ends: dict[Mailbox, None] = {}
        waiting = deque([(key, mailbox)])
        seen = set(waiting)
        while waiting:
            key, mailbox = waiting.popleft()
            for target in self.aliases[key]:
                step = (target[0] or mailbox[0], target[1] or mailbox[1])
                following = self._resolve(*step)
                if following[0] in ("", key):
                    ends[_own(following[1]) if following[0] else following[1]] = None
                elif following not in seen:
                    seen.add(following)
                    waiting.append(following)
        return list(ends)


def _own(mailbox: Mailbox) -> Mailbox:
    return _folded(mailbox[0]), mailbox[1]


def _folded(local: str) -> str:
    """Return a local part in lower case, unless that has more octets than a local part may have."""
    lower = local.lower()
    return lower if len(lower.encode("utf-8", "surrogatepass")) <= _LOCAL_PART else local


def read_aliases(path: Path, domains: list[str]) -> dict[str, list[Mailbox]]:
    """Read lines `alias: target, target`; raises OSError, and ValueError with the line."""
    aliases: dict[str, list[Mailbox]] = {}
    for number, line in lines_of(path):
        try:
            key, targets = _entry(line, domains)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
        if key in aliases:
            raise ValueError(f"{path}:{number}: {key} stands here twice")
        aliases[key] = targets
    return aliases


def _entry(line: str, domains: list[str]) -> tuple[str, list[Mailbox]]:
    name, colon, rest = line.partition(":")
    texts = [text.strip() for text in rest.split(",")]
    if not (colon and name.strip() and all(texts)):
        raise ValueError("expected `alias: target, target`")
    key = name.strip().lower()
    local, at, domain = key.rpartition("@")
    if at:
        domain = Address("", domain).ascii_domain
        if domain not in domains:
            raise ValueError(f"{key} is not an address at our domains")
        key = f"{local}@{domain}"
    return key, [_target(text, domains) for text in texts]


def _target(text: str, domains: list[str]) -> Mailbox:
    if text[0] in '|/:"':
        raise ValueError(f"{text} is no address; programs, files and lists are not supported")
    if text[0] == "@":  # the same local part there
        return "", Address.parse(f"x{text}").ascii_domain
    address = Address.parse(text if "@" in text else f"{text}@example.org")
    if "@" not in text:
        return address.local.lower(), ""
    domain = address.ascii_domain
    return (address.local.lower() if domain in domains else address.local), domain


def lines_of(path: Path) -> list[tuple[int, str]]:
    """Give the lines of a file that say something, with their numbers, without comments."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
    return [(number, line) for number, line in enumerate(lines, 1) if line]
