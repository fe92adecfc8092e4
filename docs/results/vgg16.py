"""Tables and Figure 5 of docs/results/vgg16.md, from the saved comparisons of docs/results/vgg16.sh.

python docs/results/vgg16.py results runs docs/figures/vgg16-fig5.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cnnf_brain import style

SEEDS = (0, 1, 2)
AGAINST = {
    "cnn": "over CNN trained alike",
    "own": "over its own iteration 0",
    "long": "over CNN trained longer",
    "start": "over torchvision's CNN",
    "untrained": "untrained feedback",
}
RUNS = {"cnn": SEEDS, "own": SEEDS, "long": (0,), "start": SEEDS}
LAYERS = [f"features.{n}" for n in (9, 16, 23, 30)]
DEFAULTS = {"V4": "features.16", "IT": "features.23"}  # the layers that stand for a region where none is named


def rows(folder: Path) -> pd.DataFrame:
    """The rows of a saved comparison, one for each region, source, role and layer@iteration."""
    summary = json.loads((folder / "summary.json").read_text())
    table = pd.DataFrame(summary["evaluations"])
    table[["layer", "iteration"]] = table["layer"].str.split("@", expand=True)
    return table.assign(iteration=table["iteration"].astype(int), source=table["source"].str.rpartition(":")[2])


def whole(table: pd.DataFrame, region: str) -> pd.DataFrame:
    """All sessions together: the pooled rows, or those of the only source."""
    mine = table[table["region"] == region]
    pooled = mine[mine["source"] == "pooled"]
    return pooled if len(pooled) else mine[~mine["pooled"]]


def decided(row: Any) -> int:
    """+1 or -1 where the tests for new images call the row higher or lower, else 0."""
    return {"above": 1, "below": -1}.get(row.verdict, 0)


def differences(folder: Path) -> None:
    """The difference of CNN-F at iteration 1, layer by layer: mean over seeds, and what the tests say of how many seeds."""
    for region in DEFAULTS:
        print(f"\n**{region}**\n")
        print("| layer | " + " | ".join(AGAINST.values()) + " |\n|---|" + "---:|" * len(AGAINST))
        found = {kind: [rows(folder / f"vgg16-{kind}-seed{seed}") for seed in seeds] for kind, seeds in RUNS.items()}
        found["untrained"] = [rows(folder / "vgg16-untrained")]
        for layer in LAYERS:
            print(f"| {layer} | " + " | ".join(cell(tables, region, layer) for tables in found.values()) + " |")


def cell(tables: list[pd.DataFrame], region: str, layer: str) -> str:
    """Mean difference over seeds, and how many seeds are lower or higher by the tests for new images."""
    values, calls = [], []
    for table in tables:
        mine = whole(table, region)
        (row,) = mine[(mine["role"] == "model") & (mine["layer"] == layer) & (mine["iteration"] == 1)].itertuples()
        values.append(row.difference)
        calls.append(decided(row))
    lower, higher = calls.count(-1), calls.count(1)
    words = "; ".join(f"{n} of {len(calls)} {what}" for n, what in ((lower, "lower"), (higher, "higher")) if n)
    return f"{np.mean(values):+.3f} ({words or 'undecided'})"


def predictivity(folder: Path) -> None:
    """Median r of every network and layer, mean over seeds."""
    kinds = {
        "torchvision's CNN": [rows(folder / "vgg16-untrained").query("role == 'baseline'")],
        "CNN": [rows(folder / f"vgg16-cnn-seed{s}").query("role == 'baseline'") for s in SEEDS],
        "CNN, three times as long (seed 0)": [rows(folder / "vgg16-long-seed0").query("role == 'baseline'")],
        "CNN-F, iteration 0": [rows(folder / f"vgg16-cnn-seed{s}").query("role == 'control'") for s in SEEDS],
        "CNN-F, iteration 1": [
            rows(folder / f"vgg16-cnn-seed{s}").query("role == 'model' and iteration == 1") for s in SEEDS
        ],
        "untrained feedback, iteration 1": [rows(folder / "vgg16-untrained").query("role == 'model' and iteration == 1")],
    }
    for region in DEFAULTS:
        print(f"\n**{region}**\n\n| layer | " + " | ".join(kinds) + " |\n|---|" + "---:|" * len(kinds))
        for layer in LAYERS:
            print(f"| {layer} | " + " | ".join(f"{np.mean(of(t, region, layer)):.3f}" for t in kinds.values()) + " |")


def of(tables: list[pd.DataFrame], region: str, layer: str) -> list[float]:
    """Median r at a layer, one for each seed."""
    return [float(whole(t, region).set_index("layer").loc[layer, "median_r"]) for t in tables]


def sessions(folder: Path) -> None:
    """Of every session, and of each animal, the difference to the CNN trained alike at V4's layer."""
    tables = [rows(folder / f"vgg16-cnn-seed{seed}") for seed in SEEDS]
    for region, layer in DEFAULTS.items():
        by_source(tables, region, layer)


