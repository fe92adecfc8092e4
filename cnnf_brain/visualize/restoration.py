"""Figure 9d: corrupted images, what feedback makes of them, and whether that is nearer to the clean image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure as Drawing
from scipy.ndimage import gaussian_filter
from torch import Tensor

from cnnf_brain import results, style
from cnnf_brain.checks import unknown
from cnnf_brain.io import cache_folder, read_netcdf, short_hash, write_netcdf
from cnnf_brain.report.runs import Claim, Figure
from cnnf_brain.visualize import view as common
from cnnf_brain.visualize.view import EPSILONS, SHOWN, Array, Data, Part, Row, Sample, View

WHAT = ("input", "reconstruction")  # the image that the iteration sees; what feedback generates for it, before the step


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


_STRENGTHS = {"blur": (0.5, 1.0, 1.5), "noise": (0.1, 0.2, 0.3), "salt and pepper": (0.05, 0.1, 0.2)}
STRENGTHS = [Condition(name, strength) for name, strengths in _STRENGTHS.items() for strength in strengths]
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


def mse(clean: Tensor, other: Tensor) -> Array:
    """(n,) mean squared error over the pixels of each image."""
    return (clean.double() - other.double()).square().flatten(1).mean(1).numpy()


def ssim(clean: Tensor, other: Tensor) -> Array:
    """(n,) structural similarity of each image (Wang et al. 2004: Gaussian window of 1.5 pixels), by scikit-image."""
    from skimage.metrics import structural_similarity

    measure = partial(structural_similarity, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    pairs = zip(clean.double().numpy(), other.double().numpy(), strict=True)
    return np.array([measure(a, b, channel_axis=0) for a, b in pairs])


def restore(view: View, clean: Tensor, corrupted: Tensor, labels: Tensor) -> xr.Dataset:
    """Distances to the clean image before and after feedback, image by image.

    ``mse``, ``ssim`` (what, iteration 0..N, image): of the input and of the reconstruction; at iteration 0 of the corrupted image
    itself. ``correct`` (iteration, image): whether the decision is the label.
    """
    view.check(corrupted, labels, restores=True)
    seen = view.see(corrupted, whole=True)
    data: dict[str, Any] = {}
    for name, distance in (("mse", mse), ("ssim", ssim)):
        before = distance(clean, corrupted)
        values = [[before, *(distance(clean, now) for now in made[1:])] for made in (seen.inputs, seen.reconstructions)]
        data[name] = (("what", "iteration", "image"), np.array(values))
    data["correct"] = (("iteration", "image"), (seen.classes == labels.cpu()).numpy())
    return xr.Dataset(data, coords={"what": list(WHAT)})


def summarise(found: xr.Dataset, condition: Condition) -> list[Row]:
    """A row for each iteration 1..N and kind of output: distances before and after, the change, the share that comes closer.

    Intervals are 95% bootstrap over images. Closer means a smaller error, or a larger SSIM.
    """
    rows: list[Row] = []
    accuracy = found["correct"].values.mean(1).tolist()
    for what in WHAT:
        for t in range(1, found.sizes["iteration"]):
            row: Row = {"corruption": condition.name, "strength": condition.strength, "what": what, "iteration": t}
            row |= {"images": found.sizes["image"], "accuracy_before": accuracy[0], "accuracy": accuracy[t]}
            for name, better in (("mse", -1), ("ssim", 1)):
                values = found[name].sel(what=what).values
                change = values[t] - values[0]
                row |= {f"{name}_before": float(values[0].mean()), f"{name}_after": float(values[t].mean())}
                row |= common.cells(f"{name}_change", change) | common.cells(f"{name}_closer", better * change > 0)
            rows.append(row)
    return rows


def figure_9d(sample: Sample, epsilons: Sequence[float] = EPSILONS) -> Part:
    """Restored images: images.nc, table.csv and examples.nc.

    What an interrupted run has finished stays in the cache folder until the part is saved, and is taken from there.
    """
    sample.view.check(sample.pool, restores=True)
    question = [sample.question("9d"), sample.view.network.preprocessing, results.versions(), results.commit()]
    parts = cache_folder("figures", short_hash(question, 16))  # of this version of the code
    chosen = common.drawn(np.arange(len(sample.rows)), SHOWN, sample.seed)
    conditions = [Condition("clean"), *STRENGTHS, *(Condition("PGD", epsilon) for epsilon in epsilons)]
    table: list[Row] = []
    every, examples = [], []
    for condition in conditions:
        sample.tell(str(condition))
        paths = [parts / f"{condition}-{name}.nc" for name in ("distances", "examples")]
        if not paths[1].exists():  # PGD takes long
            for path, piece in zip(paths, under_condition(sample, condition, chosen), strict=True):
                write_netcdf(path, piece)
        found, shown = map(read_netcdf, paths)
        table += summarise(found, condition)
        every.append(found)
        shown.coords["number"] = ("shown", sample.rows[chosen])
        examples.append(shown)
    names = xr.DataArray([str(condition) for condition in conditions], dims="condition", name="condition")
    images = common.joined(every, names)
    images.coords["number"] = ("image", sample.rows)
    data = {"images.nc": images, "examples.nc": common.joined(examples, names)}
    return Part(about(table, sample.seed), {"table.csv": table}, data, draw, parts)


def under_condition(sample: Sample, condition: Condition, chosen: Array) -> tuple[xr.Dataset, xr.Dataset]:
    """Distances of all images (``restore``), and the images of the chosen examples."""
    view, images, labels = sample.view, sample.images, sample.labels
    if condition.name == "PGD":
        corrupted = view.attacked(view.threats()[0], images, labels, condition.strength, sample.seed)
    else:
        corrupted = corrupt(images, condition, sample.seed)
    seen = view.see(corrupted[chosen], whole=True)
    shown = {"clean": images[chosen], "corrupted": corrupted[chosen]}
    shown |= {"input": seen.inputs[-1], "reconstruction": seen.reconstructions[-1]}
    examples = xr.Dataset({name: (("shown", "channel", "row", "column"), made.numpy()) for name, made in shown.items()})
    return restore(view, images, corrupted, labels), examples


def about(table: Sequence[Row], seed: int) -> Figure:
    """What the table says."""
    last = max(row["iteration"] for row in table)
    corrupted = [row for row in table if row["what"] == "input" and row["corruption"] != "clean"]
    at_end = [row for row in corrupted if row["iteration"] == last]
    early = sum(row["mse_change_high"] < 0 for row in corrupted if row["iteration"] == 1)
    made = {(r["corruption"], r["strength"]): r for r in table if r["iteration"] == last and r["what"] == "reconstruction"}
    claims = [_restores(row, made[row["corruption"], row["strength"]]) for row in at_end]
    nearer = sum(claim.holds is True for claim in claims)
    values = {"last": last, "nearer": nearer, "conditions": len(claims), "early": early, "seed": seed}
    return common.worded("9d", claims, at_end[0]["images"], **values)


def _restores(row: Row, made: Row) -> Claim:
    """The claim that feedback restores a corruption; ``made``: the row of the reconstruction itself."""
    values = {"mse_closer": common.share(row, "mse_closer"), "ssim_percent": 100 * row["ssim_closer"]}
    values |= {"made_mse": made["mse_after"], "made_percent": 100 * made["mse_closer"]}
    return common.claim("9d", "restores", row | values, -row["mse_change_high"], -row["mse_change_low"])


def draw(data: Data, names: Sequence[str]) -> Drawing:
    """The examples at the middle strength of each corruption: clean, corrupted, input and reconstruction."""
    examples = data["examples.nc"]
    strengths: dict[str, list[str]] = {}
    for condition in map(str, examples["condition"].values):
        strengths.setdefault(condition.rsplit(" ", 1)[0], []).append(condition)
    chosen = [conditions[len(conditions) // 2] for kind, conditions in strengths.items() if kind != "clean"]
    n, height = examples.sizes["shown"], (len(chosen) + 1) // 2
    figure = style.new_figure(1.05 * 4 * 2 + 1, 1.2 * n * height)
    for panel, condition in zip(figure.subfigures(height, 2, squeeze=False).flat, chosen, strict=False):
        example = examples.sel(condition=condition)
        panel.suptitle(condition, fontsize=9)
        for row, axes in enumerate(panel.subplots(n, 4, squeeze=False)):
            for axis, name in zip(axes, ("clean", "corrupted", "input", "reconstruction"), strict=True):
                common.show(axis, example[name].values[row], name if row == 0 else "")
            axes[0].set_ylabel(f"image {int(example['number'].values[row])}", fontsize=6)
    return figure
