"""The table `[[listeners]]` of the configuration."""

import re
import warnings
from dataclasses import MISSING, Field, dataclass, field, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias

from minismtp.config.checks import check_ciphers, check_name
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import OWN_KEY
from minismtp.config.types import Network, SocketAddress
from minismtp.values.ciphers import GENEROUS
from minismtp.values.peer import in_networks

#: The fields that messages of local users lose by default, as in Postfix (message_drop_headers).
DROP_HEADERS: Final = ("Bcc", "Resent-Bcc", "Content-Length")
_FIELD_NAME: Final = re.compile(r"[!-9;-~]{1,100}")  # RFC 5322 section 2.2

_HTTPS: Final = 443
_WEB_KEYS: Final = ("name", "address", "kind", "tls", "ciphers", "proxy_protocol")

Networks: TypeAlias = list[Network]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """One address, or one port of all addresses, where clients are served."""

    name: Annotated[
        str,
        "label in metrics and logs. `listeners` of a plugin refers to it, and a systemd socket"
        " is taken over if its `FileDescriptorName` is the same",
    ]
    address: Annotated[
        SocketAddress,
        '"*:25" serves all addresses of IPv4 and IPv6; "0.0.0.0:25" those of IPv4, "[::]:25" those'
        " of IPv6 only. May be a unix socket",
    ]
    kind: Annotated[
        Literal["mx", "submission", "lmtp", "web"],
        "mx: mail from other servers. submission: mail from users, who must log in first (530)."
        " Their messages get a Date, Message-ID and From if these are missing. lmtp: RFC 2033."
        " web: HTTP for what programs look up about our domains (docs/web.md); it has"
        " no other keys than `name`, `address`, `tls`, `ciphers` and `proxy_protocol`",
    ] = "mx"
    tls: Annotated[
        Literal["", "none", "starttls", "implicit"],
        "empty = starttls, and for a web listener implicit on port 443 and none on other ports."
        " starttls and implicit need `[tls]`. A submission listener may have none on loopback"
        " and unix sockets only. AUTH is offered inside TLS; with none, it is offered on"
        " loopback and unix sockets",
    ] = ""
    proxy_protocol: Annotated[
        Networks,
        "load balancers that must send a PROXY header, version 1 or 2. If any network is given,"
        " every client of a unix socket must send one",
    ] = field(default_factory=list)
    proxy_auth: Annotated[
        bool,
        'on a listener with tls "none", offer AUTH to all clients of the load balancers. By'
        " default it is offered only to clients that use TLS according to a version 2 header"
        " (HAProxy: `send-proxy-v2-ssl`). Set it if the load balancers accept only TLS",
    ] = False
    xclient: Annotated[
        Networks, "front ends that may use XCLIENT to pass on the address of their client"
    ] = field(default_factory=list)
    ciphers: Annotated[
        str,
        "cipher suites of TLS 1.2, in OpenSSL's format. If empty, an mx listener has those that"
        " Postfix accepts by default and RFC 9325 does not forbid, because a server that finds"
        " no common suite sends in clear text or not at all. Other listeners have the suites"
        " with forward secrecy that Python chooses",
    ] = ""
    client_certificates: Annotated[
        bool,
        "ask for a certificate signed by `client_ca`; its owner may log in with AUTH EXTERNAL."
        " Any other certificate is ignored, and the log says why",
    ] = False
    strict_pipelining: Annotated[bool, "refuse clients that do not wait for the reply to EHLO"] = (
        False
    )
    match_sender: Annotated[
        bool,
        "the sender must be the login, or an address whose mail is delivered to the login's own"
        " mailbox; otherwise 553. Whole addresses are compared. A login without a domain is a"
        " user of the first domain of `mailboxes`",
    ] = False
    match_from: Annotated[
        bool,
        "the addresses in From and Sender must belong to the login in the same way; otherwise"
        " 550 after the content",
    ] = False
    drop_headers: Annotated[
        list[str],
        "header fields to remove from messages of clients that are logged in or in a trusted"
        " network, so that blind copies stay blind. Return-Path is removed from all mail",
    ] = field(default_factory=lambda: [*DROP_HEADERS])
    add_sender: Annotated[
        bool, "add a Sender field with the login if the message has none and From differs from it"
    ] = False
    greet_delay: Annotated[
        timedelta, "wait before the banner. A client that sends something meanwhile is refused"
    ] = timedelta(0)
    key: str = field(default="", metadata=OWN_KEY, compare=False)  # such as "listeners[1]"

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.kind == "web":
            self._check_web()
        if not self.tls:
            object.__setattr__(self, "tls", "starttls" if self.kind != "web" else self._web_tls)
        self._check_drop_headers()
        check_ciphers(self.ciphers)
        if self.tls == "none" and self.kind == "submission" and not self.address.is_local:
            raise ConfigError(
                "a submission listener outside loopback must not take passwords in clear text;"
                ' expected "starttls" or "implicit"',
                key="tls",
            )
        if self.client_certificates and self.tls == "none":
            raise ConfigError(
                "clients send certificates inside TLS only; expected another `tls` than 'none'",
                key="client_certificates",
            )

    @property
    def _web_tls(self) -> str:
        return "implicit" if self.address.port == _HTTPS else "none"

    def _check_web(self) -> None:
        """Raise ConfigError for what HTTP does not know."""
        if self.tls == "starttls":
            text = 'HTTP knows no STARTTLS; expected "implicit" or "none" for a web listener'
            raise ConfigError(text, key="tls")
        for each in fields(self):
            if each.name not in (*_WEB_KEYS, "key") and getattr(self, each.name) != _default(each):
                text = f"a web listener has no such key; expected {', '.join(_WEB_KEYS)} alone"
                raise ConfigError(text, key=each.name)

    def _check_drop_headers(self) -> None:
        for number, name in enumerate(self.drop_headers):
            if not _FIELD_NAME.fullmatch(name):
                raise ConfigError(
                    f"expected the name of a header field, not {name!r}",
                    key=f"drop_headers[{number}]",
                )

    if not TYPE_CHECKING:  # or mypy would accept any name

        def __getattr__(self, name: str) -> object:
            """Return a part of `address` under the name that it had before."""
            if name not in {"host", "port", "path"}:
                raise AttributeError(f"a listener has no attribute {name!r}", name=name, obj=self)
            message = f"Listener.{name} is deprecated: use Listener.address.{name}"
            warnings.warn(message, DeprecationWarning, stacklevel=2)
            return getattr(self.address, name)

    @property
    def takes_mail(self) -> bool:
        """Whether clients of the listener speak SMTP or LMTP."""
        return self.kind != "web"

    @property
    def is_public(self) -> bool:
        """Whether others can reach the listener, maybe through a load balancer."""
        return not self.address.is_local or bool(self.proxy_protocol)

    def is_behind(self, peer: str) -> bool:
        """Return whether a peer is a load balancer, which must send a PROXY header."""
        known = self.proxy_protocol
        return bool(known) and (peer == "unix" or in_networks(peer, known))

    @property
    def suites(self) -> str:
        """The cipher suites of TLS 1.2 to use; "" for Python's own."""
        return self.ciphers or (GENEROUS if self.kind == "mx" else "")


def _default(key: Field[object]) -> object:
    return key.default_factory() if key.default_factory is not MISSING else key.default
