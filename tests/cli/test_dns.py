"""`minismtp dns`: the zone file, the check with its exit statuses, port 25, and block lists."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import dns.zone
import nameserver
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from minismtp import SocketAddress
from minismtp.cli.dns import _place
from minismtp.cli.main import main
from minismtp.inspection.outside_checks import listings, port_25
from minismtp.inspection.questions import HurriedResolver
from minismtp.values.threads import start_thread

CONFIG: Final = """
hostname = "mx.{domain}"
[[listeners]]
name = "smtp"
address = "*:25"
tls = "none"
[dns]
nameservers = ["{nameserver}"]
addresses = ["198.51.100.25"]
[[plugins]]
use = "mailboxes"
domains = ["{domain}"]
"""
RECORDS: Final = """
mx A 198.51.100.25
mx TXT "v=spf1 a -all"
@ MX 10 mx
@ TXT "v=spf1 mx -all"
_dmarc TXT "v=DMARC1; p=none"
"""
REPORTS: Final = '_smtp._tls TXT "v=TLSRPTv1; rua=mailto:postmaster@right.test"\n'
ZONES: Final = {
    "right.test": RECORDS + REPORTS,
    "fewer.test": RECORDS,
    "wrong.test": RECORDS.replace("10 mx", "10 other.test.").replace(
        "spf1 mx", "spf1 a:mx.wrong.test"
    ),
    "100.51.198.in-addr.arpa": "".join(
        f"25 PTR mx.{name}.test.\n" for name in ("right", "fewer", "wrong")
    ),
    "list.test": "25.100.51.198 A 127.0.0.2\nright.test A 127.0.1.2\n",
    "refusing.test": "25.100.51.198 A 127.255.255.254\n",
    "parked.test": "*.100.51.198 A 198.51.100.1\n",
}


@pytest.fixture(scope="module")
def resolver(
    tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], str]
) -> Iterator[SocketAddress]:
    """Yield the address of a resolver that knows the zones."""
    directory = tmp_path_factory.mktemp("dns")
    with nameserver.serving(directory, require_program, ZONES) as address:
        yield address


@pytest.fixture
def configured(tmp_path: Path) -> Callable[[str, SocketAddress], Path]:
    """Return a function that writes a configuration for a domain."""

    def write(domain: str, server: SocketAddress) -> Path:
        file = tmp_path / "minismtp.toml"
        file.write_text(CONFIG.format(domain=domain, nameserver=server))
        return file

    return write


Configured = Callable[[str, SocketAddress], Path]
NOWHERE: Final = SocketAddress("127.0.0.1", 53)


def test_zone_is_printed_for_other_programs(
    configured: Configured, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(configured("right.test", NOWHERE))
    assert main(["dns", "--config", file, "--domain", "right.test"]) == 0
    text = capsys.readouterr().out
    zone = dns.zone.from_text(text, origin=".", relativize=False, check_origin=False)
    assert zone.find_rdataset("right.test.", "MX")[0].to_text() == "10 mx.right.test."
    assert main(["dns", "--config", file, "--json", "--address", "2001:db8::1"]) == 0
    first, *_ = json.loads(capsys.readouterr().out)
    assert first == {
        "name": "mx.right.test",
        "type": "AAAA",
        "value": "2001:db8::1",
        "need": "required",
        "purpose": "the host: where it is",
    }


@pytest.mark.parametrize(
    ("command", "status", "summary"),
    [
        ("right.test", 0, "7 right"),
        ("right.test --strict", 0, "7 right"),
        ("fewer.test", 0, "6 right, 1 missing"),
        ("fewer.test --strict", 1, "6 right, 1 missing"),
        ("wrong.test", 1, "5 right, 1 missing, 1 wrong"),
        ("broken.test", 1, "1 wrong, 6 unanswered"),
    ],
)
def test_exit_status_tells_whether_all_is_right(  # noqa: PLR0917 - fixtures, and a row
    configured: Configured,
    resolver: SocketAddress,
    capsys: pytest.CaptureFixture[str],
    command: str,
    status: int,
    summary: str,
) -> None:
    domain, *options = command.split()
    file = str(configured(domain, resolver))
    assert main(["dns", "--config", file, "--check", "--port25", "no", *options]) == status
    assert capsys.readouterr().out.rstrip().endswith(f"\n{summary}")


def test_silent_dns_is_a_status_of_its_own(
    configured: Configured, capsys: pytest.CaptureFixture[str]
) -> None:
    with nameserver.silent() as address:
        file = str(configured("right.test", address))
        command = ["dns", "--config", file, "--check", "--port25", "no", "--seconds", "0.2"]
        assert main(command) == 75
    assert capsys.readouterr().out.endswith("\n7 unanswered\n")


def test_both_values_are_shown(
    configured: Configured, resolver: SocketAddress, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(configured("wrong.test", resolver))
    main(["dns", "--config", file, "--check", "--port25", "no"])
    shown = capsys.readouterr().out
    assert (
        "wrong       wrong.test MX\n"
        "            wanted  10 mx.wrong.test.\n"
        "            found   10 other.test.\n"
    ) in shown
    assert "missing     _smtp._tls.wrong.test TXT (recommended)\n" in shown
    main(["dns", "--config", file, "--check", "--port25", "no", "--json"])
    found = {each["state"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["wrong"]["wanted"] == "10 mx.wrong.test."
    assert found["wrong"]["found"] == ["10 other.test."]


def test_progress_is_shown_on_a_terminal_only(
    configured: Configured,
    resolver: SocketAddress,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["dns", "--config", str(configured("right.test", resolver)), "--check"]
    command += ["--port25", "no"]
    main(command)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("minismtp.cli.progress._PATIENCE", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    main([*command, "--json"])
    assert capsys.readouterr().err == ""
    main(command)
    shown = capsys.readouterr().err
    assert "  0% asking the DNS: 0 of 7" in shown
    assert shown.endswith("\r\x1b[K")


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--block-lists"], 2, "--block-lists and --port25 need --check"),
        (["--port25", "no"], 2, "--block-lists and --port25 need --check"),
        (["--check", "--port25", "a b"], 2, "expected a host"),
        (["--check", "--seconds", "0"], 2, "expected seconds"),
        (["--check", "--seconds", "x"], 2, "expected seconds"),
        (["--check", "--block-lists", "a b"], 2, "expected a domain"),
        (["--address", "mx.right.test"], 2, 'expected an address such as "192.0.2.25"'),
        (["--address", "fe80::1%lo"], 2, "expected an address such as"),
        (["--address", "::"], 2, "expected an address such as"),
        (["--address", "ff02::1"], 2, "expected an address such as"),
        (["--domain", ""], 2, "--domain: expected a domain such as example.org, not ''"),
        (["--domain", "rihgt.test"], 78, "did you mean 'right.test'"),
        (["--domain", "no name"], 78, "expected a domain such as"),
    ],
)
def test_wrong_use_is_one_line(
    configured: Configured,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    status: int,
    message: str,
) -> None:
    file = str(configured("right.test", NOWHERE))
    assert main(["dns", "--config", file, *options]) == status
    assert message in capsys.readouterr().err


# What sending depends on besides


@contextlib.contextmanager
def greeting(octets: bytes) -> Iterator[int]:
    """Yield the port of a server that says something, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            connection.sendall(octets)
            connection.close()

        start_thread("test", serve, once=True)
        yield listening.getsockname()[1]


