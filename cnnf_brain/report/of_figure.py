"""A folder of ``visualize`` or ``robustness`` -> its Run: summary.json says what is drawn of which CSV table, and how.

Folders come from strangers too: only files inside the folder are read, and its texts are never taken as Python's format strings.
"""

from __future__ import annotations

import csv
import errno
import math
import re
from pathlib import Path
from typing import Any

from cnnf_brain.report.charts import Chart, Mark
from cnnf_brain.report.runs import Picture, Run, Table, about_the_code, flat, version_keys

HOLDS = {True: "holds", False: "does not hold", None: "not decided by this"}
LONGEST = 2000  # rows of a table on a page; the file has all
RECORDED = ("kind", "files", "same")  # entries of run.json that are not shown: they say again what others say


def read(folder: Path, summary: dict[str, Any], run: dict[str, Any]) -> Run:
    """The Run of summary.json, run.json and the files that they name."""
    tables = {entry["file"]: read_csv(inside(folder, entry["file"])) for entry in summary["tables"]}
    claims = [(c["claim"], c["measured"], c.get("verdict", HOLDS[c["holds"]])) for c in summary["claims"]]
    shown = [Table("What the paper says of it", ("claim", "measured", "verdict"), tuple(claims))] if claims else []
    shown += [as_table(entry, *tables[entry["file"]]) for entry in summary["tables"]]
    return Run(
        folder=folder,
        kind="figure",
        title=summary["title"],
        question=summary["question"],
        answer=summary["answer"],
        simulated=False,
        charts=tuple(chart(spec, tables[spec["table"]][1]) for spec in summary["charts"]),
        tables=tuple(shown),
        facts=tuple(flat({name: value for name, value in run.items() if name not in RECORDED})),
        caveats=tuple(summary["caveats"]) + tuple(about_the_code(run)),
        same={name: str(run["same"][name]) for name in run["same"]} | version_keys(run),
        pictures=tuple(
            Picture(p["file"], inside(folder, p["file"]).read_bytes(), p["caption"]) for p in summary["pictures"]
        ),
    )


def inside(folder: Path, name: str) -> Path:
    """The path of the file ``name`` of ``folder``.

    Raises
    ------
    ValueError
        It is outside of the folder, by its name or by a link.
    FileNotFoundError
        There is no such file.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{folder}/summary.json names the file {name!r}, which is outside of the folder; it is not read")
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    return path


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Head and rows of a CSV file; a ValueError where a row is of another length."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            head, *rows = list(csv.reader(file)) or [[]]
    except csv.Error as error:
        raise ValueError(f"{path} is damaged ({error}); run the command again") from error
    if not head:
        raise ValueError(f"{path} is empty; run the command again")
    for number, row in enumerate(rows, 2):
        if len(row) != len(head):
            raise ValueError(f"{path}, line {number}: {len(row)} values, the head names {len(head)}; run the command again")
    return head, [dict(zip(head, row, strict=True)) for row in rows]


def as_table(entry: dict[str, Any], head: list[str], rows: list[dict[str, str]]) -> Table:
    """A CSV table as it is shown: numbers of four digits."""
    shown = tuple(tuple(short(row[name]) for name in head) for row in rows[:LONGEST])
    notes = tuple(entry["notes"])
    if len(rows) > LONGEST:
        notes += (f"The first {LONGEST} of {len(rows)} rows; {entry['file']} has all.",)
    return Table(entry["title"], tuple(head), shown, notes)


def chart(spec: dict[str, Any], rows: list[dict[str, str]]) -> Chart:
    """The chart that ``spec`` describes: which rows, what groups them, which columns are value, interval and place."""
    groups: dict[str, list[Mark]] = {}
    for row in rows:
        if any(row[name] != str(value) for name, value in spec["where"].items()):
            continue
        name = ", ".join(filled(text, row) for text in spec["group"])
        groups.setdefault(name, []).append(
            Mark(
                label=filled(spec["label"], row),
                value=value(row[spec["y"]]),
                low=value(row[spec["low"]]) if spec["low"] else None,
                high=value(row[spec["high"]]) if spec["high"] else None,
                series=series(row, spec),
                x=float(row[spec["x"]]) if spec["x"] else 0.0,
            )
        )
    frozen = tuple((name, tuple(marks)) for name, marks in groups.items())
    return Chart(spec["title"], spec["caption"], spec["y_name"], frozen, x=spec["x_name"], bars=not spec["x"])


def filled(text: str, row: dict[str, str]) -> str:
    """``text`` with each ``{column}`` replaced by the row's cell, as it is; a KeyError where there is no such column."""
    return re.sub(r"\{([^{}]*)\}", lambda match: row[match[1]], text)


def series(row: dict[str, str], spec: dict[str, Any]) -> int | None:
    """The iteration in whose colour a row is drawn, None for the CNN.

    Of the column that ``spec`` names; where it names none, of ``trained``, the iterations that a network was trained and is
    scored with (0: the CNN), if there is such a column.
    """
    if spec["series"]:
        return int(row[spec["series"]]) if row[spec["series"]] else None
    return int(row.get("trained", 0)) or None


def value(text: str) -> float | None:
    """A number of a table; None for an empty cell and for what is not finite."""
    number = float(text) if text else math.nan
    return number if math.isfinite(number) else None


def short(text: str) -> str:
    """A cell with at most four significant digits after a point."""
    try:
        return f"{float(text):.4g}" if "." in text or "e" in text else text
    except ValueError:
        return text
