"""Names and search filters of LDAP as the configuration writes them (RFC 4514, RFC 4515)."""

import re
from typing import Final

from ._ber import OCTETS, SEQUENCE, encode

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
