"""Every place where a plugin may speak.

Raise a verdict to refuse: `Reject("text")` is 550 5.7.1, `Defer("text")` is 451 4.7.1,
`Disconnect("text")` is 421 4.7.0 and the end of the connection. Return to answer, return `None` for
no opinion. The `on_*` hooks, `ehlo_keywords` and `observe` run in all plugins, in the order of the
configuration, until one refuses; of the others the first answer counts.

Hooks run in the session's own thread of a worker process unless their text says otherwise, and may
block: only this session waits. An implementation names the arguments it needs, in any order, and no
others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import pluggy

from minismtp.services.resolver import Resolver
from minismtp.services.shared_state import State

if TYPE_CHECKING:
    from pathlib import Path

    from minismtp.config import Config
    from minismtp.mail.delivery import Delivery, Destination
    from minismtp.mail.envelope import Credentials, Envelope, Recipient, Route
    from minismtp.mail.events import Event
    from minismtp.mail.message import Message
    from minismtp.mail.session import Session
    from minismtp.smtp.sasl import StoredKey
    from minismtp.values.address import Address
    from minismtp.values.reply import Reply

PROJECT = "minismtp"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The process of `on_start`: `role` is worker, outbound or check; `slot` counts from 0.

    Threads may share the `resolver`, which asks the DNS as the configuration says, and the `state`,
    which all workers have in common, each plugin with keys of its own.
    """

    hostname: str
    state_directory: Path
    role: str
    slot: int
    resolver: Resolver = field(default_factory=Resolver, compare=False)
    state: State = field(default_factory=State.in_memory, compare=False)

    @classmethod
    def of(cls, config: Config, role: str, slot: int = 0) -> Self:
        """Introduce a process that the configuration describes. Raise ConfigError."""
        resolver = Resolver(config.dns.nameservers)
        state = State.of(config.state, config.state_directory)
        return cls(config.hostname, config.state_directory, role, slot, resolver, state)


@hookspec
def on_start(server: ServerInfo) -> None:
    """Open connections, databases and threads.

    Called once in each process after the fork, before the first session. Whatever it raises stops
    the start of the process. `server` names the host, the state directory, the role (worker,
    outbound or check) and the slot, and has the `resolver` and the plugin's `state`.
    """


@hookspec
def on_stop() -> None:
    """Close what `on_start` opened; called once at the end of each process."""


@hookspec
def on_connect(session: Session) -> None:
    """Judge a peer before the banner.

    Reject closes the connection with 554, Defer and Disconnect with 421 (RFC 5321 section 3.1).
    `session.speaks_within(seconds)` waits, and tells whether the peer talks before its turn.
    """


@hookspec
def on_helo(session: Session) -> None:
    """Judge `session.helo` after EHLO, HELO or LHLO; a refusal leaves the peer ungreeted."""


@hookspec
def ehlo_keywords(session: Session) -> list[str] | None:
    """Return further lines for the EHLO reply, keyword and parameters; all are collected."""


@hookspec(firstresult=True)
def authenticate(session: Session, credentials: Credentials) -> str | None:
    """Check credentials and give the authorization identity; None asks the next plugin.

    After the last None the client hears 535 5.7.8. Raise Defer when the back end is away: the
    client hears 454 4.7.0 and keeps its password (RFC 4954 section 6).
    """


@hookspec(firstresult=True)
def stored_key(session: Session, mechanism: str, username: str) -> StoredKey | None:
    """Return the stored key of a user for a SCRAM mechanism (RFC 5802 section 3).

    None asks the next plugin. After the last None the client gets a salt that is made up, always
    the same for a name, and 535 5.7.8 in the end; a key that is not `ordinary` could be told from
    it. The mechanism is advertised only where a plugin implements this hook, or, when that plugin
    has an attribute or property `mechanisms`, where it stands in there.
    """


@hookspec
def on_mail(session: Session, envelope: Envelope) -> None:
    """Judge the reverse-path at MAIL, after syntax, SIZE and AUTH rules have passed.

    `envelope.reverse_path` is None for bounces.
    """


@hookspec
def on_rcpt(session: Session, envelope: Envelope, recipient: Recipient) -> None:
    """Judge one recipient at RCPT, before it is routed.

    `envelope.recipients` holds those that were accepted before. The refusal is for this one alone.
    """


@hookspec(firstresult=True)
def route(session: Session, envelope: Envelope, recipient: Recipient) -> Route | None:
    """Say where a recipient's copy goes: `Local(...)`, `Relay(...)`, or both as `Several(...)`.

    None asks the next plugin.

    `Local` names the mailboxes that get a copy, none for the recipient's own address; they are
    stored by `deliver`. `Relay` puts the message into the queue for other servers. A recipient that
    nobody routes is refused with 550 5.7.1, so there is no open relay by accident.
    """


@hookspec
def on_routed(session: Session, envelope: Envelope, recipient: Recipient) -> None:
    """Judge one recipient at RCPT, after it was routed: one that there is.

    For filters that remember, or tell others of, whom mail is for; strangers' guesses do not get
    here. `recipient.route` says where its copy goes. The refusal is for this one alone.
    """


@hookspec
def on_data(session: Session, envelope: Envelope) -> None:
    """Judge the whole envelope at DATA or the first BDAT, before any content is asked for."""


@hookspec
def on_message(session: Session, envelope: Envelope, message: Message) -> None:
    """Judge the whole message, before anything is stored.

    May prepend fields, replace the content, quarantine or discard, and change who gets it
    (`envelope.add`, `envelope.remove`, `envelope.reverse_path`); a refusal is the reply to the end
    of the content and counts for all recipients.
    """


@hookspec(firstresult=True)
def deliver(envelope: Envelope, message: Message, mailbox: Address) -> bool | None:
    """Store one copy; True says that it is on disk and synced, None asks the next plugin.

    May be called hours after the session, and again after a crash: an implementation is idempotent
    for the same `envelope.id` and mailbox. Raise Defer or Reject when the mailbox cannot take it:
    then this copy waits in the queue, or its sender is told, while the others are stored; where no
    mailbox can have the message, it is the reply.
    """


@hookspec
def on_send(delivery: Delivery, message: Message) -> None:
    """Change the message before it leaves, the last chance: signing, for instance.

    Runs in the outbound process, once for each attempt, on a message of this attempt alone. It runs
    once more on a conversion where the host cannot take the message as it is, because of long lines
    or 8-bit content. Reject returns the message to its sender, Defer has it tried later.
    """


@hookspec(firstresult=True)
def destination(delivery: Delivery) -> Destination | None:
    """Choose the next hop; None asks the next plugin, and after the last the configuration.

    Runs in the outbound process for each attempt. Reject returns the message, Defer has it wait.
    """


@hookspec(firstresult=True)
def command(session: Session, verb: str, argument: str) -> Reply | None:
    """Answer VRFY, HELP or a verb that the server does not know; None gives the standard reply."""


@hookspec
def observe(event: Event) -> None:
    """Learn what happened (see `minismtp.events`); nothing that it does can affect a session."""
