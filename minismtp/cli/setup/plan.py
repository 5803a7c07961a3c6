"""Which files a mail host needs, from the answers and from what exists. Nothing is read or written.

Nothing that exists is changed, with two exceptions: a file of passwords gets one more line, and the
example configuration that the installation left is moved aside, if its host name is still the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Final

from minismtp.cli.common import CommandError
from minismtp.cli.setup import template
from minismtp.cli.setup.answers import Answers, CertificateFiles
from minismtp.cli.setup.dovecot import Dovecot
from minismtp.values.user_names import folded_name

_EXAMPLE: Final = "# An example of /etc/minismtp/minismtp.toml"
_UNCHANGED: Final = 'hostname = "mx.example.org"'  # a name that nobody can own (RFC 2606)


class Made(Enum):
    """Content that is made at random, or from a password. The values describe it."""

    RSA_KEY = "a new RSA key of 2048 bits, which signs mail"
    ED25519_KEY = "a new Ed25519 key, which signs mail"
    LOGIN = "the name of the user, and the hash of the password"
    RANDOM = "a new secret"
    CERTIFICATE = "a new certificate for the host name, signed by itself, for a year"
    TLS_KEY = "the key of the certificate"


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file to be written. `before` is the text that it has already.

    That stays in the file, or can be found in `original`. `shown_as` is shown in place of a content
    that is secret.
    """

    path: Path
    content: str | Made
    before: str | None = None
    original: Path | None = None
    shown_as: str = ""

    @property
    def replaces(self) -> bool:
        """Whether the file exists already."""
        return self.before is not None

    @property
    def octets_before(self) -> bytes | None:
        """What `before` is in the file, without byte order marks."""
        return None if self.before is None else self.before.encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Plan:
    """The files in the order in which they are put into place; the configuration is the last."""

    files: tuple[PlannedFile, ...]
    kept: tuple[Path, ...] = ()

    @property
    def configuration(self) -> PlannedFile:
        """The file that makes all others count."""
        return self.files[-1]

    @property
    def directories(self) -> list[Path]:
        """The directories that the files need, and that of plugins."""
        base = self.configuration.path.parent
        needed = {parent for file in self.files for parent in file.path.parents}
        below = {each for each in needed if base in each.parents}
        return sorted(below | {base / "plugins"})

    @property
    def needs_password(self) -> bool:
        """Whether a user gets a password."""
        return any(file.content is Made.LOGIN for file in self.files)


#: The text of each file that exists, by its path; "" for a file that need not be read.
Existing = Mapping[Path, str]


def first_plan(
    answers: Answers, configuration: Path, existing: Existing, dovecot: Dovecot | None = None
) -> Plan:
    """Return the plan of a new host. Raise CommandError for files that are in the way."""
    base = configuration.parent
    copy = aside(configuration, existing)
    certificate, secrets = _certificate(answers, base, existing)
    wanted = [
        PlannedFile(base / "users", template.users(answers.domain, answers.user)),
        PlannedFile(base / "aliases", template.aliases(answers.domain, answers.user)),
    ]
    if taken := [file.path for file in wanted if file.path in existing]:
        raise CommandError(f"{taken[0]} exists, but {configuration} does not; move it away")
    secrets += [PlannedFile(base / "srs-secret", Made.RANDOM)]
    secrets += keys(base, template.DKIM_KEYS, answers.domain)
    kept = tuple(file.path for file in secrets if file.path in existing)
    passwords = base / "passwords"
    text = template.whole(answers, certificate, passwords)
    files = (
        *(file for file in secrets if file.path not in kept),
        *wanted,
        *password(passwords, answers.address, existing),
        *_dovecot(dovecot, answers, certificate, passwords),
        *([PlannedFile(copy, existing[configuration])] if copy and copy not in existing else []),
        PlannedFile(configuration, text, existing.get(configuration), copy),
    )
    return Plan(files, kept)


def aside(configuration: Path, existing: Existing) -> Path | None:
    """Return where the example configuration goes, if it is the present one.

    Raise CommandError if there is another configuration.
    """
    if configuration not in existing:
        return None
    text = existing[configuration]
    if not (text.startswith(_EXAMPLE) and _UNCHANGED in text):
        raise CommandError(
            f"{configuration} exists, and is kept. `minismtp setup --add-domain DOMAIN` adds a"
            " domain to it; to begin again, move it away"
        )
    return configuration.with_name("minismtp.toml.example")


def _dovecot(
    dovecot: Dovecot | None, answers: Answers, files: CertificateFiles | None, passwords: Path
) -> list[PlannedFile]:
    """Return the file of a Dovecot that is as its package left it."""
    text = dovecot.configured(answers, files, passwords) if dovecot else ""
    return [PlannedFile(dovecot.path, text, dovecot.text, dovecot.copy)] if dovecot and text else []


def _certificate(
    answers: Answers, base: Path, existing: Existing
) -> tuple[CertificateFiles | None, list[PlannedFile]]:
    """Return the paths for the configuration, if there are any, and the files to be made."""
    if answers.certificate == "acme":
        return None, []
    if isinstance(answers.certificate, CertificateFiles):
        return answers.certificate, []
    names = CertificateFiles(Path("tls/fullchain.pem"), Path("tls/key.pem"))
    made = [
        PlannedFile(base / names.certificate, Made.CERTIFICATE),
        PlannedFile(base / names.key, Made.TLS_KEY),
    ]
    found = [file.path for file in made if file.path in existing]
    if len(found) == 1:
        [lacking] = [file.path for file in made if file.path not in existing]
        raise CommandError(f"{found[0]} exists without {lacking}; move it away, or add the other")
    return names, made


def keys(base: Path, path: str, domain: str) -> list[PlannedFile]:
    """Return the files of the keys that sign the mail of a domain."""
    kinds = {template.RSA: Made.RSA_KEY, template.ED25519: Made.ED25519_KEY}
    return [
        PlannedFile(base / path.format(domain=domain, selector=selector), made)
        for selector, made in kinds.items()
    ]


def password(path: Path, address: str, existing: Existing) -> list[PlannedFile]:
    """Return the file of passwords with one more line, or nothing if the user has a password."""
    file = PlannedFile(path, Made.LOGIN)
    if path not in existing:
        return [file]
    names = [line.partition(":")[0] for line in existing[path].splitlines()]
    known = {folded_name(name) for name in names if name.strip() and name[0] != "#"}
    return [] if folded_name(address) in known else [replace(file, before=existing[path])]
