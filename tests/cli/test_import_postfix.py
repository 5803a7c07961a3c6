"""`minismtp import postfix`: what it writes, what it reports, and that it then writes nothing."""

from __future__ import annotations

import cProfile
import json
import os
import shutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import tomli
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

import minismtp.cli.check
from minismtp.cli.import_postfix.mapping import migrated
from minismtp.cli.main import main
from minismtp.cli.postfix_files.directory import PostfixDirectory
from minismtp.cli.postfix_files.main_cf import DEFAULTS, MainCf
from minismtp.cli.postfix_files.master_cf import read_services
from minismtp.cli.postfix_files.text import PostfixError

if TYPE_CHECKING:
    from conftest import TlsFiles

HOSTS: Final = Path(__file__).parents[1] / "data" / "postfix"
NAMES: Final = sorted(path.name for path in HOSTS.iterdir())
OPTIONS: Final = {"ispmail": ["--domain", "example.org"]}
Capture = pytest.CaptureFixture[str]


@cache
def signing_key() -> bytes:
    """Return a key as `opendkim-genkey` makes it."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


class Import:
    """A place to import into, with a copy of a host's `/etc` that a test may change."""

    def __init__(self, base: Path, capsys: Capture) -> None:
        self.base = base
        self.etc = base / "new"
        self.config = self.etc / "minismtp.toml"
        self.postfix = base / "old" / "etc" / "postfix"
        self._capsys = capsys

    def host(self, name: str) -> None:
        """Copy a host of the corpus; only its key is made here."""
        shutil.copytree(HOSTS / name / "etc", self.postfix.parent)
        if name == "everything":
            key = self.postfix.parent / "opendkim" / "keys" / "example.org" / "sel.private"
            key.parent.mkdir(parents=True)
            key.write_bytes(signing_key())

    def write(self, main_cf: str, **files: str) -> None:
        """Write a directory with a main.cf, and other files in it."""
        self.postfix.mkdir(parents=True)
        (self.postfix / "main.cf").write_text(f"myhostname = mx.example.org\n{main_cf}\n")
        for file, text in files.items():
            (self.postfix / file).write_text(text)

    def __call__(self, *words: str, status: int = 0) -> str:
        """Run the command, expect a status, and return all that it says."""
        place = ["--config", str(self.config), "--state-directory", str(self.base / "var")]
        assert main(["import", "postfix", str(self.postfix), *place, *words]) == status
        self.said, self.complained = self._capsys.readouterr()
        return self.said + self.complained

    def refused(self, *words: str, status: int) -> str:
        """Run the command, which writes nothing and says one line."""
        line = self(*words, status=status)
        assert line.count("\n") == 1
        assert not self.etc.exists()
        return line

    @property
    def table(self) -> dict[str, Any]:
        """The configuration that was written."""
        return tomli.loads(self.config.read_text())

    def plugin(self, use: str) -> dict[str, Any]:
        """Return the only table of a plugin."""
        [found] = [each for each in self.table["plugins"] if each["use"] == use]
        assert isinstance(found, dict)
        return found

    def lines(self, name: str) -> list[str]:
        """Return the lines of a file beside the configuration, without comments."""
        lines = (self.etc / name).read_text().splitlines()
        return [line for line in lines if line and line[0] != "#"]


