"""What a page shows of a run, whatever command left its folder (``Run``), and the open form of such a folder (``Figure``)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tabulate import tabulate

from cnnf_brain.io import write_json
from cnnf_brain.report.charts import Chart, Mark

# What Markdown takes for more than text: entities, tags, the end of a link's words, the end of a table's cell.
ORDERS = {r"&(?=#?\w+;)": "&amp;", r"<(?=[a-zA-Z/!?])": "&lt;", r"\](?=[(\[:])": "&#93;", r"\|": "&#124;"}
FEW_IMAGES = 200  # below this many, a share of images is uncertain by more than 7 points (95%, at one half)
HOLDS = {True: "holds", False: "does not hold", None: "not decided by this"}


@dataclass(frozen=True)
class Table:
    """Cells as text; a column whose cells begin with numbers sorts by these. ``folded``: a page shows the title alone at first."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    folded: bool = False


@dataclass(frozen=True)
class Picture:
    """A PNG or SVG file that the run wrote from its tables, shown as an image (nothing in it is run)."""

    name: str
    content: bytes = field(repr=False)
    caption: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the page of a run shows.

    ``folder`` is named on the page. ``kind`` is the command in a word; ``question`` and ``answer`` are a sentence or two.
    ``caveats`` say what the run does not show. ``same``: what must agree, by name, before two runs of a kind are compared
    (recordings, splits, versions). ``notice``: a warning that must be read with the answer, shown right below it.
    """

    folder: Path
    kind: str
    title: str
    question: str
    answer: str
    charts: tuple[Chart, ...]
    tables: tuple[Table, ...]
    facts: tuple[tuple[str, str], ...]
    caveats: tuple[str, ...]
    same: dict[str, str]
    pictures: tuple[Picture, ...] = ()
    notice: str = ""
    simulated: bool = False


@dataclass(frozen=True)
class Claim:
    """A claim of the paper beside what was measured; ``holds`` None: not decided. ``verdict``: other words for ``holds``."""

    claim: str
    measured: str
    holds: bool | None
    verdict: str = ""

    @classmethod
    def of_interval(cls, claim: str, measured: str, low: float, high: float) -> Claim:
        """It holds where the interval lies above 0, does not where it lies below, and else is not decided."""
        return cls(claim, measured, True if low > 0 else False if high < 0 else None)

    def record(self) -> dict[str, object]:
        """The entry of summary.json."""
        return {name: value for name, value in asdict(self).items() if name != "verdict" or value}

    @property
    def cells(self) -> tuple[str, str, str]:
        """The claim, what was measured, the verdict."""
        return self.claim, self.measured, self.verdict or HOLDS[self.holds]


@dataclass(frozen=True, kw_only=True)
class TableChart:
    """How the rows of a CSV table are drawn: bars, or lines over the column ``x``.

    ``where``: columns and the values that they must have. ``group`` and ``label``: texts in which ``{column}`` stands for the
    row's cell. ``y``, ``low``, ``high``: the columns of value and interval. ``series``: the column of the iteration.
    """

    title: str
    caption: str
    table: str = "table.csv"
    where: Mapping[str, object] = field(default_factory=dict)
    group: Sequence[str]
    series: str = "iteration"
    label: str
    x: str = ""
    x_name: str = ""
    y: str
    y_name: str
    low: str = ""
    high: str = ""

    def draw(self, rows: Sequence[Mapping[str, str]]) -> Chart:
        """The chart of the rows; a KeyError where they lack a column."""
        groups: dict[str, list[Mark]] = {}
        for row in rows:
            if all(row[name] == str(value) for name, value in self.where.items()):
                groups.setdefault(", ".join(filled(text, row) for text in self.group), []).append(self._mark(row))
        frozen = tuple((name, tuple(marks)) for name, marks in groups.items())
        return Chart(self.title, self.caption, self.y_name, frozen, x=self.x_name, bars=not self.x)

    def _mark(self, row: Mapping[str, str]) -> Mark:
        low, high = (_number(row[name]) if name else None for name in (self.low, self.high))
        x = float(row[self.x]) if self.x else 0.0
        return Mark(filled(self.label, row), _number(row[self.y]), low, high, series=self._series(row), x=x)

    def _series(self, row: Mapping[str, str]) -> int | None:
        """The iteration in whose colour a row is drawn, None for the CNN.

        Without the column ``series`` it is that of ``trained``, if there is one: the iterations of training (0: the CNN).
        """
        if self.series:
            return int(row[self.series]) if row[self.series] else None
        return int(row.get("trained", 0)) or None


class Recorded(Protocol):
    """A claim that says what stands of it in summary.json: ``Claim``, or a command's own with more entries."""

    def record(self) -> dict[str, object]:
        """``claim``, ``measured``, ``holds``, where it has other words than ``holds`` the ``verdict``, and more."""
        ...

    @property
    def cells(self) -> tuple[str, str, str]:
        """The claim, what was measured, the verdict."""
        ...


