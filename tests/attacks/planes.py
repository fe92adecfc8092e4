"""Networks whose robustness is known in closed form: linear ones."""

from __future__ import annotations

import torch
from torch import Tensor

from cnnf_brain.attacks import Threat

SHAPE = (1, 6, 6)


def linear(classes: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Threat]:
    """Weights (classes, 36) and the threat of the network x -> W (x - 1/2)."""
    weights = torch.randn(classes, 36, generator=torch.Generator().manual_seed(seed)).to(dtype)

    def logits(images: Tensor) -> Tensor:
        return (images.flatten(1) - 0.5) @ weights.t()

    return weights, Threat("linear", logits, logits)


def drawn(n: int, threat: Threat, seed: int = 1, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Images in [0.4, 0.6] with the labels that the network gives them."""
    images = 0.4 + 0.2 * torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return images, threat.predict(images)


def breaking_epsilon(weights: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """(n,) the epsilon from which each image can be given the other of two classes: |margin| / ||w1 - w0||_1.

    Exact while the ball lies within the bounds.
    """
    difference = weights[1] - weights[0]
    margins = (images.flatten(1) - 0.5) @ difference
    return torch.where(labels == 1, margins, -margins) / difference.abs().sum()
