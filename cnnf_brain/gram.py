"""Network and images -> the Gram matrix K of each layer, streamed: features pass through scratch files, never whole in memory.

Batches run through the network once for each group of layers that fits the scratch space; each layer's features are written in
blocks of columns, and K is summed block by block (float32 inside a block, float64 between blocks).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
import uuid
import warnings
import zlib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import PIL
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from cnnf_brain import activations, io
from cnnf_brain.images import batches
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.networks import Network
from cnnf_brain.types import FEATURES_VERSION, Array, Gram, Images, LayerAt

BLOCK_BYTES = 256 * 2**20  # of one block of columns over all images
SCRATCH_BYTES = 20 * 2**30
SCRATCH_DAYS = 7  # an interrupted run's scratch is kept this long, so that it can go on

Progress = bool | Callable[[str, int, int], object]


class DamagedCacheWarning(UserWarning):
    """A cached Gram was damaged and is computed again."""


def layer_grams(
    network: Network,
    images: Images,
    layers: Sequence[LayerAt],
    *,
    batch_size: int = 8,
    scratch_bytes: int = SCRATCH_BYTES,
    progress: Progress = True,
) -> dict[LayerAt, Gram]:
    """K = X Xᵀ over all images for every layer, from the cache where it is there.

    An interrupted call (Ctrl-C, kill, power) goes on, when it is repeated, from the images whose features it had written.

    Parameters
    ----------
    progress
        True: a bar on stderr. False: none. A function ``(what, done, total)``: called after each batch.

    Raises
    ------
    ValueError
        A layer that the network lacks; images that it cannot take; features that are not finite.
    OSError
        Too little scratch space for one layer.
    """
    if batch_size < 1:
        raise ValueError(f"the batch size is {batch_size}, expected at least 1")
    activations.check_layers(network.module, layers)
    seen = images.digest()
    identity = network.identity  # a hash over all weights: once
    keys = {at: gram_key(network, seen, at, batch_size, identity) for at in dict.fromkeys(layers)}
    found = _cached(keys)
    missing = [at for at in keys if at not in found]
    if missing:
        if identity is None:
            print(f"{network.name}: its features are not kept in the cache, since {network.unidentified}", file=sys.stderr)
        counts = activations.probe(network, images, missing).counts
        for group in grouped(counts, len(images), scratch_bytes):
            some = {at: counts[at] for at in group}
            known = {at: keys[at] for at in group}
            found |= _computed(network, images, some, known, batch_size, progress, identity is not None)
    return {at: found[at] for at in layers}


def _computed(
    network: Network,
    images: Images,
    counts: dict[LayerAt, int],
    keys: dict[LayerAt, str],
    batch_size: int,
    progress: Progress,
    keep: bool,
) -> dict[LayerAt, Gram]:
    """The Grams of one group of layers; ``counts`` are features by layer, ``keep``: whether they go to the cache."""
    with Scratch(counts, len(images), list(keys.values())) as scratch:
        # another process may have computed them while this one waited for the scratch
        found = _cached(keys) if scratch.waited else {}
        if len(found) < len(keys):
            _stream(network, images, scratch, batch_size, progress)
        for at in (at for at in keys if at not in found):
            found[at] = Gram(at, scratch.gram(at), counts[at])
            if keep:
                write_gram(keys[at], found[at])
        return found


def _cached(keys: dict[LayerAt, str]) -> dict[LayerAt, Gram]:
    return {at: gram for at, key in keys.items() if (gram := read_gram(at, key)) is not None}


def _stream(network: Network, images: Images, scratch: Scratch, batch_size: int, progress: Progress) -> None:
    """All images through the network, their features into ``scratch``, from where an interrupted run stopped."""
    done, total = scratch.rows_done(), len(images)
    names = ", ".join(map(str, list(scratch.counts)[:3])) + (", …" if len(scratch.counts) > 3 else "")
    what = f"{network.name}: {names}"
    with tqdm(total=total, initial=done, unit="image", desc=what, disable=progress is not True) as bar:
        for batch in batches(images, network.preprocessing, batch_size, start=done):
            for at, rows in activations.features(network, batch, list(scratch.counts)).items():
                scratch.append(at, rows)
            done += len(batch)
            bar.update(len(batch))
            if callable(progress):
                progress(what, done, total)


def grouped(counts: dict[LayerAt, int], n_images: int, scratch_bytes: int) -> list[list[LayerAt]]:
    """Layers in groups whose features fit the scratch space together; an OSError where one alone does not.

    In the order of their iterations, so that a group whose layers are of early iterations runs no later ones.
    What interrupted runs left counts as free, so that the groups, and with them the scratch, are found again.
    """
    folder = io.cache_folder("scratch")
    left = sum(path.stat().st_size for path in folder.glob("*/*.f32"))
    limit = min(scratch_bytes, int((shutil.disk_usage(folder).free + left) * 0.9))
    groups: list[list[LayerAt]] = [[]]
    used = 0
    for at, count in sorted(counts.items(), key=lambda item: item[0].iteration):
        size = 4 * count * n_images
        if size > limit:
            raise OSError(
                f"{at}: its features over {n_images} images take {size / 2**30:.3g} GiB of scratch, and {limit / 2**30:.3g} GiB "
                f"may be used; free space or point {io.CACHE_VARIABLE} to a larger disk"
            )
        if used + size > limit:
            groups.append([])
            used = 0
        groups[-1].append(at)
        used += size
    return groups


class Scratch:
    """Feature rows of some layers on disk, in blocks of columns; a context that removes its folder unless it was interrupted.

    Each block is a file of float32 rows beside a file with one CRC-32 for each row, so that rows which a crash left
    damaged are not taken for done.
    """

    def __init__(self, counts: dict[LayerAt, int], n_images: int, keys: Sequence[str]) -> None:
        self.counts, self.n_images = counts, n_images
        parent = io.cache_folder("scratch")
        remove_old(parent)
        self.folder = parent / hashlib.sha256("".join(keys).encode()).hexdigest()[:32]
        self.lock = FileLock(io.cache_folder("locks") / f"{self.folder.name}.lock")
        self.waited = False
        width = max(1, BLOCK_BYTES // (4 * n_images))
        self.blocks: dict[LayerAt, list[tuple[Path, int, int]]] = {
            at: [
                (self.folder / f"{number}-{start}.f32", start, min(start + width, count)) for start in range(0, count, width)
            ]
            for number, (at, count) in enumerate(counts.items())
        }

    def __enter__(self) -> Scratch:
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            self.waited = True
            print("another process computes the same features; waiting for it", file=sys.stderr)
            self.lock.acquire()
        self.folder.mkdir(exist_ok=True)
        return self

    def __exit__(self, kind: type | None, error: object, trace: object) -> None:
        if kind is None or not issubclass(kind, KeyboardInterrupt):
            shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.release()

    def rows_done(self) -> int:
        """Images whose rows an interrupted run left whole; everything behind them is cut off."""
        blocks = [block for of_layer in self.blocks.values() for block in of_layer]
        done = min(_whole_rows(path, 4 * (end - start)) for path, start, end in blocks)
        for path, start, end in blocks:
            for file, size in ((path, 4 * (end - start)), (_sums(path), 4)):
                file.touch()
                os.truncate(file, done * size)
        return done

    def append(self, at: LayerAt, rows: Array) -> None:
        """Add rows (B, n_features) of the next images."""
        try:
            for path, start, end in self.blocks[at]:
                block = np.ascontiguousarray(rows[:, start:end])
                sums = np.array([zlib.crc32(row) for row in block], dtype=np.uint32)
                for file, values in ((path, block), (_sums(path), sums)):
                    with open(file, "ab") as stream:
                        stream.write(values.data)
            os.utime(self.folder)
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot write features to {self.folder}: {error.strerror or error}; free space or point "
                f"{io.CACHE_VARIABLE} to a larger disk",
            ) from error

    def gram(self, at: LayerAt) -> Array:
        """K (n_images, n_images) float64; each block's mean row is taken off first, which PLS does not see."""
        total = np.zeros((self.n_images, self.n_images))
        for path, start, end in self.blocks[at]:
            block = np.fromfile(path, dtype=np.float32).reshape(self.n_images, end - start)
            block -= block.mean(axis=0, dtype=np.float64).astype(np.float32)
            total += block @ block.T
        return total


