"""The table and the plot of a benchmark: medians over the rounds, and ratios to each peer."""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

_OURS: Final = "minismtp"
#: (workload, server or peer, the least ratio of rates): the targets of the project
_RATIOS: Final = (
    *((workload, "postfix", 2.5) for workload in ("a20", "b20", "b100")),
    *((workload, "postfix", 2.0) for workload in ("d", "e", "drain", "relay")),
    ("b100", "haraka", 2.5),
    ("b20", "minismtp spool", 0.9),
    ("c", "bare sink", 0.4),
    ("c1", "bare sink", 0.7),
)
#: (workload, figure of minismtp, its name, the largest value allowed)
_FIGURES: Final = (
    ("d", "growth_mb_per_session", "MB above idle for each session", 1.0),
    ("f", "opening", "seconds until all idle sessions are open", 5.0),
    ("f", "slowest", "seconds until the last of them has answered NOOP", 1.0),
    ("f", "p99_ms", "ms, p99 of the light flow beside them", 20.0),
    ("f", "kb_per_session", "KB for each idle session", 30.0),
    ("a20", "cpu_per_1000", "s of CPU for 1,000 messages", 0.9),
    ("b20", "cpu_per_1000", "s of CPU for 1,000 messages", 0.5),
)
_COLUMNS: Final = (
    ("rate", "messages/s", "{:,.0f}"),
    ("p50_ms", "median ms", "{:.1f}"),
    ("p99_ms", "p99 ms", "{:.0f}"),
    ("cpu_per_1000", "CPU s per 1,000", "{:.2f}"),
    ("rss_mb", "RSS MB", "{:.0f}"),
    ("pss_mb", "PSS MB", "{:.0f}"),
)


def grouped(result: dict[str, Any]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return the measurements by workload, then by server."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for each in result["measured"]:
        found[each["workload"]][each["server"]].append(each)
    return found


def middle(runs: list[dict[str, Any]], key: str) -> float | None:
    """Return the median of a figure over the rounds."""
    values = [run[key] for run in runs if key in run]
    return median(values) if values else None


def rates_ratio(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float:
    """Return the median over the rounds of our rate to another one of the same round."""
    pairs = zip(ours, theirs, strict=False)
    ratio: float = median(a["rate"] / max(b["rate"], 0.1) for a, b in pairs)
    return ratio


def spread(runs: list[dict[str, Any]]) -> str:
    """Return the spread of the rates of the rounds, as a share of their median."""
    rates = [run["rate"] for run in runs]
    return f"{(max(rates) - min(rates)) / max(median(rates), 0.1):.0%}" if len(rates) > 1 else ""


def targets(result: dict[str, Any]) -> str:
    """Return the Markdown table of targets and measurements."""
    found = grouped(result)
    lines = ["| workload | measure | target | measured | |", "| --- | --- | ---: | ---: | --- |"]
    for workload, peer, least in _RATIOS:
        ours, theirs = found[workload].get(best(workload)), found[workload].get(peer)
        if ours and theirs:
            variant = peer.startswith(_OURS)
            ratio = rates_ratio(theirs, ours) if variant else rates_ratio(ours, theirs)
            what = f"rate of {peer}" if variant else f"rate to {peer}"
            met = "met" if ratio >= least else "missed"
            lines.append(f"| {workload} | {what} | >= {least:g} | {ratio:.2f} | {met} |")
    for workload, figure, what, most in _FIGURES:
        value = middle(found[workload].get(best(workload), []), figure)
        if value is not None:
            met = "met" if value <= most else "missed"
            lines.append(f"| {workload} | {what} | <= {most:g} | {value:.2f} | {met} |")
    ours, with_plugin = found["b20"].get("minismtp"), found["b20"].get("minismtp + plugin")
    if ours and with_plugin:
        cost = 1 - rates_ratio(with_plugin, ours)
        met = "met" if cost <= 0.1 else "missed"
        lines.append(f"| b20 | a plugin on every stage costs | <= 10% | {cost:.0%} | {met} |")
    return "\n".join(lines)


def best(workload: str) -> str:
    """Name our server of a workload: on its defaults, or without storage."""
    return "minismtp discard" if workload in {"c", "c1"} else "minismtp"


def table(result: dict[str, Any], titles: dict[str, str]) -> str:
    """Return the Markdown table of a result."""
    paused = sum(each.get("paused", 0) for each in result["measured"])
    seconds = sum(each.get("seconds", 0) for each in result["measured"])
    lines = [
        f"{result['date']}; {result['cores']} cores, {result['machine']}; {result['file_system']}.",
        f"Medians of {result['rounds']} rounds of {result['seconds']:g} s each, in turn.",
        f"The machine stood still for {paused / max(seconds, 1e-9):.0%} of the time:",
        "rates leave that out; latencies and CPU times cannot.",
        "",
        "| workload | server | "
        + " | ".join(title for _, title, _ in _COLUMNS)
        + " | spread | ours to it |",
        "| --- | --- |" + " ---: |" * (len(_COLUMNS) + 2),
    ]
    for workload, servers in grouped(result).items():
        ours = next((runs for name, runs in servers.items() if name.startswith(_OURS)), [])
        for name, runs in servers.items():
            cells = []
            for key, _, form in _COLUMNS:
                value = middle(runs, key)
                cells.append("" if value is None else form.format(value))
            ratio = ""
            if ours and runs is not ours:
                ratio = f"{rates_ratio(ours, runs):.2f}"
            title = f"{workload}: {titles.get(workload, 'fsync and rename, 20 writers')}"
            lines.append(f"| {title} | {name} | {' | '.join(cells)} | {spread(runs)} | {ratio} |")
    return "\n".join(lines)


def write(result: dict[str, Any], titles: dict[str, str], directory: Path) -> None:
    """Write performance-table.md and performance.png."""
    text = f"{targets(result)}\n\n{table(result, titles)}\n"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "performance-table.md").write_text(text)
    plot(result, directory / "performance.png")


def plot(result: dict[str, Any], target: Path) -> None:
    """Draw the rates as bars, a panel for each workload. Raise ImportError without matplotlib."""
    import matplotlib as mpl  # noqa: PLC0415 - only the report needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    found = {
        name: servers for name, servers in grouped(result).items() if name not in {"disk", "f"}
    }
    columns = 3
    rows = -(-len(found) // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(12, 2.4 * rows), squeeze=False)
    for panel in panels.flat[len(found) :]:
        panel.set_axis_off()
    for panel, (workload, servers) in zip(panels.flat, found.items(), strict=False):
        names = list(servers)[::-1]
        rates = [middle(servers[name], "rate") or 0.0 for name in names]
        colours = ["#1f6fb4" if name.startswith(_OURS) else "#b0b0b0" for name in names]
        bars = panel.barh(names, rates, color=colours)
        panel.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
        panel.set_xlim(0, max(rates) * 1.2)
        panel.set_title(f"{workload}: messages per second", fontsize=9)
        panel.tick_params(labelsize=8)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(target, dpi=110)
    plt.close(figure)
