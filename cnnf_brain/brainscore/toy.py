"""A benchmark of Brain-Score's own classes on Recordings of ours: made-up ones in rehearsals, real ones in tests."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from cnnf_brain.recordings import Recordings
from cnnf_brain.types import Images

try:
    from brainscore_core.supported_data_standards.brainio.assemblies import NeuronRecordingAssembly
    from brainscore_core.supported_data_standards.brainio.stimuli import StimulusSet
    from brainscore_vision import load_ceiling, load_metric
    from brainscore_vision.benchmark_helpers.neural_common import NeuralBenchmark, average_repetition
    from brainscore_vision.metrics.regression_correlation.metric import (
        CrossRegressedCorrelation,
        pearsonr_correlation,
        pls_regression,
    )
except ImportError as error:
    raise ImportError(
        f"cnnf_brain.brainscore needs brainscore-vision ({error}): pip install 'cnnf-brain[brainscore]'"
    ) from error

WINDOW = (70, 170)  # ms
SITES, REPEATS, COMPONENTS = 12, 4, 4  # of the toy benchmark
SEEDS = {"V4": 0, "IT": 1}


def toy_benchmark(region: str, images: Images, folder: Path) -> Any:
    """A NeuralBenchmark of PLS on random responses to a handful of ``images``, which are written to ``folder``.

    Its regression has few components and its splits are two, so that 16 images are enough.
    """
    data = np.random.default_rng(SEEDS[region]).standard_normal((len(images), SITES, REPEATS))
    data += data.mean(axis=2, keepdims=True)  # repeats that agree, which the ceiling is made of
    recordings = Recordings.from_arrays(data, images, region=region, source="simulated")
    metric = CrossRegressedCorrelation(
        regression=pls_regression(regression_kwargs={"n_components": COMPONENTS}),
        correlation=pearsonr_correlation(),
        crossvalidation_kwargs={"stratification_coord": None, "splits": 2, "train_size": 0.5},
    )
    return neural_benchmark(recordings, region, folder, metric=metric)


def neural_benchmark(recordings: Recordings, region: str, folder: Path, *, metric: Any = None) -> Any:
    """A NeuralBenchmark as MajajHong2015's: ``pls`` unless another metric is given, internal consistency as the ceiling, 8 degrees.

    ``pls`` is stratified by ``object_name`` where the recordings have it. A ValueError where they hold no repeats.
    """
    single = assembly(recordings, region, folder)
    stratified = None if recordings.object_names is None else "object_name"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target = average_repetition(single)
        metric = metric or load_metric("pls", crossvalidation_kwargs={"stratification_coord": stratified})
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
                "neuroid_id": ("neuroid", list(recordings.site_ids)),
                "region": ("neuroid", [region] * n_neuroids),
                "time_bin_start": ("time_bin", [WINDOW[0]]),
                "time_bin_end": ("time_bin", [WINDOW[1]]),
            },
            dims=["presentation", "neuroid", "time_bin"],
        ).squeeze("time_bin")
    made.attrs["stimulus_set"] = stimuli(recordings.images, folder, about)
    return made


def stimuli(images: Images, folder: Path, about: dict[str, np.ndarray]) -> Any:
    """Images as Brain-Score's StimulusSet, written to ``folder``; ``about`` holds its columns."""
    folder.mkdir(parents=True, exist_ok=True)
    made = StimulusSet({name: list(values) for name, values in about.items()})
    made.stimulus_paths = {}
    for number, name in enumerate(images.ids):
        path = folder / f"{name}.png"
        if not path.exists():
            path.write_bytes(images.read(number))
        made.stimulus_paths[name] = path
    made.identifier = f"toy.{folder.name}"
    return made