@dataclass(frozen=True, kw_only=True)
class Figure:
    """``summary.json`` of the open form (docs/pages.md): what a figure and its CSV tables say.

    ``tables``: file -> title, then notes. ``pictures``: file (SVG or PNG) -> caption.
    """

    title: str
    question: str
    answer: str
    claims: Sequence[Recorded]
    charts: Sequence[TableChart]
    tables: Mapping[str, tuple[str, ...]]
    pictures: Mapping[str, str]
    caveats: Sequence[str]

    def save(self, folder: Path) -> None:
        """Write the file; last, since it says that the other files are whole and of this run."""
        content = {
            "schema": 1,
            "kind": "figure",
            "title": self.title,
            "question": self.question,
            "answer": self.answer,
            "claims": [claim.record() for claim in self.claims],
            "tables": [{"file": file, "title": title, "notes": notes} for file, (title, *notes) in self.tables.items()],
            "charts": [asdict(chart) for chart in self.charts],
            "pictures": [{"file": file, "caption": caption} for file, caption in self.pictures.items()],
            "caveats": self.caveats,
        }
        write_json(folder / "summary.json", content)


def filled(text: str, row: Mapping[str, str]) -> str:
    """``text`` with each ``{column}`` replaced by the row's cell, as it is; a KeyError where there is no such column."""
    return re.sub(r"\{([^{}]*)\}", lambda match: row[match[1]], text)


def _number(text: str) -> float | None:
    """The number of a cell; None for an empty cell and for what is not finite."""
    number = float(text) if text else math.nan
    return number if math.isfinite(number) else None


def flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Names (``a.b``) and texts of all entries of nested JSON objects; lists stay JSON, null and empty texts are left out."""
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from flat(inside, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        for number, inside in enumerate(value):
            yield from flat(inside, f"{name}.{number}")
    elif value == []:
        yield name, "none"
    elif value not in (None, ""):
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def markdown(value: object) -> str:
    """A value as text in Markdown, in one line: no part of it is a tag, a link, or the end of a table's cell."""
    text = " ".join(str(value).split())
    for order, entity in ORDERS.items():
        text = re.sub(order, entity, text)
    return text


def markdown_table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown, whose cells are the texts as they are."""
    cells = [[markdown(cell) for cell in row] for row in rows]
    return str(tabulate(cells, [markdown(name) for name in head], tablefmt="github", disable_numparse=True))


def version_keys(run: Mapping[str, Any]) -> dict[str, str]:
    """The versions of a run's record, as entries of ``Run.same``."""
    return {f"version of {name}": str(version) for name, version in (run.get("versions") or {}).items()}


def about_the_code(run: Mapping[str, Any]) -> list[str]:
    """Caveats about where the code came from."""
    if str(run.get("commit") or "").endswith("-dirty"):
        return ["The code differed from its commit when this ran: the commit alone does not give these numbers again."]
    return []


def join(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""
