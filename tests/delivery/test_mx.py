"""Where mail goes, with a real name server."""

from __future__ import annotations

import collections
import contextlib
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

import dns.message
import dns.query
import dns.resolver
import pytest
from fakes import Names
from nameserver import NSD
from ports import free_port

from minismtp.config.types import SocketAddress
from minismtp.delivery.mx import HostFinder, UnreachableError
from minismtp.services import resolver as resolver_module
from minismtp.services.resolver import Resolver, UnansweredError
from minismtp.values.address import Address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ZONE: Final = """\
$ORIGIN test.
$TTL 300
@       SOA ns hostmaster 1 3600 600 86400 2
@       NS  ns
ns      A   127.0.0.1
many    MX  20 backup
many    MX  10 one
many    MX  10 two
one     A   198.51.100.1
two     AAAA 2001:db8::2
two     A   198.51.100.2
backup  A   198.51.100.9
itself  A   198.51.100.7
null    MX  0 .
odd     MX  0 .
odd     MX  5 one
bare    TXT "nothing here takes mail"
dangling MX 10 gone
half    MX  10 gone
half    MX  20 one
numeric MX  10 198.51.100.1.
alias   MX  10 nick
nick    CNAME one
ours    MX  10 mx.example.org.
ours    MX  20 backup
second  MX  5  one
second  MX  10 mx.example.org.
second  MX  10 two
second  MX  20 backup
address MX  10 here
address MX  20 backup
here    A   127.0.0.1
elsewhere A 127.0.0.2
xn--bcher-kva MX 10 one
worse   MX  10 one
worse   MX  20 x.fails.
"""
ZONES: Final = """\
zone:
  name: test
  zonefile: test.zone
zone:
  name: fails
  zonefile: missing.zone
"""
OWN: Final = SocketAddress("0.0.0.0", 25)  # noqa: S104 - compared, not bound


@pytest.fixture(scope="module")
def nameserver(
    require_program: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SocketAddress]:
    """Run nsd for the zone above. It cannot load `broken`, and refuses all other questions."""
    program, directory, port = require_program("nsd"), tmp_path_factory.mktemp("dns"), free_port()
    (directory / "test.zone").write_text(ZONE)
    (directory / "nsd.conf").write_text(NSD.format(port=port, directory=directory) + ZONES)
    command = [program, "-d", "-c", str(directory / "nsd.conf")]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)
    try:
        question = dns.message.make_query("test.", "SOA")
        for _ in range(600):
            assert process.poll() is None, (directory / "log").read_text()
            with contextlib.suppress(OSError, dns.exception.Timeout):
                if dns.query.udp(question, "127.0.0.1", 0.1, port).answer:
                    break
        yield SocketAddress("127.0.0.1", port)
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def directory(nameserver: SocketAddress) -> HostFinder:
    return HostFinder(Resolver([nameserver]), hostname="MX.example.org", own=[OWN], port=25)


def way(directory: HostFinder, domain: str) -> list[str]:
    return [str(host) for host in directory.by_mx(domain)]


def refusal(directory: HostFinder, domain: str) -> str:
    with pytest.raises(UnreachableError) as caught:
        list(directory.by_mx(domain))
    assert caught.value.final == caught.value.reply.startswith("5")
    return caught.value.reply


ONE = "one.test[198.51.100.1]:25"
TWO = ["two.test[2001:db8::2]:25", "two.test[198.51.100.2]:25"]


def test_the_lowest_preference_comes_first_and_equals_share_the_load(directory: HostFinder) -> None:
    """RFC 5321 section 5.1: equal preferences in random order."""
    seen = collections.Counter(tuple(way(directory, "many.test")) for _ in range(100))
    backup = "backup.test[198.51.100.9]:25"
    assert set(seen) == {(ONE, *TWO, backup), (*TWO, ONE, backup)}


@pytest.mark.parametrize(
    ("domain", "wanted"),
    [
        ("itself.test", ["itself.test[198.51.100.7]:25"]),  # the implicit MX
        ("half.test", [ONE]),
        ("odd.test", [ONE]),  # a null MX beside others is ignored (RFC 7505 section 3)
        ("alias.test", ["nick.test[198.51.100.1]:25"]),
        ("second.test", [ONE]),  # we are the second: only those before us
        (Address.parse("x@b\u00fccher.test").ascii_domain, [ONE]),
        ("[198.51.100.5]", ["[198.51.100.5]:25"]),
        ("[IPv6:2001:db8::5]", ["[2001:db8::5]:25"]),
    ],
)
def test_way_to_a_domain(directory: HostFinder, domain: str, wanted: list[str]) -> None:
    assert way(directory, domain) == wanted


