"""The table `[tls.acme]` of the configuration: a certificate from an authority (RFC 8555)."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal

from minismtp.config.checks import check_domain, check_unique, is_https_url
from minismtp.config.listener_table import Listener
from minismtp.config.mistakes import ConfigError
from minismtp.values.address import Address

#: The directories of authorities that have a short name.
DIRECTORIES: Final = {
    "letsencrypt": "https://acme-v02.api.letsencrypt.org/directory",
    "letsencrypt-staging": "https://acme-staging-v02.api.letsencrypt.org/directory",
}
HTTP: Final = "http-01"  # RFC 8555 section 8.3
TLS_ALPN: Final = "tls-alpn-01"  # RFC 8737
#: What a server needs so that the authority can check names, by the value of `challenge`.
NEEDED_LISTENERS: Final = {
    "": 'needs a listener of the kind "web" on port 80 or 443, where the authority checks the'
    " names; or `challenges`, if another web server has port 80",
    HTTP: 'needs a listener of the kind "web" without TLS on port 80, where the authority checks'
    " the names; or `challenges`, if another web server has that port",
    TLS_ALPN: 'needs a listener of the kind "web" with tls = "implicit" on port 443, where the'
    " authority checks the names",
}
_CONTACT: Final = frozenset(',:"? ')  # signs that no local part of `contact` may have
_MOST_NAMES: Final = 100  # of a certificate, as at Let's Encrypt


@dataclass(frozen=True, slots=True, kw_only=True)
class AcmeConfig:
    """A certificate that the server gets and renews by itself (extra `acme`).

    It is stored with its key and chain in `acme/certificate.pem` in the state directory, and serves
    as the certificate of `[tls]`. The authority checks each name on port 80 or on port 443, so a
    listener of the kind `web` has to answer there. Until the first certificate arrives, the server
    has one that it signs itself. `minismtp certificate` shows the state.
    """

    agree_terms: Annotated[
        bool, "true = you agree to the terms of service of the authority; required"
    ] = False
    names: Annotated[
        list[str],
        "host names of the certificate, all of which lead to this server; empty = `hostname`",
    ] = field(default_factory=list)
    contact: Annotated[
        str, "mail address for messages of the authority; some require one; empty = none"
    ] = ""
    directory: Annotated[
        str,
        '"letsencrypt", "letsencrypt-staging" for tries (its certificates are not trusted, its'
        " limits generous), or the `https` URL of another authority's directory",
    ] = "letsencrypt"
    directory_ca: Annotated[
        Path | None,
        "PEM file of the authorities that sign for the host of `directory`; empty = the system's",
    ] = None
    key_type: Annotated[
        Literal["ecdsa", "rsa"], "key of the certificate: ECDSA with P-256, or RSA with 2048 bits"
    ] = "ecdsa"
    eab_key_id: Annotated[
        str, "id of the account that an authority requires (external account binding)"
    ] = ""
    eab_key_file: Annotated[
        Path | None, "file with the key of that account, in base64url as the authority shows it"
    ] = None
    challenge: Annotated[
        Literal["", "http-01", "tls-alpn-01"],
        'how the authority checks the names: "http-01" over HTTP on port 80, "tls-alpn-01" over'
        " TLS on port 443; empty = whatever the listeners of the kind `web` answer, HTTP first, and"
        " TLS if that fails",
    ] = ""
    challenges: Annotated[
        Path | None,
        "directory that a web server on this host serves as `/.well-known/acme-challenge/`, if it"
        " has port 80; empty = our own listener of the kind `web` answers",
    ] = None

    def __post_init__(self) -> None:
        if not self.agree_terms:
            raise ConfigError(
                "expected true, which says that you agree to the terms of service of the authority",
                key="agree_terms",
            )
        names = [_host_name(name, f"names[{number}]") for number, name in enumerate(self.names)]
        if len(names) > _MOST_NAMES:
            raise ConfigError(f"expected {_MOST_NAMES} names at most", key="names")
        object.__setattr__(self, "names", names)
        check_unique("names", names)
        object.__setattr__(self, "contact", _mail_address(self.contact))
        self._check_directory()
        if bool(self.eab_key_id) != (self.eab_key_file is not None):
            present, absent = ("eab_key_id", "eab_key_file")[:: 1 if self.eab_key_id else -1]
            raise ConfigError(f"this key is required beside {present!r}", key=absent)

        if self.challenge == TLS_ALPN and self.challenges is not None:
            problem = f'the authority fetches its files by "{HTTP}" only; expected no {TLS_ALPN!r}'
            raise ConfigError(f"{problem} beside it", key="challenges")

    def _check_directory(self) -> None:
        if self.directory in DIRECTORIES:
            return
        if not is_https_url(self.directory):
            known = " or ".join(f'"{name}"' for name in DIRECTORIES)
            expected = f"expected {known}, or a URL that begins with https://"
            raise ConfigError(f"{expected}, not {self.directory!r}", key="directory")

    @property
    def url(self) -> str:
        """The URL of the directory."""
        return DIRECTORIES.get(self.directory, self.directory)


def usable_challenges(acme: AcmeConfig, listeners: Iterable[Listener]) -> list[str]:
    """Return how the authority can check names, in the order of the attempts.

    That depends on the web listeners. The result is empty if it cannot.
    """
    kinds = {TLS_ALPN if each.tls == "implicit" else HTTP for each in listeners}
    if acme.challenges is not None:
        kinds.add(HTTP)
    wanted = (acme.challenge,) if acme.challenge else (HTTP, TLS_ALPN)
    return [kind for kind in wanted if kind in kinds]


def check_reachable(name: str, key: str) -> None:
    """Raise ConfigError for a name that no authority can reach."""
    if "." not in name:
        problem = f"expected a whole name, such as mx.example.org, not {name!r}"
        raise ConfigError(problem, key=key)


def _mail_address(text: str) -> str:
    """Return a mail address in ASCII, "" for none. Raise ConfigError.

    The library would take a comma for the end of an address (RFC 8555 section 7.3).
    """
    if not text:
        return ""
    try:
        address = Address.parse(text)
    except ValueError:
        address = None
    if address is None or not address.local.isascii() or not _CONTACT.isdisjoint(address.local):
        problem = f'expected a mail address such as "me@example.org", not {text!r}'
        raise ConfigError(problem, key="contact")
    return f"{address.local}@{address.ascii_domain}"


def _host_name(text: str, key: str) -> str:
    """Return a host name in small letters, with A-labels. Raise ConfigError."""
    if text.startswith("*"):
        problem = f"{text!r}: an authority does not check a wildcard over HTTP; expected host names"
        raise ConfigError(problem, key=key)
    name = check_domain(text, key=key).lower().removesuffix(".")
    if "_" in name:  # RFC 1123 section 2.1
        raise ConfigError(f"{text!r} has an underscore; expected a host name", key=key)
    check_reachable(name, key)
    return name
