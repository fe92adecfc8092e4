"""Figure 9a: decision cells on a plane through an image, and what each feedback iteration does to the input there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure as Drawing
from torch import Tensor

from cnnf_brain import style
from cnnf_brain.report.runs import Figure
from cnnf_brain.visualize import view as common
from cnnf_brain.visualize.view import Data, Part, Row, Sample, View

NEIGHBOURS = 100
COARSE, FINE = 11, 41  # points on a side of a grid that is measured, and of a grid that is drawn
# Ten classes: matplotlib's tab10, lightened so that the arrows stand out; cells are told apart by their borders too.
CELLS = ("#aec7e8", "#ffbb78", "#98df8a", "#ff9896", "#c5b0d5", "#c49c94", "#f7b6d2", "#c7c7c7", "#dbdb8d", "#9edae5")
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
    """centre (C, H, W) + u axes[0] + v axes[1], for u and v in [-half_width, half_width]; ``axes`` (2, C, H, W) are orthonormal."""

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
    """The plane through ``image`` (C, H, W) along the two largest principal components of ``around`` (n >= 3, C, H, W).

    Its half width is the median distance of those to the image.
    """
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
    """What every iteration does on a grid of ``side`` x ``side`` points of the plane, in the units of images in [0, 1].

    ``decision`` (iteration 0..N, point): the class. ``du``, ``dv`` (iteration, point): the change of the input since the grid
    point, projected on the plane; ``off``: the length of its part outside of the plane. ``to_centre``, ``to_other``: distance of
    the input to the centre, and to the image ``other``. ``u``, ``v`` (point): the place. ``centre`` (iteration): its own class.
    """
    places = plane.places(side)
    images = plane.images(places)
    seen = view.see(torch.cat([images, plane.centre[None]]), whole=True)
    inputs = seen.inputs[:, :-1]
    change = inputs - images
    along = torch.einsum("tnchw,pchw->tnp", change, plane.axes)
    off = change - torch.einsum("tnp,pchw->tnchw", along, plane.axes)
    found = {"decision": seen.classes[:, :-1], "du": along[..., 0], "dv": along[..., 1]}
    found |= {"off": off.flatten(2).norm(dim=-1), "to_centre": (inputs - plane.centre).flatten(2).norm(dim=-1)}
    data: dict[str, Any] = {name: (("iteration", "point"), values.numpy()) for name, values in found.items()}
    data |= {name: (("point",), values.numpy()) for name, values in zip("uv", places.T, strict=True)}
    data["centre"] = (("iteration",), seen.classes[:, -1].numpy())
    if other is not None:
        data["to_other"] = (("iteration", "point"), (inputs - other).flatten(2).norm(dim=-1).numpy())
    return xr.Dataset(data)


def shares(grid: xr.Dataset) -> list[Row]:
    """SHARES of a grid after 1..N iterations, a row each, with the ``iteration``; NaN over no points.

    The centre's class is the network's decision for it in the first pass.
    """
    decision, own = grid["decision"].values, grid["centre"].values[0]
    inside = decision[0] == own
    rows: list[Row] = []
    for t in range(1, len(decision)):
        now = decision[t] == own
        enters, leaves = now & ~inside, inside & ~now
        values = {"enters": enters.mean(), "leaves": leaves.mean()}
        values["enters_of_others"] = enters.sum() / (~inside).sum() if (~inside).any() else np.nan
        values["leaves_of_own"] = leaves.sum() / inside.sum() if inside.any() else np.nan
        for name, to in (("closer", "to_centre"), ("closer_to_another", "to_other")):
            values[name] = np.mean(grid[to].values[t] < grid[to].values[0]) if to in grid else np.nan
        rows.append({"iteration": t} | {name: float(value) for name, value in values.items()})
    return rows


def summarise(table: Sequence[Row]) -> list[Row]:
    """Mean and interval over images of every share at every iteration, and of enters minus leaves."""
    found: list[Row] = []
    for t in sorted({row["iteration"] for row in table}):
        columns = {name: np.array([row[name] for row in table if row["iteration"] == t]) for name in SHARES}
        columns["enters_minus_leaves"] = columns["enters"] - columns["leaves"]
        columns["closer_minus_control"] = columns["closer"] - columns["closer_to_another"]
        for name, values in columns.items():
            row: Row = {"iteration": int(t), "measure": name}
            row |= zip(("mean", "low", "high"), common.mean_interval(values), strict=True)
            row |= {"images": int(np.isfinite(values).sum()), "meaning": SHARES.get(name, name.replace("_", " "))}
            found.append(row)
    return found


def figure_9a(sample: Sample) -> Part:
    """Decision cells: images.csv, table.csv and grids.nc."""
    view, pool = sample.view, sample.pool
    view.check(pool, restores=True)
    table: list[Row] = []
    rng = np.random.default_rng(sample.seed)
    for done, row in enumerate(sample.rows.tolist(), 1):
        other = int(rng.choice(np.delete(np.arange(len(pool)), row)))
        grid = look(view, plane_through(pool[row], neighbours(pool, row)), COARSE, pool[other])
        keeps = (grid["centre"].values == grid["centre"].values[0]).astype(float)
        named = {"label": int(sample.pool_labels[row]), "image": row}
        table += [{**named, "centre_keeps": float(keeps[r["iteration"]]), **r} for r in shares(grid)]
        if done % 20 == 0:
            sample.tell(f"{done} of {len(sample.rows)} images")
    drawn = common.drawn(sample.rows, 3, sample.seed).tolist()
    planes = {row: plane_through(pool[row], neighbours(pool, row)) for row in drawn}
    grids = [look(view, plane, FINE).assign_coords(image=row) for row, plane in planes.items()]
    summary = summarise(table)
    drawing = common.joined(grids, "image")
    drawing.attrs["side"] = FINE
    tables = {"images.csv": table, "table.csv": summary}
    return Part(about(summary, sample.seed), tables, {"grids.nc": drawing}, draw)


def about(table: Sequence[Row], seed: int) -> Figure:
    """What the table says."""
    last = max(row["iteration"] for row in table)
    at = {row["measure"]: row for row in table if row["iteration"] == last}
    shown = {name: common.percent(row["mean"], row["low"], row["high"]) for name, row in at.items()}
    net, gain = at["enters_minus_leaves"], at["closer_minus_control"]
    verdict = "more" if net["low"] > 0 else "fewer" if net["high"] < 0 else "not decidedly more or fewer"
    tested = {"crosses": net, "comes_closer": gain}
    claims = [common.claim("9a", name, shown, row["low"], row["high"]) for name, row in tested.items()]
    values = {"last": last, "verdict": verdict, "seed": seed, "side": COARSE, "neighbours": NEIGHBOURS}
    return common.worded("9a", claims, net["images"], **shown, **values)


def draw(data: Data, names: Sequence[str]) -> Drawing:
    """The grids: decision cells with the paths of the points, and what leaves the plane."""
    grids = data["grids.nc"]
    side, n = int(grids.attrs["side"]), grids.sizes["image"]
    figure = style.new_figure(9.5, 3.9 * n)
    axes = figure.subplots(n, 2, squeeze=False)
    for row, (cells, lengths) in enumerate(axes):
        grid = grids.isel(image=row)
        half = float(abs(grid["u"]).max())
        extent = (-half, half, -half, half)
        _cells(cells, grid, side, extent, names)
        _arrows(cells, grid, side)
        title = f"validation image {int(grid['image'])}: {common.class_name(grid['centre'].values[0], names)}"
        cells.set(title=title, xlabel="PC 1", ylabel="PC 2")
        off = grid["off"].values[-1].reshape(side, side)
        shown = lengths.imshow(off, origin="lower", extent=extent, cmap="cividis")
        lengths.set(title=f"what leaves the plane, iteration {len(grid['off']) - 1}", xlabel="PC 1")
        figure.colorbar(shown, ax=lengths, label="length (units of [0, 1])")
        for axis, colour in ((cells, "black"), (lengths, "white")):
            axis.plot(0, 0, "+", color=colour, markersize=10, markeredgewidth=2)
            axis.grid(visible=False)
    first, iterations = axes[0, 0], range(1, grids.sizes["iteration"])
    handles = [first.plot([], [], color=style.colour(t), label=f"to iteration {t}")[0] for t in iterations]
    first.legend(handles=handles, loc="lower left", frameon=True, framealpha=0.85, fontsize=7)
    return figure


def _cells(axis: Any, grid: xr.Dataset, side: int, extent: tuple[float, ...], names: Sequence[str]) -> None:
    """The decision cells of the first pass, with their borders and names."""
    from matplotlib.colors import ListedColormap

    u, v = (grid[name].values.reshape(side, side) for name in ("u", "v"))
    decision = grid["decision"].values[0].reshape(side, side).astype(int)
    look = {"cmap": ListedColormap(CELLS), "vmin": -0.5, "vmax": 9.5, "interpolation": "nearest"}
    axis.imshow(decision, origin="lower", extent=extent, **look)
    near = abs(u).max() / 10
    for c in np.unique(decision):
        axis.contour(u, v, (decision == c).astype(float), levels=[0.5], colors="#555555", linewidths=0.5)
        places = np.argwhere(decision == c)
        y, x = places[((places - places.mean(0)) ** 2).sum(1).argmin()]
        if len(places) > side:
            height = v[y, x] - near * (np.hypot(u[y, x], v[y, x]) < near)  # not over the cross
            axis.text(u[y, x], height, common.class_name(c, names), ha="center", va="center", fontsize=7, color="#222222")


def _arrows(axis: Any, grid: xr.Dataset, side: int, every: int = 4) -> None:
    """The path of every fourth grid point of each direction from iteration to iteration."""
    keep = np.zeros((side, side), bool)
    keep[every // 2 :: every, every // 2 :: every] = True
    u, v, du, dv = (grid[name].values[..., keep.flatten()] for name in ("u", "v", "du", "dv"))
    for t in range(1, len(du)):
        start = u + du[t - 1], v + dv[t - 1]
        look = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.004, "color": style.colour(t)}
        axis.quiver(*start, du[t] - du[t - 1], dv[t] - dv[t - 1], **look)
