"""TLS with other servers: DANE, MTA-STS and REQUIRETLS, with a DNS that is signed and validated.

Knot DNS signs the zone `test`, and has `plain` unsigned; unbound validates. One server receives for
all domains; by the name that it is asked for it shows a good certificate or that of a rogue.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import itertools
import re
import ssl
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import dns.message
import dns.query
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_pem_x509_certificate
from ports import free_port

from minismtp.values.passwords import hash_password

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Configure, Launch, Running, Start, TlsFiles

SECURE, CLEAR, WEB = "127.0.1.1", "127.0.1.2", "127.0.1.3"
#: By the first label of its domain: what a host shows (a good certificate or not), its TLSA records
#: as usage, selector, matching and whose certificate they are of, and the domain's policy.
GOOD: Final = (
    *("enforce", "keeps", "testing-good", "both-unusable", "smart", "verified"),
    *("ta", "ta-key", "ta-name", "ta-next"),
)
TLSA: Final = {
    "ee": ["3 1 1 rogue"],
    "ee-whole": ["3 0 2 rogue"],
    "ee-data": ["3 0 0 rogue"],
    "either": ["3 1 1 other", "3 1 1 rogue"],
    "ta": ["2 0 1 authority"],
    "ta-key": ["2 1 2 authority"],
    "ta-name": ["2 0 1 authority"],
    "ta-next": ["2 0 1 authority"],
    "ta-other": ["2 0 1 authority"],
    "wrong": ["3 1 1 other"],
    "wrong-clear": ["3 1 1 rogue"],
    "refused": ["3 1 1 rogue"],
    "unusable": ["1 1 1 rogue"],
    "unusable-clear": ["1 1 1 rogue"],
    "unusable-required": ["1 1 1 rogue"],
    "both": ["3 1 1 rogue"],
    "both-unusable": ["0 0 1 rogue"],
    "second": ["3 1 1 other"],
}
POLICIES: Final = {
    "enforce": "version: STSv1\nmode: enforce\nmx: *.enforce.test\nmax_age: 86400\n",
    "keeps": "version: STSv1\r\nmode: enforce\r\nmx: mx.elsewhere.test\r\nmax_age: 86400\r\n",
    "rogue": "version: STSv1\nmode: enforce\nmx: mx.rogue.test\nmax_age: 86400\n",
    "lost": "version: STSv1\nmode: enforce\nmx: mx.lost.test\nmax_age: 86400\n",
    "short": "version: STSv1\nmode: enforce\nmx: mx.short.test\nmax_age: 2\n",
    "rogue-clear": "version: STSv1\nmode: enforce\nmx: mx.rogue-clear.test\nmax_age: 86400\n",
    "testing": "version: STSv1\nmode: testing\nmx: mx.testing.test\nmax_age: 86400\n",
    "testing-mx": "version: STSv1\nmode: testing\nmx: mx.elsewhere.test\nmax_age: 86400\n",
    "testing-good": "version: STSv1\nmode: testing\nmx: mx.testing-good.test\nmax_age: 86400\n",
    "off": "version: STSv1\nmode: none\nmax_age: 86400\n",
    "both": "version: STSv1\nmode: enforce\nmx: mx.elsewhere.test\nmax_age: 86400\n",
    "both-unusable": "version: STSv1\nmode: enforce\nmx: mx.both-unusable.test\nmax_age: 86400\n",
    "damaged": "version: STSv1\nmode: enforce\nmax_age: 86400\n",
}
PLAIN: Final = [*POLICIES, "unreachable-web", "smart", "verified"]
KNOT: Final = """\
server:
  listen: 127.0.0.1@{knot}
  rundir: {directory}
database:
  storage: {directory}/db
policy:
  - id: quick
    algorithm: ecdsap256sha256
    single-type-signing: on
template:
  - id: default
    storage: {directory}
    zonefile-load: whole
    zonefile-sync: -1
zone:
  - domain: test
    dnssec-signing: on
    dnssec-policy: quick
  - domain: plain
"""
UNBOUND: Final = """\
server:
  interface: 127.0.0.1
  port: {unbound}
  directory: "{directory}"
  username: ""
  chroot: ""
  pidfile: ""
  use-syslog: no
  do-daemonize: no
  num-threads: 1
  module-config: "validator iterator"
  do-not-query-localhost: no
  local-zone: "test." nodefault
  local-zone: "_{port}._tcp.mx.refused.test." always_refuse
  domain-insecure: "plain."
  trust-anchor: "{anchor}"
