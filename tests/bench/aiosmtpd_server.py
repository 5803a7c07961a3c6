"""aiosmtpd as its documentation shows it: the Mailbox handler, STARTTLS, AUTH; on two ports.

    aiosmtpd_server.py MAILDIR PORT SUBMISSION_PORT CERTIFICATE KEY

One process, as its users run it: the event loop and the storage share a thread.
"""

from __future__ import annotations

import asyncio
import hmac
import ssl
import sys

from aiosmtpd.handlers import Mailbox
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword
from clients import PASSWORD, USER


def authenticate(
    _server: SMTP, _session: object, _envelope: object, _mechanism: str, data: LoginPassword
) -> AuthResult:
    right = data.login == USER.encode()
    return AuthResult(success=right and hmac.compare_digest(data.password, PASSWORD.encode()))


async def serve(maildir: str, port: int, submission: int, certificate: str, key: str) -> None:
    handler = Mailbox(maildir)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    loop = asyncio.get_running_loop()
    limit = 64 * 1024 * 1024

    def plain() -> SMTP:
        return SMTP(handler, data_size_limit=limit, hostname="bench", loop=loop)

    def submitted() -> SMTP:
        return SMTP(
            handler,
            data_size_limit=limit,
            hostname="bench",
            loop=loop,
            tls_context=context,
            require_starttls=True,
            authenticator=authenticate,
            auth_required=True,
        )

    servers = [
        await loop.create_server(plain, "127.0.0.1", port, backlog=1024),
        await loop.create_server(submitted, "127.0.0.1", submission, backlog=1024),
    ]
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:6]))
