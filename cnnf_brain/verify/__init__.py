"""A saved comparison run again from what it says of itself: ``verify``. Whether every number agrees, and what is other than it was.

Networks, recordings and settings are those of run.json; paths in it are relative to the current folder, as they were.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from cnnf_brain.checks import differences
from cnnf_brain.compare import Comparison, Scoring
from cnnf_brain.compare.comparison import KIND
from cnnf_brain.io import CACHE_VARIABLE, cache_folder, plain
from cnnf_brain.results import RECORD, read_record
from cnnf_brain.types import Evaluation, Scores

TOLERANCE = 1e-6
KEY = ("region", "source", "role", "network", "weights", "layer", "metric", "against")
OTHER = ("commit", "versions", "machine")  # of run.json: circumstances
MADE = ("grams", "scratch", "locks")  # folders of the cache that hold what this software computes


@dataclass(frozen=True)
class Verification:
    """A saved comparison beside the same one made again.

    Attributes
    ----------
    apart : dict
        Numbers that differ: row and number in words -> how much; NaN where one of the two lacks it.
    largest : float
        The largest difference of any two numbers.
    compared : int
        How many numbers were compared.
    circumstances : list of str
        What is other than it was: versions, machine, commit, and what networks and recordings hash to.

    Examples
    --------
    >>> Verification({}, 3e-9, 1200, []).agrees
    True
    """

    apart: Mapping[str, float]
    largest: float
    compared: int
    circumstances: Sequence[str]

    @property
    def agrees(self) -> bool:
        """Whether every number agrees within 1e-6."""
        return not self.apart

    def __str__(self) -> str:
        found = f"{self.compared} numbers, the largest difference {self.largest:.1e}"
        lines = [
            f"every number agrees within {TOLERANCE:g} ({found})" if self.agrees else f"{len(self.apart)} differ ({found})"
        ]
        worst = sorted(self.apart.items(), key=lambda item: -math.inf if math.isnan(item[1]) else -item[1])
        lines += [f"  {name}: {'in one alone' if math.isnan(by) else f'{by:.2g}'}" for name, by in worst[:10]]
        lines += [f"  ... and {len(worst) - 10} more"] * (len(worst) > 10)
        return "\n".join([*lines, *(f"other than it was: {text}" for text in self.circumstances)])


def verify(folder: str | Path, again: Comparison | None = None, *, cached: bool = False) -> Verification:
    """Run the comparison that the command has left in ``folder`` again, and compare every number.

    Parameters
    ----------
    folder
        A folder of ``cnnf-brain compare``. It is not changed.
    again
        The comparison made again, where a program made it: what its networks were stands in no file.
    cached
        Take features from the cache where they are there; else each network runs anew.

    Raises
    ------
    ValueError
        The folder holds no comparison, or one that a program made and ``again`` is not given; what ``compare`` raises.
    OSError
        A file of the comparison (weights, recordings, code) is not there any more.

    Examples
    --------
    >>> import tempfile
    >>> import cnnf_brain as cb
    >>> recordings = cb.load_recordings("simulated", region="IT")
    >>> made = [cb.compare(cb.load_network("small"), None, recordings, "relu3@0", progress=False) for _ in range(2)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cb.verify(made[0].save(f"{folder}/mine"), made[1]).agrees
    True
    """
    record = read_record(Path(folder), RECORD)
    if record.get("kind", KIND) != KIND:
        raise ValueError(f"{folder} holds the results of {record['kind']}; a comparison alone can be verified")
    before = Comparison.load(folder)
    if again is None:
        again = _again(folder, record, cached)
    old, new = _numbers(before), _numbers(again)
    apart, largest = {}, 0.0
    for name in dict.fromkeys([*old, *new]):
        by = _apart(old.get(name), new.get(name))
        largest = max(largest, 0.0 if math.isnan(by) else by)
        if not by <= TOLERANCE:
            apart[name] = by
    return Verification(apart, largest, len(old.keys() & new.keys()), _circumstances(before.run, again.run))


def _again(folder: str | Path, record: Mapping[str, Any], cached: bool) -> Comparison:
    """The comparison made again by the command, in a folder that goes."""
    from cnnf_brain.compare import __main__ as command  # not before: Python warns where it is then run as a program

    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in record["options"].items()
    }
    known = {one.name for one in fields(command.Options)}
    if "model" not in given:
        raise ValueError(
            f"{folder} was made by a program, and {RECORD} does not hold its networks; give it made again (again)"
        )
    scoring = Scoring(**{one.name: given[one.name] for one in fields(Scoring) if one.name in given})
    feedback = {name: given[name] for name in command.FEEDBACK if given.get(name) is not None}
    own = {name: value for name, value in given.items() if name in known}
    options = replace(command.Options(**own), feedback=feedback, scoring=scoring)
    with tempfile.TemporaryDirectory() as scratch, _cache(Path(scratch), cached):
        command.run(replace(options, output=str(Path(scratch, "again"))))
        return Comparison.load(Path(scratch, "again"))


@contextmanager
def _cache(scratch: Path, cached: bool) -> Iterator[None]:
    """Within it, a cache that has the downloads of the user's, and none of its features unless ``cached``."""
    if cached:
        yield
        return
    before, real, new = os.environ.get(CACHE_VARIABLE), cache_folder().resolve(), scratch / "cache"
    new.mkdir()
    for path in real.iterdir():
        if path.name not in MADE:
            (new / path.name).symlink_to(path)
    os.environ[CACHE_VARIABLE] = str(new)
    try:
        yield
    finally:
        os.environ.pop(CACHE_VARIABLE)
        if before is not None:
            os.environ[CACHE_VARIABLE] = before


def _numbers(comparison: Comparison) -> dict[str, Any]:
    """Every number of a comparison, under its row and its name; of each site in arrays."""
    found: dict[str, Any] = {}
    for e, row in zip(comparison.evaluations, comparison.rows, strict=True):
        name = ", ".join(getattr(e, key) for key in KEY if getattr(e, key))
        found |= {f"{name}: {entry}": value for entry, value in _flat(row)}
        found |= {f"{name}: {entry}": value for entry, value in _of_sites(e)}
    return found


def _of_sites(e: Evaluation) -> Iterator[tuple[str, Any]]:
    if isinstance(e.scores, Scores):
        yield "r of each site", e.scores.r
        for name in ("pooled", "ceiling"):
            if getattr(e.scores, name) is not None:
                yield f"{name} of each site", getattr(e.scores, name)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested plain values."""
    items: Any = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, inside in items:
        if isinstance(inside, Mapping | list | tuple):
            label = inside.get("name", key) if isinstance(inside, Mapping) else key
            yield from _flat(inside, f"{name} {label}".strip())
        elif isinstance(inside, int | float) and not isinstance(inside, bool):
            yield f"{name} {key}".strip(), float(inside)


def _apart(old: Any, new: Any) -> float:
    """The largest difference, of large numbers relative to them; NaN where one lacks a number that the other has."""
    if old is None or new is None or np.shape(old) != np.shape(new):
        return math.nan
    a, b = np.asarray(old, dtype=float), np.asarray(new, dtype=float)
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return math.nan
    with np.errstate(invalid="ignore"):
        by = np.abs(a - b) / np.maximum(1, np.abs(a))
    return float(np.max(by[np.isfinite(by)], initial=0.0))


def _circumstances(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    old, new = plain(old), plain(new)  # as a file has it: lists in place of tuples
    found = differences({name: old.get(name) for name in OTHER}, {name: new.get(name) for name in OTHER})
    for name in ("networks", "recordings"):
        for number, (one, other) in enumerate(zip(old[name], new[name], strict=False)):
            found += [f"{name} {number + 1}, {text}" for text in differences(one, other)]
        if len(old[name]) != len(new[name]):
            found.append(f"{name}: {len(old[name])} there, {len(new[name])} now")
    return found
