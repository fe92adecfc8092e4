"""Features of a layer until K is made of them: in files that a later run can go on from, or held on the GPU that made them.

The room is asked for before the first image. Where the features of a layer do not fit a GPU beside K they go through files, and
blocks of them back to the GPU, which sums K in either case; without one NumPy does.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import shutil
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from cnnf_brain.activations import float32_convolutions
from cnnf_brain.io import CACHE_VARIABLE, cache_folder, open_file, read_bytes
from cnnf_brain.predictivity.kernel import host, namespace
from cnnf_brain.types import Array, LayerAt

BLOCK_BYTES = 256 * 2**20  # of one block of columns over all images, and of what K gains by it at a time
SCRATCH_BYTES = 20 * 2**30
SCRATCH_DAYS = 7  # the scratch of a run that did not end well is kept this long, so that it can go on
GPU_SHARE = 0.8  # of the memory that is free on a GPU, which features and K may take; the rest is the network's
GPU_IMAGES = 2000  # from here on regressions run on the GPU as well; with fewer images the way there takes longer
SMALLEST = float(np.finfo(np.float32).tiny / np.finfo(np.float32).eps)  # of K's largest value: below, products lose digits
COPIES = 6  # of K, that ridge holds on a GPU at most: K, centred, its eigenvectors and what these take


class Rows:
    """A growing file of float32 rows of ``width`` numbers, beside a file with one CRC-32 for each row, so that rows which a crash
    left damaged do not count."""

    def __init__(self, path: Path, width: int) -> None:
        self.path, self.sums, self.width = path, path.with_suffix(".crc"), width

    def whole(self) -> int:
        """How many rows from the start are as their sums say."""
        if not (self.path.is_file() and self.sums.is_file()):
            return 0
        sums = np.frombuffer(read_bytes(self.sums)[: self.sums.stat().st_size // 4 * 4], dtype=np.uint32)
        with open_file(self.path) as file:
            for number, expected in enumerate(sums):
                row = file.read(4 * self.width)
                if len(row) < 4 * self.width or zlib.crc32(row) != expected:
                    return number
        return len(sums)

    def cut(self, n: int) -> None:
        """Keep the first n rows alone."""
        for path, size in ((self.path, 4 * self.width), (self.sums, 4)):
            path.touch()
            os.truncate(path, n * size)

    def append(self, rows: Array) -> None:
        """Add rows (n, width)."""
        rows = np.ascontiguousarray(rows)
        sums = np.array([zlib.crc32(row) for row in rows], dtype=np.uint32)
        for path, values in ((self.path, rows), (self.sums, sums)):
            with open(path, "ab") as file:
                file.write(values.data)

    def read(self) -> Array:
        """All rows, (n, width)."""
        return np.fromfile(self.path, dtype=np.float32).reshape(-1, self.width)


def room_on(device: torch.device) -> int:
    """Bytes of a device that features and K may take. None but on a CUDA GPU: Apple's have no float64."""
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    return int(GPU_SHARE * torch.cuda.mem_get_info(device)[0])


def on_device(gram: Array, device: str) -> Array:
    """K or X as a tensor on the GPU where its network ran, if n asks for it and ridge has room there; else as it is."""
    n = len(gram)
    if n < GPU_IMAGES or room_on(torch.device(device)) < COPIES * 8 * n**2:
        return gram
    return torch.from_numpy(gram).to(device)  # type: ignore[return-value]


Counts = Mapping[LayerAt, int]


def held(counts: Counts, n_images: int, device: torch.device) -> tuple[Counts, Counts, int]:
    """The layers whose features fit a device beside K, each by itself, all others, and the bytes that are there for features."""
    room = room_on(device) - gram_bytes(n_images)
    fits = {at: count for at, count in counts.items() if 4 * count * n_images <= room}
    return fits, {at: count for at, count in counts.items() if at not in fits}, room


def gram_bytes(n_images: int) -> int:
    """Memory that it takes to make one Gram: K in float64, a block of columns, and what K gains by it at a time."""
    return 8 * n_images**2 + 3 * BLOCK_BYTES


def few(n_features: int, n_images: int) -> bool:
    """Whether a regression costs less from the features themselves than from K: a product takes 2 n d numbers, not n²."""
    return 2 * n_features < n_images


def room_on_disk(scratch_bytes: int) -> int:
    """What may be taken of the disk. What runs that did not end well left counts as free: it is gone on from, or makes room."""
    folder = cache_folder("scratch")
    left = 0
    for path in glob.iglob(f"{glob.escape(str(folder))}/*/*.f32"):
        with contextlib.suppress(FileNotFoundError):  # another process removes it now
            left += os.stat(path).st_size
    return min(scratch_bytes, int((shutil.disk_usage(folder).free + left) * 0.9))


def grouped(counts: Counts, n_images: int, limit: int) -> list[list[LayerAt]]:
    """Layers in groups whose features take at most ``limit`` bytes together; an OSError where those of one alone take more.

    In the order of their iterations, so that a group whose layers are of early iterations runs no later ones.
    """
    groups: list[list[LayerAt]] = [[]]
    used = 0
    for at, count in sorted(counts.items(), key=lambda item: item[0].iteration):
        size = 4 * count * n_images
        if size > limit:
            raise OSError(
                f"{at}: its features over {n_images} images take {size / 2**30:.3g} GiB of scratch, and {limit / 2**30:.3g} GiB "
                f"may be used; free space or point {CACHE_VARIABLE} to a larger disk"
            )
        if used + size > limit:
            groups.append([])
            used = 0
        groups[-1].append(at)
        used += size
    return [group for group in groups if group]