@pytest.mark.parametrize(
    ("domain", "reply"),
    [
        ("nowhere.test", "550 5.1.2 domain nowhere.test does not exist"),
        ("null.test", "556 5.1.10 domain null.test accepts no mail"),  # RFC 7505 section 3
        ("bare.test", "550 5.4.4 host bare.test has no address"),
        ("dangling.test", "550 5.4.4 host gone.test has no address"),
        ("numeric.test", "550 5.4.4 host 198.51.100.1 has no address"),  # a name, no address
        ("ours.test", "550 5.4.6 mail for ours.test loops back to this host"),
        ("[127.0.0.1]", "550 5.4.6 mail for 127.0.0.1 loops back to this host"),
        ("[IPv6:::1]", ""),
        ("address.test", ""),
        ("x.fails", "451 4.4.3 the DNS does not answer for x.fails MX (NoNameservers)"),
    ],
)
def test_no_way_to_a_domain(nameserver: SocketAddress, domain: str, reply: str) -> None:
    own = [OWN, SocketAddress("::", 25)]
    directory = HostFinder(Resolver([nameserver]), hostname="mx.example.org", own=own, port=25)
    given = refusal(directory, domain)
    assert given == reply or (not reply and given.startswith("550 5.4.6 "))


@pytest.mark.parametrize(
    ("own", "records"),
    [
        ("localhost:25", {"A": "127.0.0.1"}),
        ("127.0.0.1:25", {"A": "0.0.0.0"}),  # noqa: S104 - where the system takes a connection
        ("127.0.0.1:25", {"AAAA": "::ffff:127.0.0.1"}),
        ("127.0.0.1:25", {"AAAA": "::ffff:0.0.0.0"}),
        ("[::1]:25", {"AAAA": "::"}),
        ("[::1]:25", {"AAAA": "0:0:0:0:0:0:0:1"}),
        ("127.8.0.1:25", {"AAAA": "::ffff:7f08:1"}),
        ("192.0.2.77:25", {"AAAA": "::ffff:192.0.2.77"}),
        ("[::ffff:192.0.2.77]:25", {"A": "192.0.2.77"}),
        ("0.0.0.0:25", {"A": "127.200.1.9"}),
        ("0.0.0.0:25", {"A": "0.0.0.0"}),  # noqa: S104
        ("0.0.0.0:25", {"AAAA": "::ffff:127.200.1.9"}),
        ("[::]:25", {"AAAA": "::1"}),
        ("[::]:25", {"AAAA": "::"}),
        ("*:25", {"A": "127.200.1.9"}),
        ("*:25", {"AAAA": "::1"}),
    ],
)
def test_own_address_in_any_spelling_is_a_loop(own: str, records: dict[str, str]) -> None:
    """RFC 5321 section 5.1; Postfix: "mail for ... loops back to myself"."""
    names = {"x.example MX": ["10 mx.example.", "20 backup.example."]}
    names |= {f"mx.example {kind}": [address] for kind, address in records.items()}
    names |= {"backup.example A": ["198.51.100.9"]}
    listeners = [SocketAddress.parse(own)]
    directory = HostFinder(Names(names), hostname="us.example", own=listeners, port=25)
    assert refusal(directory, "x.example") == "550 5.4.6 mail for x.example loops back to this host"
    [address] = records.values()
    literal = f"a@[IPv6:{address}]" if ":" in address else f"a@[{address}]"
    assert refusal(directory, Address.parse(literal).domain).startswith("550 5.4.6 ")
    with pytest.raises(UnreachableError, match=r"5\.4\.6"):
        directory.at(address, 25)
    with pytest.raises(UnreachableError, match=r"5\.4\.6"):
        directory.at("MX.example.", 25)


