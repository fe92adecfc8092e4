"""A small CNN-F with images for it, and small IDX data sets."""

from __future__ import annotations

import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnnf_brain.images import Preprocessing
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.networks import Network
from cnnf_brain.visualize import View

SIDE = 12


def layers(seed: int = 0, channels: int = 1) -> nn.Sequential:
    """A CNN with a pooling layer straight above a ReLU, random weights."""
    torch.manual_seed(seed)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 5, 3),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(5, 6, 2),
            relu2=nn.ReLU(),
            flat=nn.Flatten(),
            fc=nn.Linear(6 * 16, 4),
        )
    )


def network(module: nn.Module, mean: tuple[float, ...] = (0.5,), std: tuple[float, ...] = (0.5,)) -> Network:
    """``module`` as loading gives it, on images of SIDE x SIDE pixels; its range is [-1, 1] unless told otherwise."""
    return Network(module, Preprocessing(SIDE, mean, std), name="test", weights="random")


def view(seed: int = 0, **feedback: Any) -> View:
    """The CNN-F of ``layers``, two iterations."""
    settings = {"iterations": 2, "step": 0.3, "match_norm": True, **feedback}
    return View(network(CNNF(layers(seed), **settings).eval()), batch_size=5)


def images(n: int = 12, seed: int = 1, side: int = SIDE) -> Tensor:
    """(n, 1, side, side) in [0, 1]."""
    return torch.rand((n, 1, side, side), generator=torch.Generator().manual_seed(seed))


def labels(n: int = 12) -> Tensor:
    """(n,) of four classes."""
    return torch.arange(n) % 4


def idx_folder(folder: Path, n: int = 240, side: int = 28) -> Path:
    """Four IDX files of noise images whose brightest line gives the label."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count, seed in (("train", n, 1), ("t10k", 40, 2)):
        digits = np.arange(count) % 10
        pixels = np.random.default_rng(seed).integers(0, 100, (count, side, side))
        pixels[np.arange(count), 2 * digits + 4] = 255
        for name, values in (("images-idx3", pixels), ("labels-idx1", digits)):
            head = struct.pack(">BBBB", 0, 0, 8, values.ndim) + b"".join(struct.pack(">I", size) for size in values.shape)
            (folder / f"{part}-{name}-ubyte").write_bytes(head + values.astype(np.uint8).tobytes())
    return folder
