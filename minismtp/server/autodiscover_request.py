"""Reads the address out of a request to Autodiscover, and nothing else.

Such a request is a small XML document of a stranger. A document type, which all attacks by entities
need, ends the reading at once, and so does any other mistake.
"""

from __future__ import annotations

from typing import Final
from xml.parsers import expat

_ELEMENT: Final = "EMailAddress"
_DEEPEST: Final = 8  # elements inside each other; a request has 3
_LONGEST: Final = 320  # characters of an address


class _Refused(Exception):  # noqa: N818 - it never leaves this module
    pass


def requested_address(document: bytes) -> str:
    """Return the text of the element EMailAddress, "" if there is no such text."""
    reader = _Reader()
    try:
        reader.parser.Parse(document, True)
    except (expat.ExpatError, _Refused, ValueError, LookupError):
        return ""
    return reader.found.strip()


class _Reader:
    def __init__(self) -> None:
        self.found = ""
        self._path: list[str] = []
        self.parser = expat.ParserCreate(namespace_separator=" ")
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.parser.EntityDeclHandler = self._refuse
        self.parser.StartElementHandler = self._begin
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text

    def _refuse(self, *_: object) -> None:
        raise _Refused

    def _begin(self, name: str, _: object) -> None:
        self._path.append(name.rpartition(" ")[2])
        if len(self._path) > _DEEPEST:
            raise _Refused

    def _end(self, _: str) -> None:
        self._path.pop()

    def _text(self, text: str) -> None:
        if self._path[-1] == _ELEMENT:
            self.found += text
            if len(self.found) > _LONGEST:
                raise _Refused
