"""Times, hosts and sockets as Postfix writes them, and as minismtp does."""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from minismtp.cli.postfix_files.text import PostfixError
from minismtp.config.types import parse_domain

_TIME: Final = re.compile(r"([0-9]{1,9})([smhdw]?)")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LONGEST: Final = 36_500 * _SECONDS["d"]  # of the durations of our configuration
_HOST: Final = re.compile(r"(\[[^\[\]]*\]|[^\[\]:]*)(?::([^:\[\]]+))?")
PORTS: Final = {
    "smtp": 25,
    "lmtp": 24,
    "submission": 587,
    "submissions": 465,
    "smtps": 465,
    "urd": 465,
    "ssmtp": 465,
}
_LAST_PORT: Final = 65535
_QUEUE: Final = Path("/var/spool/postfix")


def seconds(text: str, unit: str = "s") -> int:
    """Return a time such as 5d, 4h or 300. Raise PostfixError."""
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise PostfixError(f"{text!r} is no time such as 4h")
    time = int(found[1]) * _SECONDS[found[2] or unit]
    if time > _LONGEST:
        raise PostfixError(f"{text!r} is longer than {_LONGEST // _SECONDS['d']} days")
    return time


def duration(number: int) -> str:
    """Return seconds as a duration of our configuration."""
    for unit in ("d", "h", "m"):
        if number and number % _SECONDS[unit] == 0:
            return f"{number // _SECONDS[unit]}{unit}"
    return f"{number}s"


def number(text: str) -> int:
    """Return a number. Raise PostfixError."""
    if not re.fullmatch(r"[0-9]{1,18}", text.strip()):
        raise PostfixError(f"{text!r} is no number")
    return int(text)


def port(text: str) -> int:
    """Return the number of a port, which may have a name. Raise PostfixError."""
    found = PORTS.get(text, -1)
    if found < 0 and re.fullmatch(r"[0-9]{1,5}", text):
        found = int(text)
    if not 0 <= found <= _LAST_PORT:
        raise PostfixError(f"the port {text!r} is not known")
    return found


def host_and_port(text: str, default: int) -> tuple[str, int, bool]:
    """Split `[host]:port`. Return host, port, and whether the MX records of the host count.

    Raise PostfixError.
    """
    found = _HOST.fullmatch(text.strip())
    if found is None or not found[1].strip("[]"):
        raise PostfixError(f"{text!r} is no host with a port")
    host, bracketed = found[1].strip("[]"), found[1].startswith("[")
    host = _checked(host.removeprefix("ipv6:").removeprefix("IPv6:"))
    return host, port(found[2]) if found[2] else default, not bracketed


def _checked(host: str) -> str:
    """Return a host. Raise PostfixError if it is neither a name nor an address."""
    try:
        return str(ip_address(host))
    except ValueError:
        pass
    try:
        return parse_domain(host.removesuffix("."))
    except ValueError:
        raise PostfixError(f"{host!r} is no host") from None


def with_port(host: str, port_number: int) -> str:
    """Return host:port of our configuration."""
    return f"[{host}]:{port_number}" if ":" in host else f"{host}:{port_number}"


def socket(text: str, default: int, queue: str = "") -> str:
    """Return `inet:host:port` or `unix:path` as our configuration writes it. Raise PostfixError.

    A path is relative to the directory of the queue.
    """
    kind, _, rest = text.partition(":")
    if kind in {"unix", "local"}:
        return f"unix:{Path(queue or _QUEUE) / rest}"
    plain = rest if kind in {"inet", "inet6"} and rest else text
    if "@" in plain:  # port@host, as libmilter writes it
        wanted, _, host = plain.partition("@")
        plain = f"[{host}]:{wanted}"
    host, port_number, _ = host_and_port(plain, default)
    return with_port(host, port_number)
