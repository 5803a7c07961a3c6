import contextlib
import copy
import os
import pwd
from dataclasses import FrozenInstanceError
from datetime import timedelta
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from minismtp.config import Config, TlsConfig, default_hostname, default_state_directory
from minismtp.config.mistakes import ConfigError
from minismtp.config.types import SocketAddress

FILE = Path("/etc/minismtp/x.toml")
LISTENER = '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\ntls = "none"\n'
TLS = '[tls]\ncertificate = "c.pem"\nkey = "k.pem"\n'


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINISMTP_CONFIG", raising=False)
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)


def parse(text: str) -> Config:
    return Config.parse(text, FILE)


def problem(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    told = [ConfigError(each.message, key=each.key) for each in caught.value.mistakes]
    return "\n".join(map(str, told))


def test_a_login_at_the_smarthost_is_for_what_has_no_route() -> None:
    outbound = Config.parse(
        '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:25"\ntls = "none"\n'
        '[outbound]\nsmarthost = "smtp.example.net:465"\ntls = "verified"\n'
        'username = "me"\npassword_file = "secret"\n'
        '[[outbound.routes]]\ndomain = "*.example.org"\n',
        Path("/etc/x.toml"),
    ).outbound
    last = outbound.route("example.org")
    assert (last.username, last.password_file, last.implicit) == ("me", Path("/etc/secret"), True)
    assert outbound.route("mx.example.org").host is None


def test_defaults_are_those_of_the_documentation() -> None:
    config = parse(LISTENER)
    limits = config.limits
    assert (config.workers, config.user, config.bare_newline, config.plugin_path) == (
        *(0, "", "reject", []),
    )
    assert (limits.message_size, limits.headers, limits.line_length) == (25 << 20, 1 << 20, 0)
    assert (limits.recipients, limits.sessions, limits.sessions_per_ip) == (100, 2000, 100)
    assert (limits.errors, limits.failed_logins, limits.hops) == (10, 3, 100)
    assert limits.reserved_sessions == 0
    assert limits.login_backoff == timedelta(seconds=1)
    assert limits.command_timeout == timedelta(minutes=5)
    assert limits.data_timeout == timedelta(minutes=10)
    assert limits.session_timeout == timedelta(hours=1)
    assert limits.drain == timedelta(seconds=30)
    assert config.tls == TlsConfig(minimum_version="1.2", sni=[])
    assert str(config.metrics.address) == "127.0.0.1:9925"
    assert (config.log.level, config.log.format) == ("info", "text")
    assert config.outbound.smarthost is None
    assert [int(wait.total_seconds() / 60) for wait in config.outbound.retry] == [
        *(1, 5, 15, 30, 60, 120, 240),
    ]
    assert config.outbound.expire == timedelta(days=5)


def test_whole_file_is_read() -> None:
    config = parse(
        f"""
        hostname = "MX.Example.org"
        state_directory = "state"
        plugin_path = ["plugins", "/opt/plugins"]
        {LISTENER}
        proxy_protocol = ["10.0.0.0/8"]
        xclient = ["127.0.0.1"]
        greet_delay = "5s"
        [[listeners]]
        name = "submissions"
        address = "[::]:465"
        kind = "submission"
        tls = "implicit"
        client_certificates = true
        [[listeners]]
        name = "lmtp"
        address = "unix:lmtp.sock"
        kind = "lmtp"
        tls = "none"
        {TLS}
        client_ca = "ca.pem"
        [[tls.sni]]
        name = "*.Example.net"
        certificate = "/c.pem"
        key = "/k.pem"
        [metrics]
        address = ""
        [outbound]
        smarthost = "smtp.example.net:587"
        [[plugins]]
        use = "maildir"
        name = "store"
        on_error = "ignore"
        mode = "shadow"
        timeout = "5s"
        listeners = ["smtp"]
        path = "mail/{{local}}"
        """
    )
    smtp, submissions, lmtp = config.listeners
    assert config.hostname == "mx.example.org"
    assert config.state_directory == FILE.parent / "state"
    assert config.plugin_path == [FILE.parent / "plugins", Path("/opt/plugins")]
    assert smtp.address == SocketAddress("127.0.0.1", 0)
    assert smtp.proxy_protocol == [IPv4Network("10.0.0.0/8")]
    assert smtp.xclient == [IPv4Network("127.0.0.1/32")]
    assert smtp.greet_delay == timedelta(seconds=5)
    assert submissions.address == SocketAddress("::", 465)
    assert lmtp.address == SocketAddress(path=FILE.parent / "lmtp.sock")
    assert config.tls.certificate == FILE.parent / "c.pem"
    assert config.tls.client_ca == FILE.parent / "ca.pem"
    assert config.tls.sni[0].name == "*.example.net"
    assert config.metrics.address is None
    assert config.outbound.smarthost == SocketAddress("smtp.example.net", 587)
    plugin = config.plugins[0]
    assert (plugin.use, plugin.name, plugin.key) == ("maildir", "store", "plugins[0]")
    assert (plugin.on_error, plugin.mode, plugin.listeners) == ("ignore", "shadow", ["smtp"])
    assert plugin.timeout == timedelta(seconds=5)
    assert plugin.options == {"path": "mail/{local}"}
    assert (config.file, config.base) == (str(FILE), FILE.parent)


def test_name_of_a_plugin_is_by_default_what_it_uses() -> None:
    assert parse(f'{LISTENER}[[plugins]]\nuse = "maildir"').plugins[0].name == "maildir"


def test_configuration_cannot_be_changed_later() -> None:
    with pytest.raises(FrozenInstanceError):
        parse(LISTENER).workers = 3  # type: ignore[misc] # the subject


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x =", "invalid value"),
        ("a = 1\nb = = 2", "invalid value"),
        ("a = 1\na = 2\n", "a is set a second time in its table"),
        ("listener = 1", "listener: unknown key; did you mean 'listeners'?"),
        ("[limit]\nx = 1", "limit: unknown key; did you mean 'limits'?"),
        ('file = "x"', "file: unknown key"),
        ('base = "x"', "base: unknown key"),
        ("", "listeners: expected at least one [[listeners]] table"),
        ("listeners = []", "listeners: expected at least one [[listeners]] table"),
        ('[listeners]\nname = "x"', "listeners: expected an array of tables, each under [["),
        ('[[listeners]]\nname = "x"', "listeners[0].address: this key is required"),
        (
            f"{LISTENER}{LISTENER.replace('127.0.0.1:0', '127.0.0.1:25')}",
            "listeners[1].name: 'smtp' is taken by listeners[0] already; expected another name",
        ),
        (
            LISTENER.replace(":0", ":25")
            + LISTENER.replace(":0", ":25").replace('"smtp"', '"other"'),
            "listeners[1].address: '127.0.0.1:25' is taken by listeners[0] already",
        ),
        (
            LISTENER.replace("127.0.0.1:0", "unix:/run/x")
            + LISTENER.replace("127.0.0.1:0", "unix:/run/x").replace('"smtp"', '"other"'),
            "listeners[1].address: 'unix:/run/x' is taken by listeners[0] already",
        ),
        (LISTENER.replace('"smtp"', '"a:b"'), "listeners[0].name: expected letters, digits"),
        (LISTENER.replace('"smtp"', '""'), "listeners[0].name: expected letters, digits"),
        (LISTENER.replace("127.0.0.1:0", "25"), "listeners[0].address: expected an address such"),
        (
            '[outbound]\nsmarthost = "*:25"',
            'outbound.smarthost: expected the name or address of a server, not "*"',
        ),
        ('[dns]\nnameservers = ["[::1]:53", "*:53"]', "dns.nameservers[1]: expected the name"),
        (f'{LISTENER}kind = "mxx"', 'listeners[0].kind: expected one of "mx", "submission"'),
        (
            LISTENER.replace('tls = "none"', ""),
            'listeners[0].tls: "starttls" needs certificate and key in [tls]',
        ),
        (
            f'{LISTENER}[[listeners]]\nname = "s"\naddress = "127.0.0.1:1"\ntls = "implicit"',
            'listeners[1].tls: "implicit" needs certificate and key in [tls]',
        ),
        (
            LISTENER.replace("127.0.0.1", "0.0.0.0") + 'kind = "submission"',  # noqa: S104 - text
            "listeners[0].tls: a submission listener outside loopback must not take passwords",
        ),
        (
            f"{LISTENER}client_certificates = true",
            "listeners[0].client_certificates: clients send certificates inside TLS only",
        ),
        (
            LISTENER.replace("none", "starttls") + f"client_certificates = true\n{TLS}",
            "listeners[0].client_certificates: needs client_ca in [tls]",
        ),
        (
            f'{LISTENER}drop_headers = ["Bcc", "X-Secret:"]',
            "listeners[0].drop_headers[1]: expected the name of a header field, not 'X-Secret:'",
        ),
        (f'{LISTENER}proxy_protocol = ["10.0.0.1/8"]', "listeners[0].proxy_protocol[0]: '10.0.0."),
        ('[tls]\ncertificate = "c"', "tls.key: this key is required beside 'certificate'"),
        ('[tls]\nkey = "k"', "tls.certificate: this key is required beside 'key'"),
        ('[tls]\nminimum_version = "1.1"', 'tls.minimum_version: expected one of "1.2", "1.3"'),
        ('[[tls.sni]]\nname = "x"\nkey = "k"', "tls.sni[0].certificate: this key is required"),
        (
            '[[tls.sni]]\nname = "a b"\nkey = "k"\ncertificate = "c"',
            "tls.sni[0].name: expected a domain",
        ),
        (
            2 * '[[tls.sni]]\nname = "x"\nkey = "k"\ncertificate = "c"\n',
            "tls.sni[1].name: 'x' is taken by sni[0] already",
        ),
        ('hostname = "a b"', "hostname: expected a domain such as mx.example.org, not 'a b'"),
        ('hostname = "192.0.2.1"', "hostname: expected a domain"),
        (f'user = "nobody-here"\n{LISTENER}', "user: no user is called 'nobody-here'"),
        ("workers = -1", "workers: expected integer >= 0"),
        ("limits = 3", "limits: expected table, got integer"),
        ("[limits]\nmessage_size = 0", "limits.message_size: expected more than 0"),
        ('[limits]\nmessage_size = "25 XB"', "limits.message_size: expected a size such as"),
        ('[limits]\ncommand_timeout = "0s"', "limits.command_timeout: expected more than 0"),
        ("[limits]\ncommand_timeout = 300", "limits.command_timeout: expected a duration such as"),
        ("[limits]\nrecipients = 0", "limits.recipients: expected integer >= 1"),
        (
            "[limits]\nsessions = 5\nreserved_sessions = 5",
            "limits.reserved_sessions: expected less than sessions (5)",
        ),
        ('[metrics]\naddress = "unix:/x"', 'metrics.address: expected "host:port", not a unix'),
        ("[outbound]\nretry = []", "outbound.retry: expected at least one duration"),
        ('[outbound]\nretry = ["0s"]', "outbound.retry: expected at least one duration, each"),
        ('[outbound]\nexpire = "0s"', "outbound.expire: expected more than 0"),
        ('[outbound]\nsmarthost = "unix:/x"', 'outbound.smarthost: expected "host:port", not a'),
        ('[outbound]\nusername = "me"', "outbound.username: needs a named host"),
        (
            '[outbound]\nsmarthost = "x.example:587"\nusername = "me"\npassword_file = "p"',
            "outbound.tls: a password needs TLS",
        ),
        (
            '[outbound]\nsmarthost = "x.example:587"\nusername = "me"\ntls = "verified"',
            "outbound.password_file: username and password_file go together",
        ),
        (
            '[outbound]\nsmarthost = "x.example:465"\ntls = "none"',
            'outbound.tls: implicit TLS needs another level than "none"',
        ),
        (
            '[[outbound.routes]]\ndomain = "*"\nimplicit = true',
            "outbound.routes[0].implicit: needs a named host",
        ),
        ('[log]\nlevel = "loud"', 'log.level: expected one of "debug", "info", "warning", "error"'),
        ("plugins = 3", "plugins: expected array, got integer"),
        ("plugins = [3]", "plugins[0]: expected table, got integer"),
        ("[[plugins]]\nx = 1", "plugins[0].use: this key is required"),
        ('[[plugins]]\nuse = ""', "plugins[0].use: expected letters, digits"),
        ('[[plugins]]\nuse = "x"\nname = "a b"', "plugins[0].name: expected letters, digits"),
        ('[[plugins]]\nuse = "x"\ntimeout = "0s"', "plugins[0].timeout: expected more than 0"),
        ('[[plugins]]\nuse = "x"\non_error = "defr"', "plugins[0].on_error: expected one of"),
        (
            f'{LISTENER}[[plugins]]\nuse = "x"\n[[plugins]]\nuse = "x"',
            "plugins[1].name: 'x' is taken by plugins[0] already; expected another name",
        ),
        (
            f'{LISTENER}[[plugins]]\nuse = "x"\nlisteners = ["smtp", "smpt"]',
            "plugins[0].listeners[1]: no listener is called 'smpt'; did you mean 'smtp'?",
        ),
    ],
    ids=str,
)
def test_mistake_is_told_with_its_place(text: str, expected: str) -> None:
    assert [line for line in problem(text).splitlines() if line.startswith(expected)]


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0"])
def test_listeners_may_share_port_0(address: str) -> None:
    first = LISTENER.replace("127.0.0.1:0", address)
    assert len(parse(first + first.replace('"smtp"', '"other"')).listeners) == 2


