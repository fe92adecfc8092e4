"""Images on disk to batches: which image comes when, how it is shown, and an account of the waiting.

What a run sees is a function of (seed, step) alone. Training is one endless sequence of images, epoch after epoch, each in its own
order; step ``s`` takes the places ``s * batch_size`` onwards. So every image is seen once an epoch, every batch is full, and the
position in the data is one number. The batch is that of all ranks together, of which rank r takes every ``world_size``-th image:
what a step learns from does not depend on the number of ranks, nor of workers.
"""

from __future__ import annotations

import io
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cnnf_brain.checks import RunError
from cnnf_brain.datasets.image_index import ChangedShard, ImageIndex
from cnnf_brain.images import Preprocessing

Array = np.ndarray[Any, Any]
Keys = tuple[Array, Array]  # numbers of images in the index (B,) int64, and whether each is mirrored (B,) bool


class Batch(NamedTuple):
    """Images as they are shown, on the CPU.

    ``images`` (B, 3, size, size) uint8 in channels_last memory; ``labels`` (B,) int64; ``numbers`` (B,) int64, places in the
    index; ``bad``: path -> reason of the images that could not be decoded. Those are left out of the rest, so that B may be
    smaller than was asked for, and 0.
    """

    images: Tensor
    labels: Tensor
    numbers: Tensor
    bad: dict[str, str]


class Source(Protocol):
    """Where the batches of a training run come from: ``DiskBatches``, or ``mnist.MemoryBatches``.

    ``batches``: those of the steps ``start``, ``start`` + 1 and so on without end, this rank's part of each. ``prepare``: uint8
    images of a batch as the network takes them, on their device. ``epochs``: how often each image was seen after ``step`` steps.
    """

    def batches(self, start: int) -> Iterable[Batch]: ...
    def prepare(self, images: Tensor) -> Tensor: ...
    def epochs(self, step: int) -> float: ...
    def __len__(self) -> int: ...


def decode(content: bytes, size: int, resize: int | None = None) -> Array:
    """The square in the middle of an image, (size, size, 3) uint8 RGB.

    The shorter side becomes ``size`` and the middle of the longer one is kept (bilinear with antialiasing). Training and validation
    show the same square: "random horizontal flips was the only augmentation used" (B.5.1). A square image is shown whole, as
    ``compare`` shows it.

    ``resize``, at least ``size``: the shorter side becomes ``resize`` and ``size`` x ``size`` pixels of the middle are kept, as in
    torchvision's published accuracies (256 and 224), but for whole pixels, to which torchvision rounds. ``images.Preprocessing`` of
    the same ``resize`` shows the same. Large JPEGs are decoded at a half, quarter or eighth, never below twice the size.

    A ValueError for more than 8 bits a channel; Pillow raises other errors for damaged files.
    """
    scaled = size if resize is None else resize
    with Image.open(io.BytesIO(content)) as image:
        if image.mode.startswith(("I", "F")):  # Pillow would clip them at 255, which leaves a white image
            raise ValueError(f"mode {image.mode}: more than 8 bits a channel")
        image.draft(None, (2 * scaled, 2 * scaled))
        rgb = image.convert("RGB")
    side = min(rgb.size) * size / scaled
    left, top = (rgb.width - side) / 2, (rgb.height - side) / 2
    return np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR, (left, top, left + side, top + side)))


def normalise(
    images: Tensor, mean: tuple[float, ...] = Preprocessing.mean, std: tuple[float, ...] = Preprocessing.std
) -> Tensor:
    """uint8 (B, 3, H, W) to float32 less ``mean``, over ``std`` (by default ImageNet's, B.5.1), on the device of ``images``."""
    means, deviations = (_channels(values, images.device) for values in (mean, std))
    return images.to(torch.float32).div_(255).sub_(means).div_(deviations)


