"""The cells of a study as jobs: of SLURM, or processes of this machine, both through submitit (the extra ``cluster``).

Every job makes cells as ``work`` does, and claims each before. So a job that is requeued, or runs beside others, does none twice.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from threadpoolctl import threadpool_limits

from cnnf_brain.sweep import estimate, prepare, run_cells, stage
from cnnf_brain.sweep.cells import LOGS, Cell, planned
from cnnf_brain.sweep.study import Study
from cnnf_brain.sweep.table import Table, collect

LIMIT = 1001  # elements of an array, SLURM's default
A_JOB = 3600.0  # estimated seconds of the cells that one element makes, at least
SAFETY, START = 3.0, 10  # times the estimate, and minutes to start, that a job may take
BESIDE = 4.0  # GB of a process beside a cell's own: torch, the network, the recordings
YEAR = 525_600  # minutes
T = TypeVar("T")


@dataclass(frozen=True)
class Worker:
    """What a job runs: the cells named (None: all), from the one at ``first`` on."""

    study: Study
    folder: Path
    names: tuple[str, ...] | None = None
    first: int = 0
    threads: int | None = None

    def __call__(self) -> int:
        """Make the cells; how many of them failed."""
        todo = planned(self.study, self.folder)
        todo = [cell for cell in todo if self.names is None or cell.title in self.names]
        first = self.first * len(todo) // 100
        if self.threads:
            torch.set_num_threads(self.threads)
        with threadpool_limits(self.threads):
            run_cells([*todo[first:], *todo[:first]], None, lambda _done, _total, name: print(f"cell {name}", flush=True))
        return sum(cell.hopeless() for cell in todo)

    def checkpoint(self, *_: Any) -> Any:
        """What a job that is preempted or out of time does when it is requeued: the same."""
        return submitit().helpers.DelayedSubmission(self)


def submitit() -> Any:
    """The library; an ImportError that says how to install it."""
    try:
        import submitit as library
    except ImportError as error:
        raise ImportError("submitit is not installed; install it with: pip install 'cnnf-brain[cluster]'") from error
    return library


def locally(study: Study, folder: Path, n: int) -> Table:
    """``sweep`` by ``n`` processes of this machine, whose logs are in ``folder``/logs; it returns when they have ended.

    Raises
    ------
    ValueError
        A study of objects: only names can be told to another process. And what ``sweep`` raises.
    ImportError
        submitit is missing.
    OSError
        Cells are left, since all processes have ended early; the error names their logs.
    """
    library = submitit()
    todo = _checked(study, folder)
    threads = max(1, (psutil.cpu_count() or 1) // n)
    executor = library.LocalExecutor(folder / LOGS)
    executor.update_parameters(timeout_min=YEAR)
    jobs = [executor.submit(Worker(study, folder, first=number * 100 // n, threads=threads)) for number in range(n)]
    try:
        for job in jobs:
            job.wait()
    except BaseException:  # Ctrl-C: the processes must not stay behind
        for job in jobs:
            job.cancel(check=False)
        raise
    if not all(cell.done() or cell.hopeless() for cell in todo):
        logs = ", ".join(str(job.paths.stderr) for job in jobs)
        raise OSError(f"{folder}: the processes ended before all cells were done; see {logs}, or start it again")
    return collect(folder)


def to_slurm(study: Study, folder: Path) -> list[str]:
    """Submit the cells that are not done as array jobs, K first, scores when all K have ended; the ids of the arrays.

    An element of an array makes cells of about an hour (A_JOB), more where there were more elements than the cluster takes. Its
    memory and time follow from ``estimate``. A job that is preempted, or whose node fails, is requeued and makes what is left.
    ``study.slurm`` has partition, account and the like. Raises what ``locally`` raises; an OSError where no SLURM answers.
    """
    library = submitit()
    if shutil.which("sbatch") is None:
        raise OSError("no sbatch here; submit from a machine of the cluster")
    todo = _checked(study, folder)
    guessed = estimate(study, folder, progress=False)
    seconds = {cell.title: took for cell, took in guessed.seconds.items()}
    ids: list[str] = []
    for name in ("K", "scores"):
        cells = [cell for cell in todo if stage(cell) == name and not cell.done()]
        if not cells:
            continue
        parts = list(chunks(cells, lambda cell: seconds[cell.title], array_limit()))
        executor = library.SlurmExecutor((folder / LOGS).resolve())
        executor.update_parameters(**_parameters(study.slurm, name, parts, seconds, after=ids))
        with executor.batch():
            jobs = [executor.submit(Worker(study, folder, tuple(cell.title for cell in part))) for part in parts]
        ids.append(jobs[0].job_id.partition("_")[0])
    return ids


def _checked(study: Study, folder: Path) -> list[Cell]:
    if not study.named:
        raise ValueError(
            "the study holds networks or recordings as objects, which another process cannot make; name them, or call sweep"
        )
    return prepare(study, folder)


def _parameters(
    given: Mapping[str, Any],
    name: str,
    parts: Sequence[Sequence[Cell]],
    seconds: Mapping[str, float],
    *,
    after: Sequence[str],
) -> dict[str, Any]:
    """What sbatch is asked for."""
    longest = max(sum(seconds[cell.title] for cell in part) for part in parts)
    found = {
        "job_name": f"cnnf-brain-{name}",
        "time": math.ceil(SAFETY * longest / 60) + START,
        "mem": f"{math.ceil(1.2 * max(cell.memory for part in parts for cell in part) / 2**20 + 1024 * BESIDE)}MB",
        **{key: value for key, value in given.items() if key not in ("K", "scores")},
        **given.get(name, {}),
    }
    found["additional_parameters"] = {"requeue": True, **found.get("additional_parameters", {})}
    return found | ({"dependency": f"afterany:{':'.join(after)}"} if after else {})


def chunks(cells: Sequence[T], seconds: Callable[[T], float], limit: int) -> Iterator[list[T]]:
    """Cells in their order, in at most ``limit`` parts of about the same time, each of A_JOB or more."""
    total = sum(map(seconds, cells))
    n = max(1, min(len(cells), limit, math.floor(total / A_JOB) or 1))
    part: list[T] = []
    behind, given = 0.0, 0
    for cell in cells:
        part.append(cell)
        behind += seconds(cell)
        if behind >= total * (given + 1) / n and given + 1 < n:
            yield part
            part, given = [], given + 1
    if part:
        yield part


def array_limit() -> int:
    """How many elements an array of the cluster may have; an OSError where no SLURM answers."""
    try:
        asked = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise OSError(f"SLURM does not answer (scontrol show config: {error})") from error
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", asked.stdout)
    return int(found[1]) if found else LIMIT
