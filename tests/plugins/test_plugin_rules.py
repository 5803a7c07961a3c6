"""Rules: conditions, actions, and the time of patterns."""

from __future__ import annotations

import itertools
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import pytest
import tomli
from fakes import envelope
from minismtp_plugins.rules import Condition, Rule, Rules

from minismtp import ByteSize, Content, Envelope, Message, Session, findings_of
from minismtp.config import Config, PluginConfig
from minismtp.config.mistakes import ConfigError
from minismtp.config.toml_values import build
from minismtp.hooks.loader import PluginSet
from minismtp.testing import Dialogue, Mailroom

CONTENT: Final = (
    b"Subject: =?utf-8?Q?Gro=C3=9Fe?=\r\n =?utf-8?Q?_Rechnung?=\r\n"
    b"List-Id: <a.example>\r\nTo: first\r\nTO: second\r\n\r\nSubject: body\r\n"
)


def session(peer: str = "192.0.2.1", login: str | None = None) -> Session:
    return Session(
        id="1",
        listener="smtp",
        kind="mx",
        hostname="mx.example.org",
        peer=peer,
        helo="mail.client.example",
        login=login,
    )


def made(text: str, tmp_path: Path = Path()) -> Rules:
    """Make the plugin of the table in TOML."""
    return build(Rules, tomli.loads(text), file="c", key="plugins[0]", base=tmp_path)


def judged(
    plugin: Rules,
    place: Envelope | None = None,
    content: bytes = CONTENT,
    client: Session | None = None,
) -> Message:
    message = Message("1", Content.of(content))
    plugin.on_message(client or session(), place or envelope(), message)
    return message


def holds(condition: str, client: Session | None = None) -> bool:
    """Return whether a condition in TOML holds for the message above."""
    rule = f'[[rules]]\nname = "it"\naction = "discard"\nall = [{{ {condition} }}]\n'
    place = envelope("first@example.org", "second@example.org")
    return judged(made(rule), place, client=client).discarded == "it"


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ('header = "list-id"', True),
        ('header = "List-Post"', False),
        ('header = "Subject", matches = "gro\u00dfe rechnung"', True),
        ('header = "Subject", matches = "body"', False),
        ('header = "Subject", matches = "(?-i:rechnung)"', False),
        ('header = "To", matches = "^second$"', True),
        ('header = "Cc", matches = ""', False),
        ('header = "Cc", matches = ".*"', False),
        ("sender = '@client\\.example$'", True),
        ('sender = "^$"', False),
        ('recipient = "^SECOND@"', True),
        ('recipient = "^third@"', False),
        ('helo = "mail"', True),
        ('helo = "^localhost$"', False),
        ('peer = ["198.51.100.0/24", "192.0.2.0/24"]', True),
        ('peer = ["2001:db8::/32"]', False),
        (f"larger = {len(CONTENT) - 1}", True),
        (f"larger = {len(CONTENT)}", False),
        (f"smaller = {len(CONTENT) + 1}", True),
        (f"smaller = {len(CONTENT)}", False),
        ("login = false", True),
        ("login = true", False),
    ],
)
def test_condition_holds(condition: str, *, expected: bool) -> None:
    assert holds(condition) is expected


def test_condition_of_a_login_and_of_a_peer_holds() -> None:
    assert holds("login = true", session(login="alice"))
    assert holds('peer = ["2001:db8::/32"]', session("2001:db8::1"))
    assert not holds('peer = ["0.0.0.0/0", "::/0"]', session("unix"))


def test_bounce_has_an_empty_sender() -> None:
    place = envelope()
    place.reverse_path = None
    rule = '[[rules]]\nname = "it"\naction = "discard"\nall = [{ sender = "^$" }]\n'
    assert judged(made(rule), place).discarded == "it"


