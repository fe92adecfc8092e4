"""What a run measures and tells of itself: accuracy; JSON lines, TensorBoard, Weights & Biases; a progress bar or plain lines."""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from cnnf_brain.checks import in_short, peak_memory, unknown
from cnnf_brain.datasets.image_batches import Batch, Feed
from cnnf_brain.io import read_json_lines, read_text, write_text
from cnnf_brain.trainer.checkpoint import Position
from cnnf_brain.trainer.config import Schedule
from cnnf_brain.trainer.distributed import Ranks


@dataclass(frozen=True)
class Accuracy:
    """``top1`` and ``top5``: shares of the ``images`` images whose label comes first, or among the first five, at iterations
    0..N. ``bad``: path -> reason of the images that could not be decoded and are not counted."""

    top1: tuple[float, ...]
    top5: tuple[float, ...]
    images: int
    bad: Mapping[str, str] = field(default_factory=dict)


@torch.no_grad()
def measure(
    logits: Callable[[Tensor], Tensor], batches: DataLoader[Batch] | list[Batch], iterations: int, ranks: Ranks
) -> Accuracy:
    """The accuracy over all ranks; ``logits``: images of a batch, on the device of ``ranks`` -> (iterations + 1, B, K).

    ``batches``: this rank's part of one pass. Ranks may have unequally many images; each counts once.
    """
    feed = Feed(batches)
    counts = torch.zeros(3, iterations + 1, dtype=torch.float64, device=ranks.device)  # top-1, top-5, images
    for batch in tqdm(feed, "validation", len(batches), disable=hidden(ranks), leave=False, file=sys.stderr):
        if not len(batch.labels):
            continue
        images, labels = (part.to(ranks.device, non_blocking=True) for part in (batch.images, batch.labels))
        found = logits(images)
        right = found.topk(min(5, found.shape[-1]), dim=-1).indices == labels[None, :, None]
        counts[0] += right[..., 0].sum(1)
        counts[1] += right.any(-1).sum(1)
        counts[2] += len(labels)
    top1, top5, n = ranks.sum(counts)
    return Accuracy(tuple((top1 / n).tolist()), tuple((top5 / n).tolist()), int(n[0]), ranks.union(feed.bad))


def hidden(ranks: Ranks) -> bool | None:
    """Whether a progress bar is hidden; None: where there is no terminal."""
    return None if ranks.rank == 0 else True


class Tracker(Protocol):
    """Where the numbers of a run go: ``Log``, ``Board``, ``WandB``. Of a resumed run, it has those up to step ``done`` already."""

    def log(self, step: int, values: dict[str, Any]) -> None:
        """What is told of a step: numbers by name, in dicts and lists of them; also texts."""
        ...

    def close(self) -> None: ...


