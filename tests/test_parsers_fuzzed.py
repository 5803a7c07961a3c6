"""Every parser reads the findings of fuzzing, and long inputs, in linear time and memory.

The corpus in `data/fuzz` has seeds and all inputs that were findings; `make fuzz-parsers`
looks for more.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest
from fuzz.target import CORPUS, problem, pumps
from fuzz.targets import TARGETS

_SLACK: Final = 4.0  # input in quadratic time takes more
_PUMPED: Final = 3  # long inputs for each target
_ROOT: Final = Path(__file__).parents[1]
_PARSES: Final = re.compile(
    r"re\.compile\(|json\.loads|json\.decode|struct\.unpack|int\.from_bytes|tomli\.loads|b64decode"
)
#: Modules that seem to parse something, and why they have no target.
_OTHERS: Final = {
    "runtime.login_backoff": "a digest of our own",
    "values.durable_files": "byte order marks in files of the operator's",
    "hooks.guard": "what a plugin says",
    "hooks.dns_zone": "what a plugin says",
    "cli.common": "words of our own output, which get colours",
    "inspection.permissions": "names of options",
    "inspection.ports": "what the kernel says about sockets",
    "runtime.own_metrics": "names that a plugin's code gives",
    "server.web_listener": "what a child of the process itself says",
    "cli.replay": "a file of the operator's, as `configuration` has it",
    "server.known_release": "a file of our own",
    "services.acme_files": "a file of our own",
    "services.acme_client": "a key of the operator's",
    "services.acme_schedule": "a digest of our own",
    "cli.new_plugin.__init__": "an argument of the operator's",
    "cli.setup.amend": "the operator's configuration",
    "cli.setup.answers": "what the operator answers",
    "cli.setup.dovecot": "the configuration that Dovecot's package brings",
    "cli.setup.placement": "a journal of our own",
}


@pytest.mark.parametrize("name", TARGETS)
def test_corpus_is_no_finding(name: str) -> None:
    target = TARGETS[name]
    inputs = [b"", *(path.read_bytes() for path in target.seeds)]
    for data in inputs:
        assert problem(target, data, slack=_SLACK) == "", data[:200]


@pytest.mark.parametrize("name", TARGETS)
def test_long_inputs_take_linear_time_and_memory(name: str) -> None:
    target = TARGETS[name]
    for path in target.seeds:
        for data in pumps(path.read_bytes(), _PUMPED):
            assert problem(target, data, slack=_SLACK) == "", (
                f"{path.name}: {data[:200]!r} ... {data[-200:]!r}"
            )


def test_corpus_has_seeds_for_each_parser_and_for_nothing_else() -> None:
    assert {path.name for path in CORPUS.iterdir()} == TARGETS.keys()


def test_each_module_that_parses_has_a_target() -> None:
    covered = {name for each in TARGETS.values() for name in each.covers}
    parsing = {
        ".".join(path.relative_to(_ROOT / package).with_suffix("").parts)
        for package in ("minismtp", "plugins")
        for path in (_ROOT / package).rglob("*.py")
        if _PARSES.search(path.read_text())
    }
    assert parsing - covered == _OTHERS.keys()