@pytest.mark.parametrize("address", ["127.0.0.1:587", "[::1]:587", "localhost:587", "unix:/x"])
def test_submission_without_tls_may_listen_where_no_other_machine_is(address: str) -> None:
    text = LISTENER.replace("127.0.0.1:0", address) + 'kind = "submission"'
    assert parse(text).listeners[0].kind == "submission"


@pytest.mark.parametrize(
    ("name", "expected"), [("host", "127.0.0.1"), ("port", 25), ("path", None)]
)
def test_parts_of_an_address_are_found_where_they_were(name: str, expected: object) -> None:
    (listener,) = parse(LISTENER.replace(":0", ":25")).listeners
    with pytest.deprecated_call(match=rf"use Listener\.address\.{name}"):
        assert getattr(listener, name) == expected


@pytest.mark.parametrize(
    ("peer", "networks", "expected"),
    [
        ("192.0.2.7", ["192.0.2.0/24"], True),
        ("192.0.3.7", ["192.0.2.0/24"], False),
        ("unix", ["192.0.2.0/24"], True),
        ("unix", [], False),
    ],
)
def test_load_balancer_is_in_a_network_or_on_a_unix_socket(
    peer: str, networks: list[str], expected: bool
) -> None:
    [listener] = parse(f"{LISTENER}proxy_protocol = {networks}\n").listeners
    assert listener.is_behind(peer) == expected


