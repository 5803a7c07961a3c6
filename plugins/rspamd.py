"""Have rspamd judge incoming mail, over HTTP, and do what it says."""

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
    ServerInfo,
    Session,
    WebService,
    findings_of,
    hookimpl,
    plugin,
)

from ._client_name import confirmed_name
from ._dns import local_networks, unmapped
from ._options import check_time
from ._rspamd import RSPAMD, Answer, RspamdResult, edited, parse

__all__ = ["RSPAMD", "Rspamd", "RspamdResult"]

_log: Final = logging.getLogger(__name__)
_OK: Final = 200
_SPAM: Final = "X-Spam"
_NAMED: Final = 5  # symbols in a finding
_NOTHING_ELSE: Final = frozenset({"no action", "greylist", "add header", "rewrite subject"})


@plugin
class Rspamd:
    """Do with each message what rspamd decides: refuse, defer, mark, set aside, change its header.

    `url` is that of rspamd's normal worker; `password` is sent where it wants one. "reject" refuses
    with 550 5.7.1 and "soft reject" defers with 451 4.7.1, both with the text that rspamd has for
    the client; "add header" adds `X-Spam: Yes`, or what its settings say; "rewrite subject",
    "quarantine" and "discard" are done. Fields that rspamd adds or removes are changed, and X-Spam
    that a message has come with goes. "greylist" takes the message, as with rspamd's own milter:
    its greylisting says "soft reject"; `greylist = "defer"` is for one that is set up otherwise.

    Beside the envelope, rspamd is told the peer's name, when the DNS confirms it. The score is left
    as a finding for the plugin `score`. Messages of more than `largest` octets are not judged. Mail
    of users who have logged in is left alone, unless `users` is set: then rspamd is told who they
    are, and may judge them by settings of their own. `patience` is for a whole request.
    """

    url: str = "http://127.0.0.1:11333/"
    password: str = field(default="", repr=False)
    greylist: Literal["accept", "defer"] = "accept"
    users: bool = False
    largest: ByteSize = ByteSize(26 * 1024 * 1024)
    patience: timedelta = timedelta(seconds=20)

    def __post_init__(self) -> None:
        check_time("patience", self.patience)
        if not self.password.isprintable():
            raise ValueError("password: expected printable characters")
        try:
            self._service = WebService(self.url.rstrip("/") + "/checkv2", timeout=self.patience)
        except ValueError as error:
            raise ValueError(f"url: {error}") from None

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Remember whom to ask for the names of peers."""
        self._resolver = server.resolver

    @hookimpl
    def on_message(self, session: Session, envelope: Envelope, message: Message) -> None:
        """Ask rspamd, and do what it says."""
        if session.login is not None and not self.users:
            return
        message.remove(_SPAM)
        if message.size > self.largest:
            _log.warning("not judged: %d octets", message.size)
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
            if not any(address in network for network in local_networks()):
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
        """Do what is to be done beside changes of the header."""
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
                raise RemoteError(f"rspamd wants {action!r} done, which nobody knows how to do")
