"""Ask for a client certificate, and let no certificate break a handshake.

OpenSSL ends a handshake in which it cannot verify the certificate of the client, unless a callback
lets it go on; Postfix has one. Mail servers show whatever certificate they have when they are
asked: expired, for servers only, or of an authority that we do not know. Python's ssl has no such
callback: with CERT_OPTIONAL a client may show none, but not a bad one. So the callback is given to
OpenSSL itself, by ctypes and its documented functions, in the library that Python's ssl has loaded.
Where that has none of them (a Python that hides them), CERT_OPTIONAL is all there is.

What OpenSSL has verified in this handshake is an identity, and nothing else is. A session that is
resumed is not verified again, so such listeners resume none.
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
    """What OpenSSL has told this thread since `expect`."""

    made: int | None = None  # the context that was made last
    verified = False  # whether a certificate was verified
    problem = ""  # what was wrong with it first


_handshake: Final = _Handshake()


def expect() -> None:
    """Forget the handshake before: one begins in this thread."""
    _handshake.verified, _handshake.problem = False, ""


def is_verified() -> bool:
    """Return whether the client of this thread's handshake has a valid certificate of its own."""
    return not _handshake.problem and (_handshake.verified or _library() is None)


def problem() -> str:
    """Return why the certificate that the client of this thread's handshake showed is none."""
    return _handshake.problem


def make_context() -> ssl.SSLContext:
    """Make a server's context that asks for a certificate, and takes any or none."""
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
    """Take down the context that this thread has just made."""
    _handshake.made = parent


@cache
def _library() -> Any:  # noqa: ANN401 - a library of C functions
    """Return OpenSSL's functions, and `note` for it to call; None where they cannot be had."""
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
        # The library tells `remember` of each context that it makes from now on.
        index = new_index(_EX_INDEX_SSL_CTX, 0, None, library.remember, None, None)
    except (AttributeError, OSError, MemoryError) as error:
        _log.warning("a bad client certificate ends its handshake: %s", error)
        return None
    return library if index >= 0 else None


def _note(library: Any, accepted: int, store: int) -> int:  # noqa: ANN401 - as above
    """Note what was found, and let the handshake go on."""
    if accepted:
        _handshake.verified = True
    elif not _handshake.problem:
        error = library.X509_STORE_CTX_get_error(store)
        text: bytes = library.X509_verify_cert_error_string(error)
        _handshake.problem = text.decode("ascii", "replace")
    return 1
