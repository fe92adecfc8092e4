"""The four parts of Figure 9: images and labels -> the tables of a folder, and what they say (summary.json)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from cnnf_brain import results
from cnnf_brain.attacks.gradient import PGD, Threat
from cnnf_brain.io import array_hash, cache_folder, short_hash
from cnnf_brain.visualize import about, attention, plane, restoration
from cnnf_brain.visualize.restoration import Condition
from cnnf_brain.visualize.view import SHOWN, View, drawn, mean_interval
from cnnf_brain.visualize.write import joined, opened, write_csv, write_dataset

FINE = 41  # points on a side of a grid that is drawn
EPSILONS = (0.02, 0.05, 0.1)
STRENGTHS = [Condition("blur", s) for s in (0.5, 1.0, 1.5)]
STRENGTHS += [Condition("noise", s) for s in (0.1, 0.2, 0.3)]
STRENGTHS += [Condition("salt and pepper", s) for s in (0.05, 0.1, 0.2)]
LOOKED_AT = [Condition("clean"), Condition("blur", 1.0), Condition("noise", 0.2)]


@dataclass(frozen=True)
class Given:
    """What a figure is made of: ``images`` (n, C, H, W) in [0, 1] with ``labels`` (n,), a seed, and how many images to measure
    (None: all)."""

    view: View
    images: Tensor
    labels: Tensor
    n: int | None
    seed: int = 0
    tell: Callable[[str], None] = print

    def sample(self) -> np.ndarray:
        """Row numbers of ``n`` images, drawn with the seed."""
        return drawn(np.arange(len(self.images)), self.n or len(self.images), self.seed)


def figure_9a(given: Given, folder: Path) -> dict[str, Any]:
    """Decision cells; images.csv, table.csv and grids.nc."""
    given.view.check(given.images, given.labels, restores=True)
    rows = given.sample()
    table = []
    for done, row in enumerate(plane.measure(given.view, given.images, rows, plane.COARSE, given.seed), 1):
        table.append({"label": int(given.labels[row["image"]]), **row})
        if done % (20 * given.view.model.iterations) == 0:
            given.tell(f"{done // given.view.model.iterations} of {len(rows)} images")
    grids = []
    for row in drawn(rows, 3, given.seed):
        around = plane.neighbours(given.images, int(row))
        grids.append(
            plane.look(given.view, plane.plane_through(given.images[row], around), FINE).assign_coords(image=int(row))
        )
    summary = plane.summarise(table)
    for row in summary:
        row["meaning"] = plane.SHARES.get(str(row["measure"]), str(row["measure"]).replace("_", " "))
    write_csv(folder / "images.csv", table)
    write_csv(folder / "table.csv", summary)
    write_dataset(folder / "grids.nc", joined(grids, "image").assign_attrs(side=FINE))
    return about.about_9a(given.seed, summary)


def figure_9b(given: Given, folder: Path, epsilons: Sequence[float] = EPSILONS) -> dict[str, Any]:
    """PGD-40: accuracy by iteration, corrected and spoiled images, Grad-CAM of both; table.csv, focus.csv and examples.nc."""
    given.view.check(given.images, given.labels)
    rows = given.sample()
    images, labels = given.images[rows], given.labels[rows]
    middle = sorted(epsilons)[len(epsilons) // 2]
    layer = attention.last_map(given.view, images)
    table, focus, examples = [], [], []
    first_pass, end_to_end = given.view.threats()
    for threat, strengths in ((first_pass, epsilons), (end_to_end, [middle])):  # the second costs nine times as much
        for epsilon in strengths:
            given.tell(f"PGD-40, {threat.name}, epsilon {epsilon:g}")
            made = _attacked(given, threat, images, labels, epsilon)
            classes = given.view.see(made).classes.numpy()
            table += _accuracies(threat.name, epsilon, classes, labels.numpy())
            if epsilon == middle:
                cams, decided = attention.grad_cam(given.view, made, layer)
                found = attention.groups(decided.numpy(), labels.numpy())
                areas = attention.area(cams)
                for name, members in found.items():
                    if len(members):
                        focus += [{"threat": threat.name, "epsilon": epsilon, "group": name, **one}
                                  for one in attention.summarise(areas, members)]  # fmt: skip
                    if name in ("corrected", "spoiled"):
                        chosen = drawn(members, SHOWN, given.seed)
                        examples.append(_examples(made, cams, decided, labels, chosen, f"{threat.name}, {name}", rows))
    write_csv(folder / "table.csv", table)
    write_csv(folder / "focus.csv", focus)
    write_dataset(folder / "examples.nc", joined(examples, "shown"))
    return about.about_9b(given.seed, table, focus, layer, middle)


def _attacked(given: Given, threat: Threat, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """The PGD-40 examples (n, C, H, W) of the images."""
    device = given.view.network.device
    return PGD(steps=40, seed=given.seed)(threat, images.to(device), labels.to(device), [epsilon]).clipped[0].cpu()


def _accuracies(threat: str, epsilon: float, classes: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    right = classes == labels
    found = attention.groups(classes, labels)
    rows = []
    for t in range(len(classes)):
        mean, low, high = mean_interval(right[t].astype(float))
        change, change_low, change_high = mean_interval(right[t].astype(float) - right[0])
        row = {"threat": threat, "epsilon": epsilon, "iteration": t, "images": len(labels), "accuracy": mean}
        row |= {
            "accuracy_low": low,
            "accuracy_high": high,
            "change": change,
            "change_low": change_low,
            "change_high": change_high,
        }
        so_far = attention.groups(classes[: t + 1], labels)
        rows.append(row | {"corrected": len(so_far["corrected"]), "spoiled": len(so_far["spoiled"])})
    assert rows[-1]["corrected"] == len(found["corrected"])
    return rows


def _examples(
    images: Tensor, cams: Tensor, decided: Tensor, labels: Tensor, chosen: np.ndarray, name: str, rows: np.ndarray
) -> xr.Dataset:
    data = {
        "image": (("shown", "channel", "row", "column"), images[chosen].numpy()),
        "attention": (("shown", "iteration", "y", "x"), cams[:, chosen].transpose(0, 1).numpy()),
        "decision": (("shown", "iteration"), decided[:, chosen].T.numpy()),
        "label": (("shown",), labels[chosen].numpy()),
        "number": (("shown",), rows[chosen]),
        "group": (("shown",), np.full(len(chosen), name, dtype=object)),
    }
    return xr.Dataset(data)


def figure_9c(given: Given, folder: Path) -> dict[str, Any]:
    """Grad-CAM over iterations on clean, blurred and noisy images; table.csv and examples.nc."""
    given.view.check(given.images, given.labels)
    rows = given.sample()
    images, labels = given.images[rows], given.labels[rows]
    layer = attention.last_map(given.view, images)
    chosen = drawn(np.arange(len(rows)), SHOWN, given.seed)
    table, examples = [], []
    for condition in LOOKED_AT:
        given.tell(str(condition))
        shown = restoration.corrupt(images, condition, given.seed)
        cams, decided = attention.grad_cam(given.view, shown, layer)
        for row in attention.summarise(attention.area(cams), np.arange(len(rows))):
            accuracy = float((decided[row["iteration"]] == labels).double().mean())
            table.append({"condition": str(condition), "accuracy": accuracy, **row})
        examples.append(_examples(shown, cams, decided, labels, chosen, str(condition), rows))
    write_csv(folder / "table.csv", table)
    write_dataset(folder / "examples.nc", joined(examples, "shown"))
    return about.about_9c(given.seed, table, layer)


def figure_9d(given: Given, folder: Path, epsilons: Sequence[float] = EPSILONS) -> dict[str, Any]:
    """Restored images; images.nc, table.csv and examples.nc.

    What is finished of a run that is interrupted stays in the cache folder, and the next one continues from there.
    """
    given.view.check(given.images, given.labels, restores=True)
    parts = _parts(given)
    rows = given.sample()
    images, labels = given.images[rows], given.labels[rows]
    chosen = drawn(np.arange(len(rows)), SHOWN, given.seed)
    conditions = [Condition("clean"), *STRENGTHS, *(Condition("PGD", epsilon) for epsilon in epsilons)]
    table, every, examples = [], [], []
    for condition in conditions:
        given.tell(str(condition))
        found, shown = _finished(parts, condition, partial(_restored, given, images, labels, chosen, condition))
        table += restoration.summarise(found, condition)
        every.append(found)
        examples.append(shown.assign_coords(number=("shown", rows[chosen])))
    names = xr.DataArray([str(one) for one in conditions], dims="condition", name="condition")
    write_dataset(folder / "images.nc", joined(every, names).assign_coords(number=("image", rows)))
    write_csv(folder / "table.csv", table)
    write_dataset(folder / "examples.nc", joined(examples, names))
    shutil.rmtree(parts, ignore_errors=True)
    return about.about_9d(given.seed, table)


def _parts(given: Given) -> Path:
    """Where the finished conditions of this very question are kept, for this version of the code."""
    view = given.view
    question = [view.network.digest, view.network.preprocessing, view.model.settings.as_dict(), given.n, given.seed]
    question += [array_hash(given.images.numpy()), array_hash(given.labels.numpy())]
    return cache_folder("figures", short_hash([*question, results.versions(), results.commit()], 16))


def _finished(
    parts: Path, condition: Condition, make: Callable[[], tuple[xr.Dataset, xr.Dataset]]
) -> tuple[xr.Dataset, xr.Dataset]:
    """What ``make`` gives, from ``parts`` where an interrupted run has left it: PGD takes long."""
    paths = [parts / f"{condition}-{name}.nc" for name in ("distances", "examples")]
    try:
        return opened(paths[0]), opened(paths[1])
    except FileNotFoundError:
        made = make()
        for path, dataset in zip(paths, made, strict=True):
            write_dataset(path, dataset)
        return made


def _restored(
    given: Given, images: Tensor, labels: Tensor, chosen: np.ndarray, condition: Condition
) -> tuple[xr.Dataset, xr.Dataset]:
    """Distances of all images, and the images of the examples, under one condition."""
    corrupted = _corrupted(given, images, labels, condition)
    seen = given.view.see(corrupted[chosen], whole=True)
    assert seen.inputs is not None
    assert seen.reconstructions is not None
    shown = {"clean": images[chosen], "corrupted": corrupted[chosen], "input": seen.inputs[-1]}
    shown["reconstruction"] = seen.reconstructions[-1]
    examples = xr.Dataset({name: (("shown", "channel", "row", "column"), made.numpy()) for name, made in shown.items()})
    return restoration.restore(given.view, images, corrupted, labels), examples


def _corrupted(given: Given, images: Tensor, labels: Tensor, condition: Condition) -> Tensor:
    if condition.name != "PGD":
        return restoration.corrupt(images, condition, given.seed)
    return _attacked(given, given.view.threats()[0], images, labels, condition.strength)


FIGURES: dict[str, Callable[[Given, Path], dict[str, Any]]] = {
    "9a": figure_9a,
    "9b": figure_9b,
    "9c": figure_9c,
    "9d": figure_9d,
}
IMAGES = {"9a": 200, "9b": 300, "9c": 500, "9d": None}  # measured by default; None: all validation images
__all__ = ["FIGURES", "IMAGES", "Given", "figure_9a", "figure_9b", "figure_9c", "figure_9d"]
