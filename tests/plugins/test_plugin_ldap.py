"""Logins that an LDAP directory decides: slapd, and fakes that fail."""

from __future__ import annotations

import socket
import subprocess
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from examples import examples
from fakes import (
    FAILURES,
    Talk,
    drip,
    listen,
    nobody_there,
    running_daemon,
    saying,
    serving,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from minismtp_plugins._ldap import Conversation
from minismtp_plugins._ldap_ber import (
    Elements,
    check_dn,
    encode,
    encode_number,
    encoded_filter,
    escaped,
    number,
)
from minismtp_plugins.ldap import Ldap
from ports import free_port

from minismtp import Credentials, Remote, RemoteError, ServerInfo, SocketAddress
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.testing import Dialogue

if TYPE_CHECKING:
    from conftest import TlsFiles

PEOPLE: Final = "ou=people,dc=example,dc=org"
DN: Final = f"uid={{user}},{PEOPLE}"
CONFIGURATION: Final = """
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile {directory}/pid
TLSCertificateFile {tls.certificate}
TLSCertificateKeyFile {tls.key}
TLSCACertificateFile {tls.authority}
database mdb
suffix "dc=example,dc=org"
rootdn "cn=admin,dc=example,dc=org"
directory {directory}/data
access to attrs=userPassword by anonymous auth by * none
access to * by dn.exact="cn=reader,dc=example,dc=org" read by * none
"""
ENTRIES: Final = """\
dn: dc=example,dc=org
objectClass: dcObject
objectClass: organization
dc: example
o: example

dn: ou=people,dc=example,dc=org
objectClass: organizationalUnit
ou: people

dn: cn=reader,dc=example,dc=org
objectClass: person
cn: reader
sn: reader
userPassword: reads
"""
PERSON: Final = """
dn: uid={rdn},ou=people,dc=example,dc=org
objectClass: inetOrgPerson
uid: {uid}
cn: {uid}
sn: {uid}
mail: {mail}
employeeNumber: 7
"""
#: Names with special characters of a DN or a filter.
STRANGE: Final = ("o'hara, jr", "a*b", "star(1)", "x=y+z", 'back\\slash "q"', "#1", "a;b<c>d")


@dataclass(frozen=True)
class Directory:
    """A running one."""

    port: int
    tls_port: int
    reads: Path  # the password of the reader

    @property
    def url(self) -> str:
        return f"ldap://127.0.0.1:{self.port}"

    def searching(
        self,
        *,
        base: str = PEOPLE,
        query: str = "(uid={user})",
        identity: str = "",
        password: Path | None = None,
    ) -> Ldap:
        return Ldap(
            url=self.url,
            base=base,
            filter=query,
            identity=identity,
            bind_dn="cn=reader,dc=example,dc=org",
            bind_password_file=password or self.reads,
        )


def ldif() -> str:
    def person(uid: str, password: str | None = " secret") -> str:  # noqa: S107
        rdn = "".join(f"\\{octet:02x}" for octet in uid.encode())
        text = PERSON.format(rdn=rdn, uid=uid, mail=f"{len(uid)}@example.org")
        text = text.replace(f"uid: {uid}", f"uid:: {b64encode(uid.encode()).decode()}")
        for name in ("cn", "sn"):
            text = text.replace(f"{name}: {uid}", f"{name}: x")
        return text if password is None else f"{text}userPassword:{password}\n"

    names = ("alice", "\u00fcber", *STRANGE)
    accented = person("accented", ": " + b64encode("s\u00e4cret".encode()).decode())
    return ENTRIES + "".join(map(person, names)) + person("empty", None) + accented


@pytest.fixture(scope="module")
def directory(
    tmp_path_factory: pytest.TempPathFactory,
    tls_files: TlsFiles,
    require_program: Callable[[str], str],
) -> Iterator[Directory]:
    slapd, slapadd = require_program("slapd"), require_program("slapadd")
    place = tmp_path_factory.mktemp("slapd")
    (place / "data").mkdir()
    config = place / "slapd.conf"
    config.write_text(CONFIGURATION.format(directory=place, tls=tls_files))
    (place / "entries.ldif").write_text(ldif())
    entries = (slapadd, "-q", "-f", config, "-l", place / "entries.ldif")
    subprocess.run(entries, check=True, capture_output=True)
    found = Directory(free_port(), free_port(), place / "reads")
    found.reads.write_text("reads\n")
    urls = f"{found.url}/ ldaps://127.0.0.1:{found.tls_port}/"
    command = (slapd, "-d", "0", "-f", config, "-h", urls)
    with running_daemon(*command, port=found.tls_port, log=place / "log"):
        yield found


def log_in(plugin: Ldap, user: str = "alice", password: str = "secret") -> str | None:  # noqa: S107
    return plugin.authenticate(Credentials("PLAIN", user, password))


@pytest.fixture(params=["dn", "search"])
def plugin(request: pytest.FixtureRequest, directory: Directory) -> Ldap:
    """Return a plugin with the DN of each user, and one that searches."""
    return Ldap(url=directory.url, dn=DN) if request.param == "dn" else directory.searching()


# slapd


@pytest.mark.parametrize(
    ("user", "password", "known_as"),
    [
        ("alice", "secret", "alice"),
        ("\u00fcber", "secret", "\u00fcber"),
        ("U\u0308BER", "secret", "\u00fcber"),
        ("accented", "s\u00e4cret", "accented"),
        ("ACCENTED", "sa\u0308cret", "accented"),
        ("accented", "sacret", None),
        *((name, "secret", name) for name in STRANGE),
        ("alice", "Secret", None),
        ("alice", "se\x07cret", None),
        ("nobody", "secret", None),
        ("empty", "secret", None),
    ],
)
def test_directory_decides(plugin: Ldap, user: str, password: str, known_as: str | None) -> None:
    assert log_in(plugin, user, password) == known_as


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("(uid={user})", True),
        ("( & (objectClass=person) (| (uid={user}) (mail={user})) (!(title=x)) )", True),
        ("(&(uid={user})(title=*))", False),
        ("(&(uid={user})(mail=*))", True),
        ("(&(uid={user})(mail=5@*))", True),
        ("(&(uid={user})(mail=*@ex*.org))", True),
        ("(&(uid={user})(mail=*.net))", False),
        ("(&(uid={user})(employeeNumber:=7))", True),
        ("(&(uid={user})(employeeNumber:caseExactMatch:=8))", False),
        ("(&(uid={user})(ou:dn:=people))", True),
        ("(&(uid={user})(:dn:caseIgnoreMatch:=people))", True),
        ("(&(uid={user})(uid>=alice))", False),  # slapd has no order of names: undefined
        ("(&(uid={user})(cn~=\\78))", True),
        (f"(&(uid={{user}})(!(sn={'y' * 300})))", True),
    ],
)
def test_filter_may_be_any_of_rfc_4515(directory: Directory, query: str, found: bool) -> None:
    assert log_in(directory.searching(query=query)) == ("alice" if found else None)


