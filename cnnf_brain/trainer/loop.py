"""Training: one step, epochs over images in memory, validation, and stopping and resuming without a trace.

What a run does is a function of its configuration alone: the order of the images in an epoch comes from seed and
epoch, so that a position in the data is two numbers, and everything else that changes is in the checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from cnnf_brain.attacks.gradient import NonFiniteOutput
from cnnf_brain.checks import unknown
from cnnf_brain.datasets.mnist import ImageSet, scale
from cnnf_brain.io import write_text
from cnnf_brain.model.cnnf import CNNF, recomputed
from cnnf_brain.model.state import REDUCTIONS, feedback_losses
from cnnf_brain.trainer import checkpoint
from cnnf_brain.trainer.adversary import Adversary
from cnnf_brain.trainer.config import check_same, environment, warn_of_change


class NonFiniteLoss(RuntimeError):
    """The loss or a weight is not finite any more; names the last good checkpoint."""


NORM_LOSS = 2  # 1 took the norm of f(l) behind its normalisation


@dataclass(frozen=True)
class LossWeights:
    """Weights of Table 1's losses beside the cross-entropy's 1; defaults as in Appendix B.1.

    ``reduction`` of the reconstruction loss over the elements of h: "mean", or "sum" as Table 1 prints it. The printed sum with
    weight w is the mean with weight w times the number of elements (784 for an MNIST image).

    Raises ValueError for another reduction.
    """

    reconstruction: float = 0.1
    latent: float = 0.0
    norm: float = 0.0
    reduction: str = "mean"

    def __post_init__(self) -> None:
        if self.reduction not in REDUCTIONS:
            raise unknown("reduction of the reconstruction loss", self.reduction, REDUCTIONS)

    def active(self) -> dict[str, float]:
        """Term -> weight, of those that are not zero; cross-entropy first."""
        weights = {"reconstruction": self.reconstruction, "latent": self.latent, "norm": self.norm}
        return {"cross_entropy": 1.0, **{term: weight for term, weight in weights.items() if weight}}

    def configuration(self) -> dict[str, Any]:
        """As JSON values; the reduction only where it is not the default, as in configurations from before it was there.

        Where the norm loss is used, ``norm_loss`` says which one: a network of another is not taken for one of this.
        """
        found = {name: value for name, value in asdict(self).items() if (name, value) != ("reduction", "mean")}
        return {**found, "norm_loss": NORM_LOSS} if self.norm else found


@dataclass(frozen=True)
class Schedule:
    """How long and in what portions; ``save_every`` steps there is a checkpoint within an epoch."""

    epochs: int
    batch_size: int
    seed: int
    save_every: int = 500

    def order(self, epoch: int, n_images: int) -> np.ndarray:
        """The order of the images in an epoch, from seed and epoch alone."""
        return np.random.default_rng([self.seed, epoch]).permutation(n_images)


@dataclass
class Progress:
    """Where a run is: epochs done, batches done of the next one, optimizer steps in all, seconds of training.

    ``sums``: each loss term at each iteration (N+1,), summed over the images of the epoch under way.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)


