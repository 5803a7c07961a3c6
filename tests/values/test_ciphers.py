"""Cipher suites of TLS 1.2: those of Postfix for strangers, forward secrecy for users."""

from __future__ import annotations

import re
import ssl
import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Literal

import pytest
import trustme
from snippets import MX, SUBMISSIONS, listener

from minismtp.config import Listener, TlsConfig
from minismtp.config.mistakes import ConfigError
from minismtp.config.outbound_tables import Outbound
from minismtp.config.types import SocketAddress
from minismtp.delivery.tls_security import Contexts
from minismtp.values.ciphers import GENEROUS

if TYPE_CHECKING:
    from conftest import Launch, Running

LISTENERS: Final = MX + SUBMISSIONS + listener("own", 'ciphers = "AES256-SHA"')
LOG: Final = "[log]\nrefusals = 10000\n"
#: Postfix's tls_medium_cipherlist, and suites that RFC 9325 section 4 forbids or lack certificates.
POSTFIX: Final = (
    "aNULL:-aNULL:HIGH:MEDIUM:+RC4:@STRENGTH:!aNULL:!eNULL:!RC4:!3DES:!MD5:!PSK:!SRP:!aDSS"
)


def suites(text: str) -> list[str]:
    """Return the suites of openssl for a list of TLS 1.2."""
    command = ["timeout", "30", "openssl", "ciphers", "-s", "-tls1_2", text]
    return subprocess.check_output(command, text=True).strip().split(":")


FROM_POSTFIX: Final = suites(POSTFIX)
FORBIDDEN: Final = suites("COMPLEMENTOFALL:aNULL:eNULL:@SECLEVEL=0")


@pytest.fixture(scope="module")
def servers(
    launch: Launch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Running]]:
    """Run servers with certificates of both kinds, by the kind."""
    authority = trustme.CA()
    tables = {}
    for kind in (trustme.KeyType.RSA, trustme.KeyType.ECDSA):
        path = tmp_path_factory.mktemp("pair") / "pair.pem"
        issued = authority.issue_cert("mx.example.org", key_type=kind)
        issued.private_key_and_cert_chain_pem.write_to_path(path)
        tables[kind.name] = f'[tls]\ncertificate = "{path}"\nkey = "{path}"\n'
    with (
        launch(tables["RSA"], LOG, listeners=LISTENERS) as rsa,
        launch(tables["ECDSA"], LOG, listeners=LISTENERS) as ecdsa,
    ):
        yield {"RSA": rsa, "ECDSA": ecdsa}


def agreed(server: Running, listener: str, cipher: str, *options: str) -> str:
    """Return the suite that openssl's client agrees on, "" for none."""
    starttls = () if listener == "submissions" else ("-starttls", "smtp")
    address = f"127.0.0.1:{server.port(listener)}"
    done = subprocess.run(
        [
            *("timeout", "30", "openssl", "s_client", "-connect", address, *starttls),
            *(options or ("-tls1_2",)),
            *("-cipher", f"{cipher}:@SECLEVEL=0"),
        ],
        input="QUIT\r\n",
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Cipher is (\S+)", done.stdout)
    return "" if found is None or found[1] == "(NONE)" else found[1]


def kind_of(suite: str) -> Literal["RSA", "ECDSA"]:
    return "ECDSA" if "ECDSA" in suite else "RSA"


@pytest.mark.parametrize("suite", FROM_POSTFIX)
def test_suite_that_postfix_takes_is_taken_on_port_25(
    servers: dict[str, Running], suite: str
) -> None:
    assert agreed(servers[kind_of(suite)], "smtp", suite) == suite


PYTHONS: Final = {each["name"] for each in ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).get_ciphers()}


@pytest.mark.parametrize("suite", FROM_POSTFIX)
def test_users_get_suites_with_forward_secrecy_only(
    servers: dict[str, Running], suite: str
) -> None:
    taken = suite in PYTHONS and not suite.startswith("DHE")
    assert (agreed(servers[kind_of(suite)], "submissions", suite) == suite) is taken


@pytest.mark.parametrize("suite", FORBIDDEN)
@pytest.mark.parametrize("listener", ["smtp", "submissions"])
def test_suite_that_rfc_9325_forbids_is_spoken_nowhere(
    servers: dict[str, Running], suite: str, listener: str
) -> None:
    assert agreed(servers[kind_of(suite)], listener, suite) == ""


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
def test_versions_that_rfc_8996_forbids_are_spoken_nowhere(
    servers: dict[str, Running], version: str
) -> None:
    for kind in ("smtp", "submissions"):
        assert agreed(servers["RSA"], kind, "ALL", version) == ""


def test_forward_secrecy_comes_first_whatever_the_client_prefers(
    servers: dict[str, Running],
) -> None:
    suites = "AES128-SHA:AES256-GCM-SHA384:DHE-RSA-AES128-SHA:ECDHE-RSA-AES128-SHA"
    assert agreed(servers["RSA"], "smtp", suites) == "ECDHE-RSA-AES128-SHA"
    assert agreed(servers["RSA"], "smtp", suites.rpartition(":")[0]) == "DHE-RSA-AES128-SHA"


def test_option_names_the_suites_of_a_listener(servers: dict[str, Running]) -> None:
    assert agreed(servers["RSA"], "own", "ALL") == "AES256-SHA"
    assert agreed(servers["RSA"], "own", "AES128-SHA") == ""
    assert agreed(servers["RSA"], "own", "ALL", "-tls1_3") != ""


def test_all_of_them_are_offered_to_other_servers() -> None:
    contexts = Contexts()
    for context in (contexts.open, contexts.verified):
        offered = {each["name"] for each in context.get_ciphers()}
        assert offered.issuperset(FROM_POSTFIX)
        assert not offered.intersection(FORBIDDEN)
    narrow = Contexts(ciphers="AES256-SHA")
    for context in (narrow.open, narrow.verified):
        names = {each["name"] for each in context.get_ciphers()}
        assert {name for name in names if not name.startswith("TLS_")} == {"AES256-SHA"}


def test_unknown_suites_are_a_mistake_in_the_configuration() -> None:
    address = SocketAddress("127.0.0.1", 25)
    with pytest.raises(ConfigError, match="in the notation of OpenSSL") as caught:
        Listener(name="smtp", address=address, ciphers="ROT13")
    assert caught.value.key == "ciphers"
    with pytest.raises(ConfigError, match="expected cipher suites in the notation of OpenSSL"):
        Outbound(ciphers="ROT13")


def test_default_is_for_mx_only() -> None:
    address = SocketAddress("127.0.0.1", 25)
    kinds: tuple[Literal["mx", "submission", "lmtp"], ...] = ("mx", "submission", "lmtp")
    assert [Listener(name="a", address=address, kind=kind).suites for kind in kinds] == [
        *(GENEROUS, "", "")
    ]
    assert TlsConfig().minimum_version == "1.2"
