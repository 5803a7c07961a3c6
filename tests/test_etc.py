"""The example configuration in etc/ is one that works, and its comments are true."""

import re
from pathlib import Path

from minismtp.config import Config

EXAMPLE = Path(__file__).parents[1] / "etc" / "minismtp.toml"


def test_example_has_the_three_ports_of_a_mail_server() -> None:
    listeners = Config.load(EXAMPLE).listeners
    assert {(item.port, item.kind, item.tls) for item in listeners} == {
        (25, "mx", "starttls"),
        (587, "submission", "starttls"),
        (465, "submission", "implicit"),
    }


def test_lines_commented_out_in_the_example_show_the_defaults() -> None:
    text = EXAMPLE.read_text()
    shown = re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE)
    assert shown != text
    assert Config.parse(shown, EXAMPLE) == Config.parse(text, EXAMPLE)
