"""Reads a TOML document, and says what to do about text that is not TOML.

The TOML library stops at the first mistake. A line that it cannot read is left out here, and the
rest is read again, so that all such lines are reported at once.
"""

from __future__ import annotations

import re
from typing import Final

import tomli

from minismtp.config.mistakes import ConfigError, combined
from minismtp.config.toml_places import open_value

_MOST_MISTAKES: Final = 20
_AT: Final = re.compile(r" \(at [^()]*\)\Z")
_CURLY: Final = re.compile("[\u2018-\u201f\u00ab\u00bb]")
_BARE_TEXT: Final = re.compile(r"\s*+([\w.-]++)\s*+=\s*+([^\s\"'\[{#][^#\"]*+)(?:#.*)?")
_NO_EQUALS: Final = re.compile(r"\s*([\w.-]+)\s*(?::|\s)\s*(.+)")
_BOOLEANS: Final = {
    **dict.fromkeys(("True", "yes", "on"), "true"),
    **dict.fromkeys(("False", "no", "off"), "false"),
}
_LINE: Final = re.compile(r"\s*[\w.\"'-]+\s*=(?!.*(\"\"\"|'''))[^\[{]*")  # a value on one line


def parse_document(text: str, file: str) -> dict[str, object]:
    """Return the table of a document. Raise ConfigError for all lines that cannot be read."""
    lines = text.split("\n")
    mistakes: list[ConfigError] = []
    while True:
        try:
            table = tomli.loads("\n".join(lines))
        except tomli.TOMLDecodeError as error:
            number = min(getattr(error, "lineno", 0), len(lines))
            line = lines[number - 1] if number else ""
            if "nclosed" in str(error):
                number, line = open_value("\n".join(lines)) or number, ""
            mistakes.append(ConfigError(_explained(error, line, lines), file=file, line=number))
            if not _LINE.fullmatch(line) or len(mistakes) == _MOST_MISTAKES:
                break
            lines[number - 1] = ""
        except ValueError as error:  # such as a date that does not exist
            mistakes.append(ConfigError(str(error), file=file))
            break
        except RecursionError:
            raise ConfigError("is nested too deeply", file=file) from None
        else:
            if not mistakes:
                return table
            break
    raise combined(mistakes)


def _explained(error: tomli.TOMLDecodeError, line: str, lines: list[str]) -> str:
    """Return what the library says, with what to write instead if that can be told."""
    message = _AT.sub("", str(error))
    message = f"{message[:1].lower()}{message[1:]}"
    help_ = _help_with_value(message, line)
    return _of_structure(message, line, lines) or (f"{message}: {help_}" if help_ else message)


def _of_structure(message: str, line: str, lines: list[str]) -> str:
    """Return a message about tables and arrays, and about keys that stand twice."""
    if message.startswith("unclosed"):
        kind = message.removeprefix("unclosed ")
        return f"the {kind} that begins here has no end; expected {']' if kind == 'array' else '}'}"
    if twice := re.match(r"cannot declare \((.*?),?\) twice", message):
        name = ".".join(re.findall(r"'([^']*)'", twice[1]))
        if f"[[{name}]]" in lines:
            return f"the table [{name}] is [[{name}]] above; write two brackets here too"
        return f"the table [{name}] stands here a second time; join the two"
    if not message.startswith("cannot overwrite a value"):
        return ""
    if line.startswith("[["):
        return f"the table {line.strip()} has single brackets above; write two there too"
    key = line.partition("=")[0].strip()
    return f"{key or 'this key'} is set a second time in its table; remove one of the two"


def _help_with_value(message: str, line: str) -> str:
    """Return what to write in this line, or "" if that cannot be told."""
    bare, unequal = _BARE_TEXT.fullmatch(line), _NO_EQUALS.fullmatch(line)
    if _CURLY.search(line):
        return 'the quotes are typographic ones; write straight ones: "'
    if "\\" in line and re.search("escape|hex", message):
        return "write \\\\ for a backslash, or put the text into single quotes"
    value = bare[2].rstrip() if bare else ""
    if bare and value in _BOOLEANS:
        return f"write {bare[1]} = {_BOOLEANS[value]}"
    if bare and message.startswith("invalid value"):
        return f'text stands in quotes; write {bare[1]} = "{value}"'
    if unequal and "'='" in message:
        return f"write {unequal[1]} = {unequal[2]}"
    if line.count('"') % 2 or line.count("'") % 2:
        return "a closing quote is missing, here or on a line above"
    return ""
