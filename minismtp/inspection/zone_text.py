"""Records as a zone file, the master file of RFC 1035 section 5.

All names are absolute, so the text can be put into a zone of any origin. Lines that belong into
another zone, or whose value is not known, are comments.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Final

from minismtp.hooks.dns_zone import DnsRecord

_TTL: Final = 3600
_STRING: Final = 255  # octets of a character-string, RFC 1035 section 3.3
_IN_A_FORM: Final = "; one text, which a form on the web takes without quotes and the blank inside:"
_UNKNOWN: Final = {"A": "the public IPv4 address", "AAAA": "the public IPv6 address"}


def zone_text(records: Iterable[DnsRecord]) -> str:
    """Return the records as a zone file, each group below its purpose."""
    lines = [f"$TTL {_TTL}"]
    for purpose, group in groupby(records, lambda each: each.purpose):
        lines += ["", f"; {purpose}"] if purpose else [""]
        for record in group:
            if record.kind == "TXT" and len(record.value.encode()) > _STRING:
                lines.append(_IN_A_FORM)
            lines.append(_line(record))
    return "\n".join(lines) + "\n"


def data_of(record: DnsRecord) -> str:
    """Return what follows the type of a record in a zone file."""
    return quoted(record.value) if record.kind == "TXT" else record.value


def quoted(text: str) -> str:
    """Return the strings of a TXT record, each with at most 255 octets."""
    octets = text.encode()
    parts = [octets[start : start + _STRING] for start in range(0, max(len(octets), 1), _STRING)]
    return " ".join('"' + "".join(map(_escaped, part)) + '"' for part in parts)


def _line(record: DnsRecord) -> str:
    data = data_of(record) or f"<{_UNKNOWN.get(record.kind, 'unknown')}>"
    aside = record.kind == "PTR" or record.need == "signed" or not record.value
    return f"{'; ' if aside else ''}{record.name}. IN {record.kind} {data}"


def _escaped(octet: int) -> str:
    char = chr(octet)
    if char in '"\\':
        return f"\\{char}"
    return char if " " <= char <= "~" else f"\\{octet:03}"
