"""The hooks that a plugin may implement.

Raise a verdict to refuse: `Reject("text")` is 550 5.7.1, `Defer("text")` is 451 4.7.1, and
`Disconnect("text")` is 421 4.7.0 and the end of the connection. Return a value to answer, or `None`
for no opinion. The `on_*` hooks, `ehlo_keywords` and `observe` run in all plugins, in the order of
the configuration, until one refuses. For the other hooks, the first answer is used.

Hooks run in the session's own thread of a worker process unless their text says otherwise. They may
block, because only this session waits. An implementation names the arguments that it needs, in any
order, and no others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import pluggy

from minismtp.services.resolver import Resolver
from minismtp.services.shared_state import State
from minismtp.values.clock import Clock, steady_time

if TYPE_CHECKING:
    from pathlib import Path

    from minismtp.config import Config
    from minismtp.hooks.dns_zone import DnsZone
    from minismtp.hooks.plugin_check import PluginCheck
    from minismtp.mail.envelope import Delivery, Destination, Envelope, Recipient, Route
    from minismtp.mail.events import Event
    from minismtp.mail.message import Message
    from minismtp.mail.session import Session
    from minismtp.smtp.sasl import Credentials, StoredKey
    from minismtp.values.address import Address
    from minismtp.values.reply import Reply

PROJECT = "minismtp"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The process of `on_start`, and what its plugins share."""

    hostname: str
    """The server's host name."""
    state_directory: Path
    """The directory where the server, and a plugin too, may keep files."""
    role: str
    """`worker` for a process with sessions, `outbound` for the one that delivers the queue,
    `check` in `minismtp check`.
    """
    slot: int
    """The number of the process among those of its kind, from 0. It is free again when one ends."""
    resolver: Resolver = field(default_factory=Resolver, compare=False)
    """Asks the configured name servers. Threads may share it."""
    state: State = field(default_factory=State.in_memory, compare=False)
    """What all workers share, with keys of this plugin alone. Threads may share it."""
    clock: Callable[[], float] = field(default=time.monotonic, compare=False)
    """Returns monotonic seconds, for spans. Tests can move it."""
    wall: Callable[[], float] = field(default=steady_time, compare=False)
    """Returns epoch seconds, for times that are stored; a jump of the clock is ignored for ten
    minutes. Tests can move it.
    """

    @classmethod
    def of(cls, config: Config, role: str, slot: int = 0, *, clock: Clock | None = None) -> Self:
        """Return the description of a process of this configuration. Raise ConfigError.

        A test may give the clock.
        """
        wall = clock.wall if clock else steady_time
        return cls(
            config.hostname,
            config.state_directory,
            role,
            slot,
            Resolver(config.dns.nameservers),
            State.of(config.state, config.state_directory, clock=wall),
            clock.monotonic if clock else time.monotonic,
            wall,
        )


@hookspec
def on_start(server: ServerInfo) -> None:
    """Open connections, databases and threads.

    Called once in each process after the fork, before the first session. Any exception stops the
    start of the process. `server` has the host name, the state directory, the role (worker,
    outbound or check), the slot, the `resolver`, the plugin's `state`, `clock` and `wall`.
    """


@hookspec
def on_check(check: PluginCheck) -> None:
    """Report what is wrong or doubtful about this plugin's options, files, or place.

    Called by `minismtp check`, and once when the server starts or is reloaded, after `on_start`.
    `check.error(text)` keeps the server from starting, `check.warn(text)` is logged. A text begins
    with the option (`path: `), and says what to do. `check.comes_after("spf", lest="...")` warns
    about the order. `check.role` is "check" where there is time to ask other servers.
    """


@hookspec
def on_dns(zone: DnsZone) -> None:
    """Name the domains of this plugin, and the records that it needs in the DNS.

    Called by `minismtp dns`, and by the process that delivers, which looks at the DNS again from
    time to time; `on_start` may not have run. `zone.receive(domain)` asks for
    MX and other records of a domain whose mail comes here, `zone.send(domain)` for SPF and DMARC,
    `zone.add(DnsRecord(...))` for one record more. Ask no other server here, and raise nothing.
    """


@hookspec
def on_stop() -> None:
    """Close what `on_start` opened. Called once at the end of each process."""


@hookspec
def on_connect(session: Session) -> None:
    """Judge a peer before the banner.

    Reject closes the connection with 554, Defer and Disconnect with 421 (RFC 5321 section 3.1).
    `session.speaks_within(seconds)` waits and tells whether the peer sends before the banner.
    """


@hookspec
def on_helo(session: Session) -> None:
    """Judge `session.helo` after EHLO, HELO or LHLO. After a refusal the peer must greet again."""


@hookspec
def ehlo_keywords(session: Session) -> list[str] | None:
    """Return further lines for the EHLO reply: keyword and parameters. All are collected."""


