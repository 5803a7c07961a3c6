"""Text of strangers as a terminal or a page may show it.

Controls would move the cursor and answer for the keyboard, characters for writing from right to
left would show an address as another one, and line ends would make lines that nobody said.
"""

from __future__ import annotations

from typing import Final

_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str) -> str:
    """Return lines as they are, and escapes for whatever in them is no visible character."""
    lines = text.split("\n")
    return "\n".join([line if line.isprintable() else _escaped(line, "\t") for line in lines])


def one_line(text: str) -> str:
    """Return the same for a value that is to stay within its line."""
    return text if text.isprintable() else _escaped(text)


def _escaped(text: str, kept: str = "") -> str:
    return "".join(char if char.isprintable() or char in kept else _escape(char) for char in text)


def _escape(char: str) -> str:
    """Return the escape that JSON has, so that a JSON text stays what it was."""
    octets = char.encode("utf-16-be", "surrogatepass").hex()
    units = [octets[:4], octets[4:]] if octets[4:] else [octets]
    return _SHORT.get(char) or "".join(f"\\u{unit}" for unit in units)
