"""Images in the form a network takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cnnf_brain.types import Images


@dataclass(frozen=True)
class Preprocessing:
    """Squash to ``size`` x ``size`` (bilinear, no crop, as Brain-Score does), scale to [0, 1], subtract mean, divide by std.

    One mean means one (grey) channel.
    """

    size: int
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __call__(self, image: Image.Image) -> Tensor:
        """(C, size, size) float32."""
        small = image.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)
        if len(self.mean) == 1:
            small = small.convert("L")
        pixels = np.asarray(small, dtype=np.float32) / np.float32(255)
        chw = torch.from_numpy(pixels.reshape(self.size, self.size, -1)).permute(2, 0, 1)
        return (chw - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]


def batches(images: Images, preprocessing: Preprocessing, batch_size: int, start: int = 0) -> Iterator[Tensor]:
    """Batches (B, C, size, size) of all images from ``start`` on, in order; the last one may be smaller."""
    for first in range(start, len(images), batch_size):
        rows = range(first, min(first + batch_size, len(images)))
        yield torch.stack([preprocessing(images.decode(i)) for i in rows])
