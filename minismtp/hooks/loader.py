"""Finds, checks and registers plugins.

Only the plugins that the configuration names are loaded, from the local `plugin_path` first and
then from the entry points of the group `minismtp`. A mistake in a plugin (an unknown option, a
misspelt hook or argument, a missing @hookimpl) raises a `ConfigError` with the plugin, its file and
its line, before any session starts.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

import pluggy

from minismtp.config import COMMON_KEYS
from minismtp.config.mistakes import ConfigError, combined, did_you_mean
from minismtp.config.toml_values import build
from minismtp.hooks import specs
from minismtp.hooks.declaration import (
    MARK,
    DeclarationError,
    doubts,
    explained,
    no_annotation,
    no_hooks,
    place,
    unmarked,
)
from minismtp.hooks.dependencies import check_dependencies
from minismtp.hooks.facade import Hooks
from minismtp.hooks.guard import Guard
from minismtp.hooks.sources import SHIPPED, Packages, sources_of
from minismtp.runtime.log import Log, describe
from minismtp.runtime.metrics import HookMetrics, Metrics
from minismtp.runtime.own_metrics import bind
from minismtp.values.installation import how_to_install

if TYPE_CHECKING:
    from minismtp.config import Config, PluginConfig
    from minismtp.mail.events import HookFailed

T = TypeVar("T")
_MARK = "__minismtp_plugin__"
_ORDINARY = inspect.Parameter.POSITIONAL_OR_KEYWORD
_NOT_ORDINARY = (
    inspect.iscoroutinefunction,
    inspect.isasyncgenfunction,
    inspect.isgeneratorfunction,
)


@dataclass_transform(eq_default=False, kw_only_default=True)
def plugin(cls: type[T]) -> type[T]:
    """Make a class a plugin: a dataclass whose fields are its options in the configuration.

    Plugins are not compared by value, so two plugins with the same options stay two plugins.
    """
    setattr(cls, _MARK, True)
    try:
        return dataclass(eq=False, kw_only=True)(cls)
    except ValueError as error:
        raise explained(cls, error) from None


def hook_names() -> list[str]:
    """Return the names of all hooks, in the order of their definition."""
    return [name for name, item in vars(specs).items() if hasattr(item, "minismtp_spec")]


@dataclass(frozen=True, slots=True)
class Available:
    """A plugin that can be used, or the `problem` that leaves it without a `factory`."""

    name: str
    origin: Path | EntryPoint
    factory: type | None
    problem: str = ""

    @property
    def source(self) -> str:
        """The file, or the name and version of the package, read only when it is used."""
        if isinstance(self.origin, Path):
            return str(self.origin)
        dist = self.origin.dist
        return f"{dist.name} {dist.version}" if dist else self.origin.value


class PluginSet:
    """The plugins of a configuration: instances behind their guards, in the configured order.

    `instances` holds each plugin with its `[[plugins]]` table.
    """

    def __init__(self, metrics: Metrics, log: Log) -> None:
        self._manager = pluggy.PluginManager(specs.PROJECT)
        self._manager.add_hookspecs(specs)
        self._metrics = metrics
        self._log = log
        self.instances: list[tuple[PluginConfig, object]] = []
        self._everywhere: Hooks | None = None

    @classmethod
    def load(
        cls,
        config: Config,
        metrics: Metrics | None = None,
        log: Log | None = None,
        packages: Packages | None = None,
    ) -> PluginSet:
        """Load the plugins that the configuration names. Raise ConfigError for all mistakes.

        `packages` are what `sources.installed` returned, if the caller searched already.
        """
        loaded = cls(metrics or Metrics(), log or Log())
        mistakes: list[ConfigError] = []
        for table, make in _makers(config, packages=packages):
            try:
                loaded.add(table, make(), file=config.file)
            except ConfigError as error:
                mistakes.append(config.locate(error))
        mistakes += map(config.locate, check_dependencies(config, loaded.instances))
        if mistakes:
            raise combined(mistakes)
        if not config.mistakes:  # such as two plugins of one name
            loaded.close()
        return loaded

    def add(self, table: PluginConfig, instance: object, *, file: str = "") -> None:
        """Add one plugin behind a guard. Plugins are called in the order of addition."""
        check_methods(instance, table.name, file=file, key=f"{table.key}.use")
        try:
            bind(instance, self._metrics, table.name)
        except TypeError as error:
            problem = f"plugin {table.name!r}: {error}"
            raise ConfigError(problem, file=file, key=table.key) from error
        guard = Guard(table, self._log, self._announce)
        shadow = table.mode == "shadow"
        unused = unused_hooks(instance)
        for name, method, options in _methods(instance):
            if options is not None and name in unused:
                setattr(instance, name, partial(method))  # pluggy registers no partial
            elif options is not None:
                metrics = HookMetrics(self._metrics, table.name, name, shadow=shadow)
                setattr(instance, name, specs.hookimpl(guard.wrap(name, method, metrics)))
        self.instances.append((table, instance))

    def close(self) -> None:
        """Register the plugins. No plugin can be added after this."""
        # pluggy runs the last registered first.
        for table, instance in reversed(self.instances):
            self._manager.register(instance, name=table.name)
        self._manager.check_pending()
        self._everywhere = Hooks(self._manager)

    def hooks(self, listener: str = "") -> Hooks:
        """Return the hooks of one listener; without a name, of all plugins."""
        if not listener:
            assert self._everywhere is not None  # noqa: S101 - close() has run
            return self._everywhere
        elsewhere = [
            instance
            for table, instance in self.instances
            if table.listeners and listener not in table.listeners
        ]
        return Hooks(self._manager, elsewhere)

    def alone(self, instance: object) -> Hooks:
        """Return the hooks of one plugin."""
        return Hooks(self._manager, [each for _, each in self.instances if each is not instance])

    def doubts(self) -> Iterator[tuple[PluginConfig, str]]:
        """Yield what is most likely a mistake in the source of a plugin, with its table."""
        hooks = {name: getattr(specs, name) for name in hook_names()}
        for table, instance in self.instances:
            # The shipped ones have none, and reading their source takes 1 MB of memory.
            if not type(instance).__module__.startswith(f"{SHIPPED}."):
                for text in doubts(instance, hooks):
                    yield table, text

    def order(self) -> dict[str, list[str]]:
        """Return the plugins of each implemented hook by name, in the order in which they run."""
        found = {}
        for name in hook_names():
            implementations = getattr(self._manager.hook, name).get_hookimpls()
            if implementations:
                found[name] = [item.plugin_name for item in reversed(implementations)]
        return found

    def _announce(self, event: HookFailed) -> None:
        if self._everywhere is not None:
            self._everywhere.observe(event)


def instances(config: Config, hook: str = "") -> Iterator[tuple[PluginConfig, object]]:
    """Yield the configured plugins with their tables, in order. Raise ConfigError.

    With a `hook`, those that implement it are made, so mistakes in the others do not matter.
    """
    for table, make in _makers(config, hook):
        if (instance := make()) is not None:
            yield table, instance


def _makers(
    config: Config, hook: str = "", packages: Packages | None = None
) -> Iterator[tuple[PluginConfig, Callable[[], object | None]]]:
    """Yield each table with what makes its plugin, None without the hook. It raises ConfigError."""
    sources = sources_of(config.plugin_path, packages)
    factories: dict[str, type[Any]] = {}

    def make(table: PluginConfig) -> object | None:
        if table.use not in factories:
            factories[table.use] = _find(table, sources, config.file)
        factory = factories[table.use]
        return _make(factory, table, config) if not hook or hasattr(factory, hook) else None

    for table in config.plugins:
        yield table, partial(make, table)


def _find(table: PluginConfig, sources: Mapping[str, Path | EntryPoint], file: str) -> type[Any]:
    """Return the class that `use` names. Raise ConfigError."""
    if table.use in sources:
        found = _load(table.use, sources[table.use])
        if found.factory is not None:
            return found.factory
        problem = found.problem
    else:
        problem = f"no plugin is called {table.use!r}{did_you_mean(table.use, list(sources))}"
    raise ConfigError(problem, file=file, key=f"{table.key}.use")


def available(plugin_path: list[Path]) -> list[Available]:
    """Return all plugins that can be used, local ones first."""
    return [_load(name, source) for name, source in sources_of(plugin_path).items()]


def _load(name: str, source: Path | EntryPoint) -> Available:
    return _from_file(name, source) if isinstance(source, Path) else _from_entry_point(source)


def _make(factory: type[Any], table: PluginConfig, config: Config) -> object:
    try:
        place: Any = {"file": config.file, "key": table.key, "base": config.base}
        return build(factory, table.options, reserved=COMMON_KEYS, **place)
    except ConfigError as error:
        if hint := no_annotation(factory, error.key.removeprefix(f"{table.key}.")):
            raise ConfigError(hint, file=error.file, key=error.key) from error
        raise
    except (Exception, SystemExit) as error:
        problem = f"plugin {table.name!r}: {_blame(error, Path(inspect.getfile(factory)))}"
        raise ConfigError(problem, file=config.file, key=table.key) from error


def check_methods(instance: object, plugin: str, *, file: str, key: str) -> None:
    """Raise ConfigError for a misspelt hook or argument, or a plugin without a marked hook."""
    hooks = {name: getattr(specs, name) for name in hook_names()}
    methods = list(_methods(instance))
    for name, method, options in methods:
        if options is None:
            problem = f"{name} lacks @hookimpl" if name in hooks else ""
        elif name not in hooks:
            problem = f"no hook is called {name!r}{did_you_mean(name, list(hooks))}"
        else:
            problem = _check_kind(name, method, options) or _check_arguments(
                name, method, list(inspect.signature(hooks[name]).parameters)
            )
        if problem:
            raise ConfigError(f"plugin {plugin!r} ({place(method)}): {problem}", file=file, key=key)
    problem = ""
    if all(options is None for _, _, options in methods):
        problem = no_hooks(instance, list(hooks))
    marked = [name for name in hooks if hasattr(getattr(type(instance), name, None), MARK)]
    for name in unused_hooks(instance):
        if name not in marked:
            problem = f"unused_hooks names {name!r}, which it does not implement"
            problem += did_you_mean(name, marked)
    if problem:
        raise ConfigError(f"plugin {plugin!r}: {problem}", file=file, key=key)


def unused_hooks(instance: object) -> tuple[str, ...]:
    """Return the hooks that a plugin implements, but that its options leave nothing to do."""
    return tuple(getattr(instance, "unused_hooks", ()))


def _check_kind(name: str, method: Any, options: dict[str, object]) -> str:  # noqa: ANN401 - any callable
    function = inspect.unwrap(method)
    if options["wrapper"] or options["hookwrapper"]:
        return f"{name} is a wrapper; expected an ordinary hook, which sees no other answers"
    if any(options.values()):
        return f"@hookimpl takes no options; the order of {name} is that of the configuration"
    if any(kind(function) for kind in _NOT_ORDINARY):
        return f"{name} is a coroutine or generator; hooks are ordinary functions"
    return ""


def _check_arguments(name: str, method: Any, offered: list[str]) -> str:  # noqa: ANN401 - any callable
    for argument, parameter in inspect.signature(method).parameters.items():
        if argument not in offered:
            takes = ", ".join(offered) or "no argument"
            return f"{name} has no argument {argument!r}; it offers {takes}"
        # pluggy passes arguments by position and leaves out those with a default.
        if parameter.kind is not _ORDINARY or parameter.default is not inspect.Parameter.empty:
            return f"argument {argument!r} of {name} must be an ordinary one without a default"
    return ""


def _methods(instance: object) -> Iterator[tuple[str, Any, dict[str, object] | None]]:
    """Yield each method with its name and the options of @hookimpl; properties are not run."""
    for name in dir(instance):
        defined = inspect.getattr_static(instance, name)
        if inspect.isroutine(defined):
            yield name, getattr(instance, name), getattr(defined, MARK, None)


def _from_file(name: str, path: Path) -> Available:
    module_name = f"minismtp_local.{name}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None  # noqa: S101 - the name ends with .py
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look up the names in annotations here
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - any error in a plugin's file becomes one line
        return Available(name, path, None, f"plugin {name!r}: {_blame(error, path)}")
    classes = {
        item: f"{item.__name__} ({path}:{inspect.getsourcelines(item)[1]})"
        for item in vars(module).values()
        if _MARK in getattr(item, "__dict__", {}) and item.__module__ == module_name
    }
    if len(classes) != 1:
        found = ", ".join(classes.values()) or f"none in {path}{unmarked(module)}"
        problem = f"plugin {name!r}: expected one class under @plugin, found {found}"
        return Available(name, path, None, problem)
    return Available(name, path, *classes)


def _from_entry_point(entry: EntryPoint) -> Available:
    try:
        factory = entry.load()
    except ModuleNotFoundError as error:
        owner = entry.dist.name if entry.dist else entry.module
        extra = f"; {how_to_install(*entry.extras, package=owner)}" if entry.extras else ""
        problem = f"plugin {entry.name!r} needs the module {error.name!r}{extra}"
        return Available(entry.name, entry, None, problem)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - any error in a plugin's module becomes one line
        return Available(entry.name, entry, None, f"plugin {entry.name!r}: {_blame(error, None)}")
    if _MARK not in getattr(factory, "__dict__", {}):
        problem = f"plugin {entry.name!r}: {entry.value} is not a class under @plugin"
        return Available(entry.name, entry, None, problem)
    return Available(entry.name, entry, factory)


def _blame(error: BaseException, path: Path | None) -> str:
    """Describe an error and the line of the plugin where it happened, without a traceback."""
    if isinstance(error, DeclarationError):
        return str(error)
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    places = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    own = [place for place in places if path is not None and place[0] == str(path)]
    if path is None or own:
        file, line = (own or places)[-1]
        return f"{file}:{line}: {describe(error)}"
    return f"{path}: {describe(error)}"
