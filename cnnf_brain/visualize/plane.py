"""Figure 9a: decision cells on a plane through an image, and what each feedback iteration does to the input there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from cnnf_brain.visualize.view import View, mean_interval

NEIGHBOURS = 100
COARSE = 11  # points on a side of a grid that is measured
SHARES = {
    "enters": "share of grid points that change to the centre's class",
    "leaves": "share of grid points that leave the centre's class",
    "enters_of_others": "of the points outside the centre's class, the share that changes to it",
    "leaves_of_own": "of the points inside the centre's class, the share that leaves it",
    "closer": "share of grid points whose input comes closer to the centre",
    "closer_to_another": "share of grid points whose input comes closer to another image, drawn at random (control)",
}


@dataclass(frozen=True)
class Plane:
    """centre + u axes[0] + v axes[1], for u and v in [-half_width, half_width].

    ``centre`` (C, H, W); ``axes`` (2, C, H, W), orthonormal: the two largest principal components of the images around;
    ``half_width``: the median distance of those to the centre.
    """

    centre: Tensor
    axes: Tensor
    half_width: float

    def places(self, side: int) -> Tensor:
        """(side * side, 2): u and v of a square grid, u changing fastest; for an odd side the centre is the middle."""
        steps = torch.linspace(-self.half_width, self.half_width, side, dtype=self.centre.dtype)
        v, u = torch.meshgrid(steps, steps, indexing="ij")
        return torch.stack([u.flatten(), v.flatten()], 1)

    def images(self, places: Tensor) -> Tensor:
        """(n, C, H, W) at (n, 2) places. They are not clipped to [0, 1]: that would leave the plane."""
        return self.centre + torch.einsum("np,pchw->nchw", places, self.axes)


def plane_through(image: Tensor, around: Tensor) -> Plane:
    """The plane through ``image`` (C, H, W) along the principal components of ``around`` (n >= 3, C, H, W)."""
    if len(around) < 3:
        raise ValueError(f"{len(around)} images around are too few for two principal components; give at least 3")
    flat = around.flatten(1).double()
    _, sizes, axes = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    if not sizes[1] > 1e-6 * sizes[0].clamp_min(1e-300):
        raise ValueError("the images around lie on one line, so that they span no plane; give others")
    axes = axes[:2]
    signs = torch.sign(axes.gather(1, axes.abs().argmax(1, keepdim=True)))  # the sign of a component is arbitrary
    distances = (flat - image.flatten().double()).norm(dim=1)
    shape = (2, *image.shape)
    return Plane(image, (axes * signs).reshape(shape).to(image.dtype), float(distances.median()))


def neighbours(images: Tensor, row: int, n: int = NEIGHBOURS) -> Tensor:
    """The n images nearest to image ``row`` (Euclidean), itself left out."""
    distances = (images - images[row]).flatten(1).norm(dim=1)
    distances[row] = torch.inf
    return images[distances.argsort()[: min(n, len(images) - 1)]]


def look(view: View, plane: Plane, side: int, other: Tensor | None = None) -> xr.Dataset:
    """What every iteration does on a grid of ``side`` x ``side`` points of the plane.

    Returns
    -------
    xarray.Dataset
        ``decision`` (iteration 0..N, point): the class. ``du``, ``dv`` (iteration, point): the change of the input since the
        grid point, projected on the plane; ``off``: the length of its part outside of the plane. ``to_centre``: distance of the
        input to the centre; ``to_other``: to the image ``other``, if there is one. ``u``, ``v`` (point): the place. ``centre``
        (iteration): the class of the centre itself. All in the units of images in [0, 1].
    """
    places = plane.places(side)
    images = plane.images(places)
    seen = view.see(torch.cat([images, plane.centre[None]]), whole=True)
    assert seen.inputs is not None
    inputs = seen.inputs[:, :-1]
    change = inputs - images
    along = torch.einsum("tnchw,pchw->tnp", change, plane.axes)
    off = change - torch.einsum("tnp,pchw->tnchw", along, plane.axes)
    data = {
        "decision": (("iteration", "point"), seen.classes[:, :-1].numpy()),
        "du": (("iteration", "point"), along[..., 0].numpy()),
        "dv": (("iteration", "point"), along[..., 1].numpy()),
        "off": (("iteration", "point"), off.flatten(2).norm(dim=-1).numpy()),
        "to_centre": (("iteration", "point"), (inputs - plane.centre).flatten(2).norm(dim=-1).numpy()),
        "u": (("point",), places[:, 0].numpy()),
        "v": (("point",), places[:, 1].numpy()),
        "centre": (("iteration",), seen.classes[:, -1].numpy()),
    }
    if other is not None:
        data["to_other"] = (("iteration", "point"), (inputs - other).flatten(2).norm(dim=-1).numpy())
    return xr.Dataset(data)


def shares(grid: xr.Dataset) -> list[dict[str, Any]]:
    """SHARES of one grid after 1..N iterations, one dict each, with the ``iteration``.

    The centre's class is the network's decision for it in the first pass. The shares "of others" and "of own" are NaN where
    there are no such points.
    """
    decision, own = grid["decision"].values, grid["centre"].values[0]
    inside = decision[0] == own
    rows = []
    for t in range(1, len(decision)):
        now = decision[t] == own
        enters, leaves = now & ~inside, inside & ~now
        row = {
            "iteration": t,
            "enters": enters.mean(),
            "leaves": leaves.mean(),
            "enters_of_others": enters.sum() / (~inside).sum() if (~inside).any() else np.nan,
            "leaves_of_own": leaves.sum() / inside.sum() if inside.any() else np.nan,
            "closer": np.mean(grid["to_centre"].values[t] < grid["to_centre"].values[0]),
            "closer_to_another": np.nan,
        }
        if "to_other" in grid:
            row["closer_to_another"] = np.mean(grid["to_other"].values[t] < grid["to_other"].values[0])
        rows.append({name: value if name == "iteration" else float(value) for name, value in row.items()})
    return rows


def measure(view: View, images: Tensor, rows: np.ndarray, side: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """``shares`` on the plane through each of ``rows`` of ``images``, each row of the table with its ``image``."""
    rng = np.random.default_rng(seed)
    for row in rows:
        other = int(rng.choice(np.delete(np.arange(len(images)), row)))
        grid = look(view, plane_through(images[row], neighbours(images, int(row))), side, images[other])
        kept = grid["centre"].values
        for found in shares(grid):
            yield {"image": int(row), "centre_keeps": float(kept[found["iteration"]] == kept[0]), **found}


def summarise(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and interval over images of every share at every iteration, and of enters minus leaves."""
    found: list[dict[str, Any]] = []
    for t in sorted({row["iteration"] for row in table}):
        rows = [row for row in table if row["iteration"] == t]
        columns = {name: np.array([row[name] for row in rows]) for name in SHARES}
        columns["enters_minus_leaves"] = columns["enters"] - columns["leaves"]
        columns["closer_minus_control"] = columns["closer"] - columns["closer_to_another"]
        for name, values in columns.items():
            mean, low, high = mean_interval(values)
            n = int(np.isfinite(values).sum())
            found.append({"iteration": int(t), "measure": name, "mean": mean, "low": low, "high": high, "images": n})
    return found
