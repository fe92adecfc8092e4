"""Evaluations -> table, summary.json, site-wise NetCDF and the figure. The files' formats are in docs/compare.md."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from tabulate import tabulate

from cnnf_brain.files import whole_file, write_whole
from cnnf_brain.predictivity.scores import ceiled, median_r, site_r
from cnnf_brain.predictivity.statistics import TESTS, bootstrap_median_difference, holm
from cnnf_brain.types import Evaluation

SCHEMA = 1
FILES = ("summary.json", "scores.nc", "table.md", "figure.png", "figure.svg", "run.json")
SMALL_FOLD = 20


def write(folder: Path, evaluations: Sequence[Evaluation], run: dict[str, Any]) -> None:
    """All files of the report into ``folder``, each whole or not at all."""
    content = summary(evaluations, run)
    _write_json(folder / "run.json", run)
    write_scores(folder / "scores.nc", evaluations, run)
    text = f"# Neural predictivity\n\n{table(evaluations, run)}\n"
    write_whole(folder / "table.md", lambda file: file.write(text.encode()))  # type: ignore[arg-type, return-value]
    plot(folder, content)
    _write_json(folder / "summary.json", content)  # last: where it stands, the rest does


def summary(evaluations: Sequence[Evaluation], run: dict[str, Any]) -> dict[str, Any]:
    """The content of summary.json: one entry for each evaluation, and the family of each test."""
    adjusted = adjusted_p(evaluations)
    return {
        "schema": SCHEMA,
        "simulated": run["simulated"],
        "options": run["options"],
        "family_size": {name: len(ps) for name, ps in adjusted.items()},
        "evaluations": [_entry(i, e, adjusted) for i, e in enumerate(evaluations)],
    }


def adjusted_p(evaluations: Sequence[Evaluation]) -> dict[str, dict[int, float]]:
    """Holm's p-values by test and row: the family is all region x layer x iteration rows of the run, for each test apart.

    Pooled rows repeat the data of their sources and stand in the same family.
    """
    raw: dict[str, dict[int, float]] = {}
    for i, e in enumerate(evaluations):
        for test in e.comparison.tests if e.comparison else ():
            if not math.isnan(test.p):
                raw.setdefault(test.name, {})[i] = test.p
    return {name: dict(zip(ps, map(float, holm(list(ps.values()))), strict=True)) for name, ps in raw.items()}


def _entry(i: int, e: Evaluation, adjusted: dict[str, dict[int, float]]) -> dict[str, Any]:
    r = site_r(e.scores)
    low, high = median_interval(r)
    entry: dict[str, Any] = {
        "region": e.region,
        "source": e.source,
        "simulated": e.simulated,
        "role": e.role,
        "network": e.network,
        "layer": e.layer,
        "chosen": list(e.chosen),
        "images": e.n_images,
        "sites": len(e.neuroid_ids),
        "excluded_sites": list(e.excluded),
        "undefined_sites": int(np.isnan(r).sum()),
        "median_r": median_r(e.scores),
        "median_r_interval": [low, high],
        "median_r_pooled_predictions": None if e.scores.pooled is None else float(np.nanmedian(e.scores.pooled)),
        "ceiling": None,
    }
    if e.scores.ceiling is not None and np.isfinite(e.scores.ceiling).any():
        ceiling = float(np.nanmedian(e.scores.ceiling))
        entry["ceiling"] = ceiling
        for formula in ("r2/ceiling", "(r/ceiling)2"):
            entry[formula] = float(ceiled(entry["median_r"], ceiling, formula))
    if e.comparison:
        entry["difference"] = e.comparison.difference
        entry["difference_interval"] = [e.comparison.low, e.comparison.high]
        entry["tests"] = [
            {
                "name": t.name,
                "statistic": t.statistic,
                "df": t.df,
                "n": t.n,
                "p": t.p,
                "p_holm": adjusted.get(t.name, {}).get(i),
                "interval": t.interval,
                "question": TESTS[t.name].question,
                "valid": TESTS[t.name].valid,
            }
            for t in e.comparison.tests
        ]
    return _plain(entry)


def median_interval(r: np.ndarray) -> tuple[float, float]:
    """95% bootstrap interval, over sites, of the median of (n_neuroids,) values; NaN for fewer than two sites."""
    if np.isfinite(r).sum() < 2:
        return math.nan, math.nan
    return bootstrap_median_difference(r[None], np.zeros_like(r)[None])


def table(evaluations: Sequence[Evaluation], run: dict[str, Any]) -> str:
    """The printed table (Markdown) with its notes."""
    content = summary(evaluations, run)
    entries = content["evaluations"]
    names = [t["name"] for e in entries for t in e.get("tests", [])]
    tests = [name for name in TESTS if name in names]
    small = any(e["median_r_pooled_predictions"] is not None for e in entries)
    head = ["region", "recordings", "network", "layer", "median r [95%]"]
    head += ["r, pooled predictions"] * small
    head += ["ceiling", "r²/ceiling", "(r/ceiling)²", "difference [95%]", *(_test_head(name) for name in tests)]
    rows = [_row(e, tests, small) for e in entries]
    lines = [tabulate(rows, head, tablefmt="github", disable_numparse=True), "", *_notes(content, evaluations, tests, small)]
    return "\n".join(lines)


def _test_head(name: str) -> str:
    return f"p: {name}" + ("" if TESTS[name].valid else " ⚠")


def _row(e: dict[str, Any], tests: list[str], small: bool) -> list[str]:
    def number(value: float | None, digits: int = 3, sign: str = "") -> str:
        return "" if value is None else f"{value:{sign}.{digits}f}"

    def interval(ends: Sequence[float | None], sign: str = "") -> str:
        return f" [{number(ends[0], sign=sign)}, {number(ends[1], sign=sign)}]" if None not in ends else ""

    source = e["source"] + (" (simulated)" if e["simulated"] and "simulated" not in e["source"] else "")
    row = [e["region"], source, e["network"], e["layer"], number(e["median_r"]) + interval(e["median_r_interval"])]
    row += [number(e["median_r_pooled_predictions"])] * small
    row += [number(e["ceiling"]), number(e.get("r2/ceiling")), number(e.get("(r/ceiling)2"))]
    if "difference" not in e:
        return [*row, "baseline", *[""] * len(tests)]
    by_name = {t["name"]: t for t in e["tests"]}
    row.append(number(e["difference"], sign="+") + interval(e["difference_interval"], sign="+"))
    return row + [f"{by_name[n]['p_holm']:.2g}" if n in by_name and by_name[n]["p_holm"] is not None else "" for n in tests]


def _notes(content: dict[str, Any], evaluations: Sequence[Evaluation], tests: list[str], small: bool) -> list[str]:
    options = content["options"]
    splits = {"kfold": "ten true folds", "brainscore": "Brain-Score's ten shuffle splits"}[options["splits"]]
    model = "one PLS model per site" if options["per_site"] else "PLS over all sites at once"
    notes = [
        f"Median over sites of Pearson's r on held-out images; {model}, {options['components']} components, {splits}. "
        "Intervals: 95% bootstrap over sites."
    ]
    if options["pca"]:
        notes.append(
            f"Features were reduced to {options['pca']} principal components, fitted on all images (without responses)."
        )
    if tests:
        sizes = sorted(set(content["family_size"].values()))
        notes.append(
            f"p-values are Holm-adjusted over the {' or '.join(map(str, sizes))} rows of this table, for each test apart. "
            "⚠: rejects too often for the question whether new images would give the same answer; shown for comparison with the "
            "literature (docs/statistics.md)."
        )
    if small:
        notes.append(
            f"Folds hold fewer than {SMALL_FOLD} test images, so that r within a fold is noisy; r over the held-out predictions of "
            "all folds together stands beside it."
        )
    if not any(e["ceiling"] for e in content["evaluations"]):
        notes.append("No ceiling: these recordings hold no single repeats.")
    left_out = {f"{e.source}: {name}" for e in evaluations for name in e.excluded if e.source != "pooled"}
    if left_out:
        notes.append(
            f"{len(left_out)} sites were excluded: {'; '.join(sorted(left_out)[:5])}{' …' if len(left_out) > 5 else ''}."
        )
    if content["simulated"]:
        notes.append("SIMULATED recordings: the sites are computed, not measured. Nothing here says anything about a brain.")
    return notes


def write_scores(path: Path, evaluations: Sequence[Evaluation], run: dict[str, Any]) -> None:
    """Site-wise scores as NetCDF: one row for each evaluation and site, r for each split."""
    n_splits = max(e.scores.r.shape[0] for e in evaluations)
    columns: dict[str, list[Any]] = {
        k: [] for k in ("region", "source", "role", "network", "layer", "neuroid_id", "ceiling", "pooled_r")
    }
    r = []
    for e in evaluations:
        n = len(e.neuroid_ids)
        for name in ("region", "source", "role", "network", "layer"):
            columns[name] += [getattr(e, name)] * n
        columns["neuroid_id"] += e.neuroid_ids
        for name, values in (("ceiling", e.scores.ceiling), ("pooled_r", e.scores.pooled)):
            columns[name] += [math.nan] * n if values is None else values.tolist()
        r.append(np.full((n, n_splits), np.nan))
        r[-1][:, : e.scores.r.shape[0]] = e.scores.r.T
    data = xr.Dataset({name: ("row", np.array(values)) for name, values in columns.items()})
    data["r"] = (("row", "split"), np.concatenate(r))
    data.attrs = {"schema": SCHEMA, "simulated": int(run["simulated"]), "options": json.dumps(run["options"])}
    with whole_file(path) as temporary:
        data.to_netcdf(temporary, engine="netcdf4")


def plot(folder: Path, content: dict[str, Any]) -> None:
    """The figure (after Figure 5 of the paper) from the summary: median r of every row, by region and source."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot as plt

    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for e in content["evaluations"]:
        groups.setdefault((e["region"], e["source"]), []).append(e)
    widest = max(len(rows) for rows in groups.values())
    size = (max(4.0, (1.2 + 0.55 * widest) * len(groups)), 4.6)
    figure, axes = plt.subplots(1, len(groups), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, ((region, source), rows) in zip(axes[0], groups.items(), strict=True):
        _bars(axis, rows)
        axis.set_title(f"{region}\n{source}", fontsize=9)
    axes[0, 0].set_ylabel("median Pearson's r (95% bootstrap over sites)")
    if content["simulated"]:
        figure.suptitle("SIMULATED recordings", color="#b00020", fontsize=11)
    for suffix in ("png", "svg"):
        with whole_file(folder / f"figure.{suffix}") as temporary:
            figure.savefig(temporary, dpi=150, format=suffix)
    plt.close(figure)


def _bars(axis: Any, rows: list[dict[str, Any]]) -> None:
    """Bars of one region and source: the baseline grey, the model blue, darker with every iteration; the ceiling dashed."""
    for x, e in enumerate(rows):
        iteration = int(e["layer"].split("@")[1].split(":")[0]) if "@" in e["layer"] else 1
        colour = "#8c8c8c" if e["role"] == "baseline" else ("#9ecae1", "#4292c6", "#2171b5", "#08519c")[min(iteration, 3)]
        low, high = e["median_r_interval"]
        errors = None if low is None else [[max(0.0, e["median_r"] - low)], [max(0.0, high - e["median_r"])]]
        axis.bar(x, e["median_r"], width=0.75, color=colour, yerr=errors, capsize=3, ecolor="#333333")
        if e["ceiling"] is not None:
            axis.hlines(e["ceiling"], x - 0.45, x + 0.45, colors="#333333", linestyles="dashed", linewidth=1)
    axis.set_xticks(range(len(rows)), [f"{e['network']}\n{e['layer']}" for e in rows], rotation=60, ha="right", fontsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.axhline(0, color="#333333", linewidth=0.8)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(_plain(content), indent=2, allow_nan=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))  # type: ignore[arg-type, return-value]


def _plain(value: Any) -> Any:
    """JSON's own types; NaN and infinity become null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
