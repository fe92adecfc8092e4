"""A folder of ``compare`` -> its Run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from cnnf_brain.predictivity.scores import SMALL_FOLD
from cnnf_brain.predictivity.statistics import TESTS
from cnnf_brain.report import comparison
from cnnf_brain.report.charts import Chart, Mark
from cnnf_brain.report.comparison_figure import series_of
from cnnf_brain.report.comparison_names import network_names, short_names, weights_named
from cnnf_brain.report.runs import Run, Table, about_the_code, flat, join, version_keys

LEVEL = 0.05
FEW_SITES = 30


def read(folder: Path, summary: dict[str, Any], run: dict[str, Any]) -> Run:
    """The Run of summary.json and run.json."""
    head, rows, notes = comparison.cells(summary)
    entries = summary["evaluations"]
    caption = (
        "Bars: the median over sites of Pearson's r on held-out images. Whiskers: its 95% bootstrap interval over sites. "
        "Dashed: the root of the ceiling, the highest r that noise leaves to a perfect prediction (where there are repeats). "
        + weights_named(entries)
    )
    chart = Chart("Neural predictivity", caption, "median Pearson's r", _groups(entries))
    return Run(
        folder=folder,
        kind="comparison",
        title="Neural predictivity",
        question=question(entries),
        answer=answer(entries, simulated=summary["simulated"]),
        simulated=summary["simulated"],
        notice=" ".join(comparison.feedback_notes(summary)),
        charts=(chart, *_accuracy(summary["accuracy"])),
        tables=(Table("All rows", tuple(head), tuple(map(tuple, rows)), tuple(notes)),),
        facts=tuple(flat({name: run[name] for name in _facts_first(run)})),
        caveats=tuple(caveats(summary, run)),
        same=_same(summary, run),
    )


def question(entries: list[dict[str, Any]]) -> str:
    """What was asked, from the rows."""
    models, baselines = (
        list(dict.fromkeys(f"{e['network']} [{e['weights']}]" for e in entries if e["role"] == role))
        for role in ("model", "baseline")
    )
    regions = list(dict.fromkeys(e["region"] for e in entries))
    simulated = "simulated " if any(e["simulated"] for e in entries) else ""
    if not baselines or not models:
        return f"How well do the features of {join(models or baselines)} predict {simulated}{join(regions)} sites?"
    return (
        f"Do the features of {join(models)} predict {simulated}{join(regions)} sites better than those of {join(baselines)}?"
    )


def answer(entries: list[dict[str, Any]], *, simulated: bool) -> str:
    """One sentence on the differences to the baseline, by the tests that are valid for new images."""
    found = [(e, verdict(e)) for e in entries if e["role"] == "model" and e.get("difference") is not None]
    if not found:
        return "No row has a difference to a baseline: the table stands alone."
    above, below = (sum(v == which for _, v in found) for which in (1, -1))
    open_ = len(found) - above - below
    word = "Yes" if above == len(found) else "In part" if above else "No" if below else "Undecided"
    low, high = (pick(found, key=lambda pair: pair[0]["difference"])[0] for pick in (min, max))
    valid = join([name for name in comparison.SHOWN if TESTS[name].valid])
    ends = f"from {_difference(low)} to {_difference(high)}" if len(found) > 1 else _difference(low)
    state = " (simulated sites)" if simulated else ""
    return (
        f"{word}{state}: of {len(found)} difference{'s' * (len(found) > 1)} to the baseline, {above} lie above and {below} below "
        f"it by every valid test ({valid}; p < {LEVEL} after Holm's adjustment) and {open_} are undecided; in median r {ends}."
    )


def verdict(entry: dict[str, Any]) -> int:
    """1 or -1 where every valid test finds the difference above or below 0, else 0."""
    ps = [t["p_holm"] for t in entry.get("tests", []) if t["valid"]]
    if not ps or any(p is None or p >= LEVEL for p in ps):
        return 0
    return (entry["difference"] > 0) - (entry["difference"] < 0)


def _difference(e: dict[str, Any]) -> str:
    return f"{e['difference']:+.3f} ({e['region']}, {e['layer']})"


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


def caveats(summary: dict[str, Any], run: dict[str, Any]) -> list[str]:
    """What the run does not show."""
    entries = summary["evaluations"]
    found = []
    if summary["simulated"]:
        found.append("Simulated sites are computed, not recorded: nothing here says anything about a brain.")
    if any(e["median_r_pooled_predictions"] is not None for e in entries):
        fewest = min(e["images"] for e in entries)
        found.append(
            f"Too few images: a split tests on fewer than {SMALL_FOLD} (of {fewest}), so that r within a split is noisy."
        )
    small = sorted({f"{e['region']} of {e['source']} ({e['sites']})" for e in entries if e["sites"] < FEW_SITES})
    if small:
        found.append(f"Fewer than {FEW_SITES} sites: {'; '.join(small)}. Intervals over so few sites are rough.")
    if all(e["ceiling"] is None for e in entries):
        found.append("No ceiling: without repeats of the images, how much of a response could be predicted is not known.")
    undefined = max(e["undefined_sites"] for e in entries)
    if undefined:
        found.append(f"Up to {undefined} sites of a row have no r: what is predicted for them is constant.")
    some = max(e["sites_undefined_in_some_folds"] for e in entries)
    if some > undefined:
        found.append(f"Up to {some} sites of a row are constant in some folds, which their r leaves out.")
    headless = [network["name"] for network in run["networks"] if network["headless"]]
    if headless:
        found.append(f"{join(headless)}: weights without a classifier; feedback starts from the top feature map.")
    sizes = {network["image_size"] for network in run["networks"]}
    if len(sizes) > 1:
        found.append(f"The networks saw images of different sizes ({', '.join(map(str, sorted(sizes)))} pixels).")
    if any(not t["valid"] for e in entries for t in e.get("tests", [])):
        found.append("Tests marked ⚠ do not answer whether new images would give the same result (docs/statistics.md).")
    found.append("One set of weights for each network: how much another training run would differ is not measured here.")
    return found + about_the_code(run)


def _facts_first(run: dict[str, Any]) -> list[str]:
    first = ["command", "commit", "machine", "seconds", "chosen"]
    twice = ["kind", "configuration", "files", "accuracy", "notes"]
    return [name for name in first if name in run] + [name for name in run if name not in (*first, *twice)]


def _same(summary: dict[str, Any], run: dict[str, Any]) -> dict[str, str]:
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
    return same | version_keys(run)