YES, NO = Condition(larger=ByteSize(0)), Condition(smaller=ByteSize(0))


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({"all": [YES, YES]}, True),
        ({"all": [YES, NO]}, False),
        ({"any": [NO, YES]}, True),
        ({"any": [NO, NO]}, False),
        ({"none": [NO, NO]}, True),
        ({"none": [NO, YES]}, False),
        ({"all": [YES], "any": [NO, YES], "none": [NO]}, True),
        ({"all": [YES], "any": [NO]}, False),
        ({"all": [NO], "any": [YES]}, False),
        ({"all": [YES], "any": [YES], "none": [YES]}, False),
    ],
)
def test_conditions_combine(groups: dict[str, list[Condition]], *, expected: bool) -> None:
    rule = Rule(name="it", action="discard", **groups)  # type: ignore[arg-type]
    plugin = Rules(rules=[rule])
    assert (judged(plugin).discarded == "it") is expected


@pytest.mark.parametrize(
    ("action", "reply", "outcome"),
    [
        ("reject", "550 5.7.1 not here", "rejected"),
        ("defer", "451 4.7.1 not here", "deferred"),
        ("quarantine", "250", "quarantined"),
        ("discard", "250", "discarded"),
        ("tag", "250", "stored"),
    ],
)
def test_action_is_taken(action: str, reply: str, outcome: str) -> None:
    text = (
        f'[[rules]]\nname = "it"\naction = "{action}"\ntext = "not here"\nany = [{{ larger = 0 }}]'
    )
    mailroom = Mailroom()
    dialogue = Dialogue(made(text), mailroom)
    assert dialogue.mail(b"X-Rule: forged\r\n" + CONTENT).startswith(reply)
    assert dialogue.count("messages_total", listener="test", outcome=outcome) == 1
    stored = mailroom.stored.get("user@example.org", [b""])[0]
    assert (b"X-Rule: not here\r\n" in stored) == (action == "tag")
    assert (b"forged" in stored) == (action == "quarantine")
    dialogue.close()


def test_finding_has_points_and_the_name_of_the_rule() -> None:
    place = envelope()
    rule = '[[rules]]\nname = "big"\naction = "finding"\npoints = 2.5\nall = [{ larger = 0 }]\n'
    judged(made(rule), place)
    [found] = findings_of(place)
    assert (found.plugin, found.name, found.points, found.text) == ("rules", "big", 2.5, "big")


def test_first_rule_that_decides_is_the_last() -> None:
    text = """
    rules = [
        { name = "a", action = "tag", field = "X-A", all = [{ larger = 0 }] },
        { name = "b", action = "tag", all = [{ header = "X-A" }] },
        { name = "c", action = "quarantine", all = [{ larger = 0 }] },
        { name = "d", action = "discard", all = [{ larger = 0 }] },
    ]
    """
    message = judged(made(text))
    assert (message.quarantined, message.discarded) == ("c", None)
    assert message.headers.get("X-A") == "a"
    assert "X-Rule" not in message.headers  # rules see the message as it came


# Time


ENDLESS: Final = r"^(a|b|ab)*c\b."
HARD: Final = b"Subject: " + b"ab" * 300 + b"c\r\n\r\n"


def rule_of(pattern: str, name: str) -> Rule:
    condition = Condition(header="Subject", matches=pattern)
    return Rule(name=name, action="discard", all=[condition])


def test_message_whose_patterns_take_too_long_is_deferred_and_the_session_goes_on() -> None:
    plugin = Rules(rules=[rule_of(ENDLESS, "slow")], budget=timedelta(milliseconds=50))
    mailroom = Mailroom()
    dialogue = Dialogue(plugin, mailroom)
    assert dialogue.mail(HARD).startswith("451 4.3.0")
    assert dialogue.mail(b"Subject: x\r\n\r\n").startswith("250")
    assert len(mailroom.stored["user@example.org"]) == 1
    dialogue.close()


def test_message_passes_where_failures_are_ignored() -> None:
    table = PluginConfig(use="rules", on_error="ignore")
    plugin = Rules(rules=[rule_of(ENDLESS, "slow")], budget=timedelta(milliseconds=50))
    dialogue = Dialogue((table, plugin), Mailroom())
    assert dialogue.mail(HARD).startswith("250")
    assert dialogue.count("hook_errors_total", plugin="rules", hook="on_message") == 1
    dialogue.close()


