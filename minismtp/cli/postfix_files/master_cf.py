"""The services of master.cf, with the parameters that they set for themselves (master(5))."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from minismtp.cli.postfix_files.main_cf import Setting
from minismtp.cli.postfix_files.text import (
    BLANKS,
    PostfixError,
    Problem,
    logical_lines,
    name_and_value,
    unbraced,
    unusable,
    words,
)

_FIELDS: Final = 8  # service, type, private, unprivileged, chroot, wakeup, processes, command


@dataclass(frozen=True, slots=True)
class Service:
    """A line of master.cf. `name` is such as submission or 127.0.0.1:10025."""

    name: str
    type: str
    command: str
    place: str
    processes: str = "-"
    options: dict[str, Setting] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The name and type, as postconf writes it."""
        return f"{self.name}/{self.type}"


def read_services(text: str, file: str) -> tuple[list[Service], list[Problem]]:
    """Return the services, and the lines that cannot be used."""
    services: dict[str, Service] = {}
    problems = []
    for number, line in logical_lines(text):
        place = f"{file}:{number}"
        if problem := unusable(line):
            problems.append(Problem(place, problem))
            continue
        try:
            service = _service(line, place)
        except PostfixError as error:
            problems.append(Problem(place, f"{error}; the service is left out"))
        else:
            services[service.label] = service
    return list(services.values()), problems


def _service(line: str, place: str) -> Service:
    fields = words(line, BLANKS)
    if len(fields) < _FIELDS:
        raise PostfixError(f"expected {_FIELDS} fields, such as `smtp inet n - y - - smtpd`")
    options: dict[str, Setting] = {}
    rest = iter(fields[_FIELDS:])
    arguments = []
    for word in rest:
        if word == "--" or not word.startswith("-"):
            arguments += [unbraced(word), *map(unbraced, rest)]
        else:
            for text in _assignments(word, rest):
                name, value = _option(text)
                options[name] = Setting(value, place)
    return Service(
        name=fields[0],
        type=fields[1],
        command=fields[7].rpartition("/")[2],
        place=place,
        processes=fields[6],
        options=options,
        arguments=tuple(arguments),
    )


def _option(text: str) -> tuple[str, str]:
    try:
        return name_and_value(unbraced(text))
    except PostfixError:
        expected = "expected `-o name=value`, or `-o { name = value }` with blanks"
        raise PostfixError(f"{expected}, not {text!r}") from None


def _assignments(word: str, rest: Iterator[str]) -> Iterator[str]:
    """Yield the `name=value` of an option -o, which may stand behind others or in the next word."""
    _, has_value, value = word[1:].partition("o")
    if has_value:
        text = value or next(rest, "")
        if not text:
            raise PostfixError("expected `name=value` after -o")
        yield text
