"""A Network as Brain-Score's PytorchWrapper: layers named by iteration (``features.23@2``), and iterations as time."""

from __future__ import annotations

import re
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from brainscore_core.supported_data_standards.brainio.assemblies import NeuroidAssembly, walk_coords
from brainscore_vision.model_helpers.activations.pytorch import PytorchWrapper
from brainscore_vision.model_helpers.brain_transformation.temporal import TemporalAligned
from numpy.typing import NDArray
from torch import nn

from cnnf_brain import activations
from cnnf_brain.io import read_bytes, short_hash
from cnnf_brain.model.cnnf import CNNF
from cnnf_brain.networks import Network
from cnnf_brain.types import Images, LayerAt

LOGITS = "logits"  # Brain-Score's name for the behavioural readout
BATCH_SIZE = 8  # as gram.layer_grams
# ms. Brain-Score's window of V4 and IT (70 to 170 ms) begins at 70 ms, about when the first spikes come there. 50 ms is what
# Brain-Score's CORnet-S, the recurrent model there, gives a pass in V4.
ONSET, PASS = 70, 50


class IterationWrapper(PytorchWrapper):  # type: ignore[misc]
    """A Network as the activations model of Brain-Score's ModelCommitment, LayerScores and NeuralBenchmark.

    Layers are named ``features.23@2``, ``features.23@2:feedback`` or ``features.23`` (iteration 0, the first feedforward pass).
    Networks without feedback have iteration 0 alone. ``logits`` is the network's output, of a CNNF that of the last iteration
    (``classifier.6@1`` names another one). Features and preprocessing are those of ``gram.layer_grams``. ``network`` stays on its
    device (PytorchWrapper itself would move it to the first GPU).

    ``identifier``: Brain-Score caches activations under this, the image set and the image size alone, so that it must differ
    wherever features do; ``iteration_wrapper`` makes such an identifier. ``batch_size``: images that run at once; Brain-Score fills
    the last batch up with copies of the last image.
    """

    def __init__(self, network: Network, identifier: str, batch_size: int = BATCH_SIZE) -> None:
        self._network = network
        super().__init__(nn.Module(), self.preprocess, identifier, batch_size=batch_size)  # an empty module to move
        self._model, self._device = network.module, network.device
        self.image_size = network.preprocessing.size

    def preprocess(self, paths: Iterable[str | Path]) -> NDArray[Any]:
        """Image files -> (B, C, size, size) float32; a ValueError that names a file that cannot be read."""
        names = [str(path) for path in paths]
        files = Images(tuple(dict.fromkeys(names)), lambda i: read_bytes(files.ids[i]), "images of Brain-Score")
        pixels = {name: self._network.preprocessing(files.decode(i)).numpy() for i, name in enumerate(files.ids)}
        return np.stack([pixels[name] for name in names])

    def get_activations(self, images: Sequence[Any], layer_names: Sequence[str]) -> OrderedDict[str, NDArray[Any]]:
        """Features (B, ...) float32 of preprocessed images (B, C, size, size), under the names that were asked for.

        Every array is a copy of its own. Raises ValueError for a layer that the network lacks (near names listed), an
        iteration that it does not run, ``logits`` of a network without a classifier, and features that are not finite.
        """
        places = {name: self.layer_at(name) for name in layer_names}
        pixels = np.stack([np.asarray(image) for image in images])
        rows = np.minimum(np.arange(len(pixels)), n_different(pixels) - 1)
        batch = torch.from_numpy(pixels[: rows[-1] + 1])
        self._model.eval()
        with torch.inference_mode(), activations.float32_convolutions(self._device):
            shaped = batch.to(self._device, memory_format=torch.channels_last)
            maps = activations.extract(self._model, shaped, list(dict.fromkeys(places.values())))
            whole = {at: activations.as_rows(map_, at).reshape(map_.shape).cpu().numpy() for at, map_ in maps.items()}
            return OrderedDict((name, np.array(whole[at][rows])) for name, at in places.items())

    def get_layer(self, layer_name: str) -> nn.Module:
        """The module that computes ``layer_name``."""
        return self._model.get_submodule(self.layer_at(layer_name).layer)

    def layer_at(self, layer_name: str) -> LayerAt:
        """What a layer's name stands for; a ValueError where the network does not have it."""
        if layer_name != LOGITS:
            at = LayerAt.parse(layer_name)
            activations.check_layers(self._model, [at])
            return at
        if self._network.headless:
            todo = "load weights that include it, or name a layer"
            raise ValueError(f"{self._network.name} has no classifier, and so no {LOGITS}; {todo}")
        if isinstance(self._model, CNNF):
            return LayerAt(self._model.layer_names[-1], self._model.iterations)
        return LayerAt("")  # the module itself


