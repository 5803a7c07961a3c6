"""The README and the guides are true: their code runs, and their tables are complete."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import tomli

import minismtp
from minismtp.cli.main import main
from minismtp.config import (
    Config,
)
from minismtp.config.schema import options
from minismtp.config.schema import tables as file_tables
from minismtp.hooks.loader import PluginSet, hook_names
from minismtp.testing import Dialogue
from minismtp.values.passwords import hash_password

ROOT: Final = Path(__file__).parents[1]
README: Final = ROOT / "README.md"
ARCHITECTURE: Final = ROOT / "docs" / "architecture.md"
ADMINISTRATOR: Final = ROOT / "docs" / "administrator.md"
CONFIGURATION: Final = ROOT / "docs" / "configuration.md"
GUIDE: Final = ROOT / "docs" / "plugins.md"
PAGES: Final = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
PYPROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())
LISTENER: Final = '\n[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\ntls = "none"\n'
SPAM: Final = "Subject: Offer\nX-Spam-Flag: YES\n\nBuy.\n"


class Block(NamedTuple):
    """A fenced block of code: its language, the file that it stands for, its text."""

    language: str
    file: str
    text: str


def blocks(page: Path, language: str) -> list[Block]:
    fence = re.compile(r"^```(\w+) ?(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
    found = [Block(*match.groups()) for match in fence.finditer(page.read_text())]
    return [block for block in found if block.language == language]


def tables(page: Path) -> dict[str, list[list[str]]]:
    """Return the rows of a page's tables, without their heads, by the heading above."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in page.read_text().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("| ---"):
            found[heading].pop()  # the line before was the head
        elif line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            found.setdefault(heading, []).append(cells)
    return found


def code(text: str) -> list[str]:
    """Return the texts in backticks."""
    return re.findall(r"`([^`\n]+)`", text)


# The README


@pytest.fixture
def first_plugin(tmp_path: Path) -> Path:
    """Put the files of the README's first plugin in their places. Return the configuration."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "spam_flag.py").write_text(blocks(README, "python")[0].text)
    path = tmp_path / "minismtp.toml"
    path.write_text(f'state_directory = "state"\n{blocks(README, "toml")[0].text}')
    return path


def converse(configuration: Path) -> Dialogue:
    return Dialogue.configured(Config.load(configuration), "smtp")


def stored(configuration: Path) -> list[bytes]:
    new = configuration.parent / "mail" / "example.org" / "me" / "new"
    return [path.read_bytes() for path in new.glob("*")]


def test_first_plugin_of_the_readme_refuses_spam_with_the_reply_shown(first_plugin: Path) -> None:
    reply = converse(first_plugin).mail(SPAM, to=("me@example.org",))
    assert f"`{reply}`" in README.read_text()
    assert stored(first_plugin) == []


def test_first_plugin_of_the_readme_lets_other_mail_through(first_plugin: Path) -> None:
    reply = converse(first_plugin).mail(SPAM.replace("YES", "NO"), to=("me@example.org",))
    assert reply.startswith("250 ")
    assert [message.endswith(b"\r\n\r\nBuy.\r\n") for message in stored(first_plugin)] == [True]


def test_first_plugin_of_the_readme_in_shadow_mode_is_only_counted(first_plugin: Path) -> None:
    use, shadow = 'use = "spam_flag"\n', 'mode = "shadow"\n'
    first_plugin.write_text(first_plugin.read_text().replace(use, use + shadow))
    dialogue = converse(first_plugin)
    assert dialogue.mail(SPAM, to=("me@example.org",)).startswith("250 ")
    labels = {"plugin": "spam_flag", "hook": "on_message", "verdict": "reject"}
    assert dialogue.count("shadow_verdicts_total", **labels) == 1
    assert f"`{use.strip()}`" in README.read_text()
    assert f"`{shadow.strip()}`" in README.read_text()


def test_first_mail_of_the_readme_is_what_the_server_suggests(
    running_by_itself: str,
) -> None:
    commands = "".join(block.text for block in blocks(README, "sh")).replace("\\\n", " ")
    sent = [shlex.split(line) for line in commands.splitlines() if "me@localhost" in line]
    suggested = [
        shlex.split(line) for line in running_by_itself.splitlines() if "curl --url" in line
    ]
    assert sent == suggested != []


@pytest.fixture
def running_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the output of a server without a configuration before it starts."""
    said: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINISMTP_CONFIG", raising=False)
    monkeypatch.setattr("minismtp.config.DEFAULT_FILE", tmp_path / "no.toml")
    monkeypatch.setattr("minismtp.server.supervisor.serve", lambda _config: 0)
    monkeypatch.setattr("minismtp.cli.serve.say", lambda *lines: said.extend(lines))
    assert main(["serve"]) == 0
    return "\n".join(said)