def by_source(tables: list[pd.DataFrame], region: str, layer: str) -> None:
    """A row for each source, animal ("pooled WE") and all of them, means over seeds."""
    print(f"\n| {region}, {layer}@1 | sites | CNN | CNN-F, iteration 1 | difference |\n|---|---:|---:|---:|---:|")
    for source in dict.fromkeys(tables[0].query("region == @region")["source"]):
        mine = [t[(t["region"] == region) & (t["source"] == source) & (t["layer"] == layer)] for t in tables]
        base = [float(t.query("role == 'baseline'")["median_r"].iloc[0]) for t in mine]
        after = [t.query("role == 'model' and iteration == 1").iloc[0] for t in mine]
        difference = np.mean([row["difference"] for row in after])
        calls = [decided(row) for row in after]
        counted = f"{calls.count(-1)} of 3 lower, {calls.count(1)} higher"
        r = np.mean([row["median_r"] for row in after])
        print(f"| {source} | {after[0]['sites']} | {np.mean(base):.3f} | {r:.3f} | {difference:+.3f} ({counted}) |")


def accuracy(runs: Path) -> dict[str, list[list[float]]]:
    """Top-1 at every iteration on the validation images of the runs, a list for each seed; the curve over steps is printed."""
    found = {}
    print("\n| network | steps | top-1 at iteration 0 | 1 |\n|---|---:|---:|---:|")
    for name, seeds in {"cnn": SEEDS, "cnnf": SEEDS, "long": (0,)}.items():
        logs = [(runs / f"vgg16-{name}-seed{seed}" / "log.jsonl").read_text().splitlines() for seed in seeds]
        lines = [[json.loads(line) for line in log if '"validation"' in line] for log in logs]
        for at in dict.fromkeys(line["step"] for line in lines[0]):
            top1 = [next(line["validation"]["top1"] for line in of_seed if line["step"] == at) for of_seed in lines]
            mean = 100 * np.mean(top1, axis=0)
            spread = 100 * np.std(top1, axis=0, ddof=1) if len(top1) > 1 else np.full(len(mean), np.nan)
            cells = [f"{m:.1f}" + ("" if np.isnan(s) else f" ± {s:.1f}") + " %" for m, s in zip(mean, spread, strict=True)]
            print(f"| {name} | {at} | " + " | ".join([*cells, ""][:2]) + " |")
        found[name] = top1
    return found


def figure(folder: Path, top1: dict[str, list[list[float]]], path: Path) -> None:
    """After Figure 5 of the paper: V4, IT and top-1 of the CNN, of the CNN-F at iterations 0 and 1; points are seeds."""
    bars: dict[str, dict[str, list[float]]] = {}
    tables = [rows(folder / f"vgg16-cnn-seed{s}") for s in SEEDS]
    for region, layer in DEFAULTS.items():
        bars[f"{region}: median r at {layer}"] = {
            "CNN": of([t.query("role == 'baseline'") for t in tables], region, layer),
            "CNN-F, it. 0": of([t.query("role == 'control'") for t in tables], region, layer),
            "CNN-F, it. 1": of([t.query("role == 'model' and iteration == 1") for t in tables], region, layer),
        }
    bars["top-1, 200 classes"] = {
        "CNN": [t[0] for t in top1["cnn"]],
        **{f"CNN-F, it. {i}": [t[i] for t in top1["cnnf"]] for i in (0, 1)},
    }
    with style.styled():
        drawn = style.new_figure(10.0, 3.6)
        for axis, (title, groups) in zip(drawn.subplots(1, 3), bars.items(), strict=True):
            for x, (values, series) in enumerate(zip(groups.values(), (None, 0, 1), strict=True)):
                axis.bar(x, np.mean(values), width=0.75, color=style.colour(series))
                axis.plot([x] * len(values), values, "o", color=style.INK, markersize=3)
            axis.set_xticks(range(len(groups)), list(groups), rotation=20, ha="right")
            axis.set_title(title)
        drawn.savefig(path, dpi=110)


if __name__ == "__main__":
    results, networks, target = map(Path, sys.argv[1:])
    measured = accuracy(networks)
    predictivity(results)
    differences(results)
    sessions(results)
    figure(results, measured, target)
