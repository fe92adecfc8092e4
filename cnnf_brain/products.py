"""Network and images -> the product K of each layer, streamed: features pass through scratch files, never whole in memory.

Batches run through the network once for each group of layers that fits the scratch space; each layer's features are written in
blocks of columns, and K is summed block by block (float32 inside a block, float64 between blocks).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from cnnf_brain import activations, files, images
from cnnf_brain.model.feedback import CNNF
from cnnf_brain.networks import Network
from cnnf_brain.types import Images, LayerAt, Product

BLOCK_BYTES = 256 * 2**20  # of one block of columns over all images
SCRATCH_BYTES = 20 * 2**30
SCRATCH_DAYS = 7  # an interrupted run's scratch is kept this long, so that it can go on


class DamagedCacheWarning(UserWarning):
    """A cached product was damaged and is computed again."""


def layer_products(
    network: Network,
    stimuli: Images,
    layers: Sequence[LayerAt],
    *,
    batch_size: int = 8,
    scratch_bytes: int = SCRATCH_BYTES,
    progress: bool = True,
) -> dict[LayerAt, Product]:
    """K = X Xᵀ over all images for every layer, from the cache where it is there.

    Raises
    ------
    ValueError
        A layer that the network lacks; features that are not finite.
    OSError
        Too little scratch space for one layer.
    """
    activations.check_layers(network.module, layers)
    seen = stimuli.digest()
    keys = {at: product_key(network, seen, at) for at in dict.fromkeys(layers)}
    found = {at: product for at, key in keys.items() if (product := read_product(at, key)) is not None}
    missing = [at for at in keys if at not in found]
    if missing:
        first = next(images.batches(stimuli, network.preprocessing, 1)).to(network.device)
        counts = activations.feature_counts(network.module, first, missing)
        for group in grouped(counts, len(stimuli), scratch_bytes):
            with Scratch({at: counts[at] for at in group}, len(stimuli), [keys[at] for at in group]) as scratch:
                _stream(network, stimuli, scratch, batch_size, progress)
                for at in group:
                    found[at] = Product(at, scratch.product(at), counts[at])
                    write_product(keys[at], found[at])
    return {at: found[at] for at in layers}


def _stream(network: Network, stimuli: Images, scratch: Scratch, batch_size: int, progress: bool) -> None:
    """All images through the network, their features into ``scratch``, from where an interrupted run stopped."""
    done = scratch.rows_done()
    names = ", ".join(map(str, list(scratch.counts)[:3])) + (", …" if len(scratch.counts) > 3 else "")
    bar = tqdm(total=len(stimuli), initial=done, unit="image", desc=f"{network.name}: {names}", disable=not progress)
    with bar, torch.inference_mode():
        for batch in images.batches(stimuli, network.preprocessing, batch_size, start=done):
            shaped = batch.to(network.device, memory_format=torch.channels_last)
            maps = activations.extract(network.module, shaped, list(scratch.counts))
            for at, values in maps.items():
                scratch.append(at, as_rows(values, at))
            bar.update(len(batch))


def as_rows(values: Tensor, at: LayerAt) -> np.ndarray:
    """(B, n_features) float32 of maps (B, ...), C-order; a ValueError where they are not finite."""
    rows = values.detach().flatten(1).to("cpu", torch.float32).numpy()
    if not np.isfinite(rows).all():
        raise ValueError(
            f"{at}: features are not finite (feedback without norm matching grows with every iteration); "
            "use fewer iterations, a smaller step or match_norm"
        )
    return rows


def grouped(counts: dict[LayerAt, int], n_images: int, scratch_bytes: int) -> list[list[LayerAt]]:
    """Layers in groups whose features fit the scratch space together; an OSError where one alone does not."""
    free = shutil.disk_usage(files.cache_folder("scratch")).free
    limit = min(scratch_bytes, int(free * 0.9))
    groups: list[list[LayerAt]] = [[]]
    used = 0
    for at, count in counts.items():
        size = 4 * count * n_images
        if size > limit:
            raise OSError(
                f"{at}: its features over {n_images} images take {size / 2**30:.1f} GiB of scratch, and {limit / 2**30:.1f} GiB "
                f"may be used; free space or point {files.CACHE_VARIABLE} to a larger disk"
            )
        if used + size > limit:
            groups.append([])
            used = 0
        groups[-1].append(at)
        used += size
    return groups


class Scratch:
    """Feature rows of some layers on disk, in blocks of columns; a context that removes its folder when all went well."""

    def __init__(self, counts: dict[LayerAt, int], n_images: int, keys: Sequence[str]) -> None:
        self.counts, self.n_images = counts, n_images
        parent = files.cache_folder("scratch")
        remove_old(parent)
        self.folder = parent / hashlib.sha256("".join(keys).encode()).hexdigest()[:32]
        self.lock = FileLock(f"{self.folder}.lock")
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
        sizes = [(path, 4 * (end - start)) for blocks in self.blocks.values() for path, start, end in blocks]
        for path, _ in sizes:
            path.touch()
        done = min(path.stat().st_size // row for path, row in sizes)
        for path, row in sizes:
            with open(path, "rb+") as file:
                file.truncate(done * row)
        return done

    def append(self, at: LayerAt, rows: np.ndarray) -> None:
        """Add rows (B, n_features) of the next images."""
        for path, start, end in self.blocks[at]:
            with open(path, "ab") as file:
                np.ascontiguousarray(rows[:, start:end]).tofile(file)

    def product(self, at: LayerAt) -> np.ndarray:
        """K (n_images, n_images) float64; each block's mean row is taken off first, which PLS does not see."""
        total = np.zeros((self.n_images, self.n_images))
        for path, start, end in self.blocks[at]:
            block = np.fromfile(path, dtype=np.float32).reshape(self.n_images, end - start)
            block -= block.mean(axis=0, dtype=np.float64).astype(np.float32)
            total += block @ block.T
        return total


