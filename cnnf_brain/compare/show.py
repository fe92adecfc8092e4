"""A comparison's figures: after Figure 5 of the paper (V4, IT, top-1), layers by iterations, site by site; and its page."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cnnf_brain import style
from cnnf_brain.checks import unknown
from cnnf_brain.compare import words
from cnnf_brain.compare.evaluate import POOLED
from cnnf_brain.compare.layers import BASELINE
from cnnf_brain.compare.words import cut, layer_and_iteration, network_names, short_names
from cnnf_brain.predictivity.scores import site_r
from cnnf_brain.report.charts import Chart, Mark
from cnnf_brain.report.runs import Picture, Run, Table, flat, version_keys
from cnnf_brain.types import Array, Evaluation, Scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 40  # letters of a name
ACROSS = 4  # panels beside each other
SIGNS = {"above": " ▲", "below": " ▼"}  # of a verdict, in a map


class Row(NamedTuple):
    """An entry of the summary, its number for each site (none where only the entry is drawn), and where a site stands across."""

    entry: dict[str, Any]
    name: str
    sites: Array
    across: Array


class Kind(NamedTuple):
    """A figure of ``Comparison.plot``: the rows that it shows, how a panel is drawn and how wide it is, and what is to be said."""

    rows: Callable[[Sequence[Row], Sequence[Evaluation]], Iterator[Row]]
    draw: Callable[[Any, list[Row]], None]
    width: Callable[[list[Row]], float]  # inches
    needs: str
    caption: str


def plot(kind: str, content: dict[str, Any], evaluations: Sequence[Evaluation]) -> Figure:
    """The figure of a kind (``scores``, or of ``KINDS``) from a summary and its evaluations; see ``Comparison.plot``."""
    if kind == "scores":
        return figure(content)
    if kind not in KINDS:
        raise unknown("kind", kind, ["scores", *KINDS], where="plot")
    panels = _panels(kind, content, evaluations)
    if not panels:
        raise ValueError(f"plot: kind {kind!r} needs {KINDS[kind].needs}, and no row has it")
    widths = [KINDS[kind].width(rows) for rows in panels.values()]
    columns = min(len(panels), ACROSS)
    widths = widths if len(panels) == columns else [max(widths)] * columns
    lines = -(-len(panels) // columns)
    with style.styled():
        drawn = style.new_figure(max(4.2, sum(widths)), 4.6 * lines)
        axes = drawn.subplots(lines, columns, squeeze=False, width_ratios=widths).flat
        for axis, (title, rows) in zip(axes, panels.items(), strict=False):
            axis.set_title(title)
            KINDS[kind].draw(axis, rows)
        for axis in axes[len(panels) :]:
            axis.remove()
        if content["simulated"]:
            drawn.suptitle("SIMULATED recordings", color=style.WARNING, fontsize=11)
    return drawn


def _panels(kind: str, content: dict[str, Any], evaluations: Sequence[Evaluation]) -> dict[str, list[Row]]:
    """The rows that a kind of figure shows, by the title of their panel; a map has a panel for each network."""
    entries = content["evaluations"]
    sources, none = short_names([e["source"] for e in entries]), np.empty(0)
    every = [Row(e, name, none, none) for e, name in zip(entries, network_names(entries), strict=True)]
    panels: dict[str, list[Row]] = {}
    for row in KINDS[kind].rows(every, evaluations):
        title = f"{row.entry['region']}\n{words.panel(row.entry, sources[row.entry['source']])}"
        panels.setdefault(title + f"\n{textwrap.fill(cut(row.name, LONGEST), 24)}" * (kind == "layers"), []).append(row)
    return panels


def _with_a_score(rows: Sequence[Row], _: Sequence[Evaluation]) -> Iterator[Row]:
    return (row for row in rows if "@" in row.entry["layer"] and words.score(row.entry)[0] is not None)


def _best_with_a_ceiling(rows: Sequence[Row], evaluations: Sequence[Evaluation]) -> Iterator[Row]:
    """Of each network its best row in each region and source."""
    best: dict[tuple[str, ...], Row] = {}
    for row, e in zip(rows, evaluations, strict=True):
        if isinstance(e.scores, Scores) and e.scores.ceiling is not None and row.entry["median_r"] is not None:
            key = (e.region, e.source, e.metric, e.network, e.weights)
            if key not in best or best[key].entry["median_r"] < row.entry["median_r"]:
                best[key] = row._replace(sites=site_r(e.scores), across=np.sqrt(np.maximum(e.scores.ceiling, 0)))
    return iter(best.values())


def _with_a_difference(rows: Sequence[Row], evaluations: Sequence[Evaluation]) -> Iterator[Row]:
    baselines = {(e.region, e.source, e.metric, e.layer): e.scores for e in evaluations if e.role == BASELINE}
    for row, e in zip(rows, evaluations, strict=True):
        theirs = baselines.get((e.region, e.source, e.metric, e.against))
        if e.comparison is not None and isinstance(e.scores, Scores) and isinstance(theirs, Scores):
            yield row._replace(sites=site_r(e.scores) - site_r(theirs))


def _map(axis: Any, rows: list[Row]) -> None:
    """Layers down, iterations across, the score and the verdict in each cell."""
    cells = {layer_and_iteration(row.entry["layer"]): row.entry for row in rows}
    layers, iterations = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    values = np.full((len(layers), len(iterations)), np.nan)
    for (layer, iteration), entry in cells.items():
        at = layers.index(layer), iterations.index(iteration)
        values[at] = words.score(entry)[0]
        text = f"{values[at]:.2f}{SIGNS.get(entry.get('verdict') or '', '')}"
        axis.text(at[1], at[0], text, ha="center", va="center", color=style.PAPER if values[at] < 0.55 else style.INK)
    axis.imshow(values, cmap="inferno", vmin=0, vmax=1, aspect="auto")
    axis.set_xticks(range(len(iterations)), iterations)
    axis.set_yticks(range(len(layers)), layers)
    axis.set_xlabel("iteration")
    axis.grid(visible=False)


def _against_ceiling(axis: Any, rows: list[Row]) -> None:
    """A point for each site: the highest r that noise leaves across, its r up."""
    for row in rows:
        look = style.series(series_of(row.entry))
        label = f"{cut(row.name, LONGEST)} {row.entry['layer']}"
        axis.scatter(row.across, row.sites, s=14, alpha=0.7, color=look.colour, marker=look.marker, label=label)
    axis.axline((0, 0), slope=1, color=style.INK, linestyle="dashed", linewidth=1)
    axis.set(xlabel="√ceiling of the site", ylabel="Pearson's r of the site", xlim=(0, 1.02), ylim=(None, 1.02))
    axis.legend(loc="upper left")


def _differences(axis: Any, rows: list[Row]) -> None:
    """A point for each site, and the median difference with its interval for new images."""
    for x, row in enumerate(rows):
        places = x + 0.5 * (np.arange(len(row.sites)) * 0.618 % 1 - 0.5)  # spread evenly, the same each time
        axis.scatter(places, row.sites, s=6, alpha=0.5, color=style.colour(series_of(row.entry)))
        middle, (low, high) = row.entry["difference"], row.entry["difference_interval"]
        errors = None if low is None or high is None else [[max(0.0, middle - low)], [max(0.0, high - middle)]]
        axis.errorbar(x, middle, yerr=errors, color=style.INK, marker="_", markersize=14)
    _named(axis, [f"{cut(row.name, LONGEST)}\n{row.entry['layer']} − {row.entry['baseline_layer']}" for row in rows])
    axis.set_ylabel("difference in r to the baseline")


KINDS = {
    "layers": Kind(
        _with_a_score,
        _map,
        lambda rows: 1.8 + 0.7 * len({layer_and_iteration(row.entry["layer"])[1] for row in rows}),
        "a score",
        "Median r (RSA, CKA: agreement) of each layer at each iteration. ▲ ▼: above or below the baseline by every valid test.",
    ),
    "ceiling": Kind(
        _best_with_a_ceiling,
        _against_ceiling,
        lambda rows: 4.2,
        "a ceiling (single repeats)",
        "Each site's r against the root of its ceiling, the highest r that noise leaves (dashed), for each network's best row.",
    ),
    "difference": Kind(
        _with_a_difference,
        _differences,
        lambda rows: max(3.0, 1.5 + 0.8 * len(rows)),
        "a difference in r to a baseline",
        "Each site's difference in r to the baseline (points); their median with its 95% interval for new images (black).",
    ),
}


def _pictures(content: dict[str, Any], evaluations: Sequence[Evaluation]) -> Iterator[Picture]:
    """The figures site by site, and the map where a network has several layers, for the page."""
    for kind, about in KINDS.items():
        panels = _panels(kind, content, evaluations)
        several = any(len({layer_and_iteration(row.entry["layer"])[0] for row in rows}) > 1 for rows in panels.values())
        if panels and (several or kind != "layers"):
            yield Picture(f"{kind}.png", style.png(plot(kind, content, evaluations)), about.caption)


def figure(content: dict[str, Any]) -> Figure:
    """Median r of every row by region and source, and top-1, from a summary."""
    entries = content["evaluations"]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for (e,) in _paired([(e,) for e in entries]):
        groups.setdefault((e["region"], e["source"], e["metric"]), []).append(e)
    sources = short_names([e["source"] for e in entries])
    panels = len(groups) + bool(content["accuracy"])
    widest = max(len(rows) for rows in [*groups.values(), content["accuracy"]])
    with style.styled():
        drawn = style.new_figure(max(4.0, (1.2 + 0.55 * widest) * panels), 4.6)
        axes = drawn.subplots(1, panels, squeeze=False)[0]
        for axis, ((region, source, _), rows) in zip(axes, groups.items(), strict=False):
            axis.sharey(axes[0])
            _bars(axis, rows)
            axis.set_title(f"{region}\n{words.panel(rows[0], sources[source])}")
        if content["accuracy"]:
            _top1_bars(axes[-1], content["accuracy"])
        axes[0].set_ylabel(_score_axis(entries) + _dashed(entries))
        named = {label: key for axis in axes for key, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        drawn.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named))
        if content["simulated"]:
            drawn.suptitle("SIMULATED recordings", color=style.WARNING, fontsize=11)
    return drawn


def _paired(rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Rows that begin with an entry, each baseline right before what is compared with it."""
    layers = [row[0].get("baseline_layer") or row[0]["layer"] for row in rows]
    first = {layer: i for i, layer in reversed(list(enumerate(layers)))}
    return [rows[i] for i in sorted(range(len(rows)), key=lambda i: first[layers[i]])]


