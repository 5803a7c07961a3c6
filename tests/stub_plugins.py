"""Plugins for tests of the session, which judge, store, or keep records."""

from dataclasses import field
from typing import Any

from minismtp import (
    Address,
    Credentials,
    Envelope,
    Local,
    Message,
    Recipient,
    Reject,
    Relay,
    Session,
    hookimpl,
    plugin,
)
from minismtp.events import Event, HookFailed, MessageDecided, RecipientDecided


@plugin
class Judge:
    """Raises `verdict` or returns `answer` at one hook; `calls` has the hooks that were called.

    Elsewhere it has no opinion, or with `accepts` routes and stores all mail. `on_connect` lets the
    peers in `known` pass.
    """

    hook: str
    verdict: Exception | None = None
    answer: object = None
    cause: Exception | None = None
    accepts: bool = False
    known: tuple[str, ...] = ()
    mechanisms: tuple[str, ...] = ("PLAIN", "LOGIN")
    calls: list[str] = field(default_factory=list)

    def _judge(self, hook: str, accepting: object = None) -> Any:  # noqa: ANN401 - wrong answers too
        self.calls.append(hook)
        if hook != self.hook:
            return accepting if self.accepts else None
        if self.verdict is not None:
            raise self.verdict from self.cause
        return self.answer

    @hookimpl
    def on_connect(self, session: Session) -> None:
        if session.peer not in self.known:
            self._judge("on_connect")

    @hookimpl
    def on_helo(self) -> None:
        self._judge("on_helo")

    @hookimpl
    def ehlo_keywords(self) -> None:
        self._judge("ehlo_keywords")

    @hookimpl
    def authenticate(self) -> Any:  # noqa: ANN401
        return self._judge("authenticate")

    @hookimpl
    def stored_key(self) -> None:
        self._judge("stored_key")

    @hookimpl
    def on_mail(self) -> None:
        self._judge("on_mail")

    @hookimpl
    def on_rcpt(self) -> None:
        self._judge("on_rcpt")

    @hookimpl
    def route(self) -> Any:  # noqa: ANN401
        return self._judge("route", accepting=Local())

    @hookimpl
    def on_routed(self) -> None:
        self._judge("on_routed")

    @hookimpl
    def on_data(self) -> None:
        self._judge("on_data")

    @hookimpl
    def on_message(self) -> None:
        self._judge("on_message")

    @hookimpl
    def deliver(self) -> Any:  # noqa: ANN401
        return self._judge("deliver", accepting=True)

    @hookimpl
    def command(self) -> Any:  # noqa: ANN401
        return self._judge("command")


@plugin
class Observer:
    """Keeps all events."""

    events: list[Event] = field(default_factory=list)

    @hookimpl
    def observe(self, event: Event) -> None:
        self.events.append(event)

    @property
    def recipients(self) -> list[RecipientDecided]:
        return [event for event in self.events if isinstance(event, RecipientDecided)]

    @property
    def messages(self) -> list[MessageDecided]:
        return [event for event in self.events if isinstance(event, MessageDecided)]

    @property
    def failures(self) -> list[HookFailed]:
        return [event for event in self.events if isinstance(event, HookFailed)]


@plugin
class Storage:
    """Routes as in `routes`, or to the recipient's own mailbox; `refusals` are by mailbox."""

    routes: dict[str, Local | Relay | None] = field(default_factory=dict)
    refusals: dict[str, Exception] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    @hookimpl
    def route(self, recipient: Recipient) -> Local | Relay | None:
        return self.routes.get(str(recipient.address), Local())

    @hookimpl
    def deliver(self, mailbox: Address) -> bool:
        self.asked.append(str(mailbox))
        if str(mailbox) in self.refusals:
            raise self.refusals[str(mailbox)]
        return True


@plugin
class Keeper:
    """Keeps the envelope of every message and its content as the client sent it."""

    envelopes: list[Envelope] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)

    @hookimpl
    def on_message(self, envelope: Envelope, message: Message) -> None:
        self.envelopes.append(envelope)
        with message.content.open() as content:
            self.contents.append(content.read())


@plugin
class OnlyUser:
    """Refuses every recipient whose name does not begin with `user`."""

    @hookimpl
    def on_rcpt(self, recipient: Recipient) -> None:
        if not recipient.address.local.lower().startswith("user"):
            raise Reject("no such user", enhanced="5.1.1")


@plugin
class Passwords:
    """Knows every user, each with the password `secret` or the token `t0ken`."""

    mechanisms: tuple[str, ...] = ("PLAIN", "LOGIN")

    @hookimpl
    def authenticate(self, credentials: Credentials) -> str | None:
        known = credentials.password == "secret" or credentials.token == "t0ken"  # noqa: S105
        return credentials.username if known else None


def passwords_and_tokens() -> Passwords:
    """Return a plugin that accepts tokens too."""
    return Passwords(mechanisms=("PLAIN", "LOGIN", "OAUTHBEARER"))
