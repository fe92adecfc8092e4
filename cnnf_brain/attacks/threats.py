"""What an attacker sees of a CNN-F: its first pass, all of it, all of it with smoothed gates, or another network.

All threats take images in [0, 1]. A network comes with its preprocessing, by which they enter it: a ``networks.Network``, or any
torch module as ``WithPreprocessing(module, preprocessing)``. What is scored is the network after the iterations asked for.

Where an operator has no gradient. AdaReLU and AdaPool choose by the sign of the feedback g of the iteration before. That choice
is a step function: its gradient with respect to g is zero almost everywhere, and autograd, exact almost everywhere, is blind to
gates that flip. ``end_to_end`` is that exact gradient. ``smoothed`` is BPDA (Athalye et al. 2018): the forward pass stays as it
is; in the backward pass the gate is a sigmoid of g / (temperature x the root mean square of g in that image):

    AdaReLU  s max(f, 0) + (1 - s) min(f, 0)      AdaPool  s max f + (1 - s) min f      s = sigmoid(g / (temperature rms(g)))

so that gradients reach g as well, and reach f where its gate is shut but not far from opening. The latents z by which the feedback
pass masks are held in both (gradients pass through g, not through z).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnnf_brain.attacks.gradient import Logits, Threat
from cnnf_brain.checks import running
from cnnf_brain.images import Preprocessing
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.model.layers import FeedbackLayer, MaxPool, ReLU
from cnnf_brain.networks import Network

TEMPERATURE = 0.5


@dataclass(frozen=True)
class WithPreprocessing:
    """A torch module, and how images in [0, 1] enter it: a ``Preprocessing`` (its mean and std; images come in the network's
    size) or a callable on tensors (B, C, H, W)."""

    module: nn.Module
    preprocessing: Preprocessing | Callable[[Tensor], Tensor]


Attacked = Network | WithPreprocessing


def first_pass(network: Attacked, iterations: int | None = None) -> Threat:
    """The attacker follows iteration 0 alone, the CNN with the same weights (what the paper calls transfer attack)."""
    return Threat("first_pass", scored(network, iterations), scored(network, 0))


def end_to_end(network: Attacked, iterations: int | None = None) -> Threat:
    """The attacker follows the logits that are scored through the unrolled network, by their exact gradient."""
    logits = scored(network, iterations)
    return Threat("end_to_end", logits, logits)


def every_iteration(network: Attacked, iterations: int | None = None) -> Threat:
    """The attacker follows the mean of the logits of iterations 0..N."""
    module, enter = opened(network)
    logits = scored(network, iterations)
    if not isinstance(module, CNNF):
        return Threat("every_iteration", logits, logits)
    return Threat("every_iteration", logits, lambda x: module.unroll(enter(x), iterations=iterations).logits.mean(0))


def smoothed(network: Attacked, iterations: int | None = None, temperature: float = TEMPERATURE) -> Threat:
    """The attacker follows the scored logits with gates that are smooth in the backward pass (see above)."""
    module, enter = opened(network)
    attacked = logits = scored(network, iterations)
    if isinstance(module, CNNF):
        attacked = scored(WithPreprocessing(SmoothGates(module, temperature), enter), iterations)
    return Threat("smoothed", logits, attacked)


def transfer(network: Attacked, source: Attacked, iterations: int | None = None) -> Threat:
    """The attacker follows another network, ``source``, at its own last iteration."""
    return Threat("transfer", scored(network, iterations), scored(source, None))


def scored(network: Attacked, iterations: int | None = None) -> Logits:
    """Images in [0, 1] to the logits after ``iterations``.

    Parameters
    ----------
    iterations
        None: the network's own number. A network without feedback takes 0 or None.

    Raises
    ------
    ValueError
        No preprocessing, a network in training mode, iterations of a network without feedback. The logits raise a ModelError where
        the network cannot be run.
    """
    module, enter = opened(network)
    if module.training:
        raise ValueError("the network is in training mode; call .eval() on it before it is attacked or scored")
    if not isinstance(module, CNNF) and iterations:
        raise ValueError(
            f"iterations is {iterations}, but a {type(module).__name__} has no feedback; expected 0 or None (a CNNF has feedback)"
        )
    known, how = ((ValueError,), {"iterations": iterations}) if isinstance(module, CNNF) else ((), {})

    def logits(images: Tensor) -> Tensor:
        with running(getattr(network, "name", type(module).__name__), images.shape, *known):
            found: Tensor = module(enter(images), **how)
        return found

    return logits


def opened(network: Attacked) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The module, and the function by which images in [0, 1] enter it; a ValueError where there is none."""
    module, preprocessing = (getattr(network, name, None) for name in ("module", "preprocessing"))
    enter = getattr(preprocessing, "normalise", preprocessing)
    if not isinstance(module, nn.Module) or not callable(enter):
        raise ValueError(
            f"a {type(network).__name__} does not say how images in [0, 1] enter it; expected a Network (load_network), or "
            "WithPreprocessing(module, preprocessing) with a Preprocessing or a callable on tensors in [0, 1]"
        )
    return module, enter


