import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from minismtp.cli.check import check
from minismtp.config import Config
from minismtp.config.mistakes import ConfigError
from minismtp.values.passwords import hash_password

MAILBOXES = '[[plugins]]\nuse = "mailboxes"\ndomains = ["example.org"]\n'
MAILDIR = '[[plugins]]\nuse = "maildir"\npath = "mail/{local}"\n'
LISTENER = '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\ntls = "none"\n'
TLS = '[tls]\ncertificate = "cert.pem"\nkey = "key.pem"\n'

Findings = Callable[..., list[str]]
LocalPlugin = Callable[..., str]


@pytest.fixture
def findings(tmp_path: Path) -> Findings:
    """Return a function that checks a configuration. Its findings lack the file's name."""

    def run(*parts: str) -> list[str]:
        text = "".join(parts)
        if "state_directory" not in text:
            text = f'state_directory = "state"\n{text}'
        file = tmp_path / "x.toml"
        found = list(check(Config.examine(text, file)))
        assert all(each.mistake.file == str(file) for each in found)
        return [
            f"{severity}: {ConfigError(mistake.message, key=mistake.key)}"
            for severity, mistake in found
        ]

    return run


@pytest.fixture
def local_plugin(tmp_path: Path) -> LocalPlugin:
    """Return a function that writes a plugin's methods to a file and returns its configuration."""

    def write(methods: str, options: str = "") -> str:
        directory = tmp_path / "plugins"
        directory.mkdir()
        (directory / "mine.py").write_text(
            '"""A plugin for one test."""\n'
            "from ipaddress import IPv4Network, ip_address\n"
            "from pathlib import Path\n"
            "from minismtp import Defer, Local, Reject, Relay, hookimpl, plugin\n"
            f"@plugin\nclass Mine:\n{methods}\n"
        )
        return f'plugin_path = ["plugins"]\n{LISTENER}[[plugins]]\nuse = "mine"\n{options}{MAILDIR}'

    return write


