"""Queries to databases through modules that follow DB-API (PEP 249)."""

import importlib
import re
import string
from types import ModuleType
from typing import Any

_MARKERS = {
    "qmark": "?",
    "numeric": ":1",
    "named": ":user",
    "format": "%s",
    "pyformat": "%(user)s",
}
# Text in which `:user` is no parameter, then the parameter; `::` is a cast of PostgreSQL.
_TOKEN = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | --[^\n]* | /\*.*?(?:\*/|\Z) | :: | (?P<user>:user\b)""",
    re.DOTALL | re.VERBOSE,
)
_ROWS = 20  # more than anybody asks for
_OPERATORS = ("=", "ilike", "like")
_NAMING = string.ascii_letters + string.digits + '_."`:'


class Query:
    """A query in the style of parameters that a module understands (PEP 249)."""

    def __init__(self, text: str, style: str) -> None:
        self._plain = text
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

    @property
    def sample(self) -> str:
        """A query for any rows, if the text compares a column with the user; else empty.

        It compares the column with itself instead, which is true for every row.
        """
        unclear = False

        def compared(match: re.Match[str]) -> str:
            nonlocal unclear
            if match["user"] is None:
                return match[0]
            column = _compared_with(self._plain[: match.start()])
            unclear = unclear or not column
            return column

        text = _TOKEN.sub(compared, self._plain)
        if unclear:
            return ""
        return f"SELECT * FROM ({text.rstrip().rstrip(';')}\n) AS sample LIMIT {_ROWS}"  # noqa: S608 - the administrator's

    def parameters(self, user: str) -> dict[str, str] | list[str]:
        """Return the parameters for the text."""
        if self._named:
            return {"user": user}
        return [user] if self._once else [user] * self._count


class Database:
    """Idle connections, each for one thread at a time."""

    def __init__(self, module: ModuleType, arguments: dict[str, Any], *, keep: bool) -> None:
        self._module = module
        self._arguments = arguments
        self._keep = keep
        self._idle: list[Any] = []

    def rows(self, text: str, *parameters: dict[str, str] | list[str]) -> list[Any]:
        """Return the first rows. A connection that broke in the meantime is replaced."""
        try:
            connection = self._idle.pop()
        except IndexError:
            return self._ask(self._module.connect(**self._arguments), text, *parameters)
        try:
            return self._ask(connection, text, *parameters)
        except self._module.Error:
            return self._ask(self._module.connect(**self._arguments), text, *parameters)

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def _ask(
        self,
        connection: Any,  # noqa: ANN401 - any module
        *question: str | dict[str, str] | list[str],
    ) -> list[Any]:
        kept = False
        try:
            cursor = connection.cursor()
            cursor.execute(*question)
            rows = list(cursor.fetchmany(_ROWS))
            cursor.close()
            connection.rollback()  # else it would keep its present snapshot of the tables
            kept = self._keep
        finally:
            if kept:
                self._idle.append(connection)
            else:
                connection.close()
        return rows


def db_api_module(name: str) -> ModuleType:
    """Import a module. Raise ValueError for `module` if it is not suitable."""
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


def _compared_with(text: str) -> str:
    """Return the column in `column =` or `lower(column) = lower(`, the end of a text, else ""."""
    head = text.rstrip()
    if head.endswith("("):
        head = head[:-1].rstrip(_NAMING).rstrip()
    for operator in _OPERATORS:
        if head.lower().endswith(operator):
            left = head[: -len(operator)].rstrip().removesuffix(")")
            return left[len(left.rstrip(_NAMING)) :].partition("::")[0]
    return ""
