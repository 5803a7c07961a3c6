"""AUTH: from the first line of an exchange to a login or a refusal (RFC 4954)."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from minismtp.mail.events import Authenticated
from minismtp.runtime.login_backoff import wait_for_turn
from minismtp.session import replies
from minismtp.session.session_log import SessionLog
from minismtp.smtp import sasl
from minismtp.smtp.commands import Auth
from minismtp.smtp.grammar import SyntaxProblem, decode_base64
from minismtp.values.reply import Disconnect, Reject, Reply, Verdict
from minismtp.values.user_names import folded_name

_PUT_OFF: Final = "login put off"
_CANCELLED: Final = "auth cancelled"
_SIMPLE: Final[dict[str, Callable[[], sasl.Exchange]]] = {
    "PLAIN": sasl.plain,
    "LOGIN": sasl.login,
    "OAUTHBEARER": sasl.oauthbearer,
    "XOAUTH2": sasl.xoauth2,
}
_MECHANISMS: Final = ("SCRAM-SHA-256", *_SIMPLE)
_OAUTH: Final = frozenset({"OAUTHBEARER", "XOAUTH2"})


class Authentication:
    """The AUTH exchanges of one session. A successful one sets `session.login`."""

    def __init__(self, log: SessionLog) -> None:
        self._context = log.context
        self._session = log.session
        self._session_log = log
        self._exchange: sasl.Exchange | None = None
        self._mechanism = ""
        self._username = ""
        self._unlogged = ""  # the event of a failed login, until `log_refusal`
        self._token_refused = False  # whether the client knows that its token is wrong
        self.failures = 0

    @property
    def mechanisms(self) -> list[str]:
        """The mechanisms that may be used now, for the EHLO reply."""
        return self._offered() if self._allowed() else []

    def begin(self, command: Auth) -> Reply:
        """Answer AUTH with a challenge, or with the outcome if an initial response is enough."""
        if self._session.login is not None:
            return replies.ALREADY_AUTHENTICATED  # RFC 4954 section 4
        offered = self._offered()
        if not offered:
            return replies.AUTH_NOT_OFFERED
        if not self._allowed():
            return replies.ENCRYPTION_REQUIRED
        if command.mechanism not in offered:
            return replies.UNKNOWN_MECHANISM
        backoff, peer = self._context.backoff, self._session.peer
        if backoff is not None and not wait_for_turn(backoff, peer, self._context.draining):
            self.failures += 1  # or a session could ask for ever
            self._mechanism, self._unlogged = command.mechanism, _PUT_OFF
            return replies.AUTH_WAIT
        self._mechanism, self._username, self._token_refused = command.mechanism, "", False
        self._exchange = self._begun(command.mechanism)
        challenge = next(self._exchange)
        if command.initial is None:
            return _challenge(challenge)
        # "=" stands for an initial response of no octets (RFC 4954 section 4).
        return self.respond(b"" if command.initial == b"=" else command.initial)

    def respond(self, line: bytes) -> Reply:
        """Answer a line of the exchange. Blanks around it are ignored."""
        exchange = self._exchange
        line = line.strip(b" \t")
        if exchange is None:
            return replies.AUTH_CANCELLED
        if line == b"*":
            return self._end("cancelled", replies.AUTH_CANCELLED)
        try:
            return _challenge(exchange.send(decode_base64(line)))
        except StopIteration as done:
            return self._decide(done.value)
        except SyntaxProblem as problem:
            return self._end("cancelled", Reply(501, str(problem), "5.5.2"))
        except sasl.SaslProblem:
            return self._end("failure", replies.BAD_CREDENTIALS)
        except Verdict as verdict:
            return self._refused(verdict)

    def abandon(self, reply: Reply | None = None) -> None:
        """Drop the exchange under way, because `reply` refuses a line or the session ended."""
        if self._exchange is not None:
            self._finish("cancelled", refused=reply is not None)

    def log_refusal(self, reply: Reply) -> None:
        """Log the login that failed just now, if one did, with the reply to it."""
        log, event, self._unlogged = self._session_log, self._unlogged, ""
        if event == _PUT_OFF:
            log.refused(event, reply, mechanism=self._mechanism)
        elif event == _CANCELLED:
            log.refused(event, reply, **self._facts())
        elif event:
            log.logged = True
            self._log(event, reply=str(reply), **log.facts(reply))

    def _allowed(self) -> bool:
        """Return whether passwords may come, which they never may in clear over a network.

        A balancer on this machine may have taken the password from the network in clear.
        """
        context, session = self._context, self._session
        clear = context.clear_auth and (context.proxy_auth or not session.proxied)
        return session.tls is not None or clear

    def _offered(self) -> list[str]:
        """Return the mechanisms that can succeed here, the strongest one first."""
        possible, tls = self._context.hooks.mechanisms, self._session.tls
        found = [name for name in _MECHANISMS if name in possible]
        return [*found, "EXTERNAL"] if tls is not None and tls.client_identity else found

    def _begun(self, mechanism: str) -> sasl.Exchange:
        tls, context = self._session.tls, self._context
        if mechanism == "EXTERNAL" and tls is not None:
            return sasl.external(tls.client_identity)
        if mechanism == "SCRAM-SHA-256":
            spelled = folded_name if context.hooks.ignores_case else str
            return sasl.scram_sha_256(self._stored_key, context.made_up_keys, spelled)
        return _SIMPLE[mechanism]()

    def _stored_key(self, username: str) -> sasl.StoredKey | None:
        self._username = username
        return self._context.hooks.stored_key(self._session, self._mechanism, username)

    def _decide(self, result: sasl.Credentials | sasl.Proof) -> Reply:
        self._username = result.username
        if isinstance(result, sasl.Proof):
            itself = {"", folded_name(result.username)}
            identity = result.username if folded_name(result.authorization) in itself else None
        else:
            backoff = self._context.backoff
            known = backoff is not None and backoff.knows(self._session.peer, self._username)
            credentials = replace(result, known=True) if known else result
            try:
                identity = self._context.hooks.authenticate(self._session, credentials)
            except Verdict as verdict:
                return self._refused(verdict)
        if identity is None and self._mechanism in _OAUTH:
            # RFC 7628 section 3.2.3: the reason is a challenge, to be answered before the 535.
            self._exchange, self._token_refused = sasl.oauth_failure(), True
            return _challenge(next(self._exchange))
        if identity is None:
            return self._end("failure", replies.BAD_CREDENTIALS)
        self._session.login = identity
        return self._end("success", replies.AUTHENTICATED)

    def _refused(self, verdict: Verdict) -> Reply:
        """Answer a plugin's refusal. A permanent one counts as a failed login."""
        result = "failure" if isinstance(verdict, Reject) else "error"
        reply = self._end(result, _as_unavailable(verdict))
        if isinstance(verdict, Disconnect):
            raise verdict
        return reply

    def _end(self, result: str, reply: Reply) -> Reply:
        self._finish(result, refused=result != "success")
        return reply

    def _finish(self, result: str, *, refused: bool) -> None:
        """Finish the exchange: count it, log a success, and delay the next try after a failure."""
        context, session = self._context, self._session
        self._exchange = None
        if self._token_refused and result == "cancelled":
            result = "failure"
        context.metrics.add(context.metrics.auth[self._mechanism, result])
        if refused:
            self._unlogged = f"auth {result}"  # logged once the final reply is known
        elif result != "cancelled" or context.may_log_refusal(session.peer):
            self._log(f"auth {result}")
        if context.hooks.observed:
            context.hooks.observe(
                Authenticated(session.id, session.peer, self._mechanism, self._username, result)
            )
        if result == "failure":
            self.failures += 1
        if (backoff := context.backoff) is not None:
            match result:
                case "failure":
                    backoff.failed(session.peer)
                case "success":
                    backoff.succeeded(session.peer, self._username)
                case _:
                    backoff.release(session.peer)

    def _log(self, event: str, **more: str | int) -> None:
        """Write a line for fail2ban, with no limit on their number: see etc/fail2ban."""
        facts = self._facts() | more
        self._context.log.info(event, peer=self._session.peer, **facts)

    def _facts(self) -> dict[str, str | int]:
        """Return the fields of every line about a login."""
        return {
            "mechanism": self._mechanism,
            "username": self._username,
            "listener": self._session.listener,
        }


def _challenge(text: bytes) -> Reply:
    return Reply(334, base64.b64encode(text).decode("ascii"))


def _as_unavailable(verdict: Verdict) -> Reply:
    """Return the reply to a back end's refusal: 454 for a temporary one, else its own."""
    reply = verdict.reply
    if reply.category != 4 or reply.code == 421:  # noqa: PLR2004
        return reply
    origin = reply.origin
    return replies.AUTH_UNAVAILABLE.because(
        origin.reason or str(reply), plugin=origin.plugin, hook=origin.hook
    )
