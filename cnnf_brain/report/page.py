"""Runs -> an HTML file that needs nothing else: no network, no script but its own few lines, and works without those.

Question and answer first, then the figure, the table, what the run was (folded), and what it does not show. All text of files
is escaped by jinja2 and markupsafe; the page's own policy lets no other script run, and no request leave it.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from cnnf_brain import style
from cnnf_brain.io import write_text
from cnnf_brain.report import PAGE
from cnnf_brain.report.runs import Picture, Run, Table

TYPES = {".png": "image/png", ".svg": "image/svg+xml"}
LONG_TABLE = 30  # rows; a table of more shows FIRST_ROWS until it is unfolded
FIRST_ROWS = 10


def write(run: Run, folder: Path) -> Path:
    """Write ``report.html`` of a run into ``folder``; returns its path. The page names ``run.folder``."""
    return side_by_side([run], Path(folder) / PAGE)


def side_by_side(runs: Sequence[Run], path: Path) -> Path:
    """Write a page with a row for each run to ``path``; it says where they cannot be compared."""
    write_text(path, render(runs))
    return path


def render(runs: Sequence[Run]) -> str:
    """The page of a run, or of several side by side."""
    if not runs:
        raise ValueError("no runs; name one folder or more")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(picture_source=picture_source, compact=compact, long_table=LONG_TABLE, first_rows=FIRST_ROWS)
    here = resources.files("cnnf_brain.report")
    html, css, script = ((here / f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    policy = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    names = short_folders([run.folder for run in runs])
    context: dict[str, Any] = {"runs": runs, "names": names, "script_hash": policy}
    context |= {"script": Markup(script), "css": Markup(css), "colours": Markup(colours())}
    context |= {make.__name__: make(runs, names) for make in (overview, differences, merged)}
    return environment.from_string(html).render(**context)


def colours() -> str:
    """CSS classes of all series, for light and dark; a page is printed light."""

    def rules(dark: bool, paper: str, ink: str, warning: str) -> str:
        shown = {"s-cnn": style.colour(None, dark=dark)}
        shown |= {f"s-{t}": style.colour(t, dark=dark) for t in range(len(style.ITERATIONS))}
        root = f":root{{--paper:{paper};--ink:{ink};--warning:{warning}}}"
        return root + "".join(f".{name}{{--c:{value}}}" for name, value in shown.items())

    light = rules(False, style.PAPER, style.INK, style.WARNING)
    dark = rules(True, style.DARK_PAPER, style.DARK_INK, style.DARK_WARNING)
    return f"{light}@media screen and (prefers-color-scheme: dark){{{dark}}}"


def picture_source(picture: Picture) -> str:
    """A picture as a data URI."""
    kind = TYPES.get(Path(picture.name).suffix)
    if kind is None:
        raise ValueError(f"{picture.name}: pictures on a page end in {' or '.join(TYPES)}")
    return f"data:{kind};base64,{base64.b64encode(picture.content).decode()}"


def compact(table: Table) -> Table:
    """A table of three rows or more without the columns that are the same in all of them; a note says what these hold."""
    columns = list(zip(*table.rows, strict=True)) if len(table.rows) > 2 else []
    same = [len(set(column)) == 1 for column in columns] or [False] * len(table.head)
    if all(same):
        return table
    held = zip(table.head, table.rows[0], same, strict=True) if columns else ()
    told = "; ".join(f"{name}: {cell}" for name, cell, one in held if one and cell)
    head, *rows = (tuple(cell for cell, one in zip(row, same, strict=True) if not one) for row in (table.head, *table.rows))
    return replace(table, head=head, rows=tuple(rows), notes=((f"In all rows: {told}.",) if told else ()) + table.notes)


def short_folders(folders: Sequence[Path]) -> list[str]:
    """Each folder by the end of its path, as much of it as tells it from the others; never an absolute path."""
    whole = [Path(os.path.abspath(folder)).parts[1:] for folder in folders]
    short = (["/".join(parts[-depth:]) for parts in whole] for depth in range(1, max(map(len, whole)) + 1))
    return next((names for names in short if len(set(names)) == len(set(whole))), [])


def overview(runs: Sequence[Run], names: Sequence[str]) -> Table:
    """A row for each run."""
    head = ("run", "kind", "simulated", "question", "answer")
    rows = ((name, r.kind, "SIMULATED" * r.simulated, r.question, r.answer) for name, r in zip(names, runs, strict=True))
    return Table("Runs", head, tuple(rows))


def differences(runs: Sequence[Run], names: Sequence[str]) -> Table:
    """What must agree for runs to be compared, and does not; no rows where all of it agrees."""
    every = [{"kind": run.kind, "simulated": str(run.simulated), **run.same} for run in runs]
    keys = dict.fromkeys(key for same in every for key in same)
    rows = [(key, *(same.get(key, "not recorded") for same in every)) for key in keys]
    return Table("Where they are not comparable", ("", *names), tuple(row for row in rows if len(set(row[1:])) > 1))


def merged(runs: Sequence[Run], names: Sequence[str]) -> list[Table]:
    """Tables that several runs have under the same title and head, each as a table with the run as its first column.

    A note that not all of these runs have begins with the names of those that have it.
    """
    parts: dict[tuple[str, tuple[str, ...]], list[tuple[str, Table]]] = {}
    for name, run in zip(names, runs, strict=True):
        for table in run.tables:
            if table.title != "Log":
                parts.setdefault((table.title, table.head), []).append((name, table))
    found = []
    for (title, head), tables in parts.items():
        having: dict[str, list[str]] = {}
        for name, note in ((name, note) for name, table in tables for note in table.notes):
            having.setdefault(note, []).append(name)
        notes = tuple(note if len(have) == len(runs) else f"{', '.join(have)}: {note}" for note, have in having.items())
        rows = tuple((name, *row) for name, table in tables for row in table.rows)
        found.append(Table(title, ("run", *head), rows, notes, all(table.folded for _, table in tables)))
    return found
