"""A byte order mark that an editor added to a file changes nothing."""

from __future__ import annotations

import dataclasses
import importlib
import io
import pkgutil
import ssl
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import minismtp_plugins
import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from minismtp_plugins._directory import lines_of, read_aliases
from minismtp_plugins._login import authorities
from minismtp_plugins._signing import load_key, signature_of
from minismtp_plugins._srs import read_secrets
from minismtp_plugins.ldap import Ldap
from minismtp_plugins.mailboxes import Mailboxes
from minismtp_plugins.password_file import PasswordFile
from minismtp_plugins.webhook import Webhook

from minismtp import Address, Credentials, Envelope, Local, Recipient, read_file
from minismtp.cli.main import main
from minismtp.cli.replay import changed
from minismtp.cli.stored_mail import envelope_of
from minismtp.config import AcmeConfig, Config
from minismtp.config.tables import SniCertificate, TlsConfig
from minismtp.delivery.attempt import DeliveryContext
from minismtp.delivery.mta_sts import StsPolicy
from minismtp.delivery.tls_security import Contexts
from minismtp.hooks.loader import PluginSet
from minismtp.runtime.log import Log
from minismtp.services.acme_client import binding_key, trusted
from minismtp.services.tls import not_after, server_context
from minismtp.testing import Dialogue
from minismtp.values.passwords import hash_password

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

MARK: Final = b"\xef\xbb\xbf"
AUTHORITY: Final = trustme.CA()
ISSUED: Final = AUTHORITY.issue_cert("mx.example.org")
CERTIFICATE: Final = b"".join(pem.bytes() for pem in ISSUED.cert_chain_pems)
KEY: Final = ISSUED.private_key_pem.bytes()
SIGNING: Final = ed25519.Ed25519PrivateKey.generate().private_bytes(
    Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
)
TRUSTED: Final = AUTHORITY.cert_pem.bytes()
LISTENER: Final = '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\ntls = "none"\n'
PASSWORD: Final = hash_password("secret", "scrypt")
POLICY: Final = "version: STSv1\nmode: enforce\nmx: mx.example.org\nmax_age: 86400\n"
ENVELOPE: Final = Envelope(
    id="a.1", reverse_path=None, listener="smtp", peer="192.0.2.1", helo="c", login=None, arrived=0
)


def trust(context: ssl.SSLContext | None) -> object:
    assert context is not None
    return context.get_ca_certs()


def directory_ca(path: Path) -> object:
    acme = AcmeConfig(agree_terms=True, directory="https://127.0.0.1/", directory_ca=path)
    return trust(ssl.create_default_context(cafile=str(trusted(acme))))


def pair(path: Path, **change: object) -> object:
    """Read a certificate or a key; the other one is in the same directory."""
    (path.parent / "certificate").write_bytes(CERTIFICATE)
    (path.parent / "key").write_bytes(KEY)
    files = {"certificate": path.parent / "certificate", "key": path.parent / "key"}
    server_context(TlsConfig(**(files | change)))  # type: ignore[arg-type]
    return True


def client_ca(path: Path) -> object:
    pair(path)
    certificate, key = path.parent / "certificate", path.parent / "key"
    tls = TlsConfig(certificate=certificate, key=key, client_ca=path)
    return trust(server_context(tls, ask_client=True))


def by_name(path: Path, option: str) -> object:
    pair(path)
    files = {"certificate": path.parent / "certificate", "key": path.parent / "key", option: path}
    return pair(path, sni=[SniCertificate(name="mx.example.org", **files)])


def smarthost_password(path: Path) -> object:
    text = '[outbound]\nsmarthost = "192.0.2.1:587"\nusername = "u"\ntls = "verified"\n'
    text += f'password_file = "{path}"\n'
    config = Config.parse(text + LISTENER, path)
    context = DeliveryContext.of(config, PluginSet.load(config), Log(level="error"))
    return context.destination("example.net").password


