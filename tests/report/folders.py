"""Folders of small runs of every kind, written by the project's own writers where there are any."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cnnf_brain.compare import Comparison
from cnnf_brain.io import write_csv
from cnnf_brain.predictivity.statistics import PAIRED, PERMUTATION, RESAMPLED, WELCH, WILCOXON
from cnnf_brain.report import readers
from cnnf_brain.report.runs import Claim, Figure, TableChart
from cnnf_brain.types import Difference, Evaluation, Scores, TestResult

EVIL = "<img src=x onerror=alert(1)>\"'&</script><script>alert(2)</script>"
OPTIONS = {"splits": "kfold", "seed": 0, "per_site": False, "components": 25, "pca": None, "select": None}
VERSIONS = {"python": "3.11.7", "torch": "2.15.0"}


def evaluation(
    role: str, layer: str, *, r: float, p: float = 0.5, source: str = "here", sites: int = 5, **more: Any
) -> Evaluation:
    """Every site and split with about the given r; every test with the given p."""
    scores = Scores(np.full((10, sites), r) + 0.01 * np.arange(sites), None, more.pop("ceiling", None))
    tests = tuple(TestResult(name, 1.5, p, 10, df=9.0) for name in (RESAMPLED, PERMUTATION, WELCH, PAIRED, WILCOXON))
    difference = more.pop("difference", 0.01)
    return Evaluation(
        region="V4",
        source=source,
        simulated=more.pop("simulated", False),
        role=role,
        network="net CNN-F" if role == "model" else "net CNN",
        weights="w.safetensors",
        feedback=more.pop("feedback", ""),
        layer=layer,
        against="pool@0" if role == "model" else "",
        scores=scores,
        site_ids=tuple(f"site{i}" for i in range(sites)),
        n_images=60,
        comparison=Difference(difference, difference - 0.02, difference + 0.03, tests) if role == "model" else None,
        **more,
    )


def run_record(*, simulated: bool = False, responses: str = "b" * 64, **more: Any) -> dict[str, Any]:
    network = {"name": "net CNN", "weights": "w.safetensors", "sha256": "c" * 64, "headless": False, "image_size": 224}
    recordings = [{"region": "V4", "source": "here", "images_sha256": "a" * 64, "responses_sha256": responses}]
    record = {"options": OPTIONS, "command": "python -m cnnf_brain.compare", "commit": "d" * 40}
    record |= {
        "networks": [network],  # type: ignore[list-item]
        "accuracy": [],
        "notes": [],
        "recordings": recordings,  # type: ignore[dict-item]
        "versions": VERSIONS,
        "machine": "m",
        "seconds": 1,  # type: ignore[dict-item]
    }
    return record | more


def compared(folder: Path, *rows: Evaluation, **more: Any) -> Path:
    """A folder as ``compare`` leaves it, without its page."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows or (
        evaluation("baseline", "pool@0", r=0.30, ceiling=np.full(5, 0.64)),
        evaluation("model", "pool@1", r=0.42, p=0.001, difference=0.12),
        evaluation("model", "pool@2", r=0.10, p=0.4, difference=-0.2),
    )
    Comparison(rows, run_record(**more)).write(folder)
    return folder


def trained(folder: Path, *, finished: bool = True, accuracy: tuple[float, ...] = (0.9, 0.85, 0.8)) -> Path:
    """A folder as training/mnist.py leaves it, or has so far."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "command": "python training/mnist.py",
        "configuration": {"title": "CNN-F-2, MNIST", "dataset": "mnist", "data_hash": "e" * 64, "seed": 3, "epochs": 2},
        "commit": "f" * 40,
        "versions": VERSIONS,
    }
    (folder / "config.json").write_text(json.dumps({**record, "environment": {"threads": 1}}))
    lines = [
        {
            "epoch": e,
            "step": 10 * e,
            "losses": {"cross_entropy": [1.0, 2.0, 3.0]},
            "validation_accuracy": [a - 0.1 * (2 - e) for a in accuracy],
        }
        for e in (1, 2)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        card = {"title": "CNN-F-2, MNIST", **record, "n_validation": 5000, "validation_accuracy": list(accuracy)}
        (folder / "card.json").write_text(json.dumps(card))
    return folder


def figured(folder: Path, *, iterations: int = 3, **more: Any) -> Path:
    """A folder as ``visualize`` leaves it; its table has a row for each iteration and another one."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"group": "noise", "iteration": t, "mean": 0.5 + 0.1 * t} for t in range(iterations)]
    rows = [row | {"low": round(row["mean"] - 0.05, 2), "high": round(row["mean"] + 0.05, 2)} for row in rows]
    blur = {"group": "blur", "iteration": 0, "mean": np.nan, "low": np.nan, "high": np.nan}
    write_csv(folder / "table.csv", [*rows, blur])
    (folder / "figure.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    columns = {"group": ["{group}"], "label": "iteration {iteration}", "y": "mean", "low": "low", "high": "high"}
    figure = Figure(
        title="A figure",
        question="Why?",
        answer="Because.",
        claims=[Claim.of_interval("x rises", "0.1", 0.05, 0.15)],
        charts=[TableChart(title="Share", caption="Mean.", y_name="share", **columns)],  # type: ignore[arg-type]
        tables={"table.csv": ("Shares", "a note")},
        pictures={"figure.svg": "drawn"},
        caveats=["One network."],
    )
    record = {"command": "python -m cnnf_brain.visualize", "commit": None, "versions": VERSIONS, "same": {"seed": 0}}
    (folder / "run.json").write_text(json.dumps(record))
    replace(figure, **more).save(folder)
    readers.leave(folder)
    return folder
