"""What this machine has already: the server's account, files, and a certificate that fits."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from minismtp.cli.common import EXIT_CONFIG, CommandError
from minismtp.cli.setup import dovecot
from minismtp.cli.setup.dovecot import Dovecot
from minismtp.cli.setup.placement import Owner
from minismtp.cli.setup.plan import Plan
from minismtp.config import LONGEST_FILE, Config, TlsConfig
from minismtp.config.mistakes import ConfigError, reason
from minismtp.server.privileges import acting_as
from minismtp.services import tls
from minismtp.services.certificate_file import Certificate, certificates_of, open_regular
from minismtp.values.durable_files import read_file

ACCOUNT: Final = "minismtp"  # of systemd/sysusers.d
_READ: Final = {"minismtp.toml", "passwords"}


class CertificateError(CommandError):
    """The certificate is no good for this host."""

    status = EXIT_CONFIG


def account() -> str:
    """Return the account that root's server becomes, or "" if there is none."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(ACCOUNT).pw_name if os.geteuid() == 0 else ""
    return ""


def owner(name: str) -> Owner:
    """Return to whom the configuration belongs: root, and the group of the server reads it."""
    if os.geteuid() != 0:
        return Owner()
    return Owner(0, pwd.getpwnam(name).pw_gid if name else 0)


def found(configuration: Path, others: Iterable[Path]) -> dict[Path, str]:
    """Return the files that exist, and the text of those that decide about a plan.

    Raise CommandError for a configuration that is a symbolic link.
    """
    check_link(configuration)
    present = {}
    for path in (configuration, *others, *_below(configuration.parent)):
        if path.is_file():
            wanted = path == configuration or path in others or path.name in _READ
            data = read_file(path) if wanted else b""
            present[path] = data.decode("utf-8", "surrogateescape")
    return present


def check_link(configuration: Path) -> None:
    """Raise CommandError for a symbolic link, because a new file would take its place."""
    if configuration.is_symlink():
        target = configuration.resolve()
        raise CommandError(f"{configuration} is a symbolic link; write --config {target}")


def _below(base: Path) -> list[Path]:
    """Return the files in the directory of the configuration, and those one level lower."""
    return [*base.glob("*"), *base.glob("*/*")]


def untouched_dovecot(base: Path) -> Dovecot | None:
    """Return the Dovecot of this machine, if its configuration is still that of the package.

    It has to be on the file system of the directory `base`, because the files appear together.
    """
    try:
        text, copy = (read_file(path) for path in (dovecot.CONFIGURATION, dovecot.COPY))
        place = next(path for path in (base, *base.parents) if path.is_dir())
        together = place.stat().st_dev == dovecot.CONFIGURATION.parent.stat().st_dev
    except OSError:
        return None
    if text != copy or not together or dovecot.CONFIGURATION.is_symlink():
        return None
    return Dovecot(dovecot.CONFIGURATION, text.decode(), dovecot.COPY)


def check_certificate(certificate: Path, key: Path, hostname: str, account: str) -> None:
    """Raise CertificateError if the server could not use it, or it is for other names."""
    names = usable_certificate(certificate, key, account)
    if not names.is_for(hostname):
        others = ", ".join(names.names[:4]) or "no DNS name"
        raise CertificateError(
            f"{certificate} is for {others}, not for {hostname}; get one for that name, choose"
            " another --hostname, or begin with --certificate self-signed"
        )


def usable_certificate(certificate: Path, key: Path, account: str) -> Certificate:
    """Return a certificate. Raise CertificateError if the server could not use it."""
    user = pwd.getpwnam(account) if account else None
    with acting_as(*(user.pw_uid, user.pw_gid) if user else (0, 0), with_all_groups=True):
        for path in (certificate, key):
            try:
                open_regular(path).close()
            except PermissionError:
                help_ = f"chgrp {account or 0} {path} && chmod 640 {path}"
                raise CertificateError(
                    f"{path}: the server's user {account} cannot read it; {help_}, or copy it"
                ) from None
            except OSError as error:
                raise CertificateError(reason(error)) from None
        try:
            tls.server_context(TlsConfig(certificate=certificate, key=key))
            return certificates_of(certificate)[0]
        except ConfigError as error:
            raise CertificateError(error.message) from None
        except ValueError as error:
            raise CertificateError(f"the certificate cannot be used: {error}") from None


def check_places(plan: Plan, *directories: Path) -> None:
    """Raise CommandError if something else is where the plan has new files, or a directory.

    Raise OSError for a path on which nothing can be, such as one with a name that is too long.
    """
    base = plan.configuration.path.parent
    for directory in (base, *plan.directories, *directories):
        if os.path.lexists(directory) and not directory.is_dir():
            raise CommandError(f"{directory} is no directory; move it away, nothing was written")
    for file in plan.files:
        if not file.replaces and _is_there(file.path):
            raise CommandError(f"{file.path} is no file; move it away, nothing was written")


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def state_owner(account: str) -> Owner:
    """Return to whom the state directory belongs: the server's user."""
    if not account:
        return Owner()
    entry = pwd.getpwnam(account)
    return Owner(entry.pw_uid, entry.pw_gid)


def passed(text: str, configuration: Path) -> bool:
    """Inspect a configuration that is not in its place yet, as `minismtp check` does.

    Raise CommandError for one that is longer than what the server reads.
    """
    from minismtp.cli.check import judged  # noqa: PLC0415 - starts plugins, so it loads much

    if len(text.encode()) > LONGEST_FILE:
        most = f"would be longer than {LONGEST_FILE} octets"
        raise CommandError(f"{configuration} {most}; nothing was written")
    return judged(Config.examine(text, configuration)) == 0