def test_budget_is_for_all_patterns_together(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = Rules(rules=[rule_of(f"quick{number}", f"rule {number}") for number in range(9)])
    assert judged(plugin).discarded is None
    clock = SimpleNamespace(monotonic=itertools.count(0, 0.4).__next__)
    monkeypatch.setattr("minismtp_plugins.rules.time", clock)
    with pytest.raises(TimeoutError, match="take too long, at last in rule 'rule 2'"):
        judged(plugin)


def test_many_fields_are_tried_within_the_budget() -> None:
    plugin = Rules(rules=[rule_of("^(?:x+x+)+$", "many")], budget=timedelta(seconds=60))
    assert judged(plugin, content=b"Subject: y\r\n" * 9000 + b"\r\n").discarded is None


# Mistakes


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ('all = [{ header = "A", matches = "(" }]', r"all\[0\].matches: expected a regular expr"),
        ('any = [{ larger = 1 }, { sender = "*" }]', r"any\[1\].sender: expected a regular expr"),
        ("none = [{ larger = 1, login = true }]", r"none\[0\]: expected one of header, .*, not 2"),
        ("all = [{}]", r"all\[0\]: expected one of header, .*, not 0"),
        ('all = [{ matches = "x" }]', r"all\[0\]: expected one of header"),
        ('all = [{ sender = "x", matches = "x" }]', r"all\[0\].matches: expected header"),
        ('all = [{ header = "A B" }]', r"all\[0\].header: 'A B' is not the name"),
        ('all = [{ peer = ["x"] }]', r"all\[0\].peer\[0\]: expected"),
        ('all = [{ subject = "x" }]', r"all\[0\].subject: unknown key"),
        ("", "all: expected conditions"),
        ("all = [{ larger = 1 }]\naction = 'drop'", "action: expected one of"),
        ("all = [{ larger = 1 }]\nfield = 'A:'", "field: 'A:' is not the name"),
        ("all = [{ larger = 1 }]\npoints = 1", "points: expected with the action finding"),
        ("all = [{ larger = 1 }]\naction = 'finding'", "points: expected with the action finding"),
        ("all = [{ larger = 1 }]\ntext = 'a\\nb'", None),
        ('all = [{ larger = 1 }]\ntext = "a\\nb"', "text: expected one line"),
        ("all = [{ larger = 1 }]\nname = ''", "name: expected a name"),
    ],
)
def test_mistake_in_a_rule_is_named(rule: str, problem: str | None) -> None:
    text = "[[rules]]\n" + rule
    text += "" if "action" in rule else "\naction = 'discard'"
    text += "" if "name =" in rule else "\nname = 'it'"
    if problem is None:
        made(text)
        return
    with pytest.raises(ConfigError, match=rf"^c: plugins\[0\]\.rules\[0\]\.{problem}"):
        made(text)


RULE: Final = "{ name = 'a', action = 'discard', all = [{ larger = 1 }] }"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rules = []", "rules: expected at least one"),
        (f"rules = [{RULE}, {RULE}]", "rules: expected a different name"),
        (f"budget = '0s'\nrules = [{RULE}]", 'budget: expected more than "0s"'),
    ],
    ids=["no rule", "same name", "no time"],
)
def test_bad_option_is_named(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=rf"plugins\[0\]\.{problem}"):
        made(text)


def test_example_of_the_page_is_made_of_sound_rules(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "plugins" / "rules.md").read_text()
    example = page.partition("```toml\n")[2].partition("```")[0]
    listener = '[[listeners]]\nname = "smtp"\naddress = "127.0.0.1:0"\ntls = "none"\n'
    config = Config.parse(example + listener, tmp_path / "minismtp.toml")
    PluginSet.load(config)
    [table] = config.plugins
    plugin = build(Rules, table.options, file="c", key="p", base=tmp_path)
    assert judged(plugin).headers.get("X-Folder") == "lists"
    forged = b"From: Boss <boss@example.org>\r\n\r\n"
    with pytest.raises(Exception, match="comes from its own servers"):
        judged(plugin, content=forged, client=session("198.51.100.1"))
    assert judged(plugin, content=forged, client=session(login="boss")).quarantined is None
