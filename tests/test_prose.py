"""The source and its pages have no turn of English that is always wrong.

Checked are docstrings, comments, other strings of three words or more, and the pages that are not
generated from these. Text in backticks and single words in quotes are not prose.
"""

import ast
import io
import itertools
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from source import ROOT, source_files

MADE: Final = {"docs/configuration.md", "docs/hooks.md", "docs/plugins/README.md"}


class Turn(NamedTuple):
    """A pattern that finds a turn of speech, and an example with its better form."""

    pattern: str
    wrong: str
    better: str


TURNS: Final = [
    Turn(r"^Give ", "Give the next reply.", "Return the next reply."),
    Turn(r"(?:^|[.;,]\s+)[Rr]aises [A-Z]", "Connect; raises OSError.", "Connect. Raise OSError."),
    Turn(r"; gives\b", "Write it; gives its name.", "Write it and return its name."),
    Turn(r"(?i)\banew\b", "connects anew", "connects again"),
    Turn(r"(?i)\bmend(?:s|ed|ing)?\b", "mend the file", "fix the file"),
    Turn(r"(?i)\bdear(?:er|est)?\b", "a dear check", "a check that costs much"),
    Turn(r"(?i)\bupon\b", "acts upon the sum", "acts on the sum"),
    Turn(r"\bof (?:ours|yours|theirs)\b", "a host of yours", "your host"),
    Turn(r"(?i)\bwhom?ever\b", "whoever connects", "any client that connects"),
    Turn(
        r"\b[Nn]obody (?:listens?|serves?|holds?|greets|hears?|runs?|has)\b",
        "a port that nobody listens on",
        "an unused port",
    ),
    Turn(
        r"(?<!there )\b(?:is|are|was|were|be|knows?) none\b(?! (?:of|too))",
        "what is none is skipped",
        "the parser skips malformed lines",
    ),
    Turn(r"\bnone (?:that|who|which)\b", "none that is due", "no job that is due"),
    Turn(r"\b(?:of|to|for|by|with|from) who\b", "the name of who logs in", "the user's name"),
    Turn(r"\bNone for whom\b", "None for whom it refuses", "None if it refuses the user"),
    Turn(r"\bso many\b", "in so many seconds", "in `seconds`"),
    Turn(r"\bhears? of\b", "the sender hears of it", "the sender is notified"),
    Turn(r"\bcomes? of\b", "what comes of it", "the result"),
    Turn(r"\b(?:tells?|telling|told) of\b", "is told of the delay", "is told about the delay"),
    Turn(r"\bfor good\b", "refused for good", "refused permanently"),
    Turn(r"\bbut for\b", "empty but for PATH", "empty except for PATH"),
    Turn(r"\bparted by\b", "lines parted by LF", "lines separated by LF"),
    Turn(r"\bat the (?:most|least)\b", "five at the most", "at most five"),
    Turn(r"\b[Ww]hat stands\b", "what stands in brackets", "the text in brackets"),
    Turn(r"\bby and by\b", "replaced by and by", "replaced gradually"),
    Turn(
        r"\b(?:has|(?:that|who|which|they|we|you|what) have) (?:not |just |already )*"
        r"(?:been|come|gone|said|given|taken|begun|died|ended|failed|logged|found|seen)\b",
        "a worker that has died",
        "a worker that died",
    ),
]


def _blank(found: re.Match[str]) -> str:
    return "_" + "\n" * found[0].count("\n")  # lines keep their numbers


def python_texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the comments and the strings of a module, each with its line."""
    source = path.read_text()
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    numbered = enumerate(comments)
    for _, block in itertools.groupby(numbered, lambda pair: pair[1].start[0] - pair[0]):
        lines = [comment for _, comment in block]
        yield lines[0].start[0], "\n".join(line.string.lstrip("#: ") for line in lines)
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Constant(value=str(text)) if len(text.split()) > 2:
                yield node.lineno, text


def page_texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the text of a page without its blocks of code."""
    yield 1, re.sub(r"```.*?```", _blank, path.read_text(), flags=re.DOTALL)


def findings(path: str) -> Iterator[str]:
    """Yield each wrong turn in a file with its place and its better form."""
    texts = page_texts if path.endswith(".md") else python_texts
    for start, text in texts(ROOT / path):
        prose = re.sub(r'`[^`]*`|"\S*"', _blank, text)
        for turn in TURNS:
            for found in re.finditer(turn.pattern, prose):
                line = start + prose.count("\n", 0, found.start())
                yield f"{path}:{line}: {found[0]!r}, as in {turn.wrong!r}: better {turn.better!r}"


def is_checked(name: str) -> bool:
    """Return whether the rule holds for the file of this path."""
    if name in MADE or name == "tests/test_prose.py":
        return False
    folder, _, inside = name.partition("/")
    return not inside or folder in {"docs", "minismtp", "plugins", "tests"}


def files() -> list[str]:
    """Return the files that are checked, relative to the source."""
    names = [path.as_posix() for path in source_files() if path.suffix in {".py", ".md"}]
    return [name for name in names if is_checked(name)]


@pytest.mark.parametrize("path", files())
def test_text_has_no_turn_that_is_always_wrong(path: str) -> None:
    assert list(findings(path)) == []


@pytest.mark.parametrize("turn", TURNS, ids=lambda turn: turn.wrong)
def test_turn_is_found_and_its_better_form_is_not(turn: Turn) -> None:
    assert re.search(turn.pattern, turn.wrong)
    assert not any(re.search(each.pattern, turn.better) for each in TURNS)