@pytest.fixture
def importing(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> Import:
    """Return a place to import into; the inspection does not ask the DNS."""
    monkeypatch.setattr(minismtp.cli.check, "check_names", lambda *_: iter(()))
    return Import(tmp_path, capsys)


@pytest.mark.parametrize("name", NAMES)
def test_real_hosts_are_accepted_and_every_parameter_is_reported(
    importing: Import, name: str
) -> None:
    importing.host(name)
    said = importing(*OPTIONS.get(name, []), "--json")
    report = json.loads(importing.said)
    assert report["written"]
    assert "configuration ok" in said
    lists = ("carried", "by_hand", "without_counterpart")
    reported = {entry["parameter"] for each in lists for entry in report[each]}
    assert PostfixDirectory.read(importing.postfix).main.settings.keys() <= reported
    assert all(entry["text"] for each in lists for entry in report[each])


def test_usual_host_of_debian(importing: Import) -> None:
    importing.host("debian")
    importing()
    assert importing.table["hostname"] == "mx.example.org"
    assert importing.plugin("mailboxes")["domains"] == [
        *("mx.example.org", "example.org", "localhost.example.org", "localhost")
    ]
    assert importing.plugin("mailboxes")["separator"] == "+"
    assert importing.lines("users") == ["root", "alice", "bob"]
    assert importing.lines("aliases") == [
        "postmaster: root@mx.example.org",
        "root: alice@mx.example.org",
        "www-data: root@mx.example.org",
    ]
    assert importing.plugin("relay")["networks"] == ["127.0.0.0/8", "::1/128"]
    assert importing.table["outbound"] == {"tls": "opportunistic"}
    text = importing.config.read_text()
    assert 'hostname = "mx.example.org"  # myhostname, main.cf:33\n' in text


def test_host_with_a_database_leaves_its_users_to_dovecot(importing: Import) -> None:
    importing.host("ispmail")
    said = importing("--domain", "example.org")
    assert importing.lines("aliases")[-1] == "@example.org: @example.org"
    assert importing.plugin("lmtp")["address"] == "unix:/run/dovecot/lmtp-minismtp"
    assert importing.plugin("dovecot_auth")["address"] == "unix:/run/dovecot/minismtp"
    assert importing.plugin("rspamd")["users"]
    assert "SELECT 1 FROM virtual_users WHERE email='%s'" in said
    assert "a-secret-of-the-database" not in said
    kinds = [(each["kind"], each["tls"]) for each in importing.table["listeners"]]
    assert kinds == [("mx", "starttls"), ("submission", "starttls")]
    assert importing.table["listeners"][1]["match_sender"]


def test_domains_that_only_a_database_has_are_asked_for(importing: Import) -> None:
    importing.host("ispmail")
    said = importing()
    assert "run this again with --domain for each domain in it" in said
    assert importing.plugin("mailboxes")["domains"] == ["localhost"]


def test_null_client_sends_through_its_smarthost(importing: Import) -> None:
    importing.host("null-client")
    said = importing()
    assert [each["address"] for each in importing.table["listeners"]] == [
        "127.0.0.1:25",
        "[::1]:25",
    ]
    assert importing.table["outbound"] == {
        "tls": "required",
        "smarthost": "smtp.example.net:587",
        "username": "web1@example.net",
        "password_file": "smarthost-password",
    }
    assert [each["use"] for each in importing.table["plugins"]] == ["relay"]
    password = importing.etc / "smarthost-password"
    assert password.read_text() == "pa:ss word\n"
    assert password.stat().st_mode & 0o027 == 0
    assert "pa:ss" not in said


def test_password_of_the_smarthost_is_sent_inside_tls_only(importing: Import) -> None:
    importing.write(
        "relayhost = [smtp.example.net]:587\nsmtp_sasl_auth_enable = yes\n"
        "smtp_sasl_password_maps = static:me:secret\nsmtp_tls_security_level = may"
    )
    said = importing()
    assert importing.table["outbound"]["tls"] == "required"
    assert "minismtp sends a password inside TLS only" in said


def test_service_with_wrappermode_speaks_tls_at_once(importing: Import) -> None:
    options = "-o smtpd_tls_wrappermode=yes -o smtpd_sasl_auth_enable=yes"
    services = f"smtp inet n - y - - smtpd\n10465 inet n - y - - smtpd {options}\n"
    importing.write("smtpd_tls_security_level = may", **{"master.cf": services})
    importing()
    assert [each["tls"] for each in importing.table["listeners"]] == ["starttls", "implicit"]


def test_alias_that_is_the_same_in_all_domains_is_written_once(importing: Import) -> None:
    aliases = "info@a.example=x@c.example info@b.example=x@c.example"
    others = "sales@a.example=x@c.example sales@b.example=y@c.example"
    table = " ".join(f"{{ {each.replace('=', ' = ')} }}" for each in f"{aliases} {others}".split())
    domains = "mydestination =\nvirtual_alias_domains = a.example b.example"
    importing.write(f"{domains}\nvirtual_alias_maps = inline:{{ {table} }}")
    importing()
    assert importing.lines("aliases") == [
        "info: x@c.example",
        "sales@a.example: x@c.example",
        "sales@b.example: y@c.example",
    ]


def test_rewritten_senders_are_not_taken_for_srs(importing: Import) -> None:
    importing.write("sender_canonical_maps = hash:/etc/postfix/canonical")
    said = importing()
    assert "sender_canonical_maps: addresses are not rewritten" in said
    assert not (importing.etc / "srs-secret").exists()


def test_postscreen_becomes_dnsbl_and_early_talker(importing: Import) -> None:
    importing.host("postscreen")
    importing()
    dnsbl = importing.plugin("dnsbl")
    assert dnsbl["reject_at"] == 3.0
    assert [(each["zone"], each["points"], each.get("codes")) for each in dnsbl["lists"]] == [
        ("zen.spamhaus.org", 3.0, None),
        ("bl.spamcop.net", 2.0, ["127.0.0.2"]),
        ("b.barracudacentral.org", 2.0, ["127.0.0.2-4"]),
        ("list.dnswl.org", -2.0, ["127.0.0-255.1-3"]),
    ]
    networks = ["127.0.0.0/8", "192.0.2.0/28", "2001:db8:1::/64", "198.51.100.7/32"]
    assert importing.plugin("relay")["networks"] == networks
    assert importing.plugin("early_talker")["networks"] == networks
    assert importing.plugin("early_talker")["listeners"] == ["smtp"]
    assert importing.plugin("helo")["unqualified"] == "reject"
    assert importing.plugin("reverse_dns")["missing"] == "defer"
    assert importing.plugin("greylist")
    assert importing.plugin("spf")
    assert importing.plugin("rate_limit")["limits"] == [{"by": "peer", "messages": "100/1m"}]
    assert importing.lines("users") == [
        *("alice@example.org", "bob@example.org", "carol@example.net")
    ]
    assert importing.lines("aliases") == [
        "postmaster@example.org: alice@example.org",
        "info@example.org: alice@example.org, carol@example.net, friend@elsewhere.example",
        "@example.net: bob@example.org",
    ]


def test_backup_mx_relays_for_its_domains(importing: Import) -> None:
    importing.host("backup-mx")
    importing()
    assert importing.plugin("relay")["domains"] == ["example.org", "example.net", "branch.example"]
    outbound = importing.table["outbound"]
    assert outbound["expire"] == "10d"
    assert outbound["warn_after"] == "12h"
    assert outbound["retry"] == ["5m", "10m", "20m", "40m", "80m", "2h"]
    routes = {route["domain"]: route for route in outbound["routes"]}
    assert routes["example.org"]["host"] == "mx1.example.org:25"
    assert routes["*.example.org"]["host"] == "mx1.example.org:2525"
    assert routes["example.net"]["tls"] == "verified"
    assert routes["partner.example"]["tls"] == "required"
    assert list(routes)[-1] == "*.example.org"


def test_host_with_everything(importing: Import) -> None:
    importing.host("everything")
    said = importing()
    assert importing.table["tls"] == {
        "certificate": "tls/fullchain.pem",
        "key": "tls/key.pem",
    }
    assert importing.table["limits"]["recipients"] == 200
    assert importing.plugin("dkim_sign")["selectors"] == ["sel"]
    key = importing.etc / "dkim" / "example.org.sel.pem"
    assert "PRIVATE KEY" in key.read_text()
    assert "PRIVATE KEY" not in said
    assert importing.plugin("milter")["listeners"] == ["smtp", "submissions"]
    assert importing.plugin("milter")["on_error"] == "ignore"
    rules = {rule["name"]: rule for rule in importing.plugin("rules")["rules"]}
    assert rules["peer 203.0.113.0/24"]["text"] == "go away"
    assert rules["peer 2001:db8:bad::/48"]["action"] == "defer"
    assert rules["sender bad.example"]["all"] == [{"sender": r"[@.]bad\.example$"}]
    assert rules["sender list@"]["action"] == "quarantine"
    assert {"header": "Subject", "matches": "viagra"} in [
        each for rule in rules.values() for each in rule["all"]
    ]
    assert importing.plugin("mailboxes")["srs_secret_file"] == "srs-secret"  # noqa: S105 - a path
    assert importing.table["outbound"]["implicit"]
    routes = importing.table["outbound"]["routes"]
    assert {route["tls"] for route in routes} == {"required"}
    for text in (
        "tickets: |/usr/local/bin/tickets --queue support is a program",
        "smtpd_recipient_restictions: Postfix has no such parameter; is it misspelled?",
        "loop1@example.org leads to loop2@example.org, which gets no mail",
        "pcre:/etc/postfix/virtual.pcre has patterns, which cannot be listed",
        "warn_if_reject reject_unverified_sender: it only warned",
    ):
        assert text in said


def test_dry_run_shows_files_without_secrets_and_writes_nothing(importing: Import) -> None:
    importing.host("everything")
    said = importing("--dry-run")
    assert not importing.etc.exists()
    assert 'hostname = "mx.example.org"' in said
    assert "(the password at the smarthost, which is not shown)" in said
    assert "(the key that signs mail, which is not shown)" in said
    assert "hunter2" not in said
    assert "PRIVATE KEY" not in said


@pytest.mark.parametrize("option", ["--dry-run", "--json"])
def test_database_passwords_and_secrets_are_never_shown(importing: Import, option: str) -> None:
    importing.host("everything")
    assert "hunter2" not in importing(option)


def test_configuration_that_exists_is_kept(importing: Import) -> None:
    importing.host("null-client")
    importing.etc.mkdir()
    importing.config.write_text("# mine\n")
    said = importing(status=1)
    assert "exists, and is kept" in said
    assert importing.config.read_text() == "# mine\n"
    assert [path.name for path in importing.etc.iterdir()] == ["minismtp.toml"]


def test_file_that_exists_is_in_the_way(importing: Import) -> None:
    importing.host("debian")
    importing.etc.mkdir()
    (importing.etc / "users").write_text("somebody\n")
    assert "users exists, but" in importing(status=1)
    assert (importing.etc / "users").read_text() == "somebody\n"
    assert not importing.config.exists()


def test_no_directory_is_one_line(importing: Import) -> None:
    assert "is no directory; nothing was written" in importing.refused(status=78)


@pytest.mark.parametrize(
    ("main_cf", "said"),
    [
        ("relayhost", "main.cf:2: expected `name = value`, so Postfix does not start with it"),
        ("= x", "main.cf:2: expected `name = value`"),
    ],
)
def test_main_cf_that_postfix_refuses_is_one_line(
    importing: Import, main_cf: str, said: str
) -> None:
    importing.write(main_cf)
    assert said in importing.refused(status=78)


def test_directory_without_main_cf_is_one_line(importing: Import) -> None:
    importing.postfix.mkdir(parents=True)
    assert "main.cf: No such file or directory" in importing.refused(status=78)


@pytest.mark.parametrize(
    ("main_cf", "said"),
    [
        (
            "relayhost = $relayhost",
            "main.cf:2: relayhost: names that contain each other, without an end",
        ),
        (
            "a = $b$b\nb = $c$c\nc = $a\nmynetworks = $a",
            "names that contain each other, without an end",
        ),
        ("relayhost = ${x", "relayhost: `{x` has no end"),
        ("mydestination = /etc/postfix/loop", "loop contains itself"),
        ("virtual_alias_maps = hash:/etc/postfix/none", "none: No such file or directory"),
        ("mynetworks = host.example.org", "'host.example.org' is no network"),
        ("mynetworks = 0.0.0.0/0", "is so wide that it would be an open relay"),
        ("message_size_limit = big", "'big' is no number"),
        ("maximal_queue_lifetime = soon", "'soon' is no time"),
        ("mydestination = ex ample.org, b\u00fccher..example", "is no domain"),
        ("transport_maps = regexp:/etc/postfix/patterns", "has patterns, which cannot be listed"),
        ("relayhost = [smtp.example.net]:nowhere", "the port 'nowhere' is not known"),
        ("smtp_tls_security_level = strong", "'strong' is no level of TLS"),
        (
            "relayhost = a.example [b.example]:587",
            "one smarthost, here a.example; not carried over",
        ),
        ("relayhost = /etc/postfix/x", "'/etc/postfix/x' is no host"),
        (
            "transport_maps = inline:{{a.example = smtp:[x]:25,[y]}}",
            "here [x]:25; not carried over",
        ),
        ("transport_maps = inline:{{a.example = smtp:[x y]}}", "'[x' is no host with a port"),
        ("mydestination = /etc/postfix", "no regular file; the entries of /etc/postfix are left"),
        ("smtpd_timeout = 99999d", "'99999d' is longer than 36500 days"),
        ("maximal_queue_lifetime = 999999999w", "'999999999w' is longer than 36500 days"),
        (
            "smtpd_client_message_rate_limit = 1\nanvil_rate_time_unit = 0",
            'anvil_rate_time_unit: expected a rate such as "100/1h"',
        ),
        ("header_checks = pcre:/etc/postfix/checks", "the plugin rules cannot use the pattern"),
        (
            "virtual_alias_domains = v.example\nvirtual_alias_maps = inline:{{x@v.example = |y}}",
            "x@v.example: |y is a program",
        ),
        (
            "smtpd_client_restrictions = reject_rbl_client a.example=127.0.0.[;]",
            "the codes 127.0.0.[;] are no range",
        ),
        (
            "smtpd_use_tls = yes\ntls_server_sni_maps = inline:{{a.example=,}, {b.c=/etc/passwd}}",
            "are not a pair of a PEM certificate and its key",
        ),
    ],
)
def test_value_that_cannot_be_used_needs_a_hand(importing: Import, main_cf: str, said: str) -> None:
    checks = r"/^Subject: \x{263a}/ REJECT"
    importing.write(main_cf, loop="/etc/postfix/loop\n", patterns="/x/ smtp:y\n", checks=checks)
    lines = importing().partition("Needs your hand:")[2].partition("Has no counterpart")[0]
    assert said in " ".join(lines.split())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("mx-in inet n - y - - smtpd", "mx-in/inet: the port 'mx-in' is not known"),
        (
            "mx.example.org:25 inet n - y - - smtpd",
            "the address of mx.example.org is not looked up",
        ),
        ("25 inet n - y - - smtpd -o a = b", "expected `-o name=value`, or `-o { name = value }`"),
        ("smtp inet n", "such as `smtp inet n - y - - smtpd`; the service is left out"),
        ("pickup unix n - y 60 1 pickup", "no service takes mail on a port"),
    ],
)
def test_host_without_a_service_for_mail_gets_a_listener_for_its_programs(
    importing: Import, line: str, said: str
) -> None:
    importing.write("mydestination =", **{"master.cf": f"pickup unix n - y 60 1 pickup\n{line}\n"})
    assert said in importing()
    [listener] = importing.table["listeners"]
    assert listener["address"] == "127.0.0.1:25"


