"""Networks and images -> the Gram matrix K of each layer, streamed: features pass through scratch files, never whole in memory.
A layer with few features keeps these in place of K.

Batches run through a network once for each group of layers that fits the scratch space. Each layer's features are written in
blocks of columns, and K is summed block by block (float32 inside a block, float64 between blocks). What several networks share,
the first pass of the same weights, is computed once.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import sys
import tempfile
import time
import uuid
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from cnnf_brain import activations, checks, io
from cnnf_brain.activations import Probe
from cnnf_brain.identity import gram_key
from cnnf_brain.images import batches
from cnnf_brain.networks import Network
from cnnf_brain.predictivity.kernel import is_factor, whole
from cnnf_brain.scratch import (
    SCRATCH_BYTES,
    Scratch,
    few,
    gram_bytes,
    grouped,
    held,
    lock_of,
    make_room,
    remove_whole,
    room_on_disk,
)
from cnnf_brain.types import Gram, Images, LayerAt, Lazy

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
    workers: int = 0,
    progress: Progress = True,
) -> Mapping[LayerAt, Gram]:
    """K = X Xᵀ, or few features, over all images for every layer: ``Features`` of one network, read when it is asked for."""
    wanted = [(network, images, layers)]
    return Features(wanted, batch_size=batch_size, scratch_bytes=scratch_bytes, workers=workers).compute(progress)[0]


@dataclass(eq=False)
class Run:
    """A network that is shown images once: ``keys`` of the layers that it is run for, and ``counts``, their features by image."""

    network: Network
    images: Images
    keys: dict[LayerAt, str] = field(default_factory=dict)
    counts: dict[LayerAt, int] = field(default_factory=dict)


class Features:
    """The Grams of several networks over several images, each computed once. Networks see the parts of a joint layer
    (``features.16@0+2``); its Gram is their sum, made when it is asked for.

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
    unit_norm
        Scale each image's features of each layer (of a joint one: of each part) to norm 1. This is done to the features
        themselves: K does not hold their norms, since it has a mean taken off.
    workers
        Processes that decode images ahead of the networks; 0: none. The features are the same bit for bit. ``seconds`` counts the
        time of all runs, ``waited`` the part of it in which a network waited for images.

    Raises
    ------
    ValueError
        A batch size below 1, a layer that a network lacks.
    """

    def __init__(
        self,
        wanted: Sequence[Wanted],
        *,
        batch_size: int = 8,
        scratch_bytes: int = SCRATCH_BYTES,
        unit_norm: bool = False,
        workers: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"the batch size is {batch_size}, expected at least 1")
        self.batch_size, self.scratch_bytes, self.unit_norm, self.workers = batch_size, scratch_bytes, unit_norm, workers
        self.seconds = self.waited = 0.0
        self.wanted = wanted
        self.layers = [tuple(dict.fromkeys(layers)) for _, _, layers in wanted]
        wanted = [(network, images, [part for at in layers for part in at.parts]) for network, images, layers in wanted]
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
        identities: dict[tuple[int, bytes, int], tuple[str, bool]] = {}
        found = []
        for network, images, layers in wanted:
            activations.check_layers(network.module, layers)
            which = (id(network.module), network.code, id(network.preprocessing))
            if which not in identities:
                known = network.identity  # a hash over all weights: once
                identities[which] = known or uuid.uuid4().hex, known is not None
            identity, named = identities[which]
            key = functools.partial(
                gram_key, network, images.digest(), batch_size=self.batch_size, identity=identity, unit_norm=self.unit_norm
            )
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
        todo = self._todo()
        most = max((len(run.images) for run in self.runs), default=0)
        summed = 16 * most**2 if any(at.joined for layers in self.layers for at in layers) else 0  # two Grams
        needed = max([memory, summed, *(gram_bytes(len(run.images)) for run, *_ in todo)])
        checks.check_memory(needed, f"a Gram of {most} images, with what is made of it,")
        if progress is True and needed > 2**30:
            print(f"up to {needed / 2**30:.3g} GiB of memory are needed beside the networks", file=sys.stderr)
        for run, group, stay in todo:
            self._compute(run, group, stay, progress)
        if todo and progress is True:
            print(f"the networks waited for images {self.waited:.0f} of {self.seconds:.0f} s", file=sys.stderr)
        asked = zip(self.layers, self.keys, self.wanted, strict=True)
        return [Lazy(layers, functools.partial(self._gram, keys, str(one[0].device))) for layers, keys, one in asked]

    def _todo(self) -> list[tuple[Run, list[LayerAt], bool]]:
        """The runs that are needed, each with a group of layers that fits a GPU together (true), or the scratch space (false)."""
        todo = []
        for run in self.runs:
            missing = [at for at, key in run.keys.items() if read_gram(at, self._path(key)) is None]
            remove_whole(run.keys[at] for at in run.keys if at not in missing)
            if not missing:
                continue
            if self.unnamed & set(run.keys.values()):
                why = run.network.unidentified
                print(f"{run.network.name}: its features are not kept in the cache, since {why}", file=sys.stderr)
            if not run.counts:
                run.counts = activations.probe(run.network, run.images, missing).counts
            n, counts = len(run.images), {at: run.counts[at] for at in missing}
            staying, others, room = held(counts, n, run.network.device)
            todo += [(run, group, True) for group in grouped(staying, n, room)]
            todo += [(run, group, False) for group in grouped(others, n, room_on_disk(self.scratch_bytes))]
        return todo

    def _compute(self, run: Run, group: Sequence[LayerAt], stay: bool, progress: Progress) -> None:
        """The Grams of one group of layers, into their files; the features ``stay`` on a GPU until then, or go to disk."""
        with contextlib.ExitStack() as stack:
            scratch = {}
            for key, at in sorted((run.keys[at], at) for at in group):  # in one order: no two processes wait for each other
                size, kept = (run.counts[at], len(run.images)), key not in self.unnamed
                scratch[at] = Scratch(key, *size, kept=kept, device=run.network.device, held=stay)
                stack.enter_context(scratch[at])
            if any(one.waited for one in scratch.values()):  # for another process, which may have computed them
                scratch = {at: one for at, one in scratch.items() if read_gram(at, self._path(run.keys[at])) is None}
            make_room(0 if stay else sum(4 * one.count * (one.n_images - one.done) for one in scratch.values()))
            self._stream(run, {at: scratch[at] for at in group if at in scratch}, progress)
            for at, one in scratch.items():
                write_gram(self._path(run.keys[at]), Gram(at, one.gram(str(at)), run.counts[at]))
                one.remove()

    def _stream(self, run: Run, scratch: Mapping[LayerAt, Scratch], progress: Progress) -> None:
        """All images through the network, their features into ``scratch``, from where a run before stopped."""
        total = len(run.images)
        behind = {at: one for at, one in scratch.items() if one.done < total}
        done = min((one.done for one in behind.values()), default=total)
        names = ", ".join(map(str, list(behind)[:3])) + (", …" if len(behind) > 3 else "")
        what = f"{run.network.name}: {names}"
        shown = batches(run.images, run.network.preprocessing, self.batch_size, done, self.workers)
        started = time.perf_counter()
        with tqdm(total=total, initial=done, unit="image", desc=what, disable=progress is not True) as bar:
            while (batch := self._next(shown)) is not None:
                for at, rows in activations.feature_rows(run.network, batch, list(behind)).items():
                    rows = activations.of_unit_norm(rows) if self.unit_norm else rows
                    behind[at].append(rows[max(0, behind[at].done - done) :])
                done += len(batch)
                bar.update(len(batch))
                if callable(progress):
                    progress(what, done, total)
        self.seconds += time.perf_counter() - started

    def _next(self, shown: Iterator[Tensor]) -> Tensor | None:
        """The next batch, None after the last; the time until it is there counts."""
        started = time.perf_counter()
        batch = next(shown, None)
        self.waited += time.perf_counter() - started
        return batch

    def _path(self, key: str) -> Path:
        """The file of a Gram: in the cache, or, where its network has no identity, in a folder that goes with this object."""
        if key not in self.unnamed:
            return cached_path(key)
        if self.own is None:
            self.own = Path(tempfile.mkdtemp(prefix="unnamed-", dir=io.cache_folder("scratch")))
            self.lock = lock_of(self.own.name)  # so that no other process makes room here
            self.lock.acquire()
            weakref.finalize(self, shutil.rmtree, self.own, ignore_errors=True)
        return self.own / f"{key}.npz"

    def _gram(self, keys: Mapping[LayerAt, str], device: str, at: LayerAt) -> Gram:
        return summed(at, functools.partial(self._read, keys), device)

    def _read(self, keys: Mapping[LayerAt, str], at: LayerAt) -> Gram:
        found = read_gram(at, path := self._path(keys[at]))
        if found is None:
            raise OSError(f"{at}: {path} was removed or damaged while this run needed it; start it again")
        return found


def summed(at: LayerAt, read: Callable[[LayerAt], Gram], device: str) -> Gram:
    """K of a layer: the sum over its parts, of which one at a time is read; of few features they are side by side."""
    first, *others = at.parts
    found = read(first)
    values, n_features = found.values, found.n_features
    for part in others:
        found = read(part)
        n_features += found.n_features
        if few(n_features, len(values)) and is_factor(values) and is_factor(found.values):
            values = np.hstack([values, found.values])
        else:
            values = whole(values)
            values += whole(found.values)
    return Gram(at, values, n_features, device)


def cached_path(key: str) -> Path:
    """The file of the cache that the Gram of a key has."""
    return io.cache_folder("grams") / f"{key}.npz"


def read_gram(at: LayerAt, path: Path) -> Gram | None:
    """The Gram in a file, None where there is none; a damaged one warns and counts as none."""
    if not path.is_file():
        return None
    try:
        with io.open_file(path) as file, np.load(file, allow_pickle=False) as stored:  # zip members carry checksums
            return Gram(at, np.asarray(stored["values"], dtype=np.float64), int(stored["n_features"]))
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
