"""Records that owners of domains publish, and the checks of a sender that read them."""

from __future__ import annotations

import io
import time
from contextlib import suppress
from datetime import timedelta
from ipaddress import ip_address
from ssl import DER_cert_to_PEM_cert
from types import SimpleNamespace
from typing import Any

import dns.message
import dns.nameserver
import dns.query
from dns.rdataclass import RdataClass
from dns.rdatatype import RdataType
from dns.rdtypes.ANY.TXT import TXT
from fakes import envelope
from minismtp_plugins._canonical import (
    body_hashes,
    relaxed_field,
    simple_field,
    without_signature,
)
from minismtp_plugins._dkim import Keys, Signature, UnverifiedError
from minismtp_plugins._dns import Questions, can_be_asked
from minismtp_plugins._spf import Sender, check_host
from minismtp_plugins._spf_record import RecordError, expand, is_record, parse_macros, parse_record
from minismtp_plugins._srs import Srs, is_rewritten
from minismtp_plugins.arc import BrokenChainError, read_chain, verify_chain
from minismtp_plugins.dkim_verify import DkimVerify
from minismtp_plugins.dmarc import (
    is_aligned,
    policy_of,
    record_of,
    sampled,
)
from minismtp_plugins.dnsbl import DnsList
from minismtp_plugins.helo import HeloChecks

from fuzz.peers import Zone, file_of, message_of, session, text_of
from fuzz.target import target
from minismtp import Address, AuthResult, Headers, RemoteError, UnansweredError
from minismtp.config.types import SocketAddress
from minismtp.delivery.dane import Tlsa
from minismtp.delivery.mta_sts import StsPolicy, _fields
from minismtp.delivery.mx import HostFinder, UnreachableError
from minismtp.delivery.tls_security import matches
from minismtp.hooks.dns_zone import DnsRecord
from minismtp.inspection.dns_check import DnsChecker
from minismtp.services.certificate_file import certificates_of, common_name
from minismtp.services.resolver import Found, Resolver
from minismtp.values.der import certificate_fields

_KEY = b"v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
_TAGS = ("v", "a", "b", "bh", "d", "h", "s")
_SIGNATURE = (
    b"DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed; d=example.org; s=s; h=from;"
    b" bh=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=; b=AAAA\r\n"
)


@target("_dkim", "_canonical", raises=(UnverifiedError,))
def dkim_field(data: bytes) -> None:
    raw = b"DKIM-Signature: " + data
    without_signature(raw)
    signature = Signature.read(raw, *_TAGS)
    signature.check_tags(time.time())
    signature.check_identity()
    assert signature.extent
    key, _ = Keys(Zone(_KEY), timedelta(days=9)).find(signature)
    signature.check(signature.signed_fields(Headers([raw])), key)


@target("dkim_verify", "_dkim", "_canonical", "mail.results", raises=(ValueError,))
def signed_message(data: bytes) -> None:
    plugin = DkimVerify()
    plugin._resolver, plugin._clock = Zone(_KEY), time.time
    plugin.on_message(session(), envelope(), message_of(data))


@target("_dkim", raises=(UnverifiedError,))
def dkim_key(data: bytes) -> None:
    kind, _, record = data.partition(b"\n")
    signature = _SIGNATURE.replace(b"ed25519", b"rsa") if kind == b"rsa" else _SIGNATURE
    Keys(Zone(record), timedelta(days=9)).find(Signature.read(signature, *_TAGS))


@target("arc", "_dkim", "_canonical", raises=(BrokenChainError,))
def arc_chain(data: bytes) -> None:
    message = message_of(data)
    chain = read_chain(message.headers)
    for each in chain:
        str(each.report)
    if chain:
        verify_chain(message, chain, Keys(Zone(_KEY), timedelta(days=9)), 1.8e9)


@target("_canonical")
def canonical_forms(data: bytes) -> None:
    extents = [("relaxed", None), ("simple", None), ("simple", 10)]
    body_hashes(io.BytesIO(data), extents)
    for form in (relaxed_field, simple_field):
        raw = form(b"Subject: " + data)
        assert raw.endswith(b"\r\n")
    assert b"\n" not in relaxed_field(b"Subject: " + data)[:-2]


