"""Decide about messages by conditions in the configuration.

Patterns are those of the module `regex`, because Python's own `re` cannot be interrupted. With a
pattern such as (a+)+$ a sender could block a session, and all threads of its worker. `regex`
evaluates most such patterns fast, lets other threads run meanwhile, and has a time limit.
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
from ._rule import Evaluation, Rule

_log: Final = logging.getLogger(__name__)


@plugin
class Rules:
    """Reject, defer, quarantine, discard or tag messages, or make findings, by your own rules.

    Each of the `rules` has a `name`, an `action` and conditions. It applies if all conditions in
    `all`, at least one in `any` and no condition in `none` are true. A condition tests one thing:
    that there is a field of the name `header`, or one whose value `matches`, with encoded words
    decoded; `sender` (empty for bounces), a `recipient` or `helo` by a pattern; the `peer` by
    networks; the size of the message, `larger` or `smaller` than a number of octets; or `login`,
    true or false, because rules also apply to users. International domains are compared with
    A-labels and with U-labels, in any spelling of the client. Patterns match anywhere in a value,
    without case, and are regular expressions of the module `regex`.

    The first rule that rejects (550 5.7.1), defers (451 4.7.1), quarantines or discards is the last
    one applied; `text` is the text of the reply, by default the name. tag adds a `field` (X-Rule)
    with the text, and removes such fields of the sender; finding makes a finding with `points`. All
    patterns together may take the time `budget` for a message. Then this plugin fails, and the
    message is deferred unless `on_error` says otherwise.
    """

    rules: list[Rule]
    budget: timedelta = timedelta(seconds=1)

    def __post_init__(self) -> None:
        if not self.rules:
            raise ValueError("rules: expected at least one [[plugins.rules]]")
        names = [rule.name for rule in self.rules]
        if len({*names}) < len(names):
            raise ValueError("rules: expected a different name for each")
        check_time("budget", self.budget)
        self._fields = {rule.field for rule in self.rules if rule.action == "tag"}

    @hookimpl
    def on_message(self, session: Session, envelope: Envelope, message: Message) -> None:
        """Apply the rules in their order."""
        for name in self._fields:
            message.remove(name)
        evaluation = Evaluation(session, envelope, message, self.budget.total_seconds())
        for rule in self.rules:
            if evaluation.holds(rule) and not _goes_on(rule, envelope, message):
                return


def _goes_on(rule: Rule, envelope: Envelope, message: Message) -> bool:
    """Take the action of a rule; return whether to try the next rule."""
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
