"""Macros in SPF records, read by the grammar of RFC 7208 section 12."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

# macro-expand = ( "%{" macro-letter transformers *delimiter "}" ) / "%%" / "%_" / "%-"
_PIECE = re.compile(
    r"%\{([slodipvhcrt])([0-9]{0,9})(r?)([.+,/_=-]*)\}|%([%_-])|([!-$&-~]+)", re.IGNORECASE
)
#: The meaning of the signs.
SIGNS = {"%": "%", "_": " ", "-": "%20"}
_EXPLAINING = frozenset("crt")  # letters in the text of an explanation only


class RecordError(ValueError):
    """A record violates the grammar, as the text says."""


@dataclass(frozen=True, slots=True)
class Macro:
    """The value of `letter`, split, maybe reversed, the last `parts` (0 = all) joined by dots."""

    letter: str
    parts: int
    reverse: bool
    delimiters: str
    escape: bool

    def expand(self, value: str) -> str:
        """Return the expansion for the value of the letter (RFC 7208 section 7.3)."""
        # Each delimiter once, because `re` keeps patterns, and strangers could make long ones.
        delimiters = "".join(sorted(set(self.delimiters)))
        pieces = re.split(f"[{re.escape(delimiters)}]", value)
        if self.reverse:
            pieces.reverse()
        text = ".".join(pieces[-self.parts :])
        return quote(text, safe="") if self.escape else text


#: Text and macros in turn; a sign such as %_ is text already.
MacroString = tuple[str | Macro, ...]


def parse_macros(text: str, *, explaining: bool = False) -> MacroString:
    """Read text with macros. Raise RecordError. An explanation may have more letters, and SP."""
    pieces: list[str | Macro] = []
    end = 0
    while end < len(text):
        match = _PIECE.match(text, end)
        if match is None and explaining and text[end] == " ":
            pieces.append(" ")
            end += 1
            continue
        if match is None:
            raise RecordError(f"{text[:100]!r} has a wrong character or macro")
        letter, parts, reverse, delimiters, sign, literal = match.groups()
        if letter is None:
            pieces.append(literal or SIGNS[sign])
        else:
            if not explaining and letter.lower() in _EXPLAINING:
                raise RecordError(f"%{{{letter}}} is for explanations only")
            if parts and not int(parts):
                raise RecordError(f"{match[0]} leaves nothing")
            escape = letter.isupper()
            pieces.append(
                Macro(letter.lower(), int(parts or 0), bool(reverse), delimiters or ".", escape)
            )
        end = match.end()
    return tuple(pieces)


def expand(pieces: MacroString, value_of: Callable[[str], str]) -> str:
    """Return the text for the values of the letters."""
    return "".join(
        piece if isinstance(piece, str) else piece.expand(value_of(piece.letter))
        for piece in pieces
    )
