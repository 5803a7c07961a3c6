"""The packages of a release: what is in them, and the first mail through each."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import packages
import pytest
from machine import HERE, PYTHON, Machine, booted, constraints, debian13
from packages import UFW, Packages
from source import ROOT

import minismtp

if TYPE_CHECKING:
    from conftest import TlsFiles

REQUIRED: Final = os.environ.get("MINISMTP_REQUIRE_SERVICES") == "1"
CONFIGURATION: Final = """
hostname = "mx.example.org"
state_directory = "/var/lib/minismtp"
workers = 1

[[listeners]]
name = "smtp"
address = "0.0.0.0:25"
tls = "none"

[[plugins]]
use = "mailboxes"
domains = ["example.org"]

[[plugins]]
use = "maildir"
path = "/var/lib/minismtp/mail/{local}"
"""
STATE: Final = "/var/lib/minismtp"
MAIL: Final = f"{STATE}/mail"
#: Stands for what builds a release, and says which time the files would have.
BUILD: Final = """#!/bin/sh
test -e "$1/minismtp/__init__.py" && ! test -e "$1/.git" && echo "time: $SOURCE_DATE_EPOCH"
"""


def refuse(problem: str) -> None:
    """Skip tests that cannot run here, or fail if all tests are required."""
    if REQUIRED:
        pytest.fail(problem)
    pytest.skip(problem)


@pytest.fixture(scope="module")
def made(require_program: Callable[[str], str]) -> Packages:
    """Return the packages, which are built first if need be."""
    require_program("dpkg-deb")
    if subprocess.run([PYTHON, "-c", "import ensurepip, tomllib"], check=False).returncode != 0:
        refuse(f"{PYTHON} is older than 3.11, or python3-venv is missing")
    return packages.built()


# What a release consists of


def test_every_file_has_its_checksum(made: Packages) -> None:
    lines = made.file("SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    there = {path.name for path in made.directory.iterdir()} - {"SHA256SUMS"}
    version = minismtp.__version__
    assert listed.keys() == there
    assert {re.sub(r"_(amd64|arm64)\.deb$", ".deb", name) for name in there} == {
        f"minismtp-{version}.tar.gz",
        f"minismtp-{version}-py3-none-any.whl",
        f"minismtp-{version}.cdx.json",
        f"minismtp_{version}.deb",
    }
    for name, digest in listed.items():
        assert hashlib.sha256((made.directory / name).read_bytes()).hexdigest() == digest


def test_archives_say_nothing_of_the_machine_that_made_them(made: Packages) -> None:
    with tarfile.open(made.file("*.tar.gz")) as archive:
        members = archive.getmembers()
    with zipfile.ZipFile(made.file("*.whl")) as wheel:
        times = {item.date_time for item in wheel.infolist()}
    assert {(item.uid, item.gid, item.uname, item.mtime) for item in members} == {
        (0, 0, "root", members[0].mtime)
    }
    assert len(times) == 1


def test_bill_of_materials_names_each_package_and_its_license(made: Packages) -> None:
    bill = json.loads(made.file("*.cdx.json").read_text())
    pinned = {
        line.split()[0].replace("_", "-").lower()
        for part, lines in constraints().items()
        if part != "build"
        for line in lines
    }
    found = {
        f"{each['name'].replace('_', '-').lower()}=={each['version']}"
        for each in bill["components"]
    }
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "minismtp")
    assert bill["metadata"]["component"]["version"] == minismtp.__version__
    assert found == pinned
    assert all(each["licenses"] for each in bill["components"])
    assert "/tmp" not in json.dumps(bill)  # noqa: S108 - nor anything else of the build


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a repository that has what `make release` looks at."""
    for name in (".ci/release", "CHANGELOG.md", "minismtp/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / ".ci/release").chmod(0o755)
    build = tmp_path / ".ci/build-packages"
    build.write_text(BUILD)
    build.chmod(0o755)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    commit(tmp_path)
    return tmp_path


def commit(repository: Path) -> None:
    git = ("git", "-C", repository, "-c", "user.name=x", "-c", "user.email=x@example.org")
    subprocess.run([*git, "add", "--all"], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "x"], check=True)


def release(repository: Path, **settings: str) -> tuple[int, str]:
    names = {"SOURCE_DATE_EPOCH", "DEBEMAIL"}
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [repository / ".ci/release"],
        env=environment | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def date_section(repository: Path, heading: str) -> None:
    changelog = repository / "CHANGELOG.md"
    lines = [line for line in changelog.read_text().splitlines() if not line.startswith("## [1")]
    lines.insert(lines.index("## [Unreleased]") + 1, heading)
    changelog.write_text("\n".join(lines) + "\n")


