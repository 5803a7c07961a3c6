"""One order of a certificate from an authority (RFC 8555), with the library `acme`.

Only a process that gets a certificate imports this module, because the library takes 20 MiB. Every
failure is an `AcmeError` with one line for the administrator. A request with its connection and its
answer takes about a minute at most, and an answer has at most 1 MiB. The checks of an order have a
deadline, and the process that runs it has another one.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from math import inf
from pathlib import Path
from typing import Any, Final

import requests
from acme import challenges, client, crypto_util, errors, messages
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from josepy import jwa, jwk
from josepy.errors import Error as JsonError
from josepy.util import ComparableECKey
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError, ReadTimeoutError
from urllib3.util.ssl_ import create_urllib3_context

from minismtp import __version__
from minismtp.config import AcmeConfig
from minismtp.config.acme_table import TLS_ALPN
from minismtp.services.acme_answers import Answers
from minismtp.services.acme_schedule import AcmeError, CheckError, Failure
from minismtp.values.durable_files import without_marks

_TIMEOUT: Final = 30  # seconds between two packets of an answer
_LONGEST_CONNECT: Final = 15  # seconds for each address of the authority
_LONGEST_REQUEST: Final = 60.0  # seconds, with its connection and its answer
_DEADLINE: Final = dt.timedelta(seconds=120)  # for the checks, and again for the issue
_LONGEST_ANSWER: Final = 1 << 20  # octets
_PIECE: Final = 1 << 16  # octets read at once
_KEY: Final = re.compile("[A-Za-z0-9_-]++=*+")
_LONGEST_KEY: Final = 4096  # octets of a file
_UNSUITABLE: Final = (
    *(ValueError, KeyError, TypeError, AttributeError, JsonError),
    x509.ExtensionNotFound,
    *(OverflowError, RecursionError),  # of numbers that are too large, and JSON that is too deep
)
_SOONEST_QUESTION: Final = 3_600.0  # seconds
_LATEST_QUESTION: Final = 86_400.0


@challenges.ChallengeResponse.register
class _TlsAlpnResponse(challenges.KeyAuthorizationChallengeResponse):
    typ = TLS_ALPN


@challenges.Challenge.register
class _TlsAlpn(challenges.KeyAuthorizationChallenge):
    """A challenge of RFC 8737, which the library does not know."""

    response_cls = _TlsAlpnResponse
    typ = TLS_ALPN

    def validation(self, account_key: jwk.JWK, **_: object) -> str:
        """Return the key authorization."""
        return self.key_authorization(account_key)


class Authority:
    """A connection to an authority with the account of `key`, a PEM file's content.

    `account` is the URL of the account, "" if it is not known. Raise AcmeError.
    """

    def __init__(self, acme: AcmeConfig, key: bytes, account: str = "") -> None:
        self._acme = acme
        self._retry_after = 0.0
        self._net = client.ClientNetwork(
            _account_key(key),
            alg=jwa.ES256,
            verify_ssl=trusted(acme),  # type: ignore[arg-type]  # a path, too
            user_agent=f"minismtp/{__version__}",
            timeout=_TIMEOUT,
        )
        self._net.session.mount("https://", _BoundedAdapter())
        self._net.session.adapters.pop("http://")
        self._net.session.hooks["response"].append(self._note)
        with self._failures():
            directory = client.ClientV2.get_directory(acme.url, self._net)
            self._client = client.ClientV2(directory, self._net)
        self.account = account

    def log_in(self) -> None:
        """Use the account, or make it and agree to the terms of service. Raise AcmeError."""
        with self._failures():
            if not self.account:
                self.account = self._register()
            body = messages.Registration()
            self._net.account = messages.RegistrationResource(body=body, uri=self.account)

    def _register(self) -> str:
        wanted = messages.NewRegistration.from_data(
            email=self._acme.contact or None,
            external_account_binding=self._binding(),
            terms_of_service_agreed=True,
        )
        try:
            return str(self._client.new_account(wanted).uri)
        except errors.ConflictError as error:
            return str(error.location)

    def _binding(self) -> dict[str, Any] | None:
        path = self._acme.eab_key_file
        if path is None:
            return None
        try:
            key = binding_key(path)
            return messages.ExternalAccountBinding.from_data(
                self._net.key.public_key(),  # type: ignore[union-attr]
                self._acme.eab_key_id,
                key,
                self._client.directory,
            )
        except OSError as error:
            problem = f"eab_key_file {path}: {error.strerror}"
            raise AcmeError(problem, Failure.UNREACHED) from error
        except _UNSUITABLE as error:
            problem = f"eab_key_file {path} has no key in base64url: {error}"
            raise AcmeError(problem, Failure.UNREACHED) from error

    def issue(
        self,
        key: bytes,
        ways: Mapping[str, Answers],
        *,
        say: Callable[[str], None],
    ) -> bytes:
        """Return the certificate and its chain, PEM, for the key of a certificate.

        `ways` has the names, and how each is checked. The answers are removed at the end. `say` is
        called with each step. Raise AcmeError and OSError.
        """
        names = list(ways)
        with self._failures(), contextlib.ExitStack() as stack:
            say(f"ordering a certificate for {', '.join(names)} from {self._acme.url}")
            order = self._order(crypto_util.make_csr(key, names))
            for each in order.authorizations:
                if each.body.status != messages.STATUS_VALID:
                    path = self._answer(each, ways)
                    stack.callback(path.unlink, missing_ok=True)
            used = sorted({str(way) for way in ways.values()})
            say(f"the authority checks the names ({'; '.join(used)})")
            self._client.poll_authorizations(order, _deadline())
            say("the names are checked, waiting for the certificate")
            done = self._client.finalize_order(order, _deadline())
            return str(done.fullchain_pem).encode("ascii")

    def _order(self, request: bytes) -> messages.OrderResource:
        try:
            return self._client.new_order(request)
        except messages.Error as error:
            if error.code != "accountDoesNotExist":
                raise
        self.account, self._net.account = "", None  # the authority forgot it
        self.log_in()
        return self._client.new_order(request)

    def _answer(
        self, authorization: messages.AuthorizationResource, ways: Mapping[str, Answers]
    ) -> Path:
        """Write the answer to a challenge, have the authority ask for it, and return its file."""
        name = authorization.body.identifier.value
        way = ways[name]
        for body in authorization.body.challenges:
            if body.chall.typ == way.kind:
                break
        else:
            raise CheckError({name: f"the authority offers no check by {way.kind}"})
        token = body.chall.encode("token")
        if not token.replace("-", "").replace("_", "").isalnum() or not token.isascii():
            raise AcmeError(f"{name}: the authority sent the token {token!r}", Failure.REFUSED)
        path = way.put(name, token, body.chall.key_authorization(self._net.key))
        try:
            self._client.answer_challenge(body, body.response(self._net.key))
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    def suggestion(self, chain: bytes) -> tuple[float, float]:
        """Return when the authority wants a certificate renewed, 0 if it does not say.

        The second value is when to ask again. Both are seconds since the epoch. Raise AcmeError.
        """
        with self._failures():
            when, again = self._client.renewal_time(chain)
        now = time.time()
        pause = min(max(again.timestamp() - now, _SOONEST_QUESTION), _LATEST_QUESTION)
        return (when.timestamp() if when else 0.0), now + pause

    def _note(self, response: requests.Response, *_: object, **__: object) -> None:
        if response.status_code in {429, 503}:
            with contextlib.suppress(ValueError, OverflowError):  # no such moment, so none is kept
                when = client.ClientV2.retry_after(response, 0)
                self._retry_after = max(0.0, when.timestamp() - time.time())

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn what the library raises into AcmeError."""
        try:
            yield
        except AcmeError:
            raise
        except requests.JSONDecodeError as error:
            raise AcmeError("the authority's answer is no JSON", Failure.REFUSED) from error
        except requests.RequestException as error:
            where, why = self._acme.url, _reason(error)
            raise AcmeError(f"{where} cannot be reached: {why}", Failure.UNREACHED) from error
        except messages.Error as error:
            if failed := _named(error):
                raise CheckError(failed) from error
            text = f"the authority refuses: {error.detail or error.description or error.typ}"
            raise AcmeError(text, Failure.REFUSED, self._retry_after) from error
        except errors.ValidationError as error:
            raise CheckError(dict(_failed(error))) from error
        except errors.TimeoutError as error:
            text = f"the authority was not done after {_DEADLINE.seconds} s"
            raise AcmeError(text, Failure.REFUSED) from error
        except errors.ARIError as error:
            text = f"the authority does not say when to renew: {error.__cause__}"
            raise AcmeError(text, Failure.UNREACHED) from error
        except (errors.Error, *_UNSUITABLE) as error:
            text = f"the authority's answer makes no sense: {str(error) or type(error).__name__}"
            raise AcmeError(text, Failure.REFUSED, self._retry_after) from error


