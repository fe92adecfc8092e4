"""training/imagenet.py with a network of a few hundred weights in place of torchvision's, and images to go with it."""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from cnnf_brain.model import zoo
from cnnf_brain.train import imagenet as _imagenet

SIZE = 32
WNIDS = ("n01", "n02", "n03")
imagenet: Any = _imagenet


def tiny(arch: str, num_classes: int, head: str = "torchvision", *, dropout: float = 0.3) -> nn.Sequential:
    """Named as torchvision's VGGs are: convolutions, average pooling, a classifier of two layers with dropout, or of one."""
    batch_norm = (nn.BatchNorm2d(6),) if arch.endswith("_bn") else ()
    full = nn.Sequential(nn.Dropout(dropout), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, num_classes))
    linear = head == "linear"
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(nn.Conv2d(3, 6, 5, stride=4), *batch_norm, nn.ReLU(), nn.MaxPool2d(2)),
            avgpool=nn.AdaptiveAvgPool2d(1 if linear else 2),
            flatten=nn.Flatten(),
            classifier=nn.Linear(6, num_classes) if linear else full,
        )
    )


def without_dropout(arch: str, num_classes: int, head: str = "torchvision") -> nn.Sequential:
    return tiny(arch, num_classes, head, dropout=0.0)


def child(argv: list[str], log: str, environment: dict[str, str] | None = None, builder: Any = tiny) -> None:
    """The command in a process of its own, which ends with its exit code; it writes both its streams to ``log``."""
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)
    torch.set_num_threads(1)
    os.environ.update(environment or {})
    zoo.sequential = builder
    raise SystemExit(imagenet.main(argv))


def encoded(label: int, seed: int) -> bytes:
    """A noisy picture, brighter in the channel of its class."""
    pixels = np.random.default_rng(seed).integers(0, 150, (SIZE, SIZE, 3))
    pixels[..., label] += 60
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_images(root: Path, n_train: int = 24, n_val: int = 11) -> Path:
    for part, n, first in (("train", n_train, 0), ("val", n_val, 1000)):
        for k in range(n):
            path = root / part / WNIDS[k % 3] / f"{part}_{k:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(k % 3, first + k))
    return root


def flags(data: Path, output: Path, *more: Any, model: str = "cnnf", steps: int = 4) -> list[str]:
    feedback = ["--iterations", 1, "--step-size", 0.1] if model == "cnnf" else []
    words = ["--data", data, "--output", output, "--model", model, *feedback, "--weights", "none", "--image-size", SIZE]
    words += ["--steps", steps, "--batch-size", 7, "--lr", 0.01, "--workers", 0, "--device", "cpu", *more]
    return [str(word) for word in words]
