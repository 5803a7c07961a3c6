"""The examples in etc/ work, and their comments are true."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import pytest

from minismtp.config import Config
from minismtp.runtime.log import Log
from minismtp.values.passwords import hash_password

if TYPE_CHECKING:
    from conftest import Configure, Start

ETC: Final = Path(__file__).parents[1] / "etc"
EXAMPLE: Final = ETC / "minismtp.toml"
FILTER: Final = ETC / "fail2ban" / "filter.d" / "minismtp.conf"
PASSWORDS: Final = """
[[plugins]]
use = "password_file"
path = "passwords"
"""


def test_example_has_the_three_ports_of_a_mail_server() -> None:
    listeners = Config.load(EXAMPLE).listeners
    assert {item.address.host for item in listeners} == {"*"}  # as its DNS records A and AAAA say
    assert {(item.address.port, item.kind, item.tls) for item in listeners} == {
        (25, "mx", "starttls"),
        (587, "submission", "starttls"),
        (465, "submission", "implicit"),
    }


def test_lines_commented_out_in_the_example_show_the_defaults() -> None:
    text = EXAMPLE.read_text()
    shown = re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE)
    assert shown != text
    assert Config.parse(shown, EXAMPLE) == Config.parse(text, EXAMPLE)


def banned(fail2ban_regex: str, log: Path) -> list[str]:
    """Return the addresses that fail2ban finds in a log, one per failure."""
    done = subprocess.run(
        [fail2ban_regex, "--out", "ip", log, FILTER], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_fail2ban_sees_failed_logins_and_only_those(
    configure: Configure, start: Start, require_program: Callable[[str], str]
) -> None:
    fail2ban_regex = require_program("fail2ban-regex")
    config = configure(PASSWORDS)
    (config.parent / "passwords").write_text(f"alice:{hash_password('secret')}\n")
    server = start(config)
    with server.connect() as client:
        client.greet()
        # The user name and the password, in base64: alice and wrong, then alice and secret.
        assert client.command("AUTH PLAIN AGFsaWNlAHdyb25n").startswith("535 ")
        assert client.command("AUTH PLAIN AGFsaWNlAHNlY3JldA==").startswith("235 ")
        client.command("QUIT")
    server.wait_for_log("auth success")
    log = config.parent / "copy"
    log.write_text(server.log)
    assert banned(fail2ban_regex, log) == ["127.0.0.1"]


@pytest.mark.parametrize("style", ["text", "json"])
def test_fail2ban_cannot_be_led_to_ban_somebody_else(
    tmp_path: Path, require_program: Callable[[str], str], style: Literal["text", "json"]
) -> None:
    fail2ban_regex = require_program("fail2ban-regex")
    path = tmp_path / "log"
    line = "info auth failure peer=198.51.100.1 mechanism=PLAIN"
    with path.open("wb") as file:
        log = Log(style=style, descriptor=file.fileno())
        for username in (
            line,
            f'" {line}',
            'x", "peer": "198.51.100.2", "mechanism": "',
            "\n" + line,
        ):
            fields = {"mechanism": "PLAIN", "username": username, "listener": "smtp"}
            log.info("auth failure", peer="2001:db8::7", **fields)
            log.info("session ended", peer="192.0.2.9", helo=username)
            log.info(username, logger="plugin")
    assert banned(fail2ban_regex, path) == ["2001:db8::7"] * 4


@pytest.mark.parametrize("style", ["text", "json"])
def test_fail2ban_reads_the_journal(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    require_program: Callable[[str], str],
    style: Literal["text", "json"],
) -> None:
    fail2ban_regex = require_program("fail2ban-regex")
    path = tmp_path / "journal"
    with (tmp_path / "sent").open("w+b") as file:
        status = os.fstat(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        log = Log(style=style, descriptor=file.fileno())
        log.info("auth failure", peer="192.0.2.7", mechanism="LOGIN", username="bob")
        file.seek(0)
        # The journal removes the priority and adds its own fields before the line.
        line = file.read().decode().removeprefix("<6>")
    path.write_text(f"2026-11-24T11:10:50+0000 mx minismtp[4711]: {line}")
    assert banned(fail2ban_regex, path) == ["192.0.2.7"]


def test_jail_uses_the_filter() -> None:
    jail = configparser.ConfigParser()
    jail.read(ETC / "fail2ban" / "jail.d" / "minismtp.conf")
    assert jail.sections() == [FILTER.stem]