class _BoundedAdapter(HTTPAdapter):
    """Makes requests in bounded time, with answers of bounded length. It is for one thread.

    The timeouts of the library are for each packet, so an authority that sends an octet now and
    then would never exceed them.
    """

    def __init__(self) -> None:
        self._due = inf  # monotonic
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as its base
        """Make the connections, whose sockets know the deadline."""
        super().init_poolmanager(*args, ssl_context=_timed_context(self._left), **kwargs)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:  # noqa: ANN401 - as its base
        """Return the connections through a proxy, whose sockets know the deadline."""
        context = _timed_context(self._left)
        return super().proxy_manager_for(proxy, ssl_context=context, **kwargs)

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:  # type: ignore[override]  # noqa: ANN401 - as its base
        """Send a request and return the answer with its content. Raise RequestException."""
        self._due, content = time.monotonic() + _LONGEST_REQUEST, b""
        kwargs |= {"stream": True, "timeout": (_LONGEST_CONNECT, _TIMEOUT)}
        response = super().send(request, **kwargs)
        try:
            while piece := response.raw.read1(_PIECE, decode_content=True):
                content += piece
                if len(content) > _LONGEST_ANSWER:
                    response.close()
                    problem = f"the answer is longer than {_LONGEST_ANSWER} octets"
                    raise requests.ConnectionError(problem)
        except ReadTimeoutError as error:  # the library turns only those of the header into its own
            raise requests.ReadTimeout(error) from error
        except HTTPError as error:
            raise requests.ConnectionError(error) from error
        response._content = content  # noqa: SLF001 - what `Response.content` reads
        return response

    def _left(self) -> float:
        """Return the seconds for the next packet. Raise OSError after the deadline."""
        left = self._due - time.monotonic()
        if left <= 0:
            raise OSError(f"the answer takes longer than {_LONGEST_REQUEST:g} s")
        return min(left, _TIMEOUT)


