"""Networks and images -> the Gram matrix K of each layer, streamed: features pass through scratch files, never whole in memory.

Batches run through a network once for each group of layers that fits the scratch space. Each layer's features are written in
blocks of columns, and K is summed block by block (float32 inside a block, float64 between blocks). What several networks share,
the first pass of the same weights, is computed once.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import uuid
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import PIL
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from cnnf_brain import activations, checks, io
from cnnf_brain.activations import Probe
from cnnf_brain.images import batches
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.networks import Network
from cnnf_brain.types import FEATURES_VERSION, Array, Gram, Images, LayerAt, Lazy

BLOCK_BYTES = 256 * 2**20  # of one block of columns over all images, and of what K gains by it at a time
SCRATCH_BYTES = 20 * 2**30
SCRATCH_DAYS = 7  # the scratch of a run that did not end well is kept this long, so that it can go on

Progress = bool | Callable[[str, int, int], object]
Wanted = tuple[Network, Images, Sequence[LayerAt]]


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
) -> Mapping[LayerAt, Gram]:
    """K = X Xᵀ over all images for every layer: ``Features`` of one network. Each is read from its file when it is asked for."""
    wanted = [(network, images, layers)]
    return Features(wanted, batch_size=batch_size, scratch_bytes=scratch_bytes).compute(progress)[0]


@dataclass(eq=False)
class Run:
    """A network that is shown images once: ``keys`` of the layers that it is run for, and ``counts``, their features by image."""

    network: Network
    images: Images
    keys: dict[LayerAt, str] = field(default_factory=dict)
    counts: dict[LayerAt, int] = field(default_factory=dict)


class Features:
    """The Grams of several networks over several images, each computed once.

    Layers of one key (``gram_key``) have the same features bit for bit: the same layer asked for twice, or the first pass of two
    networks with the same weights and preprocessing. The network that runs the most iterations gives a first pass to all that share
    it. ``runs`` are the passes that this takes.

    Parameters
    ----------
    wanted
        Networks, images, and the layers of these networks that are needed over these images.
    batch_size
        Images of a batch.
    scratch_bytes
        Disk space that features may take at a time.

    Raises
    ------
    ValueError
        A batch size below 1, a layer that a network lacks.
    """

    def __init__(self, wanted: Sequence[Wanted], *, batch_size: int = 8, scratch_bytes: int = SCRATCH_BYTES) -> None:
        if batch_size < 1:
            raise ValueError(f"the batch size is {batch_size}, expected at least 1")
        self.batch_size, self.scratch_bytes = batch_size, scratch_bytes
        self.own: Path | None = None  # where the Grams of networks without identity are, while this object lives
        self.unnamed: set[str] = set()  # their keys
        named = self._keys(wanted)
        self.keys = [keys for _, keys in named]
        self.runs: list[Run] = []
        firsts: dict[str, Network] = {}  # who runs a first pass: of all that share it, who has the most iterations to run
        taken: set[str] = set()
        # the most iterations first, of as many those with a feedback pass behind them
        order = sorted(
            range(len(wanted)), key=lambda i: -max((at.iteration + at.feedback / 2 for at in wanted[i][2]), default=0)
        )
        for (network, images, layers), (first_pass, keys) in ((wanted[i], named[i]) for i in order):
            first = firsts.setdefault(first_pass, network)
            for at in (at for at in layers if keys[at] not in taken):
                taken.add(keys[at])
                self._run_of(network if at.iteration or at.feedback else first, images).keys[at] = keys[at]

    def _keys(self, wanted: Sequence[Wanted]) -> list[tuple[str, dict[LayerAt, str]]]:
        """For each entry the key of its first pass, and those of its layers."""
        identities: dict[tuple[int, bytes], tuple[str, bool]] = {}
        found = []
        for network, images, layers in wanted:
            activations.check_layers(network.module, layers)
            which = (id(network.module), network.code)
            if which not in identities:
                known = network.identity  # a hash over all weights: once
                identities[which] = known or uuid.uuid4().hex, known is not None
            identity, named = identities[which]
            key = functools.partial(gram_key, network, images.digest(), batch_size=self.batch_size, identity=identity)
            found.append((key(LayerAt("")), {at: key(at) for at in layers}))
            self.unnamed |= set() if named else set(found[-1][1].values())
        return found

    def _run_of(self, network: Network, images: Images) -> Run:
        same = (run for run in self.runs if run.network is network and run.images.digest() == images.digest())
        if (found := next(same, None)) is None:
            self.runs.append(found := Run(network, images))
        return found

    def probe(self) -> list[tuple[Network, Probe]]:
        """Show every network that is to run the first of its images (``activations.probe``, which says what it raises)."""
        found = []
        for first in {id(run.network): run for run in reversed(self.runs)}.values():
            runs = [run for run in self.runs if run.network is first.network]
            probed = activations.probe(first.network, first.images, [at for run in runs for at in sorted(run.keys)])
            for run in runs:
                run.counts = {at: probed.counts[at] for at in run.keys}
            found.append((first.network, probed))
        return found

    def compute(self, progress: Progress = True, memory: int = 0) -> list[Mapping[LayerAt, Gram]]:
        """K of every layer, for each entry of ``wanted``; from the cache where it is there.

        A call that did not end well (Ctrl-C, an error, kill, power) goes on, when it is repeated, from the images whose features it
        had written. The result reads a Gram whenever it is asked for it.

        Parameters
        ----------
        progress
            True: a bar on stderr. False: none. A function ``(what, done, total)``: called after each batch.
        memory
            Bytes that the caller will need for what it does with the result; they are asked for with what is needed here.

        Raises
        ------
        ValueError
            Images that a network cannot take; features that are not finite.
        OSError
            Too little scratch space or memory for one layer; before the first image.
        """
        todo = []
        for run in self.runs:
            missing = [at for at, key in run.keys.items() if read_gram(at, self._path(key)) is None]
            if not missing:
                continue
            if self.unnamed & set(run.keys.values()):
                why = run.network.unidentified
                print(f"{run.network.name}: its features are not kept in the cache, since {why}", file=sys.stderr)
            if not run.counts:
                run.counts = activations.probe(run.network, run.images, missing).counts
            counts = {at: run.counts[at] for at in missing}
            todo += [(run, group) for group in grouped(counts, len(run.images), self.scratch_bytes)]
        needed = max([memory, *(gram_bytes(len(run.images)) for run, _ in todo)])
        most = max((len(run.images) for run in self.runs), default=0)
        checks.check_memory(needed, f"a Gram of {most} images, with what is made of it,")
        if progress is True and needed > 2**30:
            print(f"up to {needed / 2**30:.3g} GiB of memory are needed beside the networks", file=sys.stderr)
        for run, group in todo:
            self._compute(run, group, progress)
        return [Lazy(keys, functools.partial(self._read, keys)) for keys in self.keys]

    def _compute(self, run: Run, group: Sequence[LayerAt], progress: Progress) -> None:
        """The Grams of one group of layers, into their files."""
        with contextlib.ExitStack() as stack:
            scratch = {}
            for key, at in sorted((run.keys[at], at) for at in group):  # in one order: no two processes wait for each other
                scratch[at] = Scratch(key, run.counts[at], len(run.images), kept=key not in self.unnamed)
                stack.enter_context(scratch[at])
            if any(one.waited for one in scratch.values()):  # for another process, which may have computed them
                scratch = {at: one for at, one in scratch.items() if read_gram(at, self._path(run.keys[at])) is None}
            make_room(sum(4 * one.count * (one.n_images - one.done) for one in scratch.values()))
            self._stream(run, {at: scratch[at] for at in group if at in scratch}, progress)
            for at, one in scratch.items():
                write_gram(self._path(run.keys[at]), Gram(at, one.gram(), run.counts[at]))
                one.remove()

    def _stream(self, run: Run, scratch: Mapping[LayerAt, Scratch], progress: Progress) -> None:
        """All images through the network, their features into ``scratch``, from where a run before stopped."""
        total = len(run.images)
        behind = {at: one for at, one in scratch.items() if one.done < total}
        done = min((one.done for one in behind.values()), default=total)
        names = ", ".join(map(str, list(behind)[:3])) + (", …" if len(behind) > 3 else "")
        what = f"{run.network.name}: {names}"
        with tqdm(total=total, initial=done, unit="image", desc=what, disable=progress is not True) as bar:
            for batch in batches(run.images, run.network.preprocessing, self.batch_size, start=done):
                for at, rows in activations.features(run.network, batch, list(behind)).items():
                    behind[at].append(rows[max(0, behind[at].done - done) :])
                done += len(batch)
                bar.update(len(batch))
                if callable(progress):
                    progress(what, done, total)

    def _path(self, key: str) -> Path:
        """The file of a Gram: in the cache, or, where its network has no identity, in a folder that goes with this object."""
        if key not in self.unnamed:
            return io.cache_folder("grams") / f"{key}.npz"
        if self.own is None:
            self.own = Path(tempfile.mkdtemp(prefix="unnamed-", dir=io.cache_folder("scratch")))
            self.lock = _lock(self.own.name)  # so that no other process makes room here
            self.lock.acquire()
            weakref.finalize(self, shutil.rmtree, self.own, ignore_errors=True)
        return self.own / f"{key}.npz"

    def _read(self, keys: Mapping[LayerAt, str], at: LayerAt) -> Gram:
        found = read_gram(at, path := self._path(keys[at]))
        if found is None:
            raise OSError(f"{at}: {path} was removed or damaged while this run needed it; start it again")
        return found


def gram_bytes(n_images: int) -> int:
    """Memory that it takes to make one Gram: K in float64, a block of columns, and what K gains by it at a time."""
    return 8 * n_images**2 + 3 * BLOCK_BYTES


def grouped(counts: Mapping[LayerAt, int], n_images: int, scratch_bytes: int) -> list[list[LayerAt]]:
    """Layers in groups whose features fit the scratch space together; an OSError where one alone does not.

    In the order of their iterations, so that a group whose layers are of early iterations runs no later ones.
    What runs that did not end well left counts as free: it is gone on from, or makes room (``make_room``).
    """
    folder = io.cache_folder("scratch")
    left = 0
    for path in glob.iglob(f"{glob.escape(str(folder))}/*/*.f32"):
        with contextlib.suppress(FileNotFoundError):  # another process removes it now
            left += os.stat(path).st_size
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


def make_room(size: int) -> None:
    """Remove scratch that nobody holds: what is older than SCRATCH_DAYS, then the oldest until ``size`` bytes are free."""
    parent = io.cache_folder("scratch")
    ages: dict[Path, float] = {}
    for folder in parent.iterdir():
        with contextlib.suppress(OSError):  # another process removes it now
            ages[folder] = time.time() - folder.stat().st_mtime
    for folder, age in sorted(ages.items(), key=lambda item: -item[1]):
        if age > SCRATCH_DAYS * 86400 or shutil.disk_usage(parent).free < size:
            with contextlib.suppress(Timeout), _lock(folder.name).acquire(timeout=0):
                shutil.rmtree(folder, ignore_errors=True)


def _lock(name: str) -> FileLock:
    return FileLock(io.cache_folder("locks") / f"{name}.lock")


class Scratch:
    """Feature rows of one layer on disk, in blocks of columns; a context that removes its folder where all went well.

    ``done``: rows that are whole. ``kept`` False: nobody could go on from it, so that it is always removed.
    """

    def __init__(self, key: str, count: int, n_images: int, *, kept: bool = True) -> None:
        self.count, self.n_images, self.kept = count, n_images, kept
        self.done, self.waited = 0, False
        self.folder = io.cache_folder("scratch") / key[:32]
        self.lock = _lock(self.folder.name)
        width = max(1, BLOCK_BYTES // (4 * n_images))
        self.columns = [slice(start, min(start + width, count)) for start in range(0, count, width)]
        self.blocks = [io.Rows(self.folder / f"{some.start}.f32", some.stop - some.start) for some in self.columns]

    def __enter__(self) -> Scratch:
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            self.waited = True
            print("another process computes the same features; waiting for it", file=sys.stderr)
            self.lock.acquire()
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
        shutil.rmtree(self.folder, ignore_errors=True)

    def append(self, rows: Array) -> None:
        """Add rows (B, n_features) of the next images."""
        try:
            for block, some in zip(self.blocks, self.columns, strict=True):
                block.append(rows[:, some])
            os.utime(self.folder)
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot write features to {self.folder}: {error.strerror or error}; free space or point "
                f"{io.CACHE_VARIABLE} to a larger disk",
            ) from error
        self.done += len(rows)

    def gram(self) -> Array:
        """K (n_images, n_images) float64; each block's mean row is taken off first, which PLS does not see."""
        total = np.zeros((self.n_images, self.n_images))
        height = max(1, BLOCK_BYTES // (4 * self.n_images))
        for rows in self.blocks:
            block = rows.read()
            block -= block.mean(axis=0, dtype=np.float64).astype(np.float32)
            for first in range(0, self.n_images, height):  # a few rows of K at a time, for memory
                some = slice(first, first + height)
                total[some] += block[some] @ block.T
        return total


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


def read_gram(at: LayerAt, path: Path) -> Gram | None:
    """The Gram in a file, None where there is none; a damaged one warns and counts as none."""
    if not path.is_file():
        return None
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:  # zip members carry checksums
            return Gram(at, stored["values"], int(stored["n_features"]))
    except FileNotFoundError:  # another process removed it
        return None
    except MemoryError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each raise their own kinds
        warnings.warn(f"{path} is damaged ({error}); computing {at} again", DamagedCacheWarning, stacklevel=2)
        return None


def write_gram(path: Path, gram: Gram) -> None:
    """Write a Gram to a file."""
    io.write_whole(path, lambda file: np.savez(file, values=gram.values, n_features=gram.n_features))
