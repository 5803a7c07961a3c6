"""Text from strangers, made safe for a terminal or a page.

Control characters would move the cursor or send input to the terminal. Characters that change the
direction of text would make an address look like another one. Line ends would fake further lines.
"""

from __future__ import annotations

from typing import Final

_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str) -> str:
    """Return text with all characters escaped that are not visible, except line ends and tabs."""
    lines = text.split("\n")
    return "\n".join([line if line.isprintable() else _escaped(line, "\t") for line in lines])


def one_line(text: str) -> str:
    """Return text with line ends and tabs escaped too, for a value within a line."""
    return text if text.isprintable() else _escaped(text)


def escape_unencodable(error: UnicodeError) -> tuple[str, int]:
    """Return the escapes of characters that an encoding lacks, as a handler of codecs."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_escape, error.object[error.start : error.end])), error.end


def _escaped(text: str, kept: str = "") -> str:
    return "".join(char if char.isprintable() or char in kept else _escape(char) for char in text)


def _escape(char: str) -> str:
    """Return the escape of JSON, so that JSON text keeps its meaning."""
    octets = char.encode("utf-16-be", "surrogatepass").hex()
    units = [octets[:4], octets[4:]] if octets[4:] else [octets]
    return _SHORT.get(char) or "".join(f"\\u{unit}" for unit in units)
