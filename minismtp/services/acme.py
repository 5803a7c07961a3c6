"""Gets and renews the certificate of `[tls.acme]`: one attempt, and what it leaves on disk.

The wait after a failure is on disk before an attempt begins. So a process that dies again and again
asks the authority no more often than one that fails. The certificate in use is replaced only by one
that fits its key and the names. Whatever fails, it stays, and the running workers serve it.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Collection
from functools import partial

import msgspec

from minismtp.config import AcmeConfig, Config
from minismtp.services.acme_addresses import names_without_address
from minismtp.services.acme_answers import answers_of
from minismtp.services.acme_client import Authority
from minismtp.services.acme_files import (
    AcmeFiles,
    State,
    is_of_service,
    is_time_to_ask,
    requested,
)
from minismtp.services.acme_order import Issued, order
from minismtp.services.acme_schedule import (
    MOST_LOOKS,
    NO_ADDRESS,
    AbsentError,
    AcmeError,
    CheckError,
    Failure,
    is_due,
    is_near_end,
    is_self_signed,
    wait,
)
from minismtp.services.certificate_file import Certificate, certificates_in
from minismtp.services.resolver import Resolver


def get_certificate(
    config: Config,
    say: Callable[[str], None] = lambda _: None,
    resolver: Resolver | None = None,
    *,
    new_key: bool = False,
) -> Certificate:
    """Get a certificate now, make it the one in use, and return it.

    It has the key of the one in use, or a new one with `new_key`. `say` is called with each step.
    With a `resolver`, which must not know old answers, the first attempts leave out names that have
    no address in the DNS yet, and raise AbsentError if the others are not enough. Raise AcmeError
    after a failure, which is noted with the time of the next attempt; and BusyError if another
    process is at it. Blocks for some minutes at most.
    """
    acme, files = _table(config), AcmeFiles.of(config)
    try:
        with files.locked():
            return _Attempt(config, acme, files, say, resolver).run(new_key=new_key)
    except OSError as error:  # before anything could be noted
        raise _local(error, files) from error


def ask_for_renewal(config: Config) -> State:
    """Ask the authority when it wants the certificate renewed, if it is time for that question.

    Return the state with its answer. Raise AcmeError, BusyError and OSError.
    """
    acme, files = _table(config), AcmeFiles.of(config)
    with files.locked():
        state, certificate = files.state(), files.present()
        if certificate is None or is_self_signed(certificate) or not is_time_to_ask(state):
            return state
        state = msgspec.structs.replace(state, ask_after=time.time() + 86_400.0)
        files.write_state(state)
        authority = Authority(acme, files.account_key_pem())
        suggested, again = authority.suggestion(files.certificate.read_bytes())
        state = msgspec.structs.replace(state, suggested=suggested, ask_after=again)
        files.write_state(state)
        return state


class _Attempt:
    def __init__(
        self,
        config: Config,
        acme: AcmeConfig,
        files: AcmeFiles,
        say: Callable[[str], None],
        resolver: Resolver | None,
    ) -> None:
        self._config = config
        self._acme = acme
        self._files = files
        self._say = say
        self._resolver = resolver
        self._state = files.state()
        self._ordered = False  # whether the authority may have issued a certificate

    def run(self, *, new_key: bool) -> Certificate:
        """Make the attempt. Raise AcmeError."""
        wanted = requested(self._acme)
        if self._state.request != wanted:
            self._state = msgspec.structs.replace(self._state, failures=0, looks=0)
        absent, looks = self._absent(new_key=new_key)
        failures = self._state.failures + 1
        self._note(
            request=wanted,
            attempted=time.time(),
            failures=failures,
            looks=0 if absent else looks,
            error="the attempt was interrupted",
            wait_until=time.time() + wait(Failure.REFUSED, failures),
        )
        try:
            certificate, problem = self._certificate(absent, new_key=new_key)
        except OSError as error:
            failed = _local(error, self._files)
            if self._ordered:
                failed.failure = Failure.REFUSED
        except AcmeError as error:
            failed = error
        else:
            done = {"issued": wanted, "renewed": time.time(), "suggested": 0.0, "ask_after": 0.0}
            if problem is None:
                self._note(failures=0, error="", wait_until=0.0, **done)
            elif isinstance(problem, AbsentError):
                self._note_absent(problem, looks, failures=0, **done)
            else:
                pause = wait(problem.failure, failures)
                self._note(error=str(problem), wait_until=time.time() + pause, **done)
            return certificate
        self._files.drop_key()
        pause = wait(failed.failure, failures, failed.ordered)
        self._note(error=str(failed), wait_until=time.time() + pause)
        raise failed

    def _absent(self, *, new_key: bool) -> tuple[list[str], int]:
        """Return the names to leave out, and how many attempts in a row found such names.

        Names of the certificate in use are not looked up, because an authority checked them. Raise
        AbsentError if the others are not enough.
        """
        if self._resolver is None:
            return [], 0
        names, known = self._acme.names, self._known
        new = [name for name in names if known is None or name not in known.names]
        absent = names_without_address(new, self._resolver)
        if not absent:
            return [], 0
        looks = self._state.looks + 1
        if looks > MOST_LOOKS:
            return [], MOST_LOOKS + 1
        if not self._is_enough([name for name in names if name not in absent], new_key=new_key):
            error = AbsentError(absent)
            request, now = requested(self._acme), time.time()
            self._note_absent(error, looks, request=request, attempted=now)
            raise error
        return absent, looks

    def _note_absent(self, error: AbsentError, looks: int, **changes: object) -> None:
        until = time.time() + wait(error.failure, looks)
        self._note(error=str(error), looks=looks, wait_until=until, **changes)

    def _certificate(
        self, absent: Collection[str], *, new_key: bool
    ) -> tuple[Certificate, AcmeError | None]:
        """Get a certificate, and return it with the error that says which names it lacks."""
        acme, files = self._acme, self._files
        account_key, key = self._account_key(), files.prepare_key(acme.key_type, new=new_key)
        answers = answers_of(self._config)
        known = self._state.account if self._state.account_directory == acme.url else ""
        try:
            authority = Authority(acme, account_key, known)
        except (ValueError, TypeError) as error:
            raise AcmeError(
                f"{files.account_key} contains no key: {error}; if it is moved away, the next"
                " attempt makes a new account",
                Failure.UNREACHED,
            ) from error
        self._say(f"logging in at {acme.url}")
        try:
            authority.log_in()
            self._ordered = True
            issue = partial(authority.issue, key, say=self._say)
            is_enough = partial(self._is_enough, new_key=new_key)
            names = [name for name in acme.names if name not in absent]
            issued = order(issue, names, answers, is_enough, self._say)
        finally:
            self._note(account=authority.account, account_directory=acme.url)
        certificate = self._checked(key, issued)
        files.install(key, issued.chain)
        self._say(f"{files.certificate} has the new certificate")
        if issued.missing:
            return certificate, CheckError(issued.missing | dict.fromkeys(absent, NO_ADDRESS))
        return certificate, AbsentError([*absent]) if absent else None

    def _is_enough(self, names: Collection[str], *, new_key: bool) -> bool:
        """Return whether a certificate for these names is worth having.

        It has the host name. It has each name of the one in use, until that is near its end. And it
        has a further name, unless it is time for another certificate anyway.
        """
        first = self._config.hostname.lower().removesuffix(".")
        wanted, now = self._acme.names, time.time()
        if (first if first in wanted else wanted[0]) not in names:
            return False
        known = self._known
        if known is None or not is_of_service(self._acme, self._state):
            return True
        present = {name for name in known.names if name in wanted}
        if not is_near_end(known, now) and not present.issubset(names):
            return False
        return new_key or not present.issuperset(names) or is_due(known, self._state, now)

    @property
    def _known(self) -> Certificate | None:
        """The certificate of an authority that is in use."""
        try:
            found = self._files.present()
        except ValueError:
            return None
        return None if found is None or is_self_signed(found) else found

    def _account_key(self) -> bytes:
        try:
            return self._files.account_key_pem()
        except PermissionError as error:
            problem = f"{self._files.account_key}: {error.strerror}; expected mode 0600"
            raise AcmeError(
                f"{problem}, and the server's user as owner", Failure.UNREACHED
            ) from error

    def _checked(self, key: bytes, issued: Issued) -> Certificate:
        """Return the first certificate of a chain. Raise AcmeError if it is of no use."""
        try:
            certificate = certificates_in(issued.chain)[0]
        except (ValueError, IndexError) as error:
            problem = f"the authority sent no certificate: {error}"
            raise AcmeError(problem, Failure.REFUSED) from error
        now = time.time()
        if missing := set(issued.names) - set(certificate.names):
            problem = f"the new certificate is not for {', '.join(sorted(missing))}"
            raise AcmeError(problem, Failure.REFUSED)
        if certificate.end < now:
            problem = "the new certificate has expired already; is the clock right?"
            raise AcmeError(problem, Failure.REFUSED)
        if certificate.begin > now:
            self._say("the new certificate is not valid yet; is the clock right?")
        try:
            self._files.try_out(key, issued.chain)
        except ssl.SSLError as error:
            problem = f"the new certificate cannot be used with its key: {error.reason}"
            raise AcmeError(problem, Failure.REFUSED) from error
        return certificate

    def _note(self, **changes: object) -> None:
        self._state = msgspec.structs.replace(self._state, **changes)
        self._files.write_state(self._state)


def _local(error: OSError, files: AcmeFiles) -> AcmeError:
    # An error of write(2) has no name.
    place = error.filename or files.directory
    return AcmeError(f"{place}: {error.strerror or error}", Failure.UNREACHED)


def _table(config: Config) -> AcmeConfig:
    if config.tls.acme is None:
        raise ValueError("the configuration has no table [tls.acme]")
    return config.tls.acme