def make_room(size: int) -> None:
    """Remove scratch that nobody holds: what is older than SCRATCH_DAYS, then the oldest until ``size`` bytes are free."""
    parent = cache_folder("scratch")
    ages: dict[Path, float] = {}
    for folder in parent.iterdir():
        with contextlib.suppress(OSError):  # another process removes it now
            ages[folder] = time.time() - folder.stat().st_mtime
    for folder, age in sorted(ages.items(), key=lambda item: -item[1]):
        if age > SCRATCH_DAYS * 86400 or shutil.disk_usage(parent).free < size:
            remove_scratch(folder)


def scratch_folder(key: str) -> Path:
    """Where the features of a layer go."""
    return cache_folder("scratch") / key[:32]


def remove_whole(keys: Iterable[str]) -> None:
    """Remove what runs left that were killed after the Grams of these keys were whole."""
    for key in keys:
        remove_scratch(scratch_folder(key))


def remove_scratch(folder: Path) -> None:
    """Remove the scratch of one layer where there is some and no process holds it."""
    if not folder.exists():
        return
    with contextlib.suppress(Timeout), lock_of(folder.name).acquire(timeout=0):
        shutil.rmtree(folder, ignore_errors=True)


def lock_of(name: str) -> FileLock:
    """The lock of a folder of scratch."""
    return FileLock(cache_folder("locks") / f"{name}.lock")


class Scratch:
    """Feature rows of one layer in blocks of columns, on disk or held on a GPU; a context that removes them where all went well.

    ``done``: rows that are whole. ``kept`` False: nobody could go on from it, so that it is always removed. ``device``: where K is
    summed. ``held``: the rows stay there as well; of an interrupted run nothing is left then.
    """

    def __init__(
        self,
        key: str,
        count: int,
        n_images: int,
        *,
        kept: bool = True,
        device: torch.device | None = None,
        held: bool = False,
    ) -> None:
        self.count, self.n_images, self.kept = count, n_images, kept
        self.done, self.waited = 0, False
        self.device = device if device and room_on(device) >= gram_bytes(n_images) else None  # None: NumPy sums K
        self.held: torch.Tensor | None = None
        self.folder = scratch_folder(key)
        self.lock = lock_of(self.folder.name)
        width = max(1, BLOCK_BYTES // (4 * n_images))
        self.columns = [slice(start, min(start + width, count)) for start in range(0, count, width)]
        self.blocks = (
            [] if held else [Rows(self.folder / f"{some.start}.f32", some.stop - some.start) for some in self.columns]
        )

    def __enter__(self) -> Scratch:
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            self.waited = True
            print("another process computes the same features; waiting for it", file=sys.stderr)
            self.lock.acquire()
        if not self.blocks:
            self.held = torch.empty(self.n_images, self.count, device=self.device)
            return self
        self.folder.mkdir(exist_ok=True)
        os.utime(self.folder)
        self.done = min(block.whole() for block in self.blocks)
        for block in self.blocks:
            block.cut(self.done)
        return self

    def __exit__(self, kind: type | None, error: object, trace: object) -> None:
        if kind is None or not self.kept:
            self.remove()
        self.lock.release()

    def remove(self) -> None:
        """Remove the rows."""
        self.held = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def append(self, rows: Any) -> None:
        """Add rows (B, n_features) of the next images, an array or a tensor."""
        if self.held is not None:
            self.held[self.done : self.done + len(rows)] = rows
            self.done += len(rows)
            return
        rows = host(rows)
        try:
            for block, some in zip(self.blocks, self.columns, strict=True):
                block.append(rows[:, some])
            os.utime(self.folder)
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot write features to {self.folder}: {error.strerror or error}; free space or point "
                f"{CACHE_VARIABLE} to a larger disk",
            ) from error
        self.done += len(rows)

    def gram(self, name: str = "a layer") -> Array:
        """K (n_images, n_images) float64, or few features themselves, float32; each feature's mean is taken off first, which PLS
        does not see."""
        if few(self.count, self.n_images):
            return np.hstack([host(block) for block in self._centred()])
        with float32_convolutions(self.device or torch.device("cpu")):
            k = host(self._sum())
        if k.diagonal().max() < SMALLEST and any(block.any() for block in self._centred()):
            raise ValueError(f"{name}: features are too small for products in float32; scale them up in the network")
        return k

    def _sum(self) -> Any:
        """K where it is summed: the lower triangle a few rows at a time, for memory, then the other one."""
        n, height = self.n_images, max(1, BLOCK_BYTES // (4 * self.n_images))
        tiles = [slice(first, min(first + height, n)) for first in range(0, n, height)]
        total: Any = torch.zeros(n, n, dtype=torch.float64, device=self.device) if self.device else np.zeros((n, n))
        for block in self._centred():
            for some in tiles:
                total[some, : some.stop] += block[some] @ block[: some.stop].T
        for some, other in itertools.combinations(tiles, 2):  # NumPy copies what it assigns to the same array
            total[some, other] = total[other, some].T
        return total

    def _centred(self) -> Iterator[Any]:
        """The blocks, each without its mean row."""
        for number, some in enumerate(self.columns):
            block: Any = (
                self.blocks[number].read()
                if self.held is None
                else self.held[:, some].clone(memory_format=torch.contiguous_format)
            )
            if self.held is None and self.device:
                block = torch.from_numpy(block).to(self.device)
            lib = namespace(block)
            block -= lib.asarray(block.mean(axis=0, dtype=lib.float64), dtype=lib.float32)
            yield block