def test_release_is_built_from_the_commit(repository: Path) -> None:
    date_section(repository, f"## [{minismtp.__version__}] - 2026-12-01")
    commit(repository)
    status, said = release(repository)
    version = minismtp.__version__
    assert status == 0, said
    assert f"Version {version} is in dist/. What is left to do: git tag v{version} " in said
    committed = ("git", "-C", repository, "log", "-1", "--format=%ct")
    assert f"time: {subprocess.check_output(committed, text=True)}" in said
    assert "set DEBFULLNAME and DEBEMAIL" in said
    status, said = release(repository, SOURCE_DATE_EPOCH="1700000000", DEBEMAIL="me@example.org")
    assert status == 0, said
    assert "time: 1700000000\n" in said
    assert "DEBEMAIL" not in said


@pytest.mark.parametrize("heading", ["", "## [0.9.9] - 2026-12-01", "## [1.0.0] - unreleased"])
def test_release_needs_a_dated_section_for_the_version(heading: str, repository: Path) -> None:
    date_section(repository, heading)
    commit(repository)
    status, said = release(repository)
    assert status == 1
    assert f"CHANGELOG.md has no section for version {minismtp.__version__}" in said


def test_release_refuses_a_tree_with_changes(repository: Path) -> None:
    date_section(repository, f"## [{minismtp.__version__}] - 2026-12-01")
    commit(repository)
    (repository / "forgotten.py").touch()
    status, said = release(repository)
    assert status == 1
    assert "changes that are not committed:\n?? forgotten.py" in said


# The Debian package


def test_lintian_finds_nothing(made: Packages, require_program: Callable[[str], str]) -> None:
    """The overrides have their reasons in etc/debian/lintian-overrides."""
    lintian = require_program("lintian")
    command = (lintian, "--allow-root", "--fail-on=error,warning", made.file("*.deb"))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.fixture(scope="module", params=["debian12", "debian13"])
def machine(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    require_program: Callable[[str], str],
    made: Packages,
    tls_files: TlsFiles,
) -> Iterator[Machine]:
    """Yield a machine that has installed the package and received a mail.

    Then the next version was installed while it ran.
    """
    nspawn = require_program("systemd-nspawn")
    if os.geteuid() != 0:
        refuse("booting systemd needs root")
    tree = debian13() if request.param == "debian13" else HERE
    directory = tmp_path_factory.mktemp("machine")
    debs = directory / "debs"
    debs.mkdir()
    (debs / "minismtp.deb").write_bytes(made.file("*.deb").read_bytes())
    packages.newer(made.file("*.deb"), debs)
    with booted(nspawn, directory, debs, tree=tree) as leader:
        machine = Machine(leader, tls_files.client())
        machine.wait_until(
            lambda: (
                machine.run("systemctl", "is-system-running", check=False)
                in {"running", "degraded"}
            )
        )
        machine.run("rm", "-f", "/usr/sbin/policy-rc.d")  # this machine's own, if it has one
        yield machine


def apt(machine: Machine, *arguments: str) -> str:
    """Call apt-get as scripts do; nothing can be downloaded."""
    return machine.run(
        *("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--yes", "--quiet=2"),
        *("--no-install-recommends", *arguments),
    )


def test_package_from_its_installation_to_its_end(machine: Machine) -> None:
    """One story, because each step needs the one before."""
    said = apt(machine, "install", "/wheels/minismtp.deb")
    assert "systemctl enable --now minismtp" in said
    assert machine.show("ActiveState") == "inactive"
    assert machine.run("minismtp", "--version") == "minismtp 1.0.0"
    modules = "argon2, cryptography.hazmat.bindings._rust, redis, regex, publicsuffixlist"
    machine.write("/usr/local/lib/minismtp/own_package.py", "")
    machine.run("/usr/lib/minismtp/bin/python", "-c", f"import own_package, {modules}")

    text = (ROOT / "docs" / "packages.md").read_text()
    for command in re.findall(r"^install -m .*|^minismtp passwd .*", text, re.MULTILINE):
        machine.run("sh", "-c", command, say="secret\n")
    kept = machine.run("stat", "--format=%U:%G %a", "/etc/minismtp/passwords")
    assert kept == "root:minismtp 640"
    assert "minismtp.toml" in machine.run("ls", "/etc/minismtp")

    machine.write("/etc/minismtp/minismtp.toml", CONFIGURATION)
    machine.run("systemctl", "enable", "--now", "minismtp")
    machine.send("first@example.org")
    [first] = machine.wait_until(lambda: machine.stored("first"))
    assert first.startswith(f"minismtp {MAIL}/first/new/")
    compiled = machine.shell("find /usr/lib/minismtp -path '*/minismtp/server/*.pyc'")
    assert compiled  # by py3compile: the service could not write there

    before = machine.show("MainPID")
    machine.shell(f"echo '# by hand' >>/{UFW}")
    said = apt(machine, "-o", "Dpkg::Options::=--force-confold", "install", "/wheels/newer.deb")
    assert machine.show("ActiveState") == "active"
    assert machine.show("MainPID") != before, said
    assert "info starting version=1.0.1 " in "\n".join(machine.journal())
    assert machine.run("cat", "/etc/minismtp/minismtp.toml") == CONFIGURATION.strip()
    machine.send("second@example.org")
    machine.wait_until(lambda: machine.stored("second"))

    keep_the_old_version_if_the_new_one_cannot_start(machine)

    profiles = machine.run("cat", f"/{UFW}").splitlines()
    assert profiles[-1] == "# by hand"
    assert "1.0.1" not in "".join(profiles)
    say_that_an_enabled_server_does_not_run(machine)

    keep_what_was_not_in_the_package(machine, first)