def test_listener_has_no_other_attributes() -> None:
    (listener,) = parse(LISTENER).listeners
    with pytest.raises(AttributeError, match="no attribute 'prot'"):
        listener.prot  # type: ignore[attr-defined] # noqa: B018 - the subject
    assert copy.copy(listener) == listener


def test_existing_user_is_taken() -> None:
    name = pwd.getpwuid(os.geteuid()).pw_name
    assert parse(f'user = "{name}"\n{LISTENER}').user == name


def write(path: Path, hostname: str) -> Path:
    path.write_text(f'hostname = "{hostname}"\n{LISTENER}')
    return path


def test_named_file_goes_before_the_one_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINISMTP_CONFIG", str(write(tmp_path / "a.toml", "a.example")))
    named = write(tmp_path / "b.toml", "b.example")
    assert Config.load(named).hostname == "b.example"
    assert Config.load().hostname == "a.example"


def test_file_of_the_system_is_read_when_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = write(tmp_path / "etc.toml", "etc.example")
    monkeypatch.setattr("minismtp.config.DEFAULT_FILE", system)
    assert Config.load().hostname == "etc.example"
    assert Config.load().file == str(system)


def test_without_any_file_local_mail_is_stored_in_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minismtp.config.DEFAULT_FILE", tmp_path / "missing.toml")
    monkeypatch.chdir(tmp_path)
    config = Config.load()
    assert config.file == ""
    (listener,) = config.listeners
    assert (str(listener.address), listener.kind, listener.tls) == ("127.0.0.1:2525", "mx", "none")
    assert config.workers == 2
    assert config.state_directory == tmp_path / "minismtp-state"
    assert [plugin.use for plugin in config.plugins] == ["mailboxes", "maildir"]
    assert config.plugins[0].options == {
        "domains": list(dict.fromkeys(["localhost", config.hostname]))
    }
    assert config.plugins[1].options == {"path": f"{tmp_path}/minismtp-state/mail/{{local}}"}
    assert str(config.metrics.address) == "127.0.0.1:9925"


