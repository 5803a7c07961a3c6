"""Whether an SPF record permits an address, as far as that can be told without a message.

This is for records of our own domains, when nothing is sent. The plugin `spf` judges mail, with
macros, limits and results; the server does not import plugins.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Final, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
#: Returns the records of a type that a name has. Raise UnansweredError.
Ask: TypeAlias = Callable[[str, str], tuple[Any, ...]]

_MOST_QUESTIONS: Final = 10  # terms that ask the DNS, RFC 7208 section 4.6.4
_MOST_HOSTS: Final = 10  # of one mx mechanism
_LONGEST: Final = 4096
_TERM: Final = re.compile(
    r"([+?~-]?)(all|include|a|mx|ptr|ip4|ip6|exists)(?::([^/]*))?(?:/([0-9]{1,3}))?"
    r"(?://([0-9]{1,3}))?"
)
_NETWORK: Final = re.compile(r"([+?~-]?)(ip4|ip6):([0-9a-f:./]{1,60})")
_NAME: Final = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63}){0,126}\.?")
_MODIFIER: Final = re.compile(r"([a-z][a-z0-9_.-]{0,60})=([!-~]*)")


class SpfRecordError(Exception):
    """The record cannot be used, as the text says."""


class UndecidedError(Exception):
    """The record depends on the message, so the text says what this does not evaluate."""


def is_spf(text: str) -> bool:
    """Return whether a TXT record is an SPF record (RFC 7208 section 4.5)."""
    return text.lower() == "v=spf1" or text.lower().startswith("v=spf1 ")


def permission(domain: str, text: str, address: Address, ask: Ask) -> str:
    """Return the qualifier of the term that matches: `+`, `-`, `~` or `?`.

    Raise SpfRecordError for a record without effect, UndecidedError, or UnansweredError.
    """
    return _Evaluation(address, ask).qualifier(domain, text)


@dataclass(slots=True)
class _Evaluation:
    address: Address
    ask: Ask
    left: int = _MOST_QUESTIONS

    def qualifier(self, domain: str, text: str) -> str:
        if len(text) > _LONGEST or not text.isascii():
            raise SpfRecordError("it is too long, or not in ASCII")
        redirect = ""
        for term in text.lower().split()[1:]:
            if modifier := _MODIFIER.fullmatch(term):
                redirect = modifier[2] if modifier[1] == "redirect" else redirect
                continue
            sign = self._matches(domain, term)
            if sign:
                return sign
        if redirect:
            self._count()
            redirect = self._name(redirect)
            return self.qualifier(redirect, self._record(redirect))
        return "?"

    def _matches(self, domain: str, term: str) -> str:
        """Return the qualifier of a term that matches, else ""."""
        if network := _NETWORK.fullmatch(term):
            return (network[1] or "+") if self._is_in(network[3], network[2]) else ""
        match = _TERM.fullmatch(term)
        if match is None or match[2] in {"ip4", "ip6"}:
            raise SpfRecordError(f"the term {term[:80]!r} is wrong")
        sign, kind, target, length4, length6 = match.groups()
        if kind == "all":
            return sign or "+"
        if kind in {"ptr", "exists"}:
            raise UndecidedError(f"{term[:80]!r} is not evaluated here")
        self._count()
        target = self._name(target or domain)
        if kind == "include":
            return (sign or "+") if self.qualifier(target, self._record(target)) == "+" else ""
        hosts = [target] if kind == "a" else self._hosts(target)
        length = length4 if self.address.version == 4 else length6  # noqa: PLR2004
        return (sign or "+") if any(self._has(host, length) for host in hosts) else ""

    def _name(self, text: str) -> str:
        if "%" in text:
            raise UndecidedError(f"{text[:80]!r} depends on the message")
        if not _NAME.fullmatch(text):
            raise SpfRecordError(f"{text[:80]!r} is no name")
        return text.removesuffix(".")

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise SpfRecordError(f"it needs more than {_MOST_QUESTIONS} questions to the DNS")

    def _record(self, domain: str) -> str:
        found = [text for text in texts_of(self.ask(domain, "TXT")) if is_spf(text)]
        if len(found) != 1:
            raise SpfRecordError(f"{domain} has {len(found) or 'no'} SPF record")
        return found[0]

    def _hosts(self, domain: str) -> list[str]:
        records = self.ask(domain, "MX")[:_MOST_HOSTS]
        return [record.exchange.to_text(omit_final_dot=True).lower() for record in records]

    def _has(self, host: str, length: str | None) -> bool:
        if not host:
            return False
        kind = "A" if self.address.version == 4 else "AAAA"  # noqa: PLR2004
        found = [record.address for record in self.ask(host, kind)]
        if length is None:
            return any(ip_address(each) == self.address for each in found)
        return any(self._is_in(f"{each}/{length}", "") for each in found)

    def _is_in(self, network: str, kind: str) -> bool:
        try:
            found = ip_network(network, strict=False)
        except ValueError:
            raise SpfRecordError(f"{network[:80]!r} is not a network") from None
        if kind and kind != f"ip{found.version}":
            raise SpfRecordError(f"{network[:80]!r} is not a network of {kind}")
        return self.address in found


def texts_of(records: tuple[Any, ...]) -> list[str]:
    """Return the texts of TXT records, each with its strings joined."""
    return [b"".join(record.strings).decode("utf-8", "replace") for record in records]
