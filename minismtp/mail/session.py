"""The data of one connection, which hooks may read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from minismtp.values.stash import Stash


def is_silent(_seconds: float) -> bool:
    """Return False, because outside `on_connect` the server does not wait for the peer."""
    return False


@dataclass(frozen=True, slots=True)
class TlsInfo:
    """The TLS of a session; `client_identity` comes from a verified client certificate.

    `bits` is the size of the cipher's key, 0 if it is not known.
    """

    version: str
    cipher: str
    server_name: str = ""
    client_identity: str = ""
    bits: int = 0


@dataclass(slots=True, kw_only=True)
class Session:
    """One connection. `peer` is an IP address as text, or "unix"; `started` is wall-clock seconds.

    `name` is the peer's name in the DNS, once a plugin looked it up and it has the peer's address,
    or the name that a front end sent by XCLIENT; else it is empty. `local` is the server's address
    that the peer connected to, empty for a unix socket. `login` is the authorization identity after
    AUTH. `proxied` says that a balancer's PROXY header named the peer; then `tls` may be that of
    the client's connection to the balancer. `helo` is not checked. `trusted` says that the peer
    belongs to a trusted network; a plugin may set it in `on_connect`, as `relay` does. Plugins may
    write to `stash` and read all else. A session lives in one thread.

    In `on_connect`, `speaks_within(seconds)` waits for the peer to send something and returns
    whether it did. Peers have to wait for the greeting (RFC 5321 section 3.1). The wait ends early
    if the peer speaks or leaves, or the server stops. Outside `on_connect` it is False at once.
    """

    id: str
    listener: str
    kind: str
    hostname: str
    peer: str
    peer_port: int = 0
    name: str = ""
    local: str = ""
    started: float = 0.0
    helo: str = ""
    esmtp: bool = False
    tls: TlsInfo | None = None
    proxied: bool = False
    login: str | None = None
    trusted: bool = False
    speaks_within: Callable[[float], bool] = field(default=is_silent, repr=False, compare=False)
    stash: Stash = field(default_factory=Stash)

    @property
    def protocol(self) -> str:
        """The `with` keyword of the trace field: SMTP, ESMTP, ESMTPS, ESMTPA, ESMTPSA, LMTPS ...

        RFC 3848; UTF8 forms come from the envelope (RFC 6531 section 4.3).
        """
        if self.kind == "lmtp":
            base = "LMTP"
        elif self.esmtp:
            base = "ESMTP"
        else:
            return "SMTP"
        return base + ("S" if self.tls else "") + ("A" if self.login is not None else "")