def _score_axis(entries: list[dict[str, Any]]) -> str:
    name, over = words.score_name(entries), any("agreement" in e for e in entries)
    return f"{name} (95% intervals)" if over else "median Pearson's r (95% bootstrap over sites)"


def _dashed(entries: list[dict[str, Any]]) -> str:
    of_r, of_agreement = (any(e.get(name) is not None for e in entries) for name in ("ceiling", "agreement_ceiling"))
    said = ["√ceiling, the highest r that noise leaves"] * of_r + ["ceiling of the agreement"] * of_agreement
    return f"\ndashed: {'; '.join(said)}" if said else ""


def series_of(entry: dict[str, Any]) -> int | None:
    """How an entry of the summary is drawn, as ``style.series`` takes it: None for the baseline, else its iteration.

    What was chosen on training folds has no iteration of its own and is drawn as iteration 1; a joint layer as its last one.
    """
    return None if entry["role"] == "baseline" else int(layer_and_iteration(entry["layer"])[1].split("+")[-1] or 1)


def series_name(series: int | None) -> str:
    """A series as a legend names it."""
    return "baseline" if series is None else f"iteration {series}"


def _bars(axis: Any, rows: list[dict[str, Any]]) -> None:
    """Bars of one region and source, in the colours of ``style``.

    Dashed: what noise leaves of a perfect prediction's r, the root of the ceiling (``words.bound``).
    """
    for x, e in enumerate(rows):
        value, (low, high) = words.score(e)
        height = math.nan if value is None else value
        errors = None if low is None or high is None else [[max(0.0, height - low)], [max(0.0, high - height)]]
        name = series_name(series_of(e))
        label = name if name not in axis.get_legend_handles_labels()[1] else None
        axis.bar(x, height, width=0.75, color=style.colour(series_of(e)), yerr=errors, ecolor=style.INK, label=label)
        if (most := words.bound(e)) is not None:
            axis.hlines(most, x - 0.45, x + 0.45, colors=style.INK, linestyles="dashed", linewidth=1)
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


