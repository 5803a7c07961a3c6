"""What commands import, because imports are most of the time that an operator waits for them.

A server's processes keep what they import in memory, so it imports what its configuration needs.
"""

import re
import smtplib
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

CONFIGURATION = 'state_directory = "state"\n[[listeners]]\nname = "smtp"\naddress = "unix:x"\n'
PLUGINS = """
[metrics]
address = "127.0.0.1:0"
[[plugins]]
use = "mailboxes"
domains = ["example.org"]
[[plugins]]
use = "maildir"
path = "mail/{local}"
"""
LISTENING = re.compile("listening .*address=([0-9.:]+)")
SCRIPT = """
import contextlib, io, sys
from minismtp.cli.main import main
with contextlib.redirect_stdout(io.StringIO()):
    status = main()
print(*sys.modules)
raise SystemExit(status)
"""
# Each takes 5 ms or more, or imports a package that does.
OF_MAIL = {"email", "minismtp.mail.headers", "minismtp.mail.message", "minismtp.storage.spool"}
OF_SERVERS = {"ssl", "dns", "pluggy", "prometheus_client", "minismtp.hooks", "minismtp.session"}
OF_CONFIGURATION = {"msgspec", "tomli", "idna", "minismtp.config", "minismtp.values.address"}
# The parts of a server that others than the default one use, and the libraries that they need.
OF_OTHER_SERVERS = {
    *("minismtp.server.mail_settings", "minismtp.server.web_listener", "minismtp.server.web_site"),
    *("minismtp.server.certificate_process", "minismtp.server.dns_watch"),
    *("acme", "asyncio", "cryptography", "difflib", "dns", "email.headerregistry", "plistlib"),
    *("minismtp.services.state_redis", "multiprocessing", "redis", "unittest", "xml"),
}
IMPORT_OF_SERVER = """
import sys
import minismtp.cli.main, minismtp.cli.serve, minismtp.server.supervisor
print(*sys.modules)
"""
#: Runs a server whose processes note, when they end, what they imported since they were forked,
#: and which patterns they compiled.
RECORDED_SERVER = """
import re._compiler
import sys
from pathlib import Path
from minismtp.cli.main import main
from minismtp.server.processes import Children

fork = Children.fork

def recording(self, name, slot, group, user, body, *, affinity=False):
    def run(ready):
        before, patterns, compiled = {*sys.modules}, [], re._compiler.compile

        def noting(pattern, flags=0):
            patterns.append(str(pattern))
            return compiled(pattern, flags)

        re._compiler.compile = noting
        status = body(ready)
        Path(f"{name}-{slot}.imports").write_text(" ".join({*sys.modules} - before))
        Path(f"{name}-{slot}.patterns").write_text("\\n".join(patterns))
        return status

    return fork(self, name, slot, group, user, run, affinity=affinity)

Children.fork = recording
raise SystemExit(main())
"""