remote-control:
  control-enable: yes
  control-interface: "{directory}/control"
  control-use-cert: no
stub-zone:
  name: "test."
  stub-addr: 127.0.0.1@{knot}
stub-zone:
  name: "plain."
  stub-addr: 127.0.0.1@{knot}
"""
HEAD: Final = """\
$TTL 1
@ SOA ns hostmaster 1 3600 600 86400 1
@ NS ns
ns A 127.0.0.1
"""
NUMBERS: Final = itertools.count()
RELAY: Final = '[[plugins]]\nuse = "relay"\nnetworks = ["127.0.0.0/8"]\n'


@dataclass(frozen=True)
class World:
    """The services beside minismtp."""

    directory: Path
    port: int  # of the hosts
    smart: int  # the port of the smarthost
    web: int
    dns: int
    control: list[str]  # the command that controls unbound
    served: dict[str, str]  # the content of the web server

    @property
    def outbound(self) -> str:
        """The table of a sender."""
        return (
            f'[dns]\nnameservers = ["127.0.0.1:{self.dns}"]\n\n[outbound]\nport = {self.port}\n'
            f'server_ca = "{self.directory}/trusted.pem"\nmta_sts_port = {self.web}\n'
        )


def make_certificates(directory: Path) -> dict[str, bytes]:
    """Write certificates and keys. Return those that TLSA records name."""
    trusted, private, rogue = trustme.CA(), trustme.CA(), trustme.CA()
    trusted.cert_pem.write_to_path(directory / "trusted.pem")
    shown = rogue.issue_cert("mx.rogue.example")
    other = rogue.issue_cert("mx.rogue.example")
    shown.private_key_and_cert_chain_pem.write_to_path(directory / "rogue.pem")
    for label in GOOD:
        odd = {"ta-name": "mx.elsewhere.test", "ta-next": "ta-next.test"}
        name = odd.get(label, f"mx.{label}.test")
        authority = private if label.startswith("ta") else trusted
        path = directory / f"{label}.pem"
        authority.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(path)
        if authority is private:  # RFC 7672 section 3.1.2: the trust anchor is in the chain
            private.cert_pem.write_to_path(path, append=True)
    names = [f"mta-sts.{label}.test" for label in POLICIES]
    trusted.issue_cert(*names).private_key_and_cert_chain_pem.write_to_path(directory / "web.pem")
    return {
        "rogue": shown.cert_chain_pems[0].bytes(),
        "other": other.cert_chain_pems[0].bytes(),
        "authority": private.cert_pem.bytes(),
    }


def tlsa(record: str, certificates: dict[str, bytes]) -> str:
    """Write a record, independently of the code under test."""
    usage, selector, matching, whose = record.split()
    certificate = load_pem_x509_certificate(certificates[whose])
    octets = certificate.public_bytes(Encoding.DER)
    if selector == "1":
        key = certificate.public_key()
        octets = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = {"0": bytes.hex, "1": lambda o: hashlib.sha256(o).hexdigest()}.get(
        matching, lambda o: hashlib.sha512(o).hexdigest()
    )(octets)
    return f"{usage} {selector} {matching} {digest}"


def write_zones(directory: Path, port: int, certificates: dict[str, bytes]) -> None:
    lines = []
    for label in sorted({*TLSA, *PLAIN}):
        address = CLEAR if label.endswith("clear") else SECURE
        lines += [f"{label} MX 10 mx.{label}", f"mx.{label} A {address}"]
        records = [tlsa(record, certificates) for record in TLSA.get(label, ())]
        lines += [f"_{port}._tcp.mx.{label} TLSA {record}" for record in records]
    for label in (*POLICIES, "unreachable-web"):
        lines += [f'_mta-sts.{label} TXT "v=STSv1; id=1;"', f"mta-sts.{label} A {WEB}"]
    lines += ["second MX 20 mx.ee", "alias MX 10 nick.alias", "nick.alias CNAME mx.ee"]
    wrong = tlsa("3 1 1 other", certificates)
    (directory / "test.zone").write_text(HEAD + "\n".join(lines) + "\n")
    (directory / "plain.zone").write_text(
        f"{HEAD}mx A {SECURE}\nunsigned MX 10 mx\n_{port}._tcp.mx TLSA {wrong}\n"
    )


def ask(port: int, name: str, kind: str) -> dns.message.Message:
    """Ask a name server until it answers with records."""
    question = dns.message.make_query(name, kind, want_dnssec=True)
    for _ in range(600):
        with contextlib.suppress(OSError, dns.exception.Timeout):
            reply = dns.query.udp(question, "127.0.0.1", 0.5, port)
            if reply.answer:
                return reply
        time.sleep(0.05)
    pytest.fail(f"no name server answers at port {port}")


class Server(http.server.ThreadingHTTPServer):
    """Ignores clients that do not accept its certificate."""

    def handle_error(self, *arguments: object) -> None:
        """Say nothing."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Has the policies."""

    served: dict[str, str]

    def do_GET(self) -> None:
        label = self.headers["Host"].split(".")[1]
        policy = self.served.get(label)
        self.send_response(404 if policy is None else 200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.end_headers()
        if self.path == "/.well-known/mta-sts.txt":
            self.wfile.write((policy or "").encode())

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def world(
    require_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    programs = [require_program(name) for name in ("knotd", "unbound", "unbound-control")]
    directory = tmp_path_factory.mktemp("world")
    port, smart, web, knot, unbound = (free_port() for _ in range(5))
    (directory / "db").mkdir()
    write_zones(directory, port, make_certificates(directory))
    (directory / "knot.conf").write_text(KNOT.format(knot=knot, directory=directory))
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((directory / "log").open("wb"))

        def run(*command: str) -> None:
            process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)

        run(programs[0], "-c", str(directory / "knot.conf"))
        key = next(
            record
            for answer in ask(knot, "test.", "DNSKEY").answer
            for record in answer
            if record.rdtype == dns.rdatatype.DNSKEY
        )
        text = UNBOUND.format(
            knot=knot, unbound=unbound, directory=directory, port=port, anchor=f"test. DNSKEY {key}"
        )
        (directory / "unbound.conf").write_text(text)
        run(programs[1], "-d", "-c", str(directory / "unbound.conf"))
        assert ask(unbound, "mx.ee.test.", "A").flags & dns.flags.AD
        served = dict(POLICIES)
        stack.enter_context(serving(directory / "web.pem", web, served))
        control = [programs[2], "-c", str(directory / "unbound.conf")]
        yield World(directory, port, smart, web, unbound, control, served)


@contextlib.contextmanager
def serving(certificate: Path, port: int, served: dict[str, str]) -> Iterator[None]:
    handler = type("Served", (Handler,), {"served": served})
    server = Server((WEB, port), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def there(world: World, launch: Launch) -> Iterator[Running]:
    """Receive for all domains, in TLS at one address and without at another."""
    (world.directory / "passwords").write_text(f"me:{hash_password('secret')}\n")
    pem = world.directory
    listeners = "".join(
        f'[[listeners]]\nname = "{name}"\naddress = "{address}"\nkind = "{kind}"\ntls = "{tls}"\n'
        for name, address, kind, tls in (
            ("smtp", f"{SECURE}:{world.port}", "mx", "starttls"),
            ("clear", f"{CLEAR}:{world.port}", "mx", "none"),
            ("smart", f"{SECURE}:{world.smart}", "submission", "implicit"),
        )
    )
    tls = f'[tls]\ncertificate = "{pem}/rogue.pem"\nkey = "{pem}/rogue.pem"\n' + "".join(
        f'[[tls.sni]]\nname = "mx.{label}.test"\ncertificate = "{pem}/{label}.pem"\n'
        f'key = "{pem}/{label}.pem"\n'
        for label in GOOD
    )
    domains = [f"{label}.test" for label in {*TLSA, *PLAIN, "alias"}] + ["unsigned.plain"]
    plugins = (
        f'[[plugins]]\nuse = "mailboxes"\nname = "more"\ndomains = {sorted(domains)}\n'
        f'[[plugins]]\nuse = "password_file"\npath = "{pem}/passwords"\n'
    )
    with launch(tls, plugins, listeners=listeners) as server:
        yield server


@pytest.fixture(scope="module")
def here(world: World, launch: Launch, tls_files: TlsFiles) -> Iterator[Running]:
    listeners = '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\n'
    route = '[[outbound.routes]]\ndomain = "verified.test"\ntls = "verified"\n'
    with launch(
        RELAY, f'{world.outbound}retry = ["1h"]\n', route, tls_files.table, listeners=listeners
    ) as server:
        server.wait_for_log(" queue opened ")
        yield server


def send(server: Running, domain: str, files: TlsFiles | None = None) -> str:
    """Send to a new user and return its name; with `files` the message has REQUIRETLS."""
    local = f"user{next(NUMBERS)}"
    with server.connect() as client:
        client.greet()
        if files is not None:
            client.command("STARTTLS")
            client.secure(files.client())
            client.command("EHLO client.example")
        option = " REQUIRETLS" if files else ""
        assert client.command(f"MAIL FROM:<me@example.org>{option}").startswith("250")
        assert client.command(f"RCPT TO:<{local}@{domain}>").startswith("250")
        client.command("DATA")
        client.send("Subject: hello\r\n\r\nhello\r\n.\r\n")
        assert client.reply().startswith("250 ")
    return local


@pytest.mark.parametrize(
    ("domain", "host", "level"),
    [
        ("ee.test", "mx.ee.test", "dane"),
        ("ee-whole.test", "mx.ee-whole.test", "dane"),
        ("ee-data.test", "mx.ee-data.test", "dane"),
        ("either.test", "mx.either.test", "dane"),  # one record of several is enough
        ("ta.test", "mx.ta.test", "dane"),
        ("ta-key.test", "mx.ta-key.test", "dane"),
        ("ta-next.test", "mx.ta-next.test", "dane"),  # a certificate for the domain
        ("alias.test", "nick.alias.test", "dane"),  # RFC 7672 section 2.2.2: where the alias leads
        ("second.test", "mx.ee.test", "dane"),  # the first host has the wrong certificate
        ("both.test", "mx.both.test", "dane"),  # DANE decides, not MTA-STS (RFC 8461 section 2)
        ("both-unusable.test", "mx.both-unusable.test", "mta-sts"),
        ("unusable.test", "mx.unusable.test", "encrypted"),
        ("unsigned.plain", "mx.plain", "encrypted"),  # its TLSA record is not signed
        ("enforce.test", "mx.enforce.test", "mta-sts"),
        ("testing.test", "mx.testing.test", "encrypted"),
        ("testing-mx.test", "mx.testing-mx.test", "encrypted"),
        ("testing-good.test", "mx.testing-good.test", "verified"),
        ("off.test", "mx.off.test", "encrypted"),
        ("damaged.test", "mx.damaged.test", "encrypted"),
        ("unreachable-web.test", "mx.unreachable-web.test", "encrypted"),
        ("verified.test", "mx.verified.test", "verified"),
    ],
)
def test_mail_arrives_and_the_log_says_how(
    here: Running, there: Running, domain: str, host: str, level: str
) -> None:
    local = send(here, domain)
    here.wait_for_log(rf" delivery delivered .* to={local}@{domain} host={host} tls={level} ")
    assert len(there.mail(local)) == 1


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("wrong", r"451 4\.7\.5 .*no TLSA record is for its certificate"),
        ("wrong-clear", r"451 4\.7\.4 .*does not offer STARTTLS"),
        ("ta-name", r"451 4\.7\.5 .*the certificate is for mx\.elsewhere\.test"),
        ("ta-other", r"451 4\.7\.5 .*no TLSA record is for its certificate"),
        ("refused", r"451 4\.7\.5 .*the DNS does not answer for _\d+\._tcp\.mx\.refused\.test"),
        ("unusable-clear", r"451 4\.7\.4 .*does not offer STARTTLS"),
        ("rogue", r"451 4\.7\.5 .*unable to get local issuer certificate"),
        ("rogue-clear", r"451 4\.7\.4 .*does not offer STARTTLS"),
        ("keeps", r"451 4\.7\.5 .*none of the hosts in the MTA-STS policy of keeps\.test"),
    ],
)
def test_mail_waits_when_the_host_is_not_the_one_that_was_published(
    here: Running, there: Running, label: str, reason: str
) -> None:
    local = send(here, f"{label}.test")
    here.wait_for_log(rf" delivery deferred .* to={local}@.* reply=.*{reason}")
    assert there.mail(local) == []