def route_password(path: Path) -> object:
    text = (
        '[[outbound.routes]]\ndomain = "example.net"\nhost = "192.0.2.1:587"\nusername = "u"\n'
        f'tls = "verified"\npassword_file = "{path}"\n'
    )
    config = Config.parse(text + LISTENER, path)
    context = DeliveryContext.of(config, PluginSet.load(config), Log(level="error"))
    return context.destination("example.net").password


def routed(options: dict[str, Path], local: str) -> object:
    boxes = Mailboxes(domains=["example.org"], **options)  # type: ignore[arg-type]
    recipient = Recipient(Address(local, "example.org"))
    route = boxes.route(Dialogue().session, ENVELOPE, recipient)
    assert isinstance(route, Local)
    return route.mailboxes


def logged_in(path: Path) -> object:
    credentials = Credentials("PLAIN", username="anna", password="secret")  # noqa: S106
    return PasswordFile(path=path).authenticate(credentials)


def webhook(path: Path, option: str) -> object:
    hook = Webhook(url="http://127.0.0.1/", **{option: path})  # type: ignore[arg-type]
    return getattr(hook, "_" + option.removesuffix("_file"))


def ldap_password(path: Path) -> object:
    plugin = Ldap(url="ldap://127.0.0.1", base="dc=a", bind_dn="cn=b,dc=a", bind_password_file=path)
    assert plugin._bind_password is not None  # noqa: SLF001 - nothing else shows what was read
    return plugin._bind_password.get()  # noqa: SLF001