class Log:
    """JSON lines, each of a step; those of what a resumed run does again, beyond step ``done``, are taken out."""

    def __init__(self, path: Path, done: int) -> None:
        self.path = path
        kept = [line for line in self.read() if line["step"] <= done]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def read(self) -> list[dict[str, Any]]:
        """All lines of a step (a killed process may leave a part of one at the end)."""
        lines = read_json_lines(self.path)[0] if self.path.exists() else []
        return [line for line in lines if isinstance(line.get("step"), int)]

    def log(self, step: int, values: dict[str, Any]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def close(self) -> None:
        pass


class Board:
    """TensorBoard's files, in ``tensorboard/``; what was written beyond step ``done`` is dropped."""

    def __init__(self, folder: Path, done: int, configuration: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def log(self, step: int, values: dict[str, Any]) -> None:
        for name, value in numbers(values):
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run of Weights & Biases, which its own environment variables say more of (WANDB_PROJECT, WANDB_MODE). A resumed run goes on
    under its id, which stands in ``wandb-id``; what it does again Weights & Biases has already, and passes over."""

    def __init__(self, folder: Path, done: int, configuration: dict[str, Any]) -> None:
        import wandb

        path = folder / "wandb-id"
        if done < 0 or not path.exists():
            write_text(path, secrets.token_hex(8))
        how: dict[str, Any] = {"project": os.environ.get("WANDB_PROJECT", "cnnf-brain"), "config": configuration}
        self.run = wandb.init(**how, name=folder.name, dir=str(folder), id=read_text(path), resume="allow")

    def log(self, step: int, values: dict[str, Any]) -> None:
        if found := dict(numbers(values)):
            self.run.log(found, step=step)

    def close(self) -> None:
        self.run.finish()


TRACKER: dict[str, tuple[type[Board] | type[WandB], str]] = {  # name -> what logs to it, and the module that it needs
    "tensorboard": (Board, "torch.utils.tensorboard"),
    "wandb": (WandB, "wandb"),
}


def check_trackers(names: Iterable[str]) -> None:
    """A ValueError for a name that is no tracker's, an ImportError where its package is not installed."""
    for name in names:
        if name not in TRACKER:
            raise unknown("tracker", name, TRACKER)
        try:
            import_module(TRACKER[name][1])
        except ImportError as error:
            why = f"{in_short(error)}); pip install 'cnnf-brain[tracking]', or leave it out"
            raise ImportError(f"tracker {name!r} needs a package that cannot be imported ({why}") from error


class MetricLogger:
    """What rank 0 tells of a run, in lines for every ``log_every`` steps and for each validation; a context with a progress bar.

    ``folder`` gets ``log.jsonl``; the trackers of the ``schedule``, by default TensorBoard where it is installed, get the same and
    the ``configuration``. Lines beyond ``at`` are dropped; before the first step that is all of them, unless a validation is done.
    """

    with_board = True
    validates_first = True  # before the first step, where the curve of accuracy begins

    def __init__(self, folder: Path, configuration: dict[str, Any], schedule: Schedule, ranks: Ranks, at: Position) -> None:
        self.folder, self.configuration, self.schedule = folder, configuration, schedule
        self.ranks, self.first = ranks, at.step
        self.told = at.step if at.step or at.validation else -1
        self.named: set[str] = set()
        self.restart(at, 0.0)

    def restart(self, at: Position, waited: float) -> None:
        """The clock of the next line begins."""
        self.waited, self.counted, self.begin = waited, at.images, time.perf_counter()

    def __enter__(self) -> MetricLogger:
        self.trackers: list[Tracker] = []
        if self.ranks.rank == 0:
            self.trackers.append(Log(self.folder / "log.jsonl", self.told))
            for name in self.names():
                self.trackers.append(TRACKER[name][0](self.folder, self.told, self.configuration))
        total, disable = self.schedule.steps, hidden(self.ranks)
        self.bar = tqdm(total=total, initial=self.first, unit="step", disable=disable, file=sys.stderr)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        for tracker in self.trackers:
            tracker.close()

    def names(self) -> tuple[str, ...]:
        """The trackers: those asked for, else TensorBoard, or a word where it is not installed."""
        if self.schedule.track is not None or not self.with_board:
            return self.schedule.track or ()
        try:
            check_trackers(["tensorboard"])
        except ImportError:
            print("no TensorBoard files (pip install 'cnnf-brain[train]'); log.jsonl has the same numbers", file=sys.stderr)
            return ()
        return ("tensorboard",)

    def steps(self, at: Position, epoch: float, waited: float) -> None:
        """Tell of the steps whose sums are in ``at``; ``waited``: seconds in which the model waited for images so far."""
        seconds = time.perf_counter() - self.begin
        line: dict[str, Any] = {
            "step": at.step,
            "epoch": round(epoch, 4),
            **self.done(at),
            "gradient_norm": torch.tensor(at.norms).mean().item() if at.norms else None,
            "images_per_second": round((at.images - self.counted) / seconds, 2),
            "data_wait": round((waited - self.waited) / seconds, 4),
            "memory_mib": memory(self.ranks.device),
            "bad_images": len(at.bad),
        }
        speed = f"{line['images_per_second']:.1f} images/s  waited for data {100 * line['data_wait']:.0f} %"
        words = f"step {at.step}/{self.schedule.steps}  cross-entropy {entropy(line)}  {speed}"
        self.tell(line, words, quiet=not self.bar.disable)

    def done(self, at: Position) -> dict[str, Any]:
        """The entries that every line of steps has."""
        return {
            "seconds": round(at.seconds, 1),
            "learning_rate": self.schedule.learning_rate_at(at.step - 1),
            "losses": at.means(),
        }

    def validation(self, found: dict[str, Any]) -> None:
        """Tell of a validation: ``step``, ``top1``, ``top5``, ``images``."""
        shown = ", ".join(f"{name} {percent(found[name])} %" for name in ("top1", "top5"))
        line = {"step": found["step"], "validation": {name: value for name, value in found.items() if name != "step"}}
        self.tell(line, f"step {found['step']}/{self.schedule.steps}  validation {shown} of {found['images']} images")

    def skipped(self, step: int, bad: Mapping[str, str]) -> None:
        """Tell of damaged images (path -> reason), of each once."""
        for path in bad.keys() - self.named if self.ranks.rank == 0 else ():
            self.tell({"step": step, "bad_image": path, "reason": bad[path]}, f"skipped {path}: {bad[path]}")
        self.named |= set(bad)

    def tell(self, line: dict[str, Any], words: str, *, quiet: bool = False) -> None:
        """A line to the trackers, and its words to standard error."""
        if self.ranks.rank:
            return
        for tracker in self.trackers:
            tracker.log(line["step"], {name: value for name, value in line.items() if name != "step"})
        if not quiet:
            self.say(words)

    def say(self, words: str) -> None:
        """Words of rank 0 to standard error, beside the progress bar."""
        if self.ranks.rank == 0:
            tqdm.write(words, sys.stderr)


class EpochLogger(MetricLogger):
    """A line for each epoch, of its steps and of the validation at its end."""

    with_board = validates_first = False

    def steps(self, at: Position, epoch: float, waited: float) -> None:
        """Keep the line until the validation is known."""
        self.line = {"epoch": round(epoch), "step": at.step, **self.done(at)}

    def validation(self, found: dict[str, Any]) -> None:
        line = {**self.line, "validation_accuracy": found["top1"]}
        epochs = self.schedule.steps // self.schedule.validate_every
        words = f"epoch {line['epoch']}/{epochs}  step {line['step']}  {line['seconds']:.0f} s  "
        self.tell(line, words + f"cross-entropy {entropy(line)}  validation accuracy {percent(found['top1'])} %")


def entropy(line: Mapping[str, Any]) -> str:
    """The cross-entropy of a log line at each iteration."""
    return " ".join(f"{value:.4f}" for value in line["losses"]["cross_entropy"])


def percent(shares: Collection[float]) -> str:
    """Shares in percent."""
    return " ".join(f"{100 * share:.2f}" for share in shares)


def numbers(line: Any, name: str = "") -> list[tuple[str, float]]:
    """The numbers of what is told of a step, with names as TensorBoard takes them (``losses/cross_entropy/2``)."""
    if isinstance(line, dict | list):
        items = line.items() if isinstance(line, dict) else enumerate(line)
        return [pair for key, value in items for pair in numbers(value, f"{name}/{key}".lstrip("/"))]
    return [(name, line)] if isinstance(line, int | float) else []


def memory(device: torch.device) -> int:
    """The most memory used so far, MiB: of the card, else of this process (without those that decode)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    return peak_memory() // 2**20
