"""The attachments in a TNEF, the winmail.dat of Outlook and Exchange (MS-OXTNEF)."""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from ._budget import Budget, Limited, Member, Reads, exactly, skip

TNEF: Final = b"\x78\x9f\x3e\x22"
_LONGEST: Final = 65536  # octets of properties in which names are searched
_TITLE, _DATA, _PROPERTIES = 0x00018010, 0x0006800F, 0x00069005
# PidTagAttachLongFilename, PidTagAttachFilename and PidTagDisplayName, one string of characters of
# 8 or 16 bits: type, tag, how many, and the length.
_NAMED: Final = re.compile(
    rb"([\x1e\x1f])\0(?:\x07\x37|\x04\x37|\x01\x30)\x01\0\0\0(..)\0\0", re.DOTALL
)


def members_of(file: Reads, budget: Budget) -> Iterator[Member]:
    """Yield the names of attachments, and their data, which a longer name may follow."""
    exactly(file, 6)  # the signature, and a key
    title = ""
    while len(head := exactly(file, 9)) == 9:  # noqa: PLR2004 - level, kind, length
        kind, size = (int.from_bytes(head[at : at + 4], "little") for at in (1, 5))
        data = Limited(file, size)
        budget.take()
        found: Iterable[Member] = ()
        if kind == _TITLE:
            title = exactly(data, _LONGEST).partition(b"\0")[0].decode("utf-8", "replace")
            found = [Member(title)]
        elif kind == _DATA:
            found = [Member(title, data=data)]
        elif kind == _PROPERTIES:
            found = map(Member, _names_in(exactly(data, _LONGEST)))
        for member in found:
            budget.take(names=1)
            yield member
        skip(data, budget)
        exactly(file, 2)  # the checksum


def _names_in(properties: bytes) -> Iterator[str]:
    for match in _NAMED.finditer(properties):
        octets = properties[match.end() : match.end() + int.from_bytes(match[2], "little")]
        text = octets.decode("utf-16-le" if match[1] == b"\x1f" else "utf-8", "replace")
        yield text.partition("\0")[0]
