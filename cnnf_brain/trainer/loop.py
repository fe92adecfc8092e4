"""The training loop, for images in memory and from disk, in one process or many: losses, steps, validation, stop and resume.

What a step does is a function of the configuration, the weights before it and its number: the images come from (seed, step),
the random numbers of dropout from (seed, step, rank). So a run that was stopped goes on as if it had not been; on another number
of ranks up to rounding and to the masks of dropout.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cnnf_brain.attacks.gradient import NonFiniteOutput
from cnnf_brain.checks import RunError, differences, running
from cnnf_brain.datasets.image_batches import Batch, Feed, Source, check_bad
from cnnf_brain.io import write_json, write_text
from cnnf_brain.model.cnnf import CNNF, recomputed
from cnnf_brain.model.state import feedback_losses
from cnnf_brain.results import machine
from cnnf_brain.trainer import checkpoint
from cnnf_brain.trainer.checkpoint import Position
from cnnf_brain.trainer.config import LossWeights, Schedule, check_amp, check_same, environment
from cnnf_brain.trainer.descent import Descent
from cnnf_brain.trainer.distributed import Ranks
from cnnf_brain.trainer.metrics import Accuracy, MetricLogger
from cnnf_brain.trainer.writer import Writer, check_space
from cnnf_brain.work import Stop


class NonFiniteLoss(RunError):
    """The loss or a weight is not finite any more; names the last good checkpoint."""


def losses(
    model: CNNF,
    images: Tensor,
    labels: Tensor,
    weights: LossWeights,
    clean: Tensor | None = None,
    *,
    recompute: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted total (Table 1), a scalar, and each term at each iteration, (N+1,), for ``images`` as the network takes them.

    Each term enters as its mean over iterations 0..N: the paper's sum divided by N+1, which leaves the balance of the
    terms as it is and makes learning rates comparable over N. ``clean``: the target features to be reconstructed, where they are
    not those of ``images``. ``recompute``: see ``model.cnnf.recomputed``; without the losses that need states.
    """
    active = weights.active()
    if recompute:
        result = recomputed(model, images)
    else:
        states = not {"latent", "norm"}.isdisjoint(active)
        result = model.unroll(images, return_reconstruction="reconstruction" in active, return_states=states)
    how: dict[str, Any] = {"reduction": weights.reduction, "smoothing": weights.smoothing}
    terms = feedback_losses(model, result, labels, clean=clean, terms=tuple(active), **how)
    total = torch.stack([weight * terms[term].mean() for term, weight in active.items()]).sum()
    return total, terms


def mixed_precision(device: torch.device, amp: str | None) -> AbstractContextManager[Any]:
    """torch.autocast to the dtype named ``amp`` (of ``config.AMPS``); None: everything as it is."""
    return torch.autocast(device.type, dtype=getattr(torch, amp)) if amp else contextlib.nullcontext()


class Objective(nn.Module):
    """``losses`` as a module. Of no images: zeros, of which every weight has the gradient 0, so that no rank waits for this one.

    ``amp``: the forward pass in mixed precision, see ``mixed_precision``. ``recompute``, ``clean``: see ``losses``.
    """

    def __init__(self, model: CNNF, weights: LossWeights, *, amp: str | None = None, recompute: bool = False) -> None:
        super().__init__()
        self.model, self.weights, self.amp, self.recompute = model, weights, amp, recompute

    def forward(self, images: Tensor, labels: Tensor, clean: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        if not len(images):
            zero = torch.stack([parameter.sum() for parameter in self.model.parameters()]).sum() * 0
            return zero, {term: zero.detach().expand(self.model.iterations + 1) for term in self.weights.active()}
        with mixed_precision(images.device, self.amp):
            total, terms = losses(self.model, images, labels, self.weights, clean, recompute=self.recompute)
        return total, {term: values.detach() for term, values in terms.items()}


@dataclass(frozen=True)
class Run:
    """Where a run lies and what it is.

    ``folder`` gets ``checkpoints/``, ``log.jsonl`` and what TensorBoard reads; all ranks see the same one. ``configuration``: all
    that decides the outcome (JSON values); a checkpoint of another one is refused. ``rounding``: what decides the rounding alone;
    a checkpoint of another one is continued with a warning.
    """

    folder: Path
    configuration: dict[str, Any]
    rounding: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Hooks:
    """What a kind of training does in its own way.

    ``validate``: the accuracy of the network of now, over all ranks. ``best``: called on rank 0 with the network and a validation
    better than any before it (top-1 at the last iteration), after at least one step. ``perturb``: images, labels and number of a
    step -> the images and labels that it is trained on, and the clean target features of each; None: as they are. ``logger``: the
    form of the log. ``watchful``: look at the loss before each step, for which the device is waited for; else only at the log.
    """

    validate: Callable[[CNNF], Accuracy]
    best: Callable[[CNNF, dict[str, Any]], object] = lambda *_: None
    perturb: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor, Tensor]] | None = None
    logger: type[MetricLogger] = MetricLogger
    watchful: bool = False


