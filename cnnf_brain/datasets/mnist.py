"""MNIST and Fashion-MNIST: IDX files, gzipped or not, to tensors; every byte checked.

The format (http://yann.lecun.com/exdb/mnist): a magic number 0x000008DD (unsigned bytes, DD dimensions), the
DD sizes as big-endian 32-bit integers, then the values, one byte each.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnnf_brain.checks import unknown
from cnnf_brain.datasets.image_batches import Batch
from cnnf_brain.io import cache_folder, read_bytes, reading

Array = np.ndarray[Any, Any]

CLASSES = 10
SIDE = 28
LARGEST = 2**30  # bytes of an unpacked file; the published ones have 47 million
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
TITLES = {"fashion": "FashionMNIST", "mnist": "MNIST"}
DEBIAN = Path("/usr/share/datasets/fashion-mnist")

# SHA-256 of the published training images, uncompressed: one data set must not be taken for the other.
PUBLISHED = {
    "fashion": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "mnist": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
}


@dataclass(frozen=True)
class ImageSet:
    """Images and their labels in memory: ``images`` (n, 28, 28) uint8; ``labels`` (n,) int64 in 0..9."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | Tensor | Array) -> ImageSet:
        return ImageSet(self.images[rows], self.labels[rows])

    def to(self, device: torch.device) -> ImageSet:
        """The same on another device."""
        return ImageSet(self.images.to(device), self.labels.to(device))


def scale(images: Tensor) -> Tensor:
    """(n, 28, 28) uint8 to (n, 1, 28, 28) float32 in [-1, 1] (Appendix B.1)."""
    return images.unsqueeze(1).to(torch.float32).div_(127.5).sub_(1.0)


