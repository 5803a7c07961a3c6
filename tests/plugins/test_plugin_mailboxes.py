"""The recipients of this server and the routes of their copies, as configured."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fakes
import pytest
from minismtp_plugins.mailboxes import Mailboxes

from minismtp import Address, Defer, Envelope, Local, Recipient, Reject, Session
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build

SESSION = Session(id="s", listener="smtp", kind="mx", hostname="MX.example.net", peer="192.0.2.1")


def routed(
    mailboxes: Mailboxes, address: Address, sender: str = "a@example.com"
) -> Recipient | None:
    """Return the recipient with its route, which may be None."""
    envelope = Envelope(
        id="e", reverse_path=Address.parse(sender) if sender else None, listener="smtp",
        peer="192.0.2.1", helo="x", login=None, arrived=0.0,
    )  # fmt: skip
    recipient = Recipient(address)
    recipient.route = mailboxes.route(SESSION, envelope, recipient)
    return recipient if recipient.route else None


def route(mailboxes: Mailboxes, local: str, domain: str = "example.org") -> list[str] | None:
    """Return the mailboxes as text."""
    found = routed(mailboxes, Address(local, domain))
    return None if found is None else [str(address) for address in found.mailboxes]


def elsewhere(mailboxes: Mailboxes, local: str, sender: str = "a@example.com") -> list[str]:
    """Return the remote addresses as text, with their sender."""
    found = routed(mailboxes, Address(local, "example.org"), sender)
    assert found is not None
    return [
        f"{address} from {relay.sender}" if relay.sender else str(address)
        for relay in found.relays
        for address in relay.addresses
    ]


def with_aliases(tmp_path: Path, text: str, **options: list[str] | str) -> Mailboxes:
    path = tmp_path / "aliases"
    path.write_text(text)
    table = {"domains": ["example.org", "example.com"], "aliases_file": str(path), **options}
    return build(Mailboxes, table, file="", key="", base=tmp_path)


def assert_unknown(mailboxes: Mailboxes, local: str, domain: str = "example.org") -> None:
    with pytest.raises(Reject) as refusal:
        route(mailboxes, local, domain)
    assert str(refusal.value.reply) == "550 5.1.1 no such mailbox"


@pytest.mark.parametrize("letter", ["\u023a", "\u0130"])
def test_mailbox_is_an_address_though_lower_case_would_make_it_too_long(letter: str) -> None:
    address = Address.parse(f"{letter * 256}@example.org")
    found = route(Mailboxes(domains=["example.org"]), address.local)
    assert found == [str(Address.parse(str(address)))]


@pytest.fixture
def _seconds_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "minismtp.values.durable_files.monotonic", itertools.count(10**9, 2).__next__
    )


def test_without_users_every_local_part_has_a_mailbox() -> None:
    assert route(Mailboxes(domains=["example.org"]), "anybody") == ["anybody@example.org"]


def test_listed_users_are_the_only_ones() -> None:
    mailboxes = Mailboxes(domains=["example.org"], users=["Alice"])
    assert route(mailboxes, "alice") == ["alice@example.org"]
    assert_unknown(mailboxes, "bob")


def test_other_domains_are_left_to_other_plugins() -> None:
    mailboxes = Mailboxes(domains=["example.org"], catch_all="all")
    assert route(mailboxes, "alice", "example.net") is None
    assert route(mailboxes, "alice", "sub.example.org") is None


def test_each_domain_has_its_own_mailboxes() -> None:
    mailboxes = Mailboxes(domains=["example.org", "EXAMPLE.com"], users=["alice"])
    assert route(mailboxes, "alice", "example.com") == ["alice@example.com"]


def test_case_of_local_part_makes_no_difference() -> None:
    assert route(Mailboxes(domains=["example.org"]), "AliCE") == ["alice@example.org"]


@pytest.mark.parametrize("ours", ["bücher.example", "xn--bcher-kva.example"])
@pytest.mark.parametrize("theirs", ["bücher.example", "xn--bcher-kva.example"])
def test_both_forms_of_an_idna_domain_are_one(ours: str, theirs: str) -> None:
    """RFC 5890 section 2.3.2.4."""
    found = route(Mailboxes(domains=[ours]), "a", theirs)
    assert found == ["a@xn--bcher-kva.example"]


def test_address_literal_can_be_a_domain() -> None:
    assert route(Mailboxes(domains=["[192.0.2.1]"]), "a", "[192.0.2.1]") == ["a@[192.0.2.1]"]


@pytest.mark.parametrize("local", ["../../etc/passwd", "a/b", "a\0b", ".", "a b", "\udc80"])
def test_strange_local_part_is_only_a_name(local: str) -> None:
    anybody = Mailboxes(domains=["example.org"])
    found = routed(anybody, Address(local, "example.org"))
    assert found is not None
    assert found.route == Local(Address(local, "example.org"))
    assert_unknown(Mailboxes(domains=["example.org"], users=["alice"]), local)


def test_tag_is_left_out_of_the_mailbox() -> None:
    assert route(Mailboxes(domains=["example.org"]), "alice+list+x") == ["alice@example.org"]
    listed = Mailboxes(domains=["example.org"], users=["alice"])
    assert route(listed, "Alice+List") == ["alice@example.org"]
    assert_unknown(listed, "bob+list")


def test_user_with_the_separator_in_the_name_comes_before_the_tag() -> None:
    mailboxes = Mailboxes(domains=["example.org"], users=["c", "c++"])
    assert route(mailboxes, "c++") == ["c++@example.org"]


def test_user_with_a_domain_is_in_that_domain_only(tmp_path: Path) -> None:
    (tmp_path / "users").write_text("Alice@Example.COM\ncarol\n")
    mailboxes = Mailboxes(
        domains=["example.org", "example.com"],
        users=["bob@example.org"],
        users_file=tmp_path / "users",
    )
    assert route(mailboxes, "alice+tag", "example.com") == ["alice@example.com"]
    assert_unknown(mailboxes, "alice")
    assert route(mailboxes, "bob") == ["bob@example.org"]
    assert_unknown(mailboxes, "bob", "example.com")
    assert route(mailboxes, "carol", "example.com") == ["carol@example.com"]


def test_alias_leads_to_a_user_of_another_of_our_domains(tmp_path: Path) -> None:
    (tmp_path / "aliases").write_text("info@example.org: alice@example.com\n")
    domains, aliases = ["example.org", "example.com"], tmp_path / "aliases"
    users = ["alice@example.com"]
    mailboxes = Mailboxes(domains=domains, aliases_file=aliases, users=users)
    assert route(mailboxes, "info") == ["alice@example.com"]
    with pytest.raises(ValueError, match="leads to alice, which is neither a user nor an alias"):
        Mailboxes(domains=domains, aliases_file=aliases, users=["alice@example.org"])


def test_users_file_with_an_address_of_another_domain_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "users").write_text("alice\nbob@example.net\n")
    with pytest.raises(ValueError, match=r"users:2: 'bob@example\.net' is not an address at one"):
        Mailboxes(domains=["example.org"], users_file=tmp_path / "users")


@pytest.mark.parametrize("spelled", ["a b", '"a b"', '"A B"', r'"a\ b"'])
def test_users_may_stand_in_quotes_as_aliases_do(tmp_path: Path, spelled: str) -> None:
    (tmp_path / "users").write_text(f"alice\n{spelled}\n")
    options = {"domains": ["example.org"], "users_file": "users"}
    from_file = build(Mailboxes, options, file="", key="", base=tmp_path)
    listed = Mailboxes(domains=["example.org"], users=["alice", spelled])
    caught = Mailboxes(domains=["example.org"], users=["a b"], catch_all=spelled)
    person = Mailboxes(domains=["example.org"], users=["a b"], postmaster=spelled)
    for mailboxes, local in (
        (from_file, "a b"), (listed, "a b"), (caught, "x"), (person, "postmaster")
    ):  # fmt: skip
        assert route(mailboxes, local) == ['"a b"@example.org']


def test_user_in_quotes_that_is_no_local_part_is_a_mistake(tmp_path: Path) -> None:
    options = {"domains": ["example.org"], "users": ['"a@example.org"']}
    with pytest.raises(ConfigError, match="is no local part"):
        build(Mailboxes, options, file="", key="", base=tmp_path)


def test_separator_can_be_changed_and_switched_off() -> None:
    dash = Mailboxes(domains=["example.org"], users=["alice"], separator="-")
    assert route(dash, "alice-list") == ["alice@example.org"]
    assert_unknown(dash, "alice+list")
    assert_unknown(Mailboxes(domains=["example.org"], users=["alice"], separator=""), "alice+x")


@pytest.mark.parametrize("local", ["+tag", "+", ""])
def test_tag_alone_is_nobody(local: str) -> None:
    assert_unknown(Mailboxes(domains=["example.org"]), local)


def test_catch_all_takes_what_no_user_matches() -> None:
    mailboxes = Mailboxes(domains=["example.org"], users=["alice"], catch_all="Rest")
    assert route(mailboxes, "bob") == ["rest@example.org"]
    assert route(mailboxes, "alice+x") == ["alice@example.org"]


def test_catch_all_without_users_takes_everything() -> None:
    assert route(Mailboxes(domains=["example.org"], catch_all="me"), "bob") == ["me@example.org"]


def test_catch_all_can_be_an_alias(tmp_path: Path) -> None:
    mailboxes = with_aliases(tmp_path, "rest: a, b", users=["a", "b"], catch_all="rest")
    assert route(mailboxes, "nobody") == ["a@example.org", "b@example.org"]


@pytest.mark.parametrize(
    ("options", "mailbox"),
    [
        ({}, "postmaster"),
        ({"postmaster": "Alice"}, "alice"),
        ({"catch_all": "rest"}, "rest"),
        ({"users": ["postmaster", "alice"], "catch_all": "rest"}, "postmaster"),
    ],
    ids=["own mailbox", "option", "catch-all", "user"],
)
def test_postmaster_is_always_accepted(options: dict[str, str], mailbox: str) -> None:
    """RFC 5321 section 4.5.1."""
    table = {"domains": ["example.org"], "users": ["alice"], **options}
    mailboxes = build(Mailboxes, table, file="", key="", base=Path())
    assert route(mailboxes, "PostMaster") == [f"{mailbox}@example.org"]


def test_postmaster_can_be_an_alias(tmp_path: Path) -> None:
    mailboxes = with_aliases(
        tmp_path, "postmaster: alice", users=["alice"], catch_all="rest", postmaster="x"
    )
    assert route(mailboxes, "postmaster") == ["alice@example.org"]


def test_postmaster_option_can_name_an_alias(tmp_path: Path) -> None:
    mailboxes = with_aliases(tmp_path, "staff: alice", users=["alice"], postmaster="staff")
    assert route(mailboxes, "postmaster") == ["alice@example.org"]


def test_users_of_the_host_itself_are_those_of_the_first_domain(tmp_path: Path) -> None:
    mailboxes = with_aliases(tmp_path, "root: alice", users=["alice"])
    assert route(mailboxes, "Postmaster", "mx.example.net") == ["postmaster@example.org"]
    assert route(mailboxes, "alice", "mx.example.net") == ["alice@example.org"]
    assert route(mailboxes, "root", "mx.example.net") == ["alice@example.org"]
    assert route(mailboxes, "mallory", "mx.example.net") is None  # may be another plugin's
    assert route(mailboxes, "alice", "example.net") is None


@pytest.mark.parametrize(
    ("called", "literal"),
    [("192.0.2.1", "[192.0.2.1]"), ("2001:db8::1", "[IPv6:2001:DB8:0::1]")],
)
def test_users_are_at_the_address_that_was_called_too(called: str, literal: str) -> None:
    # As manuals of devices advise, so that these need no DNS
    mailboxes = Mailboxes(domains=["example.org"], users=["alice"])
    session, envelope = replace(SESSION, local=called), fakes.envelope()
    recipient = Recipient(Address.parse(f"alice@{literal}"))
    assert mailboxes.route(session, envelope, recipient) == Local(Address("alice", "example.org"))
    for other in ("mallory@" + literal, "alice@[192.0.2.2]", "alice@[IPv6:2001:db8::2]"):
        assert mailboxes.route(session, envelope, Recipient(Address.parse(other))) is None
    assert mailboxes.route(replace(SESSION, local=""), envelope, recipient) is None


def test_users_file_lists_one_local_part_a_line(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text("# people\nAlice\n\n bob # since May\nc#\n")
    mailboxes = Mailboxes(domains=["example.org"], users=["dora"], users_file=path)
    for local in ("alice", "bob", "c#", "dora"):
        assert route(mailboxes, local) == [f"{local}@example.org"]
    assert_unknown(mailboxes, "people")


def test_users_file_of_comments_means_nobody(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text("# nobody yet\n")
    assert_unknown(Mailboxes(domains=["example.org"], users_file=path), "alice")


@pytest.mark.usefixtures("_seconds_pass")
def test_users_file_that_is_empty_at_the_start_puts_recipients_off(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.touch()
    mailboxes = Mailboxes(domains=["example.org"], users_file=path)
    with pytest.raises(Defer, match=r"^451 4\.3\.0 the list of mailboxes cannot be read now"):
        route(mailboxes, "alice")
    path.write_text("alice\n")
    assert route(mailboxes, "alice") == ["alice@example.org"]
    assert_unknown(mailboxes, "stranger")


def test_aliases_file_may_be_empty_at_the_start(tmp_path: Path) -> None:
    mailboxes = with_aliases(tmp_path, "", users=["alice"])
    assert route(mailboxes, "alice") == ["alice@example.org"]


def test_alias_leads_to_all_its_targets_in_the_domain_of_the_recipient(tmp_path: Path) -> None:
    mailboxes = with_aliases(tmp_path, "# who\nSales: Alice, bob # two\n", users=["alice", "bob"])
    assert route(mailboxes, "sales", "example.com") == ["alice@example.com", "bob@example.com"]
    assert route(mailboxes, "SALES+x") == ["alice@example.org", "bob@example.org"]


def test_target_can_be_an_address_at_another_domain_of_ours(tmp_path: Path) -> None:
    mailboxes = with_aliases(tmp_path, "sales: alice@EXAMPLE.com, alice", users=["alice"])
    assert route(mailboxes, "sales") == ["alice@example.com", "alice@example.org"]


def test_aliases_lead_through_aliases_and_name_nobody_twice(tmp_path: Path) -> None:
    text = "all: sales, staff@example.com\nsales: a, b\nstaff: b, c, sales\n"
    mailboxes = with_aliases(tmp_path, text, users=["a", "b", "c"])
    assert route(mailboxes, "all") == [
        *("a@example.org", "b@example.org"),
        *("b@example.com", "c@example.com", "a@example.com"),
    ]


def test_alias_loop_ends(tmp_path: Path) -> None:
    mailboxes = with_aliases(tmp_path, "x: y, alice\ny: x\n", users=["alice"])
    assert route(mailboxes, "x") == ["alice@example.org"]
    assert route(mailboxes, "y") == ["alice@example.org"]


def test_long_chain_of_aliases_is_followed(tmp_path: Path) -> None:
    text = "".join(f"a{number}: a{number + 1}\n" for number in range(2000))
    assert route(with_aliases(tmp_path, text), "a0") == ["a2000@example.org"]


def test_alias_that_names_itself_keeps_its_own_mailbox(tmp_path: Path) -> None:
    mailboxes = with_aliases(tmp_path, "alice: alice, bob", users=["alice", "bob"])
    assert route(mailboxes, "alice") == ["alice@example.org", "bob@example.org"]


def test_alias_comes_before_the_mailbox_of_the_same_name(tmp_path: Path) -> None:
    assert route(with_aliases(tmp_path, "old: new"), "old") == ["new@example.org"]
    assert route(with_aliases(tmp_path, "old: new"), "other") == ["other@example.org"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sales alice", "aliases:1: expected `alias: target, target`"),
        ("\nsales:", "aliases:2: expected `alias: target, target`"),
        ("sales: alice,, alice", "aliases:1: expected"),
        (": alice", "aliases:1: expected"),
        ("a: alice\nA: alice", "aliases:2: a stands here twice"),
        ("a@example.net: alice", "aliases:1: a@example.net is not an address at our domains"),
        ("@example.net: alice", "aliases:1: @example.net is not an address at our domains"),
        ("a: x@", "aliases:1: 'x@' is not an address of the form local@domain"),
        ("a: al ice", "aliases:1: 'al ice@example.org' is not an address"),
        ("a: |/bin/vacation", "aliases:1: |/bin/vacation is no address; programs"),
        ("a: :include:/list", "aliases:1: :include:/list is no address; programs"),
        ("a: bob", "aliases: a leads to bob, which is neither a user nor an alias"),
        ("a: a", "aliases: a leads to a, which is neither a user"),
        ("a: b\nb: a", "aliases: a leads only back to itself"),
    ],
    ids=lambda value: value.replace("\n", "|"),
)
def test_fault_in_aliases_is_named(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as fault:
        with_aliases(tmp_path, text, users=["alice"])
    assert f"aliases_file: {tmp_path}/{problem}" in str(fault.value)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"domains": []}, "domains: expected at least one domain"),
        ({"domains": ["a@example.org"]}, "domains: 'a@example.org' is not a domain"),
        ({"domains": ["example.org", ""]}, "domains: '' is not a domain"),
        ({"domains": ["example.org"], "postmaster": ""}, "postmaster: expected"),
        ({"domains": ["example.org"], "users_file": "none"}, "none: No such file or directory"),
        ({}, "domains"),
    ],
    ids=str,
)
def test_wrong_option_is_named(tmp_path: Path, table: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError) as fault:
        build(Mailboxes, table, file="c.toml", key="plugins[0]", base=tmp_path)
    assert problem in str(fault.value)


@pytest.mark.usefixtures("_seconds_pass")
def test_changed_files_are_taken_on_and_a_broken_one_is_not(tmp_path: Path) -> None:
    users, aliases = tmp_path / "users", tmp_path / "aliases"
    users.write_text("alice\n")
    aliases.write_text("")
    mailboxes = Mailboxes(domains=["example.org"], users_file=users, aliases_file=aliases)
    assert_unknown(mailboxes, "bob")
    users.write_text("alice\nbob\n")
    aliases.write_text("sales: bob\n")
    assert route(mailboxes, "sales") == ["bob@example.org"]
    aliases.write_text("sales: nobody\n")
    assert route(mailboxes, "sales") == ["bob@example.org"]


def replaced_by_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


FAULTS: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
    "blank": lambda path: path.write_bytes(b"\n \n"),
    "zeros": lambda path: path.write_bytes(bytes(4096)),
    "a directory": replaced_by_a_directory,
}


@pytest.mark.usefixtures("_seconds_pass")
@pytest.mark.parametrize("file", ["users", "aliases"])
@pytest.mark.parametrize("fault", FAULTS)
def test_file_that_cannot_be_used_puts_recipients_off(
    tmp_path: Path, fault: str, file: str
) -> None:
    users, aliases = tmp_path / "users", tmp_path / "aliases"
    users.write_text("alice\n")
    aliases.write_text("sales: alice\n")
    mailboxes = Mailboxes(domains=["example.org"], users_file=users, aliases_file=aliases)
    assert route(mailboxes, "sales") == ["alice@example.org"]
    FAULTS[fault](tmp_path / file)
    for name in ("alice", "sales", "stranger"):
        with pytest.raises(
            Defer, match=r"^451 4\.3\.0 the list of mailboxes cannot be read now"
        ) as refusal:
            route(mailboxes, name)
        assert file in str(refusal.value.__cause__)  # which the log has as the reason
    assert route(mailboxes, "alice", "elsewhere.example") is None
    if (tmp_path / file).exists():
        (tmp_path / file).rename(tmp_path / "aside")
    (tmp_path / file).write_text({"users": "alice\n", "aliases": "# nobody\n"}[file])
    assert route(mailboxes, "alice") == ["alice@example.org"]
    assert_unknown(mailboxes, "stranger")


# Aliases that lead elsewhere


def test_alias_may_lead_to_mailboxes_and_elsewhere(tmp_path: Path) -> None:
    text = "alice: alice, Al.Ice@EXAMPLE.net\nsales: alice, bob@example.com\n"
    mailboxes = with_aliases(tmp_path, text, users=["alice", "bob"])
    assert route(mailboxes, "sales") == ["bob@example.com", "alice@example.org"]
    assert elsewhere(mailboxes, "Sales+x") == ["Al.Ice@example.net"]
    assert route(mailboxes, "alice") == ["alice@example.org"]


def test_alias_may_lead_elsewhere_only(tmp_path: Path) -> None:
    mailboxes = with_aliases(tmp_path, "bob: bob@example.net, bob@b\u00fccher.example\n")
    assert route(mailboxes, "bob") == []
    assert elsewhere(mailboxes, "bob") == ["bob@example.net", "bob@xn--bcher-kva.example"]


def test_alias_can_be_an_address(tmp_path: Path) -> None:
    text = "info@EXAMPLE.com: alice\ninfo: bob\n"
    mailboxes = with_aliases(tmp_path, text, users=["alice", "bob"])
    assert route(mailboxes, "info", "example.com") == ["alice@example.com"]
    assert route(mailboxes, "info+x", "example.org") == ["bob@example.org"]


def test_alias_can_be_all_of_a_domain_that_nothing_else_is_said_of(tmp_path: Path) -> None:
    text = "@example.com: rest@example.net\ninfo: alice\n"
    mailboxes = with_aliases(tmp_path, text, users=["alice"])
    rest = routed(mailboxes, Address("whoever", "example.com"))
    assert rest is not None
    assert rest.relays[0].addresses == (Address("rest", "example.net"),)
    assert route(mailboxes, "alice", "example.com") == ["alice@example.com"]
    assert route(mailboxes, "info", "example.com") == ["alice@example.com"]
    assert_unknown(mailboxes, "whoever")


def test_domain_can_be_another_name_of_a_domain(tmp_path: Path) -> None:
    text = "@example.com: @example.org, @example.net\n"
    mailboxes = with_aliases(tmp_path, text, users=["Alice"])
    found = routed(mailboxes, Address("Whoever+X", "example.com"))
    assert found is not None
    assert found.mailboxes == (Address("whoever", "example.org"),)
    assert found.relays[0].addresses == (Address("Whoever+X", "example.net"),)


def test_domains_that_lead_to_each_other_end(tmp_path: Path) -> None:
    text = "@example.com: @example.org\n@example.org: @example.com\n"
    with pytest.raises(ConfigError, match="leads only back to itself"):
        with_aliases(tmp_path, text, users=["alice"])


def test_target_with_a_tag_is_the_user(tmp_path: Path) -> None:
    assert route(with_aliases(tmp_path, "a: alice+a", users=["alice"]), "a") == [
        "alice@example.org"
    ]


# Senders of forwarded mail


@pytest.fixture
def forwarder(tmp_path: Path) -> Mailboxes:
    (tmp_path / "srs").write_text("a secret of sixteen\n")
    text, path = "bob: bob@example.net\n", "srs"
    return with_aliases(tmp_path, text, users=["alice"], srs_secret_file=path)


def test_sender_is_left_as_it_is_without_a_secret(tmp_path: Path) -> None:
    assert elsewhere(with_aliases(tmp_path, "bob: b@example.net"), "bob") == ["b@example.net"]


def test_sender_becomes_an_address_of_ours_that_leads_back(forwarder: Mailboxes) -> None:
    [way] = elsewhere(forwarder, "bob", "Jo.Doe@sender.example")
    sender = Address.parse(way.removeprefix("bob@example.net from "))
    assert sender.domain == "example.org"
    assert sender.local.startswith("SRS0=")
    assert sender.local.endswith("=sender.example=Jo.Doe")
    for local in (sender.local, sender.local.lower()):
        back = routed(forwarder, Address(local, "example.org"), sender="")
        assert back is not None
        assert str(back.relays[0].addresses[0]).lower() == "jo.doe@sender.example"
        assert back.relays[0].sender is None


@pytest.mark.parametrize("sender", ["", "alice@example.com"])
def test_bounces_and_our_own_senders_need_no_rewriting(forwarder: Mailboxes, sender: str) -> None:
    assert elsewhere(forwarder, "bob", sender) == ["bob@example.net"]


def test_address_that_holds_a_sender_takes_bounces_only(forwarder: Mailboxes) -> None:
    [way] = elsewhere(forwarder, "bob", "jo@sender.example")
    sender = Address.parse(way.removeprefix("bob@example.net from "))
    with pytest.raises(Reject, match=r"550 5\.7\.1 this address takes delivery notifications only"):
        routed(forwarder, sender, "spammer@evil.example")


@pytest.mark.parametrize(
    "local",
    ["SRS0=AAAAAA=AA=victim.example=joe", "SRS0=x", "SRS0=", "srs1=AAAAAA=victim.example==x=y"],
)
def test_address_that_we_have_not_made_is_nobody(forwarder: Mailboxes, local: str) -> None:
    with pytest.raises(Reject, match=r"550 5\.1\.1 not an address of this server: wrong hash"):
        routed(forwarder, Address(local, "example.org"), sender="")


def test_rewritten_address_is_ordinary_at_other_domains(forwarder: Mailboxes) -> None:
    assert_unknown(forwarder, "alice2")
    assert routed(forwarder, Address("SRS0=x=y=z=joe", "example.net"), sender="") is None


@pytest.mark.parametrize(
    ("options", "text", "problem"),
    [
        ({"srs_secret_file": "none"}, "", "none: No such file or directory"),
        ({"srs_secret_file": "srs"}, "short\n", "srs_secret_file: {}/srs: expected a secret of 16"),
        ({"srs_secret_file": "srs"}, "\n", "srs_secret_file: {}/srs: expected a secret of 16"),
        ({"srs_domain": "srs.example.org"}, "", "srs_domain: expected srs_secret_file too"),
    ],
)
def test_fault_of_the_secret_is_named(
    tmp_path: Path, options: dict[str, str], text: str, problem: str
) -> None:
    (tmp_path / "srs").write_text(text)
    table = {"domains": ["example.org"], **options}
    with pytest.raises(ConfigError) as fault:
        build(Mailboxes, table, file="", key="", base=tmp_path)
    assert problem.format(tmp_path) in str(fault.value)


def test_mail_leaves_without_a_hook_unless_senders_are_rewritten(tmp_path: Path) -> None:
    assert Mailboxes(domains=["example.org"]).unused_hooks == ("on_send",)
    secret = tmp_path / "secret"
    secret.write_text("0123456789abcdef0123456789abcdef\n")
    rewriting = Mailboxes(domains=["example.org"], srs_secret_file=secret)
    assert rewriting.unused_hooks == ()