def _timed_context(left: Callable[[], float]) -> ssl.SSLContext:
    """Return a context for TLS whose sockets wait for `left` seconds at most for each packet."""

    class Timed(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            self.settimeout(left())
            super().do_handshake(block)

        def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:  # noqa: ANN401 - as its base
            self.settimeout(left())
            try:
                return super().recv_into(buffer, nbytes, flags)
            except TimeoutError:
                left()  # after the deadline, it tells
                raise

    context = create_urllib3_context()
    context.sslsocket_class = Timed
    return context


def binding_key(path: Path) -> str:
    """Return the key of an external account binding in a file. Raise OSError or ValueError."""
    with path.open("rb") as file:
        key = without_marks(file.read(_LONGEST_KEY)).decode("ascii").strip()
    if not _KEY.fullmatch(key):
        raise ValueError("expected letters, digits, '-' and '_'")
    return key


def _account_key(pem: bytes) -> jwk.JWKEC:
    key = serialization.load_pem_private_key(pem, password=None)
    return jwk.JWKEC(key=ComparableECKey(key))  # type: ignore[arg-type]


def trusted(acme: AcmeConfig) -> str | bool:
    """Return the file or directory of the authorities for TLS, the system's if none is named."""
    if acme.directory_ca is not None:
        return str(acme.directory_ca)
    known = ssl.get_default_verify_paths()
    if known.cafile is not None:
        return known.cafile
    # Without the package ca-certificates, as in many containers, those that come with `requests`.
    return known.capath if known.capath and any(Path(known.capath).iterdir()) else True


def _deadline() -> dt.datetime:
    return dt.datetime.now() + _DEADLINE  # noqa: DTZ005 - as the library compares it


def _reason(error: BaseException) -> str:
    """Return why a request failed, without the layers of the libraries."""
    reason = error
    while (inner := _inner(reason)) is not None:
        reason = inner
    if isinstance(reason, ssl.SSLCertVerificationError):
        text = f"its certificate is not trusted: {reason.verify_message}"
        timely = "expired" in text or "not yet valid" in text
        return f"{text}; is the clock right?" if timely else text
    if isinstance(error, requests.Timeout):
        return f"no answer within {_TIMEOUT} s"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return str(reason).rpartition(">: ")[2] or type(reason).__name__


def _inner(error: BaseException) -> BaseException | None:
    for found in (getattr(error, "reason", None), *error.args, error.__cause__):
        if isinstance(found, BaseException) and found is not error:
            return found
    return None


def _failed(error: errors.ValidationError) -> Iterator[tuple[str, str]]:
    for authorization in error.failed_authzrs:
        name = authorization.body.identifier.value
        for body in authorization.body.challenges:
            if body.error is not None:
                yield name, body.error.detail or body.error.description or body.error.typ


def _named(error: messages.Error) -> dict[str, str]:
    """Return what the authority says against single names (RFC 8555 section 6.7.1)."""
    return {
        each.identifier.value: each.detail or each.description or each.typ
        for each in error.subproblems or ()
        if each.identifier is not None
    }
