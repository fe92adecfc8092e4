"""A folder of a trainer (training/mnist.py, training/imagenet.py), finished or not -> its Run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from cnnf_brain.report.charts import Chart, Mark
from cnnf_brain.report.runs import FEW_IMAGES, Run, Table, about_the_code, flat, version_keys

SHARES = (
    ("validation_accuracy", "validation"),
    ("validation_top5_accuracy", "validation, top 5"),
    ("test_accuracy", "test"),
)


def read(folder: Path, record: dict[str, Any], log: list[dict[str, Any]], damaged: int) -> Run:
    """The Run of card.json (or, of an unfinished run, config.json) and the lines of log.jsonl; ``damaged`` lines were left
    out."""
    configuration = record["configuration"]
    finished = "validation_accuracy" in record
    title = record.get("title") or configuration.get("title") or f"{configuration.get('arch', 'network')}, training"
    points = validations(log)
    shares = {head: record[name] for name, head in SHARES if name in record}
    if not finished and points:
        shares = {"validation so far": points[-1][1]}
    n = record.get("n_validation") or (points[-1][2] if points else None)
    tables = [accuracy_table(shares)] if shares else []
    tables += [log_table(log)] if log else []
    return Run(
        folder=folder,
        kind="training",
        title=title,
        question=f"How accurate is {title}, at each iteration of its feedback?",
        answer=answer(shares, finished=finished, n=n),
        simulated=False,
        charts=tuple(charts(points, shares)),
        tables=tuple(tables),
        facts=tuple(flat({name: v for name, v in record.items() if name not in dict(SHARES)})),
        caveats=tuple(caveats(record, finished=finished, n=n, damaged=damaged)),
        same=_same(record),
    )


def validations(log: list[dict[str, Any]]) -> list[tuple[float, list[float], int | None]]:
    """(epoch or step, accuracy at each iteration, number of images) of every validation in a log."""
    found: list[tuple[float, list[float], int | None]] = []
    for line in log:
        if "validation_accuracy" in line:
            found.append((float(line["epoch"]), line["validation_accuracy"], None))
        elif "validation" in line:
            found.append((float(line["step"]), line["validation"]["top1"], line["validation"]["images"]))
    return found


def answer(shares: dict[str, list[float]], *, finished: bool, n: int | None) -> str:
    """One sentence on the accuracy at the first and the last iteration."""
    if not shares:
        return "Not known yet: the run has not validated its network."
    name, values = next(iter(shares.items()))
    of = f" of {n} images" if n else ""
    first, last = 100 * values[0], 100 * values[-1]
    words = f"Accuracy ({name}{of}) is {first:.2f} % in the first feedforward pass"
    if len(values) > 1:
        change = last - first
        turn = "which is higher" if change > 0 else "which is lower" if change < 0 else "the same"
        words += f" and {last:.2f} % at iteration {len(values) - 1}, {turn} by {abs(change):.2f} points"
    return words + ("." if finished else "; the run is not finished.")


def charts(points: list[tuple[float, list[float], int | None]], shares: dict[str, list[float]]) -> list[Chart]:
    """Accuracy over the course of the run, and at the end by iteration."""
    found = []
    if shares:
        groups = tuple(
            (
                f"{name} accuracy",
                tuple(Mark(f"iteration {t}", v, series=_series(t, len(values))) for t, v in enumerate(values)),
            )
            for name, values in shares.items()
        )
        caption = (
            "Share of images whose label comes first (top 5: among the first five), at each iteration. One run: no interval."
        )
        found.append(Chart("Accuracy", caption, "accuracy", groups))
    if len(points) > 1:
        n = len(points[0][1])
        lines = tuple(
            (
                f"iteration {t}",
                tuple(Mark(f"{x:g}, iteration {t}", values[t], series=_series(t, n), x=x) for x, values, _ in points),
            )
            for t in range(n)
        )
        caption = "Accuracy on the validation images in the course of training. One run: no interval."
        found.append(
            Chart("In the course of training", caption, "validation accuracy", lines, x="epoch or step", bars=False)
        )
    return found


def _series(t: int, n: int) -> int | None:
    return None if n == 1 else t


def accuracy_table(shares: dict[str, list[float]]) -> Table:
    """Accuracy by iteration."""
    rows = tuple((str(t), *(f"{100 * v:.2f} %" for v in row)) for t, row in enumerate(zip(*shares.values(), strict=True)))
    return Table("Accuracy", ("iteration", *shares), rows, ("Iteration 0 is the first feedforward pass.",))


def log_table(log: list[dict[str, Any]]) -> Table:
    """The log, one row for each of its lines with losses or a validation; lists hold one value for each iteration."""
    lines = [dict(flat(line)) for line in log if "losses" in line or "validation" in line]
    head = tuple(dict.fromkeys(name for line in lines for name in line))
    rows = tuple(tuple(_short(line.get(name, "")) for name in head) for line in lines)
    return Table("Log", head, rows, ("Losses and accuracies in brackets: one for each iteration.",))


def _short(text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if isinstance(value, list) and all(isinstance(v, int | float) for v in value):
        return "[" + ", ".join(f"{v:.4g}" for v in value) + "]"
    return f"{value:.5g}" if isinstance(value, float) and math.isfinite(value) else text


def caveats(record: dict[str, Any], *, finished: bool, n: int | None, damaged: int) -> list[str]:
    """What the run does not show."""
    found = []
    if not finished:
        found.append("The run is not finished (there is no card.json): these are its numbers so far.")
    if damaged:
        found.append(f"{damaged} lines of log.jsonl could not be read and are left out.")
    if n is not None and n < FEW_IMAGES:
        found.append(f"Too few images: {n} were used for validation.")
    if "test_accuracy" not in record:
        found.append("No test images were used: these are validation images, on which a user may have made choices.")
    found.append("One run with one seed: how much another would differ is not measured here.")
    return found + about_the_code(record)


def _same(record: dict[str, Any]) -> dict[str, str]:
    keep = (
        "data",
        "data_hash",
        "dataset",
        "image_size",
        "resize",
        "num_classes",
        "epochs",
        "batch_size",
        "learning_rate",
        "seed",
    )
    configuration = {name: record["configuration"][name] for name in keep if name in record["configuration"]}
    same = dict(flat(configuration))
    if "steps" in record:
        same["steps"] = str(record["steps"])
    return same | version_keys(record)