@pytest.mark.parametrize("user", ["alice", "empty", "nobody", ""])
def test_empty_password_is_no_login(plugin: Ldap, user: str) -> None:
    """A directory accepts an empty one as an anonymous login: RFC 4513 section 5.1.2."""
    assert log_in(plugin, user, "") is None


def test_bind_without_a_password_is_not_even_sent(directory: Directory) -> None:
    address = SocketAddress("127.0.0.1", directory.port)
    remote = Remote(address, timeout=timedelta(seconds=60))
    with pytest.raises(ValueError, match="proves nothing"), remote.connect() as line:
        Conversation(line).bind(f"uid=alice,{PEOPLE}", b"")


@pytest.mark.parametrize(
    "user",
    [
        "*",
        "al*",
        "alice)(uid=*",
        "*)(|(uid=*",
        "x)(userPassword=*))(|(uid=alice",
        "alice,ou=people",
        f"alice,{PEOPLE}+uid=x",
        "alice\\2a",
        "\\61lice",
        "(uid=alice)",
        "{user}",
    ],
)
def test_name_cannot_change_what_is_asked(plugin: Ldap, user: str) -> None:
    assert log_in(plugin, user) is None
    assert log_in(plugin) == "alice"


def test_user_may_be_found_by_any_attribute_and_is_called_by_another(directory: Directory) -> None:
    plugin = directory.searching(query="(|(uid={user})(mail={user}))", identity="MAIL")
    assert log_in(plugin, "ALICE") == "5@example.org"
    assert log_in(directory.searching(identity="title")) == "alice"  # it has none


