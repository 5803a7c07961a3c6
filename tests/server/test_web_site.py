"""The pages for our domains, as other servers and mail programs read them."""

from __future__ import annotations

import contextlib
import http.client
import plistlib
import re
import socket
import ssl
import subprocess
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from ports import free_port
from snippets import CLEAR, MAILBOXES, listener

from minismtp.config import Config, Listener
from minismtp.config.mistakes import ConfigError
from minismtp.config.types import SocketAddress
from minismtp.delivery.mta_sts import StsPolicy
from minismtp.inspection.dns_records import dns_zone, mta_sts_id, wanted_records
from minismtp.server.autodiscover_request import requested_address
from minismtp.server.web_pages import Page, Request, Site
from minismtp.server.web_site import AUTODISCOVER, site_of
from minismtp.services.acme_challenges import Challenges

if TYPE_CHECKING:
    from conftest import Configure, Running, Start, TlsFiles

PAGE: Final = (Path(__file__).parents[2] / "docs" / "web.md").read_text()
DATA: Final = Path(__file__).parents[1] / "data" / "web"
WEB: Final = listener("web", 'kind = "web"', CLEAR)
PROXIED: Final = 'proxy_protocol = ["127.0.0.0/8"]'
LISTENERS: Final = (
    listener("smtp", CLEAR)
    + listener("users", 'kind = "submission"', address="*:587")
    + listener("users-tls", 'kind = "submission"', 'tls = "implicit"', address="*:465")
    + listener("local", 'kind = "submission"', CLEAR, address="127.0.0.1:1587")
    + WEB
)
RELAY: Final = '[[plugins]]\nuse = "relay"\ndomains = ["backup.example"]\n'
CLIENT_CONFIG: Final = "/.well-known/autoconfig/mail/config-v1.1.xml"
XMLNS: Final = "http://schemas.microsoft.com/exchange/autodiscover/outlook/requestschema/2006"
QUESTION: Final = f"""<?xml version="1.0" encoding="utf-8"?>
<Autodiscover xmlns="{XMLNS}">
  <Request>
    <EMailAddress>%s</EMailAddress>
    <AcceptableResponseSchema>\
http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a\
</AcceptableResponseSchema>
  </Request>
</Autodiscover>
"""


@pytest.fixture
def config(tmp_path: Path, tls_files: TlsFiles) -> Config:
    """The configuration of a server for example.org, which is also a backup for another one."""
    text = 'hostname = "mx.example.org"\n' + LISTENERS + tls_files.table + MAILBOXES + RELAY
    return Config.parse(text, tmp_path / "minismtp.toml")


def pages_of(config: Config, domains: dict[str, bool]) -> Site:
    return site_of(config, Challenges(config.state_directory), domains)


@pytest.fixture
def site(config: Config) -> Site:
    """Its pages."""
    return pages_of(config, dns_zone(config).receiving)


def get(site: Site, url: str, body: str = "") -> Page | None:
    host, _, rest = url.partition("/")
    path, _, query = rest.partition("?")
    return site.page(Request(host, f"/{path}", query, body.encode()))


def body_of(site: Site, url: str, body: str = "") -> bytes:
    page = get(site, url, body)
    assert page is not None
    return page.body


# MTA-STS


def test_policy_is_served_for_each_domain_whose_mail_comes_here(site: Site) -> None:
    """RFC 8461 section 3.2."""
    for domain in ("example.org", "backup.example"):
        page = get(site, f"mta-sts.{domain}/.well-known/mta-sts.txt")
        assert page is not None
        assert page.kind == "text/plain; charset=utf-8"
        policy = StsPolicy.parse(page.body.decode())
        assert (policy.mode, policy.mx) == ("testing", ("mx.example.org",))
    for host in ("mta-sts.example.net", "example.org", "mta-sts.a.example.org", ""):
        assert get(site, f"{host}/.well-known/mta-sts.txt") is None


