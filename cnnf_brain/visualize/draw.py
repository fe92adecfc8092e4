"""The written tables of a figure's folder -> figure.png and figure.svg."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from cnnf_brain import style
from cnnf_brain.visualize.write import opened

# Ten classes: matplotlib's tab10, lightened so that the arrows stand out; cells are told apart by their borders too.
CELLS = ("#aec7e8", "#ffbb78", "#98df8a", "#ff9896", "#c5b0d5", "#c49c94", "#f7b6d2", "#c7c7c7", "#dbdb8d", "#9edae5")


def draw(figure: str, folder: Path, names: Sequence[str]) -> None:
    """Draw ``figure`` ("9a", ..., "9d") from the tables in ``folder``; ``names`` of the classes."""
    with style.styled():
        made = {"9a": _planes, "9b": _attention, "9c": _attention, "9d": _restored}[figure](folder, names)
    style.save(made, folder)


def _planes(folder: Path, names: Sequence[str]) -> Any:
    from matplotlib.colors import ListedColormap

    data = opened(folder / "grids.nc")
    side, n = int(data.attrs["side"]), data.sizes["image"]
    figure = style.new_figure(9.5, 3.9 * n)
    axes = figure.subplots(n, 2, squeeze=False)
    for row, (cells, lengths) in enumerate(axes):
        one = data.isel(image=row)
        u, v = (one[name].values.reshape(side, side) for name in ("u", "v"))
        half = abs(u).max()
        extent = (-half, half, -half, half)
        decision = one["decision"].values[0].reshape(side, side).astype(int)
        cells.imshow(
            decision, origin="lower", extent=extent, cmap=ListedColormap(CELLS), vmin=-0.5, vmax=9.5, interpolation="nearest"
        )
        for c in np.unique(decision):
            cells.contour(u, v, (decision == c).astype(float), levels=[0.5], colors="#555555", linewidths=0.5)
            places = np.argwhere(decision == c)
            y, x = places[((places - places.mean(0)) ** 2).sum(1).argmin()]
            if len(places) > side:
                near = half / 10 * (np.hypot(u[y, x], v[y, x]) < half / 10)  # not over the cross
                cells.text(u[y, x], v[y, x] - near, _name(c, names), ha="center", va="center", fontsize=7, color="#222222")
        _arrows(cells, one, side)
        cells.plot(0, 0, "+", color="black", markersize=10, markeredgewidth=2)
        cells.set(
            title=f"validation image {int(one['image'])}: {_name(one['centre'].values[0], names)}",
            xlabel="PC 1",
            ylabel="PC 2",
        )
        cells.grid(visible=False)
        shown = lengths.imshow(one["off"].values[-1].reshape(side, side), origin="lower", extent=extent, cmap="cividis")
        lengths.plot(0, 0, "+", color="white", markersize=10, markeredgewidth=2)
        lengths.set(title=f"what leaves the plane, iteration {len(one['off']) - 1}", xlabel="PC 1")
        lengths.grid(visible=False)
        figure.colorbar(shown, ax=lengths, label="length (units of [0, 1])")
    handles = [
        axes[0, 0].plot([], [], color=style.colour(t), label=f"to iteration {t}")[0] for t in range(1, len(data["du"][0]))
    ]
    axes[0, 0].legend(handles=handles, loc="lower left", frameon=True, framealpha=0.85, fontsize=7)
    return figure


def _arrows(axis: Any, one: xr.Dataset, side: int, every: int = 4) -> None:
    """The path of every fourth grid point of each direction from iteration to iteration."""
    keep = np.zeros((side, side), bool)
    keep[every // 2 :: every, every // 2 :: every] = True
    keep = keep.flatten()
    u, v = one["u"].values[keep], one["v"].values[keep]
    for t in range(1, len(one["du"])):
        (a, b), (c, d) = ((one["du"].values[s][keep], one["dv"].values[s][keep]) for s in (t - 1, t))
        axis.quiver(u + a, v + b, c - a, d - b, angles="xy", scale_units="xy", scale=1, width=0.004, color=style.colour(t))


def _attention(folder: Path, names: Sequence[str]) -> Any:
    data = opened(folder / "examples.nc")
    n, iterations = data.sizes["shown"], data.sizes["iteration"]
    if n == 0:
        figure = style.new_figure(5, 1)
        figure.text(0.5, 0.5, "No image qualifies: feedback corrects none and spoils none.", ha="center", va="center")
        return figure
    figure = style.new_figure(1.25 * (iterations + 1) + 1.2, 1.45 * n + 0.3)
    axes = figure.subplots(n, iterations + 1, squeeze=False)
    for row in range(n):
        one = data.isel(shown=row)
        picture = _grey(one["image"].values)
        _show(axes[row, 0], picture, f"{_name(one['label'].values, names)}")
        axes[row, 0].set_ylabel(f"{one['group'].values!s}\nimage {int(one['number'])}", fontsize=6)
        for t in range(iterations):
            axis, cam = axes[row, t + 1], one["attention"].values[t]
            decided = int(one["decision"].values[t])
            sign = "✓" if decided == int(one["label"]) else "✗"
            _show(axis, picture, f"{t}: {_name(decided, names)} {sign}")
            top = cam.max() or 1.0
            height, width = picture.shape[:2]
            axis.imshow(
                cam / top,
                cmap="inferno",
                alpha=0.6,
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
                interpolation="bilinear",
            )
    return figure


def _restored(folder: Path, names: Sequence[str]) -> Any:
    data = opened(folder / "examples.nc")
    conditions = [str(one) for one in data["condition"].values]
    kinds = list(dict.fromkeys(one.rsplit(" ", 1)[0] for one in conditions if one != "clean"))
    middle = {kind: [c for c in conditions if c.rsplit(" ", 1)[0] == kind] for kind in kinds}
    chosen = [found[len(found) // 2] for found in middle.values()]
    n, columns = data.sizes["shown"], ("clean", "corrupted", "input", "reconstruction")
    figure = style.new_figure(1.05 * 4 * 2 + 1, 1.2 * n * ((len(chosen) + 1) // 2))
    panels = figure.subfigures((len(chosen) + 1) // 2, 2, squeeze=False).flat
    for panel, condition in zip(panels, chosen, strict=False):
        one = data.isel(condition=conditions.index(condition))
        axes = panel.subplots(n, 4, squeeze=False)
        panel.suptitle(condition, fontsize=9)
        for row in range(n):
            for axis, name in zip(axes[row], columns, strict=True):
                _show(axis, _grey(one[name].values[row]), name if row == 0 else "")
            axes[row, 0].set_ylabel(f"image {int(np.ravel(one['number'].values)[row])}", fontsize=6)
    return figure


def _show(axis: Any, picture: np.ndarray, title: str) -> None:
    axis.imshow(picture, vmin=0, vmax=1)
    axis.set_title(title, fontsize=7)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.grid(visible=False)


def _grey(image: np.ndarray) -> np.ndarray:
    """(C, H, W) as matplotlib shows it."""
    return image[0] if len(image) == 1 else image.transpose(1, 2, 0).clip(0, 1)


def _name(number: Any, names: Sequence[str]) -> str:
    number = int(number)
    return names[number] if number < len(names) else str(number)
