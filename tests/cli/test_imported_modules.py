"""What commands import, because imports are most of the time that an operator waits for them.

A server's processes keep what they import in memory, so it imports what its configuration needs.
"""

import subprocess
import sys
from pathlib import Path

import pytest

CONFIGURATION = 'state_directory = "state"\n[[listeners]]\nname = "smtp"\naddress = "unix:x"\n'
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
    *(f"minismtp.server.web_{part}" for part in ("listener", "pages", "server", "site")),
    *("minismtp.server.mail_settings", "minismtp.server.autodiscover_request"),
    *("minismtp.server.certificate_process", "minismtp.services.acme_schedule"),
    *(
        "minismtp.server.dns_watch",
        "minismtp.inspection.dns_records",
        "minismtp.services.state_redis",
    ),
    *("acme", "asyncio", "cryptography", "difflib", "dns", "multiprocessing", "plistlib", "redis"),
    *("requests", "unittest", "xml"),
}
SERVER = "import minismtp.cli.main, minismtp.cli.serve, minismtp.server.supervisor\n"


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


def test_server_without_a_configuration_imports_only_what_it_uses() -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{SERVER}import sys; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert not {*done.stdout.split()} & OF_OTHER_SERVERS
