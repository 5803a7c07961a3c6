"""Let SpamAssassin check incoming mail, by its daemon spamd.

The message is streamed to spamd, which answers with a score and the names of the tests that matched
(SYMBOLS). This plugin writes the fields, so spamd need not return the message.
"""

import logging
import re
from dataclasses import dataclass
from datetime import timedelta
from email.utils import formatdate
from ipaddress import ip_address
from typing import BinaryIO, Final

from minismtp import (
    ByteSize,
    Envelope,
    Finding,
    Line,
    Message,
    Remote,
    RemoteError,
    Resolver,
    Session,
    SocketAddress,
    StashKey,
    findings_of,
    hookimpl,
    plugin,
)

from ._checks import DnsCheck
from ._dns import unmapped
from ._options import check_placeholders, check_thresholds
from .reverse_dns import LOCALHOST, confirmed_name
from .score import act_on_score, mark, remove_marks

_log: Final = logging.getLogger(__name__)
_PIECE: Final = 65536
_ANSWER: Final = 65536  # octets
_STATUS: Final = re.compile(r"SPAMD/[0-9.]+ 0 [^\r\n]*(?:\r\n|\Z)")
_NUMBER: Final = r"(-?[0-9]{1,9}(?:\.[0-9]{1,9})?)"
_SPAM: Final = re.compile(
    rf"^Spam: *(True|False) *; *{_NUMBER} */ *{_NUMBER} *\r?$", re.MULTILINE | re.IGNORECASE
)
_LENGTH: Final = re.compile(r"^Content-length: *([0-9]{1,6}) *\r?$", re.MULTILINE | re.IGNORECASE)
_TEST: Final = re.compile(r"[A-Za-z0-9_]{1,80}")
_NO_HOST: Final = re.compile(r"[^A-Za-z0-9._:\[\]-]")
# Text anywhere in the field that spamd would take for the HELO name, a login or the sender.
_FALSE_WORD: Final = re.compile(r"(helo|ident|auth|from|sender|path)=", re.IGNORECASE)
_FALSE_END: Final = re.compile(r"(lo|from|sender|path:?|ident|auth)\Z", re.IGNORECASE)
_NO_WORD: Final = re.compile(r"[^!#-'*-;=?-~]")  # characters that would end the word or the comment
_OURS: Final = re.compile(rb"^Received:[^\n]*+\n(?:[ \t][^\n]*+\n)*+", re.MULTILINE | re.IGNORECASE)
_USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=@-]{0,200}")


@dataclass(frozen=True, slots=True)
class SpamassassinResult:
    """spamd's result for a message; `required` is its own threshold for spam."""

    spam: bool
    score: float
    required: float
    tests: tuple[str, ...]


#: The result of an envelope's message; it is missing if spamd was not asked.
SPAMASSASSIN: Final[StashKey[SpamassassinResult]] = StashKey()