@dataclass(frozen=True)
class MemoryBatches:
    """Images in memory as batches of the steps of a training run, the last of an epoch as small as is left; their order in an
    epoch comes from ``seed`` and the number of the epoch alone."""

    images: ImageSet
    batch_size: int
    seed: int = 0

    def __len__(self) -> int:
        return len(self.images)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in which every image is seen once."""
        return -(-len(self) // self.batch_size)

    def order(self, epoch: int) -> Array:
        """The order of the images in an epoch."""
        return np.random.default_rng([self.seed, epoch]).permutation(len(self))

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """The batches of the steps ``start``, ``start`` + 1 and so on without end."""
        epoch, done = divmod(start, self.steps_per_epoch)
        for number in itertools.count(epoch):
            order = self.order(number)
            yield from (self._batch(order, k) for k in range(done, self.steps_per_epoch))
            done = 0

    def once(self) -> list[Batch]:
        """All images once, in their own order."""
        return [self._batch(np.arange(len(self)), k) for k in range(self.steps_per_epoch)]

    def _batch(self, order: Array, number: int) -> Batch:
        rows = order[number * self.batch_size : (number + 1) * self.batch_size]
        chosen = self.images[rows]
        return Batch(chosen.images, chosen.labels, torch.from_numpy(rows), {})

    def epochs(self, step: int) -> float:
        """How often each image was seen after ``step`` steps."""
        return step / self.steps_per_epoch

    def prepare(self, images: Tensor) -> Tensor:
        """``scale``: as the network takes them."""
        return scale(images)


def read_idx(path: Path, dimensions: int) -> Array:
    """One IDX file of unsigned bytes, gzipped or not (told by its first bytes, not by its name); a ValueError where it is
    truncated, too long, or not an IDX file of ``dimensions`` dimensions."""
    with reading(path, "an IDX file", f"it is truncated or damaged; {_replace}"):
        raw = read_bytes(path)
        if raw[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(raw)) as packed:
                raw = packed.read(LARGEST)
    magic, expected = raw[:4], bytes([0, 0, 8, dimensions])
    if magic != expected:
        raise ValueError(
            f"{path} begins with 0x{magic.hex()}; IDX files of {_kind[dimensions]} begin with 0x{expected.hex()}; {_replace}"
        )
    start = 4 + 4 * dimensions
    sizes = np.frombuffer(raw[4:start].ljust(start - 4, b"\0"), dtype=">u4").tolist()
    if len(raw) != start + math.prod(sizes):
        raise ValueError(
            f"{path} has {len(raw)} bytes uncompressed; its header says {' x '.join(map(str, sizes))} values "
            f"after {start} bytes: truncated or damaged; {_replace}"
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(sizes)


_kind = {1: "labels", 3: "images"}
_replace = "replace it by the published file (without data it is found or downloaded)"


@dataclass(frozen=True)
class Source:
    """Where a data set lies. Making one reads nothing: who holds it decides when the test images are read."""

    dataset: str
    folder: Path

    def read(self, part: str) -> ImageSet:
        """All images of ``part`` (train or test). A ValueError where a file is damaged or empty, has images of another size, labels
        outside of 0..9 or another number of labels than images, or where these are the images of another data set."""
        images_path, labels_path = self.paths(part)
        images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
        if images.shape[1:] != (SIDE, SIDE):
            raise ValueError(
                f"{images_path} has images of {images.shape[1]} x {images.shape[2]} pixels, "
                f"the network takes {SIDE} x {SIDE}; give another folder as data"
            )
        if len(images) != len(labels) or len(images) == 0:
            raise ValueError(
                f"{images_path} has {len(images)} images and {labels_path.name} {len(labels)} labels, "
                f"which must be equally many and not none; {_replace}"
            )
        if labels.max() >= CLASSES:
            raise ValueError(
                f"{labels_path}: label {labels.max()} of image {labels.argmax()} is not in 0..{CLASSES - 1}; " + _replace
            )
        digest = _digest(images).hex()
        for name, known in PUBLISHED.items():
            if digest == known and name != self.dataset:
                raise ValueError(
                    f"{images_path} is {TITLES[name]}, not {TITLES[self.dataset]}: give dataset {name!r}, "
                    "or another folder as data"
                )
        return ImageSet(torch.tensor(images), torch.tensor(labels, dtype=torch.int64))

    def check(self) -> str:
        """Read all four files, so that the errors of ``read`` come before training and not after it; the data hash: SHA-256 over
        the SHA-256 (binary) of each uncompressed file, in the order of FILES."""
        whole = hashlib.sha256()
        for part in FILES:
            self.read(part)
            for path, dimensions in zip(self.paths(part), (3, 1), strict=True):
                whole.update(_digest(read_idx(path, dimensions)))
        return whole.hexdigest()

    def paths(self, part: str) -> tuple[Path, Path]:
        """The files of images and of labels; FileNotFoundError where one is missing."""
        images, labels = (_file(self.folder, name) for name in FILES[part])
        if images is None or labels is None:
            missing = FILES[part][0 if images is None else 1]
            raise FileNotFoundError(f"{self.folder} has no {missing}(.gz)")
        return images, labels


def find(dataset: str, data: Path | None = None) -> Source:
    """The folder of IDX files of ``dataset`` ("fashion" or "mnist").

    With ``data``, only there: in the folder itself, ``data/MNIST/raw`` or ``data/FashionMNIST/raw``. Without, in the cache folder,
    in Debian's package dataset-fashion-mnist, and last by torchvision's download into the cache folder. A FileNotFoundError where
    there is none; says which folders were looked into and how to get the files.
    """
    if dataset not in TITLES:
        raise unknown("data set", dataset, TITLES)
    raw = Path(TITLES[dataset], "raw")
    if data is not None:
        folders = [data, data / raw]
    else:
        folders = [cache_folder("datasets") / raw, *([DEBIAN] if dataset == "fashion" else [])]
    for folder in folders:
        if not _missing(folder):
            return Source(dataset, folder)
    failure = "data was given, so nothing else was tried"
    if data is None:
        try:
            download(dataset, cache_folder("datasets"))
            return Source(dataset, folders[0])
        except (OSError, RuntimeError) as error:
            failure = f"the download failed: {error}"
    looked = [
        f"{folder} ({'lacks ' + ', '.join(_missing(folder)) if folder.is_dir() else 'no such folder'})" for folder in folders
    ]
    debian = ", or install Debian's package dataset-fashion-mnist" if dataset == "fashion" else ""
    raise FileNotFoundError(
        f"{TITLES[dataset]} was not found in {' or '.join(looked)}; {failure}. Give a folder of its four IDX "
        f"files (each also as .gz) as data{debian}, or connect to the network and leave data out"
    )


def download(dataset: str, root: Path) -> None:
    """torchvision's download into ``root/<title>/raw``, checked against its checksums."""
    from torchvision import datasets

    size = {"fashion": "31 MB", "mnist": "12 MB"}[dataset]
    print(f"downloading {TITLES[dataset]} ({size}) to {root / TITLES[dataset] / 'raw'}")
    getattr(datasets, TITLES[dataset])(root, download=True)


def split(images: ImageSet, *, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """Training and validation images: a twelfth (5,000 of 60,000) is held out, stratified on the label. ``seed`` is not that of
    the run: all runs on a data set hold out the same images."""
    n_validation = len(images) // 12
    if n_validation < CLASSES:
        raise ValueError(
            f"{len(images)} training images are too few: a twelfth is held out for validation, "
            f"and that must be at least {CLASSES}"
        )
    from sklearn.model_selection import train_test_split

    rows, labels = np.arange(len(images)), images.labels.numpy()
    train, validation = train_test_split(rows, test_size=n_validation, random_state=seed, stratify=labels)
    return images[np.sort(train)], images[np.sort(validation)]


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _missing(folder: Path) -> list[str]:
    return [name for names in FILES.values() for name in names if not _file(folder, name)]


def _digest(values: Array) -> bytes:
    """SHA-256 of the uncompressed IDX file that holds ``values``."""
    header = np.array([0x800 + values.ndim, *values.shape], dtype=">u4")
    return hashlib.sha256(header.tobytes() + values.tobytes()).digest()
