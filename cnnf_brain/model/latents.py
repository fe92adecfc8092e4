"""The generative model's view of a state: the biases that its gates see, and eta(y, z) of Lemma A.1."""

from __future__ import annotations

import torch
from torch import Tensor

from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.model.layers import MaxPool
from cnnf_brain.model.state import State


def gate_biases(model: CNNF, state: State) -> tuple[dict[int, Tensor], Tensor]:
    """The bias b(l) seen at every gate, (1, ...) of the shape of its input f(l), and the one seen at the output.

    Affine layers between two gates act as one: their joint bias is what they make of zeros.

    Raises
    ------
    ValueError
        Where ``model`` matches the norms of layers: each image then has biases of its own.
    """
    if model.match_layers:
        raise ValueError("eta and the latent loss take biases that are the same for each image; set match_layers to False")
    biases: dict[int, Tensor] = {}
    below = torch.zeros_like(state.target[:1])
    for i, rule in enumerate(model.rules[model.start :], model.start):
        if rule.is_gate:
            biases[i] = below
            below = state.output.new_zeros(1, *rule.forward(below, None)[0].shape[1:])
        else:
            below = rule.bias(below, state.latents.get(i))
    return biases, below


def eta(model: CNNF, state: State) -> Tensor:
    """eta(y, z) = sum over layers of <b(l), z(l) g(l)>, plus y·b(L) for the top bias, for each image (B,).

    With it Lemma A.1 reads y·v = <g(k), h> + eta for the state's own y, without normalisation layers.
    """
    (biases, top), rules = gate_biases(model, state), model.rules
    total = (state.output * top).flatten(1).sum(1)
    for i, b in biases.items():
        g, z = state.feedback[i], rules[i].bits(state.latents[i])
        total = total + (chosen(b, z) * g if isinstance(rules[i], MaxPool) else b * z * g).flatten(1).sum(1)
    return total


def chosen(values: Tensor, at: Tensor) -> Tensor:
    """The elements of maps ``values`` (1 or B, C, H, W) at the flat positions ``at`` (B, C, h, w)."""
    return values.expand(len(at), -1, -1, -1).flatten(2).gather(2, at.flatten(2)).view_as(at)
