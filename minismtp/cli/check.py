"""The configuration and everything that it names: `minismtp check`.

The check leaves nothing behind. It starts plugins with a temporary state directory, so that a check
run by root makes no files that the server's own user cannot open later.
"""

import argparse
import logging
import os
import sqlite3
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final, Literal, NamedTuple

from minismtp.cli import permissions
from minismtp.cli.common import EXIT_CONFIG, add_config, configuration, say
from minismtp.config import Config, Listener, StateConfig, TlsConfig
from minismtp.config.toml_values import ConfigError, reason
from minismtp.delivery.tls_security import Contexts
from minismtp.hooks.facade import Hooks
from minismtp.hooks.guard import StartError
from minismtp.hooks.loader import PluginSet
from minismtp.hooks.specs import ServerInfo
from minismtp.mail.envelope import Envelope, Recipient
from minismtp.mail.session import Session
from minismtp.runtime.log import Log, complain
from minismtp.runtime.metrics import Metrics
from minismtp.server.privileges import acting_as_owner
from minismtp.services import tls
from minismtp.services.remote import RemoteError
from minismtp.services.shared_state import FILE, State
from minismtp.session.in_memory import Dialogue
from minismtp.session.listener_context import ListenerContext
from minismtp.values.address import Address
from minismtp.values.durable_files import read_file
from minismtp.values.reply import Verdict
from minismtp.values.sqlite_file import damage

_DAY: Final = 86_400
_EXPIRES_SOON: Final = 14 * _DAY
# The addresses for documentation (RFC 5737, 3849, 9637) are in no real network. A configuration
# made from an example may trust them; then other addresses are tried. A network that is as wide as
# _WIDEST, or wider, does not count as trusted.
_FOREIGN_CLIENTS: Final = (
    ("192.0.2.1", "198.51.100.1", "203.0.113.1"),
    ("2001:db8::1", "2001:db8:ffff::1", "3fff::1"),
)
_WIDEST: Final = {4: 8, 6: 16}
_STEP: Final = 0x9E3779B1  # an odd number, whose multiples are spread over all addresses
_TRIES: Final = 1000
# Names below `invalid` are in no DNS (RFC 6761 section 6.4).
_RECIPIENT: Final = "probe@relay-test.invalid"
_SENDER: Final = "outsider@sender-test.invalid"
_HELO: Final = "outsider.invalid"


class Problem(NamedTuple):
    """An error, which will keep something from working, or a warning, which may be intended."""

    severity: Literal["error", "warning"]
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.message}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_config(parser)
    parser.add_argument("--strict", action="store_true", help="let warnings count as errors")


def run(arguments: argparse.Namespace) -> int:
    """Print each problem. Return 78 if there is an error, or with --strict a warning."""
    fatal = False
    try:
        for problem in check(configuration(arguments)):
            complain(str(problem), problem.severity)
            fatal = fatal or arguments.strict or problem.severity == "error"
    except ConfigError as error:
        complain(str(Problem("error", str(error))))
        fatal = True
    if fatal:
        return EXIT_CONFIG
    say("configuration ok")
    return 0


def check(config: Config) -> Iterator[Problem]:
    """Yield the problems of everything that a configuration without mistakes names."""
    yield from _hostname(config)
    yield from _directories(config)
    yield from _certificates(config)
    yield from _permissions(config)
    yield from _outbound(config)
    yield from _databases(config)
    yield from _state(config)
    yield from _plugins(config)


def _error(config: Config, key: str, message: str) -> Problem:
    return Problem("error", str(ConfigError(message, file=config.file, key=key)))


def _warning(config: Config, key: str, message: str) -> Problem:
    return Problem("warning", str(ConfigError(message, file=config.file, key=key)))


def _hostname(config: Config) -> Iterator[Problem]:
    public = any(not listener.address.is_local for listener in config.listeners)
    if public and "." not in config.hostname:
        message = f"{config.hostname!r} is not fully qualified; other servers may mistrust it"
        yield _warning(config, "hostname", message)


