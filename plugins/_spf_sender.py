"""The sender in SPF checks: the values of macros, and the names of its address."""

from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple, TypeAlias

from minismtp import UnansweredError

#: Returns the records of a name and type as text or raises UnansweredError.
Ask: TypeAlias = Callable[[str, str], Sequence[str]]

_MOST = 10  # names of an address


class Sender(NamedTuple):
    """The sender as macros see it. `receiver` is this server's name."""

    address: IPv4Address | IPv6Address
    local: str
    domain: str
    helo: str
    receiver: str = "unknown"

    @property
    def dotted(self) -> str:
        """The address for names in the DNS, 192.0.2.1 or nibbles (RFC 7208 section 7.3)."""
        if isinstance(self.address, IPv4Address):
            return str(self.address)
        return ".".join(self.address.exploded.replace(":", "").upper())


class PtrNames:
    """The names that PTR records give an address, and whether they have it (section 5.5)."""

    def __init__(self, address: IPv4Address | IPv6Address, ask: Ask) -> None:
        self._address = address
        self._ask = ask
        self._pointers: list[str] | None = None
        self._confirmed: dict[str, bool] = {}

    def match(self, domain: str) -> bool:
        """Return whether a name in a domain has the address."""
        return any(map(self._is_confirmed, self._below(domain)))

    def best(self, domain: str) -> str:
        """Return the domain, else a name below it, else any, else "unknown" (section 7.3)."""
        below = sorted(self._below(domain), key=lambda name: name != domain.lower())
        for name in (*below, *self._below("")):
            if self._is_confirmed(name):
                return name
        return "unknown"

    def _below(self, domain: str) -> list[str]:
        """Return the names in a domain, without checking their addresses."""
        if self._pointers is None:
            names = self._answers(self._address.reverse_pointer, "PTR")
            self._pointers = [name.lower().removesuffix(".") for name in names[:_MOST]]
        end = f".{domain.lower()}" if domain else ""
        return [name for name in self._pointers if f".{name}".endswith(end)]

    def _is_confirmed(self, name: str) -> bool:
        if name not in self._confirmed:
            texts = self._answers(name, "A" if self._address.version == 4 else "AAAA")  # noqa: PLR2004
            self._confirmed[name] = self._address in map(ip_address, texts)
        return self._confirmed[name]

    def _answers(self, name: str, kind: str) -> Sequence[str]:
        try:
            return self._ask(name, kind)
        except UnansweredError:  # RFC 7208 section 5.5: the name does not match
            return ()
