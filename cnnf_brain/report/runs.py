"""What a page shows of a run: one record, whatever the command that left the folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cnnf_brain.report.charts import Chart

FEW_IMAGES = 200  # below this many, a share of images is uncertain by more than 7 points (95%, at one half)


@dataclass(frozen=True)
class Table:
    """Cells as text; a column whose cells begin with numbers sorts by these."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A PNG or SVG file that the run wrote from its tables, shown as an image (nothing in it is run)."""

    name: str
    content: bytes = field(repr=False)
    caption: str


@dataclass(frozen=True)
class Run:
    """A folder of results, read from its files alone.

    ``kind`` is the command in a word; ``question`` and ``answer`` are one sentence each. ``caveats`` is what the run does not
    show. ``same`` is what has to agree, by name, for two runs of a kind to be compared (recordings, splits, versions).
    ``notice`` is a warning that must be read with the answer, shown right below it; empty where there is none.
    """

    folder: Path
    kind: str
    title: str
    question: str
    answer: str
    simulated: bool
    charts: tuple[Chart, ...]
    tables: tuple[Table, ...]
    facts: tuple[tuple[str, str], ...]
    caveats: tuple[str, ...]
    same: dict[str, str]
    pictures: tuple[Picture, ...] = ()
    notice: str = ""


def flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Names (``a.b``) and texts of all entries of nested JSON objects; lists stay JSON, and null entries are left out."""
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from flat(inside, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
        for number, inside in enumerate(value):
            yield from flat(inside, f"{name}.{number}")
    elif value == []:
        yield name, "none"
    elif value is not None:
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def version_keys(run: dict[str, Any]) -> dict[str, str]:
    """The versions of a run's record, as entries of ``Run.same``."""
    return {f"version of {name}": str(version) for name, version in (run.get("versions") or {}).items()}


def about_the_code(run: dict[str, Any]) -> list[str]:
    """Caveats about where the code came from."""
    if str(run.get("commit") or "").endswith("-dirty"):
        return ["The code differed from its commit when this ran: the commit alone does not give these numbers again."]
    return []


def join(words: list[str]) -> str:
    """``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""
