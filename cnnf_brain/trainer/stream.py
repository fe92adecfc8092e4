"""Training on images from disk, step after step, in one process or many.

What a step does is a function of the recipe, the weights before it and its number: the images come from (seed, step), the
random numbers of dropout from (seed, step, rank). So the position of a run is one number, and on as many ranks a run that
was stopped goes on as if it had not been. On another number of ranks the images of every step are the same and so is the
gradient, up to rounding and to the masks of dropout.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cnnf_brain.datasets.image_batches import Batch, Feed, check_bad, normalise, training_loader, validation_loader
from cnnf_brain.datasets.image_index import ImageIndex
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.trainer import checkpoint
from cnnf_brain.trainer.config import check_same, environment, warn_of_change
from cnnf_brain.trainer.distributed import Ranks
from cnnf_brain.trainer.evaluation import Accuracy, measure
from cnnf_brain.trainer.loop import NonFiniteLoss, Stop, losses, mixed_precision
from cnnf_brain.trainer.metrics import MetricLogger
from cnnf_brain.trainer.recipe import Recipe
from cnnf_brain.trainer.start import train_mode


class Objective(nn.Module):
    """Images (B, 3, H, W) as the network takes them and labels (B,) -> the weighted total and each term at each iteration
    (N+1,), summed over the images. Of no images: zeros, of which every weight has the gradient 0, so that no rank waits
    for this one."""

    def __init__(self, model: CNNF, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if not len(images):
            zero = torch.stack([parameter.sum() for parameter in self.model.parameters()]).sum() * 0
            return zero, {term: zero.detach().expand(self.model.iterations + 1) for term in self.recipe.losses.active()}
        with mixed_precision(images.device, self.recipe.amp):
            total, terms = losses(
                self.model, images, labels, self.recipe.losses, recompute=self.recipe.checkpoint_iterations
            )
        n = len(images)
        return total * n, {term: values.detach().float() * n for term, values in terms.items()}


@dataclass
class Position:
    """Where a run is, as JSON values: steps done, seconds of training, what validation said last and at best (see
    ``validate``), and the damaged training images met so far, path -> reason."""

    step: int = 0
    seconds: float = 0.0
    validation: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    bad: dict[str, str] = field(default_factory=dict)


class StreamTrainer:
    """A training run in a folder: ``resume()``, then ``run(...)``; every rank does the same, rank 0 writes.

    Parameters
    ----------
    model
        On the device of ``ranks``, where it has the same weights in each.
    configuration
        All that decides the outcome (JSON values); a checkpoint of another configuration is refused.
    folder
        Gets ``checkpoints/``, ``log.jsonl`` and what TensorBoard reads; all ranks see the same one.
    on_best
        Called on rank 0 after a validation better than any before it (top-1 at the last iteration).
    """

    def __init__(
        self,
        model: CNNF,
        recipe: Recipe,
        configuration: dict[str, Any],
        folder: Path,
        ranks: Ranks,
        on_best: Callable[[dict[str, Any]], object] = lambda _: None,
    ) -> None:
        self.model, self.recipe, self.configuration, self.ranks, self.on_best = model, recipe, configuration, ranks, on_best
        self.folder, self.checkpoints = folder, folder / "checkpoints"
        self.surroundings = {**environment(ranks.device), "ranks": ranks.size, **recipe.means()}
        if recipe.channels_last:
            model.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        self.position = Position()

    def resume(self) -> Path | None:
        """Continue from the newest whole checkpoint, if there is one; its path.

        Raises
        ------
        ValueError
            Where it is of another configuration (says what differs) or beyond the last step, or where all are damaged.
        """
        found = checkpoint.newest(self.checkpoints)
        if found is None:
            return None
        path, state = found
        check_same(state["configuration"], self.configuration, path)
        if self.ranks.rank == 0:
            warn_of_change(state["environment"], self.surroundings, path)
        self.position = Position(**state["position"])
        if self.position.step > self.recipe.steps:
            raise ValueError(f"{path} has made {self.position.step} steps, more than the {self.recipe.steps} asked for; "
                             "choose another output folder")  # fmt: skip
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        return path

    def run(self, train: ImageIndex, validation: ImageIndex, stop: Stop | None = None) -> bool:
        """Validate, then train to the recipe's last step (True) or until a stop is requested of any rank (False); either way saved.

        Raises
        ------
        NonFiniteLoss
            Where the loss or a weight stops being finite; names the last good checkpoint.
        TooManyBadImages
            Where a greater share of the images than ``max_bad`` cannot be decoded.
        """
        at, recipe, ranks = self.position, self.recipe, self.ranks
        if ranks.rank == 0:
            checkpoint.clean(self.checkpoints)
        self.objective = self.prepared()
        feed = Feed(self.loader(train))
        judged = at.validation is not None and at.validation["step"] == at.step
        try:
            with MetricLogger(self.folder, recipe, at.step, ranks, len(train), anew=not at.step and not judged) as teller:
                if not judged and at.step in (0, recipe.steps):  # where the curve of accuracy begins, and where it ends
                    self.judge(teller, validation)
                    if at.step:
                        self.save()
                while at.step < recipe.steps:
                    begin = time.perf_counter()
                    batch = next(feed)
                    n_good, stops = ranks.sum(
                        torch.tensor([len(batch.labels), stop is not None and stop.requested is not None])
                    )
                    if stops:
                        self.window(teller, feed, len(train))
                        self.save()
                        return False
                    teller.add(*self.step(batch, int(n_good)), n_local=len(batch.labels))
                    at.seconds += time.perf_counter() - begin
                    last = at.step == recipe.steps
                    validates, saves = last or at.step % recipe.validate_every == 0, at.step % recipe.save_every == 0
                    if validates or saves or at.step % recipe.log_every == 0:
                        self.window(teller, feed, len(train))
                    if validates:
                        self.judge(teller, validation)
                    if validates or saves:
                        self.save()
        except NonFiniteLoss as error:
            good = next(iter(checkpoint.paths(self.checkpoints)), None)
            raise NonFiniteLoss(
                f"{error} at or shortly before step {at.step}; last good checkpoint: {good or 'none yet'}. Train anew with a "
                "smaller learning rate, step size or loss weight, or with clip"
            ) from None
        finally:
            del feed  # ends its workers while Python is still whole
        return True

    def prepared(self) -> nn.Module:
        """The objective, compiled and spread over ranks as the recipe says."""
        objective: nn.Module = Objective(self.model, self.recipe)
        if self.recipe.compile:
            objective.compile()
        if self.ranks.size > 1:
            cards = [self.ranks.device.index] if self.ranks.device.type == "cuda" else None
            objective = DistributedDataParallel(objective, cards)
        return objective

    def loader(self, train: ImageIndex) -> Any:
        recipe, ranks = self.recipe, self.ranks
        return training_loader(train, recipe.image_size, recipe.batch_size, seed=recipe.seed, start=self.position.step,
                               rank=ranks.rank, world_size=ranks.size, workers=recipe.workers, device=ranks.device,
                               resize=recipe.resize)  # fmt: skip

    def step(self, batch: Batch, n_good: int) -> tuple[dict[str, Tensor], Tensor]:
        """One optimizer step on this rank's part of a batch of ``n_good`` images over all ranks.

        Its gradient is that of the mean over those images, however they are divided over ranks and portions. Returns the
        terms at each iteration summed over this rank's images, and the norm of the gradient before it is clipped.
        """
        at, recipe = self.position, self.recipe
        train_mode(self.model)
        torch.manual_seed(step_seed(recipe.seed, at.step, self.ranks.rank))
        images, labels = (part.to(self.ranks.device, non_blocking=True) for part in (batch.images, batch.labels))
        images = normalise(images).contiguous(
            memory_format=torch.channels_last if recipe.channels_last else torch.contiguous_format
        )
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        portions = list(zip(images.tensor_split(recipe.accumulate), labels.tensor_split(recipe.accumulate), strict=True))
        for i, portion in enumerate(portions):
            exchanges_later = isinstance(self.objective, DistributedDataParallel) and i + 1 < len(portions)
            with self.objective.no_sync() if exchanges_later else contextlib.nullcontext():  # type: ignore[operator]
                total, terms = self.objective(*portion)
                (total * (self.ranks.size / max(n_good, 1))).backward()  # ranks' gradients are averaged
            sums = {term: values + sums.get(term, 0.0) for term, values in terms.items()}
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), math.inf if recipe.clip is None else recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(at.step)
        self.optimizer.step()
        at.step += 1
        return sums, norm

    def window(self, teller: MetricLogger, feed: Feed, n_train: int) -> None:
        """Sum up, check and log the steps since the last time."""
        at = self.position
        bad = self.ranks.union(feed.bad)
        new = {path: reason for path, reason in bad.items() if path not in at.bad}
        at.bad |= new
        finite = teller.window(at.step, at.seconds, feed.waited, new, len(at.bad))
        if not finite:
            raise NonFiniteLoss("the loss or its gradient is not finite")
        check_bad(at.bad, n_train, self.recipe.max_bad, "training")

    def judge(self, teller: MetricLogger, validation: ImageIndex) -> None:
        """Validate, remember, and let the best after a step be kept."""
        at = self.position
        found = validate(self.model, validation, self.recipe, self.ranks)
        check_bad(found.bad, len(validation), self.recipe.max_bad, "validation")
        at.validation = {"step": at.step, "top1": list(found.top1), "top5": list(found.top5), "images": found.images}
        teller.validation(at.validation, dict(found.bad))
        if at.step and (at.best is None or found.top1[-1] > at.best["top1"][-1]):
            at.best = at.validation
            if self.ranks.rank == 0:
                self.on_best(at.best)

    def save(self) -> None:
        """A checkpoint of now by rank 0, whose weights are finite."""
        if self.ranks.rank == 0:
            bad = [name for name, p in self.model.named_parameters() if not torch.isfinite(p).all()]
            if bad:
                raise NonFiniteLoss(f"weights are not finite ({', '.join(bad[:3])})")
            state = {
                "configuration": self.configuration,
                "environment": self.surroundings,
                "position": vars(self.position),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
            checkpoint.save_step(self.checkpoints, self.position.step, state, keep=self.recipe.keep)
        self.ranks.wait()


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of all that a rank draws in a step."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])


def validate(model: CNNF, index: ImageIndex, recipe: Recipe, ranks: Ranks) -> Accuracy:
    """The accuracy over the images of ``index``, in float32, as the weights will be used, on the model itself."""
    model.eval()
    loader = validation_loader(index, recipe.image_size, recipe.batch_size, rank=ranks.rank, world_size=ranks.size,
                               workers=recipe.workers, device=ranks.device, resize=recipe.resize)  # fmt: skip
    return measure(lambda images: model.unroll(normalise(images)).logits, loader, model.iterations, ranks)
