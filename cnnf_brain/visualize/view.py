"""A CNN-F that is shown images in [0, 1]: what every part of Figure 9 looks through."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cnnf_brain.attacks import threats
from cnnf_brain.attacks.gradient import Threat
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.model.settings import INPUT
from cnnf_brain.networks import Network

BATCH = 64
SHOWN = 4  # examples of each kind


@dataclass(frozen=True)
class Seen:
    """What the network made of n images at iterations 0..N.

    ``classes`` (N+1, n): its decisions. ``inputs`` (N+1, n, C, H, W): the image that each iteration saw, entry 0 the image itself;
    ``reconstructions`` (N+1, n, C, H, W): what feedback generated for it (norm matched, before the step), entry 0 the image itself.
    Both in the images' units [0, 1], not clipped to them; None where they were not asked for.
    """

    classes: Tensor
    inputs: Tensor | None
    reconstructions: Tensor | None


@dataclass(frozen=True)
class View:
    """A network with feedback on images in [0, 1], which enter it normalised by its preprocessing.

    Raises
    ------
    ValueError
        A network without feedback, or in training mode.
    """

    network: Network
    batch_size: int = BATCH

    def __post_init__(self) -> None:
        module = self.network.module
        if not isinstance(module, CNNF) or module.iterations == 0:
            what = "runs 0 iterations" if isinstance(module, CNNF) else f"is a {type(module).__name__}"
            raise ValueError(f"the network has no feedback to see: it {what}; give a CNNF with iterations >= 1")
        if module.training:
            raise ValueError("the network is in training mode; call .eval() on it first")

    @property
    def model(self) -> CNNF:
        """The network's module."""
        assert isinstance(self.network.module, CNNF)
        return self.network.module

    def enter(self, images: Tensor) -> Tensor:
        """Images in [0, 1] to the network's units, on its device."""
        return self.network.preprocessing.normalise(images.to(self.network.device))

    def leave(self, seen: Tensor) -> Tensor:
        """The network's units to those of images, not clipped to [0, 1]."""
        return self.network.preprocessing.denormalise(seen)

    def check(self, images: Tensor, labels: Tensor | None = None, *, restores: bool = False) -> None:
        """A ValueError that says what is wrong with the images, before long work; ``restores``: feedback must reach the image.

        ``images`` (n, C, H, W) floating point in [0, 1] of the size that the network takes; ``labels`` (n,).
        """
        if images.dim() != 4 or not len(images) or not images.is_floating_point():
            raise ValueError(
                f"images have shape {tuple(images.shape)} and type {images.dtype}, expected (n, C, H, W), floating point, n >= 1"
            )
        if not (images.min() >= 0 and images.max() <= 1):  # NaN too
            raise ValueError(f"images lie in [{images.min():.4g}, {images.max():.4g}], expected [0, 1]")
        if labels is not None and labels.shape != images.shape[:1]:
            raise ValueError(f"labels have shape {tuple(labels.shape)}, expected ({len(images)},)")
        if restores and self.model.target != INPUT:
            raise ValueError(
                f"the feedback of this network reconstructs layer {self.model.target!r}, not the image, so that it restores none; "
                f"Figures 9a and 9d need a network with target {INPUT!r}"
            )
        advice = "give them in the size and with the channels that it was trained with"
        refused = f"the network does not take images of shape {tuple(images.shape[1:])}"
        channels = len(self.network.preprocessing.mean)
        if images.shape[1] != channels:  # else one channel would silently be made three
            raise ValueError(f"{refused} (its preprocessing is for {channels} channel{'s' * (channels > 1)}); {advice}")
        try:
            with torch.no_grad():
                self.model(self.enter(images[:1]), iterations=1)
        except RuntimeError as error:
            raise ValueError(f"{refused} ({str(error).splitlines()[0]}); {advice}") from error

    def threats(self) -> tuple[Threat, Threat]:
        """What is attacked in Figure 9b: the first pass alone (the paper's transfer attack), and the unrolled network."""
        return threats.first_pass(self.network), threats.end_to_end(self.network)

    @torch.no_grad()
    def see(self, images: Tensor, *, whole: bool = False) -> Seen:
        """Decisions of all iterations; with ``whole`` the inputs and reconstructions too (needs target "input")."""
        n = self.model.iterations
        shown = [f"{INPUT}@{t}" for t in range(n + 1)] if whole else []
        classes, inputs, made = [], [], []
        for part in images.split(self.batch_size):
            result = self.model.unroll(self.enter(part), return_layers=shown, return_reconstruction=whole)
            classes.append(result.logits.argmax(-1).cpu())
            if whole:
                assert result.reconstruction is not None
                inputs.append(self.leave(torch.stack([result.layers[at] for at in result.layers])).cpu())
                made.append(self.leave(result.reconstruction).cpu())
        if not whole:
            return Seen(torch.cat(classes, 1), None, None)
        return Seen(torch.cat(classes, 1), torch.cat(inputs, 1), torch.cat(made, 1))


def mean_interval(values: np.ndarray, seed: int = 0, resamples: int = 2000) -> tuple[float, float, float]:
    """Mean and its 95% percentile bootstrap interval over (n,) images; NaN ends for fewer than two."""
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return np.nan, np.nan, np.nan
    if len(values) < 2:
        return float(values[0]), np.nan, np.nan
    rng, n, at_once = np.random.default_rng(seed), len(values), max(1, 2_000_000 // len(values))
    portions = [min(at_once, resamples - done) for done in range(0, resamples, at_once)]
    means = np.concatenate([values[rng.integers(0, n, (portion, n))].mean(1) for portion in portions])
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def drawn(qualify: np.ndarray, n: int, seed: int) -> np.ndarray:
    """The rule by which examples are shown: up to ``n`` of the row numbers that qualify, drawn at random with a seed."""
    return np.sort(np.random.default_rng(seed).choice(qualify, min(n, len(qualify)), replace=False))
