"""What a user of a password file still lacks before mail can be read and sent with the password.

The remarks come from the configuration alone. No plugin is started, and nothing is asked outside.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from minismtp.config import Config
from minismtp.hooks.loader import PluginSet
from minismtp.mail.envelope import Envelope, Recipient
from minismtp.mail.session import Session
from minismtp.values.address import Address
from minismtp.values.reply import Defer, Reject


def remarks(config: Config, file: Path, user: str) -> Iterator[str]:
    """Yield a line for the mailbox of a user, and for each thing that is missing.

    Raise ConfigError.
    """
    place = config.file or "the configuration"
    tables = [table for table in config.plugins if table.use == "password_file"]
    read = {(config.base / str(table.options.get("path", ""))).resolve() for table in tables}
    if file.resolve() not in read:
        yield f'Missing: no plugin password_file in {place} has path = "{file}".'
    elif problem := _unreadable(config, file):
        yield problem
    routing = [table for table in config.plugins if table.use == "mailboxes"]
    if not routing:
        yield f"Missing: {place} has no plugin mailboxes, so {user} has no mailbox."
        return
    plugins = PluginSet.load(replace(config, plugins=routing))
    yield _mailbox(plugins, user, f"{place}: {routing[0].key}")


def _mailbox(plugins: PluginSet, user: str, place: str) -> str:
    """Return a line with the mailbox of a user, or about the lack of one."""
    hooks = plugins.hooks()
    name = user if "@" in user else f"{user}@{hooks.login_domain}"
    try:
        recipient = Recipient(Address.parse(name))
    except ValueError:
        return f"Missing: {name} is no address, so {user} has no mailbox."
    session = Session(id="passwd", listener="", kind="submission", hostname="", peer="")
    envelope = Envelope(
        id="passwd",
        reverse_path=None,
        listener="",
        peer="",
        helo="",
        login=user,
        arrived=time.time(),
    )
    try:
        recipient.route = hooks.route(session, envelope, recipient)
    except Reject:
        return f"Missing: {name} is in no `users` of the plugin mailboxes ({place})."
    except Defer as error:
        return f"Whether {name} has a mailbox is not known: {error.__cause__ or error}"
    if recipient.route is None:
        domain = recipient.address.domain
        return f"Missing: {domain} is in no `domains` of the plugin mailboxes ({place})."
    kept = ", ".join(map(str, recipient.mailboxes))
    return f"Mailbox: {kept}" if kept else f"{name} is an alias; its mail goes to another server."


def _unreadable(config: Config, file: Path) -> str:
    """Return a remark if the server, which owns the state directory, cannot read a file."""
    try:
        owner, status = config.state_directory.stat(), file.stat()
    except OSError:
        return ""
    readable = (
        owner.st_uid == 0
        or (owner.st_uid == status.st_uid and status.st_mode & stat.S_IRUSR)
        or (owner.st_gid == status.st_gid and status.st_mode & stat.S_IRGRP)
        or status.st_mode & stat.S_IROTH
    )
    command = f"chgrp {owner.st_gid} {file} && chmod 640 {file}"
    return "" if readable else f"Missing: the server cannot read the file ({command})."
