"""One attempt after the other to deliver to one destination."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Final, Self

from minismtp.config import Config
from minismtp.delivery.client import HostConnection, Setting
from minismtp.delivery.content import Original
from minismtp.delivery.course import Course, Done, Outgoing, Passed, answer_of
from minismtp.delivery.mta_sts import Policies, StsPolicy
from minismtp.delivery.mx import Host, HostFinder, UnreachableError
from minismtp.delivery.policy_fetch import PolicyFetcher
from minismtp.delivery.result import HostError, LoopError, RecipientResult, TlsError
from minismtp.delivery.tls_policy import TlsPolicies
from minismtp.delivery.tls_security import Contexts
from minismtp.hooks.loader import PluginSet
from minismtp.mail.delivery import Delivery, Destination
from minismtp.mail.message import Message
from minismtp.mail.queue_entry import QueuedRecipient, QueueEntry
from minismtp.runtime.log import Log
from minismtp.services.resolver import Resolver
from minismtp.services.smtp_client import Timeouts
from minismtp.session import replies
from minismtp.session.success_notices import route_notice
from minismtp.values.address import Address, to_ascii
from minismtp.values.durable_files import read_file
from minismtp.values.reply import Verdict
from minismtp.values.threads import report

_log = logging.getLogger(__name__)
LOCAL: Final = "local"  #: the destination of copies for mailboxes of ours
_MESSAGES: Final = 100  # over one connection
_ADDRESSES: Final = 10  # that are tried in one attempt
_DOMAINS: Final = 1000  # whose routes are remembered
_LISTENERS: Final = 100  # whose plugins are remembered


class DeliveryContext:
    """What all attempts share."""

    def __init__(
        self,
        config: Config,
        plugins: PluginSet,
        directory: HostFinder,
        judge: TlsPolicies,
        setting: Setting,
    ) -> None:
        self.config = config
        self.hooks = plugins.hooks()
        self.storage = lru_cache(_LISTENERS)(plugins.hooks)  #: by the listener of a message
        self.directory = directory
        self.judge = judge
        self.setting = setting
        self.spool = config.state_directory / "spool"
        self._route = lru_cache(_DOMAINS)(config.outbound.route)

    @classmethod
    def of(cls, config: Config, plugins: PluginSet, log: Log) -> Self:
        """Build the parts. Raise ConfigError and OSError."""
        outbound = config.outbound
        resolver = Resolver(config.dns.nameservers)
        contexts = Contexts(outbound.server_ca, outbound.ciphers)
        directory = HostFinder(
            resolver,
            hostname=config.hostname,
            own=[listener.address for listener in config.listeners],
            port=outbound.port,
        )
        policies = None
        if outbound.mta_sts:
            web = PolicyFetcher(directory, contexts.verified, outbound.mta_sts_port)
            policies = Policies(resolver, web, config.state_directory / "mta-sts", log)
        judge = TlsPolicies(resolver, policies, log, dane=outbound.dane)
        setting = Setting(config.hostname, Timeouts.of(outbound), contexts)
        return cls(config, plugins, directory, judge, setting)

    def key(self, domain: str) -> str:
        """Return the name by which addresses share an attempt: their domain, or their route."""
        domain = to_ascii(domain)
        route = self._route(domain)
        if route.host is None or self.hooks.directs:
            return domain
        return f"{'' if route.domain == '*' else f'{route.domain} '}via {route.host}"

    def destination(self, delivery: Delivery) -> Destination:
        """Return the next hop, of an empty host when it is by MX. Raise Verdict and OSError."""
        chosen = self.hooks.destination(delivery)
        if chosen is not None:
            return chosen
        route = self._route(delivery.domain)
        password = ""
        if route.password_file is not None:
            password = read_file(route.password_file).decode().split("\n", 1)[0].rstrip("\r")
        return Destination(
            route.host.host if route.host else "",
            route.host.port if route.host else self.config.outbound.port,
            route.tls,
            route.implicit,
            route.username,
            password,
        )

    def routed(self, notice: QueueEntry) -> QueueEntry:
        """Return a notification of ours with its way: to a mailbox here, or out."""
        return route_notice(notice, self.hooks, self.config.hostname)


class Attempt:
    """Delivers message after message to one destination, over one connection while that holds."""

    def __init__(self, delivery_context: DeliveryContext, name: str) -> None:
        self._delivery_context = delivery_context
        self._name = name
        self._connection: HostConnection | None = None
        self._destination: Destination | None = None

    def deliver(self, outgoing: Outgoing) -> Done:
        """Make one attempt; whatever happens to it is an answer."""
        if self._name == LOCAL:
            return Done([self._store(outgoing, target) for target in outgoing.targets])
        by_sender: dict[str, list[int]] = {}
        for number, target in enumerate(outgoing.targets):
            by_sender.setdefault(target.sender, []).append(number)
        if len(by_sender) == 1:
            return self._relay(outgoing)
        answers: dict[int, RecipientResult] = {}
        done, passed = Done([]), list[Passed]()
        for numbers in by_sender.values():  # a transaction has one reverse-path
            targets = [outgoing.targets[number] for number in numbers]
            done = self._relay(replace(outgoing, targets=targets))
            answers |= dict(zip(numbers, done.answers, strict=True))
            passed += done.passed
        ordered = [answers[number] for number in sorted(answers)]
        return Done(ordered, done.reached, tuple(passed))

    @property
    def connected(self) -> bool:
        """Whether there is a connection that the next message could use."""
        return self._connection is not None

    def close(self) -> None:
        """End the connection, if there is one."""
        if self._connection is not None:
            self._connection.quit()
            self._connection = None

    def _relay(self, outgoing: Outgoing) -> Done:
        """Send to other servers what has one reverse-path."""
        sender, first_sender = outgoing.targets[0].sender, None
        if sender and outgoing.entry.sender:
            first_sender = Address.parse(outgoing.entry.sender)
            outgoing = replace(outgoing, entry=replace(outgoing.entry, sender=sender))
        envelope = outgoing.entry.envelope()
        addresses = tuple(Address.parse(target.address) for target in outgoing.targets)
        domain = addresses[0].ascii_domain
        delivery = Delivery(envelope, addresses, domain, outgoing.attempts, first_sender)
        message, on_send = outgoing.message.copy(), self._delivery_context.hooks.on_send

        def edit(entry: QueueEntry, converted: Message) -> None:
            on_send(replace(delivery, envelope=entry.envelope()), converted)

        original = Original(outgoing.message, edit, self._delivery_context.spool)
        try:
            destination = self._delivery_context.destination(delivery)
            on_send(delivery, message)
        except Verdict as verdict:
            return _all(outgoing, str(verdict.reply))
        except OSError as error:
            # The reply reaches the sender, so it names no path of this machine.
            _log.error("a way out cannot be used: %s", error)
            return _all(outgoing, "451 4.3.5 the login for the next host cannot be read now")
        if outgoing.entry.require_tls:
            destination = replace(destination, tls="verified")
        return self._send(replace(outgoing, message=message, original=original), destination)

    def _store(self, outgoing: Outgoing, target: QueuedRecipient) -> RecipientResult:
        """Store a copy by the plugins of the listener that the message came to."""
        entry = outgoing.entry
        try:
            stored = self._delivery_context.storage(entry.listener).deliver(
                entry.envelope(), outgoing.message, Address.parse(target.address)
            )
        except Verdict as verdict:
            return answer_of(str(verdict.reply))
        except Exception as error:  # noqa: BLE001 - the other copies of the message go on
            report(error)
            return answer_of(str(replies.FAULT))
        return answer_of("250 2.0.0 stored" if stored else str(replies.NO_STORAGE))

    def _send(self, outgoing: Outgoing, destination: Destination) -> Done:
        """Send to one host after the other, until nobody is left who another one may take."""
        course = Course(outgoing)
        self._send_again(course, destination)
        try:
            policy = (
                self._delivery_context.judge.policy(self._name, destination)
                if course.left
                else None
            )
            hosts = self._hosts(destination) if course.left else ()
            for host in islice(hosts, _ADDRESSES):
                if host in course.visited:
                    continue
                try:
                    self._send_to(host, course, destination, policy)
                except UnreachableError as error:
                    self.close()
                    course.failed(error, str(host))
                    if isinstance(error, LoopError):
                        break  # RFC 5321 section 5.1: the others are no better than we are
                if not course.left:
                    break
        except UnreachableError as error:
            course.failed(error)
        return course.done()

    def _send_again(self, course: Course, destination: Destination) -> None:
        """Send over the connection that is open, if it fits."""
        if self._connection is not None:
            if self._destination == destination and self._connection.messages < _MESSAGES:
                # It may have been idle for too long: a new one is a fair chance then.
                with contextlib.suppress(HostError):
                    self._over(self._connection, course)
                    return
            self.close()

    def _send_to(
        self, host: Host, course: Course, destination: Destination, policy: StsPolicy | None
    ) -> None:
        if course.outgoing.entry.require_tls:
            TlsPolicies.vouch(host, self._name, policy)
        self.close()  # that of a host that has put somebody off
        self._connection = self._connect(host, destination, policy)
        self._destination = destination
        self._over(self._connection, course)

    def _hosts(self, destination: Destination) -> Iterable[Host]:
        directory = self._delivery_context.directory
        if destination.host:
            return directory.at(destination.host, destination.port)
        return directory.by_mx(self._name)

    def _connect(
        self, host: Host, destination: Destination, policy: StsPolicy | None
    ) -> HostConnection:
        delivery_context = self._delivery_context
        security = delivery_context.judge.demand(host, self._name, destination, policy)
        while True:
            try:
                return HostConnection(host, destination, security, delivery_context.setting)
            except TlsError as error:
                if error.otherwise is None:
                    raise
                if security.policy == "testing":
                    delivery_context.judge.report(self._name, error.reply)
                security = error.otherwise

    def _over(self, connection: HostConnection, course: Course) -> None:
        part = course.part
        try:
            answers = connection.send(part.entry, part.targets, part.message, part.original)
        except Verdict as verdict:  # of a plugin, about a conversion
            answers = [answer_of(str(verdict.reply))] * len(part.targets)
        except OSError as error:
            _log.error("a message cannot be converted: %s", error)
            no_space = answer_of("451 4.3.1 no space to convert the message now")
            answers = [no_space] * len(part.targets)
        if connection.closed:
            self._connection = None
        course.answered(connection, answers)


def _all(outgoing: Outgoing, reply: str) -> Done:
    return Done([answer_of(reply)] * len(outgoing.targets))
