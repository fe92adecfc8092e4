"""What a cell of a study costs beside its own work, and whether any is lost or done twice: 200 small cells by 1, 2 and 4 processes.

    python benchmarks/sweep.py

Overhead: the seconds of all processes, from the cells that are planned to the last that is made, less those in which features are
made and layers are scored; waits for other processes count as overhead. One K of all layers, then a cell for each layer.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cnnf_brain as cb
from cnnf_brain.gram import Features
from cnnf_brain.recordings import write_assembly
from cnnf_brain.results import machine
from cnnf_brain.sweep import cells, prepare, run_cells, status

NET = """
import torch
from cnnf_brain import Preprocessing

def net():
    torch.manual_seed(0)
    made = torch.nn.Sequential(*[torch.nn.Conv2d(3, 3, 3, padding=1) for _ in range({layers})])
    made.preprocessing = Preprocessing(16)
    return made
"""


def study_of(folder: Path, n: int) -> cb.Study:
    """A network with a layer for each of ``n`` cells."""
    from PIL import Image

    rng = np.random.default_rng(0)
    files = []
    for number in range(40):
        files.append(folder / f"picture{number:02}.png")
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(files[-1])
    path = write_assembly(folder / "V4.nc", rng.standard_normal((40, 6)), files, region="V4")
    (folder / "net.py").write_text(NET.format(layers=n))
    layers = {"V4": [str(number) for number in range(n)]}
    return cb.Study(
        networks=[f"{folder}/net.py:net"],
        recordings=[str(path)],
        layers=layers,
        baseline="none",
        scoring=cb.Scoring(components=2),
    )


def clocks() -> np.ndarray[Any, Any]:
    """Seconds on the wall, and of the processor."""
    return np.array([time.perf_counter(), time.process_time()])


class Timed:
    """A function, and the seconds that were spent in it."""

    def __init__(self, real: Callable[..., Any]) -> None:
        self.real, self.seconds = real, np.zeros(2)

    def __call__(self, *words: Any, **more: Any) -> Any:
        begun = clocks()
        try:
            return self.real(*words, **more)
        finally:
            self.seconds += clocks() - begun


def at_work(study: cb.Study, out: Path, number: int) -> None:
    """One process: what it made goes into a file, with the seconds that it took beside the work itself."""
    torch.set_num_threads(1)
    scored, features = Timed(cells.evaluate_region), Timed(Features.compute)
    cells.evaluate_region = scored
    Features.compute = lambda *words, **more: features(*words, **more)  # type: ignore[method-assign]
    begun, told = clocks(), []
    run_cells(prepare(study, out), None, lambda _done, _total, name: told.append(name))
    beside = clocks() - begun - scored.seconds - features.seconds
    (out / f"told{number}.txt").write_text("\n".join([*map(str, [*scored.seconds, *beside]), *told[:-1]]))


def measure(n: int, workers: int) -> str:
    """A study of ``n`` cells by some processes, as a row."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["CNNF_BRAIN_CACHE"] = str(folder / "cache")
        study, out = study_of(folder, n), folder / "out"
        begun = time.perf_counter()
        started = [multiprocessing.get_context("fork").Process(target=at_work, args=(study, out, k)) for k in range(workers)]
        for process in started:
            process.start()
        for process in started:
            process.join()
        wall = time.perf_counter() - begun
        told = [(out / f"told{k}.txt").read_text().splitlines() for k in range(workers)]
        made = Counter(name for lines in told for name in lines[4:] if name.startswith("score"))
        lost, twice = n - status(out).done["scores"], sum(made.values()) - len(made)
        times = "".join(f"{sum(float(lines[i]) for lines in told) / n:9.3f}" for i in range(4))
        return f"{workers:9}  {wall:6.1f} {times}  {lost:4}  {twice:10}"


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    args = parser.parse_args()
    print(machine(torch.device("cpu")))
    print("seconds of a cell: its scoring, and the overhead, each on the wall and of the processor")
    print("processes  wall s   scoring      cpu overhead      cpu  lost  done twice")
    for workers in args.workers:
        print(measure(args.cells, workers), flush=True)


if __name__ == "__main__":
    main()
