"""A server whose code is installed again while it runs: no process gets modules of two releases."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from authority import Authority
from nameserver import Records, running
from snippets import CLEAR, MAILBOXES, listener

from minismtp.config.mistakes import ConfigError
from minismtp.server import installed_code
from minismtp.server.installed_code import InstalledCode

if TYPE_CHECKING:
    from conftest import Configure, Running, Start

SMTP: Final = listener("smtp", CLEAR)
ROOT: Final = Path(__file__).parents[2]
RESTART: Final = "was installed again since it started, so {} may be of another release; restart"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a package of our own with the modules `early` and `late`, of which one is imported."""
    directory = tmp_path / "sample_of_ours"
    directory.mkdir()
    for name in ("__init__", "early", "late"):
        (directory / f"{name}.py").write_text("release = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(installed_code, "_OWN", ("sample_of_ours",))
    importlib.import_module("sample_of_ours.early")
    yield directory
    for name in [each for each in sys.modules if each.startswith("sample_of_ours")]:
        del sys.modules[name]


def install(file: Path) -> None:
    """Replace a file as an upgrade does."""
    new = file.with_suffix(".new")
    new.write_text("release = 2\n")
    new.replace(file)


@pytest.mark.usefixtures("package")
def test_module_is_imported_late_as_long_as_nothing_was_replaced() -> None:
    code = InstalledCode("no_such_package")
    with code.guarding():
        assert importlib.import_module("sample_of_ours.late").release == 1
    assert not code.is_replaced()


@pytest.mark.parametrize("change", [install, Path.unlink], ids=["replaced", "removed"])
def test_module_of_another_release_is_refused(
    change: Callable[[Path], None], package: Path
) -> None:
    code, finders = InstalledCode(), [*sys.meta_path]
    change(package / "early.py")
    with code.guarding():
        importlib.import_module("sample_of_ours.early")  # it is there
        importlib.import_module("this")  # of others
    with pytest.raises(ConfigError, match=RESTART.format("sample_of_ours.late")), code.guarding():
        importlib.import_module("sample_of_ours.late")
    assert sys.meta_path == finders
    assert "sample_of_ours.late" not in sys.modules


def test_same_release_installed_again_changes_nothing(package: Path) -> None:
    """As when an extra is added, before the plugin that needs it."""
    code = InstalledCode()
    for file in [*package.glob("*.py")]:
        new = file.with_suffix(".new")
        new.write_bytes(file.read_bytes())
        new.replace(file)
    assert not code.is_replaced()


def test_package_of_others_that_was_installed_again_may_have_changed(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed_code, "_OWN", ())
    code, first = InstalledCode("sample_of_ours"), package / "__init__.py"
    assert not code.is_replaced()
    first.with_suffix(".new").write_bytes(first.read_bytes())
    first.with_suffix(".new").replace(first)
    assert code.is_replaced()
    first.unlink()
    assert code.is_replaced()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a directory with the packages of the server, of which one may be replaced."""
    directory = tmp_path / "installed"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "minismtp", directory / "minismtp", ignore=ignored)
    shutil.copytree(ROOT / "plugins", directory / "minismtp_plugins", ignore=ignored)
    return directory


def reload(server: Running) -> str:
    """Reload the server, and return why that failed, "" if it did not."""
    begun = len(server.log)
    server.signal(signal.SIGHUP)
    pattern = re.compile(" info reloaded$| error reload failed, .*", re.MULTILINE)
    [found] = server.wait_until(lambda: pattern.findall(server.log[begun:]))
    return "" if found == " info reloaded" else found


def test_order_in_which_a_directory_is_listed_does_not_count(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system may change it when another file is added, such as compiled code."""
    (package / "inner").mkdir()
    (package / "inner" / "module.py").write_text("")
    code, walk = InstalledCode(), os.walk

    def backwards(place: Path) -> list[tuple[str, list[str], list[str]]]:
        return [(each, names, files[::-1]) for each, names, files in walk(place)][::-1]

    monkeypatch.setattr(os, "walk", backwards)
    assert not code.is_replaced()


def test_reload_after_an_upgrade_imports_no_module_of_the_server(
    copy: Path, configure: Configure, start: Start
) -> None:
    server = start(configure(), command=("env", f"PYTHONPATH={copy}"))
    install(copy / "minismtp" / "cli" / "top.py")
    configure(listeners=SMTP + listener("web", 'kind = "web"', CLEAR))
    assert RESTART.format("minismtp.server.web_listener") in reload(server)
    configure(plugins=f'{MAILBOXES}[[plugins]]\nuse = "early_talker"\n')
    assert RESTART.format("minismtp_plugins.early_talker") in reload(server)
    configure(workers=2)
    assert reload(server) == ""
    with server.connect() as client:
        client.greet()
        assert client.command("NOOP") == "250 2.0.0 ok"


def test_certificate_process_that_is_replaced_after_an_upgrade_makes_no_attempt(
    copy: Path, configure: Configure, start: Start
) -> None:
    with running(Records({})) as records:
        authority = Authority(1, 0, 0, copy / "ca.pem", copy, records.address.port)
        table, web = authority.table(None), listener("web", 'kind = "web"', CLEAR)
        config = configure(table, listeners=listener("smtp") + web)
        server = start(config, command=("env", f"PYTHONPATH={copy}"))
        server.wait_for_log(" warning the certificate waits for the DNS ")
        install(copy / "minismtp" / "cli" / "top.py")
        for process in server.tree():
            if "acme" in Path(f"/proc/{process}/comm").read_text():
                os.kill(process, signal.SIGKILL)
        text = RESTART.format("minismtp.services.acme")
        server.wait_for_log(f' error the certificate cannot be looked after error=".*{text}')
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert server.log.count(" info getting a certificate ") == 1
