"""Iterations as time: what a recording in several time bins sees of a network with feedback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cnnf_brain.activations import check_layers
from cnnf_brain.types import LayerAt

try:
    from brainscore_core.supported_data_standards.brainio.assemblies import NeuroidAssembly, walk_coords
    from brainscore_vision.model_helpers.brain_transformation.temporal import TemporalAligned
except ImportError as error:
    raise ImportError(
        f"cnnf_brain.brainscore needs brainscore-vision ({error}): pip install 'cnnf-brain[brainscore]'"
    ) from error

# 70 ms is where Brain-Score's window of V4 and IT (70 to 170 ms) begins, about when the first spikes come there; 50 ms is what
# Brain-Score's CORnet-S, the recurrent model there, gives a pass in V4.
ONSET, PASS = 70, 50


def default_bins(iterations: int) -> tuple[tuple[int, int], ...]:
    """(start, end) in ms of the first pass and of each iteration: 70-120, 120-170, 170-220, ..."""
    return tuple((ONSET + PASS * t, ONSET + PASS * (t + 1)) for t in range(iterations + 1))


def check_bins(bins: Sequence[tuple[int, int]], iterations: int) -> None:
    """A ValueError unless there is one bin for each iteration from 0 on, each starting where the one before ends."""
    if len(bins) != iterations + 1:
        raise ValueError(
            f"{len(bins)} time bins for iterations 0 to {iterations}; expected {iterations + 1}, one for each "
            "(the first feedforward pass is iteration 0)"
        )
    for (start, end), (following, _) in zip(bins, [*bins[1:], (bins[-1][1], None)], strict=True):
        if not start < end == following:
            raise ValueError(
                f"time bins {' '.join(f'{a}-{b}' for a, b in bins)}: expected START-END in ms, each starting where the one "
                "before ends"
            )


def shares(bins: Sequence[tuple[int, int]], asked: Sequence[tuple[int, int]]) -> np.ndarray:
    """(len(asked), len(bins)): how much of each asked time bin falls to each iteration; rows sum to 1.

    What is before the first bin falls to the first pass, what is after the last bin to the last iteration. A ValueError for
    a bin without extent.
    """
    starts = np.array([-np.inf, *(start for start, _ in bins[1:])])
    ends = np.array([*(end for _, end in bins[:-1]), np.inf])
    rows = []
    for start, end in asked:
        if not start < end:
            raise ValueError(f"time bin {start}-{end} ms has no extent")
        overlap = np.clip(np.minimum(ends, end) - np.maximum(starts, start), 0, None)
        rows.append(overlap / (end - start))
    return np.array(rows)


class IterationsInTime(TemporalAligned):
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
            check_layers(self.activations_model._model, [at])
        except ValueError:
            at = LayerAt(at.layer, 0, at.feedback)
        return str(at)

    def _package(self, found: Any, first: list[str], values: np.ndarray, region: str) -> Any:
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


def _in_time(found: Any, names: Sequence[str], weights: np.ndarray) -> np.ndarray:
    """(presentation, neuroid, time_bin) of one layer from its columns at each iteration in ``found``."""
    layer = found["layer"].values
    rows = found.transpose("presentation", "neuroid").values
    values = None
    for t, name in enumerate(names):
        columns = np.flatnonzero(layer == name)
        if t == 0:
            values = np.zeros((len(rows), len(columns), len(weights)), dtype=rows.dtype)
        assert values is not None
        for bin_, weight in enumerate(weights[:, t]):
            if weight:
                values[:, :, bin_] += rows.dtype.type(weight) * rows[:, columns]
    assert values is not None
    return values