def test_policy_follows_the_configuration_and_so_does_its_id(config: Config) -> None:
    before = mta_sts_id(config, "example.org")
    table = replace(
        config.mta_sts, mode="enforce", max_age=timedelta(days=90), mx=["*.Example.net"]
    )
    changed = replace(config, mta_sts=table)
    text = body_of(
        pages_of(changed, {"example.org": True}), "mta-sts.example.org/.well-known/mta-sts.txt"
    )
    assert text == (b"version: STSv1\r\nmode: enforce\r\nmx: *.example.net\r\nmax_age: 7776000\r\n")
    assert mta_sts_id(changed, "example.org") != before


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ('[mta_sts]\nmax_age = "0s"', "max_age, line 7: expected 1s to 31557600s"),
        ('[mta_sts]\nmax_age = "366d"', "max_age, line 7: expected 1s to 31557600s"),
        ('[mta_sts]\nmode = "on"', "mode, line 7: "),
        ('[mta_sts]\nmx = ["a b"]', "mx[0], line 7: expected a domain"),
        ('[autoconfig]\nimap_host = "192.0.2.1"', "imap_host, line 7: expected a domain"),
        ("[autoconfig]\nimap_port = 0", "imap_port, line 7: "),
        ('[autoconfig]\nlogin = "name"', "login, line 7: "),
    ],
)
def test_mistake_in_a_table_for_the_web_names_the_key(
    tmp_path: Path, table: str, problem: str
) -> None:
    with pytest.raises(ConfigError) as found:
        Config.parse(f"{listener('smtp', CLEAR)}{table}\n", tmp_path / "minismtp.toml")
    assert problem in str(found.value)


# Thunderbird


def elements(document: bytes) -> list[ET.Element]:
    return [*ET.fromstring(document).iter()]  # noqa: S314 - our own


def servers(document: bytes) -> list[tuple[str, ...]]:
    return [
        (server.tag, server.get("type") or "", *(part.text or "" for part in server))
        for server in elements(document)
        if server.tag in {"incomingServer", "outgoingServer"}
    ]


@pytest.mark.parametrize(
    "url",
    [
        "autoconfig.example.org/mail/config-v1.1.xml",
        "autoconfig.example.org/mail/config-v1.1.xml?emailaddress=nobody%40example.org",
        f"example.org{CLIENT_CONFIG}",
        f"autoconfig.example.org{CLIENT_CONFIG}",
    ],
)
def test_thunderbird_finds_the_submission_listeners_and_the_imap_server(
    site: Site, url: str
) -> None:
    login = ("%EMAILADDRESS%", "password-cleartext")
    host = "mx.example.org"
    assert servers(body_of(site, url)) == [
        ("incomingServer", "imap", host, "993", "SSL", *login),
        ("outgoingServer", "smtp", host, "465", "SSL", *login),
        ("outgoingServer", "smtp", host, "587", "STARTTLS", *login),
    ]


def test_configuration_names_the_imap_server_and_the_form_of_logins(config: Config) -> None:
    table = replace(
        config.autoconfig,
        imap_host="imap.example.net",
        imap_port=143,
        imap_tls="starttls",
        smtp_host="smtp.example.net",
        login="local",
    )
    site = pages_of(replace(config, autoconfig=table), {"example.org": True})
    found = servers(body_of(site, f"example.org{CLIENT_CONFIG}"))
    assert found[0][2:6] == ("imap.example.net", "143", "STARTTLS", "%EMAILLOCALPART%")
    assert {each[2] for each in found[1:]} == {"smtp.example.net"}
    answer = body_of(site, f"example.org{AUTODISCOVER[0]}", QUESTION % "al@example.org")
    assert b"<LoginName>al</LoginName>" in answer


def test_dns_leads_to_the_same_servers_as_the_pages(config: Config) -> None:
    table = replace(config.autoconfig, imap_host="imap.example.net", smtp_host="s.example.net")
    records = wanted_records(replace(config, autoconfig=table), addresses=[])
    services = {each.name: each.value for each in records if each.kind == "SRV"}
    assert services["_imaps._tcp.example.org"] == "0 1 993 imap.example.net."
    assert services["_submissions._tcp.example.org"] == "0 1 465 s.example.net."


