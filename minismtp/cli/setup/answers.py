"""What the administrator answered, as checked values. Texts that are no names raise ValueError."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

from minismtp.config.acme_table import AcmeConfig
from minismtp.config.mistakes import ConfigError
from minismtp.config.types import parse_domain
from minismtp.values.user_names import folded_local

#: Letters and digits of any script, and signs that have no meaning in our files.
_USER: Final = re.compile(r"[\w'&=-]+(?:\.[\w'&=-]+)*")
_LONGEST_USER: Final = 64  # octets, RFC 5321 section 4.5.3.1.1


class CertificateFiles(NamedTuple):
    """The paths of a certificate that exists, and of its key."""

    certificate: Path
    key: Path


class Authority(NamedTuple):
    """The authority of `acme`, by the URL of its directory; "" is Let's Encrypt.

    `ca` is the PEM file of the authorities that sign for its host, None for those of the system.
    """

    directory: str = ""
    ca: Path | None = None


LETSENCRYPT: Final = Authority()
CertificateChoice: TypeAlias = Literal["acme", "self-signed"] | CertificateFiles


@dataclass(frozen=True, slots=True)
class Answers:
    """A mail host: its names in A-labels, and its first user as a local part."""

    domain: str
    hostname: str
    user: str
    certificate: CertificateChoice
    state_directory: Path
    server_user: str = ""  # the account that the server runs as; "" if this machine has none
    authority: Authority = LETSENCRYPT

    @property
    def address(self) -> str:
        """The address of the first user, which is also the name to log in with."""
        return f"{self.user}@{self.domain}"


def mail_domain(text: str) -> str:
    """Return a domain that has mailboxes, with A-labels."""
    return _name(text, "a domain such as example.org")


def host_name(text: str) -> str:
    """Return the name of a host, with A-labels."""
    return _name(text, "the full name of this host, such as mx.example.org")


def _name(text: str, expected: str) -> str:
    try:
        name = parse_domain(text.strip())
    except ValueError:
        name = ""
    # RFC 1123 section 2.1: no underscore in the name of a host
    if "." not in name or "_" in name:
        raise ValueError(f"{text!r}: expected {expected}")
    return name


def user_name(text: str, domain: str) -> str:
    """Return the local part of a user, who may be written with the domain."""
    local, at, given = text.strip().rpartition("@")
    local = folded_local(local if at else given)
    if at and not _is_domain(given, domain):
        raise ValueError(f"{text!r}: expected an address at {domain}, or the part before the @")
    if not _USER.fullmatch(local) or len(local.encode()) > _LONGEST_USER:
        raise ValueError(
            f"{text!r}: expected a name such as alice or alice.smith, of letters, digits and"
            f" . _ - ' & =, with {_LONGEST_USER} octets at most"
        )
    return local


def _is_domain(text: str, domain: str) -> bool:
    try:
        return mail_domain(text) == domain
    except ValueError:
        return False


def authority(directory: str | None, ca: Path | None) -> Authority:
    """Return the authority that options name. The path is made absolute."""
    if directory is None:
        if ca is not None:
            raise ValueError("--acme-ca is for the host of an --acme-directory")
        return LETSENCRYPT
    try:
        AcmeConfig(agree_terms=True, directory=directory)
    except ConfigError as error:
        raise ValueError(f"--acme-directory: {error.message}") from None
    return Authority(directory, ca and ca.absolute())


def certificate_choice(text: str) -> CertificateChoice:
    """Return how the server gets its certificate. Paths are made absolute."""
    if text.strip() in {"acme", "self-signed"}:
        return "acme" if text.strip() == "acme" else "self-signed"
    certificate, _, key = (part.strip() for part in text.partition(","))
    if not certificate or not key or not text.isprintable():
        raise ValueError(
            f"{text!r}: expected acme, self-signed, or the paths of a certificate and of its key"
            " with a comma between them"
        )
    return CertificateFiles(Path(certificate).absolute(), Path(key).absolute())
