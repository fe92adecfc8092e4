"""The network that training starts from: torchvision's under given weights, with a new head where these have none that fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from cnnf_brain.checks import unknown
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.model.weights import check_state, read_state
from cnnf_brain.model.zoo import ARCHITECTURES, sequential

NO_WEIGHTS = "none"


def starting_network(arch: str, weights: str | Path, num_classes: int, feedback: dict[str, Any]) -> tuple[CNNF, str]:
    """The CNNF, and where its parts come from in words.

    New layers are drawn from torch's generator as torchvision draws them: all where ``weights`` is "none", the whole
    classifier where they are the convolutions alone, the last layer where it is for another number of classes.

    Raises
    ------
    ValueError, OSError
        Unknown ``arch``, weights that are not there or fit neither way, settings of the feedback that fit nothing.
    """
    network = bare_network(arch, num_classes)
    words = f"{arch} for {num_classes} classes"
    if weights == NO_WEIGHTS:
        return CNNF(network, **feedback), f"{words}, all weights new"
    state = dict(read_state(weights, arch))
    fresh = network.state_dict()
    head = [name for name in fresh if name.startswith(f"{last_linear(network)}.")]
    if not any(name.startswith("classifier.") for name in state):
        new = {name: value for name, value in fresh.items() if name.startswith("classifier.")}
        words += f", convolutions of {weights}, a new classifier on top of them (it holds the convolutions alone)"
    elif any(name in state and state[name].shape != fresh[name].shape for name in head):
        new = {name: fresh[name] for name in head}
        words += f", weights {weights}, a new last layer ({state[head[0]].shape[0]} classes there)"
    else:
        new, words = {}, f"{words}, weights {weights}"
    state |= new
    check_state(state, network, f"weights {weights}")
    network.load_state_dict(state, strict=False)  # checked; old files lack num_batches_tracked
    return CNNF(network, **feedback), words


def bare_network(arch: str, num_classes: int) -> nn.Sequential:
    """The layers of ``arch``, their weights new; a ValueError where it is unknown."""
    if arch not in ARCHITECTURES:
        raise unknown("architecture", arch, ARCHITECTURES)
    return sequential(arch, num_classes)


def last_linear(network: nn.Module) -> str:
    """The name of the layer that gives the classes."""
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]


def train_mode(model: nn.Module) -> bool:
    """Training mode but for batch normalisation, whose statistics are held; whether there is any.

    Feedback needs it to be an affine map of one image; its scale and bias are trained.
    """
    model.train()
    held = [module.eval() for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    return bool(held)
