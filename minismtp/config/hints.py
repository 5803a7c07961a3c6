"""Where a key belongs that stands in a table which does not know it."""

from __future__ import annotations

import re
from typing import Final, get_args

from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import is_table, option_types, shape_of

_UNKNOWN: Final = "unknown key"
_KEY: Final = re.compile(r"(?:(.*)\.)?([\w-]+)\Z", re.DOTALL)
_INDEX: Final = re.compile(r"\[[0-9]+\]")
_IN_ADDRESS: Final = {"port", "host", "ip", "bind", "interface", "listen"}


def with_hint(error: ConfigError, config: type) -> ConfigError:
    """Return an error about an unknown key with the table that knows it, if one does.

    `config` is the dataclass of the whole file.
    """
    parts = _KEY.fullmatch(error.key)
    if not error.message.startswith(_UNKNOWN) or "did you mean" in error.message or parts is None:
        return error
    table, key = _INDEX.sub("", parts[1] or ""), parts[2]
    hint = ""
    if table == "listeners" and key in _IN_ADDRESS:
        hint = 'address has host and port, such as address = "*:25"'
    elif table and key in option_types(config):
        hint = f"{key} belongs above the first [table] of the file"
    else:
        known = [f"[{name}]" for name, keys in _tables(config).items() if key in keys]
        if known and f"[{table}]" not in known:
            hint = f"{key} belongs into {' or '.join(known)}"
    if not hint:
        return error
    message = f"{_UNKNOWN}; {hint}"
    return ConfigError(message, file=error.file, key=error.key, line=error.line, name=error.name)


def _tables(config: type) -> dict[str, set[str]]:
    """Return the keys of each table that is not an array, by its name."""
    kinds = {name: shape_of(kind).bare for name, kind in option_types(config).items()}
    arrays = {f"[{n}]": shape_of(get_args(k)[0]).bare for n, k in kinds.items() if get_args(k)}
    every = kinds | {name: kind for name, kind in arrays.items() if is_table(kind)}
    return {name: {*option_types(kind)} for name, kind in every.items() if is_table(kind)}