def hurried(server: SocketAddress = NOWHERE, seconds: float = 30.0) -> HurriedResolver:
    return HurriedResolver([server], lambda _: None, seconds)


@pytest.mark.parametrize(
    ("octets", "state"),
    [(b"220 mx.example.net ESMTP\r\n", "right"), (b"554 go away\r\n", "wrong"), (b"", "wrong")],
)
def test_port_25_is_open_if_a_host_greets(octets: bytes, state: str) -> None:
    with greeting(octets) as port:
        outcome = port_25(hurried(), "127.0.0.1", port).question()
    assert (outcome.state, outcome.found) == (state, (octets.decode().strip() or "nothing",))


@pytest.mark.parametrize("text", ["::1", "[::1]", "[::1]:25"])
def test_port_25_may_be_of_an_address_of_ipv6(text: str) -> None:
    assert _place(text) == SocketAddress("::1", 25)


def test_port_25_is_closed_if_there_is_no_connection(
    configured: Configured, resolver: SocketAddress, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    file = str(configured("right.test", resolver))
    assert main(["dns", "--config", file, "--check", "--port25", f"127.0.0.1:{port}"]) == 1
    assert "many providers open the port when asked" in capsys.readouterr().out


def test_port_25_of_a_well_known_host_is_tried(resolver: SocketAddress) -> None:
    outcome = port_25(hurried(resolver)).question()  # which the local DNS does not know
    assert (outcome.state, outcome.name) == ("unanswered", "gmail.com")


def test_block_lists_are_asked_when_they_are_wanted(
    configured: Configured, resolver: SocketAddress, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(configured("right.test", resolver))
    command = ["dns", "--config", file, "--check", "--port25", "no", "--json"]
    assert main([*command, "--block-lists", "list.test"]) == 1
    found = [each for each in json.loads(capsys.readouterr().out) if each["type"] == "block list"]
    assert [(each["name"], each["state"], each["found"]) for each in found] == [
        ("198.51.100.25", "wrong", ["127.0.0.2"]),
        ("mx.right.test", "right", []),
        ("right.test", "wrong", ["127.0.1.2"]),
    ]


@pytest.mark.parametrize("zone", ["refusing.test", "parked.test"])
def test_answer_that_is_an_error_is_no_listing(resolver: SocketAddress, zone: str) -> None:
    [asked] = listings(hurried(resolver), [zone], [ip_address("198.51.100.25")], [])
    outcome = asked.question()
    assert (outcome.state, outcome.fails) == ("unanswered", False)
    assert "refuse the resolvers" in outcome.note


def test_lists_of_domains_are_not_asked_about_addresses() -> None:
    lists = ["zen.spamhaus.org", "dbl.spamhaus.org"]
    asked = list(listings(hurried(), lists, [ip_address("2001:db8::1")], ["example.org"]))
    assert [(each.late.name, each.late.wanted) for each in asked] == [
        ("2001:db8::1", "not in zen.spamhaus.org"),
        ("example.org", "not in dbl.spamhaus.org"),
    ]


KEYS: Final = """
[[listeners]]
name = "submissions"
address = "*:465"
kind = "submission"
tls = "implicit"
[tls]
certificate = "cert.pem"
key = "key.pem"
[[plugins]]
use = "dkim_sign"
domains = ["printed.test"]
keys = "{selector}.pem"
selectors = ["rsa", "ed"]
"""


def test_printed_zone_is_right_where_it_is_published(
    configured: Configured,
    tmp_path: Path,
    require_program: Callable[[str], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    keys: dict[str, rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey] = {
        "rsa": rsa.generate_private_key(65537, 2048),
        "ed": ed25519.Ed25519PrivateKey.generate(),
    }
    for name, key in keys.items():
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (tmp_path / f"{name}.pem").write_bytes(pem)
    file = configured("printed.test", NOWHERE)
    file.write_text(file.read_text() + KEYS)
    assert main(["dns", "--config", str(file)]) == 0
    printed = capsys.readouterr().out
    pointers = [line[2:] for line in printed.split("\n") if line.startswith("; 25.100.51.198.")]
    zones = {"printed.test": printed, "100.51.198.in-addr.arpa": "\n".join(pointers) + "\n"}
    (tmp_path / "dns").mkdir()
    with nameserver.serving(tmp_path / "dns", require_program, zones) as address:
        file = configured("printed.test", address)
        file.write_text(file.read_text() + KEYS)
        command = ["dns", "--config", str(file), "--check", "--strict", "--port25", "no"]
        assert main(command) == 0
    assert capsys.readouterr().out.endswith("\n11 right\n")
