"""Images in the form that a network takes, and the device that it runs on."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cnnf_brain.checks import in_short
from cnnf_brain.types import Images

AUTO = "auto"  # a device: a GPU where there is one
MOST_PIXELS = 10_000  # on a side
LARGEST = 1e30  # of means and deviations; beyond it the network's units leave float32


@dataclass(frozen=True)
class Preprocessing:
    """How an image is shown to a network: size, then scaled to [0, 1], the mean subtracted, divided by the standard deviation.

    ``resize`` None: the whole image squashed to ``size`` x ``size`` (bilinear, no crop, as Brain-Score does). A number: the
    shorter side scaled to it and ``size`` x ``size`` pixels cut from the centre (torchvision: 256 and 224). One mean means one
    (grey) channel.

    Raises ValueError for sizes below 1 or above 10,000, a ``resize`` below ``size``, means and deviations that are not finite or
    not equally many, means above 1.

    Examples
    --------
    >>> from PIL import Image
    >>> from cnnf_brain import Preprocessing
    >>> Preprocessing(64, mean=(0.5,), std=(0.5,))(Image.new("RGB", (80, 60))).shape
    torch.Size([1, 64, 64])
    """

    size: int
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    resize: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or not 1 <= self.size <= MOST_PIXELS:
            raise ValueError(
                f"image size is {self.size!r}, expected a whole number of pixels, at least 1, at most {MOST_PIXELS}"
            )
        if self.resize is not None and not (isinstance(self.resize, int) and self.resize >= self.size):
            raise ValueError(f"resize is {self.resize!r}, expected at least the image size, {self.size} pixels")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or len(values) not in (1, 3) or not all(map(_is_number, values)):
                raise ValueError(f"{name} is {values!r}, expected three numbers, or one for grey images")
            object.__setattr__(self, name, tuple(values))
        if len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean} and std {self.std}: expected equally many numbers, std above 0")
        if max(self.mean) > 1:
            raise ValueError(f"mean is {self.mean}, expected at most 1: images are in [0, 1]; divide mean and std by 255")

    def __call__(self, image: Image.Image) -> Tensor:
        """(C, size, size) float32."""
        rgb = image.convert("RGB")
        small = rgb.resize((self.size, self.size), Image.Resampling.BILINEAR, box=self._box(rgb.size))
        if len(self.mean) == 1:
            small = small.convert("L")
        pixels = np.asarray(small, dtype=np.float32) / np.float32(255)
        return self.normalise(torch.from_numpy(pixels.reshape(self.size, self.size, -1)).permute(2, 0, 1))

    def _box(self, shape: tuple[int, int]) -> tuple[float, float, float, float]:
        """The part of an image of ``shape`` (width, height) that is shown: left, top, right, bottom."""
        width, height = shape
        if self.resize is None:
            return 0, 0, width, height
        side = min(shape) * self.size / self.resize
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1], (..., C, H, W), to the network's units."""
        return (pixels - _channels(self.mean, pixels)) / _channels(self.std, pixels)

    def denormalise(self, x: Tensor) -> Tensor:
        """The network's units, (..., C, H, W), to those of pixels; what lies outside of [0, 1] stays there."""
        return x * _channels(self.std, x) + _channels(self.mean, x)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.floating | np.integer) and bool(np.abs(value) < LARGEST)


def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def batches(
    images: Images, preprocessing: Preprocessing, batch_size: int, start: int = 0, workers: int = 0
) -> Iterator[Tensor]:
    """Batches (B, C, size, size) of all images from ``start`` on, in order; the last one may be smaller.

    ``workers``: processes that decode ahead of who takes the batches; 0: none. The batches are the same bit for bit.
    """
    if workers and "fork" not in multiprocessing.get_all_start_methods():
        raise ValueError(f"workers is {workers}, and this system cannot fork processes; expected 0")
    loader = DataLoader(
        _Shown(images, preprocessing),
        batch_size=None,  # the sampler hands out whole batches
        sampler=[range(first, min(first + batch_size, len(images))) for first in range(start, len(images), batch_size)],
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,  # images may be read by any function
        worker_init_fn=_leave_interrupts,
        generator=torch.Generator(),  # else it would draw from the generator of whoever calls
    )
    for batch in loader:
        if isinstance(batch, Exception):
            raise batch
        yield batch


@dataclass(frozen=True)
class _Shown(Dataset[Any]):
    """Rows of images -> their batch, or the error of one of them, so that it comes from a worker as it is."""

    images: Images
    preprocessing: Preprocessing

    def __getitem__(self, rows: range) -> Any:
        try:
            return torch.stack([self.preprocessing(self.images.decode(i)) for i in rows])
        except Exception as error:
            return error


def _leave_interrupts(worker: int) -> None:
    """Ctrl-C goes to all processes; the one that started the workers ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def pick_device(device: str | torch.device = AUTO) -> torch.device:
    """The device that ``device`` names: ``auto`` is a CUDA GPU where there is one, else the CPU.

    Raises
    ------
    ValueError
        An unknown name, or a device that this machine does not have.
    """
    if str(device) == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(1, device=place).cpu()
    except Exception as error:  # torch raises many kinds
        raise ValueError(
            f"device {str(device)!r} cannot be used here ({in_short(error)}); expected auto, cpu, or cuda where "
            "there is a GPU"
        ) from error
    return place
