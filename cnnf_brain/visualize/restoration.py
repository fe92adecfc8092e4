"""Figure 9d: corrupted images, what feedback makes of them, and whether that is nearer to the clean image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.ndimage import gaussian_filter
from torch import Tensor

from cnnf_brain.checks import unknown
from cnnf_brain.visualize.view import View, mean_interval

WHAT = {"input": "the image that the iteration sees", "reconstruction": "what feedback generates for it, before the step"}


@dataclass(frozen=True)
class Condition:
    """A corruption at one strength: ``clean``, ``blur`` (standard deviation in pixels), ``noise`` (standard deviation, in units of
    [0, 1]), ``salt and pepper`` (share of pixels) or ``PGD`` (epsilon in units of [0, 1])."""

    name: str
    strength: float = 0.0

    def __str__(self) -> str:
        return self.name if self.name == "clean" else f"{self.name} {self.strength:g}"


def blur(images: Tensor, strength: float, seed: int) -> Tensor:
    """A Gaussian blur of ``strength`` pixels, edges repeated."""
    return torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, strength, strength), mode="nearest"))


def noise(images: Tensor, strength: float, seed: int) -> Tensor:
    """Gaussian noise of standard deviation ``strength``, clipped to [0, 1]."""
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images + strength * drawn).clamp(0, 1)


def salt_and_pepper(images: Tensor, strength: float, seed: int) -> Tensor:
    """A share ``strength`` of the pixels, all channels of each, set to 0 or 1 with equal chances."""
    n, _, height, width = images.shape
    generator = torch.Generator().manual_seed(seed)
    hit = torch.rand((n, 1, height, width), generator=generator) < strength
    colour = (torch.rand((n, 1, height, width), generator=generator) < 0.5).to(images.dtype)
    return torch.where(hit, colour, images)


CORRUPTIONS: dict[str, Callable[[Tensor, float, int], Tensor]] = {
    "clean": lambda images, strength, seed: images,
    "blur": blur,
    "noise": noise,
    "salt and pepper": salt_and_pepper,
}


def corrupt(images: Tensor, condition: Condition, seed: int = 0) -> Tensor:
    """(n, C, H, W) images in [0, 1] under one of CORRUPTIONS."""
    if condition.name not in CORRUPTIONS:
        raise unknown("corruption", condition.name, CORRUPTIONS)
    if not 0 <= condition.strength < float("inf"):
        raise ValueError(f"{condition.name}: strength {condition.strength} must be a number >= 0")
    return CORRUPTIONS[condition.name](images, condition.strength, seed)


def mse(clean: Tensor, other: Tensor) -> np.ndarray:
    """(n,) mean squared error over the pixels of each image."""
    return (clean.double() - other.double()).square().flatten(1).mean(1).numpy()


def ssim(clean: Tensor, other: Tensor) -> np.ndarray:
    """(n,) structural similarity of each image (Wang et al. 2004: Gaussian window of 1.5 pixels), by scikit-image."""
    from skimage.metrics import structural_similarity

    options = {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 0}
    pairs = zip(clean.double().numpy(), other.double().numpy(), strict=True)
    return np.array([structural_similarity(a, b, **options) for a, b in pairs])


def restore(view: View, clean: Tensor, corrupted: Tensor, labels: Tensor) -> xr.Dataset:
    """Distances to the clean image before and after feedback, image by image.

    Returns
    -------
    xarray.Dataset
        ``mse``, ``ssim`` (what, iteration 0..N, image): of the input and of the reconstruction; at iteration 0 of the corrupted
        image itself. ``correct`` (iteration, image): whether the decision is the label.
    """
    view.check(corrupted, labels, restores=True)
    seen = view.see(corrupted, whole=True)
    assert seen.inputs is not None
    assert seen.reconstructions is not None
    before = {"mse": mse(clean, corrupted), "ssim": ssim(clean, corrupted)}
    rows: dict[str, list[list[np.ndarray]]] = {"mse": [], "ssim": []}
    for made in (seen.inputs, seen.reconstructions):
        for name, distance in (("mse", mse), ("ssim", ssim)):
            rows[name].append([before[name], *(distance(clean, now) for now in made[1:])])
    data = {name: (("what", "iteration", "image"), np.array(values)) for name, values in rows.items()}
    correct = (seen.classes == labels.cpu()).numpy()
    return xr.Dataset({**data, "correct": (("iteration", "image"), correct)}, coords={"what": list(WHAT)})


def summarise(found: xr.Dataset, condition: Condition) -> list[dict[str, Any]]:
    """One row for each iteration 1..N and kind of output: distances before and after, the change, the share that comes closer.

    Intervals (``_low``, ``_high``) are 95% bootstrap over images. Closer means a smaller error, or a larger SSIM.
    """
    rows: list[dict[str, Any]] = []
    for what in WHAT:
        one = found.sel(what=what)
        for t in range(1, found.sizes["iteration"]):
            row: dict[str, Any] = {
                "corruption": condition.name,
                "strength": condition.strength,
                "what": what,
                "iteration": t,
                "images": found.sizes["image"],
                "accuracy_before": float(found["correct"].values[0].mean()),
                "accuracy": float(found["correct"].values[t].mean()),
            }
            for name, better in (("mse", -1), ("ssim", 1)):
                before, after = one[name].values[0], one[name].values[t]
                row |= {f"{name}_before": float(before.mean()), f"{name}_after": float(after.mean())}
                for column, values in (
                    (f"{name}_change", after - before),
                    (f"{name}_closer", better * (after - before) > 0),
                ):
                    mean, low, high = mean_interval(values.astype(float))
                    row |= {column: mean, f"{column}_low": low, f"{column}_high": high}
            rows.append(row)
    return rows