@target("_spf_record", raises=(RecordError,))
def spf_record(data: bytes) -> None:
    text = data.decode("latin-1")
    is_record(text)
    parse_record(text)


@target("_spf_record", raises=(RecordError,), most=1000)  # longer ones are never read
def spf_explanation(data: bytes) -> None:
    pieces = parse_macros(data.decode("latin-1"), explaining=True)
    expand(pieces, lambda letter: f"{letter}.example-1+2.org")


@target("_spf", "_spf_record", "_dns")
def spf_check(data: bytes) -> None:
    """Check the sender in the first line; the DNS answers with the other lines in turn."""
    first, *answers = data.decode("latin-1").split("\n")
    sender, _, helo = first.partition(" ")
    local, _, domain = sender.rpartition("@")
    peer = ip_address("2001:db8::1" if len(first) % 2 else "192.0.2.1")
    asked = 0

    def ask(name: str, kind: str) -> list[str]:
        nonlocal asked
        asked += 1
        if not can_be_asked(name.removesuffix(".")):
            return []
        answer = answers[asked % len(answers)] if answers else ""
        if kind == "TXT":
            return answer.split("\r")
        if kind in {"MX", "PTR"}:
            return answer.split()[:100]
        return ["192.0.2.1"] if kind == "A" else ["2001:db8::2"]

    outcome = check_host(Sender(peer, local, domain or "a.example", helo), ask)
    assert asked <= 40, asked
    str(outcome)


@target("dmarc", raises=(UnansweredError,))
def dmarc_record(data: bytes) -> None:
    questions = Questions(Zone(*data.split(b"\n", 9)), timedelta(days=1))
    domain = "a.example.org"
    tags = record_of(domain, questions).tags or {}
    if policy := policy_of(tags, questions, domain):
        sampled(policy, tags)
    result = AuthResult("dkim", "pass", properties={"header.d": text_of(data[:300])})
    is_aligned(result, domain, tags, envelope())


@target("delivery.mta_sts", "delivery.tls_security", raises=(ValueError,))
def mta_sts_policy(data: bytes) -> None:
    policy = StsPolicy.parse(data.decode())
    policy.allows("mx.example.org")


@target("delivery.mta_sts", "delivery.tls_security")
def mta_sts_record(data: bytes) -> None:
    text = data.decode("ascii", "replace")
    _fields(text)
    matches(text, "mx.example.org")


@target("delivery.dane", "values.der", raises=(ValueError,))
def certificate(data: bytes) -> None:
    certificate_fields(data)
    for selector in range(2):
        for matching in range(3):
            record = Tlsa(3, selector, matching, data[:32])
            assert record.usable
            record.names(data)


@target("services.certificate_file", "values.der")
def certificate_file(data: bytes) -> None:
    """Read a file with the input as a certificate, and one with the input as it is."""
    for text in (DER_cert_to_PEM_cert(data).encode(), data):
        with file_of(text) as path, suppress(ValueError):
            for each in certificates_of(path):
                each.is_for("www.example.org")
                common_name(each.issuer)


@target("dnsbl", raises=(ValueError, RemoteError))
def dns_list(data: bytes) -> None:
    code, *answers = data.decode("latin-1").split("\n")
    listed = DnsList("dnsbl.example.org", codes=[code])
    listed.check(answers)
    for answer in answers:
        listed.counts(answer)


@target("helo", "_dns", most=512)
def helo_name(data: bytes) -> None:
    plugin = HeloChecks(unresolvable="tag")
    plugin._resolver = Zone()
    peer = session()
    peer.helo = text_of(data)
    plugin.on_mail(peer, envelope())


@target("_srs", "values.address", raises=(ValueError,), most=1000)
def srs(data: bytes) -> None:
    text = text_of(data)
    changer = Srs([b"0123456789abcdef"], "example.org", lambda: 20_000)
    sender = Address.parse(text)
    rewritten = changer.rewrite(sender)
    if rewritten is not None:
        assert is_rewritten(rewritten.local)
        if rewritten.local.upper().startswith("SRS0"):
            assert changer.restore(rewritten.local) == Address(sender.local, sender.ascii_domain)
    if is_rewritten(text):
        changer.restore(text)