def test_localhost_is_an_address_of_each_family(importing: Import) -> None:
    master_cf = (
        "localhost:25 inet n - y - - smtpd\nsubmission inet n - y - - smtpd -o smtpd_milters=\n"
    )
    settings = "inet_interfaces = loopback-only\nsmtpd_milters = inet:127.0.0.1:7357"
    importing.write(settings, **{"master.cf": master_cf})
    importing()
    found = [each["address"] for each in importing.table["listeners"]]
    assert found == ["127.0.0.1:25", "[::1]:25", "127.0.0.1:587", "[::1]:587"]
    assert importing.plugin("milter")["listeners"] == ["smtp", "smtp-2"]


@pytest.mark.parametrize("mark", ["main.cf", "master.cf", "virtual"])
def test_byte_order_mark_and_carriage_returns_change_nothing(importing: Import, mark: str) -> None:
    importing.write(
        "virtual_alias_domains = v.example,\n # c\n  w.example\n"
        "virtual_alias_maps = hash:${config_directory}/virtual",
        virtual="a@v.example b@x.example\nc@w.example d@x.example\n",
        **{"master.cf": "2525 inet n - y - - smtpd\n"},
    )
    marked = importing.postfix / mark
    marked.write_bytes(b"\xef\xbb\xbf" + marked.read_bytes().replace(b"\n", b"\r\n"))
    importing()
    assert importing.table["hostname"] == "mx.example.org"
    assert importing.table["listeners"][0]["address"] == "*:2525"
    assert importing.lines("aliases") == ["a@v.example: b@x.example", "c@w.example: d@x.example"]


