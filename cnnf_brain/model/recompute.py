"""Activation checkpointing over iterations: the memory of training hardly grows with them, for one more forward pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cnnf_brain.model.feedback import CNNF, FeedbackResult

BITS = (1, 2, 4, 8, 16, 32, 64, 128)


class Signs(NamedTuple):
    """Signs of a feedback map: all that the next pass reads of it, in a bit an element."""

    bits: Tensor
    shape: torch.Size
    dtype: torch.dtype


def recomputed(model: CNNF, x: Tensor) -> FeedbackResult:
    """What ``model(x, keep=Keep(reconstruction=True))`` gives, value and gradient, of less memory.

    Between forward and backward only what passes from one iteration to the next is held (target features, signs of the
    feedback maps, dropout masks); each iteration is computed again, with the same random numbers, when its gradient is.

    Raises
    ------
    ValueError
        Where ``model`` stops images early (``tolerance``).
    """
    if model.tolerance is not None:
        raise ValueError("recomputing takes every image through all iterations; set tolerance to None")
    clean, _ = model.below_target(x, set())
    h, carried, sizes = clean, dict[int, Signs | Tensor](), dict[int, Tensor]()
    logits, reconstructions = [], [clean]
    for _ in range(model.iterations):
        output, reconstruction, h, carried, sizes = checkpoint(_turn, model, h, carried, sizes, clean, use_reentrant=False)
        logits.append(output)
        reconstructions.append(reconstruction)
    logits.append(checkpoint(_last, model, h, carried, sizes, use_reentrant=False))
    return FeedbackResult(logits=torch.stack(logits), layers={}, reconstruction=torch.stack(reconstructions))


def _turn(
    model: CNNF, h: Tensor, carried: dict[int, Signs | Tensor], sizes: dict[int, Tensor], clean: Tensor
) -> tuple[Tensor, Tensor, Tensor, dict[int, Signs | Tensor], dict[int, Tensor]]:
    """One iteration and the step to the next: output, reconstruction, the next target features, what guides them, and the
    norms that layers are held to."""
    guides = {i: _unpacked(value) for i, value in carried.items()}
    sizes = dict(sizes)  # filled by the first pass, which may be run again
    state = model.sweep(h, guides, set(), sizes=sizes)
    model.generate(state, set())
    reconstruction = model.matched(state.generated, clean)
    every = torch.ones(len(h), dtype=torch.bool, device=h.device)
    new_h, new_guides = model.step_towards(h, reconstruction, guides, state, every)
    packed = {i: _packed(value) if model.rules[i].is_gate else value for i, value in new_guides.items()}
    return state.output, reconstruction, new_h, packed, sizes


def _last(model: CNNF, h: Tensor, carried: dict[int, Signs | Tensor], sizes: dict[int, Tensor]) -> Tensor:
    guides = {i: _unpacked(value) for i, value in carried.items()}
    return model.sweep(h, guides, set(), sizes=dict(sizes), gates=False).output


def _packed(g: Tensor) -> Signs:
    sign = torch.signbit(g) if g.is_floating_point() else ~g  # a guide may be g >= 0 as well
    negative = F.pad(sign.flatten().to(torch.uint8), (0, -g.numel() % 8)).view(-1, 8)
    bits = (negative * torch.tensor(BITS, dtype=torch.uint8, device=g.device)).sum(1, dtype=torch.uint8)
    return Signs(bits, g.shape, g.dtype)


def _unpacked(value: Signs | Tensor) -> Tensor:
    """1 and -1 in place of the map (True and False of a boolean one)."""
    if isinstance(value, Tensor):
        return value
    bits = value.bits[:, None].bitwise_and(torch.tensor(BITS, dtype=torch.uint8, device=value.bits.device)) == 0
    signs = bits.flatten()[: value.shape.numel()].view(value.shape)
    return signs if value.dtype == torch.bool else signs.to(value.dtype).mul_(2).sub_(1)