@pytest.mark.parametrize(
    "user", ["ALICE", "Alice", " alice", "alice  ", "\uff21\uff2c\uff29\uff23\uff25"]
)
def test_user_has_one_name_in_every_spelling_that_the_directory_takes(
    plugin: Ldap, directory: Directory, user: str
) -> None:
    assert log_in(plugin, user) == "alice"
    assert log_in(plugin, user, "wrong") is None
    assert log_in(directory.searching(identity="title"), user) == "alice"  # it has none


@pytest.mark.parametrize(("known", "unknown"), [("alice", "nobody"), ("ALICE", "NOBODY")])
def test_unknown_user_costs_as_many_operations_as_a_known_one(
    plugin: Ldap, known: str, unknown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for name in ("bind", "search"):
        real = getattr(Conversation, name)

        def noted(*arguments: object, real: Callable[..., object] = real) -> object:
            done.append(real.__name__)
            return real(*arguments)

        monkeypatch.setattr(Conversation, name, noted)
    assert log_in(plugin, known, "wrong") is None
    expected = done.copy()
    done.clear()
    assert log_in(plugin, unknown, "wrong") is None
    assert done == expected


def test_search_that_finds_several_lets_nobody_in(
    directory: Directory, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = directory.searching(query="(employeeNumber={user})")
    assert log_in(plugin, "7") is None
    assert "several entries" in caplog.text


def test_nobody_may_act_as_somebody_else(plugin: Ldap) -> None:
    assert plugin.authenticate(Credentials("PLAIN", "alice", "secret", "alice")) == "alice"
    assert plugin.authenticate(Credentials("PLAIN", "alice", "secret", "bob")) is None


def test_tls_wants_a_certificate_that_the_authorities_vouch_for(
    directory: Directory, tls_files: TlsFiles
) -> None:
    whole = f"ldaps://localhost:{directory.tls_port}"
    later = f"ldap://localhost:{directory.port}"
    for url, starttls in ((whole, False), (later, True)):
        plugin = Ldap(url=url, dn=DN, ca=tls_files.authority, starttls=starttls)
        assert log_in(plugin) == "alice"
        assert log_in(plugin, "alice", "wrong") is None
        with pytest.raises(RemoteError, match="CERTIFICATE_VERIFY_FAILED"):
            log_in(Ldap(url=url, dn=DN, starttls=starttls))


def test_reader_that_may_not_read_is_a_failure_and_told(
    directory: Directory, tmp_path: Path
) -> None:
    (tmp_path / "wrong").write_text("wrong")
    plugin = directory.searching(password=tmp_path / "wrong")
    for _ in range(7):  # it answers, so it is asked again
        with pytest.raises(RemoteError, match=r"answers the bind as cn=reader.* code 49"):
            log_in(plugin)


def test_base_that_is_not_there_is_a_failure(directory: Directory) -> None:
    plugin = directory.searching(base="ou=nowhere,dc=example,dc=org")
    with pytest.raises(RemoteError, match="answers the search with result code 32"):
        log_in(plugin)


def test_many_at_once_are_told_apart(directory: Directory) -> None:
    plugin = directory.searching()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda user: log_in(plugin, user), ["alice", "empty"] * 20))
    assert found == ["alice", None] * 20


# Names


@settings(max_examples=examples(25))
@given(st.text(min_size=1).filter(lambda text: "\0" not in text))
def test_any_name_is_one_value_of_a_dn(text: str) -> None:
    value = escaped(text)
    check_dn("dn", f"uid={value},{PEOPLE}")
    assert not set(value) & set('*()=,+"<>;#\0 ')
    assert encoded_filter(f"(uid={value})") == encode(
        0xA3, encode(4, b"uid"), encode(4, text.encode())
    )


# Others


def answer(operation: int, code: int, number: int = 1) -> bytes:
    """Return an answer in BER: a message with a number, an operation, a code and empty texts."""
    result = bytes([operation, 7, 0x0A, 1, code, 4, 0, 4, 0])
    return bytes([0x30, 3 + len(result), 2, 1, number, *result])


BIND, EXTENDED = 0x61, 0x78


@pytest.mark.parametrize("code", [19, 32, 34, 48, 49, 50, 53])
def test_refusals_have_several_codes(code: int) -> None:
    with serving(saying(answer(BIND, code))) as address:
        assert log_in(Ldap(url=f"ldap://{address}", dn=DN)) is None