@lru_cache
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Kept on the device: to make them there at every step would halt it."""
    return torch.tensor(values, device=device)[:, None, None]


class TooManyBadImages(RunError):
    """More images are damaged than was allowed."""


def check_bad(bad: Mapping[str, str], n_images: int, max_bad: float, part: str) -> None:
    """TooManyBadImages where ``bad`` is a greater share of ``n_images`` than ``max_bad``, or all of them."""
    if len(bad) > max_bad * n_images or len(bad) == n_images:
        first = "; ".join(f"{path} ({reason})" for path, reason in list(bad.items())[:3])
        raise TooManyBadImages(
            f"{len(bad)} of {n_images} {part} images cannot be decoded, more than max_bad {max_bad:g} allows: {first}. "
            "Mend or remove them, or allow more"
        )


class ShownImages(Dataset[Batch]):
    """The images of an index as batches: ``shown[numbers, mirrored]``, any numbers in any order. ``size``, ``resize``: see
    ``decode``."""

    def __init__(self, index: ImageIndex, size: int, resize: int | None = None) -> None:
        self.index, self.size, self.resize = index, size, resize

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, keys: Keys) -> Batch:
        pixels = np.empty((len(keys[0]), self.size, self.size, 3), dtype=np.uint8)
        good: list[int] = []
        bad: dict[str, str] = {}
        for number, mirrored in zip(*keys, strict=True):
            try:
                shown = decode(self.index.read(number), self.size, self.resize)
            except ChangedShard:
                raise
            except Exception as error:  # on damaged bytes, Pillow's decoders raise whatever they run into
                bad[self.index.path(number)] = f"{type(error).__name__}: {error}"
                continue
            pixels[len(good)] = shown[:, ::-1] if mirrored else shown
            good.append(int(number))
        numbers = np.array(good, dtype=np.int64)
        images = torch.from_numpy(pixels[: len(good)]).permute(0, 3, 1, 2)
        return Batch(images, torch.from_numpy(self.index.labels[numbers]), torch.from_numpy(numbers), bad)


@lru_cache(maxsize=2)  # a batch may lie in two epochs
def epoch_plan(seed: int, epoch: int, n_images: int) -> Keys:
    """The order of the images in an epoch, and whether image number i is mirrored in it, from seed and epoch alone."""
    random = np.random.default_rng([seed, epoch])
    return random.permutation(n_images), random.random(n_images) < 0.5


@dataclass(frozen=True)
class TrainingOrder:
    """The keys of rank ``rank`` for steps ``start``, ``start`` + 1 and so on; ``batch_size`` counts the images of all ranks."""

    n_images: int
    batch_size: int
    seed: int
    start: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        _check_ranks(self.n_images, self.batch_size, self.rank, self.world_size)
        if self.start < 0 or self.seed < 0:
            raise ValueError(f"start {self.start} and seed {self.seed} must not be negative")

    def __iter__(self) -> Iterator[Keys]:
        return (self.keys(step) for step in itertools.count(self.start))

    def keys(self, step: int) -> Keys:
        """This rank's part of the batch of ``step``."""
        places = np.arange(step * self.batch_size + self.rank, (step + 1) * self.batch_size, self.world_size)
        epochs, places = np.divmod(places, self.n_images)
        parts = []
        for epoch in np.unique(epochs):
            order, mirrored = epoch_plan(self.seed, int(epoch), self.n_images)
            numbers = order[places[epochs == epoch]]
            parts.append((numbers, mirrored[numbers]))
        numbers, mirrored = (np.concatenate(column) for column in zip(*parts, strict=True))
        return numbers, mirrored


