"""Delivery attempts for one destination, and the objects that all attempts share."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Final, Self

from msgspec import structs

from minismtp.config import Config
from minismtp.config.outbound_tables import Timeouts
from minismtp.delivery.client import ClientSettings, HostConnection, Original
from minismtp.delivery.mta_sts import Policies, PolicyFetcher, StsPolicy
from minismtp.delivery.mx import Host, HostFinder, UnreachableError
from minismtp.delivery.progress import (
    AttemptResult,
    DeliveryRequest,
    HostRefusal,
    RequestProgress,
    plain_result,
)
from minismtp.delivery.result import HostError, LoopError, RecipientResult, TlsError
from minismtp.delivery.tls_policy import TlsPolicies
from minismtp.delivery.tls_security import Contexts
from minismtp.hooks.loader import PluginSet
from minismtp.mail.envelope import Delivery, Destination
from minismtp.mail.message import Message
from minismtp.mail.queue_entry import QueuedRecipient, QueueEntry
from minismtp.runtime.log import Log
from minismtp.runtime.thread_activity import here
from minismtp.services.resolver import Resolver
from minismtp.session import replies
from minismtp.session.storage import route_notice
from minismtp.values.address import Address, to_ascii
from minismtp.values.durable_files import read_file
from minismtp.values.reply import Verdict
from minismtp.values.threads import report

_log = logging.getLogger(__name__)
LOCAL: Final = "local"  #: the destination of copies for mailboxes on this server
_MESSAGES: Final = 100  # sent over one connection at most
_ADDRESSES: Final = 10  # tried in one attempt at most
_DOMAINS: Final = 1000  # routes in the cache
_LISTENERS: Final = 100  # sets of plugins in the cache


class DeliveryContext:
    """The configuration, plugins and services that all attempts share."""

    def __init__(
        self,
        config: Config,
        plugins: PluginSet,
        host_finder: HostFinder,
        tls_policies: TlsPolicies,
        setting: ClientSettings,
    ) -> None:
        self.config = config
        self.hooks = plugins.hooks()
        self.storage = lru_cache(_LISTENERS)(plugins.hooks)  #: by the listener of a message
        self.host_finder = host_finder
        self.tls_policies = tls_policies
        self.setting = setting
        self.spool = config.state_directory / "spool"
        self._route = lru_cache(_DOMAINS)(config.outbound.route)
        self._next_hop = lru_cache(_DOMAINS)(self._find_next_hop)

    @classmethod
    def of(cls, config: Config, plugins: PluginSet, log: Log) -> Self:
        """Build the context from the configuration. Raise ConfigError and OSError."""
        outbound = config.outbound
        resolver = Resolver(config.dns.nameservers)
        contexts = Contexts(outbound.server_ca, outbound.ciphers)
        host_finder = HostFinder(
            resolver,
            hostname=config.hostname,
            own=[listener.address for listener in config.listeners],
            port=outbound.port,
        )
        policies = None
        if outbound.mta_sts:
            fetcher = PolicyFetcher(host_finder, contexts, outbound.mta_sts_port)
            policies = Policies(resolver, fetcher, config.state_directory / "mta-sts", log)
        tls_policies = TlsPolicies(resolver, policies, log, dane=outbound.dane)
        setting = ClientSettings(config.hostname, Timeouts.of(outbound), contexts)
        return cls(config, plugins, host_finder, tls_policies, setting)

    def key(self, domain: str) -> str:
        """Return the name of the destination of a domain, which is the domain or its route.

        Recipients with the same name share an attempt.
        """
        domain = to_ascii(domain)
        route = self._route(domain)
        if route.host is None or self.hooks.directs:
            return domain
        return f"{'' if route.domain == '*' else f'{route.domain} '}via {route.host}"

    def destination(self, domain: str) -> Destination:
        """Return the configured next hop for a domain; without a host, MX decides.

        Raise OSError if a password file cannot be read.
        """
        destination, password_file = self._next_hop(domain)
        if password_file is None:
            return destination
        password = read_file(password_file).decode().split("\n", 1)[0].rstrip("\r")
        return replace(destination, password=password)

    def _find_next_hop(self, domain: str) -> tuple[Destination, Path | None]:
        """Return the next hop for a domain without its password, and the file that has it."""
        route = self._route(to_ascii(domain))
        destination = Destination(
            route.host.host if route.host else "",
            route.host.port if route.host else self.config.outbound.port,
            route.tls,
            route.implicit,
            route.username,
        )
        return destination, route.password_file

    def routed(self, notice: QueueEntry) -> QueueEntry:
        """Return a notification with its route, to a mailbox on this server or to another one."""
        return route_notice(notice, self.hooks, self.config.hostname)


class Attempt:
    """Delivers messages to one destination, over one connection as long as it can be used."""

    def __init__(self, context: DeliveryContext, name: str) -> None:
        self._context = context
        self._name = name
        self._connection: HostConnection | None = None
        self._destination: Destination | None = None

    def deliver(self, request: DeliveryRequest) -> AttemptResult:
        """Make one attempt, and return its result, whatever happens."""
        if self._name == LOCAL:
            return AttemptResult([self._store(request, target) for target in request.targets])
        by_sender: dict[str, list[int]] = {}
        for number, target in enumerate(request.targets):
            by_sender.setdefault(target.sender, []).append(number)
        if len(by_sender) == 1:
            return self._relay(request)
        results: dict[int, RecipientResult] = {}
        done, passed = AttemptResult([]), list[HostRefusal]()
        for numbers in by_sender.values():  # because a transaction has one reverse-path
            targets = [request.targets[number] for number in numbers]
            done = self._relay(structs.replace(request, targets=targets))
            results |= dict(zip(numbers, done.results, strict=True))
            passed += done.passed
        ordered = [results[number] for number in sorted(results)]
        return AttemptResult(ordered, done.reached, tuple(passed))

    @property
    def connected(self) -> bool:
        """Whether a connection is open that the next message could use."""
        return self._connection is not None

    def close(self) -> None:
        """End the connection, if there is one."""
        if self._connection is not None:
            self._connection.quit()
            self._connection = None

    def _relay(self, request: DeliveryRequest) -> AttemptResult:
        """Send a message whose recipients have the same reverse-path to other servers."""
        sender, first_sender = request.targets[0].sender, None
        if sender and request.entry.sender:
            first_sender = Address.parse(request.entry.sender)
            request = structs.replace(request, entry=structs.replace(request.entry, sender=sender))
        context, hooks = self._context, self._context.hooks
        try:
            if hooks.sends or hooks.directs:
                request, destination = self._as_plugins_want(request, first_sender)
            else:
                destination = context.destination(request.targets[0].address.rpartition("@")[2])
                original = Original(request.message, directory=context.spool)
                request = structs.replace(request, original=original)
        except Verdict as verdict:
            return _all(request, str(verdict.reply))
        except OSError as error:
            # The reply reaches the sender, so it names no path of this machine.
            _log.error("a route cannot be used: %s", error)
            return _all(request, "451 4.3.5 the login for the next host cannot be read now")
        if request.entry.require_tls:
            destination = replace(destination, tls="verified")
        return self._send(request, destination)

    def _as_plugins_want(
        self, request: DeliveryRequest, first_sender: Address | None
    ) -> tuple[DeliveryRequest, Destination]:
        """Return a request that plugins edited, and its next hop. Raise Verdict and OSError."""
        context, on_send = self._context, self._context.hooks.on_send
        envelope = request.entry.envelope()
        addresses = tuple(Address.parse(target.address) for target in request.targets)
        domain = addresses[0].ascii_domain
        delivery = Delivery(envelope, addresses, domain, request.attempts, first_sender)
        chosen = context.hooks.destination(delivery)
        destination = context.destination(domain) if chosen is None else chosen
        message = request.message.copy()
        on_send(delivery, message)

        def edit(entry: QueueEntry, converted: Message) -> None:
            on_send(replace(delivery, envelope=entry.envelope()), converted)

        original = Original(request.message, edit, context.spool)
        return structs.replace(request, message=message, original=original), destination

    def _store(self, request: DeliveryRequest, target: QueuedRecipient) -> RecipientResult:
        """Store a copy through the plugins of the listener that received the message."""
        entry = request.entry
        try:
            stored = self._context.storage(entry.listener).deliver(
                entry.envelope(), request.message, Address.parse(target.address)
            )
        except Verdict as verdict:
            return plain_result(str(verdict.reply))
        except Exception as error:  # noqa: BLE001 - the other copies are delivered all the same
            report(error)
            return plain_result(str(replies.FAULT))
        return plain_result("250 2.0.0 stored" if stored else str(replies.NO_STORAGE))

    def _send(self, request: DeliveryRequest, destination: Destination) -> AttemptResult:
        """Send to one host after the other, until no recipient is left for the next one."""
        progress = RequestProgress(request)
        self._send_again(progress, destination)
        try:
            if not progress.left:
                return progress.done()
            here.activity.phase = ("looks for the hosts in the DNS", perf_counter())
            policy = self._context.tls_policies.policy(self._name, destination)
            for host in islice(self._hosts(destination), _ADDRESSES):
                if host in progress.visited:
                    continue
                try:
                    self._send_to(host, progress, destination, policy)
                except UnreachableError as error:
                    self.close()
                    progress.add_failure(error, str(host))
                    if isinstance(error, LoopError):
                        break  # RFC 5321 section 5.1: the hosts that follow are not preferred to us
                if not progress.left:
                    break
        except UnreachableError as error:
            progress.add_failure(error)
        return progress.done()

    def _send_again(self, progress: RequestProgress, destination: Destination) -> None:
        """Send over the open connection, if it leads to this destination."""
        if self._connection is not None:
            same = self._destination is destination or self._destination == destination
            if same and self._connection.messages < _MESSAGES:
                try:
                    self._over(self._connection, progress)
                except HostError:
                    pass  # the host may have closed the idle connection, so this does not count
                else:
                    return
            self.close()

    def _send_to(
        self,
        host: Host,
        progress: RequestProgress,
        destination: Destination,
        policy: StsPolicy | None,
    ) -> None:
        if progress.request.entry.require_tls:
            TlsPolicies.vouch(host, self._name, policy)
        self.close()  # the connection to a host that deferred a recipient
        self._connection = self._connect(host, destination, policy)
        self._destination = destination
        self._over(self._connection, progress)

    def _hosts(self, destination: Destination) -> Iterable[Host]:
        host_finder = self._context.host_finder
        if destination.host:
            return host_finder.at(destination.host, destination.port)
        return host_finder.by_mx(self._name)

    def _connect(
        self, host: Host, destination: Destination, policy: StsPolicy | None
    ) -> HostConnection:
        policies = self._context.tls_policies
        security = policies.demand(host, self._name, destination, policy)
        while True:
            try:
                return HostConnection(host, destination, security, self._context.setting)
            except TlsError as error:
                if error.fallback is None:
                    raise
                if security.policy == "testing":
                    policies.report(self._name, error.reply)
                security = error.fallback

    def _over(self, connection: HostConnection, progress: RequestProgress) -> None:
        part = progress.part
        try:
            results = connection.send(part.entry, part.targets, part.message, part.original)
        except Verdict as verdict:  # a plugin refused the converted message
            results = [plain_result(str(verdict.reply))] * len(part.targets)
        except OSError as error:
            _log.error("a message cannot be converted: %s", error)
            no_space = plain_result("451 4.3.1 no space to convert the message now")
            results = [no_space] * len(part.targets)
        if connection.closed:
            self._connection = None
        progress.add_results(connection, results)


def _all(request: DeliveryRequest, reply: str) -> AttemptResult:
    return AttemptResult([plain_result(reply)] * len(request.targets))
