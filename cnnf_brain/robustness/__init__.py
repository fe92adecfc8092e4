"""The robustness experiments of the paper (Section 4.1, Appendix B) on MNIST and Fashion-MNIST.

    shop = open_workshop(grid("fig6", quick=True), Path("results/fig6"), Path("runs/robustness"), "in a notebook")
    result = run_grid(shop)
    result.table, result.means, result.claims

A grid is work: each file is made once, by one process or several, stopped and continued. Files appear whole or not at all. Who
works at a file holds its lock, which the system releases when a process dies.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from cnnf_brain.attacks import external
from cnnf_brain.datasets import mnist
from cnnf_brain.results import machine
from cnnf_brain.robustness import report
from cnnf_brain.robustness.cells import Cell, Interrupted, Task, Training, Workshop, tasks
from cnnf_brain.robustness.grids import Grid, grid
from cnnf_brain.robustness.report import Result
from cnnf_brain.trainer.config import check_amp
from cnnf_brain.trainer.loop import Stop

__all__ = ["Grid", "Interrupted", "Result", "Workshop", "grid", "open_workshop", "run_grid", "tasks", "work"]
POLL = 1.0  # seconds between looks at what other processes do
Tell = Callable[[float, float, str], None]


def open_workshop(
    grid: Grid,
    folder: Path,
    models: Path,
    command: str,
    *,
    data_folder: Path | None = None,
    device: torch.device | str = "cpu",
) -> Workshop:
    """Check the data and take the images that are attacked: the first of the test or of the validation images."""
    source = mnist.find(grid.dataset, data_folder)
    data_hash = source.check()
    images = source.read("test") if grid.part == "test" else mnist.split(source.read("train"))[1]
    if grid.images > len(images):
        raise ValueError(f"images: {grid.images} were asked for, there are {len(images)} {grid.part} images")
    pixels = images.images[: grid.images].unsqueeze(1).float() / 255
    labels = images.labels[: grid.images]
    return Workshop(grid, folder, models, source.folder, data_hash, pixels.to(device), labels.to(device), command, device)


def run_grid(shop: Workshop, *, only_tables: bool = False, stop: Stop | None = None, tell: Tell | None = None) -> Result:
    """Train and attack what is missing of a grid, and write its folder.

    Parameters
    ----------
    shop
        The grid, its folder, the folder of networks, and the images (``open_workshop``).
    only_tables
        Train and attack nothing: the tables of what is finished.
    stop
        Asked between and within tasks.
    tell
        Called before each task with the costs that are done, those of the whole grid, and a title.

    Returns
    -------
    Result
        Table, means over seeds, claims and sanity checks; they are in files of ``shop.folder`` too.

    Raises
    ------
    Interrupted
        A stop was requested. What is finished is kept, and the next call continues.
    ImportError
        A library of the attacks is missing; nothing is made then.
    ValueError
        The folder is that of something else, a file is damaged, a network returns NaN, or there are networks to train in an
        ``amp`` for which the processor has no instructions.
    """
    started, todo = time.monotonic(), tasks(shop)
    if not only_tables:
        check_packages(todo)
        if not all(task.done() for task in todo if isinstance(task, Training)):
            check_amp(shop.grid.amp, torch.device(shop.device))
    report.begin(shop)
    if only_tables:
        tell_outdated(todo, "left out of the tables; the whole run makes it again")
    else:
        work(todo, stop, tell or (lambda *_: None))
    finished, seconds = all(task.done() for task in todo), time.monotonic() - started
    return report.write(shop, finished=finished, seconds=seconds, device_name=machine(torch.device(shop.device)))


def check_packages(todo: Sequence[Task]) -> None:
    """An ImportError now, before anything is trained, where a package is missing that an attack of ``todo`` needs."""
    for attack in {type(task.attack): task.attack for task in todo if isinstance(task, Cell) and not task.done()}.values():
        external.check_installed(attack)


def tell_outdated(todo: Sequence[Task], consequence: str) -> None:
    """Say on stderr which files are out of date, and what follows from it."""
    for task in todo:
        if task.path.exists() and (why := task.outdated()):
            print(f"{task.path}: {why}; {consequence}", file=sys.stderr)


def work(todo: Sequence[Task], stop: Stop | None, tell: Tell, *, poll: float = POLL) -> None:
    """Do what is missing or out of date of ``todo``; raises Interrupted where a stop was requested.

    Tasks that another process holds are passed over and awaited at the end. ``tell``: see ``run_grid``.
    """
    total = sum(task.cost for task in todo)

    def begin(task: Task) -> None:
        tell_outdated([task], "made again")
        tell(total - sum(other.cost for other in todo if not other.done()), total, task.title)

    while missing := [task for task in todo if not task.done()]:
        moved = [_do(task, stop, begin) for task in missing]
        if not any(moved) and not all(task.done() for task in todo):
            time.sleep(poll)
    tell(total, total, "finished")


def _do(task: Task, stop: Stop | None, begin: Callable[[Task], None]) -> bool:
    """Make the file of ``task``; False where it was made meanwhile, cannot be made yet, or another process is at it."""
    if stop is not None and stop.requested:
        raise Interrupted
    if not task.ready() or task.done():
        return False
    task.path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(task.path.parent / f".{task.path.name}.lock", timeout=0):
            if task.done():
                return False
            begin(task)
            task.make(stop)
            return True
    except Timeout:
        return False
