"""The table and the plot of a benchmark: medians over the rounds, and ratios to each peer."""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

_OURS: Final = "minismtp"
_COLUMNS: Final = (
    ("rate", "messages/s", "{:,.0f}"),
    ("p50_ms", "median ms", "{:.1f}"),
    ("p99_ms", "p99 ms", "{:.0f}"),
    ("cpu_per_1000", "CPU s per 1,000", "{:.2f}"),
    ("rss_mb", "RSS MB", "{:.0f}"),
    ("pss_mb", "PSS MB", "{:.0f}"),
)


def grouped(result: dict[str, Any]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Give the measurements by workload, then by server."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for each in result["measured"]:
        found[each["workload"]][each["server"]].append(each)
    return found


def middle(runs: list[dict[str, Any]], key: str) -> float | None:
    """Give the median of a figure over the rounds."""
    values = [run[key] for run in runs if key in run]
    return median(values) if values else None


def table(result: dict[str, Any], titles: dict[str, str]) -> str:
    """Give the Markdown table of a result."""
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
        + " | ours to it |",
        "| --- | --- |" + " ---: |" * (len(_COLUMNS) + 1),
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
                pairs = zip(ours, runs, strict=False)
                ratio = f"{median(a['rate'] / max(b['rate'], 0.1) for a, b in pairs):.2f}"
            title = f"{workload}: {titles.get(workload, 'fsync and rename, 20 writers')}"
            lines.append(f"| {title} | {name} | {' | '.join(cells)} | {ratio} |")
    return "\n".join(lines)


def write(result: dict[str, Any], titles: dict[str, str], directory: Path) -> None:
    """Write performance-table.md and performance.png."""
    (directory / "performance-table.md").write_text(table(result, titles) + "\n")
    plot(result, directory / "performance.png")


def plot(result: dict[str, Any], target: Path) -> None:
    """Draw the rates as bars, a panel for each workload; raises ImportError without matplotlib."""
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
