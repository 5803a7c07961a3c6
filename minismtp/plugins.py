"""Finding, checking and registering plugins (layer 3).

Only the plugins that the configuration names are loaded, each from the local `plugin_path` first,
then from the entry points of the group `minismtp`. What is wrong with a plugin (an unknown option,
a misspelt hook or argument, a missing @hookimpl) is a `ConfigError` that names the plugin, its file
and its line, before any session starts.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

import pluggy

from minismtp import hookspecs
from minismtp.guard import Guard, Policy
from minismtp.hooks import Hooks
from minismtp.log import Log
from minismtp.metrics import Metrics
from minismtp.settings import ConfigError, build, did_you_mean

if TYPE_CHECKING:
    from minismtp.config import Config, PluginConfig
    from minismtp.events import HookFailed

T = TypeVar("T")
_MARK = "__minismtp_plugin__"
_OPTIONS = f"{hookspecs.PROJECT}_impl"
GROUP = "minismtp"


@dataclass_transform(eq_default=False, kw_only_default=True)
def plugin(cls: type[T]) -> type[T]:
    """Make a class a plugin: a dataclass whose fields are its options in the configuration.

    Two plugins with the same options stay two plugins: there is no comparison by value.
    """
    setattr(cls, _MARK, True)
    return dataclass(eq=False, kw_only=True)(cls)


def hook_names() -> list[str]:
    """Give the names of all hooks, in the order of their definition."""
    return [name for name, item in vars(hookspecs).items() if hasattr(item, "minismtp_spec")]


@dataclass(frozen=True, slots=True)
class Available:
    """A plugin that could be used: `problem` says why its `factory` is missing."""

    name: str
    source: str
    factory: type | None
    problem: str = ""


class PluginSet:
    """The configured plugins, made, guarded and registered in the order of the configuration."""

    def __init__(self, metrics: Metrics, log: Log) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._metrics = metrics
        self._log = log
        self._instances: list[tuple[PluginConfig, object]] = []
        self._everywhere: Hooks | None = None

    @classmethod
    def load(
        cls, config: Config, metrics: Metrics | None = None, log: Log | None = None
    ) -> PluginSet:
        """Load what the configuration names; raises ConfigError."""
        loaded = cls(metrics or Metrics(), log or Log())
        for table in config.plugins:
            factory = find(table, config)
            instance = build(
                factory, table.options, file=config.file, key=table.key, base=config.base
            )
            loaded.add(table, instance, file=config.file)
        loaded.close()
        return loaded

    def add(self, table: PluginConfig, instance: object, *, file: str = "") -> None:
        """Guard one plugin; its place among the others is the order of the calls."""
        check_methods(instance, table.name, file=file, key=f"{table.key}.use")
        policy = Policy(
            table.name,
            on_error=table.on_error,
            shadow=table.mode == "shadow",
            timeout=table.timeout.total_seconds(),
        )
        guard = Guard(policy, self._log, self._announce)
        for name, method in _implementations(instance):
            metrics = self._metrics.hook(table.name, name, shadow=policy.shadow)
            setattr(instance, name, guard.wrap(name, method, metrics))
        self._instances.append((table, instance))

    def close(self) -> None:
        """Register the plugins; none can be added any more."""
        # pluggy runs the last registered first.
        for table, instance in reversed(self._instances):
            self._manager.register(instance, name=table.name)
        self._manager.check_pending()
        self._everywhere = Hooks(self._manager)

    def hooks(self, listener: str = "") -> Hooks:
        """Give the hooks of one listener; without a name, of all plugins."""
        if not listener:
            assert self._everywhere is not None  # noqa: S101 - close() has run
            return self._everywhere
        elsewhere = [
            instance
            for table, instance in self._instances
            if table.listeners and listener not in table.listeners
        ]
        return Hooks(self._manager, elsewhere)

    def order(self) -> dict[str, list[str]]:
        """Give the plugins of each implemented hook by name, in the order in which they run."""
        found = {}
        for name in hook_names():
            implementations = getattr(self._manager.hook, name).get_hookimpls()
            if implementations:
                found[name] = [item.plugin_name for item in reversed(implementations)]
        return found

    def _announce(self, event: HookFailed) -> None:
        if self._everywhere is not None:
            self._everywhere.observe(event)


def find(table: PluginConfig, config: Config) -> type[Any]:
    """Give the class that `use` names; raises ConfigError."""
    known = list(available(config.plugin_path, only=table.use))
    for found in known:
        if found.factory is not None:
            return found.factory
        raise ConfigError(found.problem, file=config.file, key=f"{table.key}.use")
    names = [item.name for item in available(config.plugin_path, only=None)]
    raise ConfigError(
        f"no plugin is called {table.use!r}{did_you_mean(table.use, names)}",
        file=config.file,
        key=f"{table.key}.use",
    )


def available(plugin_path: list[Path], only: str | None = None) -> list[Available]:
    """List the plugins that can be used, local ones first; `only` loads no other than this one."""
    found: dict[str, Available] = {}
    for directory in plugin_path:
        for path in sorted(directory.glob("*.py")):
            name = path.stem
            if not name.startswith("_") and name not in found and only in (None, name):
                found[name] = _from_file(path)
    for entry in entry_points(group=GROUP):
        if entry.name not in found and only in (None, entry.name):
            found[entry.name] = _from_entry_point(entry)
    return list(found.values())


def check_methods(instance: object, plugin: str, *, file: str, key: str) -> None:
    """Refuse a misspelt hook or argument, and a hook without its marker; raises ConfigError."""
    specs = {name: getattr(hookspecs, name) for name in hook_names()}
    for name, method in inspect.getmembers(type(instance), inspect.isroutine):
        marked = getattr(method, _OPTIONS, None)
        problem = ""
        if marked is None:
            if name in specs:
                problem = f"{name} lacks @hookimpl"
        elif name not in specs:
            problem = f"no hook is called {name!r}{did_you_mean(name, list(specs))}"
        elif marked["wrapper"] or marked["hookwrapper"]:
            problem = f"{name} is a wrapper; a plugin judges for itself only"
        else:
            problem = _check_arguments(name, method, specs[name])
        if problem:
            raise ConfigError(
                f"plugin {plugin!r} ({_place(method)}): {problem}", file=file, key=key
            )


def _check_arguments(name: str, method: Any, spec: Any) -> str:  # noqa: ANN401 - any callable
    offered = list(inspect.signature(spec).parameters)
    for argument in list(inspect.signature(method).parameters)[1:]:
        if argument not in offered:
            takes = ", ".join(offered) or "no argument"
            return f"{name} has no argument {argument!r}; it offers {takes}"
    return ""


def _implementations(instance: object) -> Iterator[tuple[str, Any]]:
    for name, method in inspect.getmembers(instance, inspect.isroutine):
        if hasattr(method, _OPTIONS):
            yield name, method


def _place(method: Any) -> str:  # noqa: ANN401 - any callable
    code = inspect.unwrap(method).__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


def _from_file(path: Path) -> Available:
    source = str(path)
    module_name = f"minismtp_local.{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        return Available(path.stem, source, None, f"{path} cannot be read as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # noqa: BLE001 - any fault of a plugin's file becomes one line
        return Available(path.stem, source, None, f"plugin {path.stem!r}: {_blame(error, path)}")
    classes = [
        item
        for item in vars(module).values()
        if _MARK in getattr(item, "__dict__", {}) and item.__module__ == module_name
    ]
    if len(classes) != 1:
        problem = (
            f"plugin {path.stem!r} ({path}): expected one class under @plugin, found {len(classes)}"
        )
        return Available(path.stem, source, None, problem)
    return Available(path.stem, source, classes[0])


def _from_entry_point(entry: EntryPoint) -> Available:
    source = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
    try:
        factory = entry.load()
    except ModuleNotFoundError as error:
        extra = f"; install minismtp[{','.join(entry.extras)}]" if entry.extras else ""
        problem = f"plugin {entry.name!r} needs the module {error.name!r}{extra}"
        return Available(entry.name, source, None, problem)
    except Exception as error:  # noqa: BLE001 - any fault of a plugin's module becomes one line
        return Available(entry.name, source, None, f"plugin {entry.name!r}: {_blame(error, None)}")
    if not hasattr(factory, _MARK):
        problem = f"plugin {entry.name!r}: {entry.value} is not a class under @plugin"
        return Available(entry.name, source, None, problem)
    return Available(entry.name, source, factory)


def _blame(error: Exception, path: Path | None) -> str:
    """Say what went wrong and at which line of the plugin, without a traceback."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if path is not None and f.filename == str(path)] or frames[-1:]
    place = f"{own[-1].filename}:{own[-1].lineno}: " if own else ""
    return f"{place}{type(error).__name__}: {error}"
