"""The folder of any run -> its Run, from its files alone.

Raises ValueError where a folder is incomplete, of another version, or not of this project.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cnnf_brain.report import of_figure, of_training
from cnnf_brain.report.runs import Run

SCHEMAS = {"comparison": 3, "figure": 1}  # the form of summary.json that is understood here, by kind
KINDS = "compare (summary.json, run.json), visualize (summary.json, run.json), a trainer (config.json, log.jsonl, card.json)"


def read(folder: Path) -> Run:
    """The Run of ``folder``.

    Raises
    ------
    FileNotFoundError
        No such folder.
    ValueError
        It is no folder, it lacks a file, a file is damaged or written by another version, or nothing in it is of this project.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such folder; name a folder that a run has left")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; name the folder that it is in")
    try:
        return _read(folder)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{folder}: its files lack what this version expects ({what}): written by another version of cnnf-brain, or "
            "changed since; do the run again (its command stands in run.json or config.json)"
        ) from error
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is incomplete: no {Path(error.filename).name}; do the run again") from error


def _read(folder: Path) -> Run:
    names = {path.name for path in folder.iterdir()}
    if "summary.json" in names:
        summary, run = load(folder / "summary.json"), load(folder / "run.json")
        check_schema(folder, summary)
        if "evaluations" in summary:
            return __import__("cnnf_brain").Comparison.load(folder).page(folder)
        if summary.get("kind") == "figure":
            return of_figure.read(folder, summary, run)
        raise ValueError(f"{folder}/summary.json is of no kind that is known here; known: {KINDS}")
    if "card.json" in names or {"config.json", "log.jsonl"} <= names:
        log, damaged = load_lines(folder / "log.jsonl") if "log.jsonl" in names else ([], 0)
        return of_training.read(
            folder, load(folder / ("card.json" if "card.json" in names else "config.json")), log, damaged
        )
    if "run.json" in names:
        raise ValueError(f"{folder} is incomplete: run.json without summary.json, which is written last; do the run again")
    raise ValueError(f"{folder}: not the results of a run of cnnf-brain ({listed(names)}); known: {KINDS}")


def listed(names: set[str]) -> str:
    """The first few of the names in a folder."""
    shown = sorted(names)
    return f"it holds {', '.join(shown[:5])}{' …' * (len(shown) > 5)}" if shown else "it is empty"


def load(path: Path) -> Any:
    """A JSON object; a ValueError where the file is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); do the run again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected an object; it is not of cnnf-brain")
    return content


def load_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of a file of JSON lines, and how many lines are none (one that a kill cut short, say)."""
    found, damaged = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, dict):
            found.append(content)
        else:
            damaged += 1
    return found, damaged


def check_schema(folder: Path, summary: dict[str, Any]) -> None:
    """A ValueError where summary.json is of a form that is not understood here."""
    schema, expected = summary.get("schema"), SCHEMAS["comparison" if "evaluations" in summary else "figure"]
    if schema != expected:
        age = "a newer" if isinstance(schema, int) and schema > expected else "another"
        raise ValueError(
            f"{folder}/summary.json has schema {schema!r}, expected {expected}: written by {age} version of cnnf-brain; "
            "update, or do the run again"
        )
