"""What a step changes: the weights, and what optimizer, loss scale and moving average hold; saved and restored."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.trainer.config import HALF
from cnnf_brain.trainer.distributed import Ranks


class Descent:
    """Gradients into steps of the ``optimizer``; with a moving average of the weights for ``ema`` (see ``Schedule``), and
    with loss scaling where ``amp`` is "float16": a step whose gradient is not finite is left out, and the scale halved.

    The optimizer may be a ``ZeroRedundancyOptimizer``, whose state rank 0 collects when it is saved.
    """

    def __init__(self, model: CNNF, optimizer: Optimizer, ema: float | None, amp: str | None, ranks: Ranks) -> None:
        self.model, self.optimizer, self.ranks = model, optimizer, ranks
        self.average = None if ema is None else AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema))
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=amp == HALF)
        self.sharded = hasattr(optimizer, "consolidate_state_dict")

    @property
    def outcome(self) -> CNNF:
        """The network that is validated and kept: of the averaged weights where there are some."""
        network = self.model if self.average is None else self.average.module
        assert isinstance(network, CNNF)
        return network

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss`` to the weights'."""
        self.scaler.scale(loss).backward()

    def step(self, rate: float, clip: float | None) -> Tensor:
        """A step along the gradients; their norm, a scalar, before it is clipped to ``clip`` (None: it is not)."""
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), math.inf if clip is None else clip).detach()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return norm

    def made(self, norms: list[float]) -> list[float]:
        """Those of ``norms`` whose steps were not left out; all of them where the loss scale has fallen below 1: then it is not the
        scale that makes gradients infinite."""
        if not self.scaler.is_enabled() or self.scaler.get_scale() < 1:
            return norms
        return [norm for norm in norms if math.isfinite(norm)]

    def state(self) -> dict[str, Any]:
        """All that ``load`` needs; a sharded optimizer's state on rank 0 alone."""
        state = {"model": self.model.state_dict()}
        if self.sharded:
            self.optimizer.consolidate_state_dict(0)  # type: ignore[attr-defined]
        if not self.sharded or self.ranks.rank == 0:
            state["optimizer"] = self.optimizer.state_dict()
        if self.average is not None:
            state["average"] = self.average.module.state_dict()
        return {**state, "scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else state

    def load(self, state: dict[str, Any], step: int) -> None:
        """Go on from a ``state`` after ``step`` steps."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
            self.average.n_averaged.fill_(step)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
