"""Route local recipients to their mailboxes, and aliases to other addresses."""

from dataclasses import field
from pathlib import Path

from minismtp import (
    Address,
    Defer,
    Delivery,
    DnsZone,
    EmptyFileError,
    Envelope,
    Local,
    PluginCheck,
    Recipient,
    Reject,
    Relay,
    ServerInfo,
    Session,
    Several,
    State,
    WatchedFiles,
    hookimpl,
    plugin,
    read_file,
    steady_time,
    warn_of_readers,
)

from ._directory import Directory, lines_of, listed, local_part, read_aliases
from ._srs import KEPT, Srs, is_rewritten, read_secrets


@plugin
class Mailboxes:
    """Route recipients in local domains to mailboxes; other domains are left to other plugins.

    `domains` are the local ones. The local parts in them are those in `users`, in `users_file` (one
    a line) and in `aliases_file` (lines `alias: target, target`). A user may also be a whole
    address, which exists in its own domain only. Without `users`, `users_file` and `catch_all`
    every local part exists. An alias is a local part, an address, or `@domain` for all other
    addresses of a domain. A target is a local part, a local or remote address, or `@domain` for the
    same local part there, and may be an alias again. An alias that names itself keeps its own
    mailbox. In both files `#` starts a comment, and changes are read within a second. While a file
    is missing, unreadable, or unexpectedly empty, recipients in local domains are deferred with
    451, as their users are unknown. A comment says that a file is empty on purpose.

    `user+tag` is delivered to `user` (`separator`; "" turns this off). `catch_all` is the mailbox
    or alias for all addresses without a user or alias. Mail for postmaster is always accepted (RFC
    5321 section 4.5.1): by the user or alias of that name, else by `catch_all`, else by the mailbox
    or alias in `postmaster`. Local parts are compared without case, width and composed accents, but
    `straße` is not `strasse`. The users and aliases of the first of `domains` also exist without a
    domain, at the host name, and at the server's address (`root@[192.0.2.1]`).

    Mail that an alias forwards keeps its sender. With `srs_secret_file` it gets a sender at
    `srs_domain` (default: the first of `domains`), which SPF allows. Bounces to it return to the
    original sender. They need a valid hash, at most 21 days old, and the null reverse-path, so
    strangers cannot relay through them. Long senders are kept in the state (`[state] url`).
    """

    domains: list[str]
    users: list[str] = field(default_factory=list)
    users_file: Path | None = None
    aliases_file: Path | None = None
    separator: str = "+"
    catch_all: str = ""
    postmaster: str = "postmaster"
    srs_secret_file: Path | None = None
    srs_domain: str = ""

    def __post_init__(self) -> None:
        if not self.domains:
            raise ValueError("domains: expected at least one domain, such as example.org")
        for domain in self.domains:
            form = Address("", domain).ascii_domain
            if not (form and form.isascii()) or "@" in form or any(map(str.isspace, form)):
                problem = f"{domain!r} is not a domain; expected such as example.org"
                raise ValueError(f"domains: {problem}")
        for option in ("catch_all", "postmaster"):
            name = getattr(self, option)
            if "@" in name and name[0] != '"':
                raise ValueError(
                    f"{option}: {name!r} is an address; expected the local part alone,"
                    f" {name.partition('@')[0]!r}, as `domains` has the domains"
                )
        if not self.postmaster:
            raise ValueError("postmaster: expected the local part of a mailbox")
        if self.srs_domain and self.srs_secret_file is None:
            raise ValueError("srs_domain: expected srs_secret_file too")
        self._domains = dict.fromkeys(Address("", each).ascii_domain for each in self.domains)
        listed([("users", name) for name in self.users], self._domains)
        self._srs_domain = Address("", self.srs_domain or self.domains[0]).ascii_domain
        files = [path for path in (self.users_file, self.aliases_file) if path]
        self._full: set[Path] = set()  # files that once had an entry
        nobody = Directory(self._domains, set(), self.separator, "", local_part(self.postmaster))
        self._directory = WatchedFiles(self._read, *files, empty=nobody)
        self._srs: WatchedFiles[Srs] | None = None
        if self.srs_secret_file is not None:
            self._srs = WatchedFiles(self._read_srs, self.srs_secret_file)
        self._state, self._clock = State.in_memory(), steady_time

    @property
    def login_domain(self) -> str:
        """The domain of users whose login has no domain: the first one, as for aliases."""
        return next(iter(self._domains))

    @property
    def unused_hooks(self) -> tuple[str, ...]:
        """Without SRS no sender has to be stored before its mail leaves."""
        return ("on_send",) if self.srs_secret_file is None else ()

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Take the clock and the state, and warn about a secret that others can read."""
        self._state, self._clock = server.state, server.wall
        if self.srs_secret_file is not None and server.role == "check":
            warn_of_readers("srs_secret_file", self.srs_secret_file)

    @hookimpl
    def on_check(self, check: PluginCheck) -> None:
        """Tell the domains and users, and warn of a mailbox for all that no user has."""
        check.facts.domains.update(dict.fromkeys(self.domains))
        directory = self._directory.get()
        lines = lines_of(self.users_file) if self.users_file else []
        check.facts.users.update(dict.fromkeys([*self.users, *(line for _, line in lines)]))
        check.facts.any_user = check.facts.any_user or directory.users is None
        known = {*(directory.users or ()), *directory.aliases}
        known.update(local for local, _ in directory.addresses)
        if self.catch_all and known and local_part(self.catch_all) not in known:
            check.warn(
                f"catch_all: {self.catch_all!r} is neither a user nor an alias, so it gets a"
                " mailbox of its own; expected one of them"
            )

    @hookimpl
    def on_dns(self, zone: DnsZone) -> None:
        """Receive and send mail for the domains."""
        for domain in self._domains:
            zone.receive(domain)
            zone.send(domain)
        if self._srs is not None:
            zone.receive(self._srs_domain, users=False)
            zone.send(self._srs_domain)

    @hookimpl
    def route(
        self, session: Session, envelope: Envelope, recipient: Recipient
    ) -> Local | Relay | Several | None:
        """Return the route of a recipient in a local domain. Refuse an unknown one."""
        address = recipient.address
        domain = address.ascii_domain
        if self._srs and domain == self._srs_domain and is_rewritten(address.local):
            return _returned(self._srs.get(), envelope, address.local)
        at_host = domain not in self._domains
        if at_host:
            if domain not in _names_of_host(session):
                return None
            domain = self.login_domain
        directory = self._directory.get()
        if problem := self._directory.problem:
            text = "the list of mailboxes cannot be read now"
            raise Defer(text, enhanced="4.3.0") from OSError(problem)
        here, elsewhere = directory.targets(address.local, domain)
        if not elsewhere:
            if here is None and not at_host:
                raise Reject("no such mailbox", code=550, enhanced="5.1.1")
            return here
        relay = Relay(*elsewhere, sender=self._sender(envelope.reverse_path))
        return relay if here is None else Several(here, relay)

    @hookimpl
    def on_send(self, delivery: Delivery) -> None:
        """Store a sender that is too long to be rewritten, before its message leaves."""
        rewritten = delivery.envelope.reverse_path
        if self._srs is None or rewritten is None or delivery.original_sender is None:
            return
        if key := self._srs.get().key_of(delivery.original_sender, rewritten):
            self._state.put(key, str(delivery.original_sender), KEPT, durable=True)

    def _sender(self, sender: Address | None) -> Address | None:
        """Return the new sender of a forwarded message; None leaves it."""
        if self._srs is None or sender is None or sender.ascii_domain in self._domains:
            return None  # SPF allows this server to send for its own domains
        return self._srs.get().rewrite(sender)

    def _read(self) -> Directory:
        for path in filter(None, (self.users_file, self.aliases_file)):
            if read_file(path).strip(b"\0 \t\r\n"):
                self._full.add(path)
            elif path in self._full or (path == self.users_file and not self.users):
                raise EmptyFileError(
                    f"{path} is empty; write a comment into it if that is on purpose"
                )
        lines = lines_of(self.users_file) if self.users_file else []
        names = [("users", name) for name in self.users]
        names += [(f"users_file: {self.users_file}:{number}", line) for number, line in lines]
        users, addresses = listed(names, self._domains)
        directory = Directory(
            self._domains,
            users if self.users or self.users_file or self.catch_all else None,
            self.separator,
            local_part(self.catch_all),
            local_part(self.postmaster),
            addresses=addresses,
        )
        if self.aliases_file:
            try:
                directory.aliases = read_aliases(self.aliases_file, self._domains)
            except ValueError as error:
                raise ValueError(f"aliases_file: {error}") from error
            try:
                directory.check()
            except ValueError as error:
                raise ValueError(f"aliases_file: {self.aliases_file}: {error}") from error
        return directory

    def _read_srs(self) -> Srs:
        assert self.srs_secret_file is not None  # noqa: S101 - else nobody asks
        try:
            secrets = read_secrets(self.srs_secret_file)
            kept = lambda key: self._state.get(key)  # noqa: E731, PLW0108 - `on_start` sets it
            today = lambda: int(self._clock() // 86_400)  # noqa: E731 - `on_start` sets it
            return Srs(secrets, self._srs_domain, today, kept=kept)
        except ValueError as error:
            raise ValueError(f"srs_secret_file: {error}") from error


def _names_of_host(session: Session) -> tuple[str, str]:
    """Return the host name, and the address that the client connected to."""
    tag = "IPv6:" if ":" in session.local else ""
    return (
        Address("", session.hostname).ascii_domain,
        Address("", f"[{tag}{session.local}]").ascii_domain,
    )


def _returned(srs: Srs, envelope: Envelope, local: str) -> Relay:
    """Return the route to the original sender of a forwarded message."""
    try:
        address = srs.restore(local)
    except ValueError as error:
        raise Reject(
            f"not an address of this server: {error}", code=550, enhanced="5.1.1"
        ) from error
    if envelope.reverse_path is not None:
        raise Reject("this address takes delivery notifications only")
    return Relay(address)