def test_fifo_is_no_certificate(importing: Import) -> None:
    importing.write("smtpd_tls_security_level = may\nsmtpd_tls_chain_files = /etc/postfix/fifo")
    os.mkfifo(importing.postfix / "fifo")
    assert "fifo is no regular file; then set" in " ".join(importing().split())


def certified(importing: Import, tls_files: TlsFiles) -> None:
    """Write a directory as a copy of another host, whose certificate is in it."""
    importing.write(
        "smtpd_tls_security_level = may\nsmtpd_tls_cert_file = /etc/ssl/mx.pem\n"
        "smtpd_tls_key_file = /etc/ssl/private/mx.key"
    )
    private = importing.postfix.parent / "ssl" / "private"
    private.mkdir(parents=True)
    shutil.copy(tls_files.certificate, private.parent / "mx.pem")
    shutil.copy(tls_files.key, private / "mx.key")


def test_certificate_of_a_copy_is_copied(importing: Import, tls_files: TlsFiles) -> None:
    certified(importing, tls_files)
    said = importing()
    assert "cannot read /etc/ssl/private/mx.key, so the server has copies in tls/" in said
    assert "PRIVATE KEY" not in said
    key = importing.etc / importing.table["tls"]["key"]
    assert key.read_text() == tls_files.key.read_text()
    assert key.stat().st_mode & 0o027 == 0
    certificate = importing.etc / importing.table["tls"]["certificate"]
    assert certificate.read_text() == tls_files.certificate.read_text()


