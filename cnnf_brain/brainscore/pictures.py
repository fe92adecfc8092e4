"""Made-up images that networks are tried on."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from cnnf_brain.types import Images


def pictures(n: int) -> list[Image.Image]:
    """n smooth pictures of random colours, 224 x 224."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (n, 7, 7, 3), dtype=np.uint8)
    return [Image.fromarray(one).resize((224, 224), Image.Resampling.BICUBIC) for one in coarse]


def encoded_pictures(n: int) -> Images:
    """The same, as PNG in memory."""
    made = []
    for picture in pictures(n):
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        made.append(buffer.getvalue())
    return Images(tuple(f"picture{number:03}" for number in range(n)), lambda i: made[i], "made-up pictures")