@pytest.mark.parametrize(
    ("address", "tls", "names"),
    [
        ("*:443", "implicit", {"mta-sts", "autoconfig", "autodiscover"}),
        ("127.0.0.1:8080", "none", {"mta-sts", "autoconfig", "autodiscover"}),  # behind another
        ("*:80", "none", {"autoconfig"}),
    ],
)
def test_dns_has_the_names_that_can_be_asked(
    config: Config, address: str, tls: Literal["implicit", "none"], names: set[str]
) -> None:
    """Other servers ask for a policy, and Outlook for settings, by HTTPS alone."""
    web = Listener(name="web", kind="web", address=SocketAddress.parse(address), tls=tls)
    mail = [each for each in config.listeners if each.kind != "web"]
    records = wanted_records(replace(config, listeners=[*mail, web]), addresses=[])
    found = {each.name for each in records if each.kind == "CNAME"}
    assert found == {f"{name}.example.org" for name in names}


def valid(xmllint: str, schema: str, document: bytes) -> str:
    """Return "" if a document follows a schema of RELAX NG, otherwise what is wrong."""
    done = subprocess.run(
        [xmllint, "--noout", "--nonet", "--relaxng", DATA / schema, "-"],
        input=document,
        capture_output=True,
        check=False,
    )
    return "" if done.returncode == 0 else done.stderr.decode()


def test_thunderbirds_file_follows_the_documented_form(
    site: Site, require_program: Callable[[str], str]
) -> None:
    xmllint = require_program("xmllint")
    document = body_of(site, f"example.org{CLIENT_CONFIG}")
    assert valid(xmllint, "client-config.rng", document) == ""
    for wrong in (b"STARTTLS", b"993", b"%EMAILADDRESS%", b'type="imap"'):
        assert valid(xmllint, "client-config.rng", document.replace(wrong, b"")) != ""


# Outlook


@pytest.mark.parametrize("host", ["example.org", "autodiscover.example.org", "mx.example.org"])
@pytest.mark.parametrize("path", AUTODISCOVER)
def test_outlook_gets_the_servers_and_the_login(
    site: Site, require_program: Callable[[str], str], host: str, path: str
) -> None:
    assert path in site.posts
    answer = body_of(site, f"{host}{path}", QUESTION % "al.ice@example.org")
    assert valid(require_program("xmllint"), "autodiscover.rng", answer) == ""
    found = [[part.text for part in each] for each in elements(answer) if "Pro" in each.tag]
    login, rest = "al.ice@example.org", ["off", "off", "on", "SSL", "on"]
    assert found == [
        ["IMAP", "mx.example.org", "993", login, *rest],
        ["SMTP", "mx.example.org", "465", login, *rest, "off", "off"],
    ]


def test_outlook_may_ask_by_get(site: Site) -> None:
    answer = body_of(site, f"example.org{AUTODISCOVER[0]}?emailaddress=a%2Bb@example.org")
    assert b"<LoginName>a+b@example.org</LoginName>" in answer


@pytest.mark.parametrize(
    "address",
    ["", "al@example.net", "al@backup.example", "no address", "a@b@example.org", "a\n@example.org"],
)
def test_outlook_gets_an_error_for_an_address_that_is_not_ours(
    site: Site, require_program: Callable[[str], str], address: str
) -> None:
    answer = body_of(site, f"example.org{AUTODISCOVER[0]}", QUESTION % address)
    assert b"<ErrorCode>600</ErrorCode>" in answer
    assert valid(require_program("xmllint"), "autodiscover.rng", answer) == ""


@pytest.mark.parametrize("address", ['"<&>"@example.org', '\'"x"@example.org', "ä<b>@example.org"])
def test_address_cannot_add_elements_to_an_answer(site: Site, address: str) -> None:
    quoted = address.replace("&", "&amp;").replace("<", "&lt;")
    answer = body_of(site, f"example.org{AUTODISCOVER[0]}", QUESTION % quoted)
    names = [each.text for each in elements(answer) if "LoginName" in each.tag]
    assert names in ([], [address, address])
    assert b"<b>" not in answer


LAUGHS: Final = '<!DOCTYPE r [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'
FILE: Final = '<!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/hostname">]>'


