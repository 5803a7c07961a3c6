"""The names in a RAR, versions 4 and 5, and the first octets of files that are not compressed.

Libraries for this read a whole archive before the first name, and need a program to unpack. This
reads the headers forward, and unpacks nothing.
"""

from collections.abc import Iterator
from typing import Final

from ._budget import BrokenError, Budget, Limited, Member, Reads, exactly, skip

_RAR4: Final = b"Rar!\x1a\x07\0"
_RAR5: Final = b"Rar!\x1a\x07\1\0"
SIGNATURES: Final = (_RAR4, _RAR5)
_LONGEST: Final = 65536  # octets of a header; version 5 allows 2 MiB, which no program writes
# Of version 4: kinds of blocks, and flags of files
_FILE4, _SERVICE4, _END4, _ARCHIVE4 = 0x74, 0x7A, 0x7B, 0x73
_LONG_BLOCK, _ENCRYPTED4, _LARGE4, _UNICODE4, _HEADERS_ENCRYPTED4 = 0x8000, 4, 0x100, 0x200, 0x80
_STORED4: Final = 0x30
# Of version 5
_FILE5, _SERVICE5, _ENCRYPTION5, _END5 = 2, 3, 4, 5
_HAS_EXTRA, _HAS_DATA, _HAS_TIME, _HAS_CRC = 1, 2, 2, 4
_METHOD5: Final = 0x380
_ENCRYPTED_FILE5: Final = 1  # a record of the extra area


def members_of(file: Reads, budget: Budget) -> Iterator[Member]:
    """Yield the name of each file, and then its data if it can be read. Raise BrokenError."""
    signature = exactly(file, len(_RAR4))
    if signature == _RAR4:
        yield from _version_4(file, budget)
    else:
        exactly(file, len(_RAR5) - len(_RAR4))
        yield from _version_5(file, budget)


def _version_4(file: Reads, budget: Budget) -> Iterator[Member]:
    while len(head := exactly(file, 7)) == 7:  # noqa: PLR2004 - crc, type, flags, size
        kind, flags = head[2], int.from_bytes(head[3:5], "little")
        size = int.from_bytes(head[5:7], "little")
        if size < len(head):
            raise BrokenError("a broken archive (rar)")
        rest = exactly(file, size - len(head))
        if kind == _ARCHIVE4 and flags & _HEADERS_ENCRYPTED4:
            yield Member("", encrypted=True)
            return
        if kind == _END4:
            return
        length = int.from_bytes(rest[:4], "little") if flags & _LONG_BLOCK else 0
        if flags & _LARGE4 and kind in (_FILE4, _SERVICE4):
            length |= int.from_bytes(rest[25:29], "little") << 32
        data = Limited(file, length)
        if kind == _FILE4:
            budget.take(names=1)
            encrypted = bool(flags & _ENCRYPTED4)
            stored = rest[18:19] == bytes([_STORED4]) and not encrypted
            name = _name_4(rest, flags)
            yield Member(name, encrypted)
            if stored:
                yield Member(name, data=data)
        skip(data, budget)


def _name_4(rest: bytes, flags: int) -> str:
    """Return the name; a Unicode name follows after a NUL, and refers to the first one."""
    length = int.from_bytes(rest[19:21], "little")
    start = 33 if flags & _LARGE4 else 25
    name, nul, packed = rest[start : start + length].partition(b"\0")
    if flags & _UNICODE4 and nul:
        return _unpacked_name(name, packed)
    return name.decode("utf-8", "replace")


def _unpacked_name(name: bytes, packed: bytes) -> str:
    """Return a name that version 4 packed: two bits for each piece say where its octets are."""
    found = bytearray()
    octets = iter(packed)
    high = next(octets, 0)
    bits = flags = 0
    while (len(found) >> 1) < _LONGEST:
        if not bits:
            if (flags := next(octets, -1)) < 0:
                break
            bits = 8
        bits -= 2
        kind = flags >> bits & 3
        low = next(octets, -1)
        if low < 0:
            break
        if kind == 3:  # noqa: PLR2004 - a run of the other name
            place, count = len(found) // 2, (low & 0x7F) + 2
            shift, upper = (next(octets, 0), high) if low & 0x80 else (0, 0)
            for char in name[place : place + count]:
                found += bytes([(char + shift) & 0xFF, upper])
        else:
            found += bytes([low, (0, high, next(octets, 0) if kind == 2 else 0)[kind]])  # noqa: PLR2004
    return found.decode("utf-16-le", "replace")


def _version_5(file: Reads, budget: Budget) -> Iterator[Member]:
    while len(exactly(file, 4)) == 4:  # noqa: PLR2004 - the checksum
        size = _number_of(file)
        if not 0 < size <= _LONGEST:
            raise BrokenError("a broken archive (rar)")
        header = _Header(exactly(file, size))
        kind, flags = header.number(), header.number()
        extra = header.number() if flags & _HAS_EXTRA else 0
        data = Limited(file, header.number() if flags & _HAS_DATA else 0)
        if kind == _ENCRYPTION5:
            yield Member("", encrypted=True)
            return
        if kind == _END5:
            return
        if kind == _FILE5:
            budget.take(names=1)
            name, stored = header.file()
            encrypted = header.has_record(extra, _ENCRYPTED_FILE5)
            yield Member(name, encrypted)
            if stored and not encrypted:
                yield Member(name, data=data)
        skip(data, budget)


class _Header:
    """The numbers and names in a header of version 5."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self._place = 0

    def number(self) -> int:
        """Read a number: seven bits in each octet, the lowest first."""
        found = shift = 0
        for octet in self._octets[self._place : self._place + 10]:
            self._place += 1
            found |= (octet & 0x7F) << shift
            shift += 7
            if octet < 0x80:  # noqa: PLR2004 - the last one
                return found
        raise BrokenError("a broken archive (rar)")

    def file(self) -> tuple[str, bool]:
        """Return the name of a file, and whether it is not compressed."""
        flags = self.number()
        self.number()  # the size unpacked
        self.number()  # attributes
        self._place += 4 * bool(flags & _HAS_TIME) + 4 * bool(flags & _HAS_CRC)
        stored = not self.number() & _METHOD5
        self.number()  # the system
        length = self.number()
        name = self._octets[self._place : self._place + length]
        return name.decode("utf-8", "replace"), stored

    def has_record(self, size: int, kind: int) -> bool:
        """Return whether the extra area, the last octets, has a record of this kind."""
        end = len(self._octets)
        self._place = max(0, end - size)
        while self._place < end:
            length = self.number()
            following = self._place + length
            if length and self.number() == kind:
                return True
            self._place = following
        return False


def _number_of(file: Reads) -> int:
    octets = b""
    while len(octets) < 3 and (octet := exactly(file, 1)):  # noqa: PLR2004 - 2 MiB at most
        octets += octet
        if octet < b"\x80":
            break
    return _Header(octets + b"\0").number()
