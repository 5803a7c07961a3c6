"""One full mailbox among several recipients, with real Maildirs and a real Dovecot."""

from __future__ import annotations

import email
import email.policy
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from dovecot import Dovecot

if TYPE_CHECKING:
    from conftest import Configure, Launch, Running, Start

THREE: Final = list(itertools.permutations(["one", "full", "two"]))
ROUTE: Final = """
[[plugins]]
use = "mailboxes"
domains = ["example.org"]
aliases_file = "aliases"

[[plugins]]
use = "relay"
networks = ["127.0.0.0/8"]
"""
MAILDIR: Final = """
[[plugins]]
use = "maildir"
path = "mail/{local}"
quota = "64KiB"
"""
ALIASES: Final = """
team: one, inner
inner: full, bob@example.net
"""
OUT: Final = """
[outbound]
retry = ["{retry}"]
expire = "{expire}"
warn_after = "{warn_after}"

[[outbound.routes]]
domain = "example.net"
host = "{there}"
"""
CRASH: Final = '''
"""Crash at one mailbox."""
from minismtp import Address, hookimpl, plugin

@plugin
class Crash:
    @hookimpl
    def deliver(self, mailbox: Address) -> bool | None:
        if mailbox.local == "full":
            raise ZeroDivisionError("made by a test")
        return None
'''


def send(server: Running, *locals_: str, sender: str = "me@example.org") -> str:
    """Send a message and return the reply to its content."""
    with server.connect() as client:
        client.greet()
        client.command(f"MAIL FROM:<{sender}>")
        for local in locals_:
            address = local if "@" in local else f"{local}@example.org"
            assert client.command(f"RCPT TO:<{address}>").startswith("250")
        client.command("DATA")
        client.send("Subject: hello\r\n\r\nx\r\n.\r\n")
        return client.reply()


