"""The command that adds an extra, which depends on how this server was installed."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import pytest
from source import ROOT

from minismtp.values import installation
from minismtp.values.installation import how_to_install
from minismtp.values.passwords import hash_password

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the interpreter be that of a virtual environment which `make install` made."""
    (tmp_path / "share" / "minismtp").mkdir(parents=True)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    return tmp_path


def test_service_is_installed_again_with_its_extras(
    prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installation, "_DEFAULT_PREFIX", prefix)
    assert (
        how_to_install("dkim", "dmarc") == "in the source tree run `make install EXTRAS=dkim,dmarc`"
    )


def test_service_elsewhere_is_installed_again_in_its_place(prefix: Path) -> None:
    command = f"make install EXTRAS=argon2 PREFIX={prefix}"
    assert how_to_install("argon2") == f"in the source tree run `{command}`"


def test_plugin_of_another_package_comes_by_pip_into_the_service(prefix: Path) -> None:
    assert (prefix / "share").is_dir()
    wanted = f"run `{sys.executable} -m pip install 'other[fast]'`"
    assert how_to_install("fast", package="other") == wanted


def test_message_about_an_extra_names_the_command_of_the_service(
    prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "argon2", None)
    with pytest.raises(ModuleNotFoundError, match=f"EXTRAS=argon2 PREFIX={re.escape(str(prefix))}"):
        hash_password("secret", "argon2id")


def test_variables_of_the_command_are_those_of_the_installer() -> None:
    text = (ROOT / "systemd" / "install").read_text()
    for variable in ("EXTRAS", "PREFIX"):
        assert f"${{{variable}" in text
    assert f"prefix=${{PREFIX:-{installation._DEFAULT_PREFIX}}}" in text  # noqa: SLF001
    assert '"$venv/share/minismtp"' in text