@hookspec(firstresult=True)
def authenticate(session: Session, credentials: Credentials) -> str | None:
    """Check credentials and give the authorization identity; None asks the next plugin.

    If every plugin returns None, the client gets 535 5.7.8. Raise Defer if the back end is not
    available. Then the client gets 454 4.7.0 and keeps its password (RFC 4954 section 6).
    """


@hookspec(firstresult=True)
def stored_key(session: Session, mechanism: str, username: str) -> StoredKey | None:
    """Return the stored key of a user for a SCRAM mechanism (RFC 5802 section 3).

    None asks the next plugin. If every plugin returns None, the client gets an invented salt,
    always the same for a name, and 535 5.7.8 at the end. A client could tell a key that is not
    `ordinary` from an invented one. The mechanism is advertised only if a plugin implements this
    hook. If that plugin has an attribute or property `mechanisms`, it must be in there.
    """


@hookspec
def on_mail(session: Session, envelope: Envelope) -> None:
    """Judge the reverse-path at MAIL, after the checks of syntax, SIZE and AUTH.

    `envelope.reverse_path` is None for bounces.
    """


@hookspec
def on_rcpt(session: Session, envelope: Envelope, recipient: Recipient) -> None:
    """Judge one recipient at RCPT, before it is routed.

    `envelope.recipients` holds those that were accepted before. A refusal is for this recipient
    only.
    """


@hookspec(firstresult=True)
def route(session: Session, envelope: Envelope, recipient: Recipient) -> Route | None:
    """Return where a recipient's copy goes: `Local(...)`, `Relay(...)`, or `Several(...)` of them.

    None asks the next plugin.

    `Local` names the mailboxes that get a copy; without a name it is the recipient's own address.
    `deliver` stores the copies. `Relay` puts the message into the queue for other servers. A
    recipient without a route is refused with 550 5.7.1, so there is no open relay by accident.
    """


@hookspec
def on_routed(session: Session, envelope: Envelope, recipient: Recipient) -> None:
    """Judge one recipient at RCPT, after it was routed, so it exists.

    This is for filters that remember recipients or report them elsewhere, because addresses that a
    client guessed are refused before. `recipient.route` says where the copy goes. A refusal is for
    this recipient only.
    """


@hookspec
def on_data(session: Session, envelope: Envelope) -> None:
    """Judge the whole envelope at DATA or the first BDAT, before the client sends content."""


@hookspec
def on_message(session: Session, envelope: Envelope, message: Message) -> None:
    """Judge the whole message, before anything is stored.

    The plugin may prepend fields, replace the content, quarantine or discard the message, and
    change the envelope (`envelope.add`, `envelope.remove`, `envelope.reverse_path`). A refusal is
    the reply to the end of the content and applies to all recipients.

    `envelope.refuse(address, Reject("text"))` refuses the message for one recipient alone, and
    `envelope.quarantine(address, "why")` quarantines it for that one. Over LMTP a refused recipient
    has a reply of its own. Over SMTP the message is accepted for the others, and the sender is
    notified about this one. If the sender may be forged, this copy is quarantined instead.
    """


@hookspec(firstresult=True)
def deliver(envelope: Envelope, message: Message, mailbox: Address) -> bool | None:
    """Store one copy. Return True once it is on disk and synced; None asks the next plugin.

    May be called hours after the session, and again after a crash, so an implementation must be
    idempotent for the same `envelope.id` and mailbox. Raise Defer or Reject if the mailbox cannot
    take the copy. Then this copy waits in the queue, or its sender is notified, while the others
    are stored. If no mailbox can take the message, the verdict is the reply.
    """


@hookspec
def on_send(delivery: Delivery, message: Message) -> None:
    """Change the message just before it is sent, for instance to sign it.

    Runs in the outbound process, once for each attempt, on a message that is used for this attempt
    only. If the host cannot take long lines or 8-bit content, the message is converted and the hook
    runs once more. Reject returns the message to its sender; Defer retries it later.
    """


@hookspec(firstresult=True)
def destination(delivery: Delivery) -> Destination | None:
    """Choose the next hop. None asks the next plugin, and at last the configuration.

    Runs in the outbound process for each attempt. Reject returns the message; Defer retries it
    later.
    """


@hookspec(firstresult=True)
def command(session: Session, verb: str, argument: str) -> Reply | None:
    """Answer VRFY, HELP or an unknown verb; None leaves the standard reply."""


@hookspec
def on_disconnect(session: Session, reason: str) -> None:
    """Forget or record what belongs to a session, once it is over.

    Called once at the end of each session that got a greeting or a refusal, however it ended.
    `reason` is the word that the log line `session closed` shows, such as quit, lost, timeout or
    refused. Nothing can be sent any more, and a verdict counts as a failure. If the process is
    killed, this is not called.
    """


@hookspec
def observe(event: Event) -> None:
    """Receive an event (see `minismtp.events`). An observer cannot affect the session."""
