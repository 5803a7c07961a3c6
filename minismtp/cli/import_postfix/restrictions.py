"""smtpd_*_restrictions: each word becomes a plugin, is part of minismtp, or is reported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from minismtp.cli.import_postfix.access_tables import carry_access
from minismtp.cli.import_postfix.draft import Table
from minismtp.cli.import_postfix.logins import trusted_networks
from minismtp.cli.import_postfix.migration import Migration
from minismtp.cli.postfix_files.main_cf import MainCf
from minismtp.cli.postfix_files.text import PostfixError, unbraced, words
from minismtp.config.types import parse_domain

STAGES: Final = tuple(
    f"smtpd_{stage}_restrictions"
    for stage in ("client", "helo", "sender", "relay", "recipient", "data", "end_of_data")
)
_BUILT_IN: Final = frozenset(
    {
        *("permit_mynetworks", "permit_sasl_authenticated", "permit_auth_destination", "permit"),
        *("permit_tls_clientcerts", "permit_tls_all_clientcerts", "permit_inet_interfaces"),
        *("reject_unauth_destination", "defer_unauth_destination", "reject", "defer"),
        *("reject_unlisted_recipient", "check_relay_domains", "reject_plaintext_session"),
        *("reject_non_fqdn_recipient", "reject_unknown_recipient_domain"),
        *("reject_non_fqdn_sender", "reject_multi_recipient_bounce", "reject_unlisted_sender"),
    }
)
_LISTENERS: Final = {
    "reject_sender_login_mismatch": "match_sender",
    "reject_authenticated_sender_login_mismatch": "match_sender",
    "reject_known_sender_login_mismatch": "match_sender",
    "reject_unauth_pipelining": "strict_pipelining",
}
_HELO: Final = {
    "reject_invalid_helo_hostname": ("unqualified", ""),
    "reject_invalid_hostname": ("unqualified", ""),
    "reject_non_fqdn_helo_hostname": ("unqualified", ""),
    "reject_non_fqdn_hostname": ("unqualified", ""),
    "reject_unknown_helo_hostname": ("unresolvable", "unknown_hostname_reject_code"),
    "reject_unknown_hostname": ("unresolvable", "unknown_hostname_reject_code"),
}
_NAMES: Final = {
    "reject_unknown_client_hostname": ("missing", "unconfirmed"),
    "reject_unknown_client": ("missing", "unconfirmed"),
    "reject_unknown_reverse_client_hostname": ("missing",),
}
_LISTS: Final = {
    "reject_rbl_client": (1.0, "address"),
    "defer_rbl_client": (1.0, "address"),
    "reject_rhsbl_sender": (1.0, "sender"),
    "reject_rhsbl_helo": (1.0, "helo"),
    "permit_dnswl_client": (-10.0, "address"),
}
_WITH_ARGUMENT: Final = re.compile(
    r"check_\w+|(?:reject|defer|permit)_(?:rbl|rhsbl|dnswl|rhswl)_\w+|sleep"
)
_OCTET: Final = re.compile(r"\[([0-9.;]+)\]|([0-9]+)")


def carry_restrictions(migration: Migration, main: MainCf) -> None:
    """Carry over the restrictions of the service for mail of other servers."""
    for name in STAGES:
        own = main.is_set(name)
        place = main.place(name) if own else ""
        for word, argument in _pairs(main.value(name)):
            try:
                _carry(migration, name, word, argument, place)
            except PostfixError as error:
                migration.by_hand(name, f"{word} {argument}".rstrip() + f": {error}", place)
        if own:
            migration.carried(name, "the plugins relay and mailboxes", main.place(name))
    for name in ("smtpd_delay_reject", "smtpd_relay_before_recipient_restrictions"):
        migration.unneeded(name, "filters decide at MAIL or later, so that users can log in")
    for name in (
        "disable_vrfy_command",
        "strict_rfc821_envelopes",
        "smtpd_reject_unlisted_recipient",
    ):
        migration.unneeded(name, "minismtp does that always, where it makes sense")
    name = "smtpd_helo_required"
    migration.unneeded(name, "MAIL without HELO or EHLO is always refused")


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    """Yield each restriction with its argument, or ""."""
    rest = iter(words(text))
    for word in rest:
        if word == "warn_if_reject":
            warned = next(rest, "")
            argument = next(rest, "") if _WITH_ARGUMENT.fullmatch(warned) else ""
            yield word, f"{warned} {argument}".rstrip()
        elif _WITH_ARGUMENT.fullmatch(word):
            yield word, next(rest, "")
        elif re.match(r"[a-z]+:", word):  # a table alone is an access table
            yield "check_recipient_access", word
        else:
            yield word, ""


def _carry(migration: Migration, name: str, word: str, argument: str, place: str) -> None:
    """Carry over one restriction. Raise PostfixError if that is not possible."""
    if word in _BUILT_IN:
        return
    if word in _LISTENERS:
        for table in migration.draft.listeners:
            table.keys[_LISTENERS[word]] = True
        migration.carried(name, f"{_LISTENERS[word]} of listeners", place)
    elif word in _HELO:
        key, code = _HELO[word]
        table = filter_plugin(migration, "helo")
        for other in ("own", "unqualified", "literal", "unresolvable"):
            table.keys.setdefault(other, "off")
        table.set(key, _action(migration, code), f"{word}, {place}")
        migration.carried(name, f"{key} of helo", place)
    elif word == "reject_maps_rbl":
        for zone in words(migration.value("maps_rbl_domains")):
            add_list(migration, zone, 1.0, "address", f"{word}, {place}")
        migration.carried("maps_rbl_domains", "lists of dnsbl")
        migration.carried(name, "lists of dnsbl", place)
    elif word in _NAMES:
        table = filter_plugin(migration, "reverse_dns")
        for key in _NAMES[word]:
            table.set(key, _action(migration, "unknown_client_reject_code"), f"{word}, {place}")
        migration.carried(name, f"{', '.join(_NAMES[word])} of reverse_dns", place)
    else:
        _carry_lookup(migration, name, word, argument, place)


def _carry_lookup(migration: Migration, name: str, word: str, argument: str, place: str) -> None:
    """Carry over a restriction that looks something up. Raise PostfixError."""
    if word in _LISTS:
        points, about = _LISTS[word]
        add_list(migration, argument, points, about, f"{word}, {place}")
        migration.carried(name, "lists of dnsbl", place)
    elif word == "check_policy_service":
        _carry_policy(migration, name, argument, place)
    elif word.startswith("check_") and word.endswith("_access"):
        table, *_ = [*words(unbraced(argument)), ""]  # `{ table, option = value }` is possible
        carry_access(migration, name, word, table, place)
    else:
        _refuse(migration, word)


def _refuse(migration: Migration, word: str) -> None:
    """Raise PostfixError with the advice for a restriction without a counterpart."""
    if word == "warn_if_reject":
        raise PostfixError('it only warned; a plugin does so with mode = "shadow"')
    if word in words(migration.value("smtpd_restriction_classes")):
        raise PostfixError("a class of your own; see the plugin rules")
    if word == "reject_unknown_sender_domain":
        raise PostfixError("no plugin looks up the sender's domain; spf and dmarc come close")
    if "unverified" in word:
        raise PostfixError("no address is verified by a callout")
    raise PostfixError("there is no such check; see the plugins rules and score")


def _action(migration: Migration, code: str) -> str:
    """Return what a reply code means: 450 defers, as is the default of some of them."""
    return "defer" if code and migration.value(code).startswith("4") else "reject"


def filter_plugin(migration: Migration, use: str) -> Table:
    """Return the table of a filter, which does not check mynetworks."""
    known = migration.draft.has(use)
    table = migration.draft.plugin(use)
    if not known and migration.is_set("mynetworks"):
        table.set("networks", trusted_networks(migration), "permit_mynetworks")
    return table


def add_list(migration: Migration, text: str, points: float, about: str, origin: str) -> None:
    """Add a list in the DNS to the plugin dnsbl. Raise PostfixError."""
    zone, equals, codes = text.partition("=")
    try:
        zone = parse_domain(zone)
    except ValueError as error:
        raise PostfixError(str(error)) from None
    counting = [_codes(codes)] if equals else None
    table = filter_plugin(migration, "dnsbl")  # not before, because it needs a list
    for inner in table.inner:
        if inner.keys["zone"] == zone and inner.keys.get("codes") == counting:
            inner.add("about", [about])
            return
    inner = Table("[[plugins.lists]]")
    inner.set("zone", zone, origin)
    inner.set("points", points)
    if counting:
        inner.set("codes", counting)
    inner.set("about", [about])
    table.inner.append(inner)


def _codes(text: str) -> str:
    """Return the answers of a list that count, such as 127.0.0.[2..11]. Raise PostfixError."""
    octets = []
    for match in _OCTET.finditer(unbraced(text)):
        part = match[2] or match[1].replace("..", "-")
        if ";" in part:
            numbers = sorted(int(each) for each in part.split(";") if each.isdigit())
            whole = numbers and numbers == list(range(numbers[0], numbers[-1] + 1))
            if "-" in part or not whole:
                raise PostfixError(f"the codes {text} are no range; write them into `codes`")
            part = f"{numbers[0]}-{numbers[-1]}"
        octets.append(part)
    if len(octets) != 4:  # noqa: PLR2004 - of an IPv4 address
        raise PostfixError(f"the codes {text} are no address")
    return ".".join(octets)


def _carry_policy(migration: Migration, name: str, argument: str, place: str) -> None:
    """Replace a policy server that has a plugin. Raise PostfixError for others."""
    address = words(unbraced(argument))[0] if argument else ""
    service = address.rpartition("/")[2]
    known = next((s for s in migration.directory.services if s.name == service), None)
    program = " ".join(known.arguments) if known else ""
    if "postgrey" in address or address.endswith(":10023") or "postgrey" in program:
        filter_plugin(migration, "greylist").origins["use"] = f"{address}, {place}"
        migration.carried(name, "the plugin greylist", place)
    elif "spf" in address or "spf" in program:
        filter_plugin(migration, "spf").origins["use"] = f"{address}, {place}"
        migration.carried(name, "the plugin spf", place)
        if known:
            migration.unneeded(known.label, "the plugin spf does its work", known.place)
    elif address.endswith(":12340") or "quota" in address:
        raise PostfixError("a full mailbox is refused when the mail is stored, with 452")
    else:
        raise PostfixError("no plugin speaks the protocol of policy servers; see rate_limit, rules")