def keep_the_old_version_if_the_new_one_cannot_start(machine: Machine) -> None:
    running = machine.show("MainPID")
    machine.write("/etc/minismtp/minismtp.toml", CONFIGURATION + 'unheard = "of"\n')
    said = apt(machine, "install", "--reinstall", "--allow-downgrades", "/wheels/newer.deb")
    assert "unheard" in said
    assert "the old version goes on" in said
    assert machine.show("MainPID") == running
    machine.send("third@example.org")
    machine.wait_until(lambda: machine.stored("third"))
    machine.run("rm", "-r", f"{MAIL}/third")
    machine.write("/etc/minismtp/minismtp.toml", CONFIGURATION)


def say_that_an_enabled_server_does_not_run(machine: Machine) -> None:
    """As after it was removed and installed again. A failing systemd-tmpfiles changes nothing."""
    machine.run("systemctl", "stop", "minismtp")
    machine.shell("mkdir /tmp/failing; ln -s /bin/false /tmp/failing/systemd-tmpfiles")
    script = "PATH=/tmp/failing:$PATH /var/lib/dpkg/info/minismtp.postinst configure 1.0.0"
    said = machine.shell(script)
    assert said == "minismtp: the server is enabled, and does not run: systemctl start minismtp"
    unit = "/usr/local/lib/systemd/system/minismtp.service"
    machine.write(unit, "[Service]\nExecStart=/opt/minismtp/bin/minismtp\n")
    assert "whose unit comes first: make uninstall" in machine.shell(script)
    machine.run("rm", unit)


def keep_what_was_not_in_the_package(machine: Machine, first: str) -> None:
    """On Debian 12 the state is a link to a directory, and has a disk of its own in it."""
    waiting = f"{STATE}/spool/queue/a {STATE}/spool/damaged/b {STATE}/quarantine/cur/c"
    machine.shell(f"mkdir -p {STATE}/quarantine/cur; touch {waiting}")
    if "12" in machine.shell(". /etc/os-release; echo $VERSION_ID"):
        machine.shell(f"mv {STATE} /srv/state; ln -s /srv/state {STATE}")
        machine.shell(f"mkdir -p {STATE}/mta-sts; mount -t tmpfs tmpfs {STATE}/mta-sts")
    said = apt(machine, "remove", "minismtp")
    assert "kept: messages in the queue: 2, in quarantine: 1" in said
    assert machine.show("ActiveState") == "inactive"
    assert machine.run("test", "-e", "/usr/lib/minismtp", check=False) == ""
    assert machine.stored("first") == [first]
    assert machine.run("cat", "/etc/minismtp/minismtp.toml") != ""

    machine.shell(
        "mkdir -p /etc/minismtp/plugins /var/lib/minismtp/elsewhere/bob/cur;"
        "touch /etc/minismtp/plugins/own.py /var/lib/minismtp/elsewhere/bob/cur/mail"
    )
    said = apt(machine, "purge", "minismtp")
    assert "deleted: messages in the queue: 2, in quarantine: 1" in said
    assert "kept: the mail in /var/lib/minismtp" in said
    left = machine.shell("find /etc/minismtp/ /var/lib/minismtp/ -type f | sort").splitlines()
    assert [re.sub(r"/new/.*", "", name) for name in left] == [
        "/etc/minismtp/plugins/own.py",
        "/var/lib/minismtp/elsewhere/bob/cur/mail",
        f"{MAIL}/first",
        f"{MAIL}/second",
    ]
    links = "find /etc/systemd/system -name 'minismtp*'; dpkg -L minismtp 2>&1 || true"
    assert "is not installed" in machine.shell(links)
    assert machine.run("ls", "/etc/ufw/applications.d/minismtp", check=False).startswith("ls: ")
    assert machine.shell("find /usr/lib/minismtp 2>/dev/null || true") == ""
