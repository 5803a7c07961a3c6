"""The commands of docs/plugins.md, run as an author would who follows the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import pytest
from network import Namespace
from snippets import CLEAR, MX
from source import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PAGE: Final = (ROOT / "docs" / "plugins.md").read_text()
PROGRAM: Final = f"{sys.executable} -m minismtp"
MAIL: Final = "Subject: x\n\nIt works.\n"
#: Commands that other tests run, with what does it.
ELSEWHERE: Final = {
    "pip install -q -e '.[test]'": "tests/cli/test_new_plugin.py",
    "pytest -q": "tests/cli/test_new_plugin.py",
    "ruff check . && mypy": "tests/cli/test_new_plugin.py",
    "minismtp serve --config minismtp.toml": "tests/server/test_breakpoint.py",
}
_VARYING: Final = re.compile(r"\d+\.\d ms|[0-9a-f]{12}\.1")


def blocks(language: str) -> list[str]:
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return found


def transcripts() -> list[list[tuple[str, str]]]:
    """Return the commands of each transcript, with what each prints."""
    joined = [re.sub(r"\\\n\s*", "", text) for text in blocks("text")]
    found = [re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE) for text in joined]
    return [each for each in found if each]


@pytest.fixture
def author(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the plugin and the message of the page; return their directory."""
    [(name, text)] = re.findall(
        r"^```python (blocked_domains\.py)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL
    )
    (tmp_path / name).write_text(text)
    (tmp_path / "mail.eml").write_text(MAIL)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path


def run(command: str, directory: Path, *prefix: str, status: int = 0) -> str:
    """Run a command of the page and return what it prints."""
    script = re.sub(r"\bminismtp (?=\w)", lambda _: f"{PROGRAM} ", command)
    done = subprocess.run(
        [*prefix, "sh", "-uc", f"cd '{directory}'; {script}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def masked(text: str) -> str:
    return _VARYING.sub("#", text).strip()


def test_message_is_tried_as_the_page_shows(author: Path) -> None:
    [command] = [text for text in blocks("sh") if text.startswith("minismtp try")]
    [shown] = [text for text in blocks("text") if "blocked_domains: rejected" in text]
    assert masked(shown) in masked(run(command, author, status=1))


def test_stored_mail_is_replayed(author: Path) -> None:
    [command] = [text for text in blocks("sh") if text.startswith("minismtp replay")]
    for name in ("cur", "new", "tmp"):
        (author / "Maildir" / name).mkdir(parents=True)
    stored = f"Return-Path: <a@spam.example>\nDelivered-To: me@example.org\n{MAIL}"
    (author / "Maildir" / "cur" / "1.a:2,S").write_text(stored)
    table = '[[plugins]]\nuse = "blocked_domains"\n'
    (author / "changed.toml").write_text(f'{table}domains = ["spam.example"]\n')
    config = author / "minismtp.toml"
    top = f'plugin_path = ["."]\nstate_directory = "state"\n{MX}{CLEAR}\n'
    config.write_text(f'{top}{table}domains = ["x.test"]\n')
    said = run(f"export MINISMTP_CONFIG={config}; {command}", author)
    assert "550 5.7.1 mail from your domain is not taken here" in said
    assert "blocked_domains" in said


@pytest.fixture
def namespace(require_program: Callable[[str], str]) -> Iterator[Namespace]:
    """Yield a network in which the ports of the page are free."""
    require_program("nsenter")
    if os.geteuid() != 0:
        pytest.skip("a network of its own needs root")
    found = Namespace()
    yield found
    found.close()


def test_package_is_made_and_refuses_mail_in_a_server(
    author: Path, namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    [made] = [each for each in transcripts() if "new-plugin" in each[0][0]]
    command, shown = made[0]
    assert run(command, author) == shown
    package = author / made[1][0].removeprefix("cd ")
    pip = (
        f"{sys.executable} -m pip install -q --no-build-isolation --no-deps --target {author}/lib ."
    )
    run(pip, package)
    monkeypatch.setenv("PYTHONPATH", f"{author}/lib:{os.environ.get('PYTHONPATH', '')}")
    [tables] = [text for text in blocks("toml") if 'use = "no_lottery"' in text]
    (author / "minismtp.toml").write_text(tables)
    [used] = [each for each in transcripts() if "minismtp check" in each[0][0]]
    (check, ok), (serve, _), (curl, reply) = used
    assert run(check, author) == ok
    retry = "--retry 60 --retry-delay 1 --retry-connrefused"
    ready = f"curl -s -o ready {retry} http://127.0.0.1:9925/readyz"
    serve = serve.replace("serve", "serve 2>log")
    session = f"{serve}\nserver=$!\n{ready}\n{curl}; kill $server; wait $server"
    assert masked(run(session, author, *namespace.prefix)) == masked(reply)


def test_every_command_of_the_page_is_run() -> None:
    commands = {command for each in transcripts() for command, _ in each if each[0][0] != command}
    first = {each[0][0] for each in transcripts()}
    run_here = {
        "minismtp new-plugin no_lottery",
        "minismtp check --config minismtp.toml | tail -n 1",
    }
    left = {
        command
        for command in first | commands
        if not command.startswith(("cd ", "printf ", "minismtp serve --config minismtp.toml &"))
    }
    assert left - run_here == ELSEWHERE.keys()
    for test in ELSEWHERE.values():
        assert (ROOT / test).exists()