def test_braces_in_the_state_directory_are_no_placeholders(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/srv/{x}")
    path: Any = Config.embedded().plugins[1].options["path"]
    assert path.format(local="me") == "/srv/{x}/mail/me"


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_named_file_that_is_missing_is_an_error(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "missing.toml"
    monkeypatch.setenv("MINISMTP_CONFIG", str(missing))
    with pytest.raises(ConfigError) as caught:
        Config.load(missing if by == "argument" else None)
    assert str(caught.value) == f"{missing}: cannot be read: No such file or directory"


def test_system_file_that_cannot_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minismtp.config.DEFAULT_FILE", tmp_path)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        Config.load()


def test_named_pipe_as_the_file_is_an_error_at_once(tmp_path: Path) -> None:
    """The supervisor reads the file on HUP, so it must not wait for a writer."""
    os.mkfifo(tmp_path / "x.toml")
    with pytest.raises(ConfigError, match="cannot be read: is not a regular file"):
        Config.load(tmp_path / "x.toml")


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/dev/tty", "/proc/self/fd"])
def test_device_or_directory_as_the_file_is_an_error(path: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read: "):
        Config.load(Path(path))


def test_file_without_end_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole, which would take all memory if it was read
    with pytest.raises(ConfigError, match="is longer than 1048576 octets"):
        Config.load(path)


@pytest.mark.parametrize(
    "text",
    [
        f"deep = {'[' * 50_000}",
        f"deep = {'{a = ' * 50_000}",
        f"deep = {'[' * 300}{']' * 300}",
        f"{'.'.join('a' * 5000)} = 1",
        f"[{'.'.join('a' * 5000)}]",
        f'[[plugins]]\nuse = "x"\nitems = {"[" * 400}1{"]" * 400}',
    ],
    ids=["arrays", "tables", "values", "keys", "header", "option"],
)
def test_deeply_nested_file_is_an_error_or_a_configuration(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    with contextlib.suppress(ConfigError):
        Config.load(path)


def test_file_in_another_encoding_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b'hostname = "\xe4"')
    with pytest.raises(ConfigError, match=r"x\.toml: is not UTF-8: "):
        Config.load(path)


def test_relative_configuration_file_leads_to_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.toml").write_text(f'state_directory = "state"\n{LISTENER}')
    assert Config.load(Path("x.toml")).state_directory == tmp_path / "state"


def test_state_directory_is_the_first_that_systemd_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/a:/var/lib/b")
    assert default_state_directory() == Path("/var/lib/a")


@pytest.mark.parametrize(
    ("machine", "expected"),
    [("VM.example", "vm.example"), ("my_box", "localhost"), ("", "localhost")],
)
def test_machine_whose_name_is_no_domain_is_localhost(
    machine: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: machine)
    assert default_hostname() == expected


# Versions


def test_file_for_a_later_release_is_refused_for_that_alone() -> None:
    text = "listners = 1\nconfig_version = 2\n"
    with pytest.raises(ConfigError, match=r"config_version, line 2: .* later") as caught:
        Config.parse(text, Path("x.toml"))
    assert len(caught.value.mistakes) == 1


def test_file_may_tell_its_version(tmp_path: Path) -> None:
    text = f"config_version = 1\n{LISTENER}"
    assert Config.parse(text, tmp_path / "x.toml").config_version == 1
    with pytest.raises(ConfigError, match=r"config_version, line 1: expected"):
        Config.parse(f"config_version = 0\n{LISTENER}", tmp_path / "x.toml")
