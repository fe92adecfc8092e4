"""Evaluations -> table, summary.json, site-wise NetCDF and the figure. The files' formats are in docs/compare.md."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from tabulate import tabulate

from cnnf_brain.io import atomic_path, plain, write_json, write_text
from cnnf_brain.networks import BEYOND, CHANGED, UNTRAINED
from cnnf_brain.predictivity.scores import FORMULAS, SMALL_FOLD, brainscore_ceiled, brainscore_r, median_r, site_r
from cnnf_brain.predictivity.statistics import (
    RESAMPLED,
    SWAP,
    TESTS,
    WELCH,
    bootstrap_median_difference,
    holm,
)
from cnnf_brain.report.comparison_figure import draw
from cnnf_brain.report.comparison_names import WIDEST, cut, layer_and_iteration, short_names
from cnnf_brain.types import Evaluation

SCHEMA = 2
FILES = ("summary.json", "scores.nc", "table.md", "figure.png", "figure.svg", "run.json")
SHOWN = {RESAMPLED: "resampled t", SWAP: "swap", WELCH: "Welch"}  # tests in the table, valid ones first; the files have all


def write(folder: Path, evaluations: Sequence[Evaluation], run: dict[str, Any]) -> str:
    """All files of the report into ``folder`` (see ``folders.results``), each whole or not at all; returns the table."""
    content = summary(evaluations, run)
    printed = table(content)
    write_json(folder / "run.json", run)
    write_scores(folder / "scores.nc", evaluations, run)
    text = f"# Neural predictivity\n\n{printed}\n"
    write_text(folder / "table.md", text)
    draw(folder, content)
    write_json(folder / "summary.json", content)
    return printed


def summary(evaluations: Sequence[Evaluation], run: dict[str, Any]) -> dict[str, Any]:
    """The content of summary.json: one entry for each evaluation, and the family of each test."""
    adjusted = adjusted_p(evaluations)
    return {
        "schema": SCHEMA,
        "simulated": run["simulated"],
        "options": run["options"],
        "accuracy": run["accuracy"],
        "notes": run["notes"],
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
    entry: dict[str, Any] = {
        "region": e.region,
        "source": e.source,
        "simulated": e.simulated,
        "role": e.role,
        "network": e.network,
        "weights": e.weights,
        "feedback": e.feedback,
        "layer": e.layer,
        "chosen": e.chosen,
        "images": e.n_images,
        "sites": len(e.site_ids),
        "excluded_sites": e.excluded,
        "undefined_sites": int(np.isnan(r).sum()),
        "sites_undefined_in_some_folds": int((e.scores.undefined_folds > 0).sum()),
        "median_r": median_r(e.scores),
        "median_r_interval": median_interval(r),
        "median_r_pooled_predictions": None if e.scores.pooled is None else _median(e.scores.pooled),
        "brainscore_r": brainscore_r(e.scores),
        "ceiling": None if e.scores.ceiling is None else _median(e.scores.ceiling),
    }
    entry |= {name: None if e.scores.ceiling is None else brainscore_ceiled(e.scores, name) for name in FORMULAS}
    if e.against:
        entry |= _difference(i, e, adjusted)
    return plain(entry)


def _difference(i: int, e: Evaluation, adjusted: dict[str, dict[int, float]]) -> dict[str, Any]:
    """The part of an entry that compares it with the baseline."""
    c = e.comparison
    tests = [
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
        for t in (c.tests if c else ())
    ]
    return {
        "baseline_layer": e.against,
        "difference": c and c.difference,
        "difference_interval": (c.low, c.high) if c else (None, None),
        "difference_interval_over_sites": (c.sites_low, c.sites_high) if c else (None, None),
        "tests": tests,
    }


def _median(values: np.ndarray) -> float:
    defined = values[np.isfinite(values)]
    return float(np.median(defined)) if len(defined) else math.nan


def median_interval(r: np.ndarray) -> tuple[float, float]:
    """95% bootstrap interval, over sites, of the median of (n_neuroids,) values; NaN for fewer than two sites."""
    if np.isfinite(r).sum() < 2:
        return math.nan, math.nan
    return bootstrap_median_difference(r[None], np.zeros_like(r)[None])


def table(content: dict[str, Any]) -> str:
    """The printed table (Markdown) of a summary, with its notes."""
    head, rows, notes = cells(content)
    return "\n".join([tabulate(rows, head, tablefmt="github", disable_numparse=True), "", *(f"- {note}" for note in notes)])


def cells(content: dict[str, Any]) -> tuple[list[str], list[list[str]], list[str]]:
    """Head, rows and notes of the table of a summary."""
    entries = content["evaluations"]
    names = {t["name"] for e in entries for t in e.get("tests", [])}
    tests = [name for name in SHOWN if name in names]
    top1 = accuracies(content)
    small = any(e["median_r_pooled_predictions"] is not None for e in entries)
    ceilings = any(e["ceiling"] is not None for e in entries)
    sources = short_names([e["source"] for e in entries])
    columns = {"pooled r": small, "ceiling": ceilings, "r²/c": ceilings, "(r/c)²": ceilings, "top-1": bool(top1)}
    columns |= {"difference [95%]": bool(tests)}
    head = ["region", "recordings", "network", "weights", "layer", "it", "median r [95%]"]
    head += [name for name, there in columns.items() if there] + [_test_head(name) for name in tests]
    rows = [_row(e, sources[e["source"]], columns, tests, top1) for e in entries]
    return head, rows, _notes(content, tests, small, ceilings, sources)


def accuracies(content: dict[str, Any]) -> dict[tuple[str, str, str], float]:
    """Top-1 by network, weights and iteration."""
    return {(a["network"], a["weights"], str(a["iteration"])): a["top1"] for a in content["accuracy"]}


def _test_head(name: str) -> str:
    return f"{SHOWN.get(name, name)} p" + ("" if TESTS[name].valid else " ⚠")


def _row(
    e: dict[str, Any],
    source: str,
    columns: dict[str, bool],
    tests: list[str],
    top1: dict[tuple[str, str, str], float],
) -> list[str]:
    source += " (simulated)" if e["simulated"] and "simulated" not in source else ""
    layer, iteration = layer_and_iteration(e["layer"])
    name = f"{e['network']}, control" if e["role"] == "control" else e["network"]
    row = [e["region"], source, name, cut(e["weights"], WIDEST), layer, iteration]
    row.append((_number(e["median_r"]) or "undefined") + _interval(e["median_r_interval"]))
    share = top1.get((e["network"], e["weights"], iteration))
    cells = {
        "pooled r": _number(e["median_r_pooled_predictions"]),
        "ceiling": _number(e["ceiling"]),
        "r²/c": _number(e["r2/ceiling"]),
        "(r/c)²": _number(e["(r/ceiling)2"]),
        "top-1": "" if share is None else f"{100 * share:.2f} %",
        "difference [95%]": _shown_difference(e),
    }
    row += [cells[name] for name, there in columns.items() if there]
    found = {t["name"]: t for t in e.get("tests", [])}
    return row + [_shown_test(found.get(name)) for name in tests]


def _shown_difference(e: dict[str, Any]) -> str:
    if "difference" not in e:
        return "baseline" if e["role"] == "baseline" else ""
    return (_number(e["difference"], "+") or "undefined") + _interval(e["difference_interval"], "+")


def _shown_test(test: dict[str, Any] | None) -> str:
    """p after Holm's adjustment; of the paper's test t and degrees of freedom as well, since the paper prints them."""
    if test is None or test["p_holm"] is None:
        return ""
    p = f"{test['p_holm']:.2g}"
    if test["name"] != WELCH or test["statistic"] is None or test["df"] is None:
        return p
    return f"{p}; t({test['df']:.1f}) = {test['statistic']:.2f}"


def _number(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.3f}"


def _interval(ends: Sequence[float | None], sign: str = "") -> str:
    return "" if None in ends else f" [{_number(ends[0], sign)}, {_number(ends[1], sign)}]"


def _notes(content: dict[str, Any], tests: list[str], small: bool, ceilings: bool, sources: dict[str, str]) -> list[str]:
    options, entries = content["options"], content["evaluations"]
    splits = {"kfold": "ten true folds", "brainscore": "Brain-Score's ten shuffle splits"}[options["splits"]]
    model = "one PLS model per site" if options["per_site"] else "PLS over all sites at once"
    notes = [
        f"Median over sites of Pearson's r on held-out images (the mean over splits of each site); {model}, "
        f"{options['components']} components, {splits}. it: iteration, 0 is the first feedforward pass. "
        "Its interval: 95% bootstrap over sites."
    ]
    if tests:
        notes.append(
            "difference: median over sites of the difference in r to the baseline; its 95% interval is that of the swap test and "
            "speaks of new images (docs/statistics.md)."
        )
    notes += [*feedback_notes(content), *content["notes"]]
    if content["simulated"]:
        notes.insert(
            0, "SIMULATED recordings: the sites are computed, not measured. Nothing here says anything about a brain."
        )
    if content["accuracy"]:
        notes.append(f"top-1: {'; '.join(dict.fromkeys(a['source'] for a in content['accuracy']))}.")
    if options["pca"]:
        notes.append(
            f"Features were reduced to {options['pca']} principal components, fitted on all images (without responses)."
        )
    if options["select"]:
        notes.append("nested: in each split, the layer and iteration that do best within its training images.")
    notes += _about_tests(content, tests)
    if small:
        notes.append(
            f"Folds hold fewer than {SMALL_FOLD} test images, so that r within a fold is noisy; pooled r, over the held-out "
            "predictions of all folds together, stands beside it."
        )
    if ceilings:
        notes.append(
            "ceiling: median over sites of the split-half reliability. r²/c (Brain-Score since 2026) and (r/c)² (before) in "
            "Brain-Score's order: median over sites in each split, mean over splits, then divided by the ceiling."
        )
    else:
        notes.append("No ceiling: these recordings hold no single repeats.")
    return notes + _about_sites(entries, sources)


def feedback_notes(content: dict[str, Any]) -> list[str]:
    """Whether the feedback that was run is one that was trained, in a sentence for each state."""
    states = dict.fromkeys((e["network"], e["weights"], e["feedback"]) for e in content["evaluations"] if e["feedback"])
    untrained = [f"{name} [{weights}]" for name, weights, state in states if state == UNTRAINED]
    changed = [f"{name} [{weights}]" for name, weights, state in states if state == CHANGED]
    found = []
    if untrained:
        found.append(
            f"FEEDBACK UNTRAINED: {'; '.join(untrained)}. These weights were never trained with feedback: the rows say what it "
            "does to a plain CNN, and nothing about the paper's trained network."
        )
    if changed:
        found.append(f"Feedback runs with other settings than it was trained with: {'; '.join(changed)}.")
    beyond = [f"{name} [{weights}], {state}" for name, weights, state in states if state.startswith(BEYOND.split("{")[0])]
    if beyond:
        found.append(f"Feedback runs for more iterations than it was trained for: {'; '.join(beyond)}.")
    return found


def _about_tests(content: dict[str, Any], tests: list[str]) -> list[str]:
    if not tests:
        return []
    sizes = sorted(set(content["family_size"].values()))
    rows = f"{' or '.join(map(str, sizes))} row{'s' * (sizes != [1])}"
    about = "; ".join(f"{_test_head(name)} = {name}, {TESTS[name].why}" for name in tests)
    return [
        f"p-values are Holm-adjusted over the {rows} of this table with a difference, for each test apart. ⚠: not to be "
        "believed for the question whether new images would give the same answer; shown since the paper prints it "
        f"(docs/statistics.md). {about}. Tests over sites, which are not valid for new images either, are in summary.json."
    ]


def _about_sites(entries: Sequence[dict[str, Any]], sources: dict[str, str]) -> list[str]:
    notes = []
    apart = [e for e in entries if e["source"] != "pooled"]
    left_out = sorted({f"{e['region']} of {sources[e['source']]}: {name}" for e in apart for name in e["excluded_sites"]})
    if left_out:
        more = " …" if len(left_out) > 5 else ""
        were = "site was" if len(left_out) == 1 else "sites were"
        notes.append(f"{len(left_out)} {were} excluded: {'; '.join(left_out[:5])}{more}.")
    undefined = max(e["undefined_sites"] for e in entries)
    if undefined:
        notes.append(f"Up to {undefined} sites have no r in a row, since what is predicted for them is constant.")
    some = max(e["sites_undefined_in_some_folds"] for e in entries)
    if some > undefined:
        notes.append(
            f"Up to {some} sites of a row are constant, or predicted as a constant, in some folds: their r is the mean over the "
            "others."
        )
    return notes


def write_scores(path: Path, evaluations: Sequence[Evaluation], run: dict[str, Any]) -> None:
    """Site-wise scores as NetCDF: one row for each evaluation and site, r for each split."""
    n_splits = max(e.scores.r.shape[0] for e in evaluations)
    columns: dict[str, list[Any]] = {
        k: []
        for k in (
            "region",
            "source",
            "simulated",
            "role",
            "network",
            "weights",
            "layer",
            "neuroid_id",
            "ceiling",
            "pooled_r",
        )
    }
    r = []
    for e in evaluations:
        n = len(e.site_ids)
        for name in ("region", "source", "role", "network", "weights", "layer"):
            columns[name] += [getattr(e, name)] * n
        columns["simulated"] += [int(e.simulated)] * n
        columns["neuroid_id"] += e.site_ids
        for name, values in (("ceiling", e.scores.ceiling), ("pooled_r", e.scores.pooled)):
            columns[name] += [math.nan] * n if values is None else values.tolist()
        r.append(np.full((n, n_splits), np.nan))
        r[-1][:, : e.scores.r.shape[0]] = e.scores.r.T
    data = xr.Dataset({name: ("row", np.array(values)) for name, values in columns.items()})
    data["r"] = (("row", "split"), np.concatenate(r))
    data.attrs = {"schema": SCHEMA, "simulated": int(run["simulated"]), "options": json.dumps(run["options"])}
    with atomic_path(path) as temporary:
        try:
            data.to_netcdf(temporary, engine="netcdf4")
        except RuntimeError as error:  # how the NetCDF library says that the disk is full
            raise OSError(errno.EIO, str(error)) from error
