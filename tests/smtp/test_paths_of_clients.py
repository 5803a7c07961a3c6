"""Paths outside the grammar: one meaning, or a refusal with the reason."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from ports import free_port
from spellings import DANGEROUS, MORE, REFUSED, TAKEN, Spelling

from minismtp.smtp.commands import CommandProblem, Mail, Rcpt, parse
from minismtp.smtp.grammar import read_path
from minismtp.values.address import Address

_ALL: Final = [*TAKEN, *MORE, *REFUSED, *DANGEROUS]
_OF_MAIL: Final = re.compile(r"\s(?:SIZE|BODY|ENVID|SMTPUTF8)\S*")


def name(spelling: Spelling) -> str:
    """Name a spelling in a test's identifier."""
    return f"{spelling.text[:50]!a} of {len(spelling.text)}"


def said(line: str) -> str:
    """Read a command: the address in it, or the text of the refusal."""
    try:
        command = parse(line.encode())
    except CommandProblem as problem:
        return problem.reply.text
    assert isinstance(command, Mail | Rcpt)
    path = command.reverse_path if isinstance(command, Mail) else command.forward_path
    return str(path) if path is not None else ""


@pytest.mark.parametrize("spelling", TAKEN + MORE, ids=name)
def test_path_of_a_real_client_is_read(spelling: Spelling) -> None:
    assert said(f"MAIL FROM:{spelling.text}") == spelling.reading
    text = _OF_MAIL.sub("", spelling.text)
    assert said(f"RCPT TO:{text}") == (spelling.reading or "recipient: expected an address")


@pytest.mark.parametrize("spelling", REFUSED + DANGEROUS, ids=name)
def test_path_that_is_none_is_refused_for_its_true_cause(spelling: Spelling) -> None:
    assert said(f"MAIL FROM:{spelling.text}").removeprefix("sender: ") == spelling.reading


@pytest.mark.parametrize("spelling", TAKEN + MORE, ids=name)
def test_what_was_read_is_read_again_as_it_is_written(spelling: Spelling) -> None:
    # the queue and the next host get an address in the form of the RFC
    if "@" in spelling.reading:
        address = Address.parse(spelling.reading)
        assert str(address) == spelling.reading
        assert said(f"RCPT TO:<{address}>") == spelling.reading


_PIECES: Final = st.lists(
    st.sampled_from(
        [
            *("a", "b.c", ".", "..", "@", "<", ">", '"', '"d e"', "\\", "(f)", "(", ")", " ", "\t"),
            *("x.org", ",", ":", ";", "[", "]", "[192.0.2.1]", "é", "_", "-", "@one.org:", "\\@"),
            "\x01",
        ]
    ),
    max_size=12,
).map("".join)


@settings(max_examples=examples(500))
@given(_PIECES | st.text())
def test_any_text_gives_an_address_that_can_be_written_or_none(text: str) -> None:
    try:
        address, rest = read_path(text)
    except ValueError:
        return
    assert text.endswith(rest)
    if address is not None and address.domain:
        assert Address.parse(str(address)) == address
    elif address is not None:
        assert Address.parse(f"{address}@x") == Address(address.local, "x")


# Postfix itself

_MAIN_CF: Final = """
compatibility_level = 3.6
queue_directory = {directory}/spool
data_directory = {directory}/data
maillog_file = {directory}/log
maillog_file_prefixes = /
myhostname = mx.postfix.test
mydestination = here.test
alias_maps =
local_recipient_maps =
inet_protocols = ipv4
smtpd_peername_lookup = no
smtpd_error_sleep_time = 0
smtpd_hard_error_limit = 1000
smtpd_junk_command_limit = 1000
smtpd_delay_open_until_valid_rcpt = yes
"""
_MASTER_CF: Final = """
127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
proxymap unix - - n - - proxymap
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
"""


@pytest.fixture(scope="module")
def postfix(require_program: Callable[[str], str]) -> Iterator[int]:
    """Run a Postfix on loopback, and yield its port."""
    program = require_program("postfix")
    if os.geteuid() != 0:
        pytest.skip("only root can start Postfix")
    port = free_port()
    with TemporaryDirectory(prefix="postfix-") as name:  # where the user postfix comes in
        directory = Path(name)
        directory.chmod(0o755)
        for part in ("etc", "spool", "data"):
            (directory / part).mkdir()
        shutil.chown(directory / "data", "postfix")
        (directory / "etc" / "main.cf").write_text(_MAIN_CF.format(directory=directory))
        (directory / "etc" / "master.cf").write_text(_MASTER_CF.format(port=port))
        command = [program, "-c", str(directory / "etc")]
        subprocess.run([*command, "start"], check=True)
        yield port
        subprocess.run([*command, "stop"], check=True)


@contextmanager
def greeted(port: int) -> Iterator[Callable[[bytes], str]]:
    """Connect to Postfix and greet it. Return a function that returns the reply to a command."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as sock,
        sock.makefile("rb") as replies,
    ):

        def ask(line: bytes) -> str:
            sock.sendall(line + b"\r\n")
            reply = replies.readline()
            while reply[3:4] == b"-":
                reply = replies.readline()
            return reply.decode()

        replies.readline()
        ask(b"EHLO client.example")
        yield ask


def test_postfix_answers_as_the_table_says(postfix: int) -> None:
    with greeted(postfix) as ask:
        for spelling in _ALL:
            reply = ask(f"MAIL FROM:{spelling.text}".encode())
            assert (reply[0] == "2") is spelling.postfix, (spelling.text, reply)
            ask(b"RSET")


def test_recipient_that_postfix_can_read_is_read(postfix: int) -> None:
    with greeted(postfix) as ask:
        ask(b"MAIL FROM:<> SMTPUTF8")
        for spelling in _ALL:
            text = _OF_MAIL.sub("", spelling.text)
            reply = ask(f"RCPT TO:{text}".encode())
            if reply[:3] not in {"500", "501", "555"} and spelling not in DANGEROUS:
                assert isinstance(parse(f"RCPT TO:{text}".encode()), Rcpt)


_LINES: Final = [
    *(b" MAIL FROM:<a@x.org>", b"\tMAIL FROM:<a@x.org>", b"MAIL  FROM:<a@x.org>"),
    *(b"MAIL\tFROM:<a@x.org>", b"MAIL FROM:\t<a@x.org>", b"MAIL FROM:<a@x.org> \t", b" NOOP"),
    *(b"  RSET", b"EHLO  x", b"EHLO Anna's PC", b"EHLO a\tb", b"HELO localhost.(none)"),
    *(b"EHLO [IPv6:fe80::1%en0]", b"EHLO a/b", b"EHLO <x>", b'EHLO "x"', b"EHLO (", b"EHLO a\\b"),
    *("EHLO Müller".encode(), "EHLO 山".encode(), b"EHLO " + b"x" * 1000, b"VRFY\ta@here.test"),
]


@pytest.mark.parametrize("line", _LINES, ids=lambda line: ascii(line[:40]))
def test_line_that_postfix_takes_is_taken(line: bytes, postfix: int) -> None:
    with greeted(postfix) as ask:
        assert ask(line)[0] == "2"
    parse(line)
