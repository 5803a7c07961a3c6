"""The files in a tar.

This does not use the reader of the standard library, in which a header may claim any size.
"""

import re
from collections.abc import Iterator

from ._budget import BrokenError, Budget, Limited, Member, Reads, exactly, skip

_BLOCK = 512  # of a tar
_LONGEST_NAME = 65536  # octets
_TAR_NAMES = {b"L", b"x"}  # blocks that hold the name of the next file: GNU, and POSIX


def is_tar(head: bytes) -> bool:
    """Return whether these are the first octets of a tar."""
    return head[257:262] == b"ustar"


def members_of(file: Reads, budget: Budget) -> Iterator[Member]:
    """Yield the files. Raise TooMuchError and BrokenError."""
    longer = ""
    while len(block := exactly(file, _BLOCK)) == _BLOCK and any(block):
        if not is_tar(block):
            raise BrokenError("a broken archive (tar)")
        size = _number(block[124:136])
        if block[156:157] in _TAR_NAMES:
            budget.take()
            text = exactly(file, min(size, _LONGEST_NAME))
            longer = _long_name(text, block[156:157]) or longer
            skip(Limited(file, size - len(text) + -size % _BLOCK), budget)
            continue
        parts = [_until_nul(block[345:500]), _until_nul(block[:100])]
        name, longer = longer or "/".join(filter(None, parts)), ""
        budget.take(names=1)
        data = Limited(file, size)
        yield Member(name, data=data)
        skip(Limited(file, data.left + -size % _BLOCK), budget)


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU has larger ones in binary
        return int.from_bytes(field, "big") & ((1 << 88) - 1)
    return int(_until_nul(field).strip() or "0", 8)


def _until_nul(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")


def _long_name(data: bytes, kind: bytes) -> str:
    if kind == b"L":
        return _until_nul(data)
    # A POSIX record is "<length> path=<name>\n".
    match = re.search(rb"(?:\A|\n)[0-9]{1,10} path=([^\n]*)", data)
    return match[1].decode("utf-8", "replace") if match else ""