@pytest.mark.parametrize(
    "said",
    [
        r"MTA-STS testing .*domain=testing\.test would_fail=.*certificate",
        r"MTA-STS testing .*domain=testing-mx\.test would_fail=.*none of the hosts",
        r"MTA-STS policy not fetched .*domain=damaged\.test error=.*no mx",
        r"MTA-STS policy not fetched .*domain=unreachable-web\.test error=.*[Hh]ostname mismatch",
    ],
)
def test_the_operator_hears_of_policies_that_fail(here: Running, there: Running, said: str) -> None:
    del there
    label = said.split("domain=")[1].split("\\", maxsplit=1)[0]
    send(here, f"{label}.test")
    here.wait_for_log(said)


def test_metrics_count_the_levels(here: Running, there: Running) -> None:
    del there
    send(here, "ee.test")
    here.wait_until(lambda: here.metric("delivery_tls_total", level="dane") >= 1)
    assert here.metric("delivery_tls_total", level="none") == 0


def test_a_policy_outlives_its_record_its_web_server_and_a_restart(
    world: World, there: Running, configure: Configure, start: Start
) -> None:
    config = configure(RELAY, f'{world.outbound}retry = ["1s"]\n')
    server = start(config)
    local = send(server, "lost.test")
    deferred = rf" delivery deferred .* to={local}@.*local issuer"
    server.wait_for_log(deferred)
    server.kill()
    del world.served["lost"]
    gone = [*world.control, "local_zone", "_mta-sts.lost.test.", "always_nxdomain"]
    subprocess.run(gone, check=True, stdout=subprocess.DEVNULL)
    before = len(re.findall(deferred, server.log))
    start(config).wait_for_log(deferred, before + 1)
    assert there.mail(local) == []