def test_pair_that_is_in_place_already_is_used(importing: Import, tls_files: TlsFiles) -> None:
    importing.write("smtpd_tls_security_level = may")
    (importing.etc / "tls").mkdir(parents=True)
    shutil.copy(tls_files.certificate, importing.etc / "tls" / "fullchain.pem")
    shutil.copy(tls_files.key, importing.etc / "tls" / "key.pem")
    assert "tls/key.pem (exists, and stays as it is)" in importing()
    assert (importing.etc / "tls" / "key.pem").read_text() == tls_files.key.read_text()


def test_alias_that_leads_nowhere_is_one_line_for_all_domains(importing: Import) -> None:
    importing.write(
        "myorigin = v.example\nmydestination = a.example b.example c.example\n"
        "virtual_alias_domains = v.example\nlocal_recipient_maps = $alias_maps\n"
        "alias_maps = inline:{{ root = admin }}"
    )
    said = " ".join(importing().split())
    assert said.count("leads to") == 1
    assert (
        "main.cf:6: aliases: root@a.example (and at 2 more domains) leads to admin@v.example, which"
        " gets no mail (a target without a domain gets that of myorigin); left out"
    ) in said


def test_targets_are_between_commas_or_blanks(importing: Import) -> None:
    targets = 'a@x.example b@x.example,c@x.example, "d e"@x.example'
    importing.write(
        "virtual_alias_domains = v.example\nvirtual_alias_maps = hash:/etc/postfix/virtual",
        virtual=f"all@v.example {targets}\n",
    )
    importing()
    assert importing.lines("aliases") == [
        'all@v.example: a@x.example, b@x.example, c@x.example, "d e"@x.example'
    ]


