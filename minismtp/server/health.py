"""Whether all is well: what an operator should look at, in sentences, for page and terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from minismtp.server.figures import Overview
from minismtp.server.readiness import FATAL
from minismtp.values.units import octets, span

_WARN_CERTIFICATE: Final = 14 * 86400.0  # seconds before the end, as in the alert
_WARN_SESSIONS: Final = 0.8
_WARN_DISK: Final = 3.0  # times the reserve, as in the alert
_OLD: Final = 2 * 86400.0  # seconds that a message may wait, as in the alert


class Trouble(NamedTuple):
    """Something that is wrong. `fatal` says that mail stops, or will stop soon."""

    text: str
    fatal: bool


def troubles(
    figures: Overview, recent: Mapping[str, float], *, now: float, sentences: Mapping[str, str] = {}
) -> list[Trouble]:
    """Return what is wrong, what stops mail first. An empty list means that all is well.

    `recent` counts exceptions of plugins in the last hour. `sentences` are those of /readyz, by
    problem.
    """
    found = [*_server(figures, now, sentences), *_mail(figures, recent)]
    return sorted(found, key=lambda each: not each.fatal)


def _server(figures: Overview, now: float, sentences: Mapping[str, str]) -> Iterator[Trouble]:
    for problem in sorted(figures.problems):
        text = sentences.get(problem, "see /readyz")
        yield Trouble(f"{problem}: {text}", fatal=problem in FATAL)
    if not figures.reload_ok:
        text = "the last reload failed, the old configuration goes on: run `minismtp check`"
        yield Trouble(text, fatal=False)
    for listener, end in figures.certificates.items():
        left = end - now
        if left <= 0:
            yield Trouble(f"the certificate of {listener} expired {span(-left)} ago", fatal=True)
        elif left < _WARN_CERTIFICATE:
            yield Trouble(f"the certificate of {listener} expires in {span(left)}", fatal=False)
    for listener in sorted(figures.stale):
        yield Trouble(f"the new certificate of {listener} does not load", fatal=False)
    if figures.unusable_files:
        yield Trouble("a file of users or passwords cannot be used: see the log", fatal=True)
    yield from _dns(figures)
    for directory, free in figures.free.items():
        if free < _WARN_DISK * figures.reserve and "disk" not in figures.problems:
            text = f"the disk of {directory} has only {octets(free)} left"
            yield Trouble(text, fatal=False)


def _dns(figures: Overview) -> Iterator[Trouble]:
    bad = figures.dns_records.get("missing", 0.0) + figures.dns_records.get("wrong", 0.0)
    if bad:
        what = "one record in the DNS is" if bad == 1 else f"{bad:.0f} records in the DNS are"
        yield Trouble(f"{what} missing or wrong: run `minismtp dns --check`", fatal=False)


def _mail(figures: Overview, recent: Mapping[str, float]) -> Iterator[Trouble]:
    if figures.limit and figures.active > _WARN_SESSIONS * figures.limit:
        text = f"{figures.active:.0f} of {figures.limit:.0f} sessions are open"
        yield Trouble(text, fatal=False)
    if figures.oldest > _OLD:
        yield Trouble(f"a message has waited for {span(figures.oldest)}", fatal=False)
    for plugin, count in sorted(recent.items()):
        if count:
            times = "once" if count == 1 else f"{count:,.0f} times"
            text = f"the plugin {plugin} failed {times} in the last hour"
            yield Trouble(f"{text}: see `plugin failed` in the log", fatal=False)