@dataclass(frozen=True)
class ValidationOrder:
    """The keys of rank ``rank`` for one pass over all images, none mirrored, none twice.

    Nothing is padded: ranks may have unequally many batches and images, so they exchange nothing on the way.
    """

    n_images: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        _check_ranks(self.n_images, self.batch_size, self.rank, self.world_size)

    def __iter__(self) -> Iterator[Keys]:
        mine, portion = np.arange(self.rank, self.n_images, self.world_size), self.batch_size // self.world_size
        for first in range(0, len(mine), portion):
            numbers = mine[first : first + portion]
            yield numbers, np.zeros(len(numbers), dtype=bool)

    def __len__(self) -> int:
        return -(-len(range(self.rank, self.n_images, self.world_size)) // (self.batch_size // self.world_size))


def _check_ranks(n_images: int, batch_size: int, rank: int, world_size: int) -> None:
    if n_images < 1:
        raise ValueError("there are no images to order")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not in 0..{world_size - 1}, the ranks of a world of {world_size}")
    if batch_size < world_size:
        raise ValueError(
            f"a batch of {batch_size} images over all ranks leaves some of the {world_size} ranks without any; "
            "take a larger batch or fewer ranks"
        )


@dataclass(frozen=True, kw_only=True)
class DiskBatches:
    """The images of an index as batches, for training or for one pass; each rank loads its part of every batch.

    ``size``, ``resize``: see ``decode``. ``batch_size``: images of a step over all ranks; rank r gets the images r,
    r + ``world_size``, ... of it. ``seed``: of the order of the images and of what is mirrored. ``workers``: processes that decode;
    0: this one. ``device``: where the batches will go; for CUDA they are put into pinned memory. ``mean``, ``std``: see
    ``normalise``.
    """

    index: ImageIndex
    size: int
    batch_size: int
    resize: int | None = None
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    workers: int = 0
    device: torch.device | str = "cpu"
    mean: tuple[float, ...] = Preprocessing.mean
    std: tuple[float, ...] = Preprocessing.std

    def __len__(self) -> int:
        return len(self.index)

    def batches(self, start: int = 0) -> DataLoader[Batch]:
        """The batches of steps ``start`` (to resume: the number of steps done), ``start`` + 1 and so on, shuffled and mirrored."""
        return self._loader(TrainingOrder(len(self), self.batch_size, self.seed, start, self.rank, self.world_size))

    def once(self) -> DataLoader[Batch]:
        """One pass over all images at each ``iter``, this rank's part (see ValidationOrder); workers stay for the next pass."""
        order = ValidationOrder(len(self), self.batch_size, self.rank, self.world_size)
        return self._loader(order, persistent=self.workers > 0)

    def epochs(self, step: int) -> float:
        """How often the images were seen when ``step`` steps are done."""
        return step * self.batch_size / len(self)

    def prepare(self, images: Tensor) -> Tensor:
        """``normalise``: as the network takes them."""
        return normalise(images, self.mean, self.std)

    def _loader(self, order: Iterable[Keys], *, persistent: bool = False) -> DataLoader[Batch]:
        return DataLoader(
            ShownImages(self.index, self.size, self.resize),
            batch_size=None,  # the order hands out whole batches
            sampler=order,
            num_workers=self.workers,
            pin_memory=torch.device(self.device).type == "cuda",
            persistent_workers=persistent,
            worker_init_fn=_leave_signals_to_the_trainer,
            generator=torch.Generator(),  # else each iter() would draw from the generator that dropout uses: no exact resume
        )


def _leave_signals_to_the_trainer(worker: int) -> None:
    """SIGINT and SIGTERM go to a whole process group or job: a worker that died of them would make the trainer fail before it
    has finished its step and saved. It ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux; elsewhere a worker cannot tell who has sent the signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_for_parent, daemon=True).start()


def _end_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class Feed:
    """Batches with an account: ``waited``, the seconds in which the model had to wait for them, and ``bad``, path -> reason of
    the images that could not be decoded so far (on this rank). ChangedShard where a shard has changed since it was listed."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = iter(batches)
        self.waited = 0.0
        self.bad: dict[str, str] = {}

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> Batch:
        begin = time.perf_counter()
        try:
            batch = next(self._batches)
        except ChangedShard as error:  # of a worker it comes with the worker's traceback before its message
            raise ChangedShard(str(error).strip().rpartition("ChangedShard: ")[2]) from None
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise RunError(
                f"a process that loads images was ended from outside ({error}), often for want of memory; start again, "
                "with fewer workers or smaller batches"
            ) from error
        self.waited += time.perf_counter() - begin
        self.bad |= batch.bad
        return batch
