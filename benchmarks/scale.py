"""From 2,000 to 22,000 images: seconds, memory and scratch of K, PLS, ridge and statistics, and how they grow.

    python benchmarks/scale.py                          # the grid, 20 minutes of one core; ridge up to 4,000 images
    python benchmarks/scale.py --points 22000x500x0 --stages PLS statistics             # the largest, by itself
    python benchmarks/scale.py --device cuda --points 22000x1000x100000 --stages K PLS ridge      # on a GPU, features held there
    python benchmarks/scale.py --quick                  # small sizes, to see that it runs; its figures mean nothing

A point is images x sites x features; recordings and features are simulated, and 0 features stand for K as it is with ever more.
Each stage of a point runs in a process of its own, whose largest resident memory counts, from K on through K's file, as in a study
on a cluster. Making the data is not timed. CPU seconds stand beside seconds, since other programs change these less, and so does
the machine's own rate of a product in float64.

A point that is in ``results/benchmark-scale.json`` is not measured again; ``--again`` begins a new file. The last lines are the
exponents of growth, fitted to CPU seconds along the points that differ in one size alone; ``docs/figures/scaling.png`` shows them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cnnf_brain import style
from cnnf_brain.io import atomic_path
from cnnf_brain.types import Gram, LayerAt, Split

STAGES = ("K", "PLS", "ridge", "statistics")
SIZES = ("images", "sites", "features")
GRID = [(n, 500, 25_000) for n in (2000, 1000, 4000, 8000)] + [(2000, sites, 25_000) for sites in (100, 250, 1000)]
GRID += [(2000, 500, 100_000), (2000, 500, 400_000), (22_000, 500, 100_000)]
QUICK = [(200, 20, 500), (400, 20, 500), (400, 40, 500), (400, 20, 1000)]
MOST_RIDGE = 4000  # images: 19 penalties, each with a product of n x n x n
COMPONENTS, LATENTS, ROWS = 25, 100, 250
RESULTS = Path(__file__).resolve().parents[1] / "results" / "benchmark-scale.json"
FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"
GOAL = (22_000, 500)  # images, sites: at most 16 GiB, and PLS of ten folds in 360 s where a product runs at 100 GFLOP/s


def responses(n: int, sites: int) -> np.ndarray:
    """Noisy responses (n, sites) to the latents."""
    rng = np.random.default_rng(1)
    return latents(n) @ rng.standard_normal((LATENTS, sites)) * 0.3 + rng.standard_normal((n, sites))


def latents(n: int) -> np.ndarray:
    """What features and responses have in common, (n, LATENTS)."""
    return np.random.default_rng(0).standard_normal((n, LATENTS)) * np.geomspace(3, 0.1, LATENTS)


def make_k(n: int, features: int, folder: Path, device: torch.device) -> dict[str, float]:
    """Features through scratch, or held on a GPU, into K's file, as a network's are."""
    from cnnf_brain.gram import write_gram
    from cnnf_brain.scratch import Scratch, few

    rng, shared = np.random.default_rng(2), latents(n).astype(np.float32)
    weights = rng.standard_normal((LATENTS, features), dtype=np.float32)
    wall = cpu = 0.0
    held = device.type == "cuda"
    with Scratch(f"scale-{n}-{features}", features, n, kept=False, device=device, held=held) as scratch:
        for first in range(0, n, ROWS):
            made = shared[first : first + ROWS] @ weights
            made += rng.standard_normal(made.shape, dtype=np.float32)
            rows = torch.from_numpy(made).to(device)
            spent = clocked(lambda rows=rows: scratch.append(rows))
            wall, cpu = wall + spent[0], cpu + spent[1]
        size = 0 if held else sum(path.stat().st_size for path in scratch.folder.iterdir())
        *spent, k = clocked(scratch.gram)
    *written, _ = clocked(lambda: write_gram(folder / "k.npz", Gram(LayerAt("layer"), k, features)))
    return {
        "seconds": wall + spent[0] + written[0],
        "cpu": cpu + spent[1] + written[1],
        "scratch_gib": size / 2**30,
        "few": float(few(features, n)),
    }


def endless(n: int) -> Gram:
    """K over the number of features where these are more and more: what the latents give, and 1 for each image's noise."""
    shared = latents(n)
    k = shared @ shared.T
    k[range(n), range(n)] += 1.0
    return Gram(LayerAt("layer"), k, 0)


