"""A grid as work: each file is made once, by one process or several, stopped and continued.

Files appear whole or not at all. Who works at one holds its lock, which the system releases when a process dies.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from filelock import FileLock, Timeout

from cnnf_brain.attacks import external
from cnnf_brain.robustness.cells import Cell, Examination, Task, Training
from cnnf_brain.robustness.workshop import Workshop
from cnnf_brain.trainer.loop import Stop

POLL = 1.0  # seconds between looks at what other processes do


def tasks(shop: Workshop) -> list[Task]:
    """All of a grid, seed after seed, so that an unfinished grid has whole seeds."""
    grid = shop.grid
    found: list[Task] = []
    for seed in grid.seeds:
        found += [Training(shop, model, seed) for model in grid.models]
        found += cells(shop, seed)
        if seed == grid.seeds[0]:
            found += [Examination(shop, model, seed) for model in grid.models]
    return found


def cells(shop: Workshop, seed: int) -> list[Cell]:
    """The cells of one seed. For a CNN first pass and end to end are one, and it is nobody's transfer but its own."""
    found = [
        Cell(shop, model, seed, against)
        for model in shop.grid.models
        for against in shop.grid.against
        if not against.strong or (seed in shop.grid.strong_seeds and (model.iterations or against.threat == "end_to_end"))
    ]
    return [cell for cell in found if cell.against.threat != "transfer" or (cell.source and cell.model.iterations)]


def done(task: Task) -> bool:
    """Whether its file stands, and is of the networks that are there now."""
    return task.path.exists() and not task.outdated()


def check_packages(todo: Sequence[Task]) -> None:
    """An ImportError now, before anything is trained, where a package is missing that an attack of ``todo`` needs."""
    for attack in {type(task.attack): task.attack for task in todo if isinstance(task, Cell) and not done(task)}.values():
        external.check_installed(attack)


def tell_outdated(todo: Sequence[Task], consequence: str) -> None:
    """Say on stderr which files are out of date, and what follows from it."""
    for task in todo:
        if task.path.exists() and (why := task.outdated()):
            print(f"{task.path}: {why}; {consequence}", file=sys.stderr)


def work(todo: Sequence[Task], stop: Stop | None, tell: Callable[[float, float, str], None], *, poll: float = POLL) -> bool:
    """Do what is missing or out of date of ``todo``; True when nothing is, False where a stop was requested.

    Tasks that another process holds are passed over and awaited at the end. ``tell(done, total, title)`` is called, in costs,
    before each task.
    """
    total = sum(task.cost for task in todo)
    while missing := [task for task in todo if not done(task)]:
        moved = False
        for task in missing:
            if stop is not None and stop.requested:
                return False
            if not task.ready() or done(task):
                continue
            task.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(task.path.parent / f".{task.path.name}.lock", timeout=0):
                    if done(task):
                        continue
                    tell_outdated([task], "made again")
                    tell(total - sum(other.cost for other in todo if not done(other)), total, task.title)
                    if not task.do(stop):
                        return False
                    moved = True
            except Timeout:
                continue
        if not moved and not all(map(done, todo)):
            time.sleep(poll)
    tell(total, total, "finished")
    return True