def queue(server: Running, *arguments: str) -> str:
    command = [sys.executable, "-m", "minismtp", "queue", *arguments]
    done = subprocess.run(
        [*command, "--config", str(server.config)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def is_empty(server: Running) -> bool:
    return queue(server, "list") == "the queue is empty"


def reports(server: Running, user: str = "me") -> list[tuple[str, str, str]]:
    """Return the notifications in a mailbox: action, recipient and status, sorted."""
    found = []
    for octets in server.mail(user):
        parsed = email.message_from_bytes(octets, policy=email.policy.default)
        _, delivery, *_ = parsed.iter_parts()
        for fields in list(delivery.iter_parts())[1:]:
            recipient = fields["Final-Recipient"].partition("; ")[2]
            found.append((fields["Action"], recipient, fields["Status"]))
    return sorted(found)


def fill(server: Running, user: str = "full") -> Path:
    """Fill a mailbox, and return the file that fills it."""
    box = server.directory / "mail" / user
    for name in ("new", "cur", "tmp"):
        (box / name).mkdir(parents=True, exist_ok=True)
    path = box / "cur" / "1.big.host,S=65530"
    path.write_bytes(bytes(65530))
    return path


def make_room(server: Running, user: str = "full") -> None:
    box = server.directory / "mail" / user
    (box / "cur" / "1.big.host,S=65530").unlink()
    (box / "maildirsize").unlink()


@pytest.fixture
def there(configure_at: Callable[[str], Configure], start: Start) -> Running:
    """Run a server for example.net."""
    plugins = '[[plugins]]\nuse = "mailboxes"\ndomains = ["example.net"]\n'
    return start(configure_at("there")(plugins=f"{plugins}{MAILDIR}"))


@pytest.fixture
def here(
    configure_at: Callable[[str], Configure], start: Start, there: Running
) -> Callable[..., Running]:
    """Return a function that starts the server whose mailbox may be full."""

    def make(
        plugins: str = MAILDIR, *, retry: str = "1h", expire: str = "1d", warn_after: str = "0s"
    ) -> Running:
        values = {"retry": retry, "expire": expire, "warn_after": warn_after}
        path = configure_at("here")(
            OUT.format(there=there.address(), **values), plugins=ROUTE + plugins
        )
        (path.parent / "aliases").write_text(ALIASES)
        (path.parent / "local_plugins" / "crash.py").write_text(CRASH)
        server = start(path)
        server.wait_for_log(" queue opened ")
        return server

    return make


def test_others_have_their_mail_and_the_full_mailbox_gets_it_when_it_has_room(
    here: Callable[..., Running],
) -> None:
    server = here()
    fill(server)
    for number, names in enumerate(THREE, 1):
        assert send(server, *names).startswith("250 ")
        assert len(server.mail("one")) == len(server.mail("two")) == number
    server.wait_for_log(" delivery deferred .*452 4.2.2 mailbox full", count=len(THREE))
    listed = json.loads(queue(server, "list", "--json"))
    assert [each["recipients"][0]["address"] for each in listed] == ["full@example.org"] * 6
    assert "452 4.2.2 mailbox full" in queue(server, "show", listed[0]["id"])
    assert server.mail("full") == []
    make_room(server)
    assert queue(server, "retry", "--to-domain", "example.org") == "6 recipients tried now"
    server.wait_until(lambda: len(server.mail("full")) == len(THREE))
    server.wait_until(lambda: is_empty(server))
    assert len(server.mail("one")) == len(server.mail("two")) == len(THREE)
    assert server.mail("me") == []


def test_only_recipient_that_is_full_is_left_to_the_client(here: Callable[..., Running]) -> None:
    server = here()
    fill(server)
    assert send(server, "full").startswith("452 4.2.2 mailbox full")
    assert is_empty(server)


def test_operator_steers_copies_that_wait_for_a_mailbox(here: Callable[..., Running]) -> None:
    server = here()
    fill(server)
    for _ in range(3):
        assert send(server, "full", "one").startswith("250 ")
    server.wait_for_log(" delivery deferred ", count=3)
    first, second, third = (each["id"] for each in json.loads(queue(server, "list", "--json")))
    assert queue(server, "hold", first) == "1 recipient held"
    assert queue(server, "remove", second) == "1 recipient removed"
    assert queue(server, "bounce", third) == "1 recipient returned"
    server.wait_until(lambda: reports(server) == [("failed", "full@example.org", "5.0.0")])
    make_room(server)
    assert queue(server, "release", first) == "1 recipient released"
    server.wait_until(lambda: len(server.mail("full")) == 1)
    server.wait_until(lambda: is_empty(server))
    assert len(server.mail("one")) == 3


def test_sender_hears_of_the_delay_and_of_the_end_of_that_copy_only(
    here: Callable[..., Running],
) -> None:
    server = here(retry="500ms", expire="4s", warn_after="1s")
    fill(server)
    assert send(server, "full", "one", "two").startswith("250 ")
    server.wait_until(
        lambda: (
            reports(server)
            == [("delayed", "full@example.org", "4.2.2"), ("failed", "full@example.org", "5.4.7")]
        )
    )
    server.wait_until(lambda: is_empty(server))


def test_nobody_is_told_where_the_message_has_no_sender(here: Callable[..., Running]) -> None:
    server = here(retry="500ms", expire="1s")
    fill(server)
    assert send(server, "full", "one", sender="").startswith("250 ")
    server.wait_for_log(" delivery failed .*to=full@example.org .*mailbox full")
    server.wait_until(lambda: is_empty(server))
    assert " notification " not in server.log


@pytest.mark.parametrize("order", [0, 1], ids=["alias first", "alias last"])
def test_nested_alias_with_one_full_mailbox(
    here: Callable[..., Running], there: Running, order: int
) -> None:
    server = here()
    fill(server)
    assert send(server, *["team", "full", "two"][:: 1 - 2 * order]).startswith("250 ")
    there.wait_until(lambda: there.mail("bob"))
    assert [len(server.mail(user)) for user in ("one", "two", "full")] == [1, 1, 0]
    server.wait_for_log(" delivery deferred .*to=full@example.org")
    make_room(server)
    queue(server, "retry", "--to-domain", "example.org")
    server.wait_until(lambda: is_empty(server))
    assert [len(server.mail(user)) for user in ("one", "two", "full")] == [1, 1, 1]
    assert len(there.mail("bob")) == 1


@pytest.mark.parametrize(
    "names", list(itertools.permutations(["full", "bob@example.net"])), ids=",".join
)
def test_copy_that_leaves_does_not_wait_for_a_full_mailbox(
    here: Callable[..., Running], there: Running, names: tuple[str, ...]
) -> None:
    server = here()
    fill(server)
    assert send(server, *names).startswith("250 ")
    there.wait_until(lambda: there.mail("bob"))
    server.wait_for_log(" delivery deferred .*to=full@example.org")


@pytest.mark.parametrize("names", THREE, ids=",".join)
def test_plugin_that_crashes_at_one_mailbox_holds_up_no_other(
    here: Callable[..., Running], names: tuple[str, ...]
) -> None:
    server = here('[[plugins]]\nuse = "crash"\n' + MAILDIR)
    assert send(server, *names).startswith("250 ")
    assert [len(server.mail(user)) for user in ("one", "two", "full")] == [1, 1, 0]
    server.wait_for_log(" delivery deferred .*to=full@example.org .*451 4.3.0")


@pytest.mark.parametrize("names", THREE, ids=",".join)
def test_mailbox_that_cannot_be_written_holds_up_no_other(
    here: Callable[..., Running], names: tuple[str, ...]
) -> None:
    server = here()
    box = server.directory / "mail" / "full"
    box.parent.mkdir(exist_ok=True)
    box.write_text("no directory\n")
    assert send(server, *names).startswith("250 ")
    assert [len(server.mail(user)) for user in ("one", "two")] == [1, 1]
    server.wait_for_log(" delivery deferred .*to=full@example.org .*451 4.3.0")
    box.unlink()
    queue(server, "retry", "--to-domain", "example.org")
    server.wait_until(lambda: len(server.mail("full")) == 1)


def test_copies_are_stored_by_the_plugins_of_the_listener_that_took_them(
    here: Callable[..., Running],
) -> None:
    """The process that delivers stores the copy; a plugin for other listeners is not called."""
    other = '[[listeners]]\nname = "other"\naddress = "127.0.0.1:0"\ntls = "none"\n'
    elsewhere = '[[plugins]]\nuse = "maildir"\nname = "other"\nlisteners = ["other"]\n'
    server = here(f'{other}{elsewhere}path = "wrong/{{local}}"\n{MAILDIR}')
    fill(server)
    assert send(server, "full", "one").startswith("250 ")
    server.wait_for_log(" delivery deferred .*452 4.2.2")
    make_room(server)
    queue(server, "retry", "--to-domain", "example.org")
    server.wait_until(lambda: len(server.mail("full")) == 1)
    assert not (server.directory / "wrong").exists()


# Dovecot


@pytest.fixture(scope="module", params=["temporary", "permanent"])
def dovecot(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    require_program: Callable[[str], str],
) -> Iterator[tuple[Dovecot, str]]:
    """Run a Dovecot in which the user `full` may have one small message."""
    directory = tmp_path_factory.mktemp("dovecot")
    programs = require_program("dovecot"), require_program("unshare")
    more = f"""
lmtp_save_to_detail_mailbox = no
protocol lmtp {{
  mail_plugins = quota
}}
plugin {{
  quota_rule = *:storage=100M
}}
quota_full_tempfail = {"yes" if request.param == "temporary" else "no"}
"""
    users = "full:::::::userdb_quota_rule=*:messages=1\none:::::::\ntwo:::::::\nme:::::::"
    running = Dovecot(*programs, directory, directory / "mail", more=more, users=users)
    yield running, request.param
    running.stop()
    shutil.rmtree(directory, ignore_errors=True)


def count(dovecot: Dovecot, user: str) -> int:
    with dovecot.log_in(user) as client:
        return int(client.select()[1][0] or b"0")


def test_dovecot_over_quota_holds_up_no_other(launch: Launch, dovecot: tuple[Dovecot, str]) -> None:
    store, how = dovecot
    plugin = f'[[plugins]]\nuse = "lmtp"\naddress = "127.0.0.1:{store.lmtp_port}"\n'
    route = '[[plugins]]\nuse = "mailboxes"\ndomains = ["example.org"]\n'
    with launch('[outbound]\nretry = ["1h"]\n', plugins=route + plugin) as server:
        assert send(server, "full", sender="").startswith("250 ")
        for number, names in enumerate(THREE, 1):
            assert send(server, *names).startswith("250 ")
            assert [count(store, user) for user in ("one", "two", "full")] == [number, number, 1]
        if how == "temporary":
            server.wait_for_log(" delivery deferred .*to=full@.*452 4.2.2", count=len(THREE))
            assert count(store, "me") == 0
        else:
            server.wait_for_log(" delivery failed .*to=full@.*552 5.2.2", count=len(THREE))
            server.wait_until(lambda: count(store, "me") == len(THREE))
        said = send(server, "full")
        assert re.match("452 4.2.2" if how == "temporary" else "552 5.2.2", said)
