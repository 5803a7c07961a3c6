"""The tables `[mta_sts]` and `[autoconfig]` of the configuration, for the web listeners."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Final, Literal

from msgspec import Meta

from minismtp.config.checks import check_domain, check_domain_pattern
from minismtp.config.mistakes import ConfigError

_LONGEST_AGE: Final = timedelta(seconds=31_557_600)  # RFC 8461 section 3.2


@dataclass(frozen=True, slots=True, kw_only=True)
class MtaStsConfig:
    """The policy for our domains that web listeners serve to other mail servers (RFC 8461)."""

    mode: Annotated[
        Literal["testing", "enforce", "none"],
        "enforce: others send mail for the domains only by TLS with a valid certificate. testing:"
        " they only report failures (TLS-RPT). none: withdraws an earlier policy",
    ] = "testing"
    max_age: Annotated[
        timedelta, "how long others keep the policy, at most 31557600s (about a year)"
    ] = timedelta(days=7)
    mx: Annotated[
        list[str],
        'names of the MX hosts, or such as "*.example.net" for one label; empty = `hostname`',
    ] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not timedelta(seconds=1) <= self.max_age <= _LONGEST_AGE:
            raise ConfigError("expected 1s to 31557600s (RFC 8461)", key="max_age")
        names = [
            check_domain_pattern(name, key=f"mx[{number}]") for number, name in enumerate(self.mx)
        ]
        object.__setattr__(self, "mx", names)

    def policy(self, hostname: str) -> str:
        """Return the text of the policy."""
        lines = ["version: STSv1", f"mode: {self.mode}"]
        lines += [f"mx: {name}" for name in self.mx or [hostname]]
        lines += [f"max_age: {int(self.max_age.total_seconds())}", ""]
        return "\r\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoconfigConfig:
    """What web listeners tell the mail programs of our users, besides the submission listeners."""

    imap_host: Annotated[str, "name of the IMAP server; empty = `hostname`"] = ""
    imap_port: Annotated[int, Meta(ge=1, le=65535), "its port"] = 993
    imap_tls: Annotated[
        Literal["implicit", "starttls"], "whether TLS begins at once, or by STARTTLS as on port 143"
    ] = "implicit"
    smtp_host: Annotated[
        str, "name under which users reach the submission listeners; empty = `hostname`"
    ] = ""
    login: Annotated[
        Literal["address", "local"],
        "whether users log in by their address, or by its local part",
    ] = "address"

    def __post_init__(self) -> None:
        for key in ("imap_host", "smtp_host"):
            if name := getattr(self, key):
                object.__setattr__(self, key, check_domain(name, key=key))
