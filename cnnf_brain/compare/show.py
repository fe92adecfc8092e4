"""A comparison's figure, after Figure 5 of the paper (V4, IT, top-1), and its page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnf_brain import style
from cnnf_brain.compare import words
from cnnf_brain.compare.words import cut, layer_and_iteration, network_names, short_names
from cnnf_brain.report.charts import Chart, Mark
from cnnf_brain.report.runs import Run, Table, flat, version_keys

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 40  # letters of a name


def figure(content: dict[str, Any]) -> Figure:
    """Median r of every row by region and source, and top-1, from a summary."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for e in content["evaluations"]:
        groups.setdefault((e["region"], e["source"]), []).append(e)
    sources = short_names([e["source"] for e in content["evaluations"]])
    panels = len(groups) + bool(content["accuracy"])
    widest = max(len(rows) for rows in [*groups.values(), content["accuracy"]])
    with style.styled():
        drawn = style.new_figure(max(4.0, (1.2 + 0.55 * widest) * panels), 4.6)
        axes = drawn.subplots(1, panels, squeeze=False)[0]
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
            drawn.suptitle("SIMULATED recordings", color=style.WARNING, fontsize=11)
    return drawn


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


def as_run(folder: Path, summary: dict[str, Any], run: Mapping[str, Any]) -> Run:
    """What the page of a comparison shows."""
    head, rows, notes = words.cells(summary)
    entries = summary["evaluations"]
    caption = (
        "Bars: the median over sites of Pearson's r on held-out images. Whiskers: its 95% bootstrap interval over sites. "
        "Dashed: the root of the ceiling, the highest r that noise leaves to a perfect prediction (where there are repeats). "
        + words.weights_named(entries)
    )
    chart = Chart("Neural predictivity", caption, "median Pearson's r", _groups(entries))
    return Run(
        folder=folder,
        kind="comparison",
        title="Neural predictivity",
        question=words.question(entries),
        answer=summary["answer"],
        simulated=summary["simulated"],
        notice=" ".join(words.feedback_notes(summary)),
        charts=(chart, *_accuracy(summary["accuracy"])),
        tables=(Table("All rows", tuple(head), tuple(map(tuple, rows)), tuple(notes)),),
        facts=tuple(flat({name: run[name] for name in _facts_first(run)})),
        caveats=tuple(words.caveats(summary, run)),
        same=_same(summary, run),
    )


def _groups(entries: list[dict[str, Any]]) -> tuple[tuple[str, tuple[Mark, ...]], ...]:
    sources = short_names([e["source"] for e in entries])
    groups: dict[str, list[Mark]] = {}
    for e, name in zip(entries, network_names(entries), strict=True):
        simulated = " (simulated)" if e["simulated"] and "simulated" not in e["source"] else ""
        low, high = e["median_r_interval"]
        bound = None if e["ceiling"] is None else math.sqrt(max(0.0, e["ceiling"]))
        mark = Mark(f"{name} {e['layer']}", e["median_r"], low, high, series_of(e), bound=bound)
        groups.setdefault(f"{e['region']}: {sources[e['source']]}{simulated}", []).append(mark)
    return tuple((name, tuple(marks)) for name, marks in groups.items())


def _accuracy(rows: list[dict[str, Any]]) -> tuple[Chart, ...]:
    """Top-1 of every network, the third panel of the paper's Figure 5; nothing where it is not known."""
    if not rows:
        return ()
    marks = [
        Mark(f"{name} @{a['iteration']}", a["top1"], series=a["iteration"] if a["feedback"] else None)
        for a, name in zip(rows, network_names(rows), strict=True)
    ]
    sources = "; ".join(dict.fromkeys(a["source"] for a in rows))
    return (
        Chart(
            "Top-1 accuracy", f"Share of images whose label comes first. {sources}.", "top-1", (("accuracy", tuple(marks)),)
        ),
    )


def _facts_first(run: Mapping[str, Any]) -> list[str]:
    first = ["command", "commit", "machine", "seconds", "chosen"]
    twice = ["kind", "configuration", "files", "accuracy", "notes"]
    return [name for name in first if name in run] + [name for name in run if name not in (*first, *twice)]


def _same(summary: dict[str, Any], run: Mapping[str, Any]) -> dict[str, str]:
    options = run["options"]
    same = {
        name: "none" if options[name] is None else str(options[name])
        for name in ("splits", "seed", "components", "per_site", "pca", "select")
    }
    for name, key in (("images", "images_sha256"), ("responses", "responses_sha256")):
        for region in dict.fromkeys(r["region"] for r in run["recordings"]):
            hashes = [f"{r['source']} {r[key][:12]}" for r in run["recordings"] if r["region"] == region]
            same[f"recordings, {region}, {name}"] = "; ".join(hashes)
    baselines = {(e["network"], e["weights"]) for e in summary["evaluations"] if e["role"] == "baseline"}
    same["baseline"] = "; ".join(
        f"{n['name']} {n['sha256'][:12]}" for n in run["networks"] if (n["name"], n["weights"]) in baselines
    )
    return same | version_keys(dict(run))
