"""Small IDX data sets, written by hand from the format's description."""

from __future__ import annotations

import struct

import numpy as np

NAMES = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
         "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")}  # fmt: skip


def idx(values: np.ndarray) -> bytes:
    """An IDX file of unsigned bytes."""
    head = struct.pack(">BBBB", 0, 0, 8, values.ndim) + b"".join(struct.pack(">I", n) for n in values.shape)
    return head + values.astype(np.uint8).tobytes()


def drawn(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise images whose brightest line gives the label, and the labels, equally many of each."""
    labels = np.arange(n) % 10
    images = np.random.default_rng(seed).integers(0, 100, (n, 28, 28))
    images[np.arange(n), 2 * labels + 4] = 255
    return images, labels