def test_postscreen_with_numbers_that_are_none(importing: Import) -> None:
    settings = (
        "postscreen_dnsbl_sites = a.example*nan b.example*2\n"
        "postscreen_dnsbl_action = drop\npostscreen_dnsbl_threshold = many\n"
    )
    importing.write(settings, **{"master.cf": "smtp inet n - y - 1 postscreen\n"})
    said = importing()
    assert "'nan' is no number" in said
    assert "'many' is no number; set `reject_at` of dnsbl" in said
    assert [each["zone"] for each in importing.plugin("dnsbl")["lists"]] == ["b.example"]


def test_old_name_of_block_lists(importing: Import) -> None:
    importing.write(
        "smtpd_client_restrictions = reject_maps_rbl\nmaps_rbl_domains = a.example b.example"
    )
    importing()
    zones = [each["zone"] for each in importing.plugin("dnsbl")["lists"]]
    assert zones == ["a.example", "b.example"]


def test_value_may_be_long(importing: Import) -> None:
    domains = [f"long-name-of-a-domain-{number}.example" for number in range(8000)]
    importing.write(f"relay_domains = {', '.join(domains)}\nmydestination =")
    importing("--dry-run")
    assert "without an end" not in importing.said
    assert domains[-1] in importing.said


@pytest.mark.parametrize("networks", ["127.0.0.0/8", "hash:/etc/postfix/networks"])
def test_rules_have_a_bound_that_is_told_once(importing: Import, networks: str) -> None:
    entries = "".join(f"b{number}.example REJECT\n" for number in range(3000))
    importing.write(
        f"mydestination =\nmynetworks = {networks}\n"
        "smtpd_sender_restrictions = check_sender_access hash:/etc/postfix/access",
        access=entries,
        networks="".join(f"10.0.{number}.1 x\n" for number in range(200)),
    )
    importing("--dry-run", "--json")
    report = json.loads(importing.said)
    lines = [each["text"] for each in report["by_hand"] if "not carried over" in each["text"]]
    left, why = (
        (2000, "there are 1000 rules")
        if networks[0] == "1"
        else (3000, "each rule would have more than 100 networks")
    )
    [line] = lines
    assert line.startswith(f"check_sender_access: {left} entries are not carried over: {why}")


