"""Where a grid is worked at: its images, the folder of its results, and the folder of networks, which grids share."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnnf_brain.attacks import threats
from cnnf_brain.datasets import mnist
from cnnf_brain.io import sha256, short_hash
from cnnf_brain.robustness.grids import Grid, Model
from cnnf_brain.trainer import small
from cnnf_brain.trainer.card import WEIGHTS
from cnnf_brain.trainer.small import UNITS

DIGITS = 12  # of the hashes in names
TRAINING_IMAGES = 55_000  # all that are not kept for validation


@dataclass(frozen=True, eq=False)
class Workshop:
    """Where a grid is worked at: its folder, that of the networks (which grids share), the images, the device.

    ``images`` (n, 1, 28, 28) in [0, 1] and ``labels`` (n,) are those that are attacked.
    """

    grid: Grid
    folder: Path
    models: Path
    data_folder: Path | None
    data_hash: str
    images: Tensor
    labels: Tensor
    command: str
    device: torch.device | str = "cpu"

    def network_folder(self, model: Model, seed: int) -> Path:
        """Of the run of one seed; the same for the same configuration, whatever the grid."""
        configuration = model.settings(self.grid, seed).configuration(self.data_hash)
        n = model.iterations
        name = f"{self.grid.dataset}-{f'cnnf-{n}' if n else 'cnn'}-seed{seed}-{short_hash(configuration, DIGITS)}"
        return self.models / name

    def weights(self, model: Model, seed: int) -> str | None:
        """The SHA-256 of a network's weights as they are now; None where it is not trained."""
        return weights_hash(self.network_folder(model, seed))

    def load(self, model: Model, seed: int) -> threats.WithPreprocessing:
        """A trained network on the device, with its preprocessing."""
        module, _ = small.load(self.network_folder(model, seed))
        return threats.WithPreprocessing(module.to(self.device), UNITS)

    def card(self, model: Model, seed: int) -> dict[str, Any] | None:
        """What run.json says of a network; None where it is not trained."""
        path = self.network_folder(model, seed) / "card.json"
        if not path.exists():
            return None
        card = json.loads(path.read_text(encoding="utf-8"))
        return {
            "model": model.label, "seed": seed, "folder": path.parent.name, "weights_sha256": self.weights(model, seed),
            "epochs": card["configuration"]["epochs"], "training_images": card["configuration"].get("limit", TRAINING_IMAGES),
            "training_seconds": card["training_seconds"], "validation_accuracy": card["validation_accuracy"],
            "machine": card["machine"],
        }  # fmt: skip

    @property
    def configuration(self) -> dict[str, Any]:
        """What a folder of results belongs to; seeds, images and epsilons may be added later, training and attacks stay."""
        grid = self.grid
        return {"experiment": grid.name, "recipe": grid.recipe, "quick": grid.quick, "dataset": grid.dataset,
                "data_hash": self.data_hash, "part": grid.part, "limit": grid.limit, "epochs": grid.epochs,
                "learning_rate": grid.learning_rate, "amp": grid.amp, "weaker": grid.weaker}  # fmt: skip


def weights_hash(folder: Path) -> str | None:
    """The SHA-256 of the weights of the run in ``folder``; None where it is not finished, or they are gone."""
    path = folder / WEIGHTS
    if not (path.exists() and (folder / "card.json").exists()):
        return None
    return _hashed(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1000)
def _hashed(path: Path, _written_at: int) -> str:
    return sha256(path)


def open_workshop(
    grid: Grid,
    folder: Path,
    models: Path,
    command: str,
    *,
    data_folder: Path | None = None,
    device: torch.device | str = "cpu",
) -> Workshop:
    """Check the data and take the images that are attacked: the first of the test or of the validation images."""
    source = mnist.find(grid.dataset, data_folder)
    data_hash = source.check()
    images = source.read("test") if grid.part == "test" else mnist.split(source.read("train"))[1]
    if grid.images > len(images):
        raise ValueError(f"images: {grid.images} were asked for, there are {len(images)} {grid.part} images")
    chosen = images[np.arange(grid.images)]
    pixels = chosen.images.unsqueeze(1).float() / 255
    return Workshop(
        grid, folder, models, source.folder, data_hash, pixels.to(device), chosen.labels.to(device), command, device
    )