def iteration_wrapper(network: Network, identifier: str | None = None, batch_size: int = BATCH_SIZE) -> IterationWrapper:
    """An IterationWrapper whose identifier tells its features from all others (see ``wrapper_identifier``).

    >>> wrapper = iteration_wrapper(load_network("vgg16", iterations=2))
    >>> regions = {"V1": "features.16@1", "V2": "features.16@1", "V4": "features.16@2", "IT": "features.23@2"}
    >>> ModelCommitment(wrapper.identifier, wrapper, layers=list(set(regions.values())),
    ...                 behavioral_readout_layer="logits", region_layer_map=regions)
    """
    return IterationWrapper(network, wrapper_identifier(network, identifier), batch_size)


def wrapper_identifier(network: Network, name: str | None = None) -> str:
    """``NAME_WEIGHTS_Nit_SETTINGS``, for instance ``vgg16_CNNF_0f3a9c1e_2it_77b0d2f4``.

    The first eight digits of ``network.identity`` (random ones where there is none), the number of iterations, and a hash of
    the feedback's other settings and the preprocessing: Brain-Score's caches of activations know none of these. The version of
    the software is not in it; clear ``$RESULTCACHING_HOME`` after an update. ``name`` (by default the network's) may hold letters,
    digits and ``_``, since Brain-Score's website takes no hyphens; a ValueError for anything else.
    """
    if name is None:
        name = re.sub(r"[^0-9A-Za-z]+", "_", network.name.replace("-", "")).strip("_")
    check_name(name)
    settings = network.module.settings.as_dict() if isinstance(network.module, CNNF) else {}
    iterations = settings.pop("iterations", 0)
    rest = short_hash([settings, repr(network.preprocessing)])
    known = network.identity or uuid.uuid4().hex  # what cannot be identified shares no cache
    return f"{name}_{known[:8]}_{iterations}it_{rest}"


def n_different(pixels: NDArray[Any]) -> int:
    """Images (B, ...) up to the first of the equal ones at the end, which Brain-Score fills a batch up with."""
    n = len(pixels)
    while n > 1 and np.array_equal(pixels[n - 1], pixels[n - 2]):
        n -= 1
    return n


def check_name(name: str) -> None:
    """A ValueError where an identifier cannot be, or begin with, ``name``: letters, digits and ``_`` alone, a letter first."""
    if re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
        return
    tried = re.sub(r"[^0-9A-Za-z]+", "_", name).strip("_")
    if not tried[:1].isalpha():
        tried = f"model_{tried}".rstrip("_")
    why = "Brain-Score's website takes no hyphens, and passes over folders that begin with _"
    raise ValueError(
        f"identifier {name!r} may hold letters, digits and _ alone, and begins with a letter ({why}); try {tried!r}"
    )


def default_bins(iterations: int) -> tuple[tuple[int, int], ...]:
    """(start, end) in ms of the first pass and of each iteration: 70-120, 120-170, 170-220, ..."""
    return tuple((ONSET + PASS * t, ONSET + PASS * (t + 1)) for t in range(iterations + 1))


def check_bins(bins: Sequence[tuple[int, int]], iterations: int) -> None:
    """A ValueError unless there is one bin for each iteration from 0 on, each starting where the one before ends."""
    if len(bins) != iterations + 1:
        told = f"expected {iterations + 1}, one for each (the first feedforward pass is iteration 0)"
        raise ValueError(f"{len(bins)} time bins for iterations 0 to {iterations}; {told}")
    edges = [edge for bin_ in bins for edge in bin_]
    if edges[2::2] != edges[1:-1:2] or any(start >= end for start, end in bins):
        words = " ".join(f"{a}-{b}" for a, b in bins)
        raise ValueError(f"time bins {words}: expected START-END in ms, each starting where the one before ends")


def shares(bins: Sequence[tuple[int, int]], asked: Sequence[tuple[int, int]]) -> NDArray[Any]:
    """(len(asked), len(bins)): how much of each asked time bin falls to each iteration; rows sum to 1.

    What is before the first bin falls to the first pass, what is after the last bin to the last iteration. A ValueError for
    a bin without extent.
    """
    starts = np.array([-np.inf, *(start for start, _ in bins[1:])])
    ends = np.array([*(end for _, end in bins[:-1]), np.inf])
    empty = next((f"{start}-{end}" for start, end in asked if not start < end), None)
    if empty is not None:
        raise ValueError(f"time bin {empty} ms has no extent")
    start, end = np.array(asked, float).reshape(-1, 2).T[..., None]
    return np.asarray(np.clip(np.minimum(ends, end) - np.maximum(starts, start), 0, None) / (end - start))


