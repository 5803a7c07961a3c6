"""What a plugin says of others: `needs = ("spf",)`, and `after = ("greylist",)`.

Both are attributes of its class without annotation, and name plugins as `use` does. A plugin that
is needed has to be configured, above, on the same listeners and enforced, because nobody sees what
a plugin in shadow mode notes. `after` is only about the order, if that plugin is configured. Tests
and `minismtp try` may run a plugin alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from minismtp.config.mistakes import ConfigError

if TYPE_CHECKING:
    from minismtp.config import Config, PluginConfig


def check_dependencies(
    config: Config, plugins: Sequence[tuple[PluginConfig, object]]
) -> list[ConfigError]:
    """Return a mistake for each plugin that lacks one that it needs, or stands above one.

    A plugin that could not be made, so that it is not among the `plugins`, is there all the same.
    """
    return [
        ConfigError(f"plugin {table.name!r}: {problem}", file=config.file, key=table.key)
        for table, instance in plugins
        for problem in _problems(config, table, instance)
    ]


def _problems(config: Config, table: PluginConfig, instance: object) -> Iterator[str]:
    listeners = [listener.name for listener in config.mail_listeners]
    tables = [*config.plugins]
    number = [each.key for each in tables].index(table.key)
    below: dict[str, PluginConfig] = {}  # the tables that have to be above, by their keys
    for attribute in ("needs", "after"):
        names = _names(instance, attribute)
        if isinstance(names, str):
            yield f'{attribute} is a text; write `{attribute} = ("{names}",)` in its class'
            continue
        for use in names:
            found = [other for other in tables if other.use == use]
            above = [other for other in tables[:number] if other.use == use]
            if attribute == "after":
                late = [other for other in tables[number + 1 :] if other.use == use]
                below |= {each.key: each for each in late if _common(table, each, listeners)}
            elif found and not above:
                below[found[0].key] = found[0]
            elif problem := _need(table, use, above, listeners):
                yield problem
    if below:
        yield _misplaced(below.values())


def _names(instance: object, attribute: str) -> Sequence[str]:
    """Return the names in a class attribute; an option of that name is something else.

    A text instead of a tuple is returned as it is.
    """
    fields = dataclasses.fields(instance) if dataclasses.is_dataclass(instance) else ()
    names = getattr(type(instance), attribute, ())
    if attribute in {field.name for field in fields}:
        return ()
    if isinstance(names, str):
        return names
    is_list = isinstance(names, tuple | list) and all(isinstance(each, str) for each in names)
    return names if is_list else ()


def _need(
    table: PluginConfig,
    use: str,
    above: Collection[PluginConfig],
    listeners: Collection[str],
) -> str:
    """Return what is wrong about a need, "" if it is met."""
    if not above:
        return f'it needs the plugin {use!r}: add a table with `use = "{use}"` above this one'
    enforced = [each for each in above if each.mode == "enforce"]
    if not enforced:
        other = next(iter(above))
        return (
            f"it needs {_shown(other)}, which is in shadow mode, so its results are not seen:"
            ' set `mode = "enforce"` there'
        )
    for name in _run_on(table, listeners):
        if not any(name in _run_on(each, listeners) for each in enforced):
            return (
                f"it needs {_shown(enforced[0])} on the listener {name!r}, where that does not run:"
                " add the listener there, or set `listeners` here to the same ones"
            )
    return ""


def _misplaced(others: Collection[PluginConfig]) -> str:
    where = "that one" if len(others) == 1 else "them"
    return (
        f"it has to come after {' and '.join(map(_shown, others))}: move this table below {where}"
    )


def _shown(table: PluginConfig) -> str:
    return f"{table.name!r} ({table.key})"


def _run_on(table: PluginConfig, listeners: Collection[str]) -> Collection[str]:
    return table.listeners or listeners


def _common(one: PluginConfig, other: PluginConfig, listeners: Collection[str]) -> bool:
    return not {*_run_on(one, listeners)}.isdisjoint(_run_on(other, listeners))