class Trainer:
    """A training run in a folder: ``begin(...)`` or ``resume()``, then ``run(...)``; every rank does the same, rank 0 writes.

    ``objective`` has the model, on the device of ``ranks``, where it has the same weights in each; a ValueError where the device
    is too slow in its ``amp`` (``config.check_amp``). The learning rate of the ``optimizer`` is set by ``schedule``.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        source: Source,
        schedule: Schedule,
        run: Run,
        hooks: Hooks,
        ranks: Ranks,
    ) -> None:
        check_amp(objective.amp, ranks.device)
        self.model, self.optimizer, self.source, self.schedule = objective.model, optimizer, source, schedule
        self.place, self.hooks, self.ranks = run, hooks, ranks
        self.amp, self.checkpoints = objective.amp, run.folder / "checkpoints"
        self.surroundings = {**environment(ranks.device), **run.rounding}
        self.descent = Descent(self.model, optimizer, schedule.ema, objective.amp, ranks)
        self.objective: nn.Module = objective
        if schedule.compile:
            objective.compile()
        if ranks.size > 1:
            cards = [ranks.device.index] if ranks.device.type == "cuda" else None
            self.objective = DistributedDataParallel(objective, cards)
        self.position = Position()
        self.go_on()

    def begin(self, record: dict[str, Any], introduction: str, *, insist: bool = False, flags: str = "") -> None:
        """``resume``; then write ``record`` to ``config.json`` and ``flags`` to ``config.toml``, where there are any, and print the
        introduction and what is continued."""
        found = self.resume(insist=insist)
        if self.ranks.rank == 0:
            folder, device = self.place.folder, self.ranks.device
            write_json(folder / "config.json", {**record, "environment": environment(device)})
            if flags:
                write_text(folder / "config.toml", flags)
            start = f"continuing {found}" if found else "from the start"
            print(f"{introduction}{start}, on {machine(device)}, output {folder}", flush=True)

    def resume(self, *, insist: bool = False) -> Path | None:
        """Continue from the newest whole checkpoint, if there is one; its path. A RuntimeWarning where the surroundings are others.

        A ValueError where it is of another configuration or beyond the last step, or where all are damaged; with ``insist`` where
        there is none.
        """
        found = checkpoint.newest(self.checkpoints)
        if found is None:
            if insist:
                raise ValueError(f"{self.place.folder} has no checkpoint to continue; to start there, do not insist on one")
            return None
        path, state = found
        check_same(state["configuration"], self.place.configuration, path)
        changed = differences(state["environment"], self.surroundings)
        if changed and self.ranks.rank == 0:
            warnings.warn(
                f"{path} was made in other surroundings ({'; '.join(changed)}): the run continues, but not "
                "bit for bit as it would have there",
                RuntimeWarning,
                stacklevel=2,
            )
        self.position = Position.of(state, len(self.source))
        if self.position.step > self.schedule.steps:
            raise ValueError(
                f"{path} has made {self.position.step} steps, more than the {self.schedule.steps} asked for; "
                "choose another output folder"
            )
        self.descent.load(state, self.position.step)
        self.go_on()
        return path

    def go_on(self) -> None:
        """This rank's sums go on from those of the position, which rank 0 takes over."""
        mine = self.ranks.rank == 0
        sums = self.position.sums.items()
        self.sums = {term: (values if mine else 0 * values).to(self.ranks.device) for term, values in sums}
        self.images, self.norms = 0, list[Tensor]()

    def run(self, stop: Stop | None = None) -> bool:
        """Validate, then train to the last step (True) or until a stop is requested of any rank (False); either way saved.

        Raises NonFiniteLoss, which names the last good checkpoint, TooManyBadImages (see ``check_bad``), and OSError where there is
        no room for the checkpoints or one cannot be written.
        """
        if self.ranks.rank == 0:
            checkpoint.clean(self.checkpoints)
            averaged = self.schedule.ema is not None
            check_space(self.checkpoints, self.model, self.optimizer, self.schedule.keep, averaged=averaged)
        at, self.feed = self.position, Feed(self.source.batches(self.position.step))
        self.writer = Writer(self.checkpoints, self.schedule.keep, self.ranks)
        try:
            logger = self.hooks.logger(self.place.folder, self.place.configuration, self.schedule, self.ranks, at)
            with logger as self.logger, self.writer:
                if self.schedule.validates(at.step) and not at.judged and (at.step or self.logger.validates_first):
                    self.settle()
                while at.step < self.schedule.steps:
                    if not self.next_step(stop):
                        return False
                    self.settle()
        except NonFiniteLoss as error:
            good = next(iter(checkpoint.paths(self.checkpoints)), None)
            raise NonFiniteLoss(
                f"{error} in epoch {math.floor(self.source.epochs(at.step)) + 1} after step {at.step}; last good "
                f"checkpoint: {good or 'none yet'}. Train anew with a smaller learning rate, step size or loss weight, or "
                "with gradients clipped"
            ) from None
        finally:
            del self.feed  # ends its workers while Python is still whole
        return True

    def next_step(self, stop: Stop | None) -> bool:
        """The next step; False, and a checkpoint instead, where a stop is requested."""
        begin = time.perf_counter()
        self.writer.check()
        batch = next(self.feed)
        requested = stop.requested if stop is not None else None
        n_good, stops = self.ranks.sum(torch.tensor([len(batch.labels), requested is not None])).tolist()
        if stops:
            self.gather()
            self.save()
            self.writer.wait()
            self.ranks.wait()  # the end of a rank may end the others, which may still write
            why = requested.name if requested else "a signal to another rank"
            self.logger.say(f"stopped by {why} after step {self.position.step}, saved; the same command continues")
            return False
        self.step(batch, int(n_good))
        self.position.seconds += time.perf_counter() - begin
        return True

    def step(self, batch: Batch, n_good: int) -> Tensor:
        """One optimizer step on this rank's part of a batch of ``n_good`` images over all ranks; the norm of its gradient.

        The gradient is that of the mean over those images, however they are divided over ranks and portions.
        """
        at, plan = self.position, self.schedule
        train_mode(self.model)
        torch.manual_seed(step_seed(plan.seed, at.step, self.ranks.rank))
        images, labels = (part.to(self.ranks.device, non_blocking=True) for part in (batch.images, batch.labels))
        memory = torch.channels_last if plan.channels_last else torch.contiguous_format
        images = self.source.prepare(images).contiguous(memory_format=memory)
        self.optimizer.zero_grad(set_to_none=True)
        portions = list(zip(images.tensor_split(plan.accumulate), labels.tensor_split(plan.accumulate), strict=True))
        for i, portion in enumerate(portions):
            exchanges_later = isinstance(self.objective, DistributedDataParallel) and i + 1 < len(portions)
            with self.objective.no_sync() if exchanges_later else contextlib.nullcontext():  # type: ignore[operator]
                self.add_gradient(*portion, n_good)
        norm = self.descent.step(plan.learning_rate_at(at.step), plan.clip)
        at.step += 1
        self.norms.append(norm)
        return norm

    def add_gradient(self, images: Tensor, labels: Tensor, n_good: int) -> None:
        """Add a portion's share of the gradient to the weights' and its losses to the sums. NonFiniteLoss where the loss is watched
        and not finite; else nothing is read from the device."""
        n, clean = len(labels), None
        if self.hooks.perturb is not None:
            try:
                with mixed_precision(images.device, self.amp):
                    images, labels, clean = self.hooks.perturb(images, labels, self.position.step)
            except NonFiniteOutput as error:
                raise NonFiniteLoss(str(error)) from error
        with running(f"the {type(self.model).__name__}", images.shape, ValueError):
            total, terms = self.objective(images, labels, clean)
        if self.hooks.watchful and not torch.isfinite(total):
            raise NonFiniteLoss(f"the loss is {total.item()}")
        if n != n_good or self.ranks.size > 1:  # a part of the batch; gradients of ranks are averaged
            total = total * n * (self.ranks.size / max(n_good, 1))
        self.descent.backward(total)
        for term, values in terms.items():
            self.sums[term] = values.double() * n + self.sums.get(term, 0.0)
        self.images += n

    def settle(self) -> None:
        """What is due after a step: log, validate, save; in this order, so that a kill in between loses no line."""
        at, plan = self.position, self.schedule
        validates = plan.validates(at.step)
        saves = at.step > 0 and (validates or at.step % plan.save_every == 0)
        logs = validates or at.step % plan.log_every == 0
        if saves or logs:
            self.gather()
        if logs and at.images:
            self.logger.steps(at, self.source.epochs(at.step), self.feed.waited)
            at.sums, at.images, at.norms = {}, 0, []
            self.go_on()
        if validates:
            self.judge()
        if logs:
            self.logger.restart(at, self.feed.waited)
        if saves:
            self.save()

    def gather(self) -> None:
        """Bring the sums and the damaged images of all ranks into the position, and check them."""
        at, ranks = self.position, self.ranks
        at.sums = {term: ranks.sum(values) for term, values in self.sums.items()}
        at.images += int(ranks.sum(torch.tensor(self.images)))
        at.norms += self.descent.made(torch.stack(self.norms).tolist()) if self.norms else []
        self.go_on()
        if not all(values.isfinite().all() for values in (*at.sums.values(), torch.tensor(at.norms))):
            raise NonFiniteLoss("the loss or its gradient is not finite")
        bad = ranks.union(self.feed.bad)
        self.logger.skipped(at.step, {path: reason for path, reason in bad.items() if path not in at.bad})
        at.bad |= bad
        check_bad(at.bad, len(self.source), self.schedule.max_bad, "training")

    def judge(self) -> None:
        """Validate, remember, and let the best after a step be kept."""
        network = self.descent.outcome
        at, found = self.position, self.hooks.validate(network)
        check_bad(found.bad, found.images + len(found.bad), self.schedule.max_bad, "validation")
        at.validation = {"step": at.step, "top1": list(found.top1), "top5": list(found.top5), "images": found.images}
        self.logger.skipped(at.step, found.bad)
        self.logger.validation(at.validation)
        if at.step and (at.best is None or found.top1[-1] > at.best["top1"][-1]):
            at.best = at.validation
            if self.ranks.rank == 0:
                self.hooks.best(network, at.best)

    def save(self) -> None:
        """A checkpoint of now, where the weights are finite; it is written while the next steps are made."""
        bad = [name for name, p in self.model.named_parameters() if not torch.isfinite(p).all()]
        if bad:
            raise NonFiniteLoss(f"weights are not finite ({', '.join(bad[:3])})")
        state = {
            "configuration": self.place.configuration,
            "environment": self.surroundings,
            "position": vars(self.position),
            **self.descent.state(),
        }
        self.writer.save(self.position.step, state, alone=("optimizer/",) if self.descent.sharded else ())


def train_mode(model: nn.Module) -> bool:
    """Training mode but for batch normalisation, which feedback needs to be an affine map of one image: its statistics are held,
    its scale and bias are trained. Whether there is any."""
    model.train()
    return bool([module.eval() for module in model.modules() if isinstance(module, nn.BatchNorm2d)])


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of all that a rank draws in a step."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])
