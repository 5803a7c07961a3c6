"""The octets of LDAP, and of names and filters in the configuration (RFC 4514, RFC 4515).

An element of BER has a tag of one octet and a definite length here (X.690, RFC 4511 section 5.1).
All functions that read raise ValueError for anything else, and for a length that reaches beyond
what holds the element.
"""

import re
from collections.abc import Callable
from typing import Final

_SPECIAL: Final = re.compile(rb"[^A-Za-z0-9]")
_HEX: Final = "[0-9A-Fa-f]"
# attributeTypeAndValue = attributeType EQUALS attributeValue ; blanks around each, as servers allow
_ATTRIBUTE: Final = (
    r" *+(?:[A-Za-z][A-Za-z0-9-]*+|[0-9]++(?:\.[0-9]++)*+) *+="
    rf"(?> *+#(?:{_HEX}{{2}})++ *+(?=[,+]|\Z)"
    rf'|(?:[^\\"+,;<>\0]|\\(?:[\\"+,;<>#= ]|{_HEX}{{2}}))*+)'
)
_DN: Final = re.compile(f"{_ATTRIBUTE}(?:[,+]{_ATTRIBUTE})*+")
# filter = LPAREN filtercomp RPAREN ; as the start of a list, a whole item, or the end of a list
_TOKEN: Final = re.compile(r"\s*(?:\(\s*(?P<operator>[&|!])|\((?P<item>[^()]+)\)|\))\s*")
_ITEM: Final = re.compile(
    r"\s*+(?P<attribute>[\w.;-]++)?+(?P<dn>:[dD][nN])?(?::(?P<rule>[\w.-]++))?"
    r"\s*+(?P<operator>:=|[~<>]?=)\s*+(?P<value>.*)",
    re.ASCII | re.DOTALL,
)
_ESCAPED: Final = re.compile(rb"\\(.{0,2})", re.DOTALL)
_BLANKS: Final = " \t\n\r\f\v"
# The tags of RFC 4511 section 4.5.1.
_LISTS: Final = {"&": 0xA0, "|": 0xA1, "!": 0xA2}
_COMPARISONS: Final = {"=": 0xA3, ">=": 0xA5, "<=": 0xA6, "~=": 0xA8}
_SUBSTRINGS: Final = 0xA4
_PRESENT: Final = 0x87
_EXTENSIBLE: Final = 0xA9

INTEGER: Final = 0x02
OCTETS: Final = 0x04
ENUMERATED: Final = 0x0A
SEQUENCE: Final = 0x30
SET: Final = 0x31

_LONG: Final = 0x80  # the bit of a length that is followed by octets with the real one
_LENGTH_OCTETS: Final = 4  # Active Directory always sends four
_INTEGER_OCTETS: Final = 4  # message numbers and result codes have 31 bits


def escaped(text: str) -> str:
    """Escape a value for a DN (RFC 4514 section 2.4) and a filter (RFC 4515 section 3) alike.

    Both take any octet as a backslash with two digits, so no character stays special.
    """
    return _SPECIAL.sub(lambda match: b"\\%02x" % ord(match[0]), text.encode()).decode()


def check_dn(option: str, text: str) -> None:
    """Raise ValueError for the option if its text is not a distinguished name."""
    if text and _DN.fullmatch(text) is None:
        raise ValueError(
            f'{option}: expected a distinguished name like "ou=people,dc=example,dc=org"'
        )


def encoded_filter(text: str) -> bytes:
    """Return a search filter in BER; raise ValueError if it is not one."""
    lists: list[tuple[int, list[bytes]]] = [(SEQUENCE, [])]  # the first holds the whole filter
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            raise ValueError(f"expected a filter in parentheses at {text[at:]!r}")
        at = token.end()
        if token["operator"]:
            lists.append((_LISTS[token["operator"]], []))
        elif token["item"]:
            lists[-1][1].append(_item(token["item"]))
        else:
            tag, filters = lists.pop()
            if not lists or (tag == _LISTS["!"] and len(filters) != 1):
                raise ValueError(f"unexpected parenthesis before {text[at:]!r}")
            lists[-1][1].append(encode(tag, *filters))
    if len(lists) != 1 or len(lists[0][1]) != 1:
        raise ValueError("expected one filter, whose parentheses are all closed")
    return lists[0][1][0]


def _item(text: str) -> bytes:
    item = _ITEM.fullmatch(text)
    if item is None:
        raise ValueError(f"expected attribute=value, got {text!r}")
    attribute, rule, value = item["attribute"], item["rule"], item["value"].rstrip(_BLANKS)
    if item["operator"] == ":=":
        if not (attribute or rule):
            raise ValueError(f"expected an attribute or a matching rule in {text!r}")
        texts = ((0x81, rule), (0x82, attribute))
        parts = [encode(tag, part.encode()) for tag, part in texts if part]
        parts.append(encode(0x83, _value(value)))
        return encode(_EXTENSIBLE, *parts, *([encode(0x84, b"\xff")] if item["dn"] else []))
    if not attribute or rule or item["dn"]:
        raise ValueError(f"expected attribute=value, got {text!r}")
    name = attribute.encode()
    if item["operator"] != "=" or "*" not in value:
        tag = _COMPARISONS[item["operator"]]
        return encode(tag, encode(OCTETS, name), encode(OCTETS, _value(value)))
    if value == "*":
        return encode(_PRESENT, name)
    first, *middle, last = map(_value, value.split("*"))
    pieces = [(0x80, first), *((0x81, each) for each in middle), (0x82, last)]
    substrings = [encode(tag, piece) for tag, piece in pieces if piece]
    if not substrings:
        raise ValueError(f"expected text beside the asterisks in {text!r}")
    return encode(_SUBSTRINGS, encode(OCTETS, name), encode(SEQUENCE, *substrings))


def _value(text: str) -> bytes:
    return _ESCAPED.sub(lambda match: _octet(match[1]), text.encode())


def _octet(digits: bytes) -> bytes:
    if re.fullmatch(rb"[0-9A-Fa-f]{2}", digits) is None:
        raise ValueError("expected two hexadecimal digits after a backslash")
    return bytes.fromhex(digits.decode())


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
