"""Queries to databases through modules that follow DB-API (PEP 249)."""

import importlib
import re
from types import ModuleType
from typing import Any

_MARKERS = {
    "qmark": "?",
    "numeric": ":1",
    "named": ":user",
    "format": "%s",
    "pyformat": "%(user)s",
}
# What may hold `:user` and is none, then what it is; `::` is a cast of PostgreSQL.
_TOKEN = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | --[^\n]* | /\*.*?\*/ | :: | (?P<user>:user\b)""",
    re.DOTALL | re.VERBOSE,
)


class Query:
    """A query in the style of parameters that a module understands (PEP 249)."""

    def __init__(self, text: str, style: str) -> None:
        percent = style in ("format", "pyformat")
        # There a percent sign is written twice, wherever it stands.
        doubled = text.replace("%", "%%") if percent else text
        self._count = 0

        def replaced(match: re.Match[str]) -> str:
            if match["user"] is None:
                return match[0]
            self._count += 1
            return _MARKERS[style]

        self.text = _TOKEN.sub(replaced, doubled)
        if not self._count:
            raise ValueError("query: expected :user where the name of the user belongs")
        self._named = style in ("named", "pyformat")
        self._once = style == "numeric"

    def parameters(self, user: str) -> dict[str, str] | list[str]:
        """Give what goes with the text."""
        if self._named:
            return {"user": user}
        return [user] if self._once else [user] * self._count


class Database:
    """Connections that nobody uses now, each for one thread at a time."""

    def __init__(self, module: ModuleType, arguments: dict[str, Any], *, keep: bool) -> None:
        self._module = module
        self._arguments = arguments
        self._keep = keep
        self._idle: list[Any] = []

    def rows(self, query: Query, user: str) -> list[Any]:
        """Give the first two rows. A connection that has broken meanwhile is replaced."""
        try:
            connection = self._idle.pop()
        except IndexError:
            return self._ask(self._module.connect(**self._arguments), query, user)
        try:
            return self._ask(connection, query, user)
        except self._module.Error:
            return self._ask(self._module.connect(**self._arguments), query, user)

    def close(self) -> None:
        """Close those connections."""
        while self._idle:
            self._idle.pop().close()

    def _ask(self, connection: Any, query: Query, user: str) -> list[Any]:  # noqa: ANN401 - any module
        kept = False
        try:
            cursor = connection.cursor()
            cursor.execute(query.text, query.parameters(user))
            rows = list(cursor.fetchmany(2))
            cursor.close()
            connection.rollback()  # else its view of the tables would stay as it is now
            kept = self._keep
        finally:
            if kept:
                self._idle.append(connection)
            else:
                connection.close()
        return rows


def db_api_module(name: str) -> ModuleType:
    """Import a module; raises ValueError for `module` when it is of no use."""
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"module: {error}") from error
    if getattr(module, "paramstyle", "") not in _MARKERS or not callable(
        getattr(module, "connect", None)
    ):
        raise ValueError(f"module: {name} is no DB-API module (PEP 249)")
    if not module.threadsafety:
        raise ValueError(f"module: {name} cannot be used by threads")
    return module
