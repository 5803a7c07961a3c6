"""What every part of an import works with: the directory, the draft, and the report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from minismtp.cli.import_postfix.draft import Draft
from minismtp.cli.import_postfix.report import Entry, Report
from minismtp.cli.postfix_files.directory import PostfixDirectory
from minismtp.cli.postfix_files.lookup_table import LookupTable, open_table
from minismtp.cli.postfix_files.main_cf import MainCf
from minismtp.cli.postfix_files.text import PostfixError, words
from minismtp.config.types import parse_domain


@dataclass(slots=True)
class Migration:
    """One import. The parts read `directory`, and write into `draft` and `report`."""

    directory: PostfixDirectory
    state_directory: Path
    more_domains: tuple[str, ...] = ()
    draft: Draft = field(default_factory=Draft)
    report: Report = field(default_factory=Report)
    #: The domains of mydestination, and of virtual mailboxes and aliases.
    local: list[str] = field(default_factory=list)
    virtual: list[str] = field(default_factory=list)
    #: What `logins.trusted_networks` found, once it looked.
    networks: list[str] | None = None
    #: The names of the listeners that a service of master.cf became, by its label.
    listeners: dict[str, list[str]] = field(default_factory=dict)

    @property
    def main(self) -> MainCf:
        """The parameters of main.cf."""
        return self.directory.main

    @property
    def domains(self) -> list[str]:
        """All domains whose mail is stored or forwarded here."""
        return list(dict.fromkeys([*self.virtual, *self.local]))

    def value(self, name: str) -> str:
        """Return the value of a parameter; one that cannot be read is reported, and "" here."""
        try:
            return self.main.value(name)
        except PostfixError as error:
            self.by_hand(name, str(error))
            return ""

    def is_set(self, name: str) -> bool:
        """Return whether main.cf has the parameter."""
        return self.main.is_set(name)

    def carried(self, name: str, text: str, place: str = "") -> None:
        """Report that a parameter became a key."""
        self._note(self.report.carried, name, text, place)

    def by_hand(self, name: str, text: str, place: str = "") -> None:
        """Report what a person has to do."""
        self._note(self.report.by_hand, name, text, place)

    def unneeded(self, name: str, text: str, place: str = "") -> None:
        """Report why a parameter has no counterpart."""
        self._note(self.report.without_counterpart, name, text, place)

    def _note(self, entries: dict[Entry, None], name: str, text: str, place: str) -> None:
        # A default is no line that somebody wrote, except where a person must act.
        if not place and not self.is_set(name) and entries is not self.report.by_hand:
            return
        entries[Entry(name, place or self.main.place(name), text)] = None

    def origin(self, name: str) -> str:
        """Return the comment of a key that is from a parameter."""
        return f"{name}, {self.main.place(name)}"

    def items(self, name: str) -> list[str]:
        """Return the items of a list, with the lines of files in it.

        A file that cannot be read is reported, and the other items count.
        """
        found: list[str] = []
        for word in words(self.value(name)):
            try:
                found += self.directory.items(word)
            except PostfixError as error:
                if self.is_set(name):  # else another parameter, which reports it, is the default
                    self.by_hand(name, f"{error}; the entries of {word} are left out")
        return found

    def tables(self, name: str, *, aliases: bool = False) -> list[LookupTable]:
        """Return the lookup tables of a parameter. Their problems are reported."""
        found = []
        for item in self.items(name):
            table = open_table(item, self.directory, self.main.place(name), aliases=aliases)
            for problem in table.problems:
                self.by_hand(name, problem.text, problem.place)
            found.append(table)
        return found

    def as_domains(self, name: str, texts: Iterable[str]) -> list[str]:
        """Return the names that are domains, in A-labels; others are reported."""
        found = []
        for text in texts:
            try:
                found.append(parse_domain(text.removesuffix(".")))
            except ValueError:
                self.by_hand(
                    name, f"{text!r} is no domain that can be written out; add it yourself"
                )
        return list(dict.fromkeys(found))
