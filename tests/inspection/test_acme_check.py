"""What `minismtp check` says about a certificate of an authority."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from snippets import MX, listener

from minismtp.config import Config
from minismtp.inspection.acme import check_acme

TABLE: Final = "[tls.acme]\nagree_terms = true\n"
TOP: Final = 'hostname = "mx.example.org"\nstate_directory = "state"\n'


def problems(directory: Path, *web: str, lines: str = "") -> list[str]:
    """Return the problems of a server with web listeners at these addresses."""
    listeners = [
        listener(f"web{number}", 'kind = "web"', address=address)
        for number, address in enumerate(web)
    ]
    path = directory / "minismtp.toml"
    path.write_text("".join([TOP, MX, *listeners, TABLE, lines]))
    found = check_acme(Config.load(path))
    return [f"{each.mistake.key}: {each.mistake.message}" for each in found]


@pytest.mark.parametrize("addresses", [["*:80"], ["*:443"], ["*:8080", "*:443"], ["*:80", "*:443"]])
def test_one_port_where_the_authority_asks_is_enough(addresses: list[str], tmp_path: Path) -> None:
    assert not problems(tmp_path, *addresses)


def test_ports_where_the_authority_does_not_ask_are_named(tmp_path: Path) -> None:
    rest = "where the authority asks, so whatever has the port must pass that on"
    [found] = problems(tmp_path, "127.0.0.1:8080")
    assert found == f"tls.acme: no listener of the kind web has port 80, {rest}"
    [found] = problems(tmp_path, "*:8080", "*:443", lines='challenge = "http-01"\n')
    assert found == f"tls.acme.challenge: no listener of the kind web has port 80, {rest}"
    tls = '[[listeners]]\nname = "tls"\nkind = "web"\naddress = "*:8443"\ntls = "implicit"\n'
    [found] = problems(tmp_path, "*:8080", lines=tls)
    assert found == f"tls.acme: no listener of the kind web has port 80 or 443, {rest}"
