"""Aliases and users as sets of addresses, and which aliases lead somewhere."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import NamedTuple

from minismtp.values.user_names import folded_local


class Place(NamedTuple):
    """An address; an empty local part stands for all others of the domain."""

    local: str
    domain: str

    @classmethod
    def of(cls, local: str, domain: str) -> Place:
        """Return a place with the local part as it is compared."""
        return cls(folded_local(local), domain)


@dataclass(slots=True)
class Alias:
    """The targets of an alias, and the line that it is from."""

    targets: dict[Place, None] = field(default_factory=dict)
    origin: str = ""


@dataclass(slots=True)
class Addresses:
    """What the plugin mailboxes is to know. The `domains` are keys, because they are looked up."""

    domains: dict[str, None]
    separator: str
    users: dict[Place, str] = field(default_factory=dict)
    aliases: dict[Place, Alias] = field(default_factory=dict)

    def add_alias(self, key: Place, targets: list[Place], origin: str) -> None:
        """Add an alias, unless an earlier table has it: the first one decides."""
        if key not in self.aliases:
            self.aliases[key] = Alias(dict.fromkeys(targets), origin)

    def step(self, target: Place) -> Place | None:
        """Return the alias or user that an address of our domains means, None if it is unknown."""
        names = [target.local]
        if self.separator:
            names.append(target.local.partition(self.separator)[0])
        for name in names:
            place = Place(name, target.domain)
            if name and (place in self.aliases or place in self.users):
                return place
        whole = Place("", target.domain)
        return whole if whole in self.aliases else None

    def spread(self) -> None:
        """Replace `@old: @new` by an alias for each address of the domain `new`, if it is ours."""
        by_domain: dict[str, list[Place]] = defaultdict(list)
        for place in {**self.users, **self.aliases}:
            if place.local:
                by_domain[place.domain].append(place)
        for key, alias in list(self.aliases.items()):
            [target, *others] = alias.targets
            if key.local or others or target.local or target.domain not in self.domains:
                continue
            if key == target or Place("", target.domain) in self.aliases:
                continue
            del self.aliases[key]
            for place in by_domain[target.domain]:
                old = Place(place.local, key.domain)
                if old not in self.users:
                    self.add_alias(old, [place], alias.origin)

    def without_ends(self) -> list[tuple[Place, Place, str]]:
        """Remove targets that lead nowhere. Return them, each with its alias and the origin."""
        leads_here: dict[Place, list[Place]] = defaultdict(list)
        good: deque[Place] = deque()
        for key, alias in self.aliases.items():
            for target in alias.targets:
                match self._next(key, target):
                    case Place() as other:
                        leads_here[other].append(key)
                    case True:
                        good.append(key)
        reached: set[Place] = set()
        while good:
            key = good.popleft()
            if key not in reached:
                reached.add(key)
                good.extend(leads_here[key])
        return self._cut(reached)

    def _next(self, key: Place, target: Place) -> Place | bool:
        """Return the next alias on the way from a target, or whether the way ends well here."""
        if target.domain not in self.domains or not target.local:
            return True
        found = self.step(target)
        if found is not None and found != key and found in self.aliases:
            return found
        return found in self.users

    def _cut(self, reached: set[Place]) -> list[tuple[Place, Place, str]]:
        removed = []
        for key, alias in self.aliases.items():
            for target in list(alias.targets):
                following = self._next(key, target)
                if following is False or (following is not True and following not in reached):
                    removed.append((key, target, alias.origin))
                    del alias.targets[target]
        self.aliases = {key: each for key, each in self.aliases.items() if each.targets}
        return removed
