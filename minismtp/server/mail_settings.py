"""How mail programs set themselves up: the pages that they ask for, in the form of each.

Thunderbird and many others read clientConfig 1.1, Outlook the answer of Autodiscover (POX), and the
devices of Apple a configuration profile. All of them contain the same `Settings`: the IMAP server
of `[autoconfig]` and the submission listeners. The pages are the same for every local part, so they
do not show which users exist.
"""

from __future__ import annotations

import plistlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal
from xml.sax.saxutils import escape

from minismtp.config import Config, Listener
from minismtp.values.address import Address

_RESPONSE: Final = "http://schemas.microsoft.com/exchange/autodiscover/responseschema/2006"
_OUTLOOK: Final = "http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a"
_NAMESPACE: Final = uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")  # for names of the DNS


@dataclass(frozen=True, slots=True)
class MailServer:
    """A server that a mail program uses. With `starttls`, TLS begins after STARTTLS."""

    kind: Literal["imap", "smtp"]
    host: str
    port: int
    starttls: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """The servers for the users of this server, the best one of each kind first.

    `whole_address` says that users log in by their address, and not by its local part.
    """

    imap: MailServer
    smtp: tuple[MailServer, ...]
    whole_address: bool

    @classmethod
    def of(cls, config: Config) -> Settings:
        """Return the settings that the configuration describes; `smtp` may be empty."""
        table = config.autoconfig
        host = table.imap_host or config.hostname
        return cls(
            MailServer("imap", host, table.imap_port, table.imap_tls == "starttls"),
            tuple(sorted(_submission(config), key=lambda each: each.starttls)),
            table.login == "address",
        )

    def login(self, address: Address) -> str:
        """Return the name by which a user logs in."""
        return str(address) if self.whole_address else address.local


def _submission(config: Config) -> Iterator[MailServer]:
    """Yield the submission servers that users can reach, one for each port."""
    seen = set()
    for listener in config.listeners:
        if listener.kind == "submission" and listener.address.port not in seen:
            seen.add(listener.address.port)
            if not listener.address.is_local or listener.proxy_protocol:
                yield _submission_server(config, listener)


def _submission_server(config: Config, listener: Listener) -> MailServer:
    host = config.autoconfig.smtp_host or config.hostname
    return MailServer("smtp", host, listener.address.port, listener.tls == "starttls")


def client_config(settings: Settings, domain: str) -> bytes:
    """Return the file config-v1.1.xml for a domain."""
    user = "%EMAILADDRESS%" if settings.whole_address else "%EMAILLOCALPART%"
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<clientConfig version="1.1">',
        f'  <emailProvider id="{escape(domain)}">',
        f"    <domain>{escape(domain)}</domain>",
        f"    <displayName>{escape(domain)}</displayName>",
        f"    <displayShortName>{escape(domain)}</displayShortName>",
    ]
    for server in (settings.imap, *settings.smtp):
        side = "incoming" if server.kind == "imap" else "outgoing"
        lines += [
            f'    <{side}Server type="{server.kind}">',
            f"      <hostname>{escape(server.host)}</hostname>",
            f"      <port>{server.port}</port>",
            f"      <socketType>{'STARTTLS' if server.starttls else 'SSL'}</socketType>",
            f"      <username>{user}</username>",
            "      <authentication>password-cleartext</authentication>",  # inside TLS
            f"    </{side}Server>",
        ]
    lines += ["  </emailProvider>", "</clientConfig>", ""]
    return "\n".join(lines).encode()


def autodiscover(settings: Settings, address: Address) -> bytes:
    """Return the answer of Autodiscover for an address ([MS-OXDSCLI] section 2.2.4)."""
    login = escape(settings.login(address))
    lines = [
        f'  <Response xmlns="{_OUTLOOK}">',
        f"    <User><DisplayName>{escape(str(address))}</DisplayName></User>",
        "    <Account>",
        "      <AccountType>email</AccountType>",
        "      <Action>settings</Action>",
    ]
    for server in (settings.imap, *settings.smtp[:1]):
        lines += [
            "      <Protocol>",
            f"        <Type>{server.kind.upper()}</Type>",
            f"        <Server>{escape(server.host)}</Server>",
            f"        <Port>{server.port}</Port>",
            f"        <LoginName>{login}</LoginName>",
            "        <DomainRequired>off</DomainRequired>",
            "        <SPA>off</SPA>",
            "        <SSL>on</SSL>",
            f"        <Encryption>{'TLS' if server.starttls else 'SSL'}</Encryption>",
            "        <AuthRequired>on</AuthRequired>",
        ]
        if server.kind == "smtp":
            lines += ["        <UsePOPAuth>off</UsePOPAuth>", "        <SMTPLast>off</SMTPLast>"]
        lines += ["      </Protocol>"]
    return _envelope(*lines, "    </Account>", "  </Response>")


def autodiscover_error() -> bytes:
    """Return the answer of Autodiscover to a request that names no address of this server."""
    return _envelope(
        "  <Response>",
        '    <Error Time="00:00:00" Id="0">',
        "      <ErrorCode>600</ErrorCode>",
        "      <Message>Invalid Request</Message>",
        "      <DebugData />",
        "    </Error>",
        "  </Response>",
    )


def _envelope(*lines: str) -> bytes:
    first = ['<?xml version="1.0" encoding="utf-8"?>', f'<Autodiscover xmlns="{_RESPONSE}">']
    return "\n".join([*first, *lines, "</Autodiscover>", ""]).encode()


def mobileconfig(settings: Settings, address: Address) -> bytes:
    """Return Apple's configuration profile for an address, without a signature.

    It has a payload com.apple.mail.managed. Its identifiers depend on the address alone, so a
    newer profile replaces an older one on the device.
    """
    incoming, outgoing, login = settings.imap, settings.smtp[0], settings.login(address)
    name = ".".join(reversed(address.ascii_domain.split(".")))
    identifier = f"{name}.mail.{uuid.uuid5(_NAMESPACE, str(address))}"
    account: dict[str, Any] = {
        "PayloadType": "com.apple.mail.managed",
        **_payload(f"{identifier}.account", str(address)),
        "EmailAccountDescription": str(address),
        "EmailAccountType": "EmailTypeIMAP",
        "EmailAddress": str(address),
        "OutgoingPasswordSameAsIncomingPassword": True,
    }
    for side, server in (("Incoming", incoming), ("Outgoing", outgoing)):
        account |= {
            f"{side}MailServerAuthentication": "EmailAuthPassword",
            f"{side}MailServerHostName": server.host,
            f"{side}MailServerPortNumber": server.port,
            f"{side}MailServerUseSSL": True,
            f"{side}MailServerUsername": login,
        }
    profile = {
        "PayloadType": "Configuration",
        **_payload(identifier, f"Mail for {address}"),
        "PayloadOrganization": address.ascii_domain,
        "PayloadContent": [account],
    }
    return plistlib.dumps(profile)


def _payload(identifier: str, name: str) -> dict[str, Any]:
    return {
        "PayloadDisplayName": name,
        "PayloadIdentifier": identifier,
        "PayloadUUID": str(uuid.uuid5(_NAMESPACE, identifier)).upper(),
        "PayloadVersion": 1,
    }
