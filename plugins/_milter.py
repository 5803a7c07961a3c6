"""The octets of the milter protocol: a mail server's packets, and a filter's answers.

This is the server's side of the versions 2 to 6, which Sendmail defined. Every packet is a length
of four octets, a letter, and data; numbers are in network order, and texts end with NUL. A filter's
packets become values here; malformed ones raise MilterError.
"""

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from minismtp import Address, Defer, Disconnect, Reject, RemoteError

VERSION: Final = 6
OLDEST: Final = 2
CHUNK: Final = 65535  # octets of data that every filter takes in one packet
LARGEST: Final = 1 << 20  # octets of a filter's packet
#: The actions that filters may take: all of them.
ACTIONS: Final = 0x1FF
#: What filters may turn off: commands, replies, and SKIP, RCPT_REJ and HDR_LEADSPC.
STEPS: Final = 0x1FFFFF
SKIP: Final = 0x400
REFUSED_TOO: Final = 0x800
LEADING_SPACE: Final = 0x100000

_NAME: Final = re.compile(rb"[!-9;-~]+")
_LINE: Final = re.compile(
    rb"([45][0-5][0-9])(?:[ -](?:([45]\.[0-9]{1,3}\.[0-9]{1,3})(?: |$))?([^\r\n]*))?"
)
_LONGEST_REPLY: Final = 4096  # octets
_NOTIFY: Final = frozenset({"NEVER", "SUCCESS", "FAILURE", "DELAY"})


class MilterError(RemoteError):
    """A filter violates the protocol, or sends what was not agreed on."""


@dataclass(frozen=True, slots=True)
class Step:
    """A command: its letter, and the flags by which a filter skips it, or sends no reply.

    `since` is the version that introduced it, `stage` its number in lists of macros.
    """

    letter: bytes
    unwanted: int = 0
    silent: int = 0
    since: int = OLDEST
    stage: int = -1


CONNECT: Final = Step(b"C", 0x1, 0x1000, stage=0)
HELO: Final = Step(b"H", 0x2, 0x2000, stage=1)
MAIL: Final = Step(b"M", 0x4, 0x4000, stage=2)
RCPT: Final = Step(b"R", 0x8, 0x8000, stage=3)
DATA: Final = Step(b"T", 0x200, 0x10000, since=4, stage=4)
UNKNOWN: Final = Step(b"U", 0x100, 0x20000, since=3)
HEADER: Final = Step(b"L", 0x20, 0x80)
END_OF_HEADER: Final = Step(b"N", 0x40, 0x40000, stage=6)
BODY: Final = Step(b"B", 0x10, 0x80000)
END: Final = Step(b"E", stage=5)


@dataclass(frozen=True, slots=True)
class Options:
    """The agreed options; `macros` has the names that a filter wants at a stage."""

    version: int
    actions: int
    steps: int
    macros: Mapping[int, tuple[str, ...]]

    def wants(self, step: Step) -> bool:
        """Return whether the filter wants this command."""
        return self.version >= step.since and not self.steps & step.unwanted

    def replies(self, step: Step) -> bool:
        """Return whether the filter replies to this command."""
        return not self.steps & step.silent


#: The action that each change needs.
CHANGES: Final[Mapping[bytes, int]] = {
    b"h": 0x1,  # add a field at the end
    b"i": 0x1,  # insert a field, with a number of fields above it
    b"b": 0x2,  # a part of the new body
    b"+": 0x4,  # add a recipient
    b"-": 0x8,  # remove a recipient
    b"m": 0x10,  # change a field, or delete it if the value is empty
    b"q": 0x20,  # quarantine
    b"e": 0x40,  # change the sender
    b"2": 0x80,  # add a recipient with parameters
}


def packet(letter: bytes, data: bytes = b"") -> bytes:
    """Return a packet."""
    return struct.pack(">I", len(data) + 1) + letter + data


def texts(*values: str | bytes) -> bytes:
    """Return texts, each with a NUL at its end and without others."""
    octets = [
        each if isinstance(each, bytes) else each.encode("utf-8", "replace") for each in values
    ]
    return b"".join([each.replace(b"\0", b"") + b"\0" for each in octets])


def macros(step: Step, values: Mapping[str, str]) -> bytes:
    """Return the packet that defines macros for the next command; empty without macros."""
    pairs = [text for pair in values.items() for text in pair]
    return packet(b"D", step.letter + texts(*pairs)) if pairs else b""