def fit(stage: str, n: int, sites: int, folder: Path, device: torch.device) -> dict[str, float]:
    """One stage from K's file; on a GPU the way there is part of it."""
    from cnnf_brain.gram import read_gram
    from cnnf_brain.predictivity.pls import cross_predict
    from cnnf_brain.predictivity.ridge import ridge_predict
    from cnnf_brain.predictivity.scores import score_predictions
    from cnnf_brain.predictivity.statistics import compare_scores
    from cnnf_brain.scratch import on_device
    from cnnf_brain.types import Predictions

    y, rows = responses(n, sites), np.arange(n)
    splits = tuple(Split(rows[rows % 10 != fold], rows[rows % 10 == fold]) for fold in range(10))
    if stage == "statistics":
        rng = np.random.default_rng(3)
        both = [
            Predictions(
                splits, tuple(y[s.test][None] + rng.standard_normal((1, len(s.test), sites)) for s in splits), (1,) * 10
            )
        ]
        both.append(Predictions(splits, tuple(one + rng.standard_normal(one.shape) for one in both[0].values), (1,) * 10))
        scores = [score_predictions(one, y) for one in both]
        wall, cpu, _ = clocked(
            lambda: compare_scores([(scores[0], scores[1])], predictions=[(both[0], both[1])], responses=[y])
        )
        return {"seconds": wall, "cpu": cpu}
    *read, gram = clocked(lambda: read_gram(LayerAt("layer"), folder / "k.npz") or endless(n))

    def work() -> Predictions:
        k = on_device(gram.values, str(device))
        return cross_predict(k, y, splits, COMPONENTS, last=True) if stage == "PLS" else ridge_predict(k, y, splits)[0]

    wall, cpu, predictions = clocked(work)
    r = float(np.median(score_predictions(predictions, y).r))
    return {"seconds": wall, "cpu": cpu, "read_seconds": read[0], "median_r": r}


