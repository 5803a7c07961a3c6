"""The table `[tls.acme]`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from minismtp.config import Config
from minismtp.config.mistakes import ConfigError

SMTP: Final = '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\n'
WEB: Final = '[[listeners]]\nname = "web"\nkind = "web"\naddress = "127.0.0.1:8080"\n'
TOP: Final = 'hostname = "MX.example.org"\nstate_directory = "/state"\n'


def parse(text: str) -> Config:
    return Config.parse(text, Path("/etc/m.toml"))


def table(*lines: str, agree: str = "true", top: str = TOP) -> str:
    return "\n".join([top, SMTP, WEB, "[tls.acme]", f"agree_terms = {agree}", *lines])


def test_names_are_that_of_the_server_unless_others_are_given() -> None:
    config = parse(table())
    assert config.tls.acme is not None
    assert config.tls.acme.names == ["mx.example.org"]
    assert config.tls.acme.url == "https://acme-v02.api.letsencrypt.org/directory"
    assert config.tls.certificate == config.tls.key == Path("/state/acme/certificate.pem")
    config = parse(table('names = ["B.Example.Org.", "bücher.example"]'))
    assert config.tls.acme is not None
    assert config.tls.acme.names == ["b.example.org", "xn--bcher-kva.example"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("me+acme@example.org", "me+acme@example.org"),
        ("me@Bücher.example", "me@xn--bcher-kva.example"),
    ],
)
def test_contact_is_an_address_in_ascii(text: str, expected: str) -> None:
    config = parse(table(f'contact = "{text}"'))
    assert config.tls.acme is not None
    assert config.tls.acme.contact == expected


@pytest.mark.parametrize(
    ("lines", "url"),
    [
        ('directory = "letsencrypt-staging"', "acme-staging-v02.api.letsencrypt.org/directory"),
        ('directory = "https://ca.internal:8443/dir"', "ca.internal:8443/dir"),
    ],
)
def test_directory_has_a_short_name_or_is_a_url(lines: str, url: str) -> None:
    config = parse(table(lines))
    assert config.tls.acme is not None
    assert config.tls.acme.url == f"https://{url}"


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        (table(agree="false"), r"agree_terms, line 14: expected true, which says that you agree"),
        (table('names = ["a b"]'), r"names\[0\]"),
        (table('names = ["192.0.2.1"]'), r"names\[0\]"),
        (table('names = ["mx.example.org", "mail"]'), r"names\[1\].*expected a whole name"),
        (table('names = ["*.example.org"]'), r"names\[0\].* does not check a wildcard over HTTP"),
        (table('names = ["a_b.example.org"]'), r"names\[0\].*has an underscore"),
        (table('names = ["a.example", "A.example"]'), r"names\[1\].*is taken"),
        (table(f"names = {[f'a{n}.example' for n in range(101)]}"), r"expected 100 names at most"),
        (table('contact = "me"'), r"contact.*expected a mail address"),
        (table('contact = "mailto:me@example.org"'), r"contact.*expected a mail address"),
        (table('contact = "a@example.org,b@example.org"'), r"contact.*expected a mail address"),
        (table('contact = "me@exa mple.org"'), r"contact.*expected a mail address"),
        (table('contact = "mé@example.org"'), r"contact.*expected a mail address"),
        (table('directory = "http://ca.example/dir"'), r"directory.*begins with https://"),
        (table('directory = "https://"'), r"directory.*begins with https://"),
        (table('directory = "https://[x"'), r"directory.*begins with https://"),
        (table('directory = "https://ca.example:x/"'), r"directory.*begins with https://"),
        (table('directory = "zerossl"'), r'expected "letsencrypt" or "letsencrypt-staging"'),
        (table('eab_key_id = "a"'), r"eab_key_file.* required beside 'eab_key_id'"),
        (table('eab_key_file = "a"'), r"eab_key_id.* required beside 'eab_key_file'"),
        (table('key_type = "dsa"'), r"key_type"),
        (table().replace(WEB, ""), r'tls\.acme, line 9: needs a listener of the kind "web"'),
        (
            table('challenge = "tls-alpn-01"'),
            r'tls\.acme\.challenge, line 15: needs a listener .* tls = "implicit" on port 443',
        ),
        (
            table('challenge = "http-01"').replace("127.0.0.1:8080", "*:443"),
            r"tls\.acme\.challenge, line 15: needs a listener .* without TLS on port 80",
        ),
        (
            table('challenge = "tls-alpn-01"', 'challenges = "/x"').replace(":8080", ":443"),
            r"tls\.acme\.challenges, line 16: the authority fetches its files by \"http-01\" only",
        ),
        (table('challenge = "dns-01"'), r'challenge, line 15: expected .*"http-01", "tls-alpn-01"'),
        (table(top='hostname = "mail"'), r"hostname, line 1: expected a whole name"),
        (
            table().replace("[tls.acme]", '[tls]\ncertificate = "c"\nkey = "k"\n[tls.acme]'),
            r"tls\.certificate, line 14: expected either certificate and key, or \[tls\.acme\]",
        ),
    ],
)
def test_mistake_names_the_key(text: str, mistake: str) -> None:
    with pytest.raises(ConfigError, match=mistake):
        parse(text)


def test_directory_of_another_web_server_needs_no_listener() -> None:
    text = table('challenges = "/var/www/acme"').replace(WEB, "")
    config = parse(text)
    assert config.tls.acme is not None
    assert config.tls.acme.challenges == Path("/var/www/acme")


@pytest.mark.parametrize(
    ("addresses", "lines", "expected"),
    [
        (["*:80"], (), ["http-01"]),
        (["*:443"], (), ["tls-alpn-01"]),
        (["*:443", "*:80"], (), ["http-01", "tls-alpn-01"]),
        (["*:443", "*:80"], ('challenge = "tls-alpn-01"',), ["tls-alpn-01"]),
        (["*:443", "*:80"], ('challenge = "http-01"',), ["http-01"]),
        (["*:443"], ('challenges = "/var/www/acme"',), ["http-01", "tls-alpn-01"]),
    ],
)
def test_names_are_checked_where_listeners_answer(
    addresses: list[str], lines: tuple[str, ...], expected: list[str]
) -> None:
    web = "".join(
        WEB.replace('"web"\nk', f'"web{number}"\nk').replace("127.0.0.1:8080", address)
        for number, address in enumerate(addresses)
    )
    assert parse(table(*lines).replace(WEB, web)).acme_challenges == expected
