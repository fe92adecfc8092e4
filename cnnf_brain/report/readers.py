"""The folder of any run -> what its page shows (``Run``), from its files alone.

Folders come from strangers too: only files inside the folder are read, and its texts are never taken as Python's format strings.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from cnnf_brain import results
from cnnf_brain.compare import Comparison
from cnnf_brain.io import parsed, read_bytes, read_json_lines, read_text, reading
from cnnf_brain.report import PAGE, page, tell
from cnnf_brain.report.charts import Chart, Mark
from cnnf_brain.report.runs import FEW_IMAGES, Claim, Picture, Run, Table, TableChart, about_the_code, flat, version_keys
from cnnf_brain.results import read_record

SCHEMA = 1  # of the summary.json of a figure
KINDS = "compare (summary.json, run.json), visualize (summary.json, run.json), a trainer (config.json, log.jsonl, card.json)"
LONGEST = 2000  # rows of a table on a page; the file has all
NOT_SHOWN = ("kind", "files", "same")  # entries of run.json that others say as well
SHARES = {"validation_accuracy": "validation", "validation_top5_accuracy": "validation, top 5", "test_accuracy": "test"}
ACCURACY = ("In the course of training", "Accuracy on the validation images. One run: no interval.", "validation accuracy")
POINTS = 60  # of a line that shows a loss
SAME: tuple[str, ...] = ("data", "data_hash", "dataset", "image_size", "resize", "num_classes")  # settings of a training
SAME += ("epochs", "batch_size", "learning_rate", "seed")


def leave(folder: Path, shown_as: Path | None = None) -> Path:
    """Write ``report.html`` into the folder of a run, from the files that are in it; returns its path. Of a comparison also the
    figure, where it is not there.

    ``shown_as`` is the folder that the page names, where the files stand in another folder for now. Raises what ``read`` raises,
    and a ``NotDrawnError``.
    """
    run = read(folder)
    if run.kind == "comparison":
        missing = Comparison.load(folder).draw(Path(folder), shown_as)
        tell(folder, missing, "report this as a fault of cnnf-brain")
        return Path(folder) / PAGE
    return page.write(run if shown_as is None else replace(run, folder=Path(shown_as)), folder)


def read(folder: Path) -> Run:
    """What the page of ``folder`` shows.

    A FileNotFoundError where there is no such folder. A ValueError where it is no folder, lacks a file, has one that is damaged or
    written by another version, or where nothing in it is of this project.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such folder; name a folder that a run has left")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; name the folder that it is in")
    with suppress(OSError):
        results.finish(folder)
    advice = "of another version of cnnf-brain, or changed since; do the run again (its command stands in run.json or config.json)"
    with reading(folder, "the results of a run", advice):
        return _read(folder, {path.name for path in folder.iterdir()})


def _read(folder: Path, names: set[str]) -> Run:
    if "summary.json" in names:
        summary, record = read_record(folder, "summary.json"), read_record(folder, "run.json")
        if "evaluations" in summary:
            return Comparison.load(folder).page(folder)
        if (schema := summary.get("schema")) != SCHEMA:
            age = "a newer" if isinstance(schema, int) and schema > SCHEMA else "another"
            raise ValueError(
                f"{folder}/summary.json has schema {schema!r}, expected {SCHEMA}: written by {age} version of cnnf-brain; "
                "update, or do the run again"
            )
        if summary.get("kind") == "figure":
            return _figure(folder, summary, record)
        raise ValueError(f"{folder}/summary.json is of no kind that is known here; known: {KINDS}")
    if "card.json" in names or {"config.json", "log.jsonl"} <= names:
        return _training(folder, read_record(folder, "card.json" if "card.json" in names else "config.json"))
    if "run.json" in names:
        raise ValueError(f"{folder} is incomplete: run.json without summary.json, which is written last; do the run again")
    shown = sorted(names)
    holds = f"it holds {', '.join(shown[:5])}{' …' * (len(shown) > 5)}" if shown else "it is empty"
    raise ValueError(f"{folder}: not the results of a run of cnnf-brain ({holds}); known: {KINDS}")


# The open form (``runs.Figure``): visualize, robustness


