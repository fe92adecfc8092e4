"""Small IDX data sets, written by hand from the format's description."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def idx(values: npt.NDArray[Any]) -> bytes:
    """An IDX file of unsigned bytes."""
    head = struct.pack(">BBBB", 0, 0, 8, values.ndim) + b"".join(struct.pack(">I", n) for n in values.shape)
    return head + values.astype(np.uint8).tobytes()


def drawn(n: int, seed: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Noise images whose brightest line gives the label, and the labels, equally many of each."""
    labels = np.arange(n) % 10
    images = np.random.default_rng(seed).integers(0, 100, (n, 28, 28))
    images[np.arange(n), 2 * labels + 4] = 255
    return images, labels


def write_idx(folder: Path, test_seed: int = 2) -> Path:
    """``folder`` with four plain IDX files, 240 training and 40 test images."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, n, seed in (("train", 240, 1), ("test", 40, test_seed)):
        for file, values in zip(NAMES[part], drawn(n, seed), strict=True):
            (folder / file).write_bytes(idx(values))
    return folder


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """``make_folder(name, test_seed=2)``: see ``write_idx``."""
    return lambda name="data", test_seed=2: write_idx(tmp_path / name, test_seed)
