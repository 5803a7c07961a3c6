"""One line in the log for each refusal.

The part that knows most about a refusal logs it: the transaction a refused message, the
authentication a failed login. The conversation logs all others before it returns a 4yz or 5yz, so
no refusal is without a line. `minismtp explain` finds the lines by the session or by an address.
"""

from __future__ import annotations

from time import perf_counter
from typing import Final

from minismtp.mail.envelope import Envelope
from minismtp.mail.session import Session
from minismtp.runtime.decision_log import Record
from minismtp.runtime.dialogue_trace import abbreviated
from minismtp.runtime.log import bound
from minismtp.runtime.thread_activity import Activity
from minismtp.session.listener_context import ListenerContext
from minismtp.smtp.commands import Command, Mail, Rcpt
from minismtp.smtp.protocol import Refused, SaslResponse
from minismtp.values.reply import Reply

_MOST_RECIPIENTS: Final = 20  # refused recipients of one message that have a line each
_LONGEST: Final = 700  # characters of a client's text, enough for any address


class Refusals:
    """Logs the refusals of one session, in its thread.

    `logged` says whether the refusal that is about to be sent has its line, and `recipients` counts
    the refused recipients of the message.
    """

    def __init__(self, context: ListenerContext, session: Session, activity: Activity) -> None:
        self._context = context
        self._session = session
        self._activity = activity
        self.recipients = 0
        self.logged = False

    def log(self, event: str, reply: Reply, **fields: str | int) -> None:
        """Write the line of the refusal that is about to be sent."""
        self.logged = True
        context, session = self._context, self._session
        if context.may_log_refusal(session.peer):
            facts = {"peer": session.peer, **fields, "reply": str(reply), **self.facts(reply)}
            about = str(bound().get("id", session.id))
            context.record(Record(event, about, context.wall(), context.clock(), facts, []))

    def log_recipient(self, event: str, reply: Reply, **fields: str | int) -> None:
        """Write the line of a refused recipient, unless its message has enough of them."""
        self.logged = True
        self.recipients += 1
        if self.recipients <= _MOST_RECIPIENTS:
            self.log(event, reply, **fields)

    def log_command(
        self,
        name: str,
        reply: Reply,
        envelope: Envelope | None,
        event: Command | SaslResponse | Refused,
        line: bytes,
    ) -> None:
        """Write the line of a refused command, and note it for `explain`.

        `name` is what the metrics call the event, `line` is what the client sent, and `envelope`
        that of the transaction under way.
        """
        outcome, path = outcome_of(reply), ""
        match name:
            case "MAIL":
                known = event.reverse_path if isinstance(event, Mail) else None
                path = _path_as_it_came(line, str(known or ""))
                self.log(f"sender {outcome}", reply, sender=path)
            case "RCPT":
                known = event.forward_path if isinstance(event, Rcpt) else None
                path = _path_as_it_came(line, str(known or ""))
                sender = {"sender": envelope.sender} if envelope else {}
                self.log_recipient(f"recipient {outcome}", reply, **sender, recipient=path)
            case _:
                self.log_other(name, reply, envelope, said=_shortened(abbreviated(event, line)))
        if path and not isinstance(event, Rcpt):
            self._activity.note((name, path, perf_counter(), 0.0, "", ""))
        self._activity.note(("reply", name, perf_counter(), 0.0, str(reply.code), reply.text))

    def log_other(self, name: str, reply: Reply, envelope: Envelope | None, **said: str) -> None:
        """Write the line of a refused command, unless the refusal has one."""
        if self.logged:
            return
        fields = {"command": name} | said
        if envelope is not None:
            to = ",".join(str(each.address) for each in envelope.recipients)
            fields |= {"sender": envelope.sender, "to": to}
        self.log(f"command {outcome_of(reply)}", reply, **fields)

    def log_surplus(self) -> None:
        """Log how many refused recipients of the message had no line."""
        surplus, self.recipients = self.recipients - _MOST_RECIPIENTS, 0
        if surplus > 0:
            self._context.log_refusal(
                "more recipients refused", peer=self._session.peer, count=surplus
            )

    def facts(self, reply: Reply) -> dict[str, str | int]:
        """Return the client's name and login, and which plugin refused for what reason."""
        session, origin = self._session, reply.origin
        found = {
            "helo": session.helo[:_LONGEST],
            "login": session.login or "",
            "plugin": origin.plugin,
            "hook": origin.hook,
            "reason": origin.reason,
        }
        return {name: value for name, value in found.items() if value}


def outcome_of(reply: Reply) -> str:
    """Return "deferred" for a temporary refusal, and "rejected" for a permanent one."""
    return "deferred" if reply.category == 4 else "rejected"  # noqa: PLR2004


def _shortened(text: str) -> str:
    """Return a client's text, cut to a length that is fit for the log."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _path_as_it_came(line: bytes, parsed: str = "") -> str:
    """Return the path of MAIL or RCPT for the log: `parsed`, if the client spelled it that way.

    A path that is malformed or spelled in another way is returned as it came, with its parameters.
    """
    text = line.rstrip(b"\0").decode("utf-8", "backslashreplace")
    text = text.partition(":")[2].strip(" \t") or text
    usual = f"<{parsed}>"
    if parsed and (text == usual or text.startswith(f"{usual} ")):
        return parsed
    return _shortened(text)