def remove_old(parent: Path) -> None:
    """Remove scratch that an interrupted run left behind long ago."""
    for folder in parent.iterdir():
        if folder.is_dir() and time.time() - folder.stat().st_mtime > SCRATCH_DAYS * 86400:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class CodeVersion:
    """What of the software features depend on."""

    sources: str
    torch: str


def code_version() -> CodeVersion:
    """Hash of the sources that make features, and torch's version."""
    package = Path(__file__).parent
    paths = [
        *sorted((package / "model").glob("*.py")),
        *(package / f"{n}.py" for n in ("activations", "images", "products")),
    ]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
    return CodeVersion(digest, str(torch.__version__))


def product_key(network: Network, images_digest: str, at: LayerAt) -> str:
    """Hash of all that K depends on. The first pass does not depend on the feedback's settings."""
    settings = None
    if isinstance(network.module, CNNF) and (at.iteration > 0 or at.feedback):
        settings = {k: v for k, v in network.module.settings.items() if k != "iterations"}
    version = code_version()
    parts = {
        "network": network.digest,
        "feedback": settings,
        "preprocessing": repr(network.preprocessing),
        "images": images_digest,
        "layer": str(at),
        "precision": "float32",
        "code": [version.sources, version.torch],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_product(at: LayerAt, key: str) -> Product | None:
    """The cached product, None where there is none; a damaged one warns and counts as none."""
    path = files.cache_folder("products") / f"{key}.npz"
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:  # zip members carry checksums
            return Product(at, stored["values"], int(stored["n_features"]))
    except Exception as error:  # zipfile, zlib and numpy each raise their own kinds
        warnings.warn(f"{path} is damaged ({error}); computing {at} again", DamagedCacheWarning, stacklevel=2)
        return None


def write_product(key: str, product: Product) -> None:
    """Put a product into the cache."""
    path = files.cache_folder("products") / f"{key}.npz"
    files.write_whole(path, lambda file: np.savez(file, values=product.values, n_features=product.n_features))