def _directories(config: Config) -> Iterator[Problem]:
    for number, directory in enumerate(config.plugin_path):
        if not directory.is_dir():
            yield _warning(config, f"plugin_path[{number}]", f"{directory} is not a directory")
    existing = config.state_directory
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        yield _error(config, "state_directory", f"{existing} is not a directory")
    elif not os.access(existing, os.W_OK | os.X_OK):
        made = "written to" if existing == config.state_directory else f"made: {existing}"
        yield _error(config, "state_directory", f"cannot be {made} is not writable by this user")
    elif existing == config.state_directory and existing.stat().st_mode & stat.S_IRWXO:
        yield _warning(config, "state_directory", f"{existing} is open to everybody (chmod o-rwx)")


def _certificates(config: Config) -> Iterator[Problem]:
    pairs = {"tls.certificate": config.tls} if config.tls.certificate else {}
    for number, entry in enumerate(config.tls.sni):
        pair = replace(config.tls, certificate=entry.certificate, key=entry.key, sni=[])
        pairs[f"tls.sni[{number}].certificate"] = pair
    for key, pair in pairs.items():
        try:
            tls.server_context(pair, file=config.file)
        except ConfigError as error:
            yield Problem("error", str(error))
        else:
            yield from _expiry(config, key, pair)


def _expiry(config: Config, key: str, pair: TlsConfig) -> Iterator[Problem]:
    assert pair.certificate is not None  # noqa: S101 - it was loaded above
    end = tls.not_after(pair.certificate)
    left = end - time.time()
    if left < _EXPIRES_SOON:
        day = time.strftime("%Y-%m-%d", time.gmtime(end))
        when = f"expired on {day}" if left < 0 else f"expires on {day}"
        yield _warning(config, key, f"{pair.certificate} {when}")


def _permissions(config: Config) -> Iterator[Problem]:
    files = permissions.own_files(config)
    for key, problem in (*permissions.readable(config), *permissions.writable(config, files)):
        yield _warning(config, key, problem)


def _outbound(config: Config) -> Iterator[Problem]:
    if (
        config.outbound.server_ca is not None
    ):  # the system's authorities take 40 ms, and cannot fail
        try:
            Contexts(config.outbound.server_ca)
        except ConfigError as error:
            yield _error(config, error.key, error.message)
    for key, path in permissions.password_files(config):
        try:
            read_file(path).decode()
        except OSError as error:
            yield _error(config, key, reason(error))
        except ValueError as error:
            yield _error(config, key, f"{path}: {error}")


def _databases(config: Config) -> Iterator[Problem]:
    """Check the databases that the server rebuilds when they are damaged."""
    for path in (config.state_directory / FILE, config.state_directory / "spool" / "queue.db"):
        try:
            with acting_as_owner(path.parent):
                problem = damage(path)
        except (OSError, sqlite3.Error) as error:
            yield _warning(config, "state_directory", f"{path} cannot be read: {error}")
            continue
        if problem:
            text = f"{path} is damaged, the server will set it aside and make a new one: {problem}"
            yield _warning(config, "state_directory", text)


def _state(config: Config) -> Iterator[Problem]:
    if not config.state.url:
        return  # `_databases` looks at the file
    try:
        State.of(config.state, config.state_directory).get("check")
    except ConfigError as error:
        yield _error(config, error.key, error.message)
    except RemoteError as error:
        yield _warning(config, "state.url", f"{error}; plugins that need it follow their on_error")


def _plugins(config: Config) -> Iterator[Problem]:
    metrics = Metrics(listener.name for listener in config.listeners)
    with Path(os.devnull).open("wb") as nowhere, tempfile.TemporaryDirectory() as directory:
        log = Log(descriptor=nowhere.fileno())
        try:
            plugins = PluginSet.load(config, metrics, log)
            yield from _roles(config, plugins)
            for table, doubt in plugins.doubts():
                yield _warning(config, table.key, f"plugin {table.name!r}: {doubt}")
            for key, problem in permissions.writable(config, permissions.plugin_files(plugins)):
                yield _warning(config, key, problem)
            # Plugins may write here, and into no state that servers share.
            here = replace(config, state_directory=Path(directory), state=StateConfig())
            with _warnings() as logged:
                plugins.hooks().on_start(ServerInfo.of(here, "check"))
            yield from (_warning(config, "plugins", each.getMessage()) for each in logged)
        except (ConfigError, StartError) as error:
            yield Problem("error", str(error))
            return
        try:
            for listener in config.listeners:
                yield from _relay(config, listener, plugins, metrics, log)
        finally:
            plugins.hooks().on_stop()