def as_run(folder: Path, summary: dict[str, Any], run: Mapping[str, Any], evaluations: Sequence[Evaluation]) -> Run:
    """What the page of a comparison shows: of a region with several sources first all of them pooled, folded each."""
    head, cells, notes = words.cells(summary)
    entries = summary["evaluations"]
    pooled = {e["region"] for e in entries if e["source"] == POOLED}
    shown, each = list[Any](), list[Any]()
    for row in zip(entries, evaluations, cells, strict=True):
        (shown if row[0]["region"] not in pooled or row[0]["source"] == POOLED else each).append(row)
    caption = (
        "Bars: the median over sites (points) of Pearson's r on held-out images. Whiskers: its 95% bootstrap interval over sites. "
        "Dashed: the root of the ceiling, the highest r that noise leaves to a perfect prediction (where there are repeats). "
        + words.weights_named(entries)
    )
    axis = "median Pearson's r"
    if any("agreement" in e for e in entries):
        caption = (
            "RSA and CKA: bars are the agreement of dissimilarities of images, whiskers its 95% bootstrap interval over images, "
            f"dashed the ceiling of the agreement. Else: {caption}"
        )
        axis = words.score_name(entries)
    charts = [_bar_chart("Neural predictivity", (caption, axis), shown)]
    if each:
        charts.append(_bar_chart("Neural predictivity, source by source", (caption, axis), each, folded=True))
    return Run(
        folder=folder,
        kind="comparison",
        title="Neural predictivity",
        question=words.question(entries),
        answer=summary["answer"],
        simulated=summary["simulated"],
        notice=" ".join(words.feedback_notes(summary)),
        charts=(*charts, *_accuracy(summary["accuracy"])),
        pictures=tuple(_pictures({**summary, "evaluations": [e for e, *_ in shown]}, [one for _, one, _ in shown])),
        tables=(Table("All rows", *_valid_first(head, [row for *_, row in shown + each]), tuple(notes)),),
        facts=tuple(flat({name: run[name] for name in _facts_first(run)})),
        caveats=tuple(words.caveats(summary, run)),
        same=_same(summary, run),
    )


