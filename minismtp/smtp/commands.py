"""SMTP commands as values, and the parser that makes them.

For any line `parse` either returns a command or raises `CommandProblem`, which carries the reply.
The fuzz tests prove that it raises nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, TypeAlias

from msgspec import Struct

from minismtp.smtp.grammar import (
    SyntaxProblem,
    decode_xtext,
    parse_helo,
    parse_original_recipient,
    parse_parameters,
    parse_path,
    split_words,
)
from minismtp.values.address import Address
from minismtp.values.reply import Reply


class CommandProblem(Exception):  # noqa: N818 - carries the answer
    """A line that is not a valid command. `reply` answers it; `verb` is what it resembles."""

    def __init__(self, verb: str, reply: Reply) -> None:
        super().__init__(str(reply))
        self.verb = verb
        self.reply = reply


class Greeting(Struct, frozen=True):
    """EHLO, HELO (RFC 5321 section 4.1.1.1) or LHLO (RFC 2033 section 4.1): a client's name."""

    verb: str
    name: str


class Mail(Struct, frozen=True):
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


class Rcpt(Struct, frozen=True):
    """Name one recipient (RFC 5321 section 4.1.1.3), with its DSN wishes (RFC 3461 section 4)."""

    verb: ClassVar[str] = "RCPT"
    forward_path: Address
    notify: frozenset[str] = frozenset()
    original: str = ""


class Data(Struct, frozen=True):
    """Announce dot-stuffed content (RFC 5321 section 4.1.1.4)."""

    verb: ClassVar[str] = "DATA"


class Bdat(Struct, frozen=True):
    """Announce a chunk of `size` octets, the `last` or not (RFC 3030 section 2)."""

    verb: ClassVar[str] = "BDAT"
    size: int
    last: bool


class Rset(Struct, frozen=True):
    """Drop the transaction (RFC 5321 section 4.1.1.5)."""

    verb: ClassVar[str] = "RSET"


class Noop(Struct, frozen=True):
    """Ask for a reply (RFC 5321 section 4.1.1.9)."""

    verb: ClassVar[str] = "NOOP"


class Quit(Struct, frozen=True):
    """Leave (RFC 5321 section 4.1.1.10)."""

    verb: ClassVar[str] = "QUIT"


class StartTls(Struct, frozen=True):
    """Ask for TLS (RFC 3207 section 4)."""

    verb: ClassVar[str] = "STARTTLS"


class Auth(Struct, frozen=True):
    """Begin an authentication exchange; `initial` is the initial response as sent (RFC 4954)."""

    verb: ClassVar[str] = "AUTH"
    mechanism: str
    initial: bytes | None


class Other(Struct, frozen=True):
    """VRFY, EXPN, HELP, or a verb that the server does not know: `verb` and its `argument`."""

    verb: str
    argument: str


Command: TypeAlias = (
    Greeting | Mail | Rcpt | Data | Bdat | Rset | Noop | Quit | StartTls | Auth | Other
)

#: How long a line may be in octets with its CRLF. RFC 5321 section 4.5.3.1.4 asks for at least 512,
#: and extensions of a verb for more (RFC 1870, 6152, 4954, 6531, 3461, 8689). The limits are higher
#: here, because local parts of up to 512 octets are taken.
LINE_LIMIT: Final = 2048
LONGEST_LINE: Final = 12288  # RFC 4954 section 4, for AUTH and its responses
_SHORT: Final = 510  # octets without CRLF that each limit allows
LINE_LIMITS: Final = {"MAIL": 4096, "RCPT": 4096, "BDAT": 512, "AUTH": LONGEST_LINE}