class SmoothGates(CNNF):
    """The same network (parameters shared) whose gates are smooth in the backward pass; forward it is ``model`` exactly."""

    def __init__(self, model: CNNF, temperature: float = TEMPERATURE) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}, expected a number above 0 (towards 0 the gates become hard)")
        parts = model.named_modules(remove_duplicate=False)  # a layer may stand twice
        children = OrderedDict((name, module) for name, module in parts if name and "." not in name)
        super().__init__(nn.Sequential(children), model.settings)
        self.temperature = temperature
        self.training = model.training

    @property
    def feedback_layers(self) -> list[FeedbackLayer]:
        """The layers in order, gates replaced."""
        temperature = getattr(self, "temperature", TEMPERATURE)  # asked for once before it is set
        smooth = {ReLU: SmoothReLU, MaxPool: SmoothMaxPool}
        return [smooth[type(rule)](rule, temperature) if type(rule) in smooth else rule for rule in super().feedback_layers]

    def _guide(self, g: Tensor) -> Tensor:
        """Feedback maps at gates keep their gradient."""
        return g


def openness(guide: Tensor, temperature: float) -> Tensor:
    """s: how far a gate with feedback ``guide`` counts as positive, in (0, 1)."""
    size = guide.detach().square().mean(tuple(range(1, guide.dim())), keepdim=True).sqrt()
    return torch.sigmoid(guide / (temperature * size.clamp_min(torch.finfo(size.dtype).tiny ** 0.5)))


class SmoothGate(FeedbackLayer):
    """The gate ``rule``: forward it is that gate exactly, backward its smooth form."""

    soft: Callable[[Tensor, Tensor], Tensor]  # of x and of how far the gate is open, in (0, 1)
    temperature: float

    def __init__(self, rule: FeedbackLayer, temperature: float) -> None:
        self.__dict__.update(rule.__dict__, temperature=temperature)

    def forward(self, x: Tensor, guide: Tensor | None, spare: bool = False) -> tuple[Tensor, Any]:
        if guide is None:
            return super().forward(x, None)
        hard, z = super().forward(x.detach(), guide.detach())
        soft = self.soft(x, openness(guide, self.temperature))
        return hard + (soft - soft.detach()), z


class SmoothReLU(SmoothGate, ReLU):
    """AdaReLU forward, its smooth form backward."""

    def soft(self, x: Tensor, s: Tensor) -> Tensor:
        return s * x.clamp_min(0) + (1 - s) * (-x.clamp_max(0) if self.printed else x.clamp_max(0))


class SmoothMaxPool(SmoothGate, MaxPool):
    """AdaPool forward, its smooth form backward."""

    def soft(self, x: Tensor, s: Tensor) -> Tensor:
        return s * self.pool(x)[0] - (1 - s) * self.pool(-x)[0]
