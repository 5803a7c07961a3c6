"""Host name, interfaces, and the services of master.cf that take mail: our listeners."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Final

from minismtp.cli.import_postfix.draft import Table
from minismtp.cli.import_postfix.migration import Migration
from minismtp.cli.import_postfix.notation import PORTS, port, with_port
from minismtp.cli.import_postfix.server_tls import has_tls
from minismtp.cli.postfix_files.main_cf import MainCf, Setting
from minismtp.cli.postfix_files.master_cf import Service
from minismtp.cli.postfix_files.text import PostfixError, words
from minismtp.config.types import parse_domain

_USUAL: Final = Service("smtp", "inet", "smtpd", "the default")
_SUBMISSION_PORTS: Final = (587, 465)
_LOGIN_ONLY: Final = ("permit_sasl_authenticated", "permit_tls_clientcerts", "reject")
_RESTRICTIONS: Final = tuple(
    f"smtpd_{stage}_restrictions" for stage in ("client", "helo", "sender", "relay", "recipient")
)
_LABELS: Final = {25: "smtp", 587: "submission", 465: "submissions"}


def carry_host(migration: Migration) -> None:
    """Set the host name and the directory of the state."""
    top = migration.draft.top
    name = migration.value("myhostname").rstrip(".")
    try:
        top.set("hostname", parse_domain(name), migration.origin("myhostname"))
        migration.carried("myhostname", "hostname")
    except ValueError:
        migration.by_hand("myhostname", f"{name!r} is no host name; set `hostname`")
    migration.carried("mydomain", "hostname and `domains` of mailboxes, where it is a part of them")
    top.set("state_directory", str(migration.state_directory))


def smtpd_services(migration: Migration) -> list[tuple[Service, MainCf]]:
    """Return the services that take mail by SMTP, each with its parameters."""
    inet = [
        service
        for service in migration.directory.services
        if service.type == "inet" and service.command in {"smtpd", "postscreen"}
    ]
    behind = next((s for s in migration.directory.services if s.label == "smtpd/pass"), None)
    found = []
    for service in inet or [_USUAL] * (not migration.directory.services):
        options = dict(service.options)
        if service.command == "postscreen" and behind is not None:
            options |= behind.options
        found.append((service, migration.main.with_options(options)))
    return found


def main_service(migration: Migration) -> MainCf:
    """Return the parameters of the service for mail from other servers, on port 25."""
    for service, main in smtpd_services(migration):
        if _port_of(service) == PORTS["smtp"]:
            return main
    return migration.main


def carry_listeners(migration: Migration) -> None:
    """Make a listener for each service and each address."""
    taken: set[str] = set()
    for service, main in smtpd_services(migration):
        try:
            _carry_service(migration, service, main, taken)
        except PostfixError as error:
            migration.by_hand(service.label, str(error), service.place)
    if not migration.draft.listeners:
        _listen_on_loopback(migration)
    for service in migration.directory.services:
        if service.type == "inet" and service.command not in {"smtpd", "postscreen"}:
            text = f"minismtp has no service {service.command} on a port"
            migration.unneeded(service.label, text, service.place)
    for name in ("inet_interfaces", "inet_protocols"):
        migration.carried(name, "listeners[].address")


def _listen_on_loopback(migration: Migration) -> None:
    """Add a listener for the programs of a host that takes mail by its command sendmail only."""
    table = Table("[[listeners]]")
    table.set("name", "smtp")
    table.set("address", "127.0.0.1:25")
    table.set("tls", "none")
    migration.draft.listeners.append(table)
    text = "no service takes mail on a port; minismtp listens on 127.0.0.1:25 for local programs"
    migration.by_hand("master.cf", text, "master.cf")


def _carry_service(migration: Migration, service: Service, main: MainCf, taken: set[str]) -> None:
    number = port(service.name.rpartition(":")[2])
    host = service.name.rpartition(":")[0].strip("[]")
    if main.value("content_filter") == "" and migration.value("content_filter") and host:
        text = "it takes mail back from content_filter, which minismtp does not need"
        migration.unneeded(service.label, text, service.place)
        return
    hosts = list(_addresses(host, main)) if host else list(_interfaces(migration, main))
    kind = "submission" if is_for_users(main, number) else "mx"
    tls = _tls(main, number, kind)
    for address in hosts:
        label = _free(_LABELS.get(number, f"port-{number}"), taken)
        table = Table("[[listeners]]")
        table.set("name", label, f"{service.label}, {service.place}")
        table.set("address", with_port(address, number) if address != "*" else f"*:{number}")
        table.set("kind", kind)
        table.set("tls", tls)
        _carry_options(migration, service, main, table)
        migration.draft.listeners.append(table)
        migration.listeners.setdefault(service.label, []).append(label)
        key = f"listeners[{len(migration.draft.listeners) - 1}] {label}"
        migration.carried(service.label, key, service.place)


def is_for_users(main: MainCf, number: int) -> bool:
    """Return whether a service takes mail only from users who log in."""
    if main.value("smtpd_sasl_auth_enable") != "yes":
        return False
    if number in _SUBMISSION_PORTS:
        return True
    for name in _RESTRICTIONS:
        listed = words(main.value(name))
        if listed[-1:] == ["reject"] and set(listed) <= {*_LOGIN_ONLY, "permit_mynetworks"}:
            return "permit_mynetworks" not in listed
    return False


def _port_of(service: Service) -> int:
    try:
        return port(service.name.rpartition(":")[2])
    except PostfixError:
        return 0


def _tls(main: MainCf, number: int, kind: str) -> str:
    if main.value("smtpd_tls_wrappermode") == "yes" or number == PORTS["submissions"]:
        return "implicit"
    if kind == "submission" or has_tls(main):
        return "starttls"
    return "none"


def _addresses(host: str, main: MainCf) -> Iterator[str]:
    """Yield the address of a service, both for localhost. Raise PostfixError for another name."""
    if host == "localhost":
        families = set(words(main.value("inet_protocols")))
        yield from ["127.0.0.1"] * bool(families & {"all", "ipv4"})
        yield from ["::1"] * bool(families & {"all", "ipv6"})
        return
    try:
        yield str(ip_address(host))
    except ValueError:
        text = f"the address of {host} is not looked up; add a listener for it"
        raise PostfixError(text) from None


def _interfaces(migration: Migration, main: MainCf) -> Iterator[str]:
    """Yield the addresses to listen on, "*" for all."""
    families = set(words(main.value("inet_protocols")))
    four, six = bool(families & {"all", "ipv4"}), bool(families & {"all", "ipv6"})
    for item in words(main.value("inet_interfaces")):
        if item == "all":
            yield "*" if four and six else "0.0.0.0" if four else "::"  # noqa: S104 - as in Postfix
        elif item in {"loopback-only", "localhost"}:
            yield from ["127.0.0.1"] * four + ["::1"] * six
        else:
            yield from _one_interface(migration, item, four=four, six=six)


def _one_interface(migration: Migration, item: str, *, four: bool, six: bool) -> Iterator[str]:
    try:
        address = ip_address(item.strip("[]"))
    except ValueError:
        text = f"the address of {item} is not looked up; add a listener for it"
        migration.by_hand("inet_interfaces", text)
        return
    if four if address.version == 4 else six:  # noqa: PLR2004 - the version of IP
        yield str(address)


def _free(label: str, taken: set[str]) -> str:
    count, name = 1, label
    while name in taken:
        count += 1
        name = f"{label}-{count}"
    taken.add(name)
    return name


_UNDERSTOOD: Final = {
    "smtpd_tls_wrappermode": "tls",
    "smtpd_tls_security_level": "tls",
    "smtpd_sasl_auth_enable": "kind",
    "smtpd_tls_auth_only": "tls",
    "smtpd_milters": "plugins with the name",
    **dict.fromkeys((*_RESTRICTIONS, "smtpd_data_restrictions"), "kind"),
}


def _carry_options(migration: Migration, service: Service, main: MainCf, table: Table) -> None:
    """Set the further keys of a listener, and report each option of the service."""
    if any("login_mismatch" in main.value(name) for name in _RESTRICTIONS):
        table.keys["match_sender"] = True
    key = f"listener {table.keys['name']}"
    proxy = ("smtpd_upstream_proxy_protocol", "postscreen_upstream_proxy_protocol")
    for name, setting in service.options.items():
        label = f"{service.name}: {name}"
        if name in _UNDERSTOOD:
            migration.carried(label, f"{_UNDERSTOOD[name]} of {key}", setting.place)
        elif name not in proxy:
            _unclear(migration, label, setting)
    for name in proxy:
        if main.value(name):
            text = f"name your load balancers in proxy_protocol of {key}"
            migration.by_hand(name, text, main.place(name))


_IGNORED: Final = {
    "syslog_name": "the log has the name of the listener",
    "milter_macro_daemon_name": "filters get the name of the listener",
    "smtpd_reject_unlisted_recipient": "an unknown recipient is always refused",
    "smtpd_proxy_filter": "minismtp calls its filters itself",
    "receive_override_options": "minismtp calls its filters itself",
    "cleanup_service_name": "there is no such service",
}


def _unclear(migration: Migration, label: str, setting: Setting) -> None:
    name = label.rpartition(" ")[2]
    if name in _IGNORED:
        migration.unneeded(label, _IGNORED[name], setting.place)
    else:
        text = f"the value {setting.value!r} of this service alone is not carried over"
        migration.by_hand(label, text, setting.place)
