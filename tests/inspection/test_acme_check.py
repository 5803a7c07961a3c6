"""What `minismtp check` says about a certificate of an authority."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from snippets import MX, listener

from minismtp.config import Config
from minismtp.hooks.loader import instances
from minismtp.inspection.acme import check_acme
from minismtp.inspection.acme_names import check_acme_names

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


@pytest.mark.parametrize(
    ("address", "names", "missing"),
    [
        ("*:80", [], []),  # another server may have HTTPS
        ("*:443", [], ["mta-sts", "autoconfig", "autodiscover"]),
        ("*:443", ["mta-sts", "autodiscover"], ["autoconfig"]),
        ("*:443", ["mta-sts", "autoconfig", "autodiscover"], []),
    ],
)
def test_names_under_which_pages_are_served_are_expected_in_the_certificate(
    address: str, names: list[str], missing: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "minismtp.toml"
    web = listener("web", 'kind = "web"', address=address)
    given = ["mx.example.org", *(f"{name}.a.example" for name in names)]
    boxes = '[[plugins]]\nuse = "mailboxes"\ndomains = ["a.example"]\n'
    relay = '[[plugins]]\nuse = "relay"\ndomains = ["b.example"]\n'
    path.write_text(f"{TOP}{MX}{web}{TABLE}names = {given}\n{boxes}{relay}")
    config = Config.load(path)
    found = [*check_acme_names(config, instances(config, "on_dns"))]
    expected = ", ".join(f"{name}.a.example" for name in missing)
    assert [each.mistake.message for each in found] == [
        f"expected also {expected}, under which the listener 'web' serves pages for mail programs"
    ] * bool(missing)
    assert all(each.mistake.key == "tls.acme.names" for each in found)
