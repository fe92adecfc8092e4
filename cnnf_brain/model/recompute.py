"""Activation checkpointing over passes: the memory of training hardly grows with iterations, for one more forward pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cnnf_brain.model.autograd import layout
from cnnf_brain.model.cnnf import CNNF, FeedbackResult
from cnnf_brain.model.layers import ReLU
from cnnf_brain.model.state import State

BITS = (1, 2, 4, 8, 16, 32, 64, 128)


class Bits(NamedTuple):
    """A map of yes and no, in a bit an element."""

    bits: Tensor
    shape: torch.Size
    dtype: torch.dtype
    layout: torch.memory_format


Carried = dict[int, Bits | Tensor]


class SignsAlone(dict[int, Any]):
    """Guides of which the signs alone are kept: maps need not lie beside one another, neither put in nor taken out."""

    def __setitem__(self, i: int, g: Tensor) -> None:
        super().__setitem__(i, _packed(~torch.signbit(g), g.dtype))

    def get(self, i: int, default: Any = None) -> Any:
        """1 and -1 in place of a feedback map, all that a pass reads of it; a mask of dropout as it is."""
        value = super().get(i, default)
        return _unpacked(value).to(value.dtype).mul_(2).sub_(1) if isinstance(value, Bits) else value


def recomputed(model: CNNF, x: Tensor) -> FeedbackResult:
    """What ``model.unroll(x, return_reconstruction=True)`` gives, value and gradient, of less memory.

    Between forward and backward only what passes from one pass to the next is held: target features, signs of the feedback
    maps, latents (in bits, and positions of pooling), dropout masks. Each pass, up or down, is computed again, with the same
    random numbers, when its gradient is.

    Raises
    ------
    ValueError
        Where ``model`` stops images early (``tolerance``).
    """
    if model.tolerance is not None:
        raise ValueError("recomputing takes every image through all iterations; set tolerance to None")
    clean, _ = model.below_target(x, set())
    h, guides, sizes = clean, Carried(), dict[int, Tensor]()
    logits, reconstructions = [], [clean]
    for _ in range(model.iterations):
        output, latents, inputs, sizes = checkpoint(_up, model, h, guides, sizes, use_reentrant=False)
        reconstruction, h, guides = checkpoint(_down, model, h, output, latents, inputs, clean, use_reentrant=False)
        logits.append(output)
        reconstructions.append(reconstruction)
    logits.append(checkpoint(_last, model, h, guides, sizes, use_reentrant=False))
    return FeedbackResult(logits=torch.stack(logits), layers={}, reconstruction=torch.stack(reconstructions))


def _up(
    model: CNNF, h: Tensor, guides: Carried, sizes: dict[int, Tensor]
) -> tuple[Tensor, Carried, dict[int, torch.Size], dict[int, Tensor]]:
    """The feedforward pass: output, latents, shapes, and the norms that layers are held to."""
    sizes = dict(sizes)  # filled by the first pass, which may be run again
    state = model.sweep(h, SignsAlone(guides), set(), sizes=sizes)
    rules = model.rules
    latents: Carried = {}
    for i, z in state.latents.items():
        positions = z if z.is_floating_point() else z.int()  # dropout's mask, or pooling's positions
        latents[i] = _packed(z != 0, z.dtype) if isinstance(rules[i], ReLU) else positions
    return state.output, latents, state.inputs, sizes


def _down(
    model: CNNF, h: Tensor, output: Tensor, latents: Carried, inputs: dict[int, torch.Size], clean: Tensor
) -> tuple[Tensor, Tensor, Carried]:
    """The feedback pass and the step to the next iteration: reconstruction, target features, what guides the next pass."""
    z: dict[int, Tensor] = {}
    for i, value in latents.items():
        if isinstance(value, Bits):
            z[i] = _unpacked(value)
        else:
            z[i] = value if value.is_floating_point() else value.long()
    state = State(h, output, z, inputs, {}, {}, guides=SignsAlone())
    model.generate(state, set())
    reconstruction = model.matched(state.generated, clean)
    every = torch.ones(len(h), dtype=torch.bool, device=h.device)
    new_h, guides = model.step_towards(h, reconstruction, {}, state, every)
    carried: Carried = {**guides}
    return reconstruction, new_h, carried


def _last(model: CNNF, h: Tensor, guides: Carried, sizes: dict[int, Tensor]) -> Tensor:
    return model.sweep(h, SignsAlone(guides), set(), sizes=dict(sizes), gates=False).output


def _packed(yes: Tensor, dtype: torch.dtype) -> Bits:
    padded = F.pad(yes.flatten().to(torch.uint8), (0, -yes.numel() % 8)).view(-1, 8)
    bits = (padded * torch.tensor(BITS, dtype=torch.uint8, device=yes.device)).sum(1, dtype=torch.uint8)
    return Bits(bits, yes.shape, dtype, layout(yes))


def _unpacked(value: Bits) -> Tensor:
    yes = value.bits[:, None].bitwise_and(torch.tensor(BITS, dtype=torch.uint8, device=value.bits.device)) != 0
    return yes.flatten()[: value.shape.numel()].view(value.shape).contiguous(memory_format=value.layout)