def changed_password(path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    said = io.TextIOWrapper(io.BytesIO(MARK + b"new\n"))
    monkeypatch.setattr("sys.stdin", said)
    assert main(["passwd", "--no-scram", str(path), "anna"]) == 0
    return path.read_bytes()


# Each option that names a file: its content, and how it is read.
READ: Final[dict[str, tuple[bytes, Callable[[Path], object]]]] = {
    "tls.certificate": (CERTIFICATE, lambda path: (pair(path, certificate=path), not_after(path))),
    "tls.key": (KEY, lambda path: pair(path, key=path)),
    "tls.client_ca": (TRUSTED, client_ca),
    "tls.sni.certificate": (CERTIFICATE, lambda path: by_name(path, "certificate")),
    "tls.sni.key": (KEY, lambda path: by_name(path, "key")),
    "tls.acme.directory_ca": (TRUSTED, directory_ca),
    "tls.acme.eab_key_file": (b"a-key_of-ours\n", binding_key),
    "outbound.server_ca": (TRUSTED, lambda path: trust(Contexts(path).verified)),
    "outbound.password_file": (b"secret\n", smarthost_password),
    "outbound.routes.password_file": (b"secret\r\n", route_password),
    "arc.key": (SIGNING, lambda path: signature_of(load_key("key", path), b"x")),
    "dkim_sign.keys": (SIGNING, lambda path: signature_of(load_key("keys", path), b"x")),
    "forward.ca": (TRUSTED, lambda path: trust(authorities(path))),
    "http_auth.ca": (TRUSTED, lambda path: trust(authorities(path))),
    "ldap.ca": (TRUSTED, lambda path: trust(authorities(path))),
    "ldap.bind_password_file": (b"secret\n", ldap_password),
    "mailboxes.users_file": (b"anna\nbob\n", lambda path: routed({"users_file": path}, "anna")),
    "mailboxes.aliases_file": (
        b"info: anna\nmore: bob\n",
        lambda path: (read_aliases(path, ["example.org"]), lines_of(path)),
    ),
    "mailboxes.srs_secret_file": (b"a-long-secret-of-us\nold-secret-of-us\n", read_secrets),
    "password_file.path": (f"anna:{PASSWORD}\n".encode(), logged_in),
    "webhook.ca": (TRUSTED, lambda path: trust(authorities(path))),
    "webhook.token_file": (b"token\n", lambda path: webhook(path, "token_file")),
    "webhook.secret_file": (b"secret\n", lambda path: webhook(path, "secret_file")),
    "--config": (LISTENER.encode(), lambda path: Config.load(path).listeners),
    "replay FILE": (
        b'[[plugins]]\nuse = "maildir"\npath = "mail"\n',
        lambda path: changed(Config.parse(LISTENER, path), path).plugins,
    ),
    "replay MAILDIR": (
        b"Return-Path: <a@example.net>\nDelivered-To: b@example.org\nSubject: x\n\ntext\n",
        lambda path: envelope_of(io.BytesIO(path.read_bytes()), "mx.example.org"),
    ),
    "mta-sts.txt": (POLICY.encode(), lambda path: StsPolicy.parse(path.read_bytes().decode())),
}
# Proved elsewhere: `test_login_that_is_refused_is_a_failure_and_tells_no_secret`.
ELSEWHERE: Final = {"forward.password_file"}
DIRECTORIES: Final = {
    "tls.acme.challenges",
    *("base", "plugin_path", "state_directory"),
    *("maildir.path", "pipe.directory", "quarantine.path"),
    "sql.path",  # a database
}


@pytest.mark.parametrize(("octets", "read"), READ.values(), ids=READ.keys())
def test_mark_before_a_file_changes_nothing(
    octets: bytes, read: Callable[[Path], object], tmp_path: Path
) -> None:
    plain, marked = tmp_path / "plain", tmp_path / "marked"
    plain.write_bytes(octets)
    marked.write_bytes(MARK + octets)
    assert read(marked) == read(plain)


def test_every_option_that_names_a_file_is_asked() -> None:
    options = set(paths_of(Config, "", frozenset()))
    for module in pkgutil.iter_modules(minismtp_plugins.__path__):
        if module.name.startswith("_"):
            continue
        found = importlib.import_module(f"minismtp_plugins.{module.name}")
        for name, each in vars(found).items():
            ours = getattr(each, "__module__", "") == found.__name__ and name[:1] != "_"
            if ours and isinstance(each, type) and dataclasses.is_dataclass(each):
                options |= set(paths_of(each, module.name, frozenset()))
    assert options - DIRECTORIES - ELSEWHERE == {name for name in READ if "." in name} - {
        "mta-sts.txt"
    }


def paths_of(kind: object, name: str, above: AbstractSet[object]) -> Iterator[str]:
    """Yield the options that are paths, by their keys, except unix sockets."""
    if kind is Path:
        yield name
    elif not dataclasses.is_dataclass(kind):
        for argument in typing.get_args(kind):
            yield from paths_of(argument, name, above)
    elif kind not in above and getattr(kind, "__name__", "") != "SocketAddress":
        hints = typing.get_type_hints(kind)
        for each in dataclasses.fields(kind):
            key = f"{name}.{each.name}" if name else each.name
            yield from paths_of(hints[each.name], key, above | {kind})


def test_marks_where_files_were_put_together_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "chain.pem"
    path.write_bytes(MARK + CERTIFICATE + MARK + TRUSTED + MARK + MARK + b"# end\n")
    assert read_file(path) == CERTIFICATE + TRUSTED + b"# end\n"
    assert len(authorities(path).get_ca_certs()) == 1  # the other one is no authority


def test_mark_inside_a_line_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"a" + MARK + b"b\n")
    assert read_file(path) == b"a" + MARK + b"b\n"


def test_passwd_knows_the_first_user_behind_a_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "passwords"
    path.write_bytes(MARK + b"anna:old\nbob:kept\n")
    first, second = changed_password(path, monkeypatch).splitlines()
    assert first.startswith(b"anna:")
    assert second == b"bob:kept"
    credentials = Credentials("PLAIN", username="anna", password="new")  # noqa: S106
    path.write_bytes(first + b"\n")
    assert PasswordFile(path=path).authenticate(credentials) == "anna"


def test_file_of_nothing_but_a_mark_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_bytes(MARK)
    assert read_file(path) == b""