def _figure(folder: Path, summary: dict[str, Any], record: dict[str, Any]) -> Run:
    """summary.json says what is drawn of which CSV table, and how."""
    files = {entry["file"]: read_csv(inside(folder, entry["file"])) for entry in summary["tables"]}
    claims = tuple(Claim(c["claim"], c["measured"], c["holds"], c.get("verdict", "")).cells for c in summary["claims"])
    shown = [Table("What the paper says of it", ("claim", "measured", "verdict"), claims)] if claims else []
    charts = [TableChart(**spec) for spec in summary["charts"]]
    pictures = [Picture(p["file"], read_bytes(inside(folder, p["file"])), p["caption"]) for p in summary["pictures"]]
    return Run(
        folder=folder,
        kind="figure",
        title=summary["title"],
        question=summary["question"],
        answer=summary["answer"],
        charts=tuple(chart.draw(files[chart.table][1]) for chart in charts),
        tables=(*shown, *(_shown(entry, *files[entry["file"]], i > 0) for i, entry in enumerate(summary["tables"]))),
        facts=tuple(flat({name: value for name, value in record.items() if name not in NOT_SHOWN})),
        caveats=(*summary["caveats"], *about_the_code(record)),
        same={name: str(value) for name, value in record["same"].items()} | version_keys(record),
        pictures=tuple(pictures),
    )


def inside(folder: Path, name: str) -> Path:
    """The path of the file ``name`` of ``folder``; a ValueError where it does not exist, or is outside by its name or by a link."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{folder}/summary.json names the file {name!r}, which is outside of the folder; it is not read")
    if not path.is_file():
        raise ValueError(f"{folder} is incomplete: no {path.name}; do the run again")
    return path


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Head and rows of a CSV file; a ValueError where a row is of another length."""
    with reading(path, "a CSV table", "run the command again"):
        head, *rows = list(csv.reader(read_text(path).splitlines(keepends=True))) or [[]]
    if not head:
        raise ValueError(f"{path} is empty; run the command again")
    for number, row in enumerate(rows, 2):
        if len(row) != len(head):
            raise ValueError(f"{path}, line {number}: {len(row)} values, the head names {len(head)}; run the command again")
    return head, [dict(zip(head, row, strict=True)) for row in rows]


def _shown(entry: dict[str, Any], head: list[str], rows: list[dict[str, str]], folded: bool) -> Table:
    """A CSV table as it is shown: numbers of four digits."""
    notes = tuple(entry["notes"])
    if len(rows) > LONGEST:
        notes += (f"The first {LONGEST} of {len(rows)} rows; {entry['file']} has all.",)
    return Table(
        entry["title"], tuple(head), tuple(tuple(map(_short, row.values())) for row in rows[:LONGEST]), notes, folded
    )


def _short(text: str) -> str:
    try:
        return f"{float(text):.4g}" if "." in text or "e" in text else text
    except ValueError:
        return text


# A trainer (training/mnist.py, training/imagenet.py), finished or not


def _training(folder: Path, record: dict[str, Any]) -> Run:
    """``record``: card.json, or config.json of a run that is not finished."""
    path = folder / "log.jsonl"
    log, damaged = read_json_lines(path) if path.exists() else ([], 0)
    configuration = record["configuration"]
    title = record.get("title") or configuration.get("title") or f"{configuration.get('arch', 'network')}, training"
    points = validations(log)
    finished = "validation_accuracy" in record
    shares = {words: record[name] for name, words in SHARES.items() if name in record}
    if not finished and points:
        shares = {"validation so far": points[-1][1]}
    accuracy = _accuracy(shares)
    n = record.get("n_validation") or (points[-1][2] if points else None)
    same = dict(flat({name: configuration[name] for name in SAME if name in configuration} | {"steps": record.get("steps")}))
    return Run(
        folder=folder,
        kind="training",
        title=title,
        question=f"How accurate is {title}, at each iteration of its feedback?",
        answer=_accuracy_in_words(shares, finished, n),
        charts=(*accuracy[0], *_course(*ACCURACY, [(x, values) for x, values, _ in points]), *_losses(log)),
        tables=(*accuracy[1], *_log_table(log)),
        facts=tuple(flat({name: value for name, value in record.items() if name not in SHARES})),
        caveats=tuple(_caveats(record, finished, n, damaged)),
        same=same | version_keys(record),
    )


def validations(log: Sequence[Mapping[str, Any]]) -> list[tuple[float, list[float], int | None]]:
    """(epoch or step, accuracy at each iteration, number of images) of every validation in a log."""
    found: list[tuple[float, list[float], int | None]] = []
    for line in log:
        if "validation_accuracy" in line:
            found.append((float(line["epoch"]), line["validation_accuracy"], None))
        elif "validation" in line:
            found.append((float(line["step"]), line["validation"]["top1"], line["validation"]["images"]))
    return found


