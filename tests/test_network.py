"""Mail between machines with addresses of their own: port 25, MX records, IPv4 and IPv6."""

from __future__ import annotations

import contextlib
import smtplib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest
from network import Host, MailServer, Network, hops, network, report, send, start_all

if TYPE_CHECKING:
    from conftest import Run

RECORDS: Final = (
    "here MX 10 mx.here",
    "there MX 10 mx.there",
    "there MX 20 mx.backup",
    "own MX 10 mx.there",
    "six MX 10 six.mx.there",
    "six.mx.there AAAA fd00:25::11",
    "four MX 10 four.mx.there",
    "four.mx.there A 192.0.2.11",
    # The backup is the best of these, under a name that is not its own.
    "stuck MX 10 other.mx.backup",
    "stuck MX 20 mx.there",
    "other.mx.backup A 192.0.2.12",
    "second MX 10 second.mx.here",
    "second.mx.here A 192.0.2.110",
)
OURS: Final = """
[[plugins]]
use = "mailboxes"
domains = {domains}
"""
RELAY: Final = """
[[plugins]]
use = "relay"
networks = ["192.0.2.1"]
"""
BACKUP: Final = """
[[plugins]]
use = "relay"
domains = ["there.test", "stuck.test"]
"""


@dataclass(frozen=True)
class Place:
    """A client, and servers that run for all tests."""

    network: Network
    client: Host
    here: MailServer
    there: MailServer
    backup: MailServer


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, require_program: Callable[[str], str], run: Run
) -> Iterator[Place]:
    for program in ("nsd", "unbound", "unshare", "ip"):
        require_program(program)
    with network(tmp_path_factory.mktemp("network")) as net, contextlib.ExitStack() as stack:
        client = net.host("client", 1)
        hosts = [
            net.host(f"mx.{name}", 10 + n) for n, name in enumerate(("here", "there", "backup"))
        ]
        here, there, backup = hosts
        here.add("192.0.2.110")
        net.publish(*RECORDS)
        place = Place(
            net,
            client,
            net.minismtp(here, run, OURS.format(domains=["here.test"]), RELAY),
            net.minismtp(
                there,
                run,
                OURS.format(
                    domains=["there.test", "own.test", "six.test", "four.test", "stuck.test"]
                ),
            ),
            net.minismtp(backup, run, OURS.format(domains=["mx.backup.test"]), BACKUP),
        )
        servers = (place.here, place.there, place.backup)
        for server in servers:
            stack.callback(server.close)
        start_all(servers)
        yield place


def test_a_users_mail_goes_out_by_mx_and_over_tls(
    place: Place, require_program: Callable[[str], str]
) -> None:
    # A domain of its own: after another test a connection to the backup may still be open.
    login = ("--auth", "PLAIN", "--auth-user", "alice", "--auth-password", "secret")
    tls = ("--tls", "--tls-verify", "--tls-ca-path", str(place.network.authority))
    place.client.run(
        *(require_program("swaks"), "--server", "mx.here.test", "--port", "587", *tls, *login),
        *("--helo", "client.test", "--from", "alice@here.test", "--to", "bob@own.test"),
    )
    last, first = hops(place.there.mail("bob"))
    assert first.startswith("from client.test ([192.0.2.1]) by mx.here.test with ESMTPSA id ")
    assert last.startswith(
        "from mx.here.test ([IPv6:fd00:25::10]) by mx.there.test with ESMTPS id "
    )
    place.here.running.wait_for_log(
        r" delivery delivered .*to=bob@own\.test host=mx\.there\.test tls=encrypted "
    )


@pytest.mark.parametrize(
    ("domain", "origin"), [("four", "[192.0.2.10]"), ("six", "[IPv6:fd00:25::10]")]
)
def test_mail_goes_over_either_version_of_ip(place: Place, domain: str, origin: str) -> None:
    send(place.client, place.here.host, f"{domain}@{domain}.test")
    assert f"({origin})" in hops(place.there.mail(domain))[0]


def test_mail_waits_for_a_host_that_comes_back(place: Place) -> None:
    with place.there.stopped(), place.backup.stopped():
        send(place.client, place.here.host, "patient@there.test")
        place.here.running.wait_for_log(
            r" delivery deferred .*to=patient@there\.test .*451 4\.4\.1 cannot connect to mx\."
        )
    assert place.there.mail("patient").endswith(b"It works.\r\n")


def test_waiting_mail_outlives_a_restart(place: Place) -> None:
    with place.there.stopped(), place.backup.stopped():
        send(place.client, place.here.host, "durable@there.test")
        place.here.running.wait_for_log(r" delivery deferred .*to=durable@there\.test ")
        with place.here.stopped():
            pass
        place.here.running.wait_for_log(r" delivery deferred .*to=durable@there\.test ")
    assert place.there.mail("durable").endswith(b"It works.\r\n")


def test_the_backup_takes_mail_and_passes_it_on(place: Place) -> None:
    with place.there.stopped():
        send(place.client, place.here.host, "backup@there.test")
        place.here.running.wait_for_log(
            r" delivery delivered .*to=backup@there\.test host=mx\.backup\.test tls=encrypted "
        )
        place.backup.running.wait_for_log(
            r" delivery deferred .*to=backup@there\.test .*451 4\.4\.1 cannot connect to mx\.there"
        )
    names = [hop.split(" by ")[1].split()[0] for hop in hops(place.there.mail("backup"))]
    assert names == ["mx.there.test", "mx.backup.test", "mx.here.test"]


def test_a_backup_takes_mail_for_its_domains_only(place: Place) -> None:
    with pytest.raises(smtplib.SMTPRecipientsRefused) as refusal:
        send(place.client, place.backup.host, "bob@here.test")
    [(code, reply)] = refusal.value.recipients.values()
    assert code == 550
    assert reply.startswith(b"5.7.1 relaying denied")


def test_a_backup_with_nobody_before_it_returns_the_mail(place: Place) -> None:
    """RFC 5321 section 5.1: it may not use a host with the same preference as itself."""
    send(place.client, place.backup.host, "bob@stuck.test", sender="loop@here.test")
    _, fields = report(place.here.mail("loop"))
    assert fields["Reporting-MTA"] == "dns; mx.backup.test"
    assert fields["Final-Recipient"] == "rfc822; bob@stuck.test"
    assert fields["Status"] == "5.4.6"


def test_every_address_of_a_host_is_its_own(place: Place) -> None:
    send(place.client, place.here.host, "bob@second.test", sender="second@here.test")
    _, fields = report(place.here.mail("second"))
    assert "mail for second.test loops back to this host" in fields["Diagnostic-Code"]
