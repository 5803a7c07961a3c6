"""Versions by PEP 440."""

from __future__ import annotations

import pytest

from minismtp import __version__
from minismtp.values.version import Version

ORDER = ["0.9", "1.0.dev3", "1.0", "1.0.post1", "1.0.1", "1.1rc1", "1.1", "1.10", "2!0.1"]


def test_versions_are_in_the_order_of_releases() -> None:
    # Versions of one key are equal, so their texts are compared.
    assert [each.text for each in sorted(map(Version.parse, reversed(ORDER)))] == ORDER


@pytest.mark.parametrize(
    ("text", "same"),
    [("1.0", "1"), ("1.0.0", "1.0"), ("v1.2", "1.2"), ("1.2-1", "1.2.post1"), ("1.2+deb1", "1.2")],
)
def test_spelling_of_a_version_does_not_count(text: str, same: str) -> None:
    assert Version.parse(text) == Version.parse(same)
    assert str(Version.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["1.1a1", "1.1b2", "1.1rc1", "1.1.dev0", "1.1.post1.dev2", "1.1-Alpha_3", "1.1c1"]
)
def test_preview_is_not_stable(text: str) -> None:
    assert not Version.parse(text).is_stable


@pytest.mark.parametrize("text", ["1.1", "1.1.post2", "1.1.rev1", __version__])
def test_release_is_stable(text: str) -> None:
    assert Version.parse(text).is_stable


@pytest.mark.parametrize(
    "text",
    ["", "one", "1.", "1..2", "1.2x", "\u0661.2", "1.2\n", "1" * 10, "1." * 11 + "1", "9" * 5000],
)
def test_other_text_is_no_version(text: str) -> None:
    with pytest.raises(ValueError, match="expected a version such as"):
        Version.parse(text)
