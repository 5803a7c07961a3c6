"""Let rspamd check incoming mail over HTTP, and take the action that it returns."""

import logging
from dataclasses import field
from datetime import timedelta
from ipaddress import ip_address
from typing import Final, Literal

from minismtp import (
    ByteSize,
    Defer,
    Envelope,
    Finding,
    Message,
    Reject,
    RemoteError,
    Session,
    WebService,
    findings_of,
    hookimpl,
    plugin,
)

from ._checks import DnsCheck
from ._dns import local_networks, unmapped
from ._rspamd import RSPAMD, Answer, RspamdResult, edited, parse
from .reverse_dns import confirmed_name

__all__ = ["RSPAMD", "Rspamd", "RspamdResult"]

_log: Final = logging.getLogger(__name__)
_OK: Final = 200
_SPAM: Final = "X-Spam"
_NAMED: Final = 5  # symbols in a finding
_NOTHING_ELSE: Final = frozenset({"no action", "greylist", "add header", "rewrite subject"})


@plugin
class Rspamd(DnsCheck):
    """Refuse, defer, mark, quarantine or change each message as rspamd decides.

    `url` is that of rspamd's normal worker, and `password` is for a worker that needs one. "reject"
    refuses with 550 5.7.1 and "soft reject" defers with 451 4.7.1, both with rspamd's text for the
    client. "add header" adds `X-Spam: Yes`, or the fields of its settings; "rewrite subject",
    "quarantine" and "discard" do what they say. Fields that rspamd adds or removes are changed, and
    an X-Spam field of the sender is removed. "greylist" accepts the message, as with rspamd's own
    milter, because its greylisting returns "soft reject"; `greylist = "defer"` is for other setups.

    rspamd gets the envelope, and the peer's name if the DNS confirms it. The score is a finding for
    the plugin `score`. Messages of more than `largest` octets are not checked. Mail of users after
    a login is not checked, unless `users` is set; then rspamd is told the user, and may have
    settings for users. `patience` is for a whole request.
    """

    url: str = "http://127.0.0.1:11333/"
    password: str = field(default="", repr=False)
    greylist: Literal["accept", "defer"] = "accept"
    users: bool = False
    largest: ByteSize = ByteSize(26 * 1024 * 1024)
    patience: timedelta = timedelta(seconds=20)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.password.isprintable():
            raise ValueError("password: expected printable characters")
        self._local = local_networks()
        try:
            self._service = WebService(self.url.rstrip("/") + "/checkv2", timeout=self.patience)
        except ValueError as error:
            raise ValueError(f"url: {error}") from None

    @hookimpl
    def on_message(self, session: Session, envelope: Envelope, message: Message) -> None:
        """Ask rspamd, and take the action that it returns."""
        if session.login is not None and not self.users:
            return
        message.remove(_SPAM)
        if message.size > self.largest:
            _log.warning("not checked by rspamd: %d octets", message.size)
            return
        answer = self._ask(session, envelope, message)
        result = envelope.stash[RSPAMD] = answer.result
        worst = sorted(result.symbols, key=result.symbols.__getitem__, reverse=True)[:_NAMED]
        findings_of(envelope).append(Finding("rspamd", "score", result.score, ", ".join(worst)))
        fields = message.headers.raw_all()
        changed = edited(fields, answer)
        if changed != fields:
            message.edit(changed)
        self._act(answer, message)

    def _ask(self, session: Session, envelope: Envelope, message: Message) -> Answer:
        headers: dict[str, str | list[str]] = {
            "From": f"<{envelope.sender}>",
            "Rcpt": [f"<{recipient.address}>" for recipient in envelope.recipients],
            "Helo": session.helo,
            "Queue-Id": envelope.id,
            "MTA-Tag": "minismtp",
            "MTA-Name": session.hostname,
            "User": session.login or "",
            "Password": self.password,
        }
        if session.peer != "unix":
            address = unmapped(ip_address(session.peer))
            headers["IP"] = str(address)
            if not any(address in network for network in self._local):
                headers["Hostname"] = confirmed_name(session, self._resolver, self.patience / 4)
        if session.tls is not None:
            headers["TLS-Cipher"] = session.tls.cipher
            headers["TLS-Version"] = session.tls.version
        headers = {name: value for name, value in headers.items() if value}
        with message.open() as body:
            answer = self._service.request("POST", body, size=message.size, headers=headers)
        if answer.status != _OK:
            raise RemoteError(f"rspamd answers {answer.status} {answer.body[:200]!r}")
        return parse(answer.body)

    def _act(self, answer: Answer, message: Message) -> None:
        """Take the action after the changes of the header."""
        reason = answer.text or "message refused as spam"
        match answer.action:
            case "reject":
                raise Reject(reason)
            case "soft reject":
                raise Defer(answer.text or "try again later")
            case "greylist" if self.greylist == "defer":
                raise Defer(answer.text or "try again later")
            case "quarantine":
                message.quarantine(reason)
            case "discard":
                message.discard(reason)
            case action if action not in _NOTHING_ELSE:
                raise RemoteError(f"rspamd wants {action!r} done, an unknown action")
