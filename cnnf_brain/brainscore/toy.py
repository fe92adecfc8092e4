"""A benchmark of Brain-Score's own classes on Recordings of ours: simulated ones in rehearsals, real ones in tests."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from cnnf_brain.recordings.simulated import simulated
from cnnf_brain.types import Recordings

try:
    from brainscore_core.supported_data_standards.brainio.assemblies import NeuronRecordingAssembly
    from brainscore_core.supported_data_standards.brainio.stimuli import StimulusSet
    from brainscore_vision import load_ceiling, load_metric
    from brainscore_vision.benchmark_helpers.neural_common import NeuralBenchmark, average_repetition
except ImportError as error:
    raise ImportError(
        f"cnnf_brain.brainscore needs brainscore-vision ({error}): pip install 'cnnf-brain[brainscore]'"
    ) from error

WINDOW = (70, 170)  # ms


def toy_benchmark(region: str, folder: Path, *, each: int, sites: int, splits: int = 10) -> Any:
    """NeuralBenchmark with metric ``pls`` on simulated recordings: ``each`` images of every object, the first ``sites``.

    The attribute ``stimuli`` is the number of images. Images are written to ``folder``.
    """
    recordings = simulated(region)
    objects = recordings.object_names
    assert objects is not None
    chosen = np.sort(np.concatenate([np.flatnonzero(objects == name)[:each] for name in np.unique(objects)]))
    data = recordings.data.isel(stimulus=chosen, neuroid=slice(sites))
    images = type(recordings.images)(
        tuple(recordings.images.ids[i] for i in chosen), lambda i: recordings.images.read(int(chosen[i])), "simulated"
    )
    small = Recordings(recordings.source, recordings.region, data, images, simulated=True)
    benchmark = neural_benchmark(small, region, folder, splits=splits)
    benchmark.stimuli = len(chosen)
    return benchmark


def neural_benchmark(recordings: Recordings, region: str, folder: Path, *, splits: int = 10) -> Any:
    """A NeuralBenchmark as MajajHong2015's: ``pls``, internal consistency as the ceiling, 8 degrees.

    Stratified by ``object_name`` where the recordings have it. A ValueError where they hold no repeats.
    """
    single = assembly(recordings, region, folder)
    stratified = None if recordings.object_names is None else "object_name"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target = average_repetition(single)
        metric = load_metric("pls", crossvalidation_kwargs={"stratification_coord": stratified, "splits": splits})
        ceiling = load_ceiling("internal_consistency")
    return NeuralBenchmark(
        identifier=f"toy.{folder.name}.{region}-pls",
        version=1,
        assembly=target,
        similarity_metric=metric,
        visual_degrees=8,
        number_of_trials=1,
        ceiling_func=lambda: ceiling(single),
        parent=region,
        bibtex="",
    )


def assembly(recordings: Recordings, region: str, folder: Path) -> Any:
    """Single presentations (presentation, neuroid) as Brain-Score's assembly, with its stimuli in ``folder``."""
    repeats = recordings.repeats
    if repeats is None:
        raise ValueError(f"{recordings.source}: these recordings hold no repeats, which Brain-Score's ceiling is made of")
    stimulus, repetition = np.nonzero(np.isfinite(repeats).any(axis=1))
    n_neuroids = repeats.shape[1]
    ids = np.array(recordings.images.ids)
    about = {"stimulus_id": ids}
    if recordings.object_names is not None:
        about["object_name"] = recordings.object_names
    else:
        about["number"] = np.arange(len(ids))  # Brain-Score cannot split presentations that have one coordinate alone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = NeuronRecordingAssembly(
            repeats[stimulus, :, repetition][..., None],
            coords={
                **{name: ("presentation", values[stimulus]) for name, values in about.items()},
                "repetition": ("presentation", repetition),
                "neuroid_id": ("neuroid", recordings.data["neuroid_id"].values),
                "region": ("neuroid", [region] * n_neuroids),
                "time_bin_start": ("time_bin", [WINDOW[0]]),
                "time_bin_end": ("time_bin", [WINDOW[1]]),
            },
            dims=["presentation", "neuroid", "time_bin"],
        ).squeeze("time_bin")
    made.attrs["stimulus_set"] = stimuli(recordings, folder, about)
    return made


def stimuli(recordings: Recordings, folder: Path, about: dict[str, np.ndarray]) -> Any:
    """The images as Brain-Score's StimulusSet, written to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    made = StimulusSet({name: list(values) for name, values in about.items()})
    made.stimulus_paths = {}
    for number, name in enumerate(recordings.images.ids):
        path = folder / f"{name}.png"
        if not path.exists():
            path.write_bytes(recordings.images.read(number))
        made.stimulus_paths[name] = path
    made.identifier = f"toy.{folder.name}"
    return made