def test_mail_server_of_the_readme_has_its_three_ports_and_sound_plugins(tmp_path: Path) -> None:
    (tmp_path / "passwords").write_text(f"alice:{hash_password('secret')}\n")
    config = Config.parse(blocks(README, "toml")[1].text, tmp_path / "minismtp.toml")
    PluginSet.load(config)
    assert [(item.address.port, item.kind, item.tls) for item in config.listeners] == [
        (25, "mx", "starttls"),
        (587, "submission", "starttls"),
        (465, "submission", "implicit"),
    ]


def test_dependencies_are_those_of_the_project_with_its_extras() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    wanted = [*PYPROJECT["project"]["dependencies"]]
    wanted += [item for name, items in extras.items() if name != "test" for item in items]
    rows = tables(README)["Dependencies"]
    assert {re.match(r"[\w-]+", item)[0] for item in wanted} == {  # type: ignore[index]
        re.sub(r"\[(.+)\]\(.+\)", r"\1", package) for package, _ in rows
    }
    assert all(reason for _, reason in rows)


def test_extras_that_are_mentioned_exist() -> None:
    mentioned = re.findall(r"extra `(\w+)`|'\.\[(\w+)\]'", README.read_text())
    extras = {first or second for first, second in mentioned}
    assert extras == set(PYPROJECT["project"]["optional-dependencies"])


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    mentioned = {
        target for page in PAGES for target in re.findall(r"\bmake (\w+)\b *[`#]", page.read_text())
    }
    assert {"run", "test"} <= mentioned <= targets


# Commands


def mentioned_commands() -> list[str]:
    """Return every call of minismtp on the pages, in blocks of code and in backticks."""
    lines = [
        line
        for page in PAGES
        for line in (
            *(line for block in blocks(page, "sh") for line in block.text.splitlines()),
            *code(page.read_text()),
        )
    ]
    calls = [re.search(r"(?:^|/)minismtp ([a-z].*)", line) for line in lines]
    return sorted({call[1] for call in calls if call})


def test_every_command_is_in_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    existing = re.findall(r"^    ([a-z][\w-]*)(?:  |$)", capsys.readouterr().out, re.MULTILINE)
    assert [code(row[0])[0].split()[1] for row in tables(README)["Commands"]] == existing


@pytest.mark.parametrize("call", mentioned_commands())
def test_command_exists_with_its_options(call: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, *rest = call.split()
    assert main([command, "--help"]) == 0
    usage = capsys.readouterr().out
    assert set(re.findall(r"--[\w-]+", call)) <= set(re.findall(r"--[\w-]+", usage))
    verbs = re.search(r"^  \{([\w,]+)\}", usage, re.MULTILINE)  # of `queue`
    assert not (verbs and rest) or {*rest[0].split("|")} <= {*verbs[1].split(",")}


EXIT_STATUS: Final = [row for row in tables(ADMINISTRATOR)["Changes"] if row[0].isdigit()]


SILENT: Final = """
[dns]
nameservers = ["127.0.0.1:9"]
[[plugins]]
use = "mailboxes"
domains = ["example.org"]
"""


def cause(status: int, directory: Path) -> list[str]:
    """Return a command that ends with this status."""
    good, bad, passwords = (directory / name for name in ("good.toml", "bad.toml", "passwords"))
    good.write_text(LISTENER)
    bad.write_text("hostnaem = 'mx.example.org'\n")
    silent = directory / "silent.toml"
    silent.write_text(f"hostname = 'mx.example.org'\n{LISTENER}{SILENT}")
    return {
        0: ["check", "--config", str(good)],
        1: ["passwd", "--remove", str(passwords), "nobody"],
        2: ["sevre"],
        75: ["dns", "--config", str(silent), "--check", "--port25", "no", "--seconds", "0.1"],
        78: ["check", "--config", str(bad)],
    }[status]


@pytest.mark.parametrize("status", [int(row[0]) for row in EXIT_STATUS])
def test_exit_status_is_as_documented(status: int, tmp_path: Path) -> None:
    assert main(cause(status, tmp_path)) == status
    sentence = README.read_text().partition("The exit status is ")[2].partition(".")[0]
    assert re.search(rf"\b{status} for ", sentence)


# The tests that pages name


@pytest.mark.parametrize("page", ["SECURITY.md", "docs/architecture.md"])
def test_tests_that_a_page_names_exist(page: str) -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / page).read_text()))
    assert named
    assert named <= {path.stem for path in (ROOT / "tests").rglob("test_*.py")}


# The guide for plugin authors


@pytest.fixture
def guide_files(tmp_path: Path) -> Path:
    """Write the files of the guide as an author would, and return their directory."""
    for block in blocks(GUIDE, "python"):
        (tmp_path / block.file).write_text(block.text)
    return tmp_path