@given(st.integers(0, 2**31 - 1), st.integers(0, 70_000))
def test_what_is_encoded_is_read_again(value: int, size: int) -> None:
    octets = bytes(size)
    elements = Elements(encode_number(value) + encode(4, octets[:9], octets[9:]))
    assert (number(elements.take(2)), elements.take(4), bool(elements)) == (value, octets, False)


def test_directory_may_send_more_than_is_asked_for() -> None:
    """References, unknown parts, lengths with leading zeros: RFC 4511 sections 4 and 4.5.3."""
    wide = answer(BIND, 0, number=2)
    wide = b"\x30\x84\0\0\0" + wide[1:]
    entry = encode(0x64, encode(4, PEOPLE.encode()), encode(0x30), encode(4, b"later"))
    said = [encode(0x73, encode(4, b"ldap://a.example")), encode(0x79), entry, b"\x65\3\x0a\1\0"]
    messages = [encode(0x30, encode_number(1), each, encode(0xA0)) for each in said]

    def talk(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(b"".join(messages))
        sock.recv(65536)
        sock.sendall(wide)

    with serving(talk) as address:
        assert log_in(Ldap(url=f"ldap://{address}", base=PEOPLE)) == "alice"


def truncated(sock: socket.socket) -> None:
    sock.recv(65536)
    sock.sendall(answer(BIND, 0)[:-3])


def stripped(sock: socket.socket) -> None:
    """Agree to StartTLS, and send more before TLS begins."""
    sock.recv(65536)
    sock.sendall(answer(EXTENDED, 0) + answer(BIND, 0))
    sock.recv(65536)


FAULTS: Final = {
    "busy": saying(answer(BIND, 51)),
    "referral": saying(answer(BIND, 10)),
    "answer to another": saying(answer(BIND, 0, number=9)),
    "half an answer": truncated,
    "endless message": saying(b"\x30\x84\x7f\xff\xff\xff" + b"x" * 2_000_000),
    "no operation": saying(b"\x30\x03\x02\x01\x01"),
    "no message": saying(b"\x31\x03\x02\x01\x01"),
    "indefinite length": saying(b"\x30\x80" + answer(BIND, 0)[2:] + b"\0\0"),
    "length of five octets": saying(b"\x30\x85\0\0\0\0\x0c" + answer(BIND, 0)[2:]),
    "element longer than its message": saying(answer(BIND, 0).replace(b"\x61\x07", b"\x61\x08")),
    "number of no octets": saying(b"\x30\x0b\2\0\x61\7\x0a\1\0\4\0\4\0"),
    "code of five octets": saying(b"\x30\x10\2\1\1\x61\x0b\x0a\5\0\0\0\0\0\4\0\4\0"),
    "answer to another operation": saying(answer(EXTENDED, 0)),
    "end of the connection": saying(answer(EXTENDED, 52, number=0)),
    "octets": saying(bytes(range(256))),
    **{name: talk for name, talk in FAILURES.items() if name != "slow"},
}


@pytest.mark.parametrize("talk", FAULTS.values(), ids=FAULTS.keys())
def test_all_other_answers_are_failures(talk: Talk) -> None:
    with serving(talk) as address:
        plugin = Ldap(url=f"ldap://{address}", dn=DN)
        with pytest.raises(RemoteError):
            log_in(plugin)
        dialogue = Dialogue(Ldap(url=f"ldap://{address}", dn=DN), tls=True)
        dialogue.send("EHLO client.example")
        secret = b64encode(b"\0alice\0hunter2").decode()
        assert dialogue.send(f"AUTH PLAIN {secret}").startswith("454 4.7.0 ")


@pytest.mark.parametrize(
    "talk",
    [saying(answer(EXTENDED, 2)), stripped, saying(answer(EXTENDED, 0))],
    ids=["refused", "more", "no TLS"],
)
def test_no_password_is_sent_without_the_tls_that_was_asked_for(
    talk: Talk, tls_files: TlsFiles
) -> None:
    heard: list[bytes] = []

    def overhear(sock: socket.socket) -> None:
        talk(sock)
        while data := sock.recv(65536):
            heard.append(data)

    with serving(overhear) as address:
        plugin = Ldap(
            url=f"ldap://{address}",
            dn=DN,
            starttls=True,
            ca=tls_files.authority,
            patience=timedelta(milliseconds=300),
        )
        with pytest.raises(RemoteError):
            log_in(plugin, "alice", "hunter2")
    assert b"hunter2" not in b"".join(heard)


@pytest.mark.parametrize("talk", [listen, drip], ids=["silence", "drip"])
def test_slow_directory_is_waited_for_no_longer_than_patience(talk: Talk) -> None:
    with serving(talk) as address:
        patience = timedelta(milliseconds=100)
        plugin = Ldap(url=f"ldap://{address}", dn=DN, patience=patience)
        with pytest.raises(RemoteError, match="too slow"):
            log_in(plugin)


def test_directory_that_is_away_is_soon_left_alone() -> None:
    plugin = Ldap(url=f"ldap://{nobody_there()}", dn=DN)
    for _ in range(5):
        with pytest.raises(RemoteError, match="Connection refused"):
            log_in(plugin)
    with pytest.raises(RemoteError, match="is not asked"):
        log_in(plugin)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({}, "dn: expected either dn or base"),
        ({"dn": DN, "base": PEOPLE}, "dn: expected either dn or base"),
        ({"dn": PEOPLE}, r"dn: expected \{user\}"),
        ({"dn": "{user}"}, "dn: expected a distinguished name"),
        ({"base": "people"}, "base: expected a distinguished name"),
        ({"base": PEOPLE, "filter": "(uid=x)"}, r"filter: expected \{user\}"),
        ({"base": PEOPLE, "filter": "(uid={user}"}, "filter: expected a search filter"),
        ({"base": PEOPLE, "filter": "uid={user}"}, "filter: .* in parentheses"),
        ({"base": PEOPLE, "filter": "(a={user})(b=c)"}, "filter: .* one filter"),
        ({"base": PEOPLE, "filter": "(a={user}))"}, "filter: .* unexpected parenthesis"),
        ({"base": PEOPLE, "filter": "(!(a={user})(b=c))"}, "filter: .* unexpected parenthesis"),
        ({"base": PEOPLE, "filter": "({user})"}, "filter: .* expected attribute=value"),
        ({"base": PEOPLE, "filter": "(=*{user})"}, "filter: .* expected attribute=value"),
        ({"base": PEOPLE, "filter": "(:={user})"}, "filter: .* a matching rule"),
        ({"base": PEOPLE, "filter": "(&(a={user})(b=**))"}, "filter: .* beside the asterisks"),
        ({"base": PEOPLE, "filter": "(a={user}\\x)"}, "filter: .* two hexadecimal digits"),
        ({"dn": DN, "identity": "mail"}, "identity: expected base"),
        ({"base": PEOPLE, "bind_dn": "cn=x"}, "bind_dn: expected bind_password_file"),
        ({"dn": DN, "url": "ldap://192.0.2.1"}, "url: expected ldaps, or starttls"),
        ({"dn": DN, "url": "http://a.example"}, 'url: expected "ldaps://host"'),
        ({"dn": DN, "url": "ldap://a.example:x"}, 'url: expected "ldaps://host"'),
        ({"dn": DN, "url": "ldaps://a.example/dc=x"}, 'url: expected "ldaps://host"'),
        (
            {"dn": DN, "url": "ldaps://a.example", "starttls": True},
            "starttls: expected a url with ldap:",
        ),
        ({"dn": DN, "ca": "nowhere"}, "ca: .*nowhere: No such file"),
        ({"dn": DN, "patience": "0s"}, "patience: expected more"),
        (
            {"base": PEOPLE, "bind_dn": "cn=x", "bind_password_file": "empty"},
            "bind_password_file: .* is empty",
        ),
    ],
)
def test_bad_option_is_named(table: dict[str, object], problem: str, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    table = {"url": "ldap://127.0.0.1", **table}
    with pytest.raises(ConfigError, match=rf"plugins\[0\]\.{problem}"):
        build(Ldap, table, file="c", key="plugins[0]", base=tmp_path)


def test_check_looks_at_who_can_read_the_password(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "password"
    path.write_text("reads")
    path.chmod(0o644)
    plugin = Ldap(
        url="ldaps://a.example", base=PEOPLE, bind_dn="cn=reader", bind_password_file=path
    )
    plugin.on_start(ServerInfo("mx.example.org", tmp_path, role="check", slot=0))
    assert caplog.messages == [f"bind_password_file: {path} can be read by everybody (chmod o-r)"]
