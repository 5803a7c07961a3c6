"""The users of local domains, and the targets of aliases."""

import re
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from minismtp import Address, Local, folded_local, read_file

#: A local part and a domain. An empty one in the target of an alias means the recipient's.
Mailbox = tuple[str, str]

_LOCAL_PART = 512  # octets, as in Address
_REMEMBERED = 1024  # recipients
_ALIAS = re.compile(r'[ \t]*+("(?:[^"\\]|\\.)*"[^:]*|[^":][^:]*):')
# A quoted string, which matches a group if it has no end; a comma; other text.
_PIECE = re.compile(r'(?s)"(?:[^"\\]|\\.)*+(?:"|(\\?\Z))|,|[^,"]+')


@dataclass
class Directory:
    """The content of options and files; `users` is None if every local part exists.

    `domains` are keys of a dict, because each recipient is looked up there several times. `users`
    are in every domain, `addresses` in their own. The keys of `aliases` are `local@domain`,
    `local` (in each local domain) and `@domain` (for all other recipients there), in lower case.
    """

    domains: Collection[str]
    users: set[str] | None
    separator: str
    catch_all: str
    postmaster: str
    aliases: dict[str, list[Mailbox]] = field(default_factory=dict)
    addresses: set[Mailbox] = field(default_factory=set)

    def __post_init__(self) -> None:
        #: `split`, which remembers the recipients of the last messages.
        self.targets = lru_cache(_REMEMBERED)(self.split)

    def split(self, local: str, domain: str) -> tuple[Local | None, list[Address]]:
        """Return the route to a recipient's mailboxes, if any, and the outside addresses."""
        found = [Address(*mailbox) for mailbox in self.find(local, domain)]
        here = [each for each in found if each.ascii_domain in self.domains]
        elsewhere = [each for each in found if each.ascii_domain not in self.domains]
        return Local(*here) if here else None, elsewhere

    def find(self, local: str, domain: str) -> list[Mailbox]:
        """Return the mailboxes and outside addresses that get a recipient's mail."""
        key, mailbox = self._resolve(local, domain)
        if not key and not self._is_user(*mailbox):
            name = "" if self.users is None else self.catch_all
            if local.lower() == "postmaster":
                name = self.catch_all or self.postmaster
            if name:
                key, mailbox = self._resolve(name, domain)
            elif self.users is not None or not mailbox[0]:
                return []
        return self._expand(key, mailbox) if key else [mailbox]

    def check(self) -> None:
        """Raise ValueError for an alias without a valid target."""
        special = {self.catch_all, self.postmaster}
        for key in self.aliases:
            local, _, domain = key.partition("@")
            ends = self._expand(key, (local, domain or next(iter(self.domains))))
            if not ends:
                raise ValueError(f"{key} leads only back to itself")
            for name, at in ends:
                known = self.users is None or name in special or self._is_user(name, at)
                if name and at in self.domains and not known:
                    raise ValueError(f"{key} leads to {name}, which is neither a user nor an alias")

    def _is_user(self, local: str, domain: str) -> bool:
        return local in (self.users or ()) or (local, domain) in self.addresses

    def _resolve(self, local: str, domain: str) -> tuple[str, Mailbox]:
        """Return the key of a mailbox's alias, or "", and the mailbox without its tag."""
        if domain not in self.domains:
            return "", (local, domain)
        names = [_folded(local)]
        if self.separator:
            names.append(names[0].partition(self.separator)[0])
        for name in names:
            for key in (f"{name}@{domain}", name):
                if key in self.aliases:
                    return key, (local, domain)
            if self._is_user(name, domain):
                return "", (name, domain)
        whole = f"@{domain}"
        return (whole, (local, domain)) if whole in self.aliases else ("", (names[-1], domain))

    def _expand(self, key: str, mailbox: Mailbox) -> list[Mailbox]:
        """Follow aliases to their targets, each once; one that names itself is a target."""
        ends: dict[Mailbox, None] = {}
        waiting = deque([(key, mailbox)])
        seen = set(waiting)
        while waiting:
            key, mailbox = waiting.popleft()
            for target in self.aliases[key]:
                step = (target[0] or mailbox[0], target[1] or mailbox[1])
                alias, found = self._resolve(*step)
                if alias in ("", key):
                    ends[(_folded(found[0]), found[1]) if alias else found] = None
                elif (alias, found) not in seen:
                    seen.add((alias, found))
                    waiting.append((alias, found))
        return list(ends)