@target("inspection.dns_check", "inspection.spf_permission")
def own_records(data: bytes) -> None:
    """Judge our own records in a DNS that has these lines as texts; the first line is wanted."""
    first, *others = data.decode("latin-1").split("\n")
    asked = 0

    class Lines(Resolver):
        def lookup(self, name: str, kind: str, *, seconds: float = 9.0) -> Found:
            del seconds
            nonlocal asked
            asked += 1
            if kind != "TXT" or not others:
                return Found((), name)
            line = others[asked % len(others)].encode()[:60_000]
            parts = [line[start : start + 255] for start in range(0, len(line) or 1, 255)]
            return Found((TXT(RdataClass.IN, RdataType.TXT, parts),), name)

    addresses = [ip_address("192.0.2.1"), ip_address("2001:db8::1")]
    for wanted in ("v=spf1 -all", "v=DKIM1; k=rsa; p=x", "v=DMARC1; p=none", first[:99]):
        try:
            record = DnsRecord("_dmarc.example.org", "TXT", wanted)
        except ValueError:
            continue
        outcome = DnsChecker(Lines(), addresses).check(record)
        assert outcome.state in {"right", "wrong", "missing"}
    assert asked <= 40, asked


# dnspython takes 2 us for each octet of an answer full of records, linearly: what may be read for
# one message is bounded where it is asked for.
@target("services.resolver", raises=(UnansweredError,), most=1 << 14)
def dns_answer(data: bytes) -> None:
    """Look up a name at a server that sends this; the first octet is the type."""
    resolver = Resolver([SocketAddress("127.0.0.1", 53)])
    kind = ("A", "AAAA", "MX", "PTR", "TXT", "TLSA")[(data or b"\0")[0] % 6]
    resolver._resolver.nameservers = [_Server(data[1:])]
    found = resolver.lookup("a.example", kind)
    for record in found.records:
        str(record)


@target("delivery.mx", raises=(UnreachableError,), most=4096)
def mail_hosts(data: bytes) -> None:
    """Find the hosts of a domain whose MX records are the lines."""
    records = [
        SimpleNamespace(preference=number % 3, exchange=_Exchange(line))
        for number, line in enumerate(data.decode("latin-1").split("\n"))
    ]
    directory = HostFinder(_Hosts(records), hostname="mx.example.org", own=(), port=25)
    for host in directory.by_mx("a.example"):
        str(host)


class _Exchange(str):
    __slots__ = ()

    def to_text(self, *, omit_final_dot: bool) -> str:
        assert omit_final_dot
        return self.removesuffix(".")


class _Hosts(Resolver):
    def __init__(self, exchanges: list[SimpleNamespace]) -> None:
        self._exchanges = tuple(exchanges)

    def lookup(self, name: str, kind: str, *, seconds: float = 10.0) -> Found:
        del seconds
        if kind == "MX":
            return Found(self._exchanges, name)
        return Found((SimpleNamespace(address="192.0.2.1"),) if kind == "A" else (), name)


class _Server(dns.nameserver.Nameserver):
    """A name server whose every answer has these octets behind the question's number."""

    def __init__(self, said: bytes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._said = said

    def __str__(self) -> str:
        return "127.0.0.1"

    def kind(self) -> str:
        return "Do53"

    def is_always_max_size(self) -> bool:
        return False

    def answer_nameserver(self) -> str:
        return "127.0.0.1"

    def answer_port(self) -> int:
        return 53

    def query(self, request: dns.message.QueryMessage, *_: object, **__: object) -> Any:  # noqa: ANN401
        said = self._said.replace(b"QUESTION", request.to_wire()[12:])
        answer = dns.message.from_wire(request.id.to_bytes(2, "big") + said)
        if not request.is_response(answer):
            raise dns.query.BadResponse
        return answer