def _accuracy_in_words(shares: Mapping[str, Sequence[float]], finished: bool, n: int | None) -> str:
    if not shares:
        return "Not known yet: the run has not validated its network."
    name, values = next(iter(shares.items()))
    first, last = 100 * values[0], 100 * values[-1]
    words = f"Accuracy ({name}{f' of {n} images' if n else ''}) is {first:.2f} % in the first feedforward pass"
    if len(values) > 1:
        turn = "which is higher" if last > first else "which is lower" if last < first else "the same"
        words += f" and {last:.2f} % at iteration {len(values) - 1}, {turn} by {abs(last - first):.2f} points"
    return words + ("." if finished else "; the run is not finished.")


def _accuracy(shares: Mapping[str, Sequence[float]]) -> tuple[list[Chart], list[Table]]:
    """Accuracy by iteration, drawn and listed."""
    if not shares:
        return [], []
    caption = (
        "Share of images whose label comes first (top 5: among the first five), at each iteration. One run: no interval."
    )
    groups = tuple((f"{name} accuracy", _marks(values)) for name, values in shares.items())
    rows = tuple((str(t), *(f"{100 * v:.2f} %" for v in row)) for t, row in enumerate(zip(*shares.values(), strict=True)))
    table = Table("Accuracy", ("iteration", *shares), rows, ("Iteration 0 is the first feedforward pass.",))
    return [Chart("Accuracy", caption, "accuracy", groups)], [table]


def _course(title: str, caption: str, y: str, points: Sequence[tuple[float, Sequence[float]]]) -> list[Chart]:
    """What is known at several epochs or steps of the run, a line for each iteration."""
    if len(points) < 2:
        return []
    at = [_marks(values, x) for x, values in points]
    lines = tuple((f"iteration {t}", marks) for t, marks in enumerate(zip(*at, strict=True)))
    return [Chart(title, caption, y, lines, x="epoch or step", bars=False)]


def _losses(log: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Each loss over the course of the run, of at most POINTS points: a point is the mean of the lines since the one before."""
    lines = [line for line in log if line.get("losses")]
    several = math.ceil(len(lines) / POINTS)
    caption = f"On the training images of each step, before it. A point is the mean of {several} lines of the log."
    points: dict[str, list[tuple[float, list[float]]]] = {}
    for part in (lines[first : first + several] for first in range(0, len(lines), several or 1)):
        x = float(part[-1]["epoch" if "validation_accuracy" in part[-1] else "step"])
        for term in part[0]["losses"]:
            means = [sum(at_t) / len(part) for at_t in zip(*(line["losses"][term] for line in part), strict=True)]
            points.setdefault(term.replace("_", "-"), []).append((x, means))
    return [chart for term, found in points.items() for chart in _course(f"Loss: {term}", caption, "loss", found)]


def _marks(values: Sequence[float], x: float | None = None) -> tuple[Mark, ...]:
    """A mark for each iteration; in the CNN's colour where there is only iteration 0."""
    place = "" if x is None else f"{x:g}, "
    series = [None] if len(values) == 1 else range(len(values))
    return tuple(Mark(f"{place}iteration {t}", values[t], series=s, x=x or 0.0) for t, s in enumerate(series))


def _log_table(log: Sequence[Mapping[str, Any]]) -> list[Table]:
    """A row for each line with losses or a validation; lists hold a value for each iteration."""
    lines = [dict(flat(line)) for line in log if "losses" in line or "validation" in line]
    head = tuple(dict.fromkeys(name for line in lines for name in line))
    rows = tuple(tuple(_logged(line.get(name, "")) for name in head) for line in lines)
    return (
        [Table("Log", head, rows, ("Losses and accuracies in brackets: a value for each iteration.",), True)] if log else []
    )


def _logged(text: str) -> str:
    value = parsed(text)
    if isinstance(value, list) and all(isinstance(v, int | float) for v in value):
        return "[" + ", ".join(f"{v:.4g}" for v in value) + "]"
    return f"{value:.5g}" if isinstance(value, float) and math.isfinite(value) else text


def _caveats(record: Mapping[str, Any], finished: bool, n: int | None, damaged: int) -> list[str]:
    no_test = "No test images were used: these are validation images, on which a user may have made choices."
    applies = {
        "The run is not finished (there is no card.json): these are its numbers so far.": not finished,
        f"{damaged} lines of log.jsonl could not be read and are left out.": damaged,
        f"Too few images: {n} were used for validation.": n is not None and n < FEW_IMAGES,
        no_test: "test_accuracy" not in record,
        "One run with one seed: how much another would differ is not measured here.": True,
    }
    return [words for words, true in applies.items() if true] + about_the_code(record)