def imported(directory: Path, *words: str) -> set[str]:
    """Run a command in a process of its own, and return the names of the modules it imported."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words],
        cwd=directory,
        check=True,
        capture_output=True,
        text=True,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("command", "unused"),
    [
        ("--help", OF_MAIL | OF_SERVERS | OF_CONFIGURATION | {"sqlite3"}),
        ("passwd --help", OF_MAIL | OF_SERVERS | {"msgspec", "minismtp.config", "sqlite3"}),
        ("queue list --config x.toml", OF_MAIL | OF_SERVERS),
    ],
)
def test_command_imports_only_what_it_uses(command: str, unused: set[str], tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(f'{CONFIGURATION}tls = "none"\n')
    (tmp_path / "state" / "spool").mkdir(parents=True)
    assert not imported(tmp_path, *command.split()) & unused


def test_server_imports_only_what_its_configuration_needs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_OF_SERVER], check=True, capture_output=True, text=True
    )
    assert not {*done.stdout.split()} & OF_OTHER_SERVERS


def test_processes_of_a_server_import_and_compile_nothing_for_themselves(tmp_path: Path) -> None:
    """A module takes ten times its memory in a forked process, which copies what it touches.

    The first pattern that a process compiles takes 0.2 MB.
    """
    listener = CONFIGURATION.replace("unix:x", "127.0.0.1:0")
    (tmp_path / "x.toml").write_text(f'workers = 2\n{listener}tls = "none"\n{PLUGINS}')
    command = [sys.executable, "-c", RECORDED_SERVER, "serve", "--config", "x.toml"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        log = ""
        while not (address := LISTENING.search(log)) or "queue opened" not in log:
            log += server.stderr.readline() or pytest.fail(f"the server ended: {log}")
        with smtplib.SMTP(address[1]) as client:
            client.sendmail("me@example.com", ["you@example.org"], "Subject: x\n\nx\n")
        server.terminate()
        log += server.stderr.read()
    imports = {path.stem: path.read_text() for path in tmp_path.glob("*.imports")}
    assert {name.partition("-")[0] for name in imports} == {"worker", "http", "queue"}, log
    assert imports == dict.fromkeys(imports, "")
    patterns = {path.stem: path.read_text().splitlines() for path in tmp_path.glob("*.patterns")}
    # A worker looks for files of a crash with the module glob.
    allowed = {name: "(?s:" if name.startswith("worker") else "\0" for name in patterns}
    assert [
        (name, each)
        for name, found in patterns.items()
        for each in found
        if not each.startswith(allowed[name])
    ] == []


#: Prints which of the modules in its first argument a supervisor imports for a configuration.
PREPARED: Final = """
import sys
from pathlib import Path
from minismtp.config import Config
from minismtp.server.generation import Generation
from minismtp.server.launch import import_for
config = Config.load(Path("x.toml"))
import_for(config)
Generation(config, {}, wanted=1, begun=0.0)
print(*[name for name in sys.argv[1].split() if name in sys.modules])
"""
WEB: Final = '[[listeners]]\nname = "web"\naddress = "*:80"\nkind = "web"\n'
OWN_PLUGIN: Final = """
from minismtp import plugin

@plugin
class Own:
    pass
"""


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('[dns]\ncheck = "0s"\n', ""),
        ('[updates]\ncheck = "1d"\n', "minismtp.server.dns_watch minismtp.server.update_watch"),
        ('[dns]\ncheck = "0s"\n[state]\nurl = "redis://localhost"\n', "redis"),
        (
            f'{WEB}[dns]\ncheck = "0s"\n[tls.acme]\nagree_terms = true\n',
            "minismtp.server.certificate_process minismtp.server.web_listener",
        ),
        (
            '[dns]\ncheck = "0s"\n[[plugins]]\nuse = "own"\n',
            "minismtp.storage.quarantine minismtp.values.passwords",
        ),
    ],
    ids=["nothing", "watches", "redis", "certificate", "own plugin"],
)
def test_supervisor_imports_what_the_processes_of_its_configuration_need(
    lines: str, expected: str, tmp_path: Path
) -> None:
    """So a process that is replaced after an upgrade has no modules of two releases.

    No configuration has it import the library for ACME, which takes 20 MiB.
    """
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "own.py").write_text(OWN_PLUGIN)
    top = 'hostname = "mx.example.org"\nplugin_path = ["plugins"]\n'
    smtp = '[[listeners]]\nname = "smtp"\naddress = "*:25"\ntls = "none"\n'
    (tmp_path / "x.toml").write_text(top + smtp + lines)
    watched = {
        *("acme", "josepy", "redis", "minismtp.storage.quarantine"),
        *("minismtp.values.passwords", "minismtp.server.certificate_process"),
        *(f"minismtp.server.{name}" for name in ("dns_watch", "update_watch", "web_listener")),
    }
    done = subprocess.run(
        [sys.executable, "-c", PREPARED, " ".join(watched)],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert {*done.stdout.split()} == {*expected.split()}, done.stderr