@pytest.mark.parametrize("name", ["MX.Example.ORG", "mx.example.org", "mx.example.org."])
def test_own_name_is_a_loop_whatever_its_address(name: str) -> None:
    """The address may be that of a router, which this server cannot know."""
    names = Names({"x.example MX": ["10 mx.EXAMPLE.org."], "mx.example.org A": ["198.51.100.7"]})
    directory = HostFinder(names, hostname=name, own=[], port=25)
    assert refusal(directory, "x.example").startswith("550 5.4.6 ")


@pytest.mark.parametrize(
    ("own", "address"),
    [
        ("127.0.0.1:2525", "127.0.0.1"),
        ("0.0.0.0:2525", "127.0.0.1"),
        ("127.0.0.1:25", "::1"),
        ("[::1]:25", "0.0.0.0"),  # noqa: S104
        ("192.0.2.77:25", "::ffff:192.0.2.78"),
        ("0.0.0.0:25", "198.51.100.7"),
        ("[::]:25", "2001:db8::7"),
        ("*:25", "198.51.100.7"),
        ("*:2525", "::1"),
        ("unix:/run/x", "127.0.0.1"),
    ],
)
def test_address_where_somebody_else_listens_is_no_loop(own: str, address: str) -> None:
    kind = "AAAA" if ":" in address else "A"
    names = Names({"x.example MX": ["10 mx.example."], f"mx.example {kind}": [address]})
    directory = HostFinder(names, hostname="us.example", own=[SocketAddress.parse(own)], port=25)
    [host] = directory.by_mx("x.example")
    assert host.address == address.removeprefix("::ffff:")


_ADDRESSES: Final = """
import sys
from minismtp.delivery.mx import HostFinder
from minismtp.services.resolver import Resolver
from minismtp.config.types import SocketAddress

own = [SocketAddress("0.0.0.0", 25), SocketAddress("::", 25)]
finder = HostFinder(Resolver([own[0]]), hostname="us.example", own=own, port=25)
for address in sys.argv[1:]:
    try:
        print([str(host) for host in finder.at(address, 25)])
    except Exception as error:
        print(error)
"""


@pytest.mark.parametrize("nonlocal_bind", ["0", "1"])
def test_addresses_of_all_interfaces_are_ours_and_no_others(
    require_program: Callable[[str], str], nonlocal_bind: str
) -> None:
    """This also holds if sockets may be bound to addresses that the machine does not have."""
    unshare = require_program("unshare")
    setup = "ip link set lo up; ip link add d0 type veth peer name d1; ip link set d0 up"
    setup += "; ip addr add 192.0.2.5/24 dev d0; ip addr add 2001:db8::5/64 dev d0 nodad"
    setup += f"; {'ip addr add 192.0.2.4/24 dev d0' if nonlocal_bind == '0' else 'true'}"
    bind = f"echo {nonlocal_bind} > /proc/sys/net/ipv4/ip_nonlocal_bind"
    second = {"0": "192.0.2.4", "1": "192.0.2.5"}[nonlocal_bind]
    addresses = (second, "::ffff:192.0.2.5", "2001:db8::5", "198.51.100.6", "2001:db9::6")
    program = [sys.executable, "-c", _ADDRESSES, *addresses]
    command = f"{setup}; {bind}; exec {shlex.join(program)}"
    found = subprocess.run(
        [unshare, "--net", "--mount", "sh", "-euc", f"mount -t sysfs none /sys; {command}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout.splitlines() == [
        f"550 5.4.6 mail for {second} loops back to this host",
        "550 5.4.6 mail for 192.0.2.5 loops back to this host",
        "550 5.4.6 mail for 2001:db8::5 loops back to this host",
        "['[198.51.100.6]:25']",
        "['[2001:db9::6]:25']",
    ], found.stderr


def test_another_server_of_this_machine_is_no_loop(nameserver: SocketAddress) -> None:
    resolver = Resolver([nameserver])
    own = [SocketAddress("127.0.0.1", 25)]
    elsewhere = HostFinder(resolver, hostname="mx.example.org", own=own, port=25)
    assert way(elsewhere, "elsewhere.test") == ["elsewhere.test[127.0.0.2]:25"]
    other_port = HostFinder(resolver, hostname="mx.example.org", own=own, port=2525)
    assert way(other_port, "here.test") == ["here.test[127.0.0.1]:2525"]


def test_a_dns_failure_behind_working_hosts_is_told_at_the_end(nameserver: SocketAddress) -> None:
    """A refusal by the known hosts must not be permanent then."""
    directory = HostFinder(Resolver([nameserver]), hostname="x.test", own=[], port=25)
    hosts = directory.by_mx("worse.test")
    assert str(next(hosts)) == ONE
    with pytest.raises(UnreachableError) as caught:
        next(hosts)
    assert not caught.value.final


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("two.test", ["two.test[2001:db8::2]:587", "two.test[198.51.100.2]:587"]),
        ("198.51.100.4", ["[198.51.100.4]:587"]),
        ("2001:db8::4", ["[2001:db8::4]:587"]),
        ("localhost", ["localhost[127.0.0.1]:587"]),  # the hosts file of this machine has it
    ],
)
def test_way_to_a_host(directory: HostFinder, name: str, wanted: list[str]) -> None:
    found = [str(host) for host in directory.at(name, 587)]
    assert found[-len(wanted) :] == wanted
    assert all(host.authentic for host in directory.at(name, 587))


