"""The client's side of SMTP and LMTP, for plugins that hand mail on while its sender waits."""

import base64
import re
import ssl
from collections.abc import Sequence
from dataclasses import replace

from minismtp import Address, Envelope, Line, Message, Reject, RemoteError, converted, dotted

from ._said import Said

_LONGEST = 8192  # octets of a line; RFC 5321 section 4.5.3.1.5 has 512
_MOST_LINES = 100
_LINE = re.compile(rb"([2-5][0-5][0-9])(?:([ -])(.*))?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_UNPRINTABLE = re.compile(r"[^ -~]+")
_GREETING, _START_INPUT, _CONTINUE = 220, 354, 334
_PIECE = 65536


class Client:
    """One session with a server; `keywords` are the extensions that it has, in upper case.

    What the server does that makes no sense raises RemoteError, as its absence does.
    """

    def __init__(self, line: Line, name: str, *, lmtp: bool = False, secured: bool = False) -> None:
        """Talk over a connection to the server `name`; `secured` says that it is TLS already."""
        self.keywords: dict[str, str] = {}
        self._line = line
        self._name = name
        self._lmtp = lmtp
        self._secured = secured

    def greet(self, hostname: str) -> None:
        """Hear the greeting and say who we are."""
        self._demand(self._reply()[0], _GREETING)
        self.hello(hostname)

    def hello(self, hostname: str) -> None:
        """Say EHLO, or LHLO (RFC 2033), and take down the extensions."""
        self._put(f"{'LHLO' if self._lmtp else 'EHLO'} {hostname}")
        said, lines = self._reply()
        self._demand(said, 250)
        pairs = [line.upper().partition(" ") for line in lines[1:]]
        self.keywords = {keyword: parameters for keyword, _, parameters in pairs}

    def start_tls(self, context: ssl.SSLContext, host: str, hostname: str) -> None:
        """Go over to TLS (RFC 3207); there is no going on without."""
        if "STARTTLS" not in self.keywords:
            raise RemoteError(f"{self._name} does not offer STARTTLS")
        self._demand(self._ask("STARTTLS"), _GREETING)
        self._line.secure(context, host)
        self._secured = True
        self.hello(hostname)

    def log_in(self, username: str, password: str) -> None:
        """Log in by PLAIN (RFC 4616)."""
        if "PLAIN" not in self.keywords.get("AUTH", "").split():
            raise RemoteError(f"{self._name} offers no AUTH PLAIN")
        secret = base64.b64encode(f"\0{username}\0{password}".encode()).decode()
        said = self._ask(f"AUTH PLAIN {secret}")
        if not said.accepts:  # what it says may repeat the secret
            raise RemoteError(f"{self._name} refuses the login with {said.code} {said.enhanced}")

    def send(
        self, envelope: Envelope, message: Message, mailboxes: Sequence[Address]
    ) -> dict[Address, Said]:
        """Hand over a message, and return the reply for each mailbox.

        Raise Reject for what the server cannot take unharmed.
        """
        envelope, message = self._fitting(envelope, message)
        self._find_obstacle(envelope, message, mailboxes)
        said, *each = self._ask_all(
            self._mail(envelope, message), *(f"RCPT TO:<{_written(box)}>" for box in mailboxes)
        )
        if not said.accepts:
            return dict.fromkeys(mailboxes, said)
        answers = dict(zip(mailboxes, each, strict=True))
        taken = [box for box, answer in answers.items() if answer.accepts]
        if not taken:
            return answers
        binary = envelope.body == "BINARYMIME"
        if not binary:
            start = self._ask("DATA")
            if start.code != _START_INPUT:
                self._must_refuse(start)
                return answers | dict.fromkeys(taken, start)
        self._stream(message, binary=binary)
        last = self._reply()[0]
        for number, box in enumerate(taken):
            answers[box] = self._reply()[0] if number and self._lmtp else last
        self._put("QUIT")  # it owes us nothing any more, so nobody waits for the reply
        return answers

    def _fitting(self, envelope: Envelope, message: Message) -> tuple[Envelope, Message]:
        """Return a message that the server takes, 8-bit or binary parts encoded where they must be.

        Lines stay as long as they are: what is behind should see what the sender has signed.
        """
        binary, eight_bit = envelope.body == "BINARYMIME", "8BITMIME" in self.keywords
        if binary and self.keywords.keys() >= {"BINARYMIME", "CHUNKING"}:
            return envelope, message
        if not binary and (eight_bit or _is_ascii(message)):
            return envelope, message
        envelope = replace(envelope, body="8BITMIME" if eight_bit else "7BIT")
        return envelope, converted(message, eight_bit=eight_bit, binary=binary)

    def _mail(self, envelope: Envelope, message: Message) -> str:
        sender = envelope.reverse_path
        parts = [f"MAIL FROM:<{'' if sender is None else _written(sender)}>"]
        if "SIZE" in self.keywords:
            parts.append(f"SIZE={message.size}")
        if envelope.body != "7BIT" and "8BITMIME" in self.keywords:
            parts.append(f"BODY={envelope.body}")
        if envelope.smtputf8 and "SMTPUTF8" in self.keywords:
            parts.append("SMTPUTF8")
        if envelope.require_tls and not self._lmtp:
            parts.append("REQUIRETLS")
        return " ".join(parts)

    def _find_obstacle(
        self, envelope: Envelope, message: Message, mailboxes: Sequence[Address]
    ) -> None:
        """Raise Reject when the server lacks what this message needs."""
        limit = self.keywords.get("SIZE", "")
        if limit.isdecimal() and 0 < int(limit[:20]) < message.size:
            raise Reject("message too big for the next server", code=552, enhanced="5.3.4")
        if envelope.require_tls and not self._lmtp and not self._takes_over_tls():
            raise Reject("the next server has no REQUIRETLS", enhanced="5.7.30")
        if "SMTPUTF8" not in self.keywords:
            sender = [envelope.reverse_path] if envelope.reverse_path else []
            in_ascii = all(_written(address).isascii() for address in [*sender, *mailboxes])
            if envelope.smtputf8:
                in_ascii = in_ascii and b"".join(message.headers.raw_all()).isascii()
            if not in_ascii:
                raise Reject("the next server takes no SMTPUTF8", enhanced="5.6.7")

    def _takes_over_tls(self) -> bool:
        return self._secured and "REQUIRETLS" in self.keywords

    def _stream(self, message: Message, *, binary: bool) -> None:
        with message.open() as reader:
            if binary:
                self._put(f"BDAT {message.size} LAST")
                for piece in iter(lambda: reader.read(_PIECE), b""):
                    self._line.send(piece)
            else:
                for piece in dotted(reader):
                    self._line.send(piece)

    def _ask(self, command: str) -> Said:
        self._put(command)
        return self._reply()[0]

    def _ask_all(self, *commands: str) -> list[Said]:
        """Return the replies to commands, sent at once if the host offers that (RFC 2920)."""
        if "PIPELINING" not in self.keywords:
            return [self._ask(command) for command in commands]
        self._put(*commands)
        return [self._reply()[0] for _ in commands]

    def _put(self, *commands: str) -> None:
        self._line.send("".join(f"{command}\r\n" for command in commands).encode())

    def _reply(self) -> tuple[Said, list[str]]:
        """Read a reply; the text of each of its lines comes too."""
        lines: list[str] = []
        while len(lines) < _MOST_LINES:
            match = _LINE.fullmatch(self._line.read_until(b"\n", _LONGEST).removesuffix(b"\r"))
            if match is None:
                raise RemoteError(f"{self._name} gives no SMTP reply")
            text = (match[3] or b"").decode("utf-8", "replace")
            lines.append(_UNPRINTABLE.sub(" ", text.encode("ascii", "backslashreplace").decode()))
            if match[2] != b"-":
                return Said.of(int(match[1]), lines), lines
        raise RemoteError(f"{self._name} does not end its reply")

    def _demand(self, said: Said, code: int) -> None:
        if said.code != code:
            raise RemoteError(f"{self._name} says {said.code} {said.enhanced} {said.text}")

    def _must_refuse(self, said: Said) -> None:
        if said.code // 100 not in (4, 5):
            raise RemoteError(f"{self._name} is out of step: {said.code} {said.text}")


def _written(address: Address) -> str:
    """Return an address for a command, its domain with A-labels where that makes it ASCII."""
    if _CONTROL.search(str(address)):
        raise Reject("address with control characters", code=553, enhanced="5.1.3")
    return str(address if address.is_ascii else Address(address.local, address.ascii_domain))


def _is_ascii(message: Message) -> bool:
    with message.open() as reader:
        return all(piece.isascii() for piece in iter(lambda: reader.read(_PIECE), b""))