def calls(count: int) -> int:
    """Return how many functions an import calls for tables of `count` lines."""
    directory = PostfixDirectory(Path("/nonexistent/etc/postfix"), large(count), [], [])
    profile = cProfile.Profile()
    profile.runcall(migrated, directory, Path("/var/lib/minismtp"))
    return sum(entry.callcount for entry in profile.getstats())


def large(count: int) -> MainCf:
    """Return parameters with many domains, users, aliases, rules and routes."""

    def table(entry: str) -> str:
        return "inline:{" + ", ".join(f"{{{entry.format(n)}}}" for n in range(count)) + "}"

    settings = {
        "virtual_mailbox_domains": table("d{0}.example = x"),
        "virtual_mailbox_maps": table("u{0}@d{0}.example = x"),
        "virtual_alias_maps": table("a{0}@d{0}.example = u{0}@d{0}.example"),
        "transport_maps": table("t{0}.example = smtp:[h{0}.example]"),
        "mynetworks": table("10.0.0.{0} = x"),
        "relay_domains": table("r{0}.example = x"),
    }
    return MainCf.of("".join(f"{name} = {value}\n" for name, value in settings.items()), "main.cf")


def test_work_grows_with_the_length_of_the_tables() -> None:
    calls(10)  # what is remembered
    assert calls(400) < 2.5 * calls(200)


def test_octets_that_are_not_utf_8_cost_their_line_only(importing: Import) -> None:
    importing.write("virtual_alias_domains = example.org\nvirtual_alias_maps = hash:/etc/postfix/v")
    with (importing.postfix / "main.cf").open("ab") as file:
        file.write("# f\u00fcr alle\nrelayhost = [b\u00fccher]\n".encode("latin-1"))
    (importing.postfix / "v").write_bytes(
        b"a\xff@example.org b@x.example\na@example.org b@x.example"
    )
    said = importing()
    assert (
        "main.cf:5: -: the line has an octet that is not UTF-8, so it is left out;"
        " the default of relayhost counts"
    ) in " ".join(said.split())
    assert "/etc/postfix/v:1: virtual_alias_maps: the line has an octet" in said
    assert importing.lines("aliases") == ["a@example.org: b@x.example"]


def test_inspection_that_finds_an_error_writes_nothing(
    importing: Import, monkeypatch: pytest.MonkeyPatch
) -> None:
    importing.host("debian")
    monkeypatch.setattr("minismtp.cli.setup.host.passed", lambda *_: False)
    assert "nothing was written" in importing(status=78)
    assert not importing.etc.exists()


_value = st.one_of(
    st.sampled_from(
        [
            *("", "yes", "no", "5d", "0", "99999999999999999999", "$mydestination", "${x?{a}:{b}}"),
            *("hash:/etc/aliases", "pcre:/x", "static:all", "inline:{ {a@b.example = c} }", "{"),
            *("[a]:25", "a:25", "lmtp:unix:private/x", "lmtp:inet:h:24", "!/etc/hosts", "::1/128"),
            *("reject_rbl_client a.example=127.0.0.[1;3]", "check_sender_access", "@", "inet:x:y"),
            *("zen.example*x", "permit, reject", "'", '"', "\\", "#", "\u20ac", "a" * 300),
        ]
    ),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30),
)


@given(
    st.dictionaries(st.sampled_from(sorted(DEFAULTS)), st.lists(_value, max_size=3), max_size=20),
    st.lists(st.text("smtp inet unix-no={}:25 \n", max_size=60), max_size=4),
)
def test_any_directory_becomes_a_configuration_with_a_whole_report(
    settings: dict[str, list[str]], services: list[str]
) -> None:
    text = "".join(f"{name} = {' '.join(value)}\n" for name, value in settings.items())
    found, problems = read_services("\n".join(services), "master.cf")
    main_cf = MainCf.of(text, "main.cf")
    directory = PostfixDirectory(Path("/nonexistent/etc/postfix"), main_cf, found, problems)
    migration = migrated(directory, Path("/var/lib/minismtp"))
    tomli.loads(migration.draft.text("head"))
    left_out = {problem.place for problem in main_cf.problems}
    assert migration.report.parameters() >= main_cf.settings.keys()
    assert len(left_out) == len(main_cf.problems)


def test_value_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(PostfixError, match="without an end"):
        MainCf.of("a = $a", "main.cf").value("a")
