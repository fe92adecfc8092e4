"""The summary of a comparison -> its figure, after Figure 5 of the paper: V4, IT, top-1."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from cnnf_brain import style
from cnnf_brain.report.comparison_names import cut, layer_and_iteration, short_names

LONGEST = 40  # letters of a name


def draw(folder: Path, content: dict[str, Any]) -> None:
    """The figure (after Figure 5 of the paper) from the summary: median r of every row by region and source, and top-1."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for e in content["evaluations"]:
        groups.setdefault((e["region"], e["source"]), []).append(e)
    sources = short_names([e["source"] for e in content["evaluations"]])
    panels = len(groups) + bool(content["accuracy"])
    widest = max(len(rows) for rows in [*groups.values(), content["accuracy"]])
    with style.styled():
        figure = style.new_figure(max(4.0, (1.2 + 0.55 * widest) * panels), 4.6)
        axes = figure.subplots(1, panels, squeeze=False)[0]
        for axis, ((region, source), rows) in zip(axes, groups.items(), strict=False):
            axis.sharey(axes[0])
            _bars(axis, rows)
            label = sources[source] + (" (simulated)" if rows[0]["simulated"] and "simulated" not in sources[source] else "")
            axis.set_title(f"{region}\n{label}")
        if content["accuracy"]:
            _top1_bars(axes[-1], content["accuracy"])
        ceilings = any(e["ceiling"] is not None for e in content["evaluations"])
        dashed = "\ndashed: √ceiling, the highest r that noise leaves" if ceilings else ""
        axes[0].set_ylabel(f"median Pearson's r (95% bootstrap over sites){dashed}")
        if content["simulated"]:
            figure.suptitle("SIMULATED recordings", color=style.WARNING, fontsize=11)
    style.save(figure, folder)


def series_of(entry: dict[str, Any]) -> int | None:
    """How an entry of the summary is drawn, as ``style.series`` takes it: None for the baseline, else its iteration.

    What was chosen on training folds has no iteration of its own and is drawn as iteration 1.
    """
    return None if entry["role"] == "baseline" else int(layer_and_iteration(entry["layer"])[1] or 1)


def _bars(axis: Any, rows: list[dict[str, Any]]) -> None:
    """Bars of one region and source, in the colours of ``style``.

    Dashed: what noise leaves of a perfect prediction's r, the root of the ceiling (a reliability, which bounds r²).
    """
    for x, e in enumerate(rows):
        height = math.nan if e["median_r"] is None else e["median_r"]
        low, high = e["median_r_interval"]
        errors = None if low is None else [[max(0.0, height - low)], [max(0.0, high - height)]]
        axis.bar(x, height, width=0.75, color=style.colour(series_of(e)), yerr=errors, ecolor=style.INK)
        if e["ceiling"] is not None:
            axis.hlines(
                math.sqrt(max(0.0, e["ceiling"])), x - 0.45, x + 0.45, colors=style.INK, linestyles="dashed", linewidth=1
            )
    _named(axis, [f"{cut(e['network'], LONGEST)}\n{cut(e['weights'], LONGEST)} {e['layer']}" for e in rows])


def _top1_bars(axis: Any, rows: list[dict[str, Any]]) -> None:
    """The paper's third panel: top-1 accuracy of each network at each iteration."""
    for x, row in enumerate(rows):
        axis.bar(x, row["top1"], width=0.75, color=style.colour(row["iteration"] if row["feedback"] else None))
    _named(axis, [f"{cut(row['network'], LONGEST)}\n{cut(row['weights'], LONGEST)} @{row['iteration']}" for row in rows])
    axis.set_title("top-1 accuracy")


def _named(axis: Any, labels: list[str]) -> None:
    axis.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=7)
    axis.axhline(0, color=style.INK, linewidth=0.8)