@pytest.fixture
def certificate(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that puts a certificate and its key beside the configuration."""

    def issue(days: float = 365, name: str = "cert.pem") -> Path:
        end = datetime.now(UTC) + timedelta(days=days)
        issued = trustme.CA().issue_cert("mx.example.org", not_after=end)
        (tmp_path / name).write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        key = tmp_path / name.replace("cert", "key")
        key.write_bytes(issued.private_key_pem.bytes())
        key.chmod(0o600)
        return key

    return issue


def test_sound_configuration_has_no_findings(findings: Findings) -> None:
    assert findings(LISTENER, MAILBOXES, MAILDIR) == []


def test_check_leaves_nothing_behind(findings: Findings, tmp_path: Path) -> None:
    findings(LISTENER, MAILBOXES, MAILDIR)
    assert list(tmp_path.iterdir()) == []


OUTSIDER = "route(self, session, recipient)"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("return Relay()", "192.0.2.1 may send mail to probe@relay-test.invalid"),
        ("return Local()", "192.0.2.1 may send mail to probe@relay-test.invalid"),
        (
            "return Relay() if ':' in session.peer else None",
            "2001:db8::1 may send mail to probe@relay-test.invalid",
        ),
    ],
)
def test_open_relay_is_an_error(
    answer: str, expected: str, findings: Findings, local_plugin: LocalPlugin
) -> None:
    text = local_plugin(f"    @hookimpl\n    def {OUTSIDER}:\n        {answer}")
    assert findings(text) == [
        (
            f"error: listeners[0]: open relay: {expected}; expected routes for users and trusted"
            " networks only"
        )
    ]


def test_open_relay_over_lmtp_is_an_error(findings: Findings, local_plugin: LocalPlugin) -> None:
    text = local_plugin(f"    @hookimpl\n    def {OUTSIDER}:\n        return Relay()")
    text = text.replace(LISTENER, f'{LISTENER}kind = "lmtp"\n')
    assert "open relay" in "".join(findings(text))


def test_relay_for_users_who_have_logged_in_is_sound(
    findings: Findings, local_plugin: LocalPlugin
) -> None:
    answer = "return Relay() if session.login else None"
    text = local_plugin(
        f"    @hookimpl\n    def {OUTSIDER}:\n        {answer}\n"
        "    @hookimpl\n    def authenticate(self, credentials):\n        return None"
    )
    assert findings(text.replace(LISTENER, f'{LISTENER}kind = "submission"\n')) == []


@pytest.mark.parametrize(
    "body", ['raise Defer("the directory is away")', "1 / 0"], ids=["deferred", "crashed"]
)
def test_route_that_was_put_off_is_a_warning(
    body: str, findings: Findings, local_plugin: LocalPlugin
) -> None:
    text = local_plugin(f"    @hookimpl\n    def {OUTSIDER}:\n        {body}")
    (found,) = findings(text)
    assert found.startswith("warning: listeners[0]: cannot tell whether it is an open relay: ")
    assert "'451 4." in found


@pytest.mark.parametrize("hook", ["on_connect", "on_mail", "on_rcpt"])
@pytest.mark.parametrize(
    ("route", "severity"),
    [("return Relay()", "error"), ("return None", ""), ("raise Reject('no')", "")],
)
def test_filter_that_defers_does_not_hide_an_open_relay(
    hook: str, route: str, severity: str, findings: Findings, local_plugin: LocalPlugin
) -> None:
    text = local_plugin(
        f"    @hookimpl\n    def {hook}(self):\n        raise Defer('greylisted')\n"
        f"    @hookimpl\n    def {OUTSIDER}:\n        {route}"
    )
    assert [line.partition(":")[0] for line in findings(text)] == ([severity] if severity else [])


def test_plugin_is_started_and_stopped_with_a_directory_that_is_not_the_servers(
    findings: Findings, local_plugin: LocalPlugin, tmp_path: Path
) -> None:
    text = local_plugin(
        "    note: Path\n"
        "    @hookimpl\n    def on_start(self, server):\n"
        "        self.note.write_text(f'{server.role} {server.state_directory}')\n"
        "    @hookimpl\n    def on_stop(self):\n"
        "        self.note.write_text(self.note.read_text() + ' stopped')\n"
        "    @hookimpl\n    def route(self):\n        return None",
        'note = "note"\n',
    )
    assert findings(text) == []
    role, directory, stopped = (tmp_path / "note").read_text().split()
    assert (role, stopped) == ("check", "stopped")
    assert Path(directory) != tmp_path / "state"
    assert not Path(directory).exists()


def test_plugin_that_cannot_start_is_an_error(
    findings: Findings, local_plugin: LocalPlugin, tmp_path: Path
) -> None:
    text = local_plugin(
        "    @hookimpl\n    def on_start(self):\n        raise OSError('database is away')\n"
        "    @hookimpl\n    def route(self):\n        return None"
    )
    place = tmp_path / "plugins" / "mine.py"
    expected = f"error: plugins[0]: on_start: OSError: database is away ({place}:9)"
    assert findings(text) == [expected]


def test_server_that_stores_nothing_is_warned_about(findings: Findings) -> None:
    assert findings(LISTENER, MAILBOXES) == [
        "warning: plugins: no plugin stores mail (hook deliver); expected such as maildir or lmtp"
    ]


LMTP = '[[plugins]]\nuse = "lmtp"\naddress = "127.0.0.1:1"\n'
FILTER = '[[plugins]]\nuse = "attachments"\naction = "quarantine"\n'
RULES = """
[[plugins]]
use = "rules"
rules = [{ name = "x", action = "quarantine", all = [{ login = false }] }]
"""
SCORE = '[[plugins]]\nuse = "score"\nquarantine = 5.0\n'
QUARANTINE = '[[plugins]]\nuse = "quarantine"\n'


@pytest.mark.parametrize("table", [FILTER, RULES, SCORE], ids=["action", "rule", "points"])
def test_quarantine_that_nothing_keeps_apart_is_warned_about(
    table: str, findings: Findings
) -> None:
    [found] = [each for each in findings(LISTENER, MAILBOXES, table, LMTP) if "quarantines" in each]
    assert found == (
        "warning: plugins[1]: it quarantines mail, but lmtp stores such mail like any other;"
        ' expected a table with use = "quarantine" above lmtp'
    )


@pytest.mark.parametrize(
    "tables",
    [
        (FILTER, QUARANTINE, LMTP),
        (FILTER, MAILDIR),
        (FILTER.replace("quarantine", "reject"), LMTP),
        (SCORE.replace("quarantine", "reject"), LMTP),
        (f'{FILTER}mode = "shadow"\n', LMTP),
    ],
    ids=["quarantine", "maildir", "refused", "no quarantine", "shadow"],
)
def test_quarantine_that_is_kept_apart_or_not_used_is_sound(
    tables: tuple[str, ...], findings: Findings
) -> None:
    found = findings(LISTENER, MAILBOXES, *tables)
    assert not any("quarantines mail" in each for each in found)


def test_listener_without_routes_is_warned_about(findings: Findings) -> None:
    elsewhere = LISTENER.replace('"smtp"', '"other"')
    found = findings(LISTENER, elsewhere, MAILBOXES, 'listeners = ["smtp"]\n', MAILDIR)
    assert found == [
        (
            "warning: listeners[1]: no plugin routes recipients here (hook route), so all are"
            " refused; expected such as mailboxes"
        )
    ]


def test_submission_without_passwords_is_warned_about(findings: Findings) -> None:
    (found,) = findings(LISTENER, 'kind = "submission"\n', MAILBOXES, MAILDIR)
    assert found.startswith("warning: listeners[0]: no plugin checks passwords here (hook auth")


@pytest.mark.parametrize(
    ("hostname", "warned"), [("mx", True), ("mx.example.org", False)], ids=["short", "full"]
)
def test_short_hostname_of_a_public_server_is_warned_about(
    hostname: str, warned: bool, findings: Findings
) -> None:
    public = LISTENER.replace("127.0.0.1", "0.0.0.0")  # noqa: S104 - nothing listens
    found = findings(f'hostname = "{hostname}"\n', public, MAILBOXES, MAILDIR)
    assert ("warning: hostname: 'mx' is not fully qualified" in "".join(found)) is warned


def test_missing_plugin_directory_is_warned_about(findings: Findings, tmp_path: Path) -> None:
    found = findings('plugin_path = ["plugins"]\n', LISTENER, MAILBOXES, MAILDIR)
    assert found == [
        (
            f"warning: plugin_path[0]: {tmp_path / 'plugins'} does not exist;"
            " expected a directory with a file for each plugin"
        )
    ]


@pytest.mark.parametrize("directory", ["state", "state/below/it"])
def test_file_in_the_place_of_the_state_directory_is_an_error(
    directory: str, findings: Findings, tmp_path: Path
) -> None:
    (tmp_path / "state").touch()
    found = findings(f'state_directory = "{directory}"\n', LISTENER, MAILBOXES, MAILDIR)
    assert found == [
        f"error: state_directory: {tmp_path / 'state'} is a file; expected a directory"
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_state_directory_that_cannot_be_made_is_an_error(
    findings: Findings, tmp_path: Path
) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    found = findings('state_directory = "locked/state"\n', LISTENER, MAILBOXES, MAILDIR)
    assert "error: state_directory: " in "".join(found)


def test_certificate_that_is_good_for_long_has_no_finding(
    findings: Findings, certificate: Callable[..., Path]
) -> None:
    certificate()
    assert findings(LISTENER.replace("none", "starttls"), TLS, MAILBOXES, MAILDIR) == []


@pytest.mark.parametrize(("days", "word"), [(-1, "expired on"), (7, "expires on")])
def test_certificate_at_its_end_is_warned_about(
    days: int,
    word: str,
    findings: Findings,
    certificate: Callable[..., Path],
    tmp_path: Path,
) -> None:
    certificate(days)
    day = (datetime.now(UTC) + timedelta(days=days)).date()
    assert findings(LISTENER, TLS, MAILBOXES, MAILDIR) == [
        f"warning: tls.certificate: {tmp_path / 'cert.pem'} {word} {day}; renew it"
    ]


def test_certificates_for_other_names_are_looked_at_too(
    findings: Findings, certificate: Callable[..., Path], tmp_path: Path
) -> None:
    certificate()
    certificate(7, "cert2.pem").chmod(0o644)
    sni = '[[tls.sni]]\nname = "a.example"\ncertificate = "cert2.pem"\nkey = "key2.pem"\n'
    expiring, other, readable = findings(LISTENER, TLS, sni, MAILBOXES, MAILDIR)
    assert f"tls.sni[0].certificate: {tmp_path / 'cert2.pem'} expires on" in expiring
    assert "is for mx.example.org, not for its name here a.example; get one for it" in other
    assert f"tls.sni[0].key: {tmp_path / 'key2.pem'} can be read by everybody" in readable


def test_certificate_of_another_key_is_an_error(
    findings: Findings, certificate: Callable[..., Path]
) -> None:
    certificate()
    certificate(name="cert2.pem")
    (found,) = findings(LISTENER, TLS.replace("key.pem", "key2.pem"), MAILBOXES, MAILDIR)
    assert found.startswith("error: tls.certificate: ")
    assert "not a pair" in found


def test_missing_certificate_is_an_error(findings: Findings, tmp_path: Path) -> None:
    assert findings(LISTENER, TLS, MAILBOXES, MAILDIR) == [
        (
            f"error: tls.certificate: {tmp_path / 'cert.pem'}: No such file or directory;"
            " make it, or correct the path"
        )
    ]


@pytest.mark.parametrize(("mode", "warned"), [(0o640, False), (0o644, True)], ids=oct)
def test_key_that_everybody_can_read_is_warned_about(
    mode: int, warned: bool, findings: Findings, certificate: Callable[..., Path]
) -> None:
    certificate().chmod(mode)
    found = findings(LISTENER, TLS, MAILBOXES, MAILDIR)
    assert ("can be read by everybody" in "".join(found)) is warned


def test_password_file_that_everybody_can_read_is_warned_about(
    findings: Findings, tmp_path: Path
) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text(f"alice:{hash_password('secret')}\n")
    passwords.chmod(0o644)
    plugin = '[[plugins]]\nuse = "password_file"\npath = "passwords"\n'
    assert findings(LISTENER, MAILBOXES, plugin, MAILDIR) == [
        f"warning: plugins[1].path: {passwords} can be read by everybody (chmod o-r)"
    ]


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("", "x.toml"),
        ("tls.certificate", "tls/cert.pem"),
        ("tls.key", "tls/key.pem"),
        ("tls.certificate", "tls"),
        ("plugin_path[0]", "plugins"),
        ("plugin_path[0]", "plugins/mine.py"),
        ("plugin_path[0]", "plugins/helper.py"),
        ("plugins[1].path", "passwords"),
        ("plugins[2].users_file", "users"),
        ("outbound.password_file", "smarthost"),
    ],
)
def test_what_others_can_change_is_warned_about(
    key: str, name: str, findings: Findings, local_plugin: LocalPlugin, tmp_path: Path
) -> None:
    text = local_plugin("    @hookimpl\n    def on_stop(self): ...\n")
    text += '[[plugins]]\nuse = "password_file"\npath = "passwords"\n'
    text = text.replace(MAILDIR, "") + MAILBOXES + 'users_file = "users"\n' + MAILDIR
    text += '[tls]\ncertificate = "tls/cert.pem"\nkey = "tls/key.pem"\n'
    text += '[outbound]\nsmarthost = "smtp.example.net:587"\nusername = "me"\n'
    text += 'password_file = "smarthost"\ntls = "verified"\n'
    (tmp_path / "tls").mkdir(mode=0o700)
    issued = trustme.CA().issue_cert("mx.example.org")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "tls" / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "tls" / "key.pem")
    for file in ("x.toml", "users", "smarthost", "plugins/helper.py"):
        (tmp_path / file).write_text("bob\n" if file in ("users", "smarthost") else "")
    (tmp_path / "passwords").write_text(f"alice:{hash_password('secret')}\n")
    for path in tmp_path.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    assert not [line for line in findings(text) if "written" in line]
    exposed = tmp_path / name
    exposed.chmod(0o772 if exposed.is_dir() else 0o662)
    prefix = f"warning: {key}: " if key else "warning: "
    [line] = [line for line in findings(text) if "written" in line]
    assert line == f"{prefix}{exposed} can be written by everybody (chmod o-w)"


@pytest.mark.parametrize(
    "options",
    [
        'connect = { password = "hunter2" }',
        'api_token = "hunter2"',
        'secret = "hunter2"',
    ],
)
def test_configuration_with_a_secret_that_everybody_can_read_is_warned_about(
    options: str, findings: Findings, local_plugin: LocalPlugin, tmp_path: Path
) -> None:
    name = options.split(maxsplit=1)[0]
    kind = "dict[str, str]" if "{" in options else "str"
    text = local_plugin(f"    {name}: {kind}\n", f"{options}\n")
    file = tmp_path / "x.toml"
    file.write_text(text)
    file.chmod(0o644)
    key = f"plugins[0].{name}" + (".password" if "{" in options else "")
    expected = f"warning: {key}: {file} can be read by everybody (chmod o-r)"
    assert [line for line in findings(text) if "read by" in line] == [expected]
    file.chmod(0o640)
    assert not [line for line in findings(text) if "read by" in line]


def test_state_directory_that_everybody_can_enter_is_warned_about(
    findings: Findings, tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o755)
    [line] = findings(LISTENER, MAILBOXES, MAILDIR)
    assert (
        line == f"warning: state_directory: {tmp_path / 'state'} is open to everybody (chmod o-rwx)"
    )


def test_one_mistake_does_not_hide_another(findings: Findings) -> None:
    found = findings(LISTENER, TLS, MAILBOXES.replace("domains", "domain"), MAILDIR)
    assert [line.split(": ")[1] for line in found] == ["tls.certificate", "plugins[0].domain"]


def test_files_for_sending_are_looked_at(findings: Findings, tmp_path: Path) -> None:
    smarthost = (
        '[outbound]\nsmarthost = "smtp.example.net:587"\ntls = "verified"\nusername = "me"\n'
        'password_file = "secret"\nserver_ca = "ca.pem"\n'
    )
    secret, authorities = tmp_path / "secret", tmp_path / "ca.pem"
    assert findings(LISTENER, smarthost, MAILBOXES, MAILDIR) == [
        f"error: outbound.server_ca: {authorities}: No such file or directory",
        (
            f"error: outbound.password_file: {secret}: No such file or directory;"
            " make it, with the password in its first line"
        ),
    ]
    secret.write_text("x\n")
    secret.chmod(0o644)
    authorities.write_text("x\n")
    assert findings(LISTENER, smarthost, MAILBOXES, MAILDIR) == [
        f"warning: outbound.password_file: {secret} can be read by everybody (chmod o-r)",
        f"error: outbound.server_ca: {authorities} is no PEM file of certificates",
    ]


DOCUMENTATION = ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "3fff::/20")
EVERYWHERE = [f"{number}.0.0.0/8" for number in range(256)]
HALVES = [f"{number}.0.0.0/9" for number in range(0, 240, 2)]


@pytest.mark.parametrize(
    "networks",
    [
        ["192.0.2.0/24"],
        ["192.0.2.1", "2001:db8::1"],
        ["192.0.2.0/24", "2001:db8:1::/48"],
        [*DOCUMENTATION],
        [*DOCUMENTATION, "10.0.0.0/8", "fd00::/8", "127.0.0.0/8", "::1"],
        [*DOCUMENTATION, *HALVES],
    ],
)
def test_outsider_is_in_nobodys_networks(findings: Findings, networks: list[str]) -> None:
    relay = f'[[plugins]]\nuse = "relay"\nnetworks = {networks!r}\n'
    assert findings(LISTENER, MAILBOXES, relay, MAILDIR) == []


def test_networks_that_leave_no_outsider_are_an_open_relay(findings: Findings) -> None:
    networks = EVERYWHERE
    relay = f'[[plugins]]\nuse = "relay"\nnetworks = {networks!r}\n'
    found = findings(LISTENER, MAILBOXES, relay, MAILDIR)
    assert found == [
        (
            "error: listeners[0]: open relay: 192.0.2.1 may send mail to probe@relay-test.invalid;"
            " expected routes for users and trusted networks only"
        )
    ]


@pytest.mark.parametrize("networks", [["0.0.0.0/0"], ["0.0.0.0/1", "128.0.0.0/1"], ["192.0.0.0/7"]])
def test_network_too_wide_for_anybody_does_not_hide_an_open_relay(
    findings: Findings, local_plugin: LocalPlugin, networks: list[str]
) -> None:
    text = local_plugin(
        "    networks: list[IPv4Network]\n"
        "    @hookimpl\n"
        "    def route(self, session):\n"
        "        inside = any(ip_address(session.peer) in each for each in self.networks)\n"
        "        return Relay() if inside else None\n",
        f"networks = {networks!r}\n",
    )
    assert "open relay: 192.0.2.1" in "".join(findings(text))


@pytest.mark.parametrize(
    "method", ["    def __post_init__(self):", "    @hookimpl\n    def on_start(self, server):"]
)
def test_what_a_later_release_will_not_have_is_a_warning(
    method: str, findings: Findings, local_plugin: LocalPlugin, tmp_path: Path
) -> None:
    text = local_plugin(
        "    @hookimpl\n    def on_connect(self, session): ...\n"
        f"{method}\n"
        "        import warnings\n"
        "        warnings.warn('f is deprecated: use g', DeprecationWarning)\n"
        "        warnings.warn_explicit('of a library', DeprecationWarning, 'library.py', 1)\n"
    )
    found = [each for each in findings(text, MAILBOXES) if "deprecated" in each or "of a" in each]
    place = tmp_path / "plugins" / "mine.py"
    line = place.read_text().splitlines().index("        import warnings") + 2
    assert found == [f"warning: plugins[0]: {place}, line {line}: f is deprecated: use g"]
