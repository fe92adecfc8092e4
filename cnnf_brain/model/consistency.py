"""Self-consistency (Definition 2.1): how far each part of a state is from its optimum given the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cnnf_brain.model.layers import Rule
from cnnf_brain.model.state import State


@dataclass
class Consistency:
    """How far each of y, z, h is from its optimum given the other two (Definition 2.1); 0 is consistent. Each (N+1, B).

    ``h``: ||h_t - g_t(k)|| / ||g_t(k)||, as h* = g(k) (Theorem 2.1.A), norm matched if the network does so.
    ``z``: the share of gates of z_t that are not the MAP given f_t and g_t (Theorem 2.1.C; each pooling window is one gate).
    ``y``: ||y_{t-1} - y_t|| / ||y_t||: y_t is the optimum given h_t and z_t (Theorem 2.1.B), y_{t-1} is what generated h_t.
    At t = 0 nothing was generated yet, and y is 0.
    """

    y: Tensor
    z: Tensor
    h: Tensor

    def worst(self) -> Tensor:
        """The largest of the three residuals."""
        return torch.maximum(torch.maximum(self.y, self.z), self.h)

    @classmethod
    def stack(cls, steps: Sequence[Consistency]) -> Consistency:
        """One record over all iterations from one for each."""
        return cls(*(torch.stack([getattr(s, name) for s in steps]) for name in ("y", "z", "h")))


def relative_distance(a: Tensor, b: Tensor) -> Tensor:
    """||a - b|| / ||b|| for each image, (B,); 0 where both are zero."""
    gap = torch.linalg.vector_norm((a - b).flatten(1), dim=1)
    return gap / torch.linalg.vector_norm(b.flatten(1), dim=1).clamp_min(torch.finfo(b.dtype).tiny ** 0.5)


def self_consistency(rules: Sequence[Rule], state: State, before: Tensor | None, reconstruction: Tensor) -> Consistency:
    """The residuals of one state (each (B,)); ``before`` is the output of the iteration before, None in the first."""
    h = relative_distance(state.target, reconstruction)
    wrong, gates = torch.zeros_like(h), 0
    for i, f in state.gate_inputs.items():
        best = rules[i].forward(f, state.guides[i])[1]
        assert best is not None
        wrong = wrong + (rules[i].bits(best) != rules[i].bits(state.latents[i])).flatten(1).sum(1)
        gates += best[0].numel()
    y = torch.zeros_like(h) if before is None else relative_distance(before, state.output)
    return Consistency(y=y, z=wrong / max(gates, 1), h=h)
