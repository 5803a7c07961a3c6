"""The input of random clients, and the form of every reply to them."""

from __future__ import annotations

import random
import re
from typing import Final

# Reply = *( code "-" text CRLF ) code SP text CRLF, a line of 512 octets: RFC 5321 section 4.2.
# A challenge may be of no octets: RFC 4954 section 4.
REPLY: Final = re.compile(
    rb"(?:([2-5][0-5][0-9])-[^\x00-\x1f\x7f]{0,506}\r\n)*"
    rb"([2-5][0-5][0-9]) [^\x00-\x1f\x7f]{1,506}\r\n"
    rb"|334 \r\n"
)
ACCEPTED: Final = re.compile(rb"250 2\.0\.0 message accepted as ([0-9a-f]+\.[0-9]+)\r\n")


def split_replies(output: bytes) -> list[bytes]:
    """Cut the output of a server into replies; fail if a part of it is not a reply."""
    found, at = [], 0
    while at < len(output):
        match = REPLY.match(output, at)
        assert match is not None, f"malformed reply: {output[at : at + 600]!r}"
        codes = set(re.findall(rb"^([0-9]{3})", match[0], re.MULTILINE))
        assert len(codes) == 1, match[0]
        found.append(match[0])
        at = match.end()
    return found


SCRIPTS: Final = tuple(
    "".join(f"{line}\r\n" for line in script.split("\n")).encode()
    for script in (
        """EHLO x.example
MAIL FROM:<a@b.example> SIZE=20 BODY=8BITMIME
RCPT TO:<u@example.org>
RCPT TO:<v@example.org> NOTIFY=NEVER
DATA
Subject: x

..
line
.
QUIT""",
        """EHLO x.example
MAIL FROM:<> BODY=BINARYMIME
RCPT TO:<u@example.org>
BDAT 12
Subject: x
BDAT 5 LAST

x
RSET
QUIT""",
        """LHLO x.example
MAIL FROM:<a@b.example>
RCPT TO:<u@example.org>
RCPT TO:<w@example.org>
DATA
x: y

.
MAIL FROM:<>
RCPT TO:<u@example.org>
BDAT 0 LAST
QUIT""",
        """HELO x.example
VRFY u
EXPN u
HELP
MAIL FROM:<a@b.example>
RSET
AUTH PLAIN AGEAYg==
MAIL FROM:<ä@b.example> SMTPUTF8
RCPT TO:<Postmaster>
DATA
.
QUIT""",
        """EHLO x.example
AUTH LOGIN
YQ==
Yg==
STARTTLS
\x16\x03\x01\x02\x00\x01
QUIT""",
    )
)
PROXY: Final = (
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 25\r\n",
    b"PROXY UNKNOWN\r\n",
    b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x01\xc0\x00\x02\x02\x04\xd2\x00\x19",
    b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00",
)
PIECES: Final = (
    b"\r\n",
    b"\n",
    b"\r",
    b".\r\n",
    b"\r\n.\r\n",
    b"\n.\n",
    b"\r.\r",
    b"\0",
    b"\xff",
    b" ",
    b"<",
    b">",
    b"BDAT 9223372036854775808\r\n",
    b"BDAT 3\r\n",
    b"DATA\r\n",
    b"RSET\r\n",
    b"EHLO y\r\n",
    b"*\r\n",
    b"A" * 600,
    b"B" * 13_000,
    b"MAIL FROM:<a@b.example>\r\n",
    b"RCPT TO:<u@example.org>\r\n",
)


def mutate(dice: random.Random, script: bytes) -> bytes:
    """Change a script in a few places: octets, cuts, repetitions, and dangerous pieces."""
    data = bytearray(script)
    for _ in range(dice.choice([0, 1, 1, 2, 3, 5, 10])):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(5):
            case 0:
                data[at:at] = dice.choice(PIECES)
            case 1:
                del data[at : at + dice.randrange(20)]
            case 2:
                data[at : at + 1] = bytes([dice.randrange(256)])
            case 3:
                data[at:at] = data[at : at + dice.randrange(200)]
            case 4:
                data[at:at] = dice.choice(SCRIPTS)
    return bytes(data)