def test_a_host_of_ours_that_is_not_found_may_be_found_later(directory: HostFinder) -> None:
    """A mistake in the configuration returns no mail."""
    with pytest.raises(UnreachableError) as caught:
        directory.at("gone.test", 587)
    assert caught.value.reply == "451 4.4.4 host gone.test has no address"
    assert not caught.value.final


def test_answers_are_kept_for_their_time_only(
    nameserver: SocketAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    resolve = dns.resolver.Resolver.resolve

    def noting(*arguments: Any, **options: Any) -> dns.resolver.Answer:  # noqa: ANN401
        asked.append(f"{arguments[1]} {arguments[2]}")
        return resolve(*arguments, **options)

    monkeypatch.setattr(dns.resolver.Resolver, "resolve", noting)
    resolver = Resolver([nameserver])
    for _ in range(3):
        assert resolver.lookup("one.test", "A").records[0].address == "198.51.100.1"
        assert not resolver.lookup("ONE.test", "MX").records
        assert not resolver.lookup("nowhere.test", "A").exists
        assert not resolver.lookup("nowhere.test", "MX").exists
    assert asked == ["one.test. A", "one.test. MX", "nowhere.test. A"]
    monkeypatch.setattr(resolver_module, "_LONGEST", 0.0)
    again = Resolver([nameserver])
    for _ in range(3):
        again.lookup("one.test", "A")
    assert asked[3:] == ["one.test. A"] * 3


def test_without_a_resolver_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Resolver.lookup.__kwdefaults__ or {}, "seconds", 0.2)
    with pytest.raises(UnansweredError, match=r"the DNS does not answer for one\.test A"):
        Resolver([SocketAddress("127.0.0.1", free_port())]).lookup("one.test", "A")


@pytest.mark.parametrize(
    ("text", "trusted"),
    [
        ("nameserver 127.0.0.53\n", True),
        ("nameserver 198.51.100.53\n", False),
        ("nameserver 198.51.100.53\noptions edns0 trust-ad\n", True),
        ("", True),  # the one of this machine, as resolv.conf(5) says
    ],
)
def test_the_system_says_whom_it_trusts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, trusted: bool
) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(text)
    monkeypatch.setattr(resolver_module, "_RESOLV_CONF", path)
    assert Resolver()._trusted is trusted  # noqa: SLF001


@pytest.mark.parametrize(
    "octets",
    [
        b"nameserver\nnameserver localhost\nnameserver 127.0.0.1 # this\nnameserver https://x/\n",
        b"# caf\xe9\nnameserver 127.0.0.1\n",
        b"options timeout:x\nnameserver 127.0.0.1\n",
        None,
    ],
    ids=["no addresses", "not UTF-8", "options", "directory"],
)
def test_lines_of_resolv_conf_that_libc_skips_are_skipped(
    octets: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "resolv.conf"
    if octets is None:
        path.mkdir()
    else:
        path.write_bytes(octets)
    monkeypatch.setattr(resolver_module, "_RESOLV_CONF", path)
    assert Resolver()._resolver.nameservers == ["127.0.0.1"]  # noqa: SLF001
    assert Resolver()._trusted  # noqa: SLF001