def test_tests_of_the_guide_pass(guide_files: Path) -> None:
    """This runs in a process of its own, as an author would run it."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"],
        cwd=guide_files,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 passed" in done.stdout


def plugin_files() -> list[str]:
    return [item.file for item in blocks(GUIDE, "python") if not item.file.startswith("test_")]


@pytest.mark.parametrize("file", plugin_files())
def test_plugin_of_the_guide_loads_from_its_file(file: str, guide_files: Path) -> None:
    name = file.removesuffix(".py")
    shown = [item.text for item in blocks(GUIDE, "toml") if f'use = "{name}"' in item.text]
    table = shown[0] if shown else f'[[plugins]]\nuse = "{name}"\n'
    config = Config.parse(f"plugin_path = ['.']\n{LISTENER}{table}", guide_files / "minismtp.toml")
    PluginSet.load(config)


def test_sender_that_first_contact_does_not_know_is_put_off_once(guide_files: Path) -> None:
    namespace = runpy.run_path(str(guide_files / "first_contact.py"))
    dialogue = Dialogue(namespace["FirstContact"](), spool=guide_files)
    replies = [dialogue.send("EHLO client.example"), *map(dialogue.send, ["MAIL FROM:<a@b.c>"] * 2)]
    dialogue.close()
    assert [reply[:3] for reply in replies] == ["250", "451", "250"]


VERDICT: Final = re.compile(r'`raise (\w+)\("text"\)`: (\d+ [\d.]+)')


@pytest.mark.parametrize(("verdict", "reply"), VERDICT.findall(GUIDE.read_text()))
def test_verdict_is_the_reply_in_the_guide(verdict: str, reply: str) -> None:
    assert str(getattr(minismtp, verdict)("text").reply) == f"{reply} text"


CONFIGURATIONS: Final = {
    f"{page.name}-{number}": block.text
    for page in PAGES
    for number, block in enumerate(blocks(page, "toml"))
    if "[project]" not in block.text
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configuration_on_a_page_is_valid(name: str, tmp_path: Path) -> None:
    text = CONFIGURATIONS[name]
    whole = text if "[[listeners]]" in text else text + LISTENER
    config = Config.parse(whole, tmp_path / "minismtp.toml")
    assert bool(config.plugins) == ("[[plugins]]" in text)


def test_entry_point_of_the_guide_is_in_the_group_that_is_searched() -> None:
    [project] = [item.text for item in blocks(GUIDE, "toml") if "[project]" in item.text]
    group = tomli.loads(project)["project"]["entry-points"]["minismtp"]
    assert group == {"blocked_domains": "blocked_domains:BlockedDomains"}


# The pages that come from the code

MADE: Final[dict[Path, str]] = runpy.run_path(str(ROOT / "docs" / "build.py"))["pages"]()


@pytest.mark.parametrize("page", MADE, ids=lambda page: page.name)
def test_page_is_what_make_docs_makes(page: Path) -> None:
    assert page.read_text() == MADE[page]


def test_every_option_of_the_configuration_is_in_its_reference() -> None:
    rows = tables(CONFIGURATION)
    for name, cls in [*file_tables(), ("Top level", Config)]:
        keys = {option.name for option in options(cls) if not option.kind.endswith("table")}
        assert {code(row[0])[0] for row in rows[f"`{name}`" if "[" in name else name]} == keys


def test_every_hook_is_in_its_reference() -> None:
    assert [
        code(name)[0] for name, _ in tables(ROOT / "docs" / "hooks.md")["Hooks"]
    ] == hook_names()


@pytest.mark.parametrize("page", [p for p in MADE if p.suffix != ".md"], ids=lambda p: p.name)
def test_manual_has_no_mistakes(page: Path, require_program: Callable[[str], str]) -> None:
    command = [require_program("mandoc"), "-T", "lint", "-W", "warning", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# The architecture, and links


def test_every_folder_has_its_row_in_order() -> None:
    order = runpy.run_path(str(ROOT / "tests" / "test_layers.py"))["ORDER"]
    documented = [code(row[0]) for row in tables(ARCHITECTURE)["The layers"]]
    assert documented == [[f"{folder}/"] for folder in order]


def test_modules_that_the_page_names_exist() -> None:
    folders = {path.name for path in (ROOT / "minismtp").iterdir() if path.is_dir()}
    named = {
        Path(*name.split(".")[:2])
        for name in re.findall(r"`(\w+\.\w+)[\w.]*`", ARCHITECTURE.read_text())
        if name.partition(".")[0] in folders
    }
    assert {"session/receiver", "mailqueue/scheduler"} <= {name.as_posix() for name in named}
    assert [
        name for name in named if not (ROOT / "minismtp" / name).with_suffix(".py").exists()
    ] == []


PROOFS: Final = tables(ARCHITECTURE)["What the promises rest on"]


@pytest.mark.parametrize("test", sorted({name for row in PROOFS for name in code(row[2])}))
def test_proof_exists(test: str) -> None:
    assert len([*(ROOT / "tests").rglob(f"{test}.py")]) == 1


def links() -> list[tuple[str, str]]:
    found = {
        (page.relative_to(ROOT).as_posix(), target)
        for page in PAGES
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text())
        if not target.startswith("https://")
    }
    return sorted(found)


@pytest.mark.parametrize(("page", "target"), links())
def test_link_leads_to_a_file_and_a_heading_in_it(page: str, target: str) -> None:
    file, _, anchor = target.partition("#")
    path = (ROOT / page).parent / file if file else ROOT / page
    assert path.exists()
    assert not anchor or anchor in anchors(path)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