@pytest.mark.parametrize(
    ("document", "address"),
    [
        (QUESTION % " a@example.org ", "a@example.org"),
        (QUESTION % "a&#64;example.org", "a@example.org"),
        (f"<r>{QUESTION.partition('?>')[2] % 'a@b'}</r>", "a@b"),
        ((QUESTION % "a@b").replace("utf-8", "utf-16"), ""),
        (f"{LAUGHS}<r><EMailAddress>&b;</EMailAddress></r>", ""),
        (f"{FILE}<r><EMailAddress>&x;</EMailAddress></r>", ""),
        ("<!DOCTYPE r><r><EMailAddress>a@b</EMailAddress></r>", ""),
        ("<r><EMailAddress>&x;</EMailAddress></r>", ""),
        ("<r><EMailAddress>a@b", ""),
        (f"<r><EMailAddress>{'a' * 321}</EMailAddress></r>", ""),
        (f"{'<r>' * 9}<EMailAddress>a@b</EMailAddress>{'</r>' * 9}", ""),
        ('<?xml version="1.0" encoding="nonsense"?><EMailAddress>a@b</EMailAddress>', ""),
        ("<r><Other>a@b</Other></r>", ""),
        ("", ""),
        ("\0", ""),
    ],
)
def test_request_of_outlook_is_read_without_entities(document: str, address: str) -> None:
    assert requested_address(document.encode()) == address


def test_request_of_outlook_may_be_in_utf_16() -> None:
    document = (QUESTION % "a@example.org").replace("utf-8", "utf-16")
    assert requested_address(document.encode("utf-16")) == "a@example.org"


# Apple

#: The keys of com.apple.mail.managed that we use: their type, and the values that are allowed.
MAIL_KEYS: Final[dict[str, tuple[type, tuple[object, ...]]]] = {
    "EmailAccountDescription": (str, ()),
    "EmailAccountType": (str, ("EmailTypeIMAP", "EmailTypePOP")),
    "EmailAddress": (str, ()),
    **{
        f"{side}MailServer{key}": kind
        for side in ("Incoming", "Outgoing")
        for key, kind in {
            "Authentication": (
                str,
                (
                    *("EmailAuthNone", "EmailAuthPassword", "EmailAuthCRAMMD5"),
                    *("EmailAuthNTLM", "EmailAuthHTTPMD5"),
                ),
            ),
            "HostName": (str, ()),
            "PortNumber": (int, ()),
            "UseSSL": (bool, ()),
            "Username": (str, ()),
        }.items()
    },
    "OutgoingPasswordSameAsIncomingPassword": (bool, ()),
}
PAYLOAD_KEYS: Final[dict[str, tuple[type, tuple[object, ...]]]] = {
    "PayloadDisplayName": (str, ()),
    "PayloadIdentifier": (str, ()),
    "PayloadType": (str, ("Configuration", "com.apple.mail.managed")),
    "PayloadUUID": (str, ()),
    "PayloadVersion": (int, (1,)),
}
#: Without these a device refuses the payload.
REQUIRED: Final = {
    *("EmailAccountType", "IncomingMailServerAuthentication", "IncomingMailServerHostName"),
    *("OutgoingMailServerAuthentication", "OutgoingMailServerHostName"),
}


def check_payload(
    payload: dict[str, Any], keys: dict[str, tuple[type, tuple[object, ...]]]
) -> None:
    for key, value in payload.items():
        kind, allowed = keys[key]
        assert type(value) is kind, key
        assert not allowed or value in allowed, key
    assert PAYLOAD_KEYS.keys() <= payload.keys()
    assert str(uuid.UUID(payload["PayloadUUID"])).upper() == payload["PayloadUUID"]


@pytest.mark.parametrize("host", ["example.org", "autoconfig.example.org", "mx.example.org"])
def test_apple_gets_a_profile_with_the_documented_keys(site: Site, host: str) -> None:
    page = get(site, f"{host}/mobileconfig?emailaddress=al+x@example.org")
    assert page is not None
    assert page.kind == "application/x-apple-aspen-config"
    assert page.filename == "example.org.mobileconfig"
    profile = plistlib.loads(page.body)
    [account] = profile.pop("PayloadContent")
    check_payload(profile, {**PAYLOAD_KEYS, "PayloadOrganization": (str, ())})
    check_payload(account, {**PAYLOAD_KEYS, **MAIL_KEYS})
    assert account.keys() >= REQUIRED
    assert profile["PayloadUUID"] != account["PayloadUUID"]
    used = ("IncomingMailServerPortNumber", "OutgoingMailServerPortNumber", "EmailAddress")
    assert [account[key] for key in used] == [993, 465, "al+x@example.org"]


