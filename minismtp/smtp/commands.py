"""SMTP commands as values, and the parser that makes them (layer 1).

`parse` either gives a command or raises `CommandProblem` with the reply; nothing else comes out of
it, whatever the line (the fuzz tests hold it to that).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final, TypeAlias

from minismtp.address import Address
from minismtp.reply import Reply
from minismtp.smtp.grammar import (
    SyntaxProblem,
    decode_xtext,
    parse_forward_path,
    parse_helo,
    parse_parameters,
    parse_reverse_path,
    split_words,
)


class CommandProblem(Exception):  # noqa: N818 - carries the answer
    """A line that is no valid command: `reply` says so, `verb` is what it seemed to be."""

    def __init__(self, verb: str, reply: Reply) -> None:
        super().__init__(str(reply))
        self.verb = verb
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Ehlo:
    """Greet and ask for extensions (RFC 5321 section 4.1.1.1)."""

    verb: ClassVar[str] = "EHLO"
    name: str


@dataclass(frozen=True, slots=True)
class Helo:
    """Greet without extensions (RFC 5321 section 4.1.1.1)."""

    verb: ClassVar[str] = "HELO"
    name: str


@dataclass(frozen=True, slots=True)
class Lhlo:
    """Greet a local delivery server (RFC 2033 section 4.1)."""

    verb: ClassVar[str] = "LHLO"
    name: str


@dataclass(frozen=True, slots=True)
class Mail:
    """Begin a transaction (RFC 5321 section 4.1.1.2).

    `size` in octets (RFC 1870), `body` 7BIT, 8BITMIME or BINARYMIME (RFC 6152, 3030), `submitter`
    the AUTH= parameter decoded (RFC 4954 section 5), `dsn_return` FULL or HDRS and `dsn_id` ENVID
    decoded (RFC 3461).
    """

    verb: ClassVar[str] = "MAIL"
    reverse_path: Address | None
    size: int | None = None
    body: str = "7BIT"
    smtputf8: bool = False
    submitter: str = ""
    dsn_return: str = ""
    dsn_id: str = ""
    require_tls: bool = False


@dataclass(frozen=True, slots=True)
class Rcpt:
    """Name one recipient (RFC 5321 section 4.1.1.3), with its DSN wishes (RFC 3461 section 4)."""

    verb: ClassVar[str] = "RCPT"
    forward_path: Address
    notify: frozenset[str] = frozenset()
    original: str = ""


@dataclass(frozen=True, slots=True)
class Data:
    """Announce dot-stuffed content (RFC 5321 section 4.1.1.4)."""

    verb: ClassVar[str] = "DATA"


@dataclass(frozen=True, slots=True)
class Bdat:
    """Announce a chunk of `size` octets, the `last` or not (RFC 3030 section 2)."""

    verb: ClassVar[str] = "BDAT"
    size: int
    last: bool


@dataclass(frozen=True, slots=True)
class Rset:
    """Drop the transaction (RFC 5321 section 4.1.1.5)."""

    verb: ClassVar[str] = "RSET"


@dataclass(frozen=True, slots=True)
class Noop:
    """Ask for a reply (RFC 5321 section 4.1.1.9)."""

    verb: ClassVar[str] = "NOOP"


@dataclass(frozen=True, slots=True)
class Quit:
    """Leave (RFC 5321 section 4.1.1.10)."""

    verb: ClassVar[str] = "QUIT"


@dataclass(frozen=True, slots=True)
class StartTls:
    """Ask for TLS (RFC 3207 section 4)."""

    verb: ClassVar[str] = "STARTTLS"


@dataclass(frozen=True, slots=True)
class Auth:
    """Begin an authentication exchange; `initial` is the initial response as sent (RFC 4954)."""

    verb: ClassVar[str] = "AUTH"
    mechanism: str
    initial: bytes | None


@dataclass(frozen=True, slots=True)
class Other:
    """VRFY, EXPN, HELP, or a verb that the server does not know: `verb` and its `argument`."""

    verb: str
    argument: str


Command: TypeAlias = (
    Ehlo | Helo | Lhlo | Mail | Rcpt | Data | Bdat | Rset | Noop | Quit | StartTls | Auth | Other
)

#: What a line may be long in octets with its CRLF: 512 (RFC 5321 section 4.5.3.1.4) and what the
#: extensions add: SIZE 26, BODY 17, AUTH 500, SMTPUTF8 10, ENVID and RET 116, REQUIRETLS 11 to
#: MAIL; NOTIFY 28 and ORCPT 500 to RCPT; AUTH 12288 (RFC 1870, 6152, 4954, 6531, 3461, 8689).
LINE_LIMIT: Final = 512
LINE_LIMITS: Final = {
    "MAIL": 512 + 26 + 17 + 500 + 10 + 116 + 11,
    "RCPT": 512 + 28 + 500,
    "AUTH": 12288,
}
LONGEST_LINE: Final = 12288

_HTTP: Final = frozenset({"GET", "POST", "PUT", "CONNECT", "DELETE", "OPTIONS", "PATCH", "TRACE"})
_SIZE_DIGITS: Final = 20  # size-value = 1*20DIGIT, RFC 1870 section 3; chunk-size likewise
_ENVID_LIMIT: Final = 100  # octets, RFC 3461 section 4.4
_ORCPT_LIMIT: Final = 500  # octets, RFC 3461 section 4.2
_NOTIFY: Final = frozenset({"SUCCESS", "FAILURE", "DELAY"})


def parse(line: bytes) -> Command:
    """Read one command line without its CRLF; raises CommandProblem."""
    word, _, rest = line.partition(b" ")
    name = word.decode("ascii", "replace").upper()
    verb = name if name in _PARSERS else "OTHER"
    if len(line) + 2 > LINE_LIMITS.get(verb, LINE_LIMIT):
        raise CommandProblem(verb, Reply(500, "line too long", "5.5.2"))
    try:
        argument = rest.decode("utf-8")
    except UnicodeDecodeError:
        raise CommandProblem(verb, Reply(501, "command is not UTF-8", "5.5.2")) from None
    if not line.isascii() and verb == "OTHER" and not word.isascii():
        raise CommandProblem(verb, Reply(500, "command not recognized", "5.5.2"))
    if any(c < " " or c == "\x7f" for c in argument if c != "\t") or not name.isprintable():
        raise CommandProblem(verb, Reply(501, "control character in command", "5.5.2"))
    try:
        parser = _PARSERS.get(verb)
        return parser(argument) if parser else _other(name, argument)
    except SyntaxProblem as problem:
        # RFC 2034 section 4: no enhanced code in a reply to EHLO or HELO.
        enhanced = "" if verb in {"EHLO", "HELO", "LHLO"} else "5.5.4"
        raise CommandProblem(verb, Reply(501, str(problem), enhanced)) from None


def _mail(text: str) -> Mail:
    argument = _after("FROM:", text)
    try:
        address, rest = parse_reverse_path(argument)
    except SyntaxProblem as problem:
        raise CommandProblem("MAIL", Reply(501, f"sender: {problem}", "5.1.7")) from None
    if not rest.strip(" "):
        _check_utf8("MAIL", address, smtputf8=False)
        return Mail(address)
    parameters = _parameters(rest)
    command = Mail(
        address,
        size=_size(parameters),
        body=_one_of(parameters, "BODY", ("7BIT", "8BITMIME", "BINARYMIME")) or "7BIT",
        smtputf8=_flag(parameters, "SMTPUTF8"),
        submitter=_submitter(parameters),
        dsn_return=_one_of(parameters, "RET", ("FULL", "HDRS")),
        dsn_id=_xtext(parameters, "ENVID", _ENVID_LIMIT),
        require_tls=_flag(parameters, "REQUIRETLS"),
    )
    _none_left("MAIL", parameters)
    _check_utf8("MAIL", address, smtputf8=command.smtputf8)
    return command


def _rcpt(text: str) -> Rcpt:
    argument = _after("TO:", text)
    try:
        address, rest = parse_forward_path(argument)
    except SyntaxProblem as problem:
        raise CommandProblem("RCPT", Reply(501, f"recipient: {problem}", "5.1.3")) from None
    if not rest.strip(" "):
        return Rcpt(address)
    parameters = _parameters(rest)
    command = Rcpt(address, notify=_notify(parameters), original=_original(parameters))
    _none_left("RCPT", parameters)
    return command


def _after(prefix: str, text: str) -> str:
    """Give what follows FROM: or TO:; blanks after the colon are wrong but common, so they pass."""
    if text[: len(prefix)].upper() != prefix:
        raise SyntaxProblem(f"expected {prefix}<address>")
    return text[len(prefix) :].lstrip(" ")


def _parameters(rest: str) -> dict[str, str | None]:
    if not rest.startswith(" "):
        raise SyntaxProblem("expected a blank after the address")
    return parse_parameters(rest)


def _none_left(verb: str, parameters: dict[str, str | None]) -> None:
    for keyword in parameters:
        # RFC 5321 section 4.1.1.11
        raise CommandProblem(verb, Reply(555, f"parameter {keyword} not recognized", "5.5.4"))


def _check_utf8(verb: str, address: Address | None, *, smtputf8: bool) -> None:
    if address is not None and not smtputf8 and not address.is_ascii:
        # RFC 6531 section 3.5
        raise CommandProblem(verb, Reply(553, "address needs SMTPUTF8", "5.6.7"))


def _flag(parameters: dict[str, str | None], keyword: str) -> bool:
    if keyword not in parameters:
        return False
    if parameters.pop(keyword) is not None:
        raise SyntaxProblem(f"{keyword} takes no value")
    return True


def _value(parameters: dict[str, str | None], keyword: str) -> str | None:
    if keyword not in parameters:
        return None
    value = parameters.pop(keyword)
    if value is None:
        raise SyntaxProblem(f"{keyword} needs a value")
    return value


def _size(parameters: dict[str, str | None]) -> int | None:
    value = _value(parameters, "SIZE")
    return None if value is None else _number("SIZE", value)


def _number(what: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _SIZE_DIGITS):
        raise SyntaxProblem(f"{what} needs a number of octets")
    return int(text)


def _one_of(parameters: dict[str, str | None], keyword: str, allowed: tuple[str, ...]) -> str:
    value = _value(parameters, keyword)
    if value is None:
        return ""
    if value.upper() not in allowed:
        raise SyntaxProblem(f"{keyword} is one of {', '.join(allowed)}")
    return value.upper()


def _xtext(parameters: dict[str, str | None], keyword: str, limit: int) -> str:
    value = _value(parameters, keyword)
    if value is None:
        return ""
    if len(value) > limit:
        raise SyntaxProblem(f"{keyword} longer than {limit} octets")
    return decode_xtext(value)


def _submitter(parameters: dict[str, str | None]) -> str:
    value = _value(parameters, "AUTH")
    return "" if value in {None, "<>"} else decode_xtext(value or "")


def _notify(parameters: dict[str, str | None]) -> frozenset[str]:
    value = _value(parameters, "NOTIFY")
    if value is None:
        return frozenset()
    wishes = value.upper().split(",")
    if wishes == ["NEVER"]:
        return frozenset(wishes)
    if len(set(wishes)) != len(wishes) or not _NOTIFY.issuperset(wishes):
        raise SyntaxProblem("NOTIFY is NEVER or a list of SUCCESS, FAILURE, DELAY")
    return frozenset(wishes)


def _original(parameters: dict[str, str | None]) -> str:
    value = _value(parameters, "ORCPT")
    if value is None:
        return ""
    kind, semicolon, _ = value.partition(";")
    if not semicolon or not kind or len(value) > _ORCPT_LIMIT:
        raise SyntaxProblem("ORCPT is an address type, a semicolon and an address in xtext")
    # RFC 6533 section 3: utf-8 addresses have an encoding of their own, kept as sent.
    if kind.lower() != "utf-8":
        decode_xtext(value.partition(";")[2])
    return value


def _bdat(text: str) -> Bdat:
    words = split_words(text)
    if len(words) not in {1, 2} or (len(words) == 2 and words[1].upper() != "LAST"):  # noqa: PLR2004
        raise SyntaxProblem("expected BDAT size [LAST]")
    return Bdat(_number("BDAT", words[0]), last=len(words) > 1)


def _auth(text: str) -> Auth:
    words = split_words(text)
    if len(words) not in {1, 2}:
        raise SyntaxProblem("expected AUTH mechanism [initial-response]")
    return Auth(words[0].upper(), words[1].encode() if len(words) > 1 else None)


def _other(verb: str, argument: str) -> Other:
    if verb in _HTTP or verb.startswith("HTTP/"):
        # No mail client speaks so: somebody's browser is being used against us.
        raise CommandProblem("OTHER", Reply(421, "this is not a web server", "4.7.0"))
    if verb in {"VRFY", "EXPN"} and not argument.strip():
        raise CommandProblem(verb, Reply(501, f"{verb} needs an argument", "5.5.4"))
    return Other(verb, argument)


def _bare(command: Command) -> Callable[[str], Command]:
    def parser(argument: str) -> Command:
        if argument.strip():
            raise SyntaxProblem(f"{command.verb} takes no argument")
        return command

    return parser


_PARSERS: Final[dict[str, Callable[[str], Command]]] = {
    "EHLO": lambda text: Ehlo(parse_helo(text)),
    "HELO": lambda text: Helo(parse_helo(text)),
    "LHLO": lambda text: Lhlo(parse_helo(text)),
    "MAIL": _mail,
    "RCPT": _rcpt,
    "DATA": _bare(Data()),
    "BDAT": _bdat,
    "RSET": _bare(Rset()),
    "NOOP": lambda _: Noop(),
    "QUIT": _bare(Quit()),
    "STARTTLS": _bare(StartTls()),
    "AUTH": _auth,
    "VRFY": lambda text: _other("VRFY", text),
    "EXPN": lambda text: _other("EXPN", text),
    "HELP": lambda text: _other("HELP", text),
}
