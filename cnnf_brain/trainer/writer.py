"""Checkpoints are written beside training: the steps go on while a thread writes, on several ranks each its share.

Not by torch.distributed.checkpoint, whose metadata is a pickle: reading it can run code.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnf_brain.io import open_file
from cnnf_brain.trainer import checkpoint
from cnnf_brain.trainer.distributed import Ranks

SHARED = ("model/", "optimizer/", "average/")  # the same on all ranks
PATIENCE = 600.0  # seconds that rank 0 waits for the shares of the others


class Writer:
    """Writes the checkpoints of a run into ``folder``; all but the last ``keep`` are removed.

    A context. ``save`` copies the state and returns; a thread writes, one checkpoint at a time. The OSError of one that was not
    written comes with the next ``check``, ``save`` or ``wait``, or at the end of the context. The first is read back and compared.
    """

    def __init__(self, folder: Path, keep: int = 3, ranks: Ranks | None = None) -> None:
        self.folder, self.keep, self.ranks = folder, keep, Ranks() if ranks is None else ranks
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.compared = False

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.thread is not None:
            self.thread.join()
        if kind is None:
            self.check()

    def check(self) -> None:
        """Raise what went wrong so far."""
        if self.error is not None:
            raise self.error

    def wait(self) -> None:
        """Until all is written."""
        self.__exit__(None)

    def save(self, step: int, state: dict[str, Any], alone: tuple[str, ...] = ()) -> None:
        """Begin to write a checkpoint of ``step``, after the one before. Every rank calls it with the same ``state``, see
        ``checkpoint.apart``; rank 0 may have entries ``alone`` (how their names begin)."""
        self.wait()
        rest, tensors = checkpoint.apart(state)
        ranks, path = self.ranks, self.folder / f"checkpoint-{step:09d}.safetensors"
        metadata, others = {"format": checkpoint.FORMATS[0]}, list[Path]()
        if ranks.size > 1:
            tensors = share(tensors, ranks, alone)
            mark = f"{int(ranks.sum(torch.tensor(0 if ranks.rank else secrets.randbelow(2**32)))):08x}"
            metadata = {"format": checkpoint.FORMATS[1], "mark": mark}
            others = [self.folder / checkpoint.share_name(step, mark, rank) for rank in range(1, ranks.size)]
        if ranks.rank:
            path, rest, others = others[ranks.rank - 1], "", []
        arguments = (path, rest, checkpoint.copied(tensors), metadata, others)
        self.thread = threading.Thread(target=self._work, args=arguments, daemon=True)
        self.thread.start()

    def _work(self, *arguments: Any) -> None:
        try:
            self._write(*arguments)
        except BaseException as error:  # raised again in the thread that trains
            self.error = error

    def _write(
        self, path: Path, rest: str, tensors: dict[str, Tensor], metadata: dict[str, str], others: list[Path]
    ) -> None:
        """Write this rank's file; rank 0 waits for the ``others``, since with its file the checkpoint is there."""
        end = time.monotonic() + PATIENCE
        while missing := [other.name for other in others if not other.exists()]:
            if time.monotonic() > end:
                raise OSError(f"{path} was not written: other processes did not write {', '.join(missing)}")
            time.sleep(0.01)
        digest = checkpoint.write(path, rest, tensors, metadata)
        if not self.compared and read_back(path) != digest:
            raise OSError(f"{path} is read back as something else than was written; choose a folder on another disk")
        self.compared = True
        if self.ranks.rank == 0:
            checkpoint.prune(self.folder, self.keep)


def share(tensors: dict[str, Tensor], ranks: Ranks, alone: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Those of ``tensors`` that this rank writes: an even part of SHARED but for ``alone``. Rank 0 writes all others."""
    loads, mine = [0] * ranks.size, {}
    for name in sorted(tensors, key=lambda name: (-tensors[name].nbytes, name)):
        even = name.startswith(SHARED) and not name.startswith(alone)
        rank = loads.index(min(loads)) if even else 0
        loads[rank] += tensors[name].nbytes if even else 0
        if rank == ranks.rank:
            mine[name] = tensors[name]
    return mine


def read_back(path: Path) -> str | None:
    """The SHA-256 over what is in a file; None where it is damaged. Read from the disk, where the system can be made to forget what
    it has in memory."""
    if hasattr(os, "posix_fadvise"):
        with open_file(path) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        return checkpoint.read(path)[0]["sha256"]
    except checkpoint.DamagedCheckpoint:
        return None


def check_space(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, keep: int, *, averaged: bool = False
) -> None:
    """An OSError unless there is room for the ``keep`` checkpoints that stay, another being written, and two files of weights.
    ``averaged``: checkpoints hold a moving average of the weights besides."""
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    trained = sum(weight.nbytes for group in optimizer.param_groups for weight in group["params"])
    momentum = optimizer.defaults.get("momentum")
    size = weights * (1 + averaged) + trained * (2 if momentum is None else int(momentum > 0))  # Adam, or SGD
    needed = (keep + 1) * size + 2 * weights - sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    free = shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.exists())).free
    if free < needed:
        raise OSError(
            f"{folder}: {needed / 2**20:.0f} MiB are needed for {keep + 1} checkpoints of {size / 2**20:.0f} MiB and for weights, "
            f"{free / 2**20:.0f} MiB are free; free space, choose another folder or keep fewer checkpoints"
        )