def losses(
    model: CNNF,
    images: Tensor,
    labels: Tensor,
    weights: LossWeights,
    clean: Tensor | None = None,
    *,
    recompute: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted total (Table 1), a scalar, and each term at each iteration, (N+1,).

    Each term enters as its mean over iterations 0..N: the paper's sum divided by N+1, which leaves the balance of the
    terms as it is and makes learning rates comparable over N. ``images`` (B, C, H, W) as the network takes them. ``clean``:
    the target features to be reconstructed, where they are not those of ``images`` (adversarial training).
    ``recompute``: see ``cnnf_brain.model.cnnf.recomputed``; without the losses that need states.
    """
    active = weights.active()
    if recompute:
        result = recomputed(model, images)
    else:
        states = not {"latent", "norm"}.isdisjoint(active)
        result = model.unroll(images, return_reconstruction="reconstruction" in active, return_states=states)
    terms = feedback_losses(model, result, labels, clean=clean, terms=tuple(active), reduction=weights.reduction)
    total = torch.stack([weight * terms[term].mean() for term, weight in active.items()]).sum()
    return total, terms


def mixed_precision(device: torch.device, amp: str | None) -> contextlib.AbstractContextManager[Any]:
    """torch.autocast to the dtype named ``amp`` ("bfloat16"); None: everything as it is."""
    return torch.autocast(device.type, dtype=getattr(torch, amp)) if amp else contextlib.nullcontext()


def train_step(
    model: CNNF,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    weights: LossWeights,
    clean: Tensor | None = None,
    amp: str | None = None,
) -> dict[str, Tensor]:
    """One optimizer step; the terms at each iteration (N+1,), detached, as they were before it. ``amp``: the forward pass in
    mixed precision.

    Raises
    ------
    NonFiniteLoss
        Before the weights are touched, where the total is not finite.
    """
    optimizer.zero_grad(set_to_none=True)
    with mixed_precision(images.device, amp):
        total, terms = losses(model, images, labels, weights, clean)
    if not torch.isfinite(total):
        raise NonFiniteLoss(f"the loss is {total.item()}")
    total.backward()
    optimizer.step()
    return {term: values.detach() for term, values in terms.items()}


@torch.no_grad()
def accuracy(model: CNNF, images: ImageSet, batch_size: int = 500) -> list[float]:
    """The share of ``images`` that is classified rightly, at each iteration 0..N (N+1 numbers)."""
    training = model.training
    model.eval()
    right = sum(
        (model.unroll(scale(batch.images)).logits.argmax(-1) == batch.labels).sum(1)
        for batch in (images[rows] for rows in torch.arange(len(images)).split(batch_size))
    )
    model.train(training)
    return (right.double() / len(images)).tolist()  # type: ignore[union-attr, operator]


class Stop:
    """A context in which SIGTERM and SIGINT set ``requested`` and end nothing; only a second SIGINT does."""

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None

    def __enter__(self) -> Stop:
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number)


class Log:
    """JSON lines, each with the epoch (or what ``by`` names) it tells of; lines of what a resumed run does again are
    taken out: those beyond ``done``."""

    def __init__(self, path: Path, done: int, by: str = "epoch") -> None:
        self.path = path
        kept = [line for line in self.read() if line[by] <= done]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_text(path, text)

    def read(self) -> list[dict[str, Any]]:
        """All whole lines (a killed process may leave a part of one at the end)."""
        lines = []
        for text in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                continue
        return lines

    def write(self, line: dict[str, Any]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")


class Trainer:
    """A training run in a folder: ``resume()``, then ``run(...)``.

    Parameters
    ----------
    model, optimizer, scheduler
        The scheduler, if any, steps after each optimizer step. The model is on the device that it trains on.
    weights, schedule
        Losses and duration.
    configuration
        All that decides the outcome (JSON values); a checkpoint of another configuration is refused.
    folder
        Gets ``checkpoints/`` and ``log.jsonl``. One process at a time.
    adversary
        Makes the images of a step adversarial; None is training on clean images.
    amp
        "bfloat16": steps in mixed precision, those of the adversary too; validation stays in float32.
    """

    def __init__(
        self,
        model: CNNF,
        optimizer: torch.optim.Optimizer,
        weights: LossWeights,
        schedule: Schedule,
        configuration: dict[str, Any],
        folder: Path,
        *,
        scheduler: LRScheduler | None = None,
        adversary: Adversary | None = None,
        amp: str | None = None,
    ) -> None:
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.adversary, self.amp = adversary, amp
        self.weights, self.schedule, self.configuration = weights, schedule, configuration
        self.checkpoints, self.log_path = folder / "checkpoints", folder / "log.jsonl"
        self.device = next(model.parameters()).device
        self.progress = Progress()

    def resume(self) -> Path | None:
        """Continue from the newest whole checkpoint, if there is one; its path.

        Raises
        ------
        ValueError
            Where it was made under another configuration (says what differs), or where all are damaged.
        """
        found = checkpoint.newest(self.checkpoints)
        if found is None:
            return None
        path, state = found
        check_same(state["configuration"], self.configuration, path)
        warn_of_change(state["environment"], environment(self.device), path)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        checkpoint.set_random_states(state["random"], self.device)
        self.progress = Progress(**state["progress"])
        return path

    def save(self) -> Path:
        """A checkpoint of now, whose weights are finite."""
        bad = [name for name, p in self.model.named_parameters() if not torch.isfinite(p).all()]
        if bad:
            raise NonFiniteLoss(f"weights are not finite ({', '.join(bad[:3])})")
        state = {
            "configuration": self.configuration,
            "environment": environment(self.device),
            "progress": vars(self.progress),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler and self.scheduler.state_dict(),
            "random": checkpoint.random_states(self.device),
        }
        return checkpoint.save_step(self.checkpoints, self.progress.step, state)

    def run(self, train: ImageSet, validation: ImageSet, stop: Stop | None = None) -> bool:
        """Train until the schedule's last epoch (True) or until a stop is requested (False); either way saved.

        Raises
        ------
        NonFiniteLoss
            Where the loss or a weight stops being finite; names the last good checkpoint.
        """
        checkpoint.clean(self.checkpoints)
        log = Log(self.log_path, self.progress.epoch)
        try:
            while self.progress.epoch < self.schedule.epochs:
                if not self.train_epoch(train, stop):
                    return False
                self.finish_epoch(log, len(train), validation)
        except NonFiniteLoss as error:
            good = next(iter(checkpoint.paths(self.checkpoints)), None)
            raise NonFiniteLoss(
                f"{error} in epoch {self.progress.epoch + 1} after step {self.progress.step}; last good "
                f"checkpoint: {good or 'none yet'}. Train anew with a smaller learning rate, step size or loss weight"
            ) from None
        return True

    def train_epoch(self, train: ImageSet, stop: Stop | None) -> bool:
        """The batches of the epoch that are still to be done; False, and a checkpoint, where a stop was requested."""
        at, size = self.progress, self.schedule.batch_size
        order = self.schedule.order(at.epoch, len(train))
        n_batches = -(-len(train) // size)
        self.model.train()
        begin = time.monotonic() - at.seconds
        title = f"epoch {at.epoch + 1}/{self.schedule.epochs}"
        rest = range(at.batch, n_batches)
        for number in tqdm(rest, title, n_batches, initial=at.batch, disable=None, leave=False):
            self.step(train[order[number * size : (number + 1) * size]])
            at.batch = number + 1
            at.seconds = time.monotonic() - begin
            stopping = stop is not None and stop.requested is not None
            if stopping or (at.step % self.schedule.save_every == 0 and at.batch < n_batches):
                self.save()
            if stopping:
                return False
        return True

    def step(self, batch: ImageSet) -> None:
        """One step on one batch, counted and summed up."""
        at = self.progress
        images, labels, clean = scale(batch.images), batch.labels, None
        if self.adversary is not None:
            try:
                with mixed_precision(self.device, self.amp):
                    images, labels, clean = self.adversary.batch(self.model, images, labels, at.step)
            except NonFiniteOutput as error:
                raise NonFiniteLoss(str(error)) from error
        terms = train_step(self.model, self.optimizer, images, labels, self.weights, clean, self.amp)
        if self.scheduler is not None:
            self.scheduler.step()
        for term, values in terms.items():
            at.sums[term] = at.sums.get(term, 0.0) + values.double().cpu() * len(batch)
        at.step += 1

    def finish_epoch(self, log: Log, n_images: int, validation: ImageSet) -> None:
        """Validate, log, save: in this order, a kill in between has the line written again, not lost."""
        at = self.progress
        right = accuracy(self.model, validation)
        means = {term: (values / n_images).tolist() for term, values in at.sums.items()}
        at.epoch, at.batch, at.sums = at.epoch + 1, 0, {}
        log.write(
            {
                "epoch": at.epoch,
                "step": at.step,
                "seconds": round(at.seconds, 1),
                "learning_rate": self.optimizer.param_groups[0]["lr"],
                "losses": means,
                "validation_accuracy": right,
            }
        )
        self.save()
        cross_entropy = " ".join(f"{value:.4f}" for value in means["cross_entropy"])
        shown = " ".join(f"{100 * share:.2f}" for share in right)
        tqdm.write(
            f"epoch {at.epoch}/{self.schedule.epochs}  step {at.step}  {at.seconds:.0f} s  "
            f"cross-entropy {cross_entropy}  validation accuracy {shown} %",
            sys.stderr,
        )
