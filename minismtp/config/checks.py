"""The types and checks that several tables of the configuration use."""

import re
import urllib.parse
from collections.abc import Iterator
from typing import Annotated, Final, TypeAlias

from msgspec import Meta

from minismtp.config.mistakes import ConfigError, combined
from minismtp.config.types import EVERY_HOST, ByteSize, SocketAddress, parse_domain
from minismtp.values.ciphers import set_ciphers

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,100}")
Count: TypeAlias = Annotated[int, Meta(ge=1)]
MIN_DATA_RATE: Final = ByteSize(500)  # as smtpd_min_data_rate and smtp_min_data_rate of Postfix


def check_name(name: str, *, key: str = "name") -> None:
    """Raise ConfigError if a name could not be a label in metrics and logs."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"expected letters, digits, '.', '_' and '-', not {name!r}", key=key)


def duplicates(key: str, values: list[str], *, attribute: str = "name") -> Iterator[ConfigError]:
    """Yield a mistake for each table of the array `key` whose value another has; "" may repeat."""
    first: dict[str, int] = {}
    for number, value in enumerate(values):
        if value and first.setdefault(value, number) != number:
            taken = f"{value!r} is taken by {key}[{first[value]}] already"
            place = f"{key}[{number}].{attribute}"
            such = f' (name = "{value}-2"), or no second table' if key == "plugins" else ""
            yield ConfigError(f"{taken}; expected another {attribute}{such}", key=place)


def check_unique(key: str, values: list[str]) -> None:
    """Raise ConfigError if two tables of the array `key` have the same name."""
    if found := list(duplicates(key, values)):
        raise combined(found)


def check_host(address: SocketAddress, *, key: str) -> None:
    """Raise ConfigError if a server is to be found at "*", which is for listening sockets."""
    if address.host == EVERY_HOST:
        raise ConfigError('expected the name or address of a server, not "*"', key=key)


def check_positive(table: object, *keys: str) -> None:
    """Raise ConfigError for the first of the keys whose value is 0."""
    for key in keys:
        if not getattr(table, key):
            raise ConfigError("expected more than 0", key=key)


def check_ciphers(text: str) -> None:
    """Raise ConfigError if OpenSSL knows none of these suites."""
    if not text:
        return
    import ssl  # noqa: PLC0415 - takes long, and few configurations choose suites

    try:
        set_ciphers(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), text)
    except ValueError as error:
        raise ConfigError(str(error), key="ciphers") from None


def check_domain(text: str, *, key: str) -> str:
    """Return the domain with A-labels. Raise ConfigError."""
    try:
        return parse_domain(text)
    except ValueError as error:
        raise ConfigError(str(error), key=key) from None


def check_domain_pattern(text: str, *, key: str) -> str:
    """Return a domain, or "*." and a domain, with A-labels. Raise ConfigError."""
    wildcard = "*." if text.startswith("*.") else ""
    return wildcard + check_domain(text.removeprefix("*."), key=key)


def is_https_url(text: str) -> bool:
    """Return whether a text is a URL that begins with https://, with a host."""
    try:
        parts = urllib.parse.urlsplit(text)
        sound = parts.scheme == "https" and bool(parts.hostname) and (parts.port or 443) > 0
    except ValueError:
        return False
    return sound and parts.username is None and text.isprintable() and " " not in text