def _folded(local: str) -> str:
    """Return a local part in lower case, unless that is too long for a local part."""
    lower = folded_local(local)
    return lower if len(lower.encode("utf-8", "surrogatepass")) <= _LOCAL_PART else local


def read_aliases(path: Path, domains: Collection[str]) -> dict[str, list[Mailbox]]:
    """Read lines `alias: target, target`. Raise OSError, and ValueError with the line."""
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


def _entry(line: str, domains: Collection[str]) -> tuple[str, list[Mailbox]]:
    match = _ALIAS.match(line)
    texts = _split(line[match.end() :]) if match else []
    if match is None or not all(texts):
        raise ValueError("expected `alias: target, target`")
    key = folded_local(match[1].strip())
    local, domain = _parts(key) if key[0] == '"' else _cut(key)
    if domain:
        domain = Address("", domain).ascii_domain
        if domain not in domains:
            raise ValueError(f"{key} is not an address at our domains")
        local = f"{local}@{domain}"
    return local, [_target(text, domains) for text in texts]


def _split(text: str) -> list[str]:
    """Return the targets between commas outside quotes. Raise ValueError."""
    targets = [""]
    for match in _PIECE.finditer(text):
        if match[1] is not None:
            raise ValueError("a quote has no end")
        if match[0] == ",":
            targets.append("")
        else:
            targets[-1] += match[0]
    return [target.strip() for target in targets]


def _target(text: str, domains: Collection[str]) -> Mailbox:
    if text[0] in "|/:" or (text[0] == text[-1] == '"' and text[1] in "|/:"):
        raise ValueError(f"{text} is no address; programs, files and lists are not supported")
    if text[0] == "@":  # the same local part there
        return "", Address.parse(f"x{text}").ascii_domain
    local, domain = _parts(text)
    return (folded_local(local) if not domain or domain in domains else local), domain


def listed(
    names: Iterable[tuple[str, str]], domains: Collection[str]
) -> tuple[set[str], set[Mailbox]]:
    """Return the local parts and the addresses of users. Raise ValueError with the place.

    Each of `names` is the place of a name and the name.
    """
    users, addresses = set(), set()
    for place, name in names:
        if "@" not in name or (name[0] == name[-1] == '"'):
            users.add(local_part(name))
            continue
        try:
            local, domain = _parts(name)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        if domain not in domains:
            raise ValueError(f"{place}: {name!r} is not an address at one of `domains`")
        addresses.add((folded_local(local), domain))
    return users, addresses


def local_part(text: str) -> str:
    """Return the normal form of a local part in the configuration, which may be in quotes."""
    return folded_local(_parts(text)[0] if text[:1] == text[-1:] == '"' else text)


def _parts(text: str) -> Mailbox:
    """Return local part and domain of an address, which may be without a domain."""
    alone = text.endswith('"') or "@" not in text
    address = Address.parse(f"{text}@example.org" if alone else text)
    if alone and "@" in address.local:
        raise ValueError(f"{text} is no local part")
    return address.local, "" if alone else address.ascii_domain


def _cut(key: str) -> Mailbox:
    local, at, domain = key.rpartition("@")
    return (local, domain) if at else (key, "")


def lines_of(path: Path) -> list[tuple[int, str]]:
    """Return the lines of a file that are not empty, with numbers and without comments."""
    text = read_file(path).decode("utf-8", "replace")
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
    return [(number, line) for number, line in enumerate(lines, 1) if line]
