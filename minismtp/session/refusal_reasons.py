"""The stage and the kind of reason of a refusal, as `minismtp_refusals_total` counts them.

Both are words of fixed sets, because a client or a plugin chooses the text of a reply. The reason
follows from the enhanced status code (RFC 3463), which says more than the reply code.
"""

from __future__ import annotations

from typing import Final

from minismtp.values.reply import Reply

#: The stage of a session in which a command is refused; others are "other".
_STAGES: Final = {
    "CONNECT": "connect",
    **dict.fromkeys(("EHLO", "HELO", "LHLO"), "helo"),
    **{name: name.lower() for name in ("AUTH", "MAIL", "RCPT", "DATA")},
    **dict.fromkeys(("BDAT", "CONTENT"), "content"),
}
#: Reasons by subject and detail of the enhanced code, then by subject alone.
_REASONS: Final = {
    "2.2": "mailbox_full",
    "3.1": "disk_full",
    "3.4": "size",
    "5.3": "recipients",
    **dict.fromkeys(("7.8", "7.9", "7.11"), "login"),
    "1": "address",
    "2": "mailbox",
    "3": "system",
    "4": "routing",
    "5": "protocol",
    "6": "content",
    "7": "policy",
}
#: Reasons by reply code, for the greeting and EHLO, whose replies have no enhanced code.
_BY_CODE: Final = {452: "system", **dict.fromkeys((500, 501, 502, 503, 504, 555), "protocol")}
_LOGIN_REQUIRED: Final = 530  # RFC 4954 section 6
#: Every reason there is.
REASONS: Final = frozenset({*_REASONS.values(), "failure", "relaying"})


def stage_of(command: str) -> str:
    """Return the stage of a command, named as in the metrics; "CONNECT" is before the banner."""
    return _STAGES.get(command, "other")


def reason_of(stage: str, reply: Reply) -> str:
    """Return the kind of reason of a refusal, one of `REASONS`."""
    if reply.origin.reason.startswith("failed:"):
        return "failure"  # of a plugin, see `hooks.guard`
    subject = reply.enhanced.partition(".")[2]
    found = _REASONS.get(subject) or _REASONS.get(subject.partition(".")[0])
    found = found or _BY_CODE.get(reply.code, "policy")
    if found == "policy" and (stage == "auth" or reply.code == _LOGIN_REQUIRED):
        return "login"
    if found == "policy" and stage == "rcpt" and not reply.origin.plugin:
        return "relaying"  # no plugin has a route for the recipient
    return found