def connection(name: str, peer: str, port: int) -> bytes:
    """Return the data of CONNECT; `peer` is an IP address or "unix"."""
    if peer == "unix":
        return texts(name) + b"U"
    family = b"6" if ":" in peer else b"4"
    return texts(name) + family + struct.pack(">H", port) + texts(peer)


def offer() -> bytes:
    """Return the packet with the server's options."""
    return packet(b"O", struct.pack(">III", VERSION, ACTIONS, STEPS))


def length(head: bytes) -> int:
    """Read the length at the begin of a packet; return the number of octets after its letter."""
    size: int = struct.unpack(">I", head)[0]
    if not 1 <= size <= LARGEST:
        raise MilterError(f"the filter sends a packet of {size} octets")
    return size - 1


def read_options(letter: bytes, data: bytes) -> Options:
    """Read a filter's answer to `offer`."""
    if letter != b"O" or len(data) < 12:  # noqa: PLR2004 - three numbers
        raise MilterError("the filter does not say what it can")
    version, actions, steps = struct.unpack_from(">III", data)
    if not OLDEST <= version <= VERSION:
        raise MilterError(f"the filter speaks version {version} of the protocol")
    if actions & ~ACTIONS or steps & ~STEPS:
        raise MilterError(f"the filter wants what there is not: {actions:#x}, {steps:#x}")
    wanted, start = {}, 12
    while len(data) - start > 4:  # noqa: PLR2004 - a number and a text
        [stage] = struct.unpack_from(">I", data, start)
        end = data.find(b"\0", start + 4)
        end = len(data) if end < 0 else end
        names = data[start + 4 : end].decode("latin-1")
        wanted[stage] = tuple(names.replace(",", " ").split())
        start = end + 1
    return Options(version, actions, steps, wanted)


def read_verdict(data: bytes) -> Reject | Defer | Disconnect:
    r"""Read a filter's own reply: lines of a code, a status code, and text.

    Filters write each `%` twice, because some servers use the text as a format.
    """
    octets = _texts(data)[0][:_LONGEST_REPLY].replace(b"%%", b"%")
    lines = [_LINE.fullmatch(line) for line in re.split(rb"\r?\n", octets.rstrip(b"\r\n"))]
    found = [line for line in lines if line is not None]
    if len(found) < len(lines) or len({line[1] for line in found}) > 1:
        raise MilterError(f"the filter's reply {octets[:80]!r} is none of SMTP")
    code = int(found[0][1])
    text = "\n".join([(line[3] or b"").decode("utf-8", "replace") for line in found])
    kind = Disconnect if code == 421 else Defer if code < 500 else Reject  # noqa: PLR2004
    usual = f"{code // 100}.7.1"
    try:
        return kind(text, code=code, enhanced=(found[0][2] or b"").decode() or usual)
    except ValueError:  # a status code of another class, or with a leading zero
        return kind(text, code=code, enhanced=usual)


def _texts(data: bytes) -> list[bytes]:
    return data.removesuffix(b"\0").split(b"\0")


def read_text(data: bytes) -> str:
    """Read the first text of a change."""
    return _texts(data)[0].decode("utf-8", "replace")


def read_field(data: bytes) -> tuple[bytes, bytes]:
    """Read a name and a value. Raise ValueError."""
    found = _texts(data)
    if len(found) != 2 or not _NAME.fullmatch(found[0]):  # noqa: PLR2004 - name and value
        raise ValueError("it has no name and value")
    return found[0], found[1]


def read_numbered_field(data: bytes) -> tuple[int, bytes, bytes]:
    """Read a number, a name and a value. Raise ValueError."""
    return int.from_bytes(data[:4], "big"), *read_field(data[4:])


def read_address(data: bytes) -> Address:
    """Read an address, in angle brackets or without. Raise ValueError."""
    text = _texts(data)[0].decode().strip(" \t")
    if text.startswith("<") and text.endswith(">"):
        text = text[1:-1]
    return Address.parse(text)


def read_sender(data: bytes) -> Address | None:
    """Read a reverse-path. Raise ValueError."""
    return None if _texts(data)[0] in {b"", b"<>"} else read_address(data)


def read_notify(data: bytes) -> frozenset[str]:
    """Read NOTIFY (RFC 3461 section 4.1) from the parameters of a recipient."""
    for word in b" ".join(_texts(data)[1:]).decode("latin-1").upper().split():
        if word.startswith("NOTIFY="):
            return _NOTIFY.intersection(word.removeprefix("NOTIFY=").split(","))
    return frozenset()
