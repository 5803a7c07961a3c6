"""Ask for a client certificate, and let no certificate break a handshake.

OpenSSL ends a handshake in which it cannot verify the client's certificate, unless a callback lets
it go on, as in Postfix. Mail servers that are asked for a certificate show the one they have, even
if it is expired, for servers only, or of an unknown authority. Python's ssl has no such callback:
with CERT_OPTIONAL a client may omit its certificate, but not show a bad one. So this module sets
the callback by ctypes and OpenSSL's documented functions, in the library that Python's ssl loaded.
Where that Python hides these functions, CERT_OPTIONAL has to do.

Only what OpenSSL verified in this handshake is an identity. OpenSSL does not verify a resumed
session again, so these listeners allow no resumption.
"""

from __future__ import annotations

import _ssl
import ctypes
import logging
import ssl
import threading
from functools import cache, partial
from typing import Any, Final

_log = logging.getLogger(__name__)
_EX_INDEX_SSL_CTX: Final = 1  # CRYPTO_EX_INDEX_SSL_CTX
_VERIFY_PEER: Final = 1  # SSL_VERIFY_PEER
_SET_CACHE_MODE: Final = 44  # SSL_CTRL_SET_SESS_CACHE_MODE
_POINTER: Final = ctypes.c_void_p
# void CRYPTO_EX_new(void *parent, void *ptr, CRYPTO_EX_DATA *ad, int idx, long argl, void *argp)
_ExNew: Final = ctypes.CFUNCTYPE(
    None, _POINTER, _POINTER, _POINTER, ctypes.c_int, ctypes.c_long, _POINTER
)
# int SSL_verify_cb(int preverify_ok, X509_STORE_CTX *x509_ctx)
_Verify: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, _POINTER)


class _Handshake(threading.local):
    """What OpenSSL told this thread since `expect`."""

    made: int | None = None  # the address of the newest context
    verified = False  # whether a certificate was verified
    problem = ""  # the first error of its verification


_handshake: Final = _Handshake()


def expect() -> None:
    """Forget the last handshake of this thread, because the next one begins."""
    _handshake.verified, _handshake.problem = False, ""


def is_verified() -> bool:
    """Return whether the client of this thread's handshake has a valid certificate of its own."""
    return not _handshake.problem and (_handshake.verified or _library() is None)


def problem() -> str:
    """Return why the certificate in this thread's handshake is not valid, "" if it is."""
    return _handshake.problem


def make_context() -> ssl.SSLContext:
    """Return a server's context that asks for a certificate and accepts any, or its absence."""
    library = _library()
    _handshake.made = None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    if library is not None and _handshake.made is not None:
        library.SSL_CTX_set_verify(_handshake.made, _VERIFY_PEER, library.note)
        library.SSL_CTX_ctrl(_handshake.made, _SET_CACHE_MODE, 0, None)
    return context


def _remember(parent: int, *_: object) -> None:
    """Note the address of the context that OpenSSL makes in this thread."""
    _handshake.made = parent


@cache
def _library() -> Any:  # noqa: ANN401 - a library of C functions
    """Return OpenSSL's functions with `note` for it to call; None where they are hidden."""
    try:
        library: Any = ctypes.CDLL(getattr(_ssl, "__file__", None))
        library.SSL_CTX_set_verify.argtypes = [_POINTER, ctypes.c_int, _Verify]
        library.SSL_CTX_set_verify.restype = None
        library.SSL_CTX_ctrl.argtypes = [_POINTER, ctypes.c_int, ctypes.c_long, _POINTER]
        library.SSL_CTX_ctrl.restype = ctypes.c_long
        library.X509_STORE_CTX_get_error.argtypes = [_POINTER]
        library.X509_verify_cert_error_string.argtypes = [ctypes.c_long]
        library.X509_verify_cert_error_string.restype = ctypes.c_char_p
        new_index = library.CRYPTO_get_ex_new_index
        new_index.argtypes = [ctypes.c_int, ctypes.c_long, _POINTER, _ExNew, _POINTER, _POINTER]
        library.remember, library.note = _ExNew(_remember), _Verify(partial(_note, library))
        # From here on the library calls `remember` for each new context.
        index = new_index(_EX_INDEX_SSL_CTX, 0, None, library.remember, None, None)
    except (AttributeError, OSError, MemoryError) as error:
        _log.warning(
            "bad client certificates end their handshakes, as OpenSSL's functions are hidden: %s",
            error,
        )
        return None
    return library if index >= 0 else None


def _note(library: Any, accepted: int, store: int) -> int:  # noqa: ANN401 - as above
    """Note the result of the verification, and let the handshake go on."""
    if accepted:
        _handshake.verified = True
    elif not _handshake.problem:
        error = library.X509_STORE_CTX_get_error(store)
        text: bytes = library.X509_verify_cert_error_string(error)
        _handshake.problem = text.decode("ascii", "replace")
    return 1
