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
    """The TLS of a session."""

    version: str
    """`TLSv1.2` or `TLSv1.3`."""
    cipher: str
    """The cipher's name, as OpenSSL has it."""
    server_name: str = ""
    """The name that the client asked for (SNI), "" if it asked for none."""
    client_identity: str = ""
    """The name in a client certificate that was verified, "" without one."""
    bits: int = 0
    """The size of the cipher's key, 0 if it is not known."""


@dataclass(slots=True, kw_only=True)
class Session:
    """One connection, which lives in one thread. Plugins may write to `stash` and read all else.

    Clients have to wait for the greeting (RFC 5321 section 3.1), so `speaks_within` finds some that
    do not.
    """

    id: str
    """Twelve hexadecimal digits, which are in each line of the log about this session."""
    listener: str
    """The `name` of the listener."""
    kind: str
    """The kind of the listener: `mx`, `submission` or `lmtp`."""
    hostname: str
    """The server's host name in greetings and trace fields."""
    peer: str
    """The IP address of the client as text, or `unix`. XCLIENT may change it."""
    peer_port: int = 0
    """The client's port, 0 for a unix socket."""
    name: str = ""
    """The client's name in the DNS, once a plugin looked it up and found that it has the client's
    address, or the name that a front end sent by XCLIENT; else "".
    """
    local: str = ""
    """The address of the server that the client connected to, "" for a unix socket."""
    started: float = 0.0
    """When the session began, in epoch seconds."""
    helo: str = ""
    """The name that the client gave, which is not checked; "" before the first HELO, EHLO or
    LHLO.
    """
    esmtp: bool = False
    """Whether the client said EHLO or LHLO, after that."""
    tls: TlsInfo | None = None
    """The TLS of the connection, None before STARTTLS. Behind a balancer it may be that of the
    client.
    """
    proxied: bool = False
    """Whether the PROXY header of a balancer named the client."""
    login: str | None = None
    """The authorization identity, None before AUTH succeeded."""
    trusted: bool = False
    """Whether the client belongs to a trusted network. A plugin may set it in `on_connect`, as
    `relay` does.
    """
    speaks_within: Callable[[float], bool] = field(default=is_silent, repr=False, compare=False)
    """A function that waits in `on_connect`, for the given seconds at most, and returns whether the
    client sends something before the greeting. It ends early if the client leaves or the server
    stops. Elsewhere it returns False at once.
    """
    stash: Stash = field(default_factory=Stash)
    """A place for data of plugins about this session, by `StashKey`."""

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
