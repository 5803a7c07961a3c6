"""Decide about messages by small conditions in the configuration.

Patterns are those of the module `regex`, not of Python's own `re`, which cannot be interrupted: a
pattern such as (a+)+$ would hold a session, and the other threads of its worker with it, for as
long as a sender likes. `regex` knows most such patterns to be harmless, lets other threads run
meanwhile, and stops when its time is over.
"""

import logging
from datetime import timedelta
from typing import Final

from minismtp import (
    Defer,
    Envelope,
    Finding,
    Message,
    Reject,
    Session,
    findings_of,
    hookimpl,
    plugin,
)

from ._options import check_time
from ._rule import Rule, Trial

_log: Final = logging.getLogger(__name__)


@plugin
class Rules:
    """Reject, defer, quarantine, discard or tag messages, or leave findings, by rules of your own.

    Each of the `rules` has a `name`, an `action` and conditions: it holds when all of `all`, one of
    `any` at least and nothing of `none` do. A condition tests one thing: `header`, the name of a
    field that is there, or has a value that `matches`, encoded words decoded; `sender` (empty for
    bounces), a `recipient` or `helo` by a pattern; the `peer` by networks; the size of the message,
    `larger` or `smaller` than so many octets; or `login` true or false: rules are for users too.
    An international domain is found with A-labels and with U-labels, however the client spelled it.
    Patterns are found anywhere, in upper and lower case, as regular expressions of the module
    `regex`.

    The first rule that rejects (550 5.7.1), defers (451 4.7.1), quarantines or discards is the
    last; `text` is what the reply says, else the name. With tag the message gets a `field` (X-Rule)
    with the text, and such fields from elsewhere are removed before; finding leaves `points`. All
    patterns together may take so much time as `budget` for a message; then this plugin has failed,
    and the message is deferred unless `on_error` says otherwise.
    """

    rules: list[Rule]
    budget: timedelta = timedelta(seconds=1)

    def __post_init__(self) -> None:
        if not self.rules:
            raise ValueError("rules: expected at least one [[plugins.rules]]")
        names = [rule.name for rule in self.rules]
        if len({*names}) < len(names):
            raise ValueError("rules: expected a name of its own for each")
        check_time("budget", self.budget)
        self._fields = {rule.field for rule in self.rules if rule.action == "tag"}

    @hookimpl
    def on_message(self, session: Session, envelope: Envelope, message: Message) -> None:
        """Try the rules in their order."""
        for name in self._fields:
            message.remove(name)
        trial = Trial(session, envelope, message, self.budget.total_seconds())
        for rule in self.rules:
            if trial.holds(rule) and not _goes_on(rule, envelope, message):
                return


def _goes_on(rule: Rule, envelope: Envelope, message: Message) -> bool:
    """Do what a rule says; tell whether the next rule is to be tried."""
    text = rule.text or rule.name
    _log.info("rule %r: %s", rule.name, rule.action)
    match rule.action:
        case "reject":
            raise Reject(text)
        case "defer":
            raise Defer(text)
        case "quarantine":
            message.quarantine(text)
        case "discard":
            message.discard(text)
        case "tag":
            message.prepend(rule.field, text)
        case "finding":
            findings_of(envelope).append(Finding("rules", rule.name, rule.points, text))
    return rule.action in ("tag", "finding")
