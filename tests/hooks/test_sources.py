"""What the supervisor imports for all its processes, each time in an interpreter of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from minismtp.config import Config
from minismtp.hooks.sources import import_shipped, installed
others = [EntryPoint(name, value, "minismtp") for name, value in (
    ("third", "minismtp_extra:Third"),
    ("gone", "minismtp_plugins.no_such_module:Gone"),
)]
config = Config.parse(Path("minismtp.toml").read_text(), Path("minismtp.toml"))
import_shipped(config, [*others, *installed()])
print(*sys.modules)
"""
CONFIGURATION = """
state_directory = "state"
plugin_path = ["plugins"]
[[listeners]]
name = "smtp"
address = "127.0.0.1:2525"
tls = "none"
"""


@pytest.mark.parametrize(
    ("used", "expected"),
    [
        (["early_talker"], {"early_talker"}),
        (["early_talker", "early_talker"], {"early_talker"}),
        (["local"], set()),
        (["third"], set()),
        (["gone", "early_talker"], {"early_talker"}),
        (["unknown", "early_talker"], {"early_talker"}),
    ],
    ids=["shipped", "twice", "local", "of another package", "cannot be imported", "unknown"],
)
def test_only_modules_of_shipped_plugins_in_use_are_imported(
    used: list[str], expected: set[str], tmp_path: Path
) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "local.py").write_text("raise SystemExit(3)")
    (tmp_path / "minismtp_extra.py").write_text("")
    tables = "".join(
        f'[[plugins]]\nuse = "{use}"\nname = "{use}{number}"\n' for number, use in enumerate(used)
    )
    names = modules(tmp_path, CONFIGURATION + tables)
    assert shipped(names) == expected
    assert "minismtp_extra" not in names


def test_local_file_hides_a_shipped_plugin(tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "early_talker.py").write_text("raise SystemExit(3)")
    text = CONFIGURATION + '[[plugins]]\nuse = "early_talker"\n'
    assert shipped(modules(tmp_path, text)) == set()


def shipped(names: set[str]) -> set[str]:
    """Return which modules are those of shipped plugins, without the package."""
    prefix = "minismtp_plugins."
    names = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    return {name for name in names if not name.startswith("_")}


def modules(directory: Path, configuration: str) -> set[str]:
    """Return all modules that are imported once a configuration was prepared."""
    (directory / "minismtp.toml").write_text(configuration)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=directory, check=True, capture_output=True, text=True
    )
    return {*done.stdout.split()}


def test_public_suffix_list_is_read_before_the_fork(tmp_path: Path) -> None:
    text = CONFIGURATION + '[[plugins]]\nuse = "dmarc"\n'
    assert "publicsuffixlist" in modules(tmp_path, text)
