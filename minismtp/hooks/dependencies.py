"""What a plugin says of others: `needs = ("spf",)`, and `after = ("greylist",)`.

Both are attributes of its class without annotation, and name plugins as `use` does. A plugin that
is needed has to be configured, above, on the same listeners and enforced, because nobody sees what
a plugin in shadow mode notes. `after` is only about the order, if that plugin is configured. Tests
and `minismtp try` may run a plugin alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from minismtp.config.toml_values import ConfigError

if TYPE_CHECKING:
    from minismtp.config import Config, PluginConfig


def check_dependencies(config: Config, plugins: Sequence[tuple[PluginConfig, object]]) -> None:
    """Raise ConfigError if a plugin lacks one that it needs, or stands above one."""
    listeners = [listener.name for listener in config.mail_listeners]
    for number, (table, instance) in enumerate(plugins):
        for use in _names(instance, "needs", table, config):
            found = [other for other, _ in plugins if other.use == use]
            above = [other for other, _ in plugins[:number] if other.use == use]
            problem = _need(table, use, found, above, listeners)
            if problem:
                raise _mistake(config, table, problem)
        for use in _names(instance, "after", table, config):
            for other, _ in plugins[number + 1 :]:
                if other.use == use and _common(table, other, listeners):
                    raise _mistake(config, table, _misplaced(other))


def _names(instance: object, attribute: str, table: PluginConfig, config: Config) -> Sequence[str]:
    """Return the names in a class attribute; an option of that name is something else."""
    fields = dataclasses.fields(instance) if dataclasses.is_dataclass(instance) else ()
    names = getattr(type(instance), attribute, ())
    if attribute in {field.name for field in fields}:
        return ()
    if isinstance(names, str):
        problem = f'{attribute} is a text; write `{attribute} = ("{names}",)` in its class'
        raise _mistake(config, table, problem)
    is_list = isinstance(names, tuple | list) and all(isinstance(each, str) for each in names)
    return names if is_list else ()


def _need(
    table: PluginConfig,
    use: str,
    found: Collection[PluginConfig],
    above: Collection[PluginConfig],
    listeners: Collection[str],
) -> str:
    """Return what is wrong about a need, "" if it is met."""
    if not found:
        return f'it needs the plugin {use!r}: add a table with `use = "{use}"` above this one'
    if not above:
        return _misplaced(next(iter(found)))
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


def _misplaced(other: PluginConfig) -> str:
    return f"it has to come after {_shown(other)}: move this table below that one"


def _shown(table: PluginConfig) -> str:
    return f"{table.name!r} ({table.key})"


def _run_on(table: PluginConfig, listeners: Collection[str]) -> Collection[str]:
    return table.listeners or listeners


def _common(one: PluginConfig, other: PluginConfig, listeners: Collection[str]) -> bool:
    return not {*_run_on(one, listeners)}.isdisjoint(_run_on(other, listeners))


def _mistake(config: Config, table: PluginConfig, problem: str) -> ConfigError:
    return ConfigError(f"plugin {table.name!r}: {problem}", file=config.file, key=table.key)
