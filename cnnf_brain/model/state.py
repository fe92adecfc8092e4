"""The explicit state of one iteration of CNN-F."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class State:
    """One iteration: the feedforward pass from the target on, and the feedback pass generated from its output.

    ``target`` (h_t) enters the layer after the target layer; ``output`` (y_t) is the top output (logits).
    By rule number: ``latents`` (z of gates as their rules hold it, masks of dropout), ``inputs`` (shapes), ``maps`` (outputs
    that were asked for; -1 is the image), ``gate_inputs`` (what the gate compares with g), ``output_norms`` (for each gate straight
    above a convolution or matrix, the norm (B,) of that layer's output f(l) before any normalisation); of the feedback pass:
    ``guides`` (g at gates, by whose sign the next pass goes), ``feedback`` (g at outputs that were asked for) and ``generated``
    (g(k), the reconstruction).
    """

    target: Tensor
    output: Tensor
    latents: dict[int, Tensor]
    inputs: dict[int, torch.Size]
    maps: dict[int, Tensor]
    gate_inputs: dict[int, Tensor]
    output_norms: dict[int, Tensor] = field(default_factory=dict)
    guides: dict[int, Tensor] = field(default_factory=dict)
    feedback: dict[int, Tensor] = field(default_factory=dict)
    generated: Tensor | None = None