@plugin
class Spamassassin(DnsCheck):
    """Mark, quarantine or refuse mail by its score from SpamAssassin.

    `address` is where spamd listens. The topmost fields of the message that it gets have the
    client's address and HELO, its name if the DNS confirms it, and the reverse-path. Every checked
    message gets the fields X-Spam-Status and X-Spam-Score, and X-Spam-Flag from the score `tag` on
    (by default the threshold in spamd's own configuration). Such fields of the sender are removed.
    From `quarantine` on a message is quarantined, from `reject` on refused with 550 5.7.1; `""`
    turns either off. The score is a finding for the plugin `score`.

    `user` is the user whose preferences spamd uses: a name, or {local}, {domain} or {address} of
    the mailbox. For a message to several users no preferences are used. Messages of more than
    `largest` octets are not checked, nor is mail of users after a login. `patience` is for the
    whole exchange.
    """

    address: SocketAddress = SocketAddress("127.0.0.1", 783)
    tag: float | None = None
    quarantine: float | None = None
    reject: float | None = 15.0
    user: str = ""
    largest: ByteSize = ByteSize(512 * 1024)
    patience: timedelta = timedelta(seconds=30)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_thresholds(tag=self.tag, quarantine=self.quarantine, reject=self.reject)
        check_placeholders("user", self.user, ("local", "domain", "address"))
        self._resolver = Resolver()
        self._spamd = Remote(self.address, timeout=self.patience)

    @hookimpl
    def on_message(self, session: Session, envelope: Envelope, message: Message) -> None:
        """Ask spamd, and take the action for the score."""
        if session.login is not None:
            return
        remove_marks(message)
        head = self._head(session, envelope, message)
        size = len(head) + message.content.size
        if size > self.largest:
            _log.info("not checked by spamd: %d octets", size)
            return
        with self._spamd.connect() as line, message.content.open(head) as reader:
            result = _ask(line, reader, size, self._user_of(envelope))
        envelope.stash[SPAMASSASSIN] = result
        finding = Finding("spamassassin", "score", result.score, ", ".join(result.tests))
        findings_of(envelope).append(finding)
        required = result.required if self.tag is None else self.tag
        spam = result.spam if self.tag is None else result.score >= self.tag
        mark(message, spam=spam, score=result.score, required=required, tests=result.tests)
        text = "message refused as spam"
        act_on_score(message, result.score, text, quarantine=self.quarantine, reject=self.reject)

    def _head(self, session: Session, envelope: Envelope, message: Message) -> bytes:
        """Return the fields above the content, with a trace field that spamd can read.

        Its rules for the client's name and for SPF read the topmost Received field in the format of
        sendmail and Postfix, so this is the one that SpamAssassin's milter sends.
        """
        name = confirmed_name(session, self._resolver, self.patience / 4)
        client = LOCALHOST if session.peer == "unix" else name or "unknown"
        address = "127.0.0.1" if session.peer == "unix" else str(unmapped(ip_address(session.peer)))
        literal = f"IPv6:{address}" if ":" in address else address
        helo = _FALSE_END.sub(r"\1?", _NO_HOST.sub("?", session.helo)) or "unknown"
        sender = _FALSE_WORD.sub(r"\1-", _NO_WORD.sub("?", envelope.sender))
        fields = (
            f"X-Envelope-From: <{sender}>\r\n"
            f"Received: from {helo} ({client} [{literal}])\r\n"
            f"\tby {session.hostname} (minismtp) with {session.protocol} id {envelope.id}\r\n"
            f"\t(envelope-from <{sender}>);\r\n"
            f"\t{formatdate(envelope.arrived)}\r\n"
        )
        return fields.encode() + _OURS.sub(b"", message.prefix, count=1)

    def _user_of(self, envelope: Envelope) -> str:
        """Return the user whose preferences count, "" for no user."""
        users = {
            self.user.format(local=box.local, domain=box.ascii_domain, address=box)
            for recipient in envelope.recipients
            for box in recipient.mailboxes or (recipient.address,)
        }
        user = users.pop() if len(users) == 1 else ""
        return user if _USER.fullmatch(user) else ""


def _ask(line: Line, reader: BinaryIO, size: int, user: str) -> SpamassassinResult:
    """Return spamd's result for a message of `size` octets. Raise RemoteError."""
    field = f"User: {user}\r\n" if user else ""
    line.send(f"SYMBOLS SPAMC/1.5\r\n{field}Content-length: {size}\r\n\r\n".encode())
    for piece in iter(lambda: reader.read(_PIECE), b""):
        line.send(piece)
    head = line.read_until(b"\r\n\r\n", _ANSWER).decode("latin-1")
    spam, length = _SPAM.search(head), _LENGTH.search(head)
    if not _STATUS.match(head) or spam is None or length is None or int(length[1]) > _ANSWER:
        raise RemoteError(f"spamd answers {head[:200]!r}")
    tests = _TEST.findall(line.read(int(length[1])).decode("latin-1"))
    return SpamassassinResult(
        spam[1].lower() == "true", float(spam[2]), float(spam[3]), tuple(tests)
    )