def _valid_first(head: list[str], rows: list[list[str]]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Head and rows as a page shows them: what was scored, its difference and the tests that are valid, then all else."""
    score = next(i for i, name in enumerate(head) if name.endswith("[95%]"))
    first = [i for i, name in enumerate(head) if i <= score or name.startswith("difference")]
    valid = [i for i, name in enumerate(head) if name.endswith(" p")]
    order = [*first, *valid, *(i for i in range(len(head)) if i not in {*first, *valid})]
    return tuple(head[i] for i in order), tuple(tuple(row[i] for i in order) for row in rows)


def _bar_chart(
    title: str, about: tuple[str, str], rows: Sequence[tuple[dict[str, Any], Evaluation, Any]], **more: Any
) -> Chart:
    """Bars of rows, each baseline before the rows that are compared with it; ``about``: caption and name of the axis."""
    entries = [e for e, *_ in rows]
    sources, names = short_names([e["source"] for e in entries]), network_names(entries)
    groups: dict[str, list[Mark]] = {}
    legend: dict[int | None, str] = {}
    for e, one, name in _paired([(e, one, name) for (e, one, _), name in zip(rows, names, strict=True)]):
        value, (low, high) = words.score(e)
        sites = tuple(v for v in site_r(one.scores).tolist() if v == v) if isinstance(one.scores, Scores) else ()
        mark = Mark(f"{name} {e['layer']}", value, low, high, series_of(e), bound=words.bound(e), points=sites)
        groups.setdefault(f"{e['region']}: {words.panel(e, sources[e['source']])}", []).append(mark)
        legend[mark.series] = series_name(mark.series)
    found = tuple((name, tuple(marks)) for name, marks in groups.items())
    return Chart(title, *about, found, legend=tuple(legend.items()) if len(legend) > 1 else (), **more)


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
    same = {"metric": ", ".join(dict.fromkeys(e["metric"] for e in summary["evaluations"]))}
    same |= {
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
