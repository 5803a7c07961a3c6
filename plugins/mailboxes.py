"""Say which recipients are ours, and which mailboxes and other addresses take each one's copy."""

from dataclasses import field
from pathlib import Path

from minismtp import (
    Address,
    Defer,
    Delivery,
    EmptyFileError,
    Envelope,
    Local,
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
    warn_of_readers,
)

from ._directory import Directory, lines_of, local_part, read_aliases
from ._srs import KEPT, Srs, is_rewritten, read_secrets


@plugin
class Mailboxes:
    """Route our domains' recipients to local mailboxes; other domains are left to other plugins.

    `domains` are ours. The local parts that exist there are those in `users`, in `users_file` (one
    a line) and in `aliases_file` (lines `alias: target, target`); with none of `users`,
    `users_file` and `catch_all` every local part exists. An alias is a local part, an address, or
    `@domain` for all of a domain that nothing else is said of. A target is a local part, an address
    here or elsewhere, or `@domain` for the same local part there, and may be an alias again; an
    alias that names itself keeps its own mailbox. In both files `#` starts a comment, and changes
    are taken on within a second. While one of them is gone, unreadable, or empty where it was not
    (`users_file` without `users`: at all), recipients at our domains are put off with 451, because
    users cannot be told from others; a comment says that a file names nobody on purpose.

    `user+tag` is delivered to `user` (`separator`; "" = off). `catch_all` is the mailbox or alias
    for what no user or alias matches. Mail for postmaster is always accepted (RFC 5321 section
    4.5.1): by the user or alias of that name, else by `catch_all`, else by the mailbox or alias
    that `postmaster` names. Local parts are compared without regard to case, to full-width letters
    and to how accents are put together, but `straße` is not `strasse`. A local part alone, as in
    `RCPT TO:<root>`, is at our host name; there and at the address that the client has called
    (`root@[192.0.2.1]`) are the users and aliases of the first of `domains`, too.

    Mail that an alias sends elsewhere keeps its sender, or, with the `srs_secret_file`, gets one at
    `srs_domain` (the first of `domains`) that SPF allows us. Bounces to such a sender are sent back
    to the original one. They are taken with a valid hash, for 21 days, and from the null
    reverse-path only, so nobody else can relay through them. A sender too long for that is kept in
    the state for as long, and gets a short name; with `[state] url` all hosts know it.
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
                raise ValueError(f"domains: {domain!r} is not a domain")
        if not self.postmaster:
            raise ValueError("postmaster: expected the local part of a mailbox")
        if self.srs_domain and self.srs_secret_file is None:
            raise ValueError("srs_domain: expected srs_secret_file beside it")
        self._domains = [Address("", domain).ascii_domain for domain in self.domains]
        self._srs_domain = Address("", self.srs_domain or self.domains[0]).ascii_domain
        files = [path for path in (self.users_file, self.aliases_file) if path]
        self._full: set[Path] = set()  # files that have named somebody
        nobody = Directory(self._domains, set(), self.separator, "", local_part(self.postmaster))
        self._directory = WatchedFiles(self._read, *files, empty=nobody)
        self._srs: WatchedFiles[Srs] | None = None
        if self.srs_secret_file is not None:
            self._srs = WatchedFiles(self._read_srs, self.srs_secret_file)
        self._state = State.in_memory()

    @property
    def login_domain(self) -> str:
        """The domain of users whose login has none: the first of ours, as for aliases."""
        return self._domains[0]

    @hookimpl
    def on_start(self, server: ServerInfo) -> None:
        """Know where long senders are kept, and warn of a secret that others can read."""
        self._state = server.state
        if self.srs_secret_file is not None and server.role == "check":
            warn_of_readers("srs_secret_file", self.srs_secret_file)

    @hookimpl
    def route(
        self, session: Session, envelope: Envelope, recipient: Recipient
    ) -> Local | Relay | Several | None:
        """Return the ways of a recipient at one of our domains; refuse one that has none."""
        address = recipient.address
        domain = address.ascii_domain
        if self._srs and domain == self._srs_domain and is_rewritten(address.local):
            return _returned(self._srs.get(), envelope, address.local)
        at_host = domain not in self._domains
        if at_host:
            if domain not in _names_of_host(session):
                return None
            domain = self._domains[0]
        directory = self._directory.get()
        if problem := self._directory.problem:
            text = "the list of mailboxes cannot be read now"
            raise Defer(text, enhanced="4.3.0") from OSError(problem)
        found = directory.find(address.local, domain)
        if not found and at_host:
            return None
        if not found:
            raise Reject("no such mailbox", code=550, enhanced="5.1.1")
        here = [Address(local, at) for local, at in found if at in self._domains]
        elsewhere = [Address(local, at) for local, at in found if at not in self._domains]
        if not elsewhere:
            return Local(*here)
        relay = Relay(*elsewhere, sender=self._sender(envelope.reverse_path))
        return Several(Local(*here), relay) if here else relay

    @hookimpl
    def on_send(self, delivery: Delivery) -> None:
        """Keep a sender that is too long to be rewritten, before its message leaves."""
        rewritten = delivery.envelope.reverse_path
        if self._srs is None or rewritten is None or delivery.original_sender is None:
            return
        if key := self._srs.get().key_of(delivery.original_sender, rewritten):
            self._state.put(key, str(delivery.original_sender), KEPT, durable=True)

    def _sender(self, sender: Address | None) -> Address | None:
        """Return what a forwarded message's sender is to become; None leaves it."""
        if self._srs is None or sender is None or sender.ascii_domain in self._domains:
            return None  # SPF allows us to send for our own domains
        return self._srs.get().rewrite(sender)

    def _read(self) -> Directory:
        for path in filter(None, (self.users_file, self.aliases_file)):
            if read_file(path).strip(b"\0 \t\r\n"):
                self._full.add(path)
            elif path in self._full or (path == self.users_file and not self.users):
                raise EmptyFileError(f"{path} is empty: a comment would say on purpose")
        users = None
        if self.users or self.users_file or self.catch_all:
            listed = lines_of(self.users_file) if self.users_file else []
            users = {local_part(name) for name in (*self.users, *(line for _, line in listed))}
        catch_all, postmaster = local_part(self.catch_all), local_part(self.postmaster)
        directory = Directory(self._domains, users, self.separator, catch_all, postmaster)
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
            return Srs(secrets, self._srs_domain, kept=kept)
        except ValueError as error:
            raise ValueError(f"srs_secret_file: {error}") from error


def _names_of_host(session: Session) -> tuple[str, str]:
    """Return our host name, where a local part alone is, and the address that was called."""
    tag = "IPv6:" if ":" in session.local else ""
    return (
        Address("", session.hostname).ascii_domain,
        Address("", f"[{tag}{session.local}]").ascii_domain,
    )


def _returned(srs: Srs, envelope: Envelope, local: str) -> Relay:
    """Return the route to the sender of a message that was forwarded."""
    try:
        address = srs.restore(local)
    except ValueError as error:
        raise Reject(f"no address of ours: {error}", code=550, enhanced="5.1.1") from error
    if envelope.reverse_path is not None:
        raise Reject("this address takes delivery notifications only")
    return Relay(address)
