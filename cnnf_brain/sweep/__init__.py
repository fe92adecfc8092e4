"""A study of many networks on one folder: ``sweep``. It is checked as a whole, then cut into cells, which any number of processes
make (``cnnf_brain.work``).

    study = Study.read("study.toml")
    print(estimate(study, "results/study"))
    sweep(study, "results/study").ranking
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cnnf_brain import activations, results
from cnnf_brain.images import pick_device
from cnnf_brain.io import write_json
from cnnf_brain.scratch import SCRATCH_BYTES
from cnnf_brain.sweep.cells import MANIFEST, PATIENCE, Cell, K, planned
from cnnf_brain.sweep.study import NetworkEntry, Study
from cnnf_brain.sweep.table import KIND, Status, Table, collect, status
from cnnf_brain.work import Interrupted, Stop, work

__all__ = ["Estimate", "Interrupted", "NetworkEntry", "Status", "Study", "Table", "collect", "estimate", "status", "sweep"]
GB = 1e9


def sweep(
    study: Study | str | Path, folder: str | Path, *, stop: Stop | None = None, progress: bool | Callable[..., object] = True
) -> Table:
    """Score networks x weights x layers x iterations x recordings x metrics as one study, and rank the networks.

    The study is checked as a whole before anything runs. Then its cells are made that are not there yet: K of each network over
    each set of images, then the scores of each layer. Any number of processes may call this for the same folder at once; they share
    the cells, and each returns when all are done. A kill loses the cell in hand. A cell that fails is noted, and the others go on.

    Parameters
    ----------
    study
        A ``Study``, or the path of a ``study.toml`` (docs/sweep.md).
    folder
        Where cells and tables stand. A study may grow there (networks, layers, recordings, metrics), its scoring stays.
    stop
        Asked before each cell and each batch of images.
    progress
        True: a bar on stderr. A function ``(done, total, name)``: called before each cell, costs in rough seconds.

    Returns
    -------
    Table
        All cells in one table, with Holm's p over the study. They are in files of ``folder`` too.

    Raises
    ------
    ValueError, OSError, TypeError
        What the study asks for cannot be had (unknown names, layers or files, recordings too small for the scoring), or the folder
        is that of something else.
    Interrupted
        A stop was requested; the same call goes on.

    Examples
    --------
    >>> import tempfile
    >>> import cnnf_brain as cb
    >>> recordings = cb.load_recordings("simulated", region="IT")
    >>> study = cb.Study(networks=["small"], recordings=[recordings], layers="relu3", iterations=[0, 1], baseline="none")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = cb.sweep(study, folder, progress=False)
    >>> table.ranking[["rank", "layer", "iteration"]].shape
    (2, 3)
    """
    todo = prepare(study, folder)
    run_cells(todo, stop, progress)
    return collect(Path(folder))


def prepare(study: Study | str | Path, folder: str | Path) -> list[Cell]:
    """The cells of a study, checked, with its folder made theirs; failures of earlier runs are forgotten."""
    study, folder = study if isinstance(study, Study) else Study.read(study), Path(folder)
    pick_device(study.device)
    todo = planned(study, folder)
    with results.grown(folder, KIND, _question(study), wait=PATIENCE):
        manifest = [{"name": cell.path.name, "stage": stage(cell), "cost": cell.cost} for cell in todo]
        write_json(folder / MANIFEST, {"cells": manifest})
        for cell in todo:
            cell.note.unlink(missing_ok=True)
    return todo


def _question(study: Study) -> dict[str, Any]:
    """What a folder of the study belongs to."""
    return {"scoring": {name: value for name, value in study.scoring.decided().items() if name != "metric"}}


def stage(cell: Cell) -> str:
    """``K`` or ``scores``."""
    return "K" if isinstance(cell, K) else "scores"


def run_cells(todo: Sequence[Cell], stop: Stop | None, progress: bool | Callable[..., object]) -> None:
    """Make cells; an error of one is noted beside its file."""
    with _told(progress) as tell:
        work(todo, stop, tell, failed=lambda cell, error: cell.fail(error))  # type: ignore[attr-defined]


@contextmanager
def _told(progress: bool | Callable[..., object]) -> Iterator[Callable[[float, float, str], None]]:
    """How ``work`` tells what it does."""
    with tqdm(disable=progress is not True, unit="s", bar_format="{l_bar}{bar}| {postfix}") as bar:

        def tell(done: float, total: float, name: str) -> None:
            bar.total, bar.n = total, done
            bar.set_postfix_str(name)
            if callable(progress):
                progress(done, total, name)

        yield tell


@dataclass(frozen=True)
class Stage:
    """What the cells of ``K`` or of ``scores`` take: ``hours`` of one process for those that are not ``done``, and ``memory``, GB
    of the largest beside its network."""

    cells: int
    done: int
    hours: float
    memory: float

    @property
    def time(self) -> str:
        """``hours`` in words."""
        return f"{self.hours:,.0f} hours" if self.hours >= 10 else f"{60 * self.hours:,.1f} minutes"

    @classmethod
    def of(cls, cells: Sequence[Cell], seconds: Mapping[Cell, float]) -> Stage:
        """Of cells and the seconds of each."""
        left = [cell for cell in cells if not cell.done()]
        hours = sum(seconds[cell] for cell in left) / 3600
        return cls(len(cells), len(cells) - len(left), hours, max(cell.memory for cell in cells) / GB)


@dataclass(frozen=True)
class Estimate:
    """What a study takes, by stage (``K``, ``scores``), roughly.

    ``cache``: GB that all K take on disk. ``scratch``: GB of features on their way into K. ``seconds``: of each cell.
    """

    stages: Mapping[str, Stage]
    cache: float
    scratch: float
    seconds: Mapping[Cell, float] = field(repr=False)

    def __str__(self) -> str:
        lines = [
            f"{name}: {one.cells} cells, {one.done} of them done; about {one.time} of one process; "
            f"{one.memory:.2g} GB of memory for the largest, beside the network"
            for name, one in self.stages.items()
        ]
        return "\n".join([*lines, f"disk: {self.cache:.2g} GB for all K, up to {self.scratch:.2g} GB of scratch"])


def estimate(study: Study | str | Path, folder: str | Path, *, progress: bool = True) -> Estimate:
    """The dry run: what a study takes. Each network is built with random weights and shown a few images, to count and to time.

    Nothing is written to ``folder``, and no weights are downloaded. Hours hold for this machine, within a factor of three or so.
    Raises what ``sweep`` raises before it runs.
    """
    study = study if isinstance(study, Study) else Study.read(study)
    results.claim(Path(folder), KIND, _question(study))
    todo = planned(study, Path(folder))
    seconds, scratch, cache = {cell: cell.cost for cell in todo}, 0.0, 0.0
    ks = [cell for cell in todo if isinstance(cell, K)]
    for cell in tqdm(ks, disable=not progress, unit="network"):
        seconds[cell], counts = measured(cell)
        scratch = max(scratch, min(SCRATCH_BYTES, 4.0 * len(cell.images) * sum(counts.values())))
        cache += 8.0 * len(cell.images) ** 2 * len(cell.layers)
    of: dict[str, Sequence[Cell]] = {"K": ks, "scores": [cell for cell in todo if not isinstance(cell, K)]}
    return Estimate({name: Stage.of(cells, seconds) for name, cells in of.items()}, cache / GB, scratch / GB, seconds)


def measured(cell: K) -> tuple[float, dict[Any, int]]:
    """Rough seconds of a K, and the features by layer, from a few images and random weights."""
    network = cell.member.blank()
    begin = time.perf_counter()
    counts = activations.probe(network, cell.images, cell.layers).counts
    an_image = (time.perf_counter() - begin) / (3 * activations.PROBED)  # each is shown three times
    n = len(cell.images)
    return n * an_image + sum(2.0 * n**2 * count for count in counts.values()) / 5e10, counts
