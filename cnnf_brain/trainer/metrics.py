"""What a run on images from disk tells of itself: JSON lines, TensorBoard, a progress bar or plain lines."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cnnf_brain.trainer.distributed import Ranks
from cnnf_brain.trainer.loop import Log
from cnnf_brain.trainer.recipe import Recipe


class MetricLogger:
    """Sums up steps and tells of them; a context, within which the progress bar stands.

    Every rank adds its steps and takes part in ``window``; rank 0 writes. ``step``: those done; ``anew``: what the folder tells
    of step 0 goes too, as it is told again.
    """

    def __init__(self, folder: Path, recipe: Recipe, step: int, ranks: Ranks, n_images: int, *, anew: bool = False) -> None:
        self.recipe, self.ranks, self.n_images = recipe, ranks, n_images
        self.folder, self.first, self.told = folder, step, -1 if anew else step
        self.sums: dict[str, Tensor] = {}
        self.norms: list[Tensor] = []
        self.named: set[str] = set()
        self.n_local, self.waited, self.begin = 0, 0.0, time.perf_counter()

    def __enter__(self) -> MetricLogger:
        self.board: Any = None
        if self.ranks.rank == 0:
            self.log = Log(self.folder / "log.jsonl", self.told, by="step")
            self.board = tensorboard(self.folder / "tensorboard", self.told)
        hidden = None if self.ranks.rank == 0 else True  # None: hidden where there is no terminal
        self.bar = tqdm(total=self.recipe.steps, initial=self.first, unit="step", disable=hidden, file=sys.stderr)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        if self.board is not None:
            self.board.close()

    def add(self, sums: dict[str, Tensor], norm: Tensor, *, n_local: int) -> None:
        """One step: terms summed over this rank's images, the norm of the gradient. Nothing is read from the device."""
        self.sums = {term: values.double() + self.sums.get(term, 0.0) for term, values in sums.items()}
        self.norms.append(norm.detach())
        self.n_local += n_local
        self.bar.update()

    def window(self, step: int, seconds: float, waited: float, new_bad: dict[str, str], n_bad: int) -> bool:
        """Tell of the steps since the last window; whether loss and gradient were finite in all ranks."""
        if not self.norms:
            return True
        now = time.perf_counter()
        totals = {term: self.ranks.sum(values) for term, values in self.sums.items()}
        norm = torch.stack(self.norms).mean().item()
        n = int(self.ranks.sum(torch.tensor([self.n_local])))
        finite = torch.tensor([*(values.isfinite().all() for values in totals.values()), torch.tensor(norm).isfinite()])
        line: dict[str, Any] = {
            "step": step,
            "epoch": round(step * self.recipe.batch_size / self.n_images, 4),
            "seconds": round(seconds, 1),
            "learning_rate": self.recipe.learning_rate_at(step - 1),
            "losses": {term: (values / max(n, 1)).tolist() for term, values in totals.items()},
            "gradient_norm": norm,
            "images_per_second": round(n / (now - self.begin), 2),
            "data_wait": round((waited - self.waited) / (now - self.begin), 4),
            "memory_mib": memory(self.ranks.device),
            "bad_images": n_bad,
        }
        self.sums, self.norms, self.n_local, self.waited, self.begin = {}, [], 0, waited, now
        if self.ranks.rank == 0 and finite.all():
            for path, reason in new_bad.items():
                self.tell({"step": step, "bad_image": path, "reason": reason}, f"skipped {path}: {reason}")
            entropy = " ".join(f"{value:.4f}" for value in line["losses"]["cross_entropy"])
            words = (f"step {step}/{self.recipe.steps}  cross-entropy {entropy}  {line['images_per_second']:.1f} images/s  "
                     f"waited for data {100 * line['data_wait']:.0f} %")  # fmt: skip
            self.tell(line, words, quiet=not self.bar.disable)
        return bool(finite.all())

    def validation(self, found: dict[str, Any], bad: dict[str, str]) -> None:
        """Tell of a validation, and of its damaged images that were not named before."""
        self.begin = time.perf_counter()
        if self.ranks.rank:
            return
        for path, reason in bad.items():
            if path not in self.named:
                self.tell({"step": found["step"], "bad_image": path, "reason": reason}, f"skipped {path}: {reason}")
        self.named |= set(bad)
        shown = ", ".join(f"{name} {' '.join(f'{100 * share:.2f}' for share in found[name])} %" for name in ("top1", "top5"))
        line = {"step": found["step"], "validation": {name: value for name, value in found.items() if name != "step"}}
        self.tell(line, f"step {found['step']}/{self.recipe.steps}  validation {shown} of {found['images']} images")

    def tell(self, line: dict[str, Any], words: str, *, quiet: bool = False) -> None:
        """A line to the log and TensorBoard, and its words to standard error."""
        self.log.write(line)
        if self.board is not None:
            for name, value in numbers(line):
                self.board.add_scalar(name, value, line["step"])
            self.board.flush()
        if not quiet:
            tqdm.write(words, sys.stderr)


def numbers(line: Any, name: str = "") -> list[tuple[str, float]]:
    """The numbers of a log line with names as TensorBoard takes them (``losses/cross_entropy/2``)."""
    if isinstance(line, dict | list):
        items = line.items() if isinstance(line, dict) else enumerate(line)
        return [pair for key, value in items for pair in numbers(value, f"{name}/{key}".lstrip("/"))]
    return [(name, line)] if isinstance(line, int | float) and name != "step" else []


def tensorboard(folder: Path, step: int) -> Any:
    """A writer that drops what was written beyond ``step``; None, and a word, where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("no TensorBoard files (pip install 'cnnf-brain[train]'); log.jsonl has the same numbers", file=sys.stderr)
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)


def memory(device: torch.device) -> int:
    """The most memory used so far, MiB: of the card, else of this process (without those that decode)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10)
