"""Which cipher suites of TLS 1.2 are spoken; those of TLS 1.3 need no choice.

Between mail servers TLS is opportunistic: a suite that is refused there leaves the mail in clear,
or makes it wait (RFC 7435; RFC 9325 section 5.2). So strangers get what Postfix takes by default
(`tls_medium_cipherlist`) and RFC 9325 section 4 does not forbid outright: no NULL, RC4 or anonymous
suites, and nothing below 112 bits. Suites with forward secrecy come first. Users of ours have mail
programs of our time, and get Python's own list, which has forward secrecy only.
"""

from __future__ import annotations

import os
import ssl
from typing import Final

#: What other mail servers may speak with us, best first.
GENEROUS: Final = (
    "ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES:DHE+AESGCM:DHE+CHACHA20:DHE+AES:HIGH:MEDIUM"
    ":!aNULL:!eNULL:!PSK:!SRP:!3DES:!RC4:!MD5"
)
# ffdhe2048 of RFC 7919: without parameters a server offers no DHE. Larger groups cost us more than
# they cost who asks for them, and old Java knows none above 2048 bits.
_FFDHE2048: Final = b"""-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""


def set_ciphers(context: ssl.SSLContext, ciphers: str) -> None:
    """Let a context speak these suites, "" for Python's own; raise ValueError for unknown ones."""
    if not ciphers:
        return
    try:
        context.set_ciphers(ciphers)
    except ssl.SSLError:
        raise ValueError("expected names of cipher suites as OpenSSL has them") from None


def offer_dhe(context: ssl.SSLContext) -> None:
    """Let a server agree on keys by finite fields too, where its suites have that."""
    descriptor = os.memfd_create("ffdhe2048")  # the library reads a file only
    try:
        os.write(descriptor, _FFDHE2048)
        context.load_dh_params(f"/proc/self/fd/{descriptor}")
    except OSError:
        pass  # a container may have no /proc: the other suites are left
    finally:
        os.close(descriptor)
