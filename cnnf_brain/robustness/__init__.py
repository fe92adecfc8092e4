"""The robustness experiments of the paper (Section 4.1, Appendix B) on MNIST and Fashion-MNIST.

    shop = open_workshop(grid("fig6", quick=True), Path("results/fig6"), Path("runs/robustness"), "in a notebook")
    result = run_grid(shop)
    result.table, result.means, result.claims

A grid is work (``cnnf_brain.work``): each file is made once, by one process or several, stopped and continued.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from cnnf_brain.attacks import external
from cnnf_brain.datasets import mnist
from cnnf_brain.results import machine
from cnnf_brain.robustness import report
from cnnf_brain.robustness.cells import Cell, Task, Training, Workshop, tasks
from cnnf_brain.robustness.grids import Grid, grid
from cnnf_brain.robustness.report import Result
from cnnf_brain.trainer.config import check_amp
from cnnf_brain.work import Interrupted, Stop, Tell, tell_outdated, work

__all__ = ["Grid", "Interrupted", "Result", "Workshop", "grid", "open_workshop", "run_grid", "tasks", "work"]


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