class IterationsInTime(TemporalAligned):  # type: ignore[misc]
    """The layers of a region in time: asked for several time bins, each is answered by the iterations that fall into it.

    A recording in one bin, as the static benchmarks make it, is answered by the layer and iteration that the region-layer map
    names, and one in several bins by that layer at iterations 0, 1, ..., weighted by ``shares``. Nothing is cached here: each
    region asks for its own layers, and Brain-Score's cache of activations holds them under their own names.
    """

    def __init__(self, layer_model: Any, bins: Sequence[tuple[int, int]]) -> None:
        super().__init__(layer_model)
        self._bins = tuple(bins)

    def start_recording(self, recording_target: str, time_bins: Any) -> None:
        """Record from a region in time bins ((start, end), ...) in ms."""
        asked = [tuple(bin_.tolist() if isinstance(bin_, np.ndarray) else bin_) for bin_ in time_bins]
        shares(self._bins, asked)  # before long work: what it raises
        super().start_recording(recording_target, time_bins=asked)

    def look_at(self, stimuli: Any, number_of_trials: int = 1) -> Any:
        """(presentation, neuroid[, time_bin]) features of the region that is recorded from."""
        if len(self._time_bins) == 1 or len(self._bins) == 1:
            return super().look_at(stimuli, number_of_trials=number_of_trials)
        (region,) = self._layer_model.recorded_regions
        layers = self._layers(region)
        names = list(dict.fromkeys(name for of_layer in layers for name in of_layer))
        # require_variance as LayerMappedModel has it: another value would be another key of the cache
        found = self._layer_model.run_activations(
            stimuli, layers=names, number_of_trials=number_of_trials, require_variance=False
        )
        weights = shares(self._bins, self._time_bins)
        parts = [_in_time(found, of_layer, weights) for of_layer in layers]
        values = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        return self._package(found, [of_layer[0] for of_layer in layers], values, region)

    def _layers(self, region: str) -> list[list[str]]:
        """The names of each of the region's layers at every iteration."""
        named = self.region_layer_map[region]
        ats = [LayerAt.parse(str(name)) for name in ([named] if isinstance(named, str) else named)]
        several = list(dict.fromkeys((at.layer, at.feedback) for at in ats))
        return [[self._at(LayerAt(layer, t, feedback)) for t in range(len(self._bins))] for layer, feedback in several]

    def _at(self, at: LayerAt) -> str:
        """The name of a layer at an iteration; a layer below the feedback's target has its first pass alone, at all times."""
        try:
            activations.check_layers(self.activations_model._model, [at])
        except ValueError:
            at = LayerAt(at.layer, 0, at.feedback)
        return str(at)

    def _package(self, found: Any, first: list[str], values: NDArray[Any], region: str) -> Any:
        """``values`` with the coordinates of the layers' first iterations, named without iteration."""
        columns = np.concatenate([np.flatnonzero(found["layer"].values == name) for name in first])
        coords = {
            name: (dims, given[columns] if dims == ("neuroid",) else given)
            for name, dims, given in walk_coords(found)
            if name not in ("layer", "neuroid_id")
        }
        layer = [LayerAt.parse(name).layer for name in found["layer"].values[columns]]
        identity = zip(coords["model"][1], layer, coords["neuroid_num"][1], strict=True)
        coords |= {
            "layer": ("neuroid", layer),
            "neuroid_id": ("neuroid", [".".join(map(str, parts)) for parts in identity]),
            "region": ("neuroid", [region] * len(columns)),
            "time_bin_start": ("time_bin", [start for start, _ in self._time_bins]),
            "time_bin_end": ("time_bin", [end for _, end in self._time_bins]),
        }
        return NeuroidAssembly(values, coords=coords, dims=["presentation", "neuroid", "time_bin"])


def _in_time(found: Any, names: Sequence[str], weights: NDArray[Any]) -> NDArray[Any]:
    """(presentation, neuroid, time_bin) of one layer from its columns at each iteration in ``found``."""
    rows = found.transpose("presentation", "neuroid").values
    columns = [np.flatnonzero(found["layer"].values == name) for name in names]
    values = np.zeros((len(rows), len(columns[0]), len(weights)), rows.dtype)
    for time_bin, t in zip(*np.nonzero(weights), strict=True):
        values[:, :, time_bin] += rows.dtype.type(weights[time_bin, t]) * rows[:, columns[t]]
    return values