def test_apple_gets_the_same_profile_again_and_another_one_for_another_user(site: Site) -> None:
    url = "example.org/mobileconfig?emailaddress="
    first, again, other = (body_of(site, f"{url}{user}@example.org") for user in ("a", "a", "b"))
    assert first == again
    assert plistlib.loads(first)["PayloadUUID"] != plistlib.loads(other)["PayloadUUID"]


@pytest.mark.parametrize(
    "query",
    [
        *("", "emailaddress=", "emailaddress=a@example.net", "emailaddress=a@backup.example"),
        *("emailaddress=a%00@example.org", "emailaddress=%ff@example.org", "&" * 100),
        f"emailaddress={'a' * 400}@example.org",
    ],
)
def test_apple_gets_no_profile_without_an_address_of_ours(site: Site, query: str) -> None:
    assert get(site, f"example.org/mobileconfig?{query}") is None


# Domains and users


def test_pages_tell_nothing_about_which_users_exist(site: Site) -> None:
    answers = {
        body_of(site, url.replace("USER", user), body.replace("USER", user)).replace(
            user.encode(), b"USER"
        )
        for user in ("alice", "nobody")
        for url, body in (
            (f"example.org{CLIENT_CONFIG}?emailaddress=USER@example.org", ""),
            (f"example.org{AUTODISCOVER[0]}", QUESTION % "USER@example.org"),
        )
    }
    assert len(answers) == 2


@pytest.mark.parametrize(
    "url",
    [
        *("backup.example" + CLIENT_CONFIG, "other.example" + CLIENT_CONFIG, CLIENT_CONFIG),
        *("autoconfig.example.org/", "example.org/mail/config-v1.1.xml", "example.org/"),
    ],
)
def test_other_names_and_paths_have_no_page(site: Site, url: str) -> None:
    assert get(site, url) is None


def test_server_without_submission_has_no_settings_for_mail_programs(config: Config) -> None:
    few = replace(
        config, listeners=[each for each in config.listeners if each.kind != "submission"]
    )
    site = pages_of(few, {"example.org": True})
    assert get(site, f"example.org{CLIENT_CONFIG}") is None
    assert get(site, "mta-sts.example.org/.well-known/mta-sts.txt") is not None


# A whole server, alone and behind other ones


def fetch(
    port: int, host: str, path: str, body: str = "", context: ssl.SSLContext | None = None
) -> tuple[int, bytes]:
    """Ask on a port of this machine, under a host name, and return the status and the body."""
    if context is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    else:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=context)
    with contextlib.closing(connection):
        method = "POST" if body else "GET"
        connection.request(method, path, body or None, {"Host": host, "Content-Type": "text/xml"})
        response = connection.getresponse()
        return response.status, response.read()


#: What each host serves: the host, the path, the body of a POST, and what the answer contains.
PAGES: Final = (
    ("mta-sts.example.org", "/.well-known/mta-sts.txt", "", b"mode: testing"),
    ("autoconfig.example.org", "/mail/config-v1.1.xml", "", b"<port>993</port>"),
    ("example.org", f"{CLIENT_CONFIG}?emailaddress=a@example.org", "", b"<port>993</port>"),
    ("autodiscover.example.org", AUTODISCOVER[0], QUESTION % "a@example.org", b"<Port>993</Port>"),
    ("example.org", AUTODISCOVER[1], QUESTION % "a@example.org", b"<Port>993</Port>"),
    ("autoconfig.example.org", "/mobileconfig?emailaddress=a@example.org", "", b">993<"),
)
ANSWER: Final = "token.thumbprint"
SIGN: Final = '[[plugins]]\nuse = "dkim_sign"\ndomains = ["example.org"]\nkeys = "dkim.pem"\n'