def clocked(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds, CPU seconds of all threads, and the result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def rate() -> float:
    """GFLOP/s of a product in float64, the best of five: the machine at this moment."""
    a = np.random.default_rng(0).standard_normal((1500, 1500))
    return 2e-9 * len(a) ** 3 / min(clocked(lambda: a @ a)[0] for _ in range(5))


def measure(stage: str, point: Sequence[int], folder: Path, device: torch.device) -> dict[str, float]:
    """One stage in this process."""
    n, sites, features = point
    warnings.simplefilter("ignore")
    before = rate()
    found = make_k(n, features, folder, device) if stage == "K" else fit(stage, n, sites, folder, device)
    if device.type == "cuda":
        found["gpu_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10)
    return {**found, "resident_gib": peak / 2**30, "gflops": before}


def apart(stage: str, point: Sequence[int], folder: Path, device: str) -> dict[str, float]:
    """``measure`` in a process of its own."""
    command = [sys.executable, __file__, "--stages", stage, "--points", "x".join(map(str, point))]
    command += ["--here", str(folder), "--device", device]
    environment = {**os.environ, "CNNF_BRAIN_CACHE": str(folder / "cache")}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def growth(rows: Sequence[dict[str, Any]], stage: str, size: str) -> tuple[list[float], list[float], float] | None:
    """Along one size, the others as in most points: its values, CPU seconds, and the slope of their logarithms."""
    mine = [row for row in rows if row["stage"] == stage]
    others = [name for name in SIZES if name != size]
    lines: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    for row in mine:
        lines.setdefault(tuple(row[name] for name in others), []).append(row)
    best = sorted(max(lines.values(), key=len, default=[]), key=lambda row: row[size])
    if len(best) < 2:
        return None
    x, y = [float(row[size]) for row in best], [row["cpu"] for row in best]
    return x, y, float(np.polyfit(np.log(x), np.log(y), 1)[0])


def report(rows: Sequence[dict[str, Any]]) -> None:
    """The table, the exponents, and what became of the goal."""
    print("| images x sites x features | stage | seconds | CPU seconds | resident GiB | scratch GiB | GFLOP/s |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for row in sorted(rows, key=lambda row: (STAGES.index(row["stage"]), *(row[name] for name in SIZES))):
        sizes = " x ".join(f"{row[name]:,}" for name in SIZES)
        scratch = f"{row['scratch_gib']:.2f}" if "scratch_gib" in row else ""
        figures = f"{row['seconds']:.1f} | {row['cpu']:.1f} | {row['resident_gib']:.2f} | {scratch} | {row['gflops']:.0f}"
        print(f"| {sizes} | {row['stage']} | {figures} |")
    for size in SIZES:
        found = {stage: growth(rows, stage, size) for stage in STAGES}
        print(f"exponents in {size}:", ", ".join(f"{stage} {one[2]:.2f}" for stage, one in found.items() if one))
    for row in rows:
        if row["stage"] == "PLS" and (row["images"], row["sites"]) == GOAL:
            spent = f"{row['cpu']:.0f} CPU seconds ({row['seconds']:.0f} s; a product at {row['gflops']:.0f} GFLOP/s)"
            print(
                f"the goal: {row['resident_gib']:.1f} GiB (at most 16); {spent}, at most 360 s of two cores at 100 GFLOP/s"
            )


def draw(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """CPU seconds along each size."""
    with style.styled():
        figure = style.new_figure(12, 3.6, layout="constrained")
        for size, axes in zip(SIZES, figure.subplots(1, 3, sharey=True), strict=True):
            for number, stage in enumerate(STAGES):
                if (found := growth(rows, stage, size)) and (stage, size) not in (("K", "sites"),):
                    look = {**style.line(number), "label": f"{stage}: exponent {found[2]:.1f}"}
                    axes.loglog(*found[:2], **look)
            axes.set_xlabel(size)
            axes.set_xticks(sorted({row[size] for row in rows if row[size] <= axes.get_xlim()[1]}), minor=False)
            axes.set_xticks([], minor=True)
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.yaxis.set_major_formatter("{x:g}")  # the style sheet does not set formulas
            axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(0, 1.3), ncols=2)
            axes.grid(visible=True, which="major", alpha=0.3)
        figure.axes[0].set_ylabel("CPU seconds")
    with style.styled(), atomic_path(folder / "scaling.png") as temporary:
        figure.savefig(temporary, format="png")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", nargs="+", metavar="IMAGESxSITESxFEATURES")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)  # what ``apart`` calls
    args = parser.parse_args()
    points = [tuple(map(int, word.split("x"))) for word in args.points or ()] or (QUICK if args.quick else GRID)
    if args.here:
        print(json.dumps(measure(args.stages[0], points[0], args.here, torch.device(args.device))))
        return
    output = args.output.with_stem("benchmark-scale-quick") if args.quick else args.output
    rows = [] if args.again or args.quick or not output.exists() else json.loads(output.read_text())
    most = MOST_RIDGE if args.device == "cpu" else max(point[0] for point in points)
    for point in points:
        there = {row["stage"] for row in rows if tuple(row[name] for name in SIZES) == point}
        todo = [stage for stage in args.stages if stage not in there and (stage != "ridge" or point[0] <= most)]
        if {"PLS", "ridge"} & set(todo) and "K" not in todo and point[2]:
            todo = ["K", *todo]
        with tempfile.TemporaryDirectory(prefix="cnnf-scale-") as folder:
            for stage in todo:
                found = apart(stage, point, Path(folder), args.device)
                rows = [row for row in rows if (row["stage"], *(row[name] for name in SIZES)) != (stage, *point)]
                rows.append({"stage": stage, **dict(zip(SIZES, point, strict=True)), **found})
                print(point, stage, {name: round(value, 2) for name, value in found.items()}, flush=True)
                with atomic_path(output) as temporary:
                    temporary.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    report(rows)
    if not (args.quick or args.points):
        draw(rows, FIGURES)


if __name__ == "__main__":
    main()
