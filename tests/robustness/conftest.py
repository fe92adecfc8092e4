"""A data set of a few hundred images and a grid of a few networks, for the tests of grids."""

from __future__ import annotations

import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cnnf_brain.attacks.gradient import PGD
from cnnf_brain.robustness import grids, open_workshop, tasks, work
from cnnf_brain.robustness.cells import Examination, Training, Workshop
from cnnf_brain.robustness.grids import Against, Grid, Model, Panel

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", 240),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", 40),
}
FGSM, PGD7 = Against("FGSM"), Against("PGD-7")
END = (Against("PGD-100", "end_to_end", True), Against("PGD-100", "transfer", True), Against("PGD-100", "first_pass", True))


@pytest.fixture(scope="session")
def idx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four IDX files: noise images whose brightest line gives the label."""
    folder = tmp_path_factory.mktemp("idx")
    for seed, (images_name, labels_name, n) in enumerate(FILES.values()):
        labels = np.arange(n) % 10
        images = np.random.default_rng(seed).integers(0, 100, (n, 28, 28))
        images[np.arange(n), 2 * labels + 4] = 255
        for name, values in ((images_name, images), (labels_name, labels)):
            head = struct.pack(">BBBB", 0, 0, 8, values.ndim) + b"".join(struct.pack(">I", size) for size in values.shape)
            (folder / name).write_bytes(head + values.astype(np.uint8).tobytes())
    return folder


def tiny_grid() -> Grid:
    """CNN and CNN-F-1, two seeds, two epsilons, 6 images, 20 training images."""
    models = (Model("CNN", 0), Model("CNN-F-1", 1))
    panels = (Panel("FGSM", FGSM), Panel("at test", PGD7, "iteration"), Panel("in training", PGD7, "trained"))
    whole = Grid("fig6", "a tiny grid", "does it run?", "mnist", models, (FGSM, PGD7, *END), panels, iterations=2)
    return replace(
        whole,
        seeds=(0, 1),
        epsilons=(0.0, 0.2),
        strong_epsilons=(0.2,),
        strong_seeds=(0,),
        images=6,
        strong_images=3,
        limit=20,
        epochs=1,
        weaker=True,
        quick=True,
    )


def weaken(patch: pytest.MonkeyPatch) -> None:
    """Attacks and examinations of a few steps."""
    few = {"steps": (1, 2), "epsilons": (0.1, 1.0), "images": 6, "slack": 0.05}
    patch.setattr(grids, "WEAKER", {**grids.WEAKER, "PGD-7": PGD(2), "PGD-100": PGD(2, relative_step=0.6)})
    patch.setattr(Examination, "settings", property(lambda self: dict(few)))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Grid:
    """``tiny_grid`` with weak attacks."""
    weaken(monkeypatch)
    return tiny_grid()


@pytest.fixture(scope="session")
def trained(idx_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The networks of ``tiny_grid``, trained once; to be copied."""
    folder = tmp_path_factory.mktemp("trained")
    shop = open_workshop(tiny_grid(), folder / "figure", folder / "models", "the command", data_folder=idx_folder)
    work([task for task in tasks(shop) if isinstance(task, Training)], None, lambda *_: None)
    return folder / "models"


@pytest.fixture(scope="session")
def alone(idx_folder: Path, tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Workshop:
    """``tiny_grid``, done by one process from beginning to end; to be copied."""
    folder = tmp_path_factory.mktemp("alone")
    shutil.copytree(trained, folder / "models")
    with pytest.MonkeyPatch.context() as patch:
        weaken(patch)
        shop = open_workshop(tiny_grid(), folder / "figure", folder / "models", "the command", data_folder=idx_folder)
        work(tasks(shop), None, lambda *_: None)
    return shop