@pytest.fixture
def server(configure: Configure, start: Start, tls_files: TlsFiles) -> Running:
    """A server for example.org with listeners for HTTP and HTTPS."""
    users = f"127.0.0.1:{free_port()}"
    listeners = (
        listener("smtp", CLEAR)
        + listener("users", 'kind = "submission"', PROXIED, address=users)
        + WEB
        + listener("https", 'kind = "web"', 'tls = "implicit"')
    )
    config = configure(tls_files.table, listeners=listeners, plugins=SIGN + MAILBOXES)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    config.with_name("dkim.pem").write_bytes(pem)
    config.with_name("dkim.pem").chmod(0o600)
    server = start(config)
    Challenges(server.directory / "state").put("token", ANSWER)
    return server


def web_process(server: Running) -> int:
    """Return the id of the process of the web listeners."""
    return next(
        pid for pid in server.tree() if Path(f"/proc/{pid}/comm").read_text() == "minismtp-web\n"
    )


def remembers(pid: int, secret: bytes) -> bool:
    """Return whether these octets are in the memory that a process can write to."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in maps if " rw" in line]
    with Path(f"/proc/{pid}/mem").open("rb") as memory:
        for first, end in ranges:
            memory.seek(int(first, 16))
            if secret in memory.read(int(end, 16) - int(first, 16)):
                return True
    return False


def test_server_serves_the_pages_of_its_domains(server: Running, tls_files: TlsFiles) -> None:
    for port, context in ((server.port("web"), None), (server.port("https"), tls_files.client())):
        for host, path, body, expected in PAGES:
            status, answer = fetch(port, host, path, body, context)
            assert (status, expected in answer) == (200, True), path
        assert fetch(port, "mta-sts.example.net", PAGES[0][1], "", context)[0] == 404
    pem = (server.directory / "dkim.pem").read_bytes()
    key = load_pem_private_key(pem, None)
    assert isinstance(key, rsa.RSAPrivateKey)
    prime = key.private_numbers().p.to_bytes(128, "little")  # as OpenSSL keeps it
    workers = [pid for pid in server.tree()[1:] if pid != web_process(server)]
    assert any(remembers(pid, prime) for pid in workers)
    assert not remembers(web_process(server), prime)


def snippet(language: str, web: int) -> str:
    """Return a block of docs/web.md, which is for other ports."""
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1].replace("127.0.0.1:8080", f"127.0.0.1:{web}")


NGINX: Final = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{ return 418; }}
        {snippet}
    }}
}}
"""
CADDY: Final = """
{{
    admin off
    auto_https off
}}
{snippet}
"""


@pytest.mark.parametrize("program", ["nginx", "caddy"])
def test_pages_are_served_behind_another_web_server_as_documented(
    server: Running,
    require_program: Callable[[str], str],
    tmp_path: Path,
    program: str,
) -> None:
    command, port = [require_program(program)], free_port()
    file = tmp_path / "configuration"
    if program == "nginx":
        text = NGINX.format(
            directory=tmp_path, port=port, snippet=snippet(program, server.port("web"))
        )
        command += ["-e", "stderr", "-p", str(tmp_path), "-c", str(file)]
    else:
        names = r"(?m)^((?:[a-z-]+\.)?example\.org[^{{]*) {{".replace("{{", "{")
        text = re.sub(
            names, lambda found: on_port(found[1], port), snippet(program, server.port("web"))
        )
        text = CADDY.format(snippet=text)
        command += ["run", "--adapter", "caddyfile", "--config", str(file)]
    file.write_text(text)
    challenge = ("example.org", "/.well-known/acme-challenge/token", "", ANSWER.encode())
    with subprocess.Popen(command, env={"HOME": str(tmp_path)}) as process:
        try:
            wait_for(port, process)
            for host, path, body, expected in (*PAGES, challenge):
                status, answer = fetch(port, host, path, body)
                assert (status, expected in answer) == (200, True), (host, path)
            assert b"Not Found" not in fetch(port, "example.org", "/")[1]  # this is not for us
        finally:
            process.terminate()


def on_port(names: str, port: int) -> str:
    """Return the head of a block for Caddy that serves plain HTTP on a port."""
    return ", ".join(f"http://{name}:{port}" for name in names.split(", ")) + " {"


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a program accepts connections."""
    while True:
        assert process.poll() is None
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 60).close()
            return
        time.sleep(0.01)
