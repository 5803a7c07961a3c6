"""The checks of a sender together: as their pages have them, and with names that nsd serves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from minismtp.config import Config
from minismtp.plugins import PluginSet

PAGES: Final = Path(__file__).parents[1] / "docs" / "plugins"
LISTENER: Final = '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\ntls = "none"\n'


@pytest.mark.parametrize("name", ["authentication_results", "dkim_verify"])
def test_example_of_the_page_is_a_configuration(name: str, tmp_path: Path) -> None:
    page = (PAGES / f"{name}.md").read_text()
    assert page.startswith(f"# {name}\n")
    examples = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert examples
    for example in examples:
        PluginSet.load(Config.parse(LISTENER + example, tmp_path / "minismtp.toml"))
