"""Runs -> one HTML file that needs nothing else: no network, no script but its own few lines, and works without those.

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
LONG_TABLE, FIRST_ROWS = (
    30,
    10,
)  # a table of more rows than the first number shows as many as the second until it is unfolded


def write(run: Run, folder: Path) -> Path:
    path = Path(folder) / PAGE
    write_text(path, render([run]))
    return path


def leave(folder: Path, shown_as: Path | None = None) -> Path:
    """Write ``report.html`` into the folder of a run, from the files that are in it; returns its path.

    ``shown_as`` is the folder that the page names, where the files stand in another one for now.
    """
    path = Path(folder) / PAGE
    from cnnf_brain.report import readers

    run = readers.read(Path(folder))
    write_text(path, render([run if shown_as is None else replace(run, folder=Path(shown_as))]))
    return path


def side_by_side(folders: Sequence[Path], path: Path) -> Path:
    """Write one page with a row for each run to ``path``, and where they cannot be compared."""
    write_text(path, render([readers.read(Path(folder)) for folder in folders]))
    return path


def render(runs: Sequence[Run]) -> str:
    """The page of one run, or of several side by side."""
    if not runs:
        raise ValueError("no runs; name one folder or more")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(picture_source=picture_source, colours=Markup(colours()))
    environment.globals.update(long_table=LONG_TABLE, first_rows=FIRST_ROWS)
    here = resources.files("cnnf_brain.report")
    script = (here / "page.js").read_text(encoding="utf-8")
    template = environment.from_string((here / "page.html").read_text(encoding="utf-8"))
    policy = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    css = Markup((here / "page.css").read_text(encoding="utf-8"))
    context: dict[str, Any] = {"runs": runs, "script": Markup(script), "script_hash": policy, "css": css}
    names = short_folders([run.folder for run in runs])
    if len(runs) > 1:
        context |= {"overview": overview(runs, names), "differences": differences(runs, names)}
    return template.render(**context, names=names, merged=merged(runs, names) if len(runs) > 1 else [])


def colours() -> str:
    """CSS classes of all series, for light and dark; a page is printed light."""

    def rules(dark: bool) -> str:
        shown = {"s-cnn": style.colour(None, dark=dark)}
        shown |= {f"s-{t}": style.colour(t, dark=dark) for t in range(len(style.ITERATIONS))}
        return "".join(f".{name}{{--c:{value}}}" for name, value in shown.items())

    def names(paper: str, ink: str, warning: str) -> str:
        return f":root{{--paper:{paper};--ink:{ink};--warning:{warning}}}"

    light = names(style.PAPER, style.INK, style.WARNING) + rules(dark=False)
    dark = names(style.DARK_PAPER, style.DARK_INK, style.DARK_WARNING) + rules(dark=True)
    return f"{light}@media screen and (prefers-color-scheme: dark){{{dark}}}"


def picture_source(picture: Picture) -> str:
    """A picture as a data URI."""
    kind = TYPES.get(Path(picture.name).suffix)
    if kind is None:
        raise ValueError(f"{picture.name}: pictures on a page end in {' or '.join(TYPES)}")
    return f"data:{kind};base64,{base64.b64encode(picture.content).decode()}"


def short_folders(folders: Sequence[Path]) -> list[str]:
    """Each folder by the end of its path, as much of it as tells it from the others; never an absolute path."""
    whole = [Path(os.path.abspath(folder)).parts[1:] for folder in folders]
    short: list[str] = []
    for depth in range(1, max(map(len, whole)) + 1):
        short = ["/".join(parts[-depth:]) for parts in whole]
        if len(set(short)) == len(set(whole)):
            break
    return short


def overview(runs: Sequence[Run], names: Sequence[str]) -> Table:
    """One row for each run."""
    rows = [
        (name, run.kind, "SIMULATED" if run.simulated else "", run.question, run.answer)
        for name, run in zip(names, runs, strict=True)
    ]
    return Table("Runs", ("run", "kind", "simulated", "question", "answer"), tuple(rows))


def differences(runs: Sequence[Run], names: Sequence[str]) -> Table:
    """What must agree for runs to be compared, and does not; no rows where all of it agrees."""
    every = [{"kind": run.kind, "simulated": str(run.simulated), **run.same} for run in runs]
    keys = list(dict.fromkeys(key for same in every for key in same))
    differing = [key for key in keys if len({same.get(key, "not recorded") for same in every}) > 1]
    rows = tuple((key, *(same.get(key, "not recorded") for same in every)) for key in differing)
    return Table("Where they are not comparable", ("", *names), rows)


def merged(runs: Sequence[Run], names: Sequence[str]) -> list[Table]:
    """Tables that several runs have under one title with one head, as one table with the run as its first column.

    A note that not all of these runs have begins with the names of those that have it.
    """
    rows: dict[tuple[str, tuple[str, ...]], list[tuple[str, ...]]] = {}
    notes: dict[tuple[str, tuple[str, ...]], dict[str, list[str]]] = {}
    for name, run in zip(names, runs, strict=True):
        for table in run.tables:
            key = table.title, table.head
            rows.setdefault(key, []).extend((name, *row) for row in table.rows)
            of_table = notes.setdefault(key, {})
            for note in table.notes:
                of_table.setdefault(note, []).append(name)
    found = []
    for (title, head), of_table in notes.items():
        if title != "Log":
            shown = [note if len(have) == len(runs) else f"{', '.join(have)}: {note}" for note, have in of_table.items()]
            found.append(Table(title, ("run", *head), tuple(rows[title, head]), tuple(shown)))
    return found