def test_a_policy_that_has_expired_holds_nothing_up(
    world: World, there: Running, launch: Launch
) -> None:
    with launch(RELAY, f'{world.outbound}retry = ["1s"]\n') as server:
        local = send(server, "short.test")
        server.wait_for_log(rf" delivery deferred .* to={local}@.*local issuer")
        del world.served["short"]
        server.wait_for_log(rf" delivery delivered .* to={local}@.*tls=encrypted")
    assert len(there.mail(local)) == 1


def test_both_can_be_switched_off(world: World, there: Running, launch: Launch) -> None:
    del there
    with launch(RELAY, f"{world.outbound}dane = false\nmta_sts = false\n") as server:
        for label in ("wrong", "rogue"):
            local = send(server, f"{label}.test")
            server.wait_for_log(rf" delivery delivered .* to={local}@.* tls=encrypted")
        assert not list((server.directory / "state").glob("mta-sts"))


@pytest.mark.parametrize(
    ("domain", "outcome"),
    [
        ("ee.test", "delivered .* to={}@.*tls=dane"),
        ("verified.test", "delivered .* to={}@.*tls=verified"),  # its MX records are signed
        (
            "unsigned.plain",
            r"failed .* to={}@.*550 5\.7\.30 REQUIRETLS: neither DNSSEC nor MTA-STS",
        ),
        ("unusable-required.test", r"deferred .* to={}@.*451 4\.7\.5 .*certificate"),
    ],
)
def test_requiretls_goes_only_to_whom_we_know(
    here: Running, there: Running, tls_files: TlsFiles, domain: str, outcome: str
) -> None:
    del there
    local = send(here, domain, tls_files)
    here.wait_for_log(f" delivery {outcome.format(local)}")


def test_a_smarthost_wants_a_password_and_gets_it_in_verified_tls_only(
    world: World, there: Running, launch: Launch
) -> None:
    (world.directory / "secret").write_text("secret\n")
    login = f'username = "me"\npassword_file = "{world.directory}/secret"\ntls = "verified"\n'
    for label, outcome in (("smart", "delivered .*tls=verified"), ("off", r"deferred .*4\.7\.5")):
        smarthost = f'smarthost = "mx.{label}.test:{world.smart}"\nimplicit = true\n'
        with launch(RELAY, world.outbound + smarthost + login) as server:
            local = send(server, "smart.test")
            server.wait_for_log(f" delivery {outcome}")
            stored = there.mail(local)
            assert [b"with ESMTPSA" in each for each in stored] == [True] * (label == "smart")