def _sums(path: Path) -> Path:
    return path.with_suffix(".crc")


def _whole_rows(path: Path, row_bytes: int) -> int:
    """How many rows from the start of a block are as their sums say."""
    if not (path.is_file() and _sums(path).is_file()):
        return 0
    sums = np.frombuffer(_sums(path).read_bytes()[: _sums(path).stat().st_size // 4 * 4], dtype=np.uint32)
    with open(path, "rb") as file:
        for number, expected in enumerate(sums):
            row = file.read(row_bytes)
            if len(row) < row_bytes or zlib.crc32(row) != expected:
                return number
    return len(sums)


def remove_old(parent: Path) -> None:
    """Remove scratch that an interrupted run left behind long ago."""
    for folder in parent.iterdir():
        if folder.is_dir() and time.time() - folder.stat().st_mtime > SCRATCH_DAYS * 86400:
            shutil.rmtree(folder, ignore_errors=True)


def gram_key(network: Network, images_digest: str, at: LayerAt, batch_size: int, identity: str | None = None) -> str:
    """Hash of all that K depends on. The first pass does not depend on the feedback's settings.

    ``FEATURES_VERSION`` stands for this package's own code. A network without identity gets a key that never comes again.
    """
    settings = None
    if isinstance(network.module, CNNF) and (at.iteration > 0 or at.feedback):
        settings = {k: v for k, v in network.module.settings.as_dict().items() if k != "iterations"}
    parts = {
        "network": identity or network.identity or uuid.uuid4().hex,
        "feedback": settings,
        "preprocessing": repr(network.preprocessing),
        "images": images_digest,
        "layer": str(at),
        "precision": f"float32 on {network.device.type}, batches of {batch_size}",
        "features": FEATURES_VERSION,
        "torch": str(torch.__version__),
        "torchvision": version("torchvision"),
        "pillow": PIL.__version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_gram(at: LayerAt, key: str) -> Gram | None:
    """The cached Gram, None where there is none; a damaged one warns and counts as none."""
    path = io.cache_folder("grams") / f"{key}.npz"
    if not path.is_file():
        return None
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:  # zip members carry checksums
            return Gram(at, stored["values"], int(stored["n_features"]))
    except Exception as error:  # zipfile, zlib and numpy each raise their own kinds
        warnings.warn(f"{path} is damaged ({error}); computing {at} again", DamagedCacheWarning, stacklevel=2)
        return None


def write_gram(key: str, gram: Gram) -> None:
    """Put a Gram into the cache."""
    path = io.cache_folder("grams") / f"{key}.npz"
    io.write_whole(path, lambda file: np.savez(file, values=gram.values, n_features=gram.n_features))