@contextmanager
def _warnings() -> Iterator[list[logging.LogRecord]]:
    """Collect the warnings that are logged within the block, such as those of plugins."""
    logged: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = logged.append  # type: ignore[assignment, method-assign]
    logging.getLogger().addHandler(handler)
    try:
        yield logged
    finally:
        logging.getLogger().removeHandler(handler)


def _roles(config: Config, plugins: PluginSet) -> Iterator[Problem]:
    """Warn if no plugin stores mail, routes recipients or checks passwords."""
    if not plugins.hooks().delivers:
        yield _warning(config, "plugins", "no plugin stores mail (hook deliver)")
    for number, listener in enumerate(config.listeners):
        key, hooks = f"listeners[{number}]", plugins.hooks(listener.name)
        if not hooks.routes:
            message = "no plugin routes recipients here (hook route), so all are refused"
            yield _warning(config, key, message)
        can_log_in = hooks.mechanisms or listener.client_certificates
        if listener.kind == "submission" and not can_log_in:
            message = "no plugin checks passwords here (hook authenticate), so no user can log in"
            yield _warning(config, key, message)


def _relay(
    config: Config, listener: Listener, plugins: PluginSet, metrics: Metrics, log: Log
) -> Iterator[Problem]:
    """Offer mail of a foreign client for a foreign recipient, as tests for open relays do."""
    key = f"listeners[{config.listeners.index(listener)}]"
    context = ListenerContext.of(config, listener, plugins, metrics, log)
    for peer in _foreign_clients(plugins.hooks(listener.name)):
        dialogue = Dialogue(service=context, peer=peer)
        reply = _refusal(dialogue)
        if reply.startswith("4"):
            # A filter such as greylisting may accept the mail later, so ask for the route alone.
            reply = _refused_route(plugins.hooks(listener.name), dialogue.session)
        if not reply:
            yield _error(config, key, f"open relay: {peer} may send mail to {_RECIPIENT}")
            return
        if reply.startswith("4"):
            message = f"cannot tell whether it is an open relay: the test got {reply!r}"
            yield _warning(config, key, message)
            return


def _foreign_clients(hooks: Hooks) -> Iterator[str]:
    """Yield one address of each family, outside of all networks that plugins trust."""
    networks = [each for each in hooks.networks if each.prefixlen > _WIDEST[each.version]]
    for first in _FOREIGN_CLIENTS:
        found = (each for each in _candidates(first) if not any(each in net for net in networks))
        yield str(next(found, first[0]))


def _candidates(first: tuple[str, ...]) -> Iterator[IPv4Address | IPv6Address]:
    yield from map(ip_address, first)
    for number in range(1, _TRIES):
        spread = number * _STEP & 0xFFFFFFFF
        whole = IPv6Address(spread << 96 | 1) if ":" in first[0] else IPv4Address(spread)
        if whole.is_global:
            yield whole


def _refusal(dialogue: Dialogue) -> str:
    """Offer mail for a foreign recipient. Return the refusal, or nothing if it is accepted."""
    greeting = "LHLO" if dialogue.service.lmtp else "EHLO"
    replies = [
        dialogue.banner,
        dialogue.send(f"{greeting} {_HELO}"),
        dialogue.send(f"MAIL FROM:<{_SENDER}>"),
        dialogue.send(f"RCPT TO:<{_RECIPIENT}>"),
    ]
    dialogue.send("QUIT")
    return next((reply for reply in replies if not reply.startswith("2")), "")


def _refused_route(hooks: Hooks, session: Session) -> str:
    """Ask only for a route to a foreign recipient. Return the refusal, or nothing for a route."""
    envelope = Envelope(
        id=session.id,
        reverse_path=Address.parse(_SENDER),
        listener=session.listener,
        peer=session.peer,
        helo=_HELO,
        login=None,
        arrived=session.started,
    )
    try:
        route = hooks.route(session, envelope, Recipient(Address.parse(_RECIPIENT)))
    except Verdict as verdict:
        return str(verdict.reply)
    return "" if route is not None else "550 no plugin routes it"
