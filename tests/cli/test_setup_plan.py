"""What `minismtp setup` plans: from all answers a sound configuration, into any text a domain."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Final

import pages
import pytest
import tomli
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import minismtp.cli.check
import minismtp.inspection.listeners
from minismtp.cli.check import check
from minismtp.cli.common import CommandError
from minismtp.cli.setup import amend, material
from minismtp.cli.setup.answers import (
    Answers,
    CertificateChoice,
    CertificateFiles,
    host_name,
    mail_domain,
    user_name,
)
from minismtp.cli.setup.dovecot import Dovecot
from minismtp.cli.setup.plan import Made, Plan, first_plan
from minismtp.cli.setup.questions import likely_hostname
from minismtp.config import Config
from minismtp.services.self_signed import self_signed

EXAMPLE: Final = (Path(__file__).parents[2] / "etc" / "minismtp.toml").read_text()
LABELS: Final = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True).filter(
    lambda label: label[2:4] != "--"
)
TOP: Final = st.sampled_from(["org", "example", "xn--p1ai", "co.uk"])
DOMAINS: Final = st.builds(lambda label, top: f"{label}.{top}", LABELS, TOP)
OWN: Final = CertificateFiles(Path("own"), Path("own"))
USERS: Final = st.from_regex(r"[a-z0-9_'&=-]{1,9}(\.[a-z0-9]{1,5}){0,2}", fullmatch=True)
ONE_KEY: Final = {kind: material._signing_key(kind) for kind in (Made.RSA_KEY, Made.ED25519_KEY)}  # noqa: SLF001


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a certificate in it."""
    place = tmp_path_factory.mktemp("plans")
    (place / "own.pem").write_bytes(b"".join(self_signed(["mx.example.org"])))
    (place / "own.pem").chmod(0o600)
    return place


