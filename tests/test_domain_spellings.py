"""A domain is the same in each spelling: in the configuration, in SMTP, and in the DNS."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, Final, cast

import pytest
from fakes import Names, envelope
from minismtp_plugins._dkim import Signature
from minismtp_plugins._from import domains_of
from minismtp_plugins._maildir_paths import Template
from minismtp_plugins.authentication_results import AuthenticationResults
from minismtp_plugins.dmarc import Dmarc, is_aligned
from minismtp_plugins.dnsbl import Dnsbl, DnsList
from minismtp_plugins.greylist import Greylist
from minismtp_plugins.helo import HeloChecks
from minismtp_plugins.ldap import Ldap
from minismtp_plugins.mailboxes import Mailboxes
from minismtp_plugins.rate_limit import Limit, RateLimit
from minismtp_plugins.relay import Relaying
from minismtp_plugins.rules import Condition, Rule, Rules
from minismtp_plugins.spf import Spf
from test_plugin_mailboxes import SESSION

from minismtp import (
    Address,
    AuthResult,
    Content,
    Message,
    Rate,
    Recipient,
    Reject,
    ServerInfo,
    SocketAddress,
    State,
    WebService,
)
from minismtp.cli.selection import fits
from minismtp.config.outbound_tables import Outbound, OutboundRoute
from minismtp.config.tables import SniCertificate
from minismtp.delivery.attempt import DeliveryContext
from minismtp.delivery.mta_sts import StsPolicy
from minismtp.delivery.mx import HostFinder, UnreachableError
from minismtp.delivery.tls_security import matches
from minismtp.mailqueue.queries import Filter
from minismtp.services.resolver import Found, Resolver
from minismtp.session.submission import is_owner
from minismtp.testing import Dialogue, Mailroom

# Each line is one domain: first with A-labels, then as people, programs and other servers write it.
SPELLINGS: Final = {
    "sharp-s": (
        *("xn--strae-oqa.example", "XN--Strae-OQA.EXAMPLE", "xn--strae-oqa.example."),
        *("straße.example", "STRAßE.Example", "straße.example.", "Straße。example"),
    ),
    "final-sigma": (
        "xn--nxasmm1c.example",
        "βόλος.example",
        "β\u03bf\u0301\u03bb\u03bf\u03c2.example",
    ),
    "non-joiner": ("xn--mgba3gch31f060k.example", "نامه\u200c\u0627ی.example"),
    "joiner": ("xn--11b2ezcw70k.example", "क्\u200dष.example"),
    "umlaut": (
        *("xn--bcher-kva.example", "bu\u0308cher.example", "BÜCHER.EXAMPLE"),
        "\uff42\uff55\u0308cher\uff0eexample",
    ),
    "emoji": ("xn--i-7iq.example", "i❤.example", "I❤\ufe0f.example.", "XN--I-7IQ.example"),
    "joined-emoji": ("xn--1uga80807abag.example", "👨\u200d👩\u200d👧.Example"),
    "ascii": ("mx-1.example", "MX-1.Example", "mx-1.example.", "\uff4dx-1.example"),
}
PAIRS: Final = [
    pytest.param(one, other, id=f"{kind}-{number}-{order}")
    for kind, (a_labels, *others) in SPELLINGS.items()
    for number, spelling in enumerate(others)
    for order, (one, other) in enumerate([(a_labels, spelling), (spelling, a_labels)])
]
Place = Callable[[str, str], bool]


def mail(told: Dialogue, sender: str = "a@client.example", recipient: str = "") -> str:
    """Send EHLO, MAIL with SMTPUTF8, and RCPT. Return the last reply."""
    told.send(f"EHLO {told.session.helo or 'client.example'}")
    reply = told.send_raw(f"MAIL FROM:<{sender}> SMTPUTF8\r\n".encode()).decode()
    if recipient and reply.startswith("250"):
        reply = told.send_raw(f"RCPT TO:<{recipient}>\r\n".encode()).decode()
    return reply


def accepted(told: Dialogue, recipient: str) -> bool:
    return mail(told, recipient=recipient).startswith("250")


# Mail for local domains and from them


def mailboxes(ours: str, theirs: str) -> bool:
    return accepted(Dialogue(Mailboxes(domains=[ours], users=["a"])), f"a@{theirs}")


def aliases(ours: str, theirs: str) -> bool:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "aliases"
        path.write_text(f"info@{ours}: boss@{theirs}\n")
        found = route(Mailboxes(domains=["x.example", theirs], aliases_file=path), f"info@{theirs}")
    return found == ["boss"]


def postmaster_of_the_host(ours: str, theirs: str) -> bool:
    told = Dialogue(Mailboxes(domains=["other.example"]))
    told.session.hostname = ours
    return accepted(told, f"PostMaster@{theirs}")


def relay(ours: str, theirs: str) -> bool:
    recipient = Recipient(Address("a", theirs))
    return Relaying(domains=[ours]).route(SESSION, envelope(), recipient) is not None


def route(boxes: Mailboxes, recipient: str) -> list[str]:
    local, _, domain = recipient.partition("@")
    seen = Recipient(Address(local, domain))
    seen.route = boxes.route(SESSION, envelope(), seen)
    return [each.local for each in seen.mailboxes]


def maildir(ours: str, theirs: str) -> bool:
    template = Template(Path("/mail/{domain}/{local}"))
    return template.fill(Address("a", ours)) == template.fill(Address("a", theirs))


def login(ours: str, theirs: str) -> bool:
    return is_owner(f"a@{ours}", "", Address("a", theirs))


def equal_addresses(ours: str, theirs: str) -> bool:
    return Address("a", ours) == Address("a", theirs)


# Filters


def helo(ours: str, theirs: str) -> bool:
    found = HeloChecks(names=[ours], own="reject", unresolvable="off")
    told = Dialogue(found, Mailroom())
    told.session.helo = theirs
    with pytest.raises(Reject, match="that is us"):
        found.on_mail(told.session, envelope())
    return True


def spf(ours: str, theirs: str) -> bool:
    names = Names({f"{Address('', ours).ascii_domain} TXT": ['"v=spf1 -all"']})
    return mail(Dialogue(Spf(), resolver=names), f"a@{theirs}").startswith("550 5.7.23")


def spf_of_helo(ours: str, theirs: str) -> bool:
    names = Names({f"{Address('', ours).ascii_domain} TXT": ['"v=spf1 -all"']})
    plugin = Spf()
    told = Dialogue(plugin, resolver=names)
    told.session.helo = theirs
    plugin.on_start(ServerInfo("mx.example.org", Path(), "worker", 0, resolver=names))
    with pytest.raises(Reject, match="may not call itself"):
        plugin.on_mail(told.session, envelope())
    return True


def dnsbl(ours: str, theirs: str) -> bool:
    zone = "list.example"
    names = Names({f"{Address('', ours).ascii_domain}.{zone} A": ["127.0.0.2"]})
    plugin = Dnsbl(lists=[DnsList(zone=zone, about=["sender"])])
    return mail(Dialogue(plugin, resolver=names), f"a@{theirs}").startswith("550")


def zone_of_a_list(ours: str, theirs: str) -> bool:
    return DnsList(zone=ours).zone == DnsList(zone=theirs).zone


def greylist(ours: str, theirs: str) -> bool:
    now = [1_000_000.0]
    state = State.in_memory(clock=lambda: now[0])
    replies = []
    for domain in (ours, theirs):
        plugin = Greylist()
        told = Dialogue(plugin, Mailroom(), state=state)
        plugin._clock = lambda: now[0]  # noqa: SLF001 - time is injected, after its start
        replies.append(mail(told, f"a@{domain}", f"b@{domain}")[:3])
        now[0] += 400
    return replies == ["451", "250"]


def rate_limit(ours: str, theirs: str) -> bool:
    limit = Limit(by="sender_domain", messages=Rate(1, timedelta(days=1)))
    state = State.in_memory()
    replies = []
    for domain in (ours, theirs):
        told = Dialogue(RateLimit(limits=[limit]), Mailroom(), state=state)
        mail(told, f"a@{domain}", "b@c.example")
        replies.append(told.send("DATA")[:3])
    return replies == ["354", "451"]


def rules(ours: str, theirs: str) -> bool:
    pattern = re.escape(f"@{Address('', ours).domain}") + "$"
    rule = Rule(name="r", action="reject", all=[Condition(sender=pattern)])
    told = Dialogue(Rules(rules=[rule]), Mailroom())
    mail(told, f"a@{theirs}", "b@c.example")
    told.send("DATA")
    return told.send("Subject: x\r\n\r\n.").startswith("550")


def signing_domain(ours: str, theirs: str) -> bool:
    return domains_of([f"A <a@{theirs}>"]) == [Address("", ours).ascii_domain]


def signature(ours: str, theirs: str) -> bool:
    tags = f"v=1; a=rsa-sha256; b=; bh=; h=from; s=s; d={ours}; i=a@sub.{theirs}"
    read_field = Signature.read(f"DKIM-Signature: {tags}\r\n".encode(), "d", "i")
    below = f"sub.{read_field.domain}"
    return read_field.domain == Address("", theirs).ascii_domain and (
        read_field.check_identity() == below
    )


def dmarc_alignment(ours: str, theirs: str) -> bool:
    result = AuthResult("dkim", "pass", properties={"header.d": f"sub.{theirs}"})
    [domain] = domains_of([f"a@{ours}"])
    return is_aligned(result, domain, {}, envelope())


def dmarc_sealers(ours: str, theirs: str) -> bool:
    return Dmarc(trusted_sealers=[ours])._trusted == Dmarc(trusted_sealers=[theirs])._trusted  # noqa: SLF001


def results_of_ours(ours: str, theirs: str) -> bool:
    name = "Authentication-Results"
    message = Message("1a2b", Content.of(f"{name}: {theirs}; spf=pass\r\n\r\n".encode()))
    AuthenticationResults(authserv_id=ours).on_message(SESSION, envelope(), message)
    return len(message.headers.get_all(name)) == 1


# Outgoing mail


def routes(ours: str, theirs: str) -> bool:
    outbound = Outbound(routes=[OutboundRoute(domain=ours, host=SocketAddress("h.example", 25))])
    context = SimpleNamespace(_route=outbound.route, hooks=SimpleNamespace(directs=False))
    key = DeliveryContext.key(cast("Any", context), theirs)
    return key == f"{Address('', ours).ascii_domain} via h.example:25"


def wildcard_routes(ours: str, theirs: str) -> bool:
    return (
        Outbound(routes=[OutboundRoute(domain=f"*.{ours}")])
        .route(Address("", f"mx.{theirs}").ascii_domain)
        .domain
        != "*"
    )


def mx(ours: str, theirs: str) -> bool:
    a_labels = Address("", ours).ascii_domain
    names = Names({f"{a_labels} MX": ["1 mx.example."], "mx.example A": ["192.0.2.25"]})
    directory = HostFinder(names, hostname="us.example", own=[], port=25)
    return [host.name for host in directory.by_mx(Address("", theirs).ascii_domain)] == [
        "mx.example"
    ]


def own_name_among_mx(ours: str, theirs: str) -> bool:
    a_labels = Address("", theirs).ascii_domain
    names = Names({"x.example MX": [f"1 {a_labels}."], f"{a_labels} A": ["192.0.2.25"]})
    with pytest.raises(UnreachableError, match=r"5\.4\.6"):
        list(HostFinder(names, hostname=ours, own=[], port=25).by_mx("x.example"))
    return True


def host_of_a_plugin(ours: str, theirs: str) -> bool:
    names = Names({f"{Address('', ours).ascii_domain} A": ["192.0.2.25"]})
    [host] = HostFinder(names, hostname="us.example", own=[], port=25).at(theirs, 25)
    return host.name == Address("", ours).ascii_domain


def question_to_the_dns(ours: str, theirs: str) -> bool:
    resolver = Resolver([SocketAddress("127.0.0.1", 9)])
    kept = Found(("kept",), "kept")
    resolver._known.put((Address("", ours).ascii_domain, "A"), kept, 60, 1)  # noqa: SLF001
    return resolver.lookup(theirs, "A") is kept


def mta_sts(ours: str, theirs: str) -> bool:
    text = f"version: STSv1\nmode: enforce\nmax_age: 1\nmx: mx.{ours}\nmx: *.{ours}\n"
    policy = StsPolicy.parse(text)
    return policy.allows(f"mx.{theirs}") and policy.allows(f"other.{theirs}")


def name_in_a_certificate(ours: str, theirs: str) -> bool:
    return matches(Address("", ours).ascii_domain, theirs)


def sni(ours: str, theirs: str) -> bool:
    names = [
        SniCertificate(name=f"*.{each}", certificate=Path(), key=Path()) for each in (ours, theirs)
    ]
    return names[0].name == names[1].name


def url(ours: str, theirs: str) -> bool:
    one, other = (
        WebService(f"http://{each}:8080/x", timeout=timedelta(seconds=1)) for each in (ours, theirs)
    )
    return (one._host, one._remote.address) == (other._host, other._remote.address)  # noqa: SLF001


def directory(ours: str, theirs: str) -> bool:
    one, other = (Ldap(url=f"ldaps://{each}", dn="uid={user}") for each in (ours, theirs))
    return one._address == other._address  # noqa: SLF001


def socket_address(ours: str, theirs: str) -> bool:
    return SocketAddress.parse(f"{ours}:25") == SocketAddress.parse(f"{theirs}:25")


# Commands of operators


def queue(ours: str, theirs: str) -> bool:
    """The queue keeps addresses as the client spelled them."""
    found = []
    for wanted in (Filter(to_domain=ours), Filter(sender=f"@{ours}"), Filter(sender=f"a@{ours}")):
        condition, values = wanted.where(0.0)
        text = str(Address("a", theirs))
        with closing(sqlite3.connect(":memory:")) as database:
            database.execute("CREATE TABLE t (state, address, sender)")
            database.execute("INSERT INTO t VALUES ('queued', ?, ?)", [text, text])
            found += database.execute(
                f"SELECT 1 FROM t WHERE {condition}",  # noqa: S608 - ours
                values,
            ).fetchall()
    return len(found) == 3


def quarantine(ours: str, theirs: str) -> bool:
    text = str(Address("a", theirs))
    entry = SimpleNamespace(targets=[SimpleNamespace(address=text)], sender=text, quarantined="")
    return all(
        fits(Filter(to_domain=to, sender=sender), cast("Any", entry))
        for to, sender in ((ours, None), ("", f"@{ours}"), ("", f"A@{ours}"))
    )


PLACES: Final = (
    *(mailboxes, aliases, postmaster_of_the_host, relay, maildir, login, equal_addresses),
    *(helo, spf, spf_of_helo, dnsbl, zone_of_a_list, greylist, rate_limit, rules, signing_domain),
    *(signature, dmarc_alignment, dmarc_sealers, results_of_ours, routes, wildcard_routes, mx),
    *(own_name_among_mx, host_of_a_plugin, question_to_the_dns, mta_sts, name_in_a_certificate),
    *(sni, url, directory, socket_address, queue, quarantine),
)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("place", PLACES)
def test_each_spelling_is_the_same_domain(place: Place, ours: str, theirs: str) -> None:
    assert place(ours, theirs)


@pytest.mark.parametrize(
    "place",
    [
        mailboxes,
        relay,
        maildir,
        login,
        equal_addresses,
        signing_domain,
        spf,
        queue,
        quarantine,
    ],
)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("straße.example", "strasse.example"),  # one by the rules of 2003
        ("βόλος.example", "βόλοσ.example"),
        ("نامه\u200c\u0627ی.example", "xn--mgba3gch31f.example"),
        ("mx.example", "mxx.example"),
    ],
)
def test_other_domains_are_others(place: Place, ours: str, theirs: str) -> None:
    assert not place(ours, theirs)
    assert not place(theirs, ours)


@pytest.mark.parametrize(
    "domain",
    [
        "xn--qv9h.example",
        "xn--1ug6825plhas9r.ws",
        "xn--x-y2t.example",
        "xn--ls8h.la",
        "xn--99999.x",
    ],
)
def test_a_label_of_a_name_that_is_refused_is_taken(domain: str) -> None:
    """For every meaning, also in capitals, because the DNS has it."""
    assert Address.parse(f"a@{domain.upper()}").ascii_domain == domain
    assert mailboxes(domain, domain.upper())
    assert routes(domain.upper(), domain)
    assert spf(domain, domain.upper())
    assert mx(domain, domain)
    assert queue(domain, domain.upper())