_VERB = re.compile(r"[A-Z0-9_-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROL_OF_ASCII = re.compile(r"[\x00-\x1f\x7f]")
GREETINGS: Final = frozenset({"EHLO", "HELO", "LHLO"})
_HTTP: Final = frozenset(
    {"GET", "HEAD", "POST", "PUT", "CONNECT", "DELETE", "OPTIONS", "PATCH", "TRACE"}
)


def parse(line: bytes) -> Command:
    """Read one command line without its CRLF. Raise CommandProblem."""
    # White space before CRLF is tolerated (RFC 5321 section 4.1.1); before a verb it is common too.
    text = line
    if b"\t" in line or line[:1] == b" " or line[-1:] == b" ":
        text = line.replace(b"\t", b" ").strip(b" ")
    word, _, rest = text.partition(b" ")
    verb, parser = _VERBS[word] if word in _VERBS else _VERBS.get(word.upper(), _UNKNOWN)
    if line[_SHORT:] and len(line) + 2 > LINE_LIMITS.get(verb, LINE_LIMIT):
        # RFC 4954 section 6: an authentication line has a code of its own.
        enhanced = "5.5.6" if verb == "AUTH" else "5.5.2"
        raise CommandProblem(verb, Reply(500, "line too long", enhanced))
    if not rest and verb in _ALONE:
        return _ALONE[verb]
    if verb == "BDAT" and text != line.rstrip(b" \t"):
        # A proxy in front of us must count the same octets, so only one spelling is taken.
        raise CommandProblem(verb, Reply(501, "expected BDAT size [LAST]", "5.5.4"))
    name = _unknown_verb(word) if verb == "OTHER" else verb
    try:
        argument = rest.decode()
    except UnicodeDecodeError:
        if verb not in GREETINGS:
            raise CommandProblem(verb, Reply(501, "command is not UTF-8", "5.5.2")) from None
        argument = rest.decode("latin-1")  # any name of a computer is taken, see parse_helo
    if not argument.isprintable():
        control = _CONTROL_OF_ASCII if verb in GREETINGS else _CONTROL
        if control.search(argument):
            raise CommandProblem(verb, Reply(501, "control character in command", "5.5.2"))
    try:
        return parser(name, argument)
    except SyntaxProblem as problem:
        raise CommandProblem(verb, Reply(501, str(problem), "5.5.4")) from None


def _unknown_verb(word: bytes) -> str:
    """Return a verb that the parser does not know. Raise CommandProblem if it cannot be one."""
    name = word.decode("ascii", "replace").upper()
    if name in _HTTP or name.startswith("HTTP/"):
        # A web page makes its visitor's browser send us commands.
        raise CommandProblem("OTHER", Reply(421, "this is not a web server", "4.7.0"))
    if not _VERB.fullmatch(name):
        raise CommandProblem("OTHER", Reply(500, "command not recognized", "5.5.2"))
    return name


def _greeting(verb: str, argument: str) -> Greeting:
    return Greeting(verb, parse_helo(argument))


def _mail(verb: str, argument: str) -> Mail:
    path, rest = _path(verb, argument)
    command = Mail(path, **_values(verb, rest, _MAIL_PARAMETERS)) if rest else Mail(path)
    if path is not None and not command.smtputf8 and not path.is_ascii:
        # RFC 6531 section 3.5
        raise CommandProblem(verb, Reply(553, "address needs SMTPUTF8", "5.6.7"))
    return command


def _rcpt(verb: str, argument: str) -> Rcpt:
    path, rest = _path(verb, argument)
    if path is None:
        raise CommandProblem(verb, Reply(501, "recipient: expected an address", "5.1.3"))
    return Rcpt(path, **_values(verb, rest, _RCPT_PARAMETERS)) if rest else Rcpt(path)


# Blanks beside the colon are common.
_FROM: Final = re.compile(r" *FROM *: *", re.IGNORECASE)
_TO: Final = re.compile(r" *TO *: *", re.IGNORECASE)
#: For each verb: the usual text before its path, where the path begins, what takes other texts
#: there, whose path it is, and the code for a malformed one.
_PATHS: Final = {
    "MAIL": ("FROM:<", 5, _FROM.match, "sender", "5.1.7"),
    "RCPT": ("TO:<", 3, _TO.match, "recipient", "5.1.3"),
}


def _path(verb: str, argument: str) -> tuple[Address | None, str]:
    """Return the path of MAIL or RCPT and the parameters. Raise SyntaxProblem, CommandProblem."""
    usual, start, matched, whose, enhanced = _PATHS[verb]
    if argument[: start + 1] != usual:
        prefix = matched(argument)
        if prefix is None or prefix.end() == len(argument):
            raise SyntaxProblem(f"expected {usual}address>")
        start = prefix.end()
    try:
        return parse_path(argument, start)
    except SyntaxProblem as problem:
        raise CommandProblem(verb, Reply(501, f"{whose}: {problem}", enhanced)) from None


#: KEYWORD -> the field it sets, and the reader of its value, or None if it takes no value.
_Parameters: TypeAlias = Mapping[str, tuple[str, Callable[[str], object] | None]]


def _values(verb: str, rest: str, known: _Parameters) -> dict[str, Any]:
    """Read the parameters after a path into the fields that they set."""
    if rest[0] != " ":
        raise SyntaxProblem("expected a blank after the address")
    values: dict[str, object] = {}
    parameters = parse_parameters(rest)
    for keyword in parameters:
        if keyword not in known:
            # RFC 5321 section 4.1.1.11
            raise CommandProblem(verb, Reply(555, f"parameter {keyword} not recognized", "5.5.4"))
        value, (field, reader) = parameters[keyword], known[keyword]
        if reader is None and value is None:
            values[field] = True
        elif reader is None or value is None:
            raise SyntaxProblem(f"{keyword} takes {'a' if reader else 'no'} value")
        else:
            values[field] = reader(value)
    return values


def _one_of(*allowed: str) -> Callable[[str], str]:
    def reader(value: str) -> str:
        if value.upper() not in allowed:
            raise SyntaxProblem(f"expected one of {', '.join(allowed)}")
        return value.upper()

    return reader


# size-value = 1*20DIGIT, RFC 1870 section 3; chunk-size = 1*DIGIT, RFC 3030 section 2
_NUMBER = re.compile(r"[0-9]{1,20}")


def _octets(value: str) -> int:
    if not _NUMBER.fullmatch(value):
        raise SyntaxProblem("expected a number of octets")
    return int(value)


def _submitter(value: str) -> str:
    """Read AUTH=. Return "" for a submitter who is not authenticated (RFC 4954 section 5)."""
    mailbox = decode_xtext(value)
    return "" if mailbox == "<>" else mailbox


_ENVID_LIMIT: Final = 500  # octets; the 100 of RFC 3461 section 4.4 bind the client


def _envelope_id(value: str) -> str:
    if len(value) > _ENVID_LIMIT:
        raise SyntaxProblem(f"ENVID longer than {_ENVID_LIMIT} octets")
    identifier = decode_xtext(value)
    if not identifier.isascii():
        raise SyntaxProblem("xtext of what is not ASCII")
    return identifier


_NOTIFY: Final = frozenset({"SUCCESS", "FAILURE", "DELAY"})


def _notify(value: str) -> frozenset[str]:
    """Read NOTIFY (RFC 3461 section 4.1). Repeated words and superfluous commas are ignored."""
    wishes = frozenset(value.upper().split(",")) - {""}
    if not wishes or (wishes != {"NEVER"} and not wishes <= _NOTIFY):
        raise SyntaxProblem("NOTIFY is NEVER or a list of SUCCESS, FAILURE, DELAY")
    return wishes


def _bdat(_: str, text: str) -> Bdat:
    match split_words(text):
        case [size]:
            return Bdat(_octets(size), last=False)
        case [size, last] if last.upper() == "LAST":
            return Bdat(_octets(size), last=True)
    raise SyntaxProblem("expected BDAT size [LAST]")


def _auth(_: str, text: str) -> Auth:
    match split_words(text):
        case [mechanism]:
            return Auth(mechanism.upper(), None)
        case [mechanism, initial]:
            return Auth(mechanism.upper(), initial.encode())
    raise SyntaxProblem("expected AUTH mechanism [initial-response]")


def _vrfy(verb: str, argument: str) -> Other:
    if not argument.strip(" "):
        raise SyntaxProblem(f"{verb} needs an argument")
    return Other(verb, argument)


def _alone(verb: str, _: str) -> Command:
    if verb != "NOOP":  # RFC 5321 section 4.1.1.9
        raise SyntaxProblem(f"{verb} takes no argument")
    return _ALONE[verb]


_MAIL_PARAMETERS: Final[_Parameters] = {
    "SIZE": ("size", _octets),
    "BODY": ("body", _one_of("7BIT", "8BITMIME", "BINARYMIME")),
    "SMTPUTF8": ("smtputf8", None),
    "AUTH": ("submitter", _submitter),
    "RET": ("dsn_return", _one_of("FULL", "HDRS")),
    "ENVID": ("dsn_id", _envelope_id),
    "REQUIRETLS": ("require_tls", None),
}
_RCPT_PARAMETERS: Final[_Parameters] = {
    "NOTIFY": ("notify", _notify),
    "ORCPT": ("original", parse_original_recipient),
}
_ALONE: Final[dict[str, Command]] = {
    each.verb: each for each in (Data(), Rset(), Noop(), Quit(), StartTls())
}
_Parser: TypeAlias = Callable[[str, str], Command]
_PARSERS: Final[dict[str, _Parser]] = {
    **dict.fromkeys(GREETINGS, _greeting),
    **dict.fromkeys(_ALONE, _alone),
    "MAIL": _mail,
    "RCPT": _rcpt,
    "BDAT": _bdat,
    "AUTH": _auth,
    "VRFY": _vrfy,
    "EXPN": _vrfy,
    "HELP": Other,
}
_VERBS: Final = {verb.encode(): (verb, parser) for verb, parser in _PARSERS.items()}
_UNKNOWN: Final[tuple[str, _Parser]] = ("OTHER", Other)
