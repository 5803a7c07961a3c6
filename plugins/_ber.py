"""The Basic Encoding Rules as far as LDAP uses them (X.690, RFC 4511 section 5.1).

Tags have one octet and lengths are definite. All functions that read raise ValueError for anything
else, and for a length that reaches beyond what holds the element.
"""

from collections.abc import Callable
from typing import Final

INTEGER: Final = 0x02
OCTETS: Final = 0x04
ENUMERATED: Final = 0x0A
SEQUENCE: Final = 0x30
SET: Final = 0x31

_LONG: Final = 0x80  # the bit of a length that is followed by octets with the real one
_LENGTH_OCTETS: Final = 4  # Active Directory always sends four
_INTEGER_OCTETS: Final = 4  # message numbers and result codes have 31 bits


def encode(tag: int, *values: bytes) -> bytes:
    """Return an element whose content is the values, one after the other."""
    size = sum(map(len, values))
    if size < _LONG:
        return b"".join([bytes([tag, size]), *values])
    octets = size.to_bytes(_LENGTH_OCTETS, "big").lstrip(b"\0")
    return b"".join([bytes([tag, _LONG | len(octets)]), octets, *values])


def encode_number(value: int, tag: int = INTEGER) -> bytes:
    """Return an INTEGER or ENUMERATED of 0 to 2**31 - 1."""
    return encode(tag, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def number(octets: bytes) -> int:
    """Return the value of an INTEGER or ENUMERATED."""
    if not 0 < len(octets) <= _INTEGER_OCTETS:
        raise ValueError(f"expected a number of 1 to 4 octets, got {len(octets)}")
    return int.from_bytes(octets, "big", signed=True)


def read(take: Callable[[int], bytes], most: int) -> tuple[int, bytes]:
    """Return tag and content of the next element, which has at most `most` octets.

    `take` returns exactly as many octets as it is asked for, or raises.
    """
    tag, size = take(2)
    if size & _LONG:
        octets = size & ~_LONG
        if not 0 < octets <= _LENGTH_OCTETS:
            raise ValueError("expected a definite length of at most 4 octets")
        size = int.from_bytes(take(octets), "big")
    if size > most:
        raise ValueError(f"expected at most {most} octets, got an element of {size}")
    return tag, take(size)


class Elements:
    """The elements in the content of another one, taken in their order."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._content)

    def next(self) -> tuple[int, bytes]:
        """Return tag and content of the next element."""
        return read(self._take, len(self._content) - self._at)

    def take(self, expected: int) -> bytes:
        """Return the content of the next element, which must have the expected tag."""
        tag, content = self.next()
        if tag != expected:
            raise ValueError(f"expected an element with tag {expected:#x}, got {tag:#x}")
        return content

    def _take(self, size: int) -> bytes:
        start, self._at = self._at, self._at + size
        if self._at > len(self._content):
            raise ValueError("an element ends in the middle")
        return self._content[start : self._at]
