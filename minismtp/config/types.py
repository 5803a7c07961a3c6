"""Values that TOML can only write as text: sizes, durations, networks, paths and others.

`SCALARS` has for each type how it is read and written, and what an editor may check.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from minismtp.values.address import Address, to_ascii
from minismtp.values.peer import plain_address

Network: TypeAlias = IPv4Network | IPv6Network

_BINARY_UNITS = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10}
_SIZE_UNITS = {"": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, **_BINARY_UNITS}
_SIZE = re.compile(r"([0-9]{1,18}) ?([A-Za-z]*)")
_TIME_UNITS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}  # milliseconds
_DURATION = re.compile(r"(?:[0-9]{1,9}(?:ms|[dhms]))+")
_LONGEST_DURATION = 36_500 * _TIME_UNITS["d"]
# RFC 1035 section 2.3.1, with the digits of RFC 1123 section 2.1; and "_", which real hosts have
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_HOST_PORT = re.compile(r"(\[[^\]]*\]|[^\[\]:]*):([0-9]{1,5})")
_MAX_PORT = 65535
EVERY_HOST: Final = "*"  # all addresses of this machine, of IPv4 and IPv6
_MAPPED_LENGTH = 96  # bits before the IPv4 address in ::ffff:192.0.2.1
_MAX_DOMAIN = 253


class ByteSize(int):
    """A number of octets; the configuration writes 26214400 or "25MiB"."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> "ByteSize":
        """Read a number, or text with a unit. Raise ValueError."""
        match = _SIZE.fullmatch(str(value)) if _is_number(value) or isinstance(value, str) else None
        if match is None or match[2] not in _SIZE_UNITS:
            raise ValueError('expected a size such as 26214400, "25MiB" or "10kB"')
        return cls(int(match[1]) * _SIZE_UNITS[match[2]])


@dataclass(frozen=True, slots=True)
class Rate:
    """An amount in any span of `per`; the configuration writes "100/1h" or "2GiB/1d"."""

    amount: int
    per: timedelta

    def __str__(self) -> str:
        return f"{_size_text(ByteSize(self.amount))}/{_duration_text(self.per)}"

    @classmethod
    def parse(cls, value: object) -> "Rate":
        """Read a number or size, a slash and a duration, both above 0. Raise ValueError."""
        amount, _, per = str(value).partition("/")
        try:
            found = cls(ByteSize.parse(amount), parse_duration(per))
        except ValueError:
            found = cls(0, timedelta(0))
        if not (found.amount and found.per):
            raise ValueError('expected a rate such as "100/1h" or "2GiB/1d"')
        return found


