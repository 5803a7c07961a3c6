"""The commands in the pages: those in blocks of code, and those in the rows of tables."""

from __future__ import annotations

import re
from typing import Final

from source import ROOT

#: The pages that a newcomer and an operator follow. Those of authors have tests of their own.
PAGES: Final = {
    name: (ROOT / path).read_text()
    for name, path in {
        "README": "README.md",
        **{
            name: f"docs/{name}.md"
            for name in ("administrator", "systemd", "sending", "monitoring", "insight")
        },
        "hardening": "docs/hardening.md",
        "quarantine": "docs/plugins/quarantine.md",
    }.items()
}
_TABLE_COMMANDS: Final = r"(journalctl|minismtp|ss|df|find|systemctl status|curl|doveconf) "


def section(page: str, heading: str) -> str:
    """Return the text below a heading; without one, the text before the first."""
    text = PAGES[page]
    if not heading:
        return text.partition("\n## ")[0]
    _, found, below = text.partition(f"\n## {heading}\n")
    assert found, f"{page} has no section {heading!r}"
    return below.partition("\n## ")[0]


def block(page: str, heading: str, number: int = 0, language: str = "sh") -> str:
    """Return a block of code."""
    return _blocks(section(page, heading), language)[number]


def commands(text: str) -> list[str]:
    """Return the commands of a block, each on one line and without comments."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [line for each in lines if (line := re.sub(r"(^|\s+)#.*", "", each).strip())]


def all_commands() -> dict[str, str]:
    """Return each command in the blocks of all pages with the name of its page."""
    return {
        command: page
        for page, text in PAGES.items()
        for found in _blocks(text, "sh")
        for command in commands(found)
    }


def table_commands(page: str, heading: str) -> list[str]:
    """Return the commands in the rows of a table."""
    rows = [line for line in section(page, heading).splitlines() if line.startswith("| ")]
    code = [text.replace(r"\|", "|") for row in rows for text in re.findall(r"`([^`]+)`", row)]
    return [text for text in dict.fromkeys(code) if re.match(_TABLE_COMMANDS, text)]


def rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells of a table below its head, without backticks."""
    lines = [line for line in section(page, heading).splitlines() if line.startswith("| ")]
    return [[cell.strip(" `") for cell in line.strip("| ").split(" | ")] for line in lines[2:]]


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