def carried_out(plan: Plan, hostname: str, address: str) -> None:
    """Write the files of a plan, with keys that were made before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(material, "_signing_key", ONE_KEY.get)
        patch.setattr(material, "password_line", lambda name, *_: f"{name}:{PASSWORD}")
        contents = material.contents(plan, hostname, address, "secret")
    for file, content in zip(plan.files, contents, strict=True):
        file.path.parent.mkdir(parents=True, exist_ok=True)
        file.path.write_bytes(content)
        file.path.chmod(0o640)
    for directory in plan.directories:
        directory.mkdir(exist_ok=True)


PASSWORD: Final = "$scrypt$ln=15,r=8,p=1$c2FsdHNhbHRzYWx0c2E$" + "A" * 43
NUMBERS: Final = itertools.count()


@settings(max_examples=6, phases=[Phase.generate])  # each takes half a second
@given(
    domain=DOMAINS,
    hostname=DOMAINS,
    user=USERS,
    second=DOMAINS,
    certificate=st.sampled_from(["self-signed", "acme", OWN]),
    odd_path=st.booleans(),
)
def test_every_answer_gives_a_configuration_without_findings(
    place: Path,
    domain: str,
    hostname: str,
    user: str,
    second: str,
    *,
    certificate: CertificateChoice,
    odd_path: bool,
) -> None:
    base = place / str(next(NUMBERS))
    state = base / ('a {b} \u00fc "c"' if odd_path else "state")
    if certificate == "acme":
        pytest.importorskip("acme")
    if certificate == OWN:
        hostname = "mx.example.org"
        certificate = CertificateFiles(place / "own.pem", place / "own.pem")
    state.mkdir(mode=0o750, parents=True)
    answers = Answers(
        domain=mail_domain(domain),
        hostname=host_name(hostname),
        user=user_name(user, domain),
        certificate=certificate,
        state_directory=state,
    )
    path = base / "etc" / "minismtp.toml"
    plan = first_plan(answers, path, {})
    carried_out(plan, hostname, answers.address)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minismtp.cli.check, "check_names", lambda *_: iter(()))
        patch.setattr(minismtp.inspection.listeners, "holders", lambda _: None)
        assert [str(each) for each in check(Config.load(path))] == []
        if second == domain:
            return
        text = path.read_text()
        existing = {path: text, base / "etc" / "passwords": (base / "etc/passwords").read_text()}
        plan = amend.added_plan(amend.Present.of(path, text), second, user, existing)
        carried_out(plan, hostname, f"{user}@{second}")
        assert [str(each) for each in check(Config.load(path))] == []


DEBIAN_13: Final = "dovecot_config_version = 2.4.0\ndovecot_storage_version = 2.4.0\n"


@pytest.mark.parametrize(("number", "packaged"), [(0, DEBIAN_13), (1, "# Debian 12\n")])
def test_configuration_of_dovecot_is_that_of_the_guide(number: int, packaged: str) -> None:
    dovecot = Dovecot(Path("/etc/dovecot/dovecot.conf"), packaged, Path("/copy"))
    answers = Answers(
        domain="example.org",
        hostname="mx.example.org",
        user="alice",
        certificate="self-signed",
        state_directory=Path("/var/lib/minismtp"),
        server_user="minismtp",
    )
    plan = first_plan(answers, Path("/etc/minismtp/minismtp.toml"), {}, dovecot)
    [file] = [file for file in plan.files if file.path == dovecot.path]
    assert (file.before, file.original) == (packaged, dovecot.copy)
    assert file.content == pages.block("administrator", "Reading mail", number, "dovecot")
    by_authority = replace(answers, certificate="acme")
    plan = first_plan(by_authority, Path("/etc/minismtp/minismtp.toml"), {}, dovecot)
    [file] = [file for file in plan.files if file.path == dovecot.path]
    assert str(file.content).count("/var/lib/minismtp/acme/certificate.pem\n") == 2


def test_dovecot_is_left_alone_if_it_would_misread_a_path() -> None:
    dovecot = Dovecot(Path("/etc/dovecot/dovecot.conf"), "# Debian 12\n", Path("/copy"))
    answers = Answers("example.org", "mx.example.org", "alice", "acme", Path("/var/100%"), "nobody")
    plan = first_plan(answers, Path("/etc/minismtp/minismtp.toml"), {}, dovecot)
    assert not [file for file in plan.files if file.path == dovecot.path]


def added(text: str, domain: str = "second.example") -> str:
    """Return a configuration with one more domain."""
    return amend.with_domain(amend.Present.of(Path("/etc/minismtp/minismtp.toml"), text), domain)


def test_lines_of_the_configuration_stay_as_they_are() -> None:
    text = added(EXAMPLE)
    rest = iter(text.splitlines())
    assert all(line in rest for line in EXAMPLE.splitlines())
    uses = [each["use"] for each in tomli.loads(text)["plugins"]]
    expected = ["mailboxes", "mailboxes", "password_file", "relay", "maildir", "dkim_sign"]
    assert uses == expected
    # below the options that are commented out, above the comment of the next table
    after = text.partition('domains = ["second.example"]')[0].rpartition("srs_secret_file")[2]
    assert "are rewritten\n\n# second.example, by" in after


def test_domain_can_be_added_again_and_again() -> None:
    text = EXAMPLE
    for number in range(3):
        text = added(text, f"domain{number}.example")
    plugins = tomli.loads(text)["plugins"]
    assert [each.get("name") for each in plugins if each["use"] == "mailboxes"] == [
        *(None, "mailboxes-2", "mailboxes-3", "mailboxes-4")
    ]
    domains = [each["domains"] for each in plugins if each["use"] == "dkim_sign"]
    assert domains == [[f"domain{number}.example"] for number in range(3)]


@pytest.mark.parametrize(
    "text",
    [
        EXAMPLE.replace("\n", "\r\n"),
        EXAMPLE.removesuffix("\n"),
        EXAMPLE.removesuffix("\n").replace("\n", "\r\n"),
        EXAMPLE.replace(
            'domains = ["example.org"]', 'domains = [  # all\n"example.org",\n# end\n]'
        ),
        EXAMPLE + "\n# the end",
        EXAMPLE + '[[plugins.folders]]\nfolder = "Junk"\nheader = "X"\nvalue = "Y"\n[dns]\n',
    ],
    ids=["crlf", "no end of line", "crlf without end", "long array", "comment", "tables below"],
)
def test_unusual_text_is_added_to(text: str) -> None:
    before, after = tomli.loads(text), tomli.loads(added(text))
    new = [each for each in after["plugins"] if each not in before["plugins"]]
    assert [each["use"] for each in new] == ["mailboxes", "dkim_sign"]
    assert {**after, "plugins": before["plugins"]} == before
    assert ("\r\n" in text) == ("\r\n" in added(text))
    assert "\n" not in added(text).replace("\r\n", "") or "\r\n" not in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (EXAMPLE.replace('"example.org"', '"Second.example."'), "second.example stands already"),
        (EXAMPLE.replace('use = "mailboxes"', 'use = "sql"'), "has no plugin mailboxes"),
        (EXAMPLE.replace("mail/{domain}/", "mail/"), "is the same for all domains; expected"),
        (
            'plugins = [{ use = "mailboxes", domains = ["example.org"] }]\n',
            "written in a way that this command cannot add to",
        ),
    ],
    ids=["already there", "no mailboxes", "one mailbox for all", "inline"],
)
def test_text_that_cannot_be_added_to_is_refused(text: str, expected: str) -> None:
    with pytest.raises(CommandError, match=expected):
        added(text)


def test_keys_join_those_that_exist_if_their_path_has_the_domain() -> None:
    for keys, expected in (
        ("keys/{domain}-{selector}.pem", "keys/{domain}-{selector}.pem"),
        ("dkim.pem", "dkim/{domain}.{selector}.pem"),
        ("/srv/{domain}.{selector}", "dkim/{domain}.{selector}.pem"),
        ("../{domain}.{selector}", "dkim/{domain}.{selector}.pem"),
        ("{domain}.{selector}.{x}", "dkim/{domain}.{selector}.pem"),
        ("{domain}.{selector}.{", "dkim/{domain}.{selector}.pem"),
    ):
        table = f'[[plugins]]\nuse = "dkim_sign"\ndomains = ["example.org"]\nkeys = "{keys}"\n'
        assert tomli.loads(added(EXAMPLE + table))["plugins"][-1]["keys"] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Example.ORG.", "example.org"), (" b\u00fccher.example ", "xn--bcher-kva.example")],
)
def test_names_get_one_spelling(text: str, expected: str) -> None:
    assert mail_domain(text) == expected
    assert host_name(text) == expected


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("mail.example.net", "mail.example.net"),
        ("localhost.localdomain", "mx.example.org"),
        ("debian.lan", "mx.example.org"),
        ("pi.local", "mx.example.org"),
        ("ip-10-0-0-1.ec2.internal", "mx.example.org"),
        ("debian", "mx.example.org"),
        ("192.0.2.1", "mx.example.org"),
    ],
)
def test_name_of_the_machine_is_proposed_if_others_could_know_it(
    machine: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: machine)
    assert likely_hostname("example.org") == expected