@dataclass(frozen=True, slots=True)
class SocketAddress:
    """The address of a socket: `host` and `port` (0 = any), or the `path` of a unix socket.

    The host "*" of a listening socket stands for all addresses of IPv4 and IPv6.
    """

    host: str = ""
    port: int = 0
    path: Path | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str, base: Path = Path()) -> "SocketAddress":
        """Read "host:port", "[::]:25", "*:25" or "unix:/path" (relative to `base`).

        Raise ValueError.
        """
        if text.startswith("unix:"):
            return cls(path=_path(text.removeprefix("unix:"), base))
        match = _HOST_PORT.fullmatch(text)
        if match is None or int(match[2]) > _MAX_PORT:
            raise ValueError(_ADDRESS_EXPECTED)
        return cls(host=_host(match[1]), port=int(match[2]))

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the address: loopback or a unix socket."""
        if self.path is not None or self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


_ADDRESS_EXPECTED = (
    'expected an address such as "*:25", "0.0.0.0:25", "[::]:25" or "unix:/run/x.sock"'
)


def parse_domain(text: str) -> str:
    """Return a domain in lower case with A-labels. Raise ValueError if it is malformed."""
    domain = to_ascii(text)
    labels = domain.split(".")
    if (
        len(domain) > _MAX_DOMAIN
        or not all(_LABEL.fullmatch(label) for label in labels)
        or labels[-1].isdigit()  # an address, not a name (RFC 3696 section 2)
    ):
        raise ValueError(f"expected a domain such as mx.example.org, not {text!r}")
    return domain


def parse_host_address(text: str) -> IPv4Address | IPv6Address:
    """Return an address that a host can have in the DNS. Raise ValueError.

    One of IPv6 that is mapped is one of IPv4 (RFC 4291 section 2.5.5.2).
    """
    expected = f'expected an address such as "192.0.2.25" or "2001:db8::25", not {text!r}'
    if "%" in text:  # a zone counts on one machine only (RFC 4007)
        raise ValueError(expected)
    try:
        address = ip_address(plain_address(text))
    except ValueError:
        raise ValueError(expected) from None
    if address.is_unspecified or address.is_multicast:
        raise ValueError(expected)
    return address


def parse_duration(value: object) -> timedelta:
    """Read "30s", "1h30m" or "0s". Raise ValueError."""
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        raise ValueError('expected a duration such as "30s", "5m", "1h30m" or "2d"')
    parts = re.findall(r"([0-9]{1,9})(ms|[dhms])", value)
    milliseconds = sum(int(number) * _TIME_UNITS[unit] for number, unit in parts)
    if milliseconds > _LONGEST_DURATION:
        raise ValueError(f"the duration {value!r} is too long; expected at most 36500d")
    return timedelta(milliseconds=milliseconds)


def parse_network(value: object, version: int = 0) -> Network:
    """Read "192.0.2.0/24", "2001:db8::/32" or one address. Raise ValueError.

    `version` is that of IP, 0 for either. An IPv4-mapped network is one of IPv4.
    """
    try:
        found = ip_network(_text(value), strict=False)
    except ValueError:
        raise ValueError('expected a network such as "192.0.2.0/24" or "2001:db8::/32"') from None
    if "/" in str(value) and ip_address(str(value).partition("/")[0]) != found.network_address:
        raise ValueError(f"{value!r} has bits set after its prefix; did you mean '{found}'?")
    mapped = found.network_address.ipv4_mapped if isinstance(found, IPv6Network) else None
    if mapped is not None and found.prefixlen >= _MAPPED_LENGTH:
        found = IPv4Network((mapped, found.prefixlen - _MAPPED_LENGTH))  # RFC 4291 section 2.5.5.2
    if version not in (0, found.version):
        raise ValueError(f"expected an IPv{version} network, not {value!r}")
    return found


class Scalar(NamedTuple):
    """How TOML writes the values of one type: `name` is for people, `schema` for editors."""

    name: str
    read: Callable[[object, Path], Any]
    write: Callable[[Any], object] = str
    schema: dict[str, object] = {"type": "string"}  # noqa: RUF012 - only ever read


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("expected a string")  # noqa: TRY004 - every reader raises ValueError
    return value


def _host(text: str) -> str:
    if text == EVERY_HOST:
        return text
    bare = text[1:-1] if text.startswith("[") else text
    try:
        address = ip_address(bare)
    except ValueError:
        address = None
    if address is not None and (address.version == 6) == text.startswith("["):  # noqa: PLR2004
        return plain_address(bare)
    if bare != text or not bare:
        raise ValueError(_ADDRESS_EXPECTED)
    try:
        return parse_domain(bare)
    except ValueError:
        raise ValueError(_ADDRESS_EXPECTED) from None


def _socket_address(value: object, base: Path) -> SocketAddress:
    if not isinstance(value, str):
        raise ValueError(_ADDRESS_EXPECTED)  # noqa: TRY004 - every reader raises ValueError
    return SocketAddress.parse(value, base)


def _path(value: object, base: Path) -> Path:
    text = _text(value)
    if not text or _CONTROL.search(text):
        raise ValueError("expected a path, not an empty string or one with control characters")
    return base / text


def _pattern(value: object, _base: Path) -> re.Pattern[str]:
    try:
        return re.compile(_text(value))
    except re.error as error:
        raise ValueError(f"expected a regular expression: {error}") from None


def _duration_text(value: timedelta) -> str:
    rest, parts = value // timedelta(milliseconds=1), []
    for unit, length in _TIME_UNITS.items():
        count, rest = divmod(rest, length)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def _size_text(value: ByteSize) -> object:
    for unit, length in _BINARY_UNITS.items():
        if value and value % length == 0:
            return f"{value // length}{unit}"
    return int(value)


SCALARS: Final[dict[Any, Scalar]] = {
    Path: Scalar("path", _path),
    ByteSize: Scalar(
        "size",
        lambda value, _base: ByteSize.parse(value),
        _size_text,
        {"type": ["integer", "string"], "minimum": 0, "pattern": "^[0-9]+ ?([KMG]i?B|kB|B)?$"},
    ),
    timedelta: Scalar(
        "duration",
        lambda value, _base: parse_duration(value),
        _duration_text,
        {"type": "string", "pattern": "^([0-9]+(ms|[dhms]))+$"},
    ),
    Rate: Scalar(
        "rate",
        lambda value, _base: Rate.parse(value),
        str,
        {"type": "string", "pattern": "^[0-9]+ ?([KMG]i?B|kB|B)?/([0-9]+(ms|[dhms]))+$"},
    ),
    Network: Scalar("network", lambda value, _base: parse_network(value)),
    IPv4Network: Scalar("network", lambda value, _base: parse_network(value, 4)),
    IPv6Network: Scalar("network", lambda value, _base: parse_network(value, 6)),
    re.Pattern[str]: Scalar(
        "regular expression",
        _pattern,
        lambda value: value.pattern,
        {"type": "string", "format": "regex"},
    ),
    Address: Scalar("address", lambda value, _base: Address.parse(_text(value))),
    SocketAddress: Scalar("host:port", _socket_address),
}
