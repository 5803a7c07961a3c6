"""What `minismtp passwd` says after it has changed the file: what was done, and what is missing."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Final

import pytest

from minismtp.cli.main import main

CONFIGURATION: Final = """
state_directory = "state"

[[listeners]]
name = "smtp"
address = "127.0.0.1:0"
tls = "none"

[[plugins]]
use = "mailboxes"
domains = ["example.org", "example.com"]
users = ["alice", "bob"]
aliases_file = "aliases"

[[plugins]]
use = "password_file"
path = "passwords"
"""
ALIASES: Final = "sales: alice\nabroad: somebody@example.net\n"
WHERE: Final = "of the plugin mailboxes ({config}: plugins[0])."
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Make a configuration and its files."""
    (tmp_path / "state").mkdir()
    (tmp_path / "aliases").write_text(ALIASES)
    path = tmp_path / "minismtp.toml"
    path.write_text(CONFIGURATION)
    return path


def said(config: Path, user: str, capsys: Capture, *options: str, file: str = "") -> list[str]:
    path = file or str(config.parent / "passwords")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"secret\n")))
        assert main(["passwd", path, user, "--config", str(config), *options]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("user", "remark"),
    [
        ("alice@example.org", "Mailbox: alice@example.org"),
        ("bob@example.com", "Mailbox: bob@example.com"),
        ("alice", "Mailbox: alice@example.org"),
        ("sales@example.org", "Mailbox: alice@example.org"),
        ("abroad", "abroad@example.org is an alias; its mail goes to another server."),
        ("carol@example.org", f"Missing: carol@example.org is in no `users` {WHERE}"),
        ("alice@example.net", f"Missing: example.net is in no `domains` {WHERE}"),
        ("a b", "Missing: a b@example.org is no address, so a b has no mailbox."),
    ],
)
def test_mailbox_of_the_user_is_named(
    user: str, remark: str, config: Path, capsys: Capture
) -> None:
    assert said(config, user, capsys)[-1] == remark.format(config=config)


def test_what_was_done_is_said(config: Path, capsys: Capture) -> None:
    path = config.parent / "passwords"
    first, hashed, _ = said(config, "alice", capsys)
    assert first == f"alice was added in {path} (scrypt, with keys for SCRAM)."
    assert hashed == "Dovecot cannot read this hash. If it has to: --scheme argon2id"
    assert said(config, "alice", capsys, "--remove") == [
        f"alice was removed from {path} and can no longer log in."
    ]


def test_hash_that_dovecot_reads_needs_no_remark(config: Path, capsys: Capture) -> None:
    path = config.parent / "passwords"
    path.write_text("alice:x\n")
    options = ("--scheme", "argon2id", "--no-scram")
    assert said(config, "alice", capsys, *options) == [
        f"alice has a new password in {path} (argon2id, without keys for SCRAM).",
        "Mailbox: alice@example.org",
    ]


def test_file_that_no_plugin_reads_is_told(config: Path, capsys: Capture) -> None:
    file = f"{config.parent}/pass"
    remark = f'Missing: no plugin password_file in {config} has path = "{file}".'
    assert remark in said(config, "alice", capsys, file=file)


def test_lack_of_mailboxes_is_told(config: Path, capsys: Capture) -> None:
    config.write_text(CONFIGURATION.replace('"mailboxes"', '"relay"').replace("users", "#"))
    config.write_text(config.read_text().replace("aliases_file", "#"))
    remark = f"Missing: {config} has no plugin mailboxes, so alice has no mailbox."
    assert said(config, "alice", capsys)[-1] == remark


@pytest.mark.parametrize("fault", ["no file", "a mistake", "a lost list"])
def test_password_is_set_whatever_is_wrong_with_the_configuration(
    fault: str, config: Path, capsys: Capture
) -> None:
    match fault:
        case "no file":
            config.unlink()
        case "a mistake":
            config.write_text(CONFIGURATION.replace("domains", "domain"))
        case "a lost list":
            (config.parent / "aliases").unlink()
    told = said(config, "alice", capsys)
    assert "has a mailbox is not known: " in told[-1]
    assert (config.parent / "passwords").read_text().startswith("alice:$scrypt$")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root writes files that the server cannot read")
def test_file_that_the_server_cannot_read_is_told_with_the_remedy(
    config: Path, capsys: Capture
) -> None:
    file = config.parent / "passwords"
    file.write_text("# empty\n")
    file.chmod(0o600)
    os.chown(config.parent / "state", 65534, 65534)
    remark = f"Missing: the server cannot read the file (chgrp 65534 {file} && chmod 640 {file})."
    assert remark in said(config, "alice", capsys)
    os.chown(file, 0, 65534)
    file.chmod(0o640)
    told = said(config, "alice", capsys)
    assert not [line for line in told if "cannot read the file" in line]
