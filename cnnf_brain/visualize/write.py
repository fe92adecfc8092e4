"""Tables first, then the figure from the tables, then the page: the files of a figure's folder (docs/results/figure9.md)."""

from __future__ import annotations

import csv
import errno
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr
from tabulate import tabulate

from cnnf_brain.io import atomic_path, write_json, write_text
from cnnf_brain.report import page
from cnnf_brain.report.of_figure import HOLDS

SCHEMA = 1


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with the same columns; numbers in full, empty where a number does not exist."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()})
    write_text(path, text.getvalue())


def write_dataset(path: Path, data: xr.Dataset) -> None:
    """NetCDF, compressed."""
    packed = {name: {"zlib": True} for name in data.data_vars if data[name].dtype.kind in "fiub"}
    with atomic_path(path) as temporary:
        try:
            data.to_netcdf(temporary, engine="netcdf4", encoding=packed)
        except RuntimeError as error:  # how the NetCDF library says that the disk is full
            raise OSError(errno.EIO, str(error)) from error


def opened(path: Path) -> xr.Dataset:
    """A NetCDF file in memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # xarray 2022 looks for its engines in an old way
        with xr.open_dataset(path, engine="netcdf4") as file:
            return file.load()


def joined(data: Sequence[xr.Dataset], dim: Any) -> xr.Dataset:
    """Datasets one after another along ``dim``, a new one or one of theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # xarray 2022 calls pandas in an old way
        return xr.concat(list(data), dim)


def finish(folder: Path, summary: dict[str, Any], run: dict[str, Any], shown_as: Path | None = None) -> Path:
    """run.json, summary.json (which says that the other files are whole and of one run) and the page, whose path it returns.

    ``shown_as``: the folder that the page names, where ``folder`` is a staging folder.
    """
    write_json(folder / "run.json", run)
    text = claims_table(summary)
    write_text(folder / "claims.md", text)
    write_json(folder / "summary.json", {"schema": SCHEMA, "kind": "figure", **summary})
    return page.leave(folder, shown_as)


def claims_table(summary: dict[str, Any]) -> str:
    """The answer and the claims in Markdown."""
    rows = [(c["claim"], c["measured"], HOLDS[c["holds"]]) for c in summary["claims"]]
    table = tabulate(
        rows, ("claim of the paper", "what we measured", "holds or not"), tablefmt="github", disable_numparse=True
    )
    return f"# {summary['title']}\n\n{summary['question']} {summary['answer']}\n\n{table}\n"


def chart(
    title: str,
    caption: str,
    y: str,
    y_name: str,
    group: Sequence[str],
    label: str,
    *,
    interval: bool = True,
    **where: object,
) -> dict[str, Any]:
    """How the page draws columns of table.csv: bars of ``y`` with its interval, coloured by iteration.

    ``group`` and ``label`` are texts in which ``{column}`` stands for the row's cell. The interval is in ``y_low`` and ``y_high``
    (of ``mean``: low, high).
    """
    low, high = ("low", "high") if y == "mean" else (f"{y}_low", f"{y}_high")
    spec: dict[str, Any] = {"title": title, "caption": caption, "table": "table.csv", "where": where, "group": list(group)}
    spec |= {"label": label, "y": y, "y_name": y_name, "series": "iteration", "x": "", "x_name": ""}
    return spec | {"low": low if interval else "", "high": high if interval else ""}


def claim(words: str, measured: str, low: float, high: float) -> dict[str, Any]:
    """A claim that holds where the interval lies above 0, and does not where it lies below; else it is not decided."""
    return {"claim": words, "measured": measured, "holds": True if low > 0 else False if high < 0 else None}


def percent(row: Mapping[str, Any], name: str, low: str, high: str) -> str:
    """``12.3 % [11.0, 13.5]``, or ``12.3 % (no interval)`` where there are too few values for one."""
    if not (math.isfinite(row[low]) and math.isfinite(row[high])):
        return f"{100 * row[name]:.1f} % (no interval)"
    return f"{100 * row[name]:.1f} % [{100 * row[low]:.1f}, {100 * row[high]:.1f}]"
